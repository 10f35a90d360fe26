//! Reserved room, and requests that wait for some.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use ropewalk::{Pool, Room, RoomFuture, Rope};

use crate::pools::{self, PAGE};
use crate::world::{MOST_KEPT, Model, World, remove};
use crate::{Size, Which};

/// Something that waits for room.
pub struct Request {
    future: RoomFuture,
    len: u64,
}

impl Request {
    fn poll(&mut self) -> Poll<io::Result<Room>> {
        let result = Pin::new(&mut self.future).poll(&mut Context::from_waker(Waker::noop()));
        if let Poll::Ready(Ok(room)) = &result {
            assert_eq!(room.len(), self.len);
        }
        result
    }
}

/// Once nothing is in use, all waiters are served, some only after others have left.
pub fn serve(mut requests: VecDeque<Request>) {
    while !requests.is_empty() {
        let before = requests.len();
        requests.retain_mut(|request| request.poll().map(Result::unwrap).is_pending());
        assert!(requests.len() < before, "no waiter is served");
    }
}

/// Whole pages for so many bytes.
fn in_pages(size: Size) -> u64 {
    (size.bytes() as u64).next_multiple_of(PAGE)
}

fn try_room(pool: &Pool, size: Size) -> Option<Room> {
    let before = pools::stats(pool);
    let left = before.capacity - before.in_use - before.reserved;
    let (len, is_first) = (in_pages(size), before.waiting == 0);
    let room = pool.try_room(size.bytes());
    assert_eq!(room.is_ok(), len == 0 || is_first && len <= left, "{len} of {before:?}");
    match room {
        Ok(room) => {
            assert_eq!((room.len(), pools::stats(pool).reserved), (len, before.reserved + len));
            Some(room)
        }
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::OutOfMemory);
            None
        }
    }
}

impl World {
    pub fn new_room(&mut self, rope: Which, pool: Which, size: Size) {
        if let Some(room) = try_room(self.pool(pool), size) {
            *self.model(rope) = Model { rope: Rope::in_room(room), flat: Vec::new() };
        }
    }

    pub fn add_room(&mut self, rope: Which, pool: Which, size: Size) {
        let Some(room) = try_room(self.pool(pool), size) else { return };
        if let Err(room) = self.model(rope).rope.add_room(room) {
            assert_eq!(room.len(), in_pages(size), "of another pool, and as it was");
        }
    }

    pub fn wait_for_room(&mut self, pool: Which, size: Size) {
        let (pool, len) = (self.pool(pool), in_pages(size));
        let before = pools::stats(pool);
        let left = before.capacity - before.in_use - before.reserved;
        let mut request = Request { future: pool.wait_for_room(size.bytes()), len };
        match request.poll() {
            Poll::Ready(Ok(_)) => assert!(len <= left, "{len} of {before:?}"),
            Poll::Ready(Err(error)) => {
                assert!(error.kind() == ErrorKind::OutOfMemory && len > before.capacity, "{error}");
            }
            Poll::Pending => {
                assert!(before.waiting > 0 || len > left, "{len} of {before:?}");
                assert_eq!(pools::stats(pool).waiting, before.waiting + 1);
                self.requests.push_back(request);
            }
        }
        if self.requests.len() > MOST_KEPT {
            self.requests.pop_front();
        }
    }

    /// The rope is made in the room that a request was granted.
    pub fn poll_room(&mut self, rope: Which, request: Which) {
        let Some(at) = usize::from(request).checked_rem(self.requests.len()) else { return };
        if let Poll::Ready(room) = self.requests[at].poll() {
            *self.model(rope) = Model { rope: Rope::in_room(room.unwrap()), flat: Vec::new() };
            drop(remove(&mut self.requests, request));
        }
    }
}
