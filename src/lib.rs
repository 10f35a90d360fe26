//! A rope of received pieces for Linux: filled by `readv`, sent by `writev`, finalised by one
//! mmap-backed contiguous view instead of a join.

mod interop;
mod pool;
mod recv;
mod rope;
mod send;
mod sys;
#[cfg(test)]
mod tests;
mod view;

pub use pool::{Backing, Pool, PoolOptions, PoolStats};
pub use rope::{Cursor, IntoIter, Rope};
pub use sys::Received;
pub use view::{FinalizeError, View};
