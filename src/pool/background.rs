//! The thread that gives idle pages back while the program makes no calls. It lives only while pages are idle.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use crate::sys::psi::PressureWatch;
use crate::sys::without_signals;

/// Longest sleep: after that a pool that was dropped is noticed.
const MAX_SLEEP: Duration = Duration::from_secs(1);

/// Whether the thread of a pool runs.
#[derive(Default)]
pub(super) struct Background(AtomicBool);

/// A pool, as its thread sees it.
pub(super) trait GiveBack: Send + Sync + 'static {
    fn background(&self) -> Option<&Background>;

    /// Gives back a slice of what is due, or `all` idle pages; returns how long to sleep, `None` while none is idle.
    fn give_back(&self, all: bool) -> Option<Duration>;
}

impl Background {
    #[inline]
    pub(super) fn runs(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Starts the thread. If the system has no room for one, the next call that frees pages tries again.
    #[cold]
    pub(super) fn start<P: GiveBack>(&self, pool: &Arc<P>) {
        if self.0.swap(true, Ordering::AcqRel) {
            return;
        }
        let pool = Arc::downgrade(pool);
        let thread = thread::Builder::new().name("ropewalk".into()).stack_size(128 << 10);
        // The program's signal handlers run in the program's threads.
        if without_signals(|| thread.spawn(move || run(&pool))).is_err() {
            self.0.store(false, Ordering::Release);
        }
    }
}

fn run<P: GiveBack>(pool: &Weak<P>) {
    // Without notifications pages go after the usual time.
    let mut watch = PressureWatch::from_env().ok().flatten();
    let mut pressed = false;
    while let Some(timeout) = pool.upgrade().and_then(|pool| step(&*pool, pressed)) {
        pressed = match watch.as_ref().map(|watch| watch.wait(timeout.min(MAX_SLEEP))) {
            Some(Ok(pressed)) => pressed,
            // Notifications have ended.
            Some(Err(_)) => watch.take().is_none(),
            None => {
                thread::sleep(timeout.min(MAX_SLEEP));
                false
            }
        };
    }
}

/// Gives back what is due, or everything if memory is `pressed`; returns how long to sleep, `None` to end.
fn step(pool: &impl GiveBack, pressed: bool) -> Option<Duration> {
    let timeout = pool.give_back(pressed);
    let Background(runs) = pool.background()?;
    if timeout.is_none() {
        runs.store(false, Ordering::Release);
        // Pages that were freed just before would be overlooked.
        let overlooked = pool.give_back(false).is_some() && !runs.swap(true, Ordering::AcqRel);
        return overlooked.then_some(Duration::ZERO);
    }
    timeout
}
