//! Floor 0: events for `tracing`. Without the feature there is no code.

/// `event!(debug, field = value, …, "message")`: an event of target `ropewalk`.
#[cfg(feature = "tracing")]
macro_rules! event {
    ($level:ident, $($what:tt)+) => { ::tracing::$level!(target: "ropewalk", $($what)+) };
}

#[cfg(not(feature = "tracing"))]
macro_rules! event {
    ($($what:tt)+) => {};
}

pub(crate) use event;
