//! Hostile peers in numbers: a server that they besiege has to serve the others, and to be as before when they are gone.
#![allow(dead_code)] // each test file uses a part

use std::fs;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use socket2::SockRef;

pub(crate) const HOSTILE: usize = 190;
pub(crate) const HONEST: usize = 10;
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A program that is killed when this is dropped, and where it listens.
pub(crate) struct Server {
    child: Child,
    pub(crate) address: SocketAddr,
}

impl Server {
    /// Starts `program`, which may open `files` files, and whose first line ends in its address.
    pub(crate) fn start(program: &str, files: usize, arguments: &str) -> Server {
        let script = format!("ulimit -n {files}; exec \"$0\" {arguments}");
        let mut child = Command::new("sh")
            .args(["-c", &script, program])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().rsplit([' ', '/']).next().unwrap().parse().expect(&line);
        Server { child, address }
    }

    fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().count()
    }

    /// The most memory that it has had, in KiB.
    pub(crate) fn peak(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("it has ended");
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// Lets [`HOSTILE`] peers do harm until [`HONEST`] ones have been served, each by a call of `ask`, which come when all of
    /// the hostile ones are there.
    ///
    /// Each of the hostile ones sends one of `openings` and then does one thing of [`ENDINGS`]; where the server closes it,
    /// it comes again. `ask` panics if it
    /// gets wrong bytes. It may be refused, since the server is full; then it is called again.
    pub(crate) fn besiege(
        &self,
        openings: &[Vec<u8>],
        ask: impl Fn(SocketAddr, u64) -> io::Result<()> + Sync,
    ) {
        ask(self.address, 0).expect("before the siege");
        let before = self.descriptors();
        let (all_there, served) = (Barrier::new(HOSTILE + 1), AtomicBool::new(false));
        thread::scope(|scope| {
            for number in 0..HOSTILE {
                let opening = &openings[number % openings.len()];
                let ending = ENDINGS[number / openings.len() % ENDINGS.len()];
                let (all_there, served) = (&all_there, &served);
                let hostile = move || {
                    let peer = self.open(opening);
                    all_there.wait();
                    peer.and_then(|peer| self.harm(peer, opening, ending, served))
                };
                thread::Builder::new().stack_size(256 << 10).spawn_scoped(scope, hostile).unwrap();
            }
            all_there.wait();
            let ask = &ask;
            let honest = move |seed| {
                let begin = Instant::now();
                while let Err(error) = ask(self.address, seed) {
                    assert!(begin.elapsed() < PATIENCE, "not served: {error}");
                    thread::sleep(Duration::from_millis(20));
                }
            };
            let honest: Vec<_> = (0..HONEST).map(|seed| scope.spawn(move || honest(seed as u64))).collect();
            let served_all = honest.into_iter().map(|peer| peer.join()).collect::<Vec<_>>();
            served.store(true, Ordering::Relaxed);
            assert!(served_all.iter().all(Result::is_ok), "an honest peer was not served");
        });
        let begin = Instant::now();
        while self.descriptors() > before {
            assert!(begin.elapsed() < PATIENCE, "{} descriptors, {before} before", self.descriptors());
            thread::sleep(Duration::from_millis(20));
        }
        ask(self.address, 1).expect("after the siege");
    }

    /// A hostile peer that has sent as much of its opening as the server takes.
    fn open(&self, opening: &[u8]) -> io::Result<TcpStream> {
        let mut peer = TcpStream::connect(self.address)?;
        peer.set_write_timeout(Some(Duration::from_millis(200)))?;
        peer.set_read_timeout(Some(Duration::from_millis(20)))?;
        let _ = peer.write_all(opening);
        Ok(peer)
    }

    fn harm(
        &self,
        mut peer: TcpStream,
        opening: &[u8],
        ending: Ending,
        served: &AtomicBool,
    ) -> io::Result<()> {
        while !served.load(Ordering::Relaxed) {
            let sent = match ending {
                Ending::Leave => return Ok(()),
                Ending::Reset => return SockRef::from(&peer).set_linger(Some(Duration::ZERO)),
                Ending::HalfClose => peer.shutdown(Shutdown::Write),
                Ending::Trickle => peer.write_all(b"."),
                Ending::Repeat => peer.write_all(opening),
                Ending::Wait => Ok(()),
            };
            let is_closed = matches!(peer.peek(&mut [0]), Ok(0));
            if is_closed || sent.is_err_and(|error| error.kind() != ErrorKind::WouldBlock) {
                thread::sleep(Duration::from_millis(300));
                peer = self.open(opening)?;
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a hostile peer does after its opening. None of them ever reads.
#[derive(Clone, Copy)]
enum Ending {
    Wait,
    Leave,
    Reset,
    HalfClose,
    /// A byte now and then.
    Trickle,
    /// The same again, without end.
    Repeat,
}

const ENDINGS: [Ending; 6] =
    [Ending::Wait, Ending::Leave, Ending::Reset, Ending::HalfClose, Ending::Trickle, Ending::Repeat];

pub(crate) fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let at = |i: u64| (i.wrapping_add(seed << 40).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8;
    (0..len as u64).map(at).collect()
}

/// Sends `request`, ends the stream, and expects `answer` and its end. Fewer bytes are a refusal.
pub(crate) fn exchange(address: SocketAddr, request: &[u8], answer: &[u8]) -> io::Result<()> {
    let stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut got = Vec::new();
    let (sent, read) = thread::scope(|scope| {
        let sent =
            scope.spawn(|| (&stream).write_all(request).and_then(|()| stream.shutdown(Shutdown::Write)));
        let read = (&stream).read_to_end(&mut got);
        (sent.join().unwrap(), read)
    });
    assert!(answer.starts_with(&got), "{} bytes, some of which are wrong", got.len());
    sent.and(read)?;
    if got.len() < answer.len() {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    Ok(())
}
