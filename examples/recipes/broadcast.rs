//! One rope to many readers.

use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ropewalk::{Cursor, Rope};
use socket2::SockRef;

/// Bytes that a reader has to take in each period: one that takes a byte now and then would keep the rope.
const PROGRESS: usize = 64 << 10;

/// A reader on a non-blocking socket, and how far into the rope it is.
pub struct Reader<S> {
    socket: S,
    cursor: Cursor<Arc<Rope>>,
    /// When its period began, and the position then.
    since: (Instant, usize),
}

impl<S: AsFd> Reader<S> {
    pub fn new(socket: S, rope: &Arc<Rope>) -> Reader<S> {
        Reader { socket, cursor: Cursor::new(Arc::clone(rope)), since: (Instant::now(), 0) }
    }

    fn is_late(&mut self, period: Duration) -> bool {
        let (begin, position) = self.since;
        let progress = self.cursor.position() - position >= PROGRESS;
        if progress {
            self.since = (Instant::now(), self.cursor.position());
        }
        !progress && begin.elapsed() >= period
    }

    /// Has the socket reset when it is dropped: the end of the stream would say that the rope is whole.
    fn give_up(&self) {
        let _ = SockRef::from(&self.socket).set_linger(Some(Duration::ZERO));
    }
}

/// Gives each reader a turn. Drops readers that have the whole rope, that fail, or that take less than
/// `PROGRESS` in a period: no reader delays another. Returns `true` if a reader took bytes and can take more
/// at once; otherwise wait until a socket is writable, but no longer than a period.
pub fn send_to_all<S: AsFd>(readers: &mut Vec<Reader<S>>, period: Duration) -> bool {
    let mut again = false;
    readers.retain_mut(|reader| match reader.cursor.writev_to(&reader.socket) {
        Ok(_) => {
            let more = reader.cursor.remaining() > 0;
            again |= more;
            more
        }
        // The cursor stands at the first byte that was not sent.
        Err(error) if error.kind() == ErrorKind::WouldBlock && !reader.is_late(period) => true,
        Err(_) => {
            reader.give_up();
            false
        }
    });
    again
}
