//! Reservations and the wait queue.

use std::io;
use std::task::Waker;

use super::{Core, SHARDS, State, Want};
use crate::pool::cache::PageCache;
use crate::pool::capacity::{Capacity, Wakers};
use crate::pool::refused::Size;
use crate::pool::wake::wake_all;

impl Core {
    /// Pages for a reservation of so many bytes.
    ///
    /// # Errors
    ///
    /// When it is more than the capacity.
    pub(in crate::pool) fn pages_to_reserve(&self, bytes: u64) -> io::Result<u32> {
        self.check_process()?;
        let capacity = self.state().capacity.limit();
        let pages = bytes.div_ceil(self.arena.page_size() as u64);
        u32::try_from(pages).ok().filter(|&pages| pages <= capacity).ok_or_else(|| {
            let (bytes, capacity) = (Size(bytes), Size(self.bytes(capacity)));
            let message = format!(
                "{bytes} requested of a pool with a capacity of {capacity}; ask for less or raise PoolOptions::capacity"
            );
            io::Error::new(io::ErrorKind::OutOfMemory, message)
        })
    }

    /// Reserves pages if they are available.
    pub(in crate::pool) fn try_reserve(&self, pages: u32) -> io::Result<()> {
        let mut state = self.state();
        if state.capacity.available(state.used()) < pages {
            self.flush_all(&mut state);
        }
        let used = state.used();
        if state.capacity.try_reserve(pages, used) {
            Ok(())
        } else {
            Err(self.at_capacity(&state, Want::UpTo(pages, 0)))
        }
    }

    /// [`Capacity::request`]. Opens the page caches again once no request waits.
    pub(in crate::pool) fn request(
        &self,
        pages: u32,
        ticket: Option<u64>,
        waker: &mut Waker,
    ) -> (Option<u64>, Wakers) {
        let mut state = self.state();
        // While anybody waits, every free must be seen by the queue.
        for shard in 0..SHARDS {
            let cached = self.caches[shard].close();
            state.uncache(cached);
        }
        let used = state.used();
        let answer = state.capacity.request(pages, ticket, waker, used);
        self.reopen(&state);
        answer
    }

    /// Withdraws a queued request. Its waker may be the last reference to a task, and ropes of this pool are dropped with
    /// that: outside the lock.
    pub(in crate::pool) fn cancel(&self, ticket: u64) {
        let _waker = self.change_capacity(|capacity| capacity.cancel(ticket));
    }

    /// Returns reserved pages that were not used.
    pub(in crate::pool) fn unreserve(&self, pages: u32) {
        self.change_capacity(|capacity| capacity.unreserve(pages));
    }

    fn change_capacity<T>(&self, change: impl FnOnce(&mut Capacity) -> T) -> Option<T> {
        (!self.arena.is_inherited()).then(|| {
            self.change(|state| {
                let result = change(&mut state.capacity);
                self.reopen(state);
                result
            })
        })
    }

    /// Changes the state, serves the waiters that can be served then, and wakes them once the lock is released.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let (result, wakers) = {
            let mut state = self.state();
            let result = change(&mut state);
            (result, state.serve())
        };
        wake_all(wakers);
        result
    }

    fn reopen(&self, state: &State) {
        if state.capacity.waiting() == 0 {
            self.caches.iter().for_each(PageCache::open);
        }
    }
}
