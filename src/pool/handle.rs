//! A counted pointer, as `Arc` is, whose count is spread over cache lines: threads that make and drop ropes of
//! one pool would else take one line from each other, twice a rope. `loom/` checks it.
//!
//! ```text
//! keepers     stripe 0   stripe 1   stripe 2  …    handles, counted in a line each
//!    │            └──────────┼──────────┘
//!    ├ the last one closes ──┘                     until then, no stripe looks at another
//!    └──────────────────────────► left             handles of closed stripes; the value goes with the last one
//! ```
#![allow(unsafe_code)] // pointers whose target lives as long as any handle

use std::fmt;
use std::marker::PhantomData;
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

/// What a [`Striped`] is aligned to, so that it is found from any of its stripes without looking into memory.
const ALIGNED: usize = 4096;

/// One owner of a value that many share. The first one is a *keeper*, and so are its clones.
pub(super) struct Handle<T>(NonNull<Stripe>, PhantomData<Striped<T>>);

/// Handles; as large as what processors fetch at once, which is two lines on some.
#[repr(align(128))]
struct Stripe(AtomicUsize);

#[repr(C, align(4096))]
struct Striped<T> {
    keepers: Stripe,
    stripes: [Stripe; STRIPES],
    left: AtomicUsize,
    value: T,
}

const _: () = assert!(size_of::<Stripe>() * (STRIPES + 1) <= ALIGNED, "the stripes are near the start");

// SAFETY: as of `Arc`: the value is shared between the threads that have handles, and dropped by any of them.
unsafe impl<T: Send + Sync> Send for Handle<T> {}
// SAFETY: as above.
unsafe impl<T: Send + Sync> Sync for Handle<T> {}

impl<T> Handle<T> {
    /// The first keeper.
    pub(super) fn new(value: T) -> Handle<T> {
        let striped = Box::into_raw(Box::new(Striped {
            keepers: Stripe(AtomicUsize::new(CLOSED | 1)),
            stripes: std::array::from_fn(|_| Stripe(AtomicUsize::new(0))),
            left: AtomicUsize::new(OPEN + 1),
            value,
        }));
        // SAFETY: just allocated.
        Self::of(unsafe { &raw mut (*striped).keepers })
    }

    /// A further handle, no keeper, counted in this stripe: best another one for each thread.
    #[inline]
    pub(super) fn share(&self, stripe: u32) -> Handle<T> {
        // SAFETY: it lives as long as this handle, and has so many stripes.
        self.enter(unsafe { &raw mut (*self.striped()).stripes[stripe as usize % STRIPES] })
    }

    /// One handle more in `stripe`; this one keeps all of it from going meanwhile.
    #[inline]
    fn enter(&self, stripe: *mut Stripe) -> Handle<T> {
        // SAFETY: it lives as long as this handle.
        if unsafe { &(*stripe).0 }.fetch_add(1, Ordering::Relaxed) & CLOSED != 0 {
            // SAFETY: as above.
            unsafe { &(*self.striped()).left }.fetch_add(1, Ordering::Relaxed);
        }
        Self::of(stripe)
    }

    #[inline]
    fn of(stripe: *mut Stripe) -> Handle<T> {
        // SAFETY: part of an allocation, which is not at address 0.
        Handle(unsafe { NonNull::new_unchecked(stripe) }, PhantomData)
    }

    /// From `Box::into_raw`; good for as long as there is any handle.
    #[inline]
    fn striped(&self) -> *mut Striped<T> {
        self.0.as_ptr().map_addr(|address| address & !(ALIGNED - 1)).cast()
    }
}

impl<T> Clone for Handle<T> {
    /// In the same stripe: of a keeper a keeper.
    #[inline]
    fn clone(&self) -> Handle<T> {
        self.enter(self.0.as_ptr())
    }
}

impl<T> Deref for Handle<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: it lives as long as this handle.
        unsafe { &(*self.striped()).value }
    }
}

impl<T> Drop for Handle<T> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: it lives as long as this handle, which is counted until here.
        let left = unsafe { &self.0.as_ref().0 }.fetch_sub(1, Ordering::Release).wrapping_sub(1);
        if left & CLOSED != 0 {
            leave(self.striped(), left == CLOSED && ptr::addr_eq(self.striped(), self.0.as_ptr()));
        }
    }
}

/// A handle that is counted in `left` has gone. If it was the last keeper, it closes all stripes.
#[cold]
fn leave<T>(striped: *mut Striped<T>, close: bool) {
    // SAFETY: the handle is counted in `left` until below.
    let Striped { stripes, left, .. } = unsafe { &*striped };
    let gone = if close {
        let closed = stripes.iter().map(|stripe| stripe.0.fetch_or(CLOSED, Ordering::AcqRel));
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
