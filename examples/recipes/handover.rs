//! Hands an upload to a worker process.

use std::io::{self, ErrorKind};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use ropewalk::{Rope, Sealed};

use crate::receive::time_left;

/// Receives all that a peer sends until it ends the stream, at most `max` bytes within `time`, and hands it to `worker`.
pub fn hand_over(socket: &TcpStream, worker: &UnixStream, max: usize, time: Duration) -> io::Result<()> {
    let deadline = Instant::now() + time;
    let mut payload = Rope::for_handover()?; // before the first byte: it has a memfd of its own
    payload.set_limit(max);
    loop {
        socket.set_read_timeout(Some(time_left(deadline)?))?;
        // As `readv_from`, but the pages are not mapped in this process.
        match payload.splice_from(socket) {
            Ok(0) => break,
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {} // the read timeout
            Err(error) => return Err(error),
        }
    }
    worker.set_write_timeout(Some(time_left(deadline)?))?; // it may be stuck, with its queue full
    payload.finalize()?.seal()?.send(worker)
}

/// In the worker: takes the next payload. `None` is the end.
pub fn take_over(server: &UnixStream) -> io::Result<Option<Sealed>> {
    match Sealed::receive(server) {
        Ok(payload) => Ok(Some(payload)), // no process can change it any more
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}
