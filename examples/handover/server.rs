//! The server: receives uploads, and asks the worker for their hashes.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use ropewalk::{Pool, Rope};

use crate::meter::thread_cpu;
use crate::{Serve, Way};

/// How long the worker may take for one payload.
const WORKER_TIME: Duration = Duration::from_secs(60);

pub(crate) fn serve(options: &Serve) -> anyhow::Result<()> {
    let listener = TcpListener::bind(options.listen).with_context(|| {
        format!("cannot listen on {}; choose an address of this machine and a free port", options.listen)
    })?;
    let server = Arc::new(Server {
        way: options.way,
        max: usize::try_from(options.max.0)?,
        time: Duration::from_secs(options.time),
        pool: Pool::new()?,
        worker: Mutex::new(Worker::start(options.way)?),
    });
    writeln!(io::stdout(), "listening on {}", listener.local_addr()?)?;
    loop {
        // A connection that is gone already, or no descriptor left: the next one may do better.
        let Ok((socket, _)) = listener.accept() else {
            thread::sleep(Duration::from_millis(10));
            continue;
        };
        let server = Arc::clone(&server);
        let answered = thread::Builder::new().spawn(move || server.answer(&socket));
        if let Err(error) = answered {
            let _ = writeln!(io::stderr(), "handover: {error}");
        }
    }
}

struct Server {
    way: Way,
    max: usize,
    time: Duration,
    /// For payloads that go through a socket.
    pool: Pool,
    worker: Mutex<Worker>,
}

impl Server {
    fn answer(&self, mut socket: &TcpStream) {
        let answer = self.hash(socket).unwrap_or_else(|error| format!("error: {error}"));
        // A client that does not wait for it does not get it.
        let _ = writeln!(socket, "{answer}");
    }

    fn hash(&self, socket: &TcpStream) -> io::Result<String> {
        socket.set_write_timeout(Some(self.time))?;
        let payload = self.receive(socket)?;
        // One payload at a time: the answers come in order.
        let mut worker = self.worker.lock().unwrap_or_else(PoisonError::into_inner);
        let hash = worker.hash(self.way, payload);
        if hash.is_err() {
            // It may be dead, or in the middle of a payload.
            *worker = Worker::start(self.way)?;
        }
        hash.map(|(hash, took)| format!("{hash:016x} {}", took.as_nanos()))
    }

    /// Receives until the client ends the stream.
    fn receive(&self, socket: &TcpStream) -> io::Result<Rope> {
        let mut rope = match self.way {
            Way::Sealed => Rope::for_handover()?,
            Way::Socket => Rope::in_pool(&self.pool),
        };
        rope.set_limit(self.max);
        // This process does not read a payload that it hands over, so its pages are not mapped here.
        let deadline = Instant::now() + self.time;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(ErrorKind::TimedOut.into());
            }
            socket.set_read_timeout(Some(left))?;
            match rope.splice_from(socket) {
                Ok(0) => return Ok(rope),
                Err(error) if error.kind() != ErrorKind::WouldBlock => return Err(error),
                _ => {}
            }
        }
    }
}

/// The worker process, and the socket that is its standard input. Both end with this value.
struct Worker {
    process: Child,
    socket: UnixStream,
}

impl Worker {
    fn start(way: Way) -> io::Result<Worker> {
        let (socket, theirs) = UnixStream::pair()?;
        socket.set_read_timeout(Some(WORKER_TIME))?;
        socket.set_write_timeout(Some(WORKER_TIME))?;
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["worker", "--way", way.name()]).stdin(OwnedFd::from(theirs));
        Ok(Worker { process: command.spawn()?, socket })
    }

    /// Returns the hash, and the CPU time that the hand-over took in both processes.
    fn hash(&mut self, way: Way, mut payload: Rope) -> io::Result<(u64, Duration)> {
        let before = thread_cpu()?;
        match way {
            Way::Sealed => payload.finalize()?.seal()?.send(&self.socket)?,
            Way::Socket => {
                payload.push_front((payload.len() as u64).to_le_bytes().to_vec());
                payload.write_all_to(&self.socket)?;
            }
        }
        let took = thread_cpu()? - before;
        let (mut hash, mut receiving) = ([0; 8], [0; 8]);
        for number in [&mut hash, &mut receiving] {
            self.socket.read_exact(number).map_err(|error| match error.kind() {
                ErrorKind::UnexpectedEof => io::Error::other("the worker has ended"),
                _ => error,
            })?;
        }
        Ok((u64::from_le_bytes(hash), took + Duration::from_nanos(u64::from_le_bytes(receiving))))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
