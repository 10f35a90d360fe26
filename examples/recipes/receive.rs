//! Receives what may be of any length, and answers.

use std::io::{self, ErrorKind};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use ropewalk::{Pool, Rope};

/// Receives all that a peer sends until it ends the stream: at most `max` bytes, within `time`.
pub fn receive(socket: &TcpStream, pool: &Pool, max: usize, time: Duration) -> io::Result<Rope> {
    let deadline = Instant::now() + time;
    let mut rope = Rope::in_pool(pool);
    rope.set_limit(max); // beyond it: QuotaExceeded, and the bytes stay in the socket
    loop {
        socket.set_read_timeout(Some(time_left(deadline)?))?;
        match rope.readv_from(socket) {
            Ok(0) => return Ok(rope),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {} // the read timeout
            Err(error) => return Err(error),
        }
    }
}

/// The time until `deadline`, never zero: that would be no timeout.
pub fn time_left(deadline: Instant) -> io::Result<Duration> {
    deadline
        .checked_duration_since(Instant::now())
        .filter(|left| !left.is_zero())
        .ok_or(ErrorKind::TimedOut.into())
}

/// Sends all of `rope` within `time`.
pub fn send(socket: &TcpStream, mut rope: Rope, time: Duration) -> io::Result<()> {
    let deadline = Instant::now() + time;
    while !rope.is_empty() {
        socket.set_write_timeout(Some(time_left(deadline)?))?;
        match rope.writev_to(socket) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {} // the write timeout
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
