//! A counted pointer, as `Arc` is, whose count is spread over cache lines: threads that make and drop ropes of
//! one pool would else take one line from each other, twice a rope. `loom/` checks it.
//!
//! ```text
//! keepers     stripe 0   stripe 1   stripe 2  …    handles, counted in a line each
//!    │            └──────────┼──────────┘
//!    ├ the last one closes ──┘                     until then, no stripe looks at another
//!    └──────────────────────────► left             handles of closed stripes; the value goes with the last one
//! ```
#![allow(unsafe_code)] // a pointer whose target lives as long as any handle

use std::fmt;
use std::ops::Deref;
use std::ptr::{self, NonNull};

#[cfg(loom)]
use loom::sync::atomic::{AtomicUsize, Ordering};
#[cfg(not(loom))]
use std::sync::atomic::{AtomicUsize, Ordering};

/// Threads beyond that share lines.
const STRIPES: usize = if cfg!(loom) { 2 } else { 16 };

/// Set in the count of a stripe whose handles are counted in `left` too. That of the keepers always is.
const CLOSED: usize = 1 << (usize::BITS - 1);

/// In `left` until all stripes are closed: more than there can be handles.
const OPEN: usize = 1 << (usize::BITS - 2);

/// One owner of a value that many share. The first one is a *keeper*, and so are its clones.
pub(super) struct Handle<T>(NonNull<Stripe<T>>);

/// As large as what processors fetch at once, which is two lines on some.
#[repr(align(128))]
struct Stripe<T> {
    handles: AtomicUsize,
    striped: *mut Striped<T>,
}

struct Striped<T> {
    keepers: Stripe<T>,
    stripes: [Stripe<T>; STRIPES],
    left: AtomicUsize,
    value: T,
}

// SAFETY: as of `Arc`: the value is shared between the threads that have handles, and dropped by any of them.
unsafe impl<T: Send + Sync> Send for Handle<T> {}
// SAFETY: as above.
unsafe impl<T: Send + Sync> Sync for Handle<T> {}

impl<T> Handle<T> {
    /// The first keeper.
    pub(super) fn new(value: T) -> Handle<T> {
        let stripe = |handles| Stripe { handles: AtomicUsize::new(handles), striped: ptr::null_mut() };
        let (keepers, stripes) = (stripe(CLOSED | 1), std::array::from_fn(|_| stripe(0)));
        let left = AtomicUsize::new(OPEN + 1);
        let striped = Box::into_raw(Box::new(Striped { keepers, stripes, left, value }));
        // SAFETY: just allocated, and nobody else's yet.
        let all = unsafe { &mut *striped };
        all.keepers.striped = striped;
        all.stripes.iter_mut().for_each(|stripe| stripe.striped = striped);
        // SAFETY: as above.
        Handle(NonNull::from(unsafe { &(*striped).keepers }))
    }

    /// A further handle, no keeper, counted in this stripe: best another one for each thread.
    #[inline]
    pub(super) fn share(&self, stripe: u32) -> Handle<T> {
        let striped = self.striped();
        enter(&striped.stripes[stripe as usize % STRIPES], striped)
    }

    #[inline]
    fn stripe(&self) -> &Stripe<T> {
        // SAFETY: it lives as long as any handle.
        unsafe { self.0.as_ref() }
    }

    #[inline]
    fn striped(&self) -> &Striped<T> {
        // SAFETY: set by `new`; it lives as long as any handle.
        unsafe { &*self.stripe().striped }
    }
}

/// One handle more in `stripe`. The caller has one, so that none of this goes meanwhile.
#[inline]
fn enter<T>(stripe: &Stripe<T>, striped: &Striped<T>) -> Handle<T> {
    if stripe.handles.fetch_add(1, Ordering::Relaxed) & CLOSED != 0 {
        striped.left.fetch_add(1, Ordering::Relaxed);
    }
    Handle(NonNull::from(stripe))
}

impl<T> Clone for Handle<T> {
    /// In the same stripe: of a keeper a keeper.
    #[inline]
    fn clone(&self) -> Handle<T> {
        enter(self.stripe(), self.striped())
    }
}

impl<T> Deref for Handle<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.striped().value
    }
}

impl<T> Drop for Handle<T> {
    #[inline]
    fn drop(&mut self) {
        let striped = self.stripe().striped;
        let handles = self.stripe().handles.fetch_sub(1, Ordering::AcqRel);
        if handles & CLOSED != 0 {
            // SAFETY: this is still counted in `left`.
            let keepers = unsafe { &raw const (*striped).keepers };
            leave(striped, handles == CLOSED | 1 && ptr::eq(keepers, self.0.as_ptr()));
        }
    }
}

/// A handle that is counted in `left` has gone. If it was the last keeper, it closes all stripes.
#[cold]
fn leave<T>(striped: *mut Striped<T>, close: bool) {
    // SAFETY: the handle is counted in `left` until below.
    let Striped { stripes, left, .. } = unsafe { &*striped };
    let gone = if close {
        let closed = stripes.iter().map(|stripe| stripe.handles.fetch_or(CLOSED, Ordering::AcqRel));
        OPEN + 1 - closed.sum::<usize>()
    } else {
        1
    };
    if left.fetch_sub(gone, Ordering::AcqRel) == gone {
        // SAFETY: from `Box::into_raw`. There is no handle left that could be shared.
        drop(unsafe { Box::from_raw(striped) });
    }
}

impl<T> fmt::Debug for Handle<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").finish_non_exhaustive()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::{Arc, Weak};
    use std::thread;

    use super::*;

    #[test]
    fn the_value_goes_with_the_last_handle_whatever_the_stripes() {
        let value = Arc::new(String::from("shared"));
        let seen: Weak<String> = Arc::downgrade(&value);
        let handle = Handle::new(value);
        let threads: Vec<_> = (0..20)
            .map(|stripe| {
                let own = handle.share(stripe);
                thread::spawn(move || {
                    let further = own.share(stripe + 1);
                    drop(own);
                    assert_eq!(**further, "shared");
                    further.share(0)
                })
            })
            .collect();
        let keeper = handle.clone();
        drop(handle);
        let mut left: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        let last = left.pop();
        drop(left);
        drop(keeper);
        assert!(seen.upgrade().is_some());
        drop(last);
        assert!(seen.upgrade().is_none());
    }
}
