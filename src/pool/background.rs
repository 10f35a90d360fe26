//! The thread that gives idle pages back while the program makes no calls. It lives only while pages are idle.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use super::core::Core;
use crate::sys::psi::PressureWatch;
use crate::sys::without_signals;

/// Longest sleep: after that a pool that was dropped is noticed.
const MAX_SLEEP: Duration = Duration::from_secs(1);

/// Starts the thread. If the system has no room for one, the next call that frees pages tries again.
#[cold]
pub(super) fn start(core: &Arc<Core>) {
    if core.background_runs.swap(true, Ordering::AcqRel) {
        return;
    }
    let pool = Arc::downgrade(core);
    let thread = thread::Builder::new().name("ropewalk".into()).stack_size(128 << 10);
    // The program's signal handlers run in the program's threads.
    if without_signals(|| thread.spawn(move || run(&pool))).is_err() {
        core.background_runs.store(false, Ordering::Release);
    }
}

fn run(pool: &Weak<Core>) {
    // Without notifications pages go after the usual time.
    let mut watch = PressureWatch::from_env().ok().flatten();
    let mut pressed = false;
    while let Some(timeout) = pool.upgrade().and_then(|core| step(&core, pressed)) {
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
fn step(core: &Core, pressed: bool) -> Option<Duration> {
    // What the kernel does not take back stays usable, and is asked for again in the next epoch.
    let _ = if pressed { core.trim() } else { core.decay() };
    let timeout = core.decay_timeout();
    if timeout.is_none() {
        core.background_runs.store(false, Ordering::Release);
        // Pages that were freed just before would be overlooked.
        let overlooked = core.decay_timeout().is_some() && !core.background_runs.swap(true, Ordering::AcqRel);
        return overlooked.then_some(Duration::ZERO);
    }
    timeout
}
