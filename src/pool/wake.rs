//! Calling wakers, which run foreign code.

use std::task::Waker;

use crate::event::contain;

/// Calls each waker. The caller holds no lock.
///
/// A panic goes no further than its waker. Pages are freed in the middle of a receive, in drops and on threads of the pool:
/// unwinding from there would leave a rope that counts pages of others as its own, end such a thread, and keep the other
/// waiters asleep.
pub(super) fn wake_all(wakers: impl IntoIterator<Item = Waker>) {
    for waker in wakers {
        contain(|| waker.wake());
    }
}

#[cfg(test)]
mod tests {
    use std::panic::panic_any;
    use std::sync::Arc;
    use std::task::Wake;

    use super::*;

    #[test]
    fn a_panic_whose_payload_panics_goes_no_further() {
        struct Payload;
        impl Drop for Payload {
            fn drop(&mut self) {
                panic!("a payload panics when it is dropped");
            }
        }
        struct Task;
        impl Wake for Task {
            fn wake(self: Arc<Self>) {
                panic_any(Payload);
            }
        }
        wake_all([Waker::from(Arc::new(Task)), Waker::from(Arc::new(Task))]);
    }
}
