//! Floor 0: events for `tracing`. Without the feature there is no code.

/// `event!(debug, field = value, …, "message")`: an event of target `ropewalk`.
///
/// A panic of the subscriber goes no further; the panic hook has reported it. Events come from drops and from threads of the
/// pool, which would end, with pages that they have taken out of its lists.
#[cfg(feature = "tracing")]
macro_rules! event {
    ($level:ident, $($what:tt)+) => {
        let told = ::std::panic::catch_unwind(::std::panic::AssertUnwindSafe(|| {
            ::tracing::$level!(target: "ropewalk", $($what)+);
        }));
        if let Err(payload) = told {
            ::std::mem::forget(payload); // its drop is foreign code, too
        }
    };
}

#[cfg(not(feature = "tracing"))]
macro_rules! event {
    ($($what:tt)+) => {};
}

pub(crate) use event;
