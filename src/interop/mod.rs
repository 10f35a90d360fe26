//! Floor 5: other people's traits, one file each.

#[cfg(feature = "arrow")]
mod arrow;
mod buf;
mod buf_mut;
#[cfg(feature = "compio")]
mod compio;
mod convert;
#[cfg(feature = "futures-io")]
mod futures_io;
#[cfg(feature = "serde")]
mod serde;
mod std_io;

#[cfg(feature = "compio")]
pub use compio::Filling;
