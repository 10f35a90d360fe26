//! One rope to many readers.

use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ropewalk::{Cursor, Rope};

/// A reader on a non-blocking socket, and how far into the rope it is.
pub struct Reader<S> {
    socket: S,
    cursor: Cursor<Arc<Rope>>,
    /// When it last took a byte.
    last: Instant,
}

impl<S: AsFd> Reader<S> {
    pub fn new(socket: S, rope: &Arc<Rope>) -> Reader<S> {
        Reader { socket, cursor: Cursor::new(Arc::clone(rope)), last: Instant::now() }
    }
}

/// Gives each reader a turn. Drops readers that have the whole rope, that fail, or that take nothing for
/// `idle`: no reader delays another. Returns `true` if a reader took bytes and can take more at once;
/// otherwise wait until a socket is writable, but no longer than `idle`.
pub fn send_to_all<S: AsFd>(readers: &mut Vec<Reader<S>>, idle: Duration) -> bool {
    let mut again = false;
    readers.retain_mut(|reader| match reader.cursor.writev_to(&reader.socket) {
        Ok(_) => {
            let more = reader.cursor.remaining() > 0;
            (reader.last, again) = (Instant::now(), again | more);
            more
        }
        // The cursor stands at the first byte that was not sent.
        Err(error) if error.kind() == ErrorKind::WouldBlock => reader.last.elapsed() < idle,
        Err(_) => false,
    });
    again
}
