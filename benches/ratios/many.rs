//! Many connections and many threads in one pool.

use std::io::{self, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::sync::Barrier;
use std::thread;

use bytes::{Bytes, BytesMut};
use nix::sys::socket::{setsockopt, sockopt};
use ropewalk::{Pool, Rope};
use ropewalk_bench::accumulate::recv;
use ropewalk_bench::measure::{Contender, in_turn, median, timed};
use ropewalk_bench::wire::{self, Peer};

use super::{Bar, Tables};

pub(super) fn table(tables: &mut Tables) -> io::Result<()> {
    for connections in [1, 4, 16, 64] {
        interleaved(tables, "connections", Load { connections, size: 16 << 20, read: 256 << 10 })?;
    }
    for connections in [4, 64] {
        interleaved(tables, "connections, 256 KiB", Load { connections, size: 256 << 10, read: 32 << 10 })?;
    }
    idle(tables)?;
    for threads in [1, 2, 4, 16] {
        contention(tables, threads)?;
    }
    Ok(())
}

/// What arrives: so many payloads at the same time, each of `size` bytes, of which `read` are taken in a turn.
#[derive(Clone, Copy)]
struct Load {
    connections: usize,
    size: usize,
    read: usize,
}

/// Payloads that grow at the same time: what they cost, and how much of the ropes is contiguous without a copy.
fn interleaved(tables: &mut Tables, what: &str, load: Load) -> io::Result<()> {
    let Load { connections, size, read } = load;
    let pool = Pool::new()?;
    let (mut copied, mut maps) = (0, 0);
    let ropewalk = in_turns(
        load,
        || Rope::in_pool(&pool),
        |rope, socket| rope.readv_up_to(socket, read),
        |rope| {
            let view = rope.finalize().expect("there is memory");
            wire::check(&view, size);
            copied += view.copied_bytes();
            maps += view.num_maps();
        },
    )?;
    let mutable = in_turns(
        load,
        BytesMut::new,
        |all, socket| {
            all.reserve(read);
            recv(socket, all, read)
        },
        |all| wire::check(&all.freeze(), size),
    )?;
    let list = in_turns(
        load,
        Vec::new,
        |list, socket| {
            let mut piece = BytesMut::with_capacity(read);
            let count = recv(socket, &mut piece, read)?;
            list.push(piece.freeze());
            Ok(count)
        },
        |list: Vec<Bytes>| wire::check(&list.concat(), size),
    )?;
    let payloads = ROUNDS * connections;
    let kept = 100.0 - 100.0 * copied as f64 / (payloads * size) as f64;
    tables.figure("many", connections, &format!("{what}: not copied"), (kept, "%"), Bar::AtLeast(95.0));
    let each = maps as f64 / payloads as f64;
    tables.figure("many", connections, &format!("{what}: maps of each"), (each, ""), Bar::None);
    for (name, seconds) in [("ropewalk", ropewalk), ("BytesMut", mutable), ("list + concat", list)] {
        let each = seconds / connections as f64 * 1e3;
        let name = format!("{what}, CPU of each: {name}");
        tables.figure("many", connections, &name, (each, "ms"), Bar::None);
    }
    Ok(())
}

/// Rounds, of which the last one is told: by then the pool is warm, and so is the allocator.
const ROUNDS: usize = 3;

/// CPU time of reading from each connection in turn until all have ended, and of what is done with each then.
fn in_turns<A>(
    load: Load,
    start: impl Fn() -> A,
    read: impl Fn(&mut A, &TcpStream) -> io::Result<usize>,
    mut end: impl FnMut(A),
) -> io::Result<f64> {
    let peers: Vec<Peer> = (0..load.connections).map(|_| Peer::start()).collect();
    let mut seconds = 0.0;
    for _ in 0..ROUNDS {
        seconds = one_round(&peers, load.size, &start, &read, &mut end)?;
    }
    Ok(seconds)
}

fn one_round<A>(
    peers: &[Peer],
    size: usize,
    start: impl Fn() -> A,
    read: impl Fn(&mut A, &TcpStream) -> io::Result<usize>,
    end: impl FnMut(A),
) -> io::Result<f64> {
    let mut open =
        peers.iter().map(|peer| Ok((peer.order(size)?, start(), true))).collect::<io::Result<Vec<_>>>()?;
    let mut result = Ok(());
    let seconds = timed(|| {
        while open.iter().any(|(.., more)| *more) && result.is_ok() {
            result = open.iter_mut().filter(|(.., more)| *more).try_for_each(|(socket, all, more)| {
                *more = read(all, socket)? > 0;
                Ok(())
            });
        }
        open.into_iter().map(|(_, all, _)| all).for_each(end);
    });
    result.map(|()| seconds)
}

/// Connections on which nothing has come yet.
fn idle(tables: &mut Tables) -> io::Result<()> {
    const ROPES: usize = 10_000;
    let pool = Pool::new()?;
    let (socket, _peer) = wire::pair()?;
    socket.set_nonblocking(true)?;
    let mut ropes: Vec<Rope> = (0..ROPES).map(|_| Rope::in_pool(&pool)).collect();
    for rope in &mut ropes {
        assert_eq!(rope.readv_from(&socket).map_err(|error| error.kind()), Err(io::ErrorKind::WouldBlock));
    }
    let stats = pool.stats();
    tables.figure("many", ROPES, "bytes per idle rope", (size_of::<Rope>() as f64, "B"), Bar::AtMost(256.0));
    tables.figure("many", ROPES, "pool bytes of idle ropes", (stats.in_use as f64, "B"), Bar::AtMost(0.0));
    Ok(())
}

/// One rope per thread at a time, all of one pool, against a pool for each: nothing but the pool's own work,
/// and with the system calls that bring payloads.
fn contention(tables: &mut Tables, threads: usize) -> io::Result<()> {
    let works: [(&str, Work); 4] = [
        ("threads", fill),
        ("threads, receiving 64 B", receive::<64>),
        ("threads, receiving 16 KiB", receive::<{ 16 << 10 }>),
        ("threads, receiving 64 KiB", receive::<{ 64 << 10 }>),
    ];
    for (what, work) in works {
        let (shared, own) =
            (Pool::new()?, (0..threads).map(|_| Pool::new()).collect::<io::Result<Vec<_>>>()?);
        let mut contenders: [Contender<'_>; 2] = [
            (format!("{what}: shared pool"), Box::new(|| at_once(threads, |_| &shared, work))),
            (format!("{what}: a pool each"), Box::new(|| at_once(threads, |thread| &own[thread], work))),
        ];
        let timings = in_turn(&mut contenders, tables.rounds(21));
        tables.compare("many", threads, &timings, |name| {
            let counts = matches!(threads, 2 | 16) && name.contains("each");
            if counts { Bar::AtLeast(1.0 / 1.05) } else { Bar::None }
        });
    }
    Ok(())
}

/// What a thread does so many times; the CPU time of it.
type Work = fn(&Pool, usize) -> f64;

/// Times that count. The threads have met by then, and go on for longer than the system lets one of them run.
const TIMES: usize = 4000;

/// The median CPU time of the threads.
fn at_once<'a>(threads: usize, pool: impl Fn(usize) -> &'a Pool, work: Work) -> f64 {
    let start = &Barrier::new(threads);
    let run = |pool: &Pool| {
        start.wait();
        work(pool, TIMES / 4);
        work(pool, TIMES)
    };
    let times = thread::scope(|scope| {
        let spawn = |thread| {
            let pool = pool(thread);
            scope.spawn(move || run(pool))
        };
        let all: Vec<_> = (0..threads).map(spawn).collect();
        all.into_iter().map(|thread| thread.join().expect("no panic")).collect::<Vec<f64>>()
    });
    median(&times)
}

/// Small and larger payloads, filled without the kernel's help so that the pool is most of it.
fn fill(pool: &Pool, times: usize) -> f64 {
    let piece = [7; 4 << 10];
    let one = |round: usize| {
        let mut rope = Rope::in_pool(pool);
        (0..round % 64).for_each(|_| rope.extend_from_slice(&piece));
        drop(rope.finalize());
    };
    timed(|| (0..times).for_each(one))
}

/// Payloads through a socket of this thread's own, so that no thread waits for another. To have sent them, some at a
/// time, is not part of it.
fn receive<const PAYLOAD: usize>(pool: &Pool, times: usize) -> f64 {
    const WAITING: usize = 128 << 10;
    let (mut here, there) = UnixStream::pair().expect("a pair");
    setsockopt(&here, sockopt::SndBuf, &(8 * WAITING)).expect("a larger buffer");
    let some = vec![7; (WAITING / PAYLOAD).min(64) * PAYLOAD];
    let one = || {
        let mut rope = Rope::in_pool(pool);
        while rope.len() < PAYLOAD {
            rope.readv_up_to(&there, PAYLOAD - rope.len()).expect("it is there");
        }
        drop(rope.finalize());
    };
    let turn = || {
        here.write_all(&some).expect("there is room for it");
        timed(|| (0..some.len() / PAYLOAD).for_each(|_| one()))
    };
    std::iter::repeat_with(turn).take(times * PAYLOAD / some.len()).sum()
}
