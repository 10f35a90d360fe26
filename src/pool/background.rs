//! The thread that gives idle pages back while the program makes no calls. It lives only while pages are idle.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::sys::psi::PressureWatch;
use crate::sys::{is_short, spawn};

/// Longest sleep: after that a pool that was dropped is noticed.
const MAX_SLEEP: Duration = Duration::from_secs(1);

/// Whether the thread of a pool runs.
#[derive(Default)]
pub(super) struct Background(AtomicBool);

impl Background {
    #[inline]
    pub(super) fn runs(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Starts the thread, which makes a `step` whenever it wakes, told whether memory is short, and sleeps for as long as
    /// that returns; it ends with `None`. If the system has no room for one, the next call that frees pages tries again.
    #[cold]
    pub(super) fn start(&self, step: impl FnMut(bool) -> Option<Duration> + Send + 'static) {
        if !self.0.swap(true, Ordering::AcqRel) && spawn("ropewalk", || run(step)).is_err() {
            self.0.store(false, Ordering::Release);
        }
    }

    /// A step: `give_back` gives back what is due, or everything if memory is `pressed`, and returns how long to sleep;
    /// `None` while no page is idle.
    pub(super) fn step(
        &self,
        pressed: bool,
        give_back: impl Fn(bool) -> Option<Duration>,
    ) -> Option<Duration> {
        give_back(pressed).or_else(|| {
            self.0.store(false, Ordering::Release);
            // Pages that were freed just before would be overlooked.
            let overlooked = give_back(false).is_some() && !self.0.swap(true, Ordering::AcqRel);
            overlooked.then_some(Duration::ZERO)
        })
    }
}

fn run(mut step: impl FnMut(bool) -> Option<Duration>) {
    // Without notifications pages go after the usual time.
    let mut watch = PressureWatch::from_env();
    let mut pressed = false;
    while let Some(timeout) = step(pressed) {
        if watch.as_ref().is_err_and(is_short) {
            watch = PressureWatch::from_env();
        }
        pressed = match &watch {
            Ok(Some(notifies)) => notifies.wait(timeout.min(MAX_SLEEP)).unwrap_or_else(|_| {
                // Notifications have ended.
                watch = Ok(None);
                false
            }),
            _ => {
                thread::sleep(timeout.min(MAX_SLEEP));
                false
            }
        };
    }
}
