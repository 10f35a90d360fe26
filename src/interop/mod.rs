//! Floor 4: traits of other crates and of `std`, one file for each family.

#[cfg(feature = "arrow")]
mod arrow;
#[cfg(feature = "tokio")]
mod async_read;
mod buf;
mod buf_mut;
mod codec;
#[cfg(feature = "compio")]
mod compio;
mod convert;
#[cfg(feature = "tokio")]
mod frames;
#[cfg(feature = "futures-io")]
mod futures_io;
#[cfg(feature = "http-body")]
mod http_body;
#[cfg(any(feature = "tokio", feature = "futures-io"))]
mod in_memory;
#[cfg(feature = "metrics")]
mod metrics;
#[cfg(feature = "serde")]
mod serde;
mod std_io;
#[cfg(feature = "tokio")]
mod tokio;
#[cfg(feature = "tokio")]
mod tokio_io;

pub use self::codec::RopeCodec;
#[cfg(feature = "compio")]
pub use self::compio::Lent;
#[cfg(feature = "http-body")]
pub use self::http_body::{BodyError, RopeBody};
#[cfg(feature = "tokio")]
pub use self::tokio::{Outgoing, ReadRope, WhenRoom, WriteRope};
