//! Receives an upload whose length the peer has announced.

use std::io::{self, ErrorKind};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use ropewalk::{Pool, Rope};

use crate::receive::time_left;

/// Receives the `announced` bytes that a peer is to send next, at most `max`, within `time`.
///
/// It does not reserve them: a peer that announces much and sends nothing holds nothing.
pub fn receive_body(
    socket: &TcpStream,
    announced: u64,
    pool: &Pool,
    max: usize,
    time: Duration,
) -> io::Result<Rope> {
    let len = usize::try_from(announced).ok().filter(|&len| len <= max).ok_or(ErrorKind::QuotaExceeded)?;
    let deadline = Instant::now() + time;
    let mut body = Rope::in_pool(pool);
    while body.len() < len {
        socket.set_read_timeout(Some(time_left(deadline)?))?;
        match body.readv_up_to(socket, len - body.len()) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {} // the read timeout
            Err(error) => return Err(error), // OutOfMemory: the pool is full, let the peer come again
        }
    }
    Ok(body)
}
