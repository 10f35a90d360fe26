//! Calling wakers, which run foreign code.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::task::Waker;

/// Calls each waker. The caller holds no lock.
///
/// A panic goes no further than its waker; the panic hook has reported it. Pages are freed in the middle of a receive, in
/// drops and on threads of the pool: unwinding from there would leave a rope that counts pages of others as its own, end
/// such a thread, and keep the other waiters asleep.
pub(super) fn wake_all(wakers: impl IntoIterator<Item = Waker>) {
    for waker in wakers {
        let _panicked = catch_unwind(AssertUnwindSafe(|| waker.wake()));
    }
}
