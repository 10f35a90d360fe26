//! Floor 0: events for `tracing`, and calls of foreign code whose panics go no further.

use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// `event!(debug, field = value, …, "message")`: an event of target `ropewalk`. Without the feature there is no code.
///
/// Events come from drops and from threads of the pool, which a panic of the subscriber would end, with pages that they have
/// taken out of its lists.
#[cfg(feature = "tracing")]
macro_rules! event {
    ($level:ident, $($what:tt)+) => {
        crate::event::contain(|| ::tracing::$level!(target: "ropewalk", $($what)+));
    };
}

#[cfg(not(feature = "tracing"))]
macro_rules! event {
    ($($what:tt)+) => {};
}

pub(crate) use event;

/// Makes a call of foreign code. A panic goes no further; the panic hook has reported it.
///
/// The payload of a panic is foreign too, and may panic when it is dropped, with another payload. The third is leaked.
pub(crate) fn contain(call: impl FnOnce()) {
    let mut result = catch_unwind(AssertUnwindSafe(call));
    for _ in 0..2 {
        let Err(payload) = result else { return };
        result = catch_unwind(AssertUnwindSafe(|| drop(payload)));
    }
    mem::forget(result);
}
