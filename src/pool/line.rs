//! Who waits for pages: first come, first served.

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::mem;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use super::Pool;

/// Those who wait, in the order in which they came. Only the first one is woken, and whoever leaves the
/// front wakes the next: so one that is not first never overtakes, and no wake-up is lost.
#[derive(Default)]
pub(super) struct Line {
    places: VecDeque<(u64, Waker)>,
    /// The ticket of who comes next.
    next: u64,
    /// How often pages were given back.
    given: u64,
}

impl Line {
    /// Notes that pages were given back; returns whom to wake.
    pub(super) fn given(&mut self) -> Option<Waker> {
        self.given += 1;
        self.wake_first()
    }

    /// Takes the waker of who is first, who leaves another one when it looks again.
    fn wake_first(&mut self) -> Option<Waker> {
        self.places.front_mut().map(|(_, waker)| mem::replace(waker, Waker::noop().clone()))
    }

    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    /// Takes a new place at the end, or keeps the one of `ticket`. Returns the waker that it replaced,
    /// to be dropped where no lock is held.
    fn keep(&mut self, ticket: &mut Option<u64>, waker: Waker) -> Option<Waker> {
        match ticket.and_then(|ticket| self.index_of(ticket)) {
            Some(index) => Some(mem::replace(&mut self.places[index].1, waker)),
            None => {
                *ticket = Some(self.next);
                self.places.push_back((self.next, waker));
                self.next += 1;
                None
            }
        }
    }

    fn is_first(&self, ticket: Option<u64>) -> bool {
        self.places.front().map(|&(first, _)| first) == ticket
    }

    /// Gives a place up; returns it, and whom to wake: the next one, if it was the first.
    fn leave(&mut self, ticket: u64) -> (Option<(u64, Waker)>, Option<Waker>) {
        let Some(index) = self.index_of(ticket) else { return (None, None) };
        let left = self.places.remove(index);
        (left, if index == 0 { self.wake_first() } else { None })
    }

    /// Tickets are in order.
    fn index_of(&self, ticket: u64) -> Option<usize> {
        self.places.binary_search_by_key(&ticket, |&(other, _)| other).ok()
    }
}

impl Pool {
    /// Whether anybody waits.
    #[cfg(feature = "tokio")]
    pub(crate) fn has_line(&self) -> bool {
        self.0.leases.has_line()
    }

    /// Waits until `bytes` of the pool are free and everybody who began to wait before has had their
    /// turn. More than the pool's capacity is taken for all of it.
    ///
    /// What this resolves to is a chance, not a reservation: the pages are anybody's until they are
    /// taken. So keep the [`Waiting`], try, and only then drop it. While it lives, the others in the
    /// line wait; if the attempt has failed, await the same one again, and its place is kept. It then
    /// resolves once further pages have been given back.
    ///
    /// Needs no particular runtime. To give a place up, drop it.
    ///
    /// What waits for each other waits for ever: a rope that holds pages while it waits for more needs
    /// somebody else to give some back. Where that cannot be known, put a time limit around it, or wait
    /// for all that is needed at once, as here.
    ///
    /// # Examples
    ///
    /// ```
    /// use ropewalk::{Pool, Rope};
    ///
    /// /// An empty rope with room for `bytes`, as soon as there is some.
    /// async fn rope_with_room(pool: &Pool, bytes: usize) -> Rope {
    ///     let mut rope = Rope::in_pool(pool);
    ///     let mut turn = pool.wait_for_room(bytes);
    ///     loop {
    ///         (&mut turn).await;
    ///         if rope.reserve(bytes).is_ok() {
    ///             return rope;
    ///         }
    ///     }
    /// }
    /// ```
    pub fn wait_for_room(&self, bytes: usize) -> Waiting {
        Waiting { pool: self.clone(), bytes: bytes as u64, ticket: None, tried: None }
    }
}

/// A place in the line of those who wait for a pool's pages; see [`Pool::wait_for_room`].
///
/// The place is taken when this is first polled and given up when it is dropped, not when it resolves.
///
/// # Examples
///
/// ```
/// use ropewalk::Pool;
/// use std::pin::pin;
/// use std::task::{Context, Waker};
///
/// let pool = Pool::new()?;
/// let turn = pin!(pool.wait_for_room(1 << 20));
/// // There is room, so it is ready at once.
/// assert!(turn.poll(&mut Context::from_waker(Waker::noop())).is_ready());
/// # Ok::<(), std::io::Error>(())
/// ```
#[must_use = "futures do nothing unless polled"]
pub struct Waiting {
    pool: Pool,
    bytes: u64,
    /// The place in the line, once there is one.
    ticket: Option<u64>,
    /// How often pages had been given back when this last resolved: it is of no use to try again before
    /// more were.
    tried: Option<u64>,
}

impl Future for Waiting {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        // Cloned and dropped outside the lock: wakers are other people's code.
        let waker = context.waker().clone();
        let leases = &this.pool.0.leases;
        let capacity = leases.bytes(leases.arena().pages());
        let (ready, _replaced) = leases.with_line(|line, free| {
            let replaced = line.keep(&mut this.ticket, waker);
            let enough = free >= this.bytes.min(capacity);
            let ready = enough && line.is_first(this.ticket) && this.tried != Some(line.given);
            if ready {
                this.tried = Some(line.given);
            }
            (ready, replaced)
        });
        if ready { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let Some(ticket) = self.ticket else { return };
        let (_left, next) = self.pool.0.leases.with_line(|line, _| line.leave(ticket));
        next.into_iter().for_each(Waker::wake);
    }
}

impl fmt::Debug for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Waiting").field("bytes", &self.bytes).field("ticket", &self.ticket).finish()
    }
}
