//! The limit on allocated pages, reservations, and the wait queue. Pure: no I/O, no lock.
//!
//! ```text
//! limit  ├──── allocated ────┼─ reserved ─┼──── available ────┤
//!                              rooms, and what the first waiter has collected
//! ```
//!
//! Waiters are served first come, first served. The first one collects pages as they become available, but leaves an
//! eighth of the capacity alone: smaller requests overtake it with that eighth, so a large request never blocks them for
//! ever, and they cannot take what it has collected.

use std::collections::{BTreeMap, BTreeSet};
use std::task::Waker;

use smallvec::SmallVec;

/// Smaller requests overtake a large one within this part of the capacity.
const OVERTAKING_SHARE: u32 = 8;

/// Wakers to call once the lock is released, because they run foreign code.
pub(super) type Wakers = SmallVec<[Waker; 2]>;

#[derive(Default)]
pub(super) struct Capacity {
    /// Pages that may be allocated or reserved.
    limit: u32,
    reserved: u32,
    /// In order of arrival.
    waiting: BTreeMap<u64, Waiter>,
    /// The same, smallest first.
    by_size: BTreeSet<(u32, u64)>,
    /// Served, but not yet polled: pages by ticket.
    served: BTreeMap<u64, u32>,
    next: u64,
}

struct Waiter {
    pages: u32,
    /// Pages that it has collected; reserved. Only the first waiter has any.
    collected: u32,
    waker: Waker,
}

impl Capacity {
    pub(super) fn new(limit: u32) -> Capacity {
        Capacity { limit, ..Capacity::default() }
    }

    pub(super) fn limit(&self) -> u32 {
        self.limit
    }

    pub(super) fn reserved(&self) -> u32 {
        self.reserved
    }

    /// Returns the number of waiters.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Returns the pages that may be allocated without a reservation.
    #[inline]
    pub(super) fn available(&self, allocated: u32) -> u32 {
        self.limit.saturating_sub(allocated).saturating_sub(self.reserved)
    }

    /// Reserves `pages` if they are available and the wait queue is empty; returns whether it did.
    pub(super) fn try_reserve(&mut self, pages: u32, allocated: u32) -> bool {
        let reserves = pages == 0 || self.waiting.is_empty() && pages <= self.available(allocated);
        self.reserved += if reserves { pages } else { 0 };
        reserves
    }

    /// Ends a reservation of pages that were not used or are allocated now.
    pub(super) fn unreserve(&mut self, pages: u32) {
        debug_assert!(pages <= self.reserved);
        self.reserved -= pages;
    }

    /// Reserves pages again that were allocated from a reservation and freed unused.
    pub(super) fn reserve_again(&mut self, pages: u32) {
        self.reserved += pages;
    }

    /// Reserves `pages`, at most the limit, or queues the request: returns the ticket with which to ask again once the
    /// waker is woken, `None` if the pages are reserved for the caller now; and the wakers to call. O(log n).
    ///
    /// `waker` is swapped for one that the caller drops once the lock is released.
    pub(super) fn request(
        &mut self,
        pages: u32,
        ticket: Option<u64>,
        waker: &mut Waker,
        allocated: u32,
    ) -> (Option<u64>, Wakers) {
        debug_assert!(pages <= self.limit);
        if ticket.is_some_and(|ticket| self.served.remove(&ticket).is_some()) {
            return (None, Wakers::new());
        }
        if let Some((ticket, waiter)) =
            ticket.and_then(|ticket| Some((ticket, self.waiting.get_mut(&ticket)?)))
        {
            std::mem::swap(&mut waiter.waker, waker);
            return (Some(ticket), Wakers::new());
        }
        if self.try_reserve(pages, allocated) {
            return (None, Wakers::new());
        }
        let ticket = self.next;
        self.next += 1;
        let waker = std::mem::replace(waker, Waker::noop().clone());
        self.waiting.insert(ticket, Waiter { pages, collected: 0, waker });
        self.by_size.insert((pages, ticket));
        let wakers = self.serve(allocated);
        (self.served.remove(&ticket).is_none().then_some(ticket), wakers)
    }

    /// Removes a request, served or not, after which others may be. O(log n). Returns its waker, which is to be dropped
    /// outside the lock.
    pub(super) fn cancel(&mut self, ticket: u64) -> Option<Waker> {
        let (reserved, waker) = match self.waiting.remove(&ticket) {
            Some(waiter) => {
                self.by_size.remove(&(waiter.pages, ticket));
                (waiter.collected, Some(waiter.waker))
            }
            None => (self.served.remove(&ticket).unwrap_or(0), None),
        };
        self.unreserve(reserved);
        waker
    }

    /// Serves every waiter that can be served; returns their wakers. O(log n) each.
    pub(super) fn serve(&mut self, allocated: u32) -> Wakers {
        let mut wakers = Wakers::new();
        loop {
            let available = self.available(allocated);
            let Some((&first, waiter)) = self.waiting.iter_mut().next() else { break };
            if waiter.pages - waiter.collected <= available {
                wakers.extend(self.complete(first));
                continue;
            }
            let share = self.limit.div_ceil(OVERTAKING_SHARE);
            let collects = available.saturating_sub(share);
            waiter.collected += collects;
            self.reserved += collects;
            match self.by_size.first() {
                Some(&(pages, ticket)) if ticket != first && pages <= available - collects => {
                    wakers.extend(self.complete(ticket));
                }
                _ => break,
            }
        }
        wakers
    }

    /// Reserves the pages that a waiter still lacks and removes it from the queue.
    fn complete(&mut self, ticket: u64) -> Option<Waker> {
        let Waiter { pages, collected, waker } = self.waiting.remove(&ticket)?;
        self.by_size.remove(&(pages, ticket));
        self.reserved += pages - collected;
        self.served.insert(ticket, pages);
        Some(waker)
    }

    #[cfg(any(test, fuzzing))]
    pub(super) fn assert_invariants(&self, allocated: u32) {
        let collected: u32 = self.waiting.values().map(|waiter| waiter.collected).sum();
        let served: u32 = self.served.values().sum();
        assert!(collected + served <= self.reserved, "{collected} + {served} of {}", self.reserved);
        assert!(allocated + self.reserved <= self.limit);
        assert_eq!(self.waiting.len(), self.by_size.len());
        assert!(self.waiting.values().skip(1).all(|waiter| waiter.collected == 0), "only the first collects");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(capacity: &mut Capacity, pages: u32, allocated: u32) -> Option<u64> {
        let request = capacity.request(pages, None, &mut Waker::noop().clone(), allocated).0;
        capacity.assert_invariants(allocated);
        request
    }

    fn is_served(capacity: &mut Capacity, ticket: u64, allocated: u32) -> bool {
        let (request, _) = capacity.request(1, Some(ticket), &mut Waker::noop().clone(), allocated);
        request.is_none()
    }

    #[test]
    fn what_is_available_is_reserved_at_once() {
        let mut capacity = Capacity::new(16);
        assert_eq!(request(&mut capacity, 8, 8), None);
        assert_eq!(capacity.available(8), 0);
        assert_eq!(request(&mut capacity, 0, 8), None);
        assert_eq!(request(&mut capacity, 1, 8), Some(0));
        capacity.unreserve(8);
        assert_eq!(capacity.serve(8).len(), 1);
        assert!(is_served(&mut capacity, 0, 8));
    }

    #[test]
    fn a_large_request_collects_while_small_ones_overtake() {
        let (mut capacity, mut allocated) = (Capacity::new(64), 64);
        assert_eq!(request(&mut capacity, 60, allocated), Some(0));
        // Allocated pages are freed one by one. Meanwhile small requests come and go.
        for left in (4..64).rev() {
            allocated -= 1;
            capacity.serve(allocated);
            for _ in 0..3 {
                match request(&mut capacity, 1, allocated) {
                    None => capacity.unreserve(1),
                    Some(ticket) => drop(capacity.cancel(ticket)),
                }
            }
            assert_eq!(allocated, left);
        }
        assert!(is_served(&mut capacity, 0, allocated));
        assert_eq!(capacity.available(allocated), 0);
    }

    #[test]
    fn collected_pages_are_not_available_to_others() {
        let mut capacity = Capacity::new(64);
        assert_eq!(request(&mut capacity, 60, 40), Some(0));
        assert_eq!(capacity.available(40), 8);
        assert_eq!(request(&mut capacity, 8, 40), None);
        assert_eq!(request(&mut capacity, 1, 40), Some(2));
        // The next small request is served before the large one, from the page that the first small one returned.
        capacity.unreserve(8);
        capacity.serve(40);
        assert!(is_served(&mut capacity, 2, 40) && !is_served(&mut capacity, 0, 40));
    }

    #[test]
    fn a_large_request_that_cannot_be_served_blocks_no_small_one() {
        let mut capacity = Capacity::new(64);
        let held_for_ever = 32;
        assert_eq!(request(&mut capacity, 64, held_for_ever), Some(0));
        for _ in 0..100 {
            assert_eq!(request(&mut capacity, 1, held_for_ever), None);
            capacity.unreserve(1);
            capacity.serve(held_for_ever);
        }
    }

    #[test]
    fn a_cancelled_request_returns_what_it_collected() {
        let mut capacity = Capacity::new(16);
        assert_eq!(request(&mut capacity, 16, 4), Some(0));
        assert_eq!(request(&mut capacity, 9, 4), Some(1));
        assert_eq!(capacity.available(4), 2);
        drop(capacity.cancel(0));
        assert_eq!(capacity.serve(4).len(), 1);
        assert!(is_served(&mut capacity, 1, 4));
        assert_eq!(capacity.available(4), 3);
        capacity.unreserve(9);
        drop(capacity.cancel(7));
        assert_eq!(capacity.serve(4).len(), 0, "unknown");
        assert_eq!((capacity.reserved(), capacity.waiting()), (0, 0));
    }
}
