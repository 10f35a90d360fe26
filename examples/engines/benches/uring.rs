//! Ropes over compio's io_uring and over tokio's epoll: CPU time of the thread that receives or sends, in turn.
//!
//! ```text
//! cargo bench -p engines --bench uring               all
//! cargo bench -p engines --bench uring -- --quick    fewer rounds: shows that it works, proves nothing
//! ```
//!
//! A figure is how many times tokio's CPU time the other one takes: below 1, it is faster than tokio. The peer is a
//! blocking thread at the other end of a connection on loopback, where the kernel copies also what is sent without a
//! copy: `send_zerocopy` shows its overhead there, and not what it saves on a network card.

use std::error::Error;
use std::io::{self, Read};
use std::net::TcpStream;
use std::thread;

use compio::runtime::Runtime as Uring;
use engines::uring::{receive, send, send_zerocopy};
use ropewalk::{Pool, ReadRope, Rope, WriteRope};
use ropewalk_bench::measure::{Contender, in_turn, timed};
use ropewalk_bench::report::{self, asked_for};
use ropewalk_bench::wire::{Peer, check, pair, pattern};
use tokio::runtime::{Builder, Runtime as Epoll};

/// Bytes that a read asks compio for.
const READ: usize = 1 << 20;

/// Bytes of a segment that is sent.
const SEGMENT: usize = 16 << 10;

struct Bench {
    uring: Uring,
    epoll: Epoll,
    pool: Pool,
    peer: Peer,
}

fn main() -> Result<(), Box<dyn Error>> {
    let bench = Bench {
        uring: Uring::new().map_err(|error| format!("io_uring is refused here: {error}"))?,
        epoll: Builder::new_current_thread().enable_io().build()?,
        pool: Pool::new()?,
        peer: Peer::start(),
    };
    let rounds = if asked_for("--quick") { 3 } else { 51 };
    println!("what      size      way                        times tokio   quartiles");
    for size in [64 << 10, 1 << 20, 16 << 20] {
        let receivers: [(&str, Round); 2] =
            [("tokio", Bench::receive_by_epoll), ("compio", Bench::receive_by_uring)];
        let senders: [(&str, Round); 3] = [
            ("tokio", Bench::send_by_epoll),
            ("compio", Bench::send_by_uring),
            ("compio, send_zerocopy", Bench::send_zerocopy),
        ];
        bench.table("receive", size, &receivers, rounds);
        bench.table("send", size, &senders, rounds);
    }
    Ok(())
}

/// One payload of so many bytes on a connection of its own; returns seconds.
type Round = fn(&Bench, usize) -> io::Result<f64>;

impl Bench {
    fn table(&self, what: &str, size: usize, ways: &[(&str, Round)], rounds: usize) {
        let mut contenders: Vec<Contender<'_>> = ways
            .iter()
            .map(|&(name, round)| {
                let run = move || round(self, size).unwrap_or_else(|error| panic!("{name}: {error}"));
                (name.to_owned(), Box::new(run) as Box<dyn FnMut() -> f64>)
            })
            .collect();
        for timing in in_turn(&mut contenders, rounds) {
            let (size, (low, high)) = (report::size(size as u64), timing.quartiles);
            println!("{what:9} {size:9} {:26} {:11.2}   {low:.2} to {high:.2}", timing.name, timing.ratio);
        }
    }

    fn receive_by_epoll(&self, size: usize) -> io::Result<f64> {
        let _entered = self.epoll.enter();
        let stream = tokio_stream(self.peer.order(size)?)?;
        let mut rope = Rope::in_pool(&self.pool);
        Ok(timed(|| {
            self.epoll.block_on(async { while stream.read_rope(&mut rope).await.expect("received") > 0 {} });
            finalise(rope, size);
        }))
    }

    fn receive_by_uring(&self, size: usize) -> io::Result<f64> {
        let mut stream = self.compio_stream(self.peer.order(size)?)?;
        let mut rope = Rope::in_pool(&self.pool);
        Ok(timed(|| {
            self.uring.block_on(async {
                while receive(&mut stream, &mut rope, READ).await.expect("received") > 0 {}
            });
            finalise(rope, size);
        }))
    }

    fn send_by_epoll(&self, size: usize) -> io::Result<f64> {
        let _entered = self.epoll.enter();
        let (stream, reader) = drained(size)?;
        let stream = tokio_stream(stream)?;
        let mut rope = self.payload(size);
        let time =
            timed(|| self.epoll.block_on(async { stream.write_all_rope(&mut rope).await.expect("sent") }));
        reader.join().expect("the peer has all")?;
        Ok(time)
    }

    fn send_by_uring(&self, size: usize) -> io::Result<f64> {
        let (stream, reader) = drained(size)?;
        let mut stream = self.compio_stream(stream)?;
        let rope = self.payload(size);
        let time = timed(|| self.uring.block_on(async { send(&mut stream, rope).await.expect("sent") }));
        reader.join().expect("the peer has all")?;
        Ok(time)
    }

    fn send_zerocopy(&self, size: usize) -> io::Result<f64> {
        let (stream, reader) = drained(size)?;
        let mut stream = self.compio_stream(stream)?;
        let rope = self.payload(size);
        let time = timed(|| {
            self.uring.block_on(async { send_zerocopy(&mut stream, rope).await.expect("sent").await });
        });
        reader.join().expect("the peer has all")?;
        Ok(time)
    }

    fn compio_stream(&self, stream: TcpStream) -> io::Result<compio::net::TcpStream> {
        self.uring.enter(|| compio::net::TcpStream::from_std(stream))
    }

    /// A rope of segments in the pool's pages.
    fn payload(&self, size: usize) -> Rope {
        let mut whole = Rope::in_pool(&self.pool);
        let pattern = pattern();
        (0..size.div_ceil(pattern.len())).for_each(|_| {
            whole.extend_from_slice(&pattern[..pattern.len().min(size - whole.len())]);
        });
        let mut rope = Rope::in_pool(&self.pool);
        while !whole.is_empty() {
            rope.append(whole.split_to(SEGMENT.min(whole.len())));
        }
        rope
    }
}

fn tokio_stream(stream: TcpStream) -> io::Result<tokio::net::TcpStream> {
    stream.set_nonblocking(true)?;
    tokio::net::TcpStream::from_std(stream)
}

fn finalise(rope: Rope, size: usize) {
    check(&rope.finalize().expect("there is memory"), size);
}

/// A connection whose other end reads `size` bytes in a thread.
fn drained(size: usize) -> io::Result<(TcpStream, thread::JoinHandle<io::Result<()>>)> {
    let (here, mut there) = pair()?;
    let reader = thread::spawn(move || {
        let (mut left, mut buffer) = (size, vec![0; READ]);
        while left > 0 {
            match there.read(&mut buffer)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => left -= count,
            }
        }
        Ok(())
    });
    Ok((here, reader))
}
