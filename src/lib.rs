//! A rope for I/O on Linux: bytes arrive in pieces, are laid into memory once, leave by gather writes, and
//! end as one contiguous view, without a join.
//!
//! # What do you want to do?
//!
//! | with bytes that come in pieces | use |
//! |---|---|
//! | accumulate them, length unknown | [`Rope::in_pool`], [`readv_from`](Rope::readv_from) until `Ok(0)` |
//! | accumulate them, length known | [`reserve`](Rope::reserve) first, then [`readv_up_to`](Rope::readv_up_to) |
//! | bound what a peer can make you hold | [`set_limit`](Rope::set_limit), [`PoolOptions::capacity`] |
//! | have them as one `&[u8]` | [`finalize`](Rope::finalize), a [`View`] |
//! | send them, and be done with them | [`write_all_to`](Rope::write_all_to), [`writev_to`](Rope::writev_to) |
//! | send them again, or to many | [`Cursor`], which has the same methods |
//! | cut messages out of a stream | [`split_to`](Rope::split_to), [`find`](Rope::find), [`bytes::Buf`] |
//! | put headers before bodies | [`push_front`](Rope::push_front), [`append`](Rope::append) |
//! | pass descriptors along | [`recvmsg_from`](Rope::recvmsg_from), [`sendmsg_to`](Rope::sendmsg_to) |
//! | watch the memory | [`Pool::stats`], [`Pool::trim`] |
//!
//! [The guide](crate::guide) has recipes, and says line by line what to change in code that uses `Vec`,
//! `BytesMut`, list and join, or `BufList`; [its second part](crate::guide_async) is for tokio and hyper.
//!
//! # How it works
//!
//! ```text
//!  socket ── readv ──► Rope [seg][seg][tail···] ── writev ──► socket
//!                        │ finalize
//!                        ▼
//!                      View: borrowed, else mapped, else copied
//!                        │
//!                      Pool: one memfd; runs of pages, recycled while they are warm
//! ```
//!
//! Fresh pages, not copies, are what large payloads cost: so a [`Pool`] recycles its pages, and a tail
//! grows in place while the pages behind it are free. A rope alone in its pool is contiguous without
//! further ado; ropes that grew beside each other are made so by giving their pages a second address.
//!
//! # Non-blocking descriptors
//!
//! Every `fd` is anything that is [`AsFd`](std::os::fd::AsFd): the sockets of std, `mio` and `socket2`, pipes
//! and files. Every receive and send is resumable: on `WouldBlock`, on a short count and on an error the
//! rope and its position are exactly what reached the kernel. EINTR is retried.
//!
//! # Features
//!
//! None is on by default. `mio` needs none: its sockets are [`AsFd`](std::os::fd::AsFd).
//!
//! | feature | brings |
//! |---|---|
//! | `tokio` | `ReadRope` and `WriteRope` for its sockets and pipes, `read_frame` |
//! | `http-body` | a rope is a `Body`, for hyper and all above it; `Rope::receive_body` |
//! | `futures-io` | `AsyncRead`, `AsyncBufRead`, `AsyncWrite`, `AsyncSeek` |
//! | `compio` | `IoBuf`, `IoVectoredBuf`; `Rope::lend` for reads |
//! | `arrow` | a [`View`] becomes a `Buffer` without a copy |
//! | `serde` | ropes and views as bytes |
//! | `tracing` | events of target `ropewalk` |
#![cfg_attr(docsrs, feature(doc_cfg))]
#![warn(clippy::multiple_unsafe_ops_per_block, clippy::undocumented_unsafe_blocks)]
#![cfg_attr(not(test), warn(clippy::cast_possible_truncation, clippy::unwrap_used))]

mod event;
mod interop;
mod limits;
mod pool;
mod rope;
mod sys;
#[cfg(test)]
mod tests;
mod view;

#[cfg(feature = "compio")]
pub use interop::Lent;
pub use interop::RopeCodec;
#[cfg(feature = "http-body")]
pub use interop::{BodyError, RopeBody};
#[cfg(feature = "tokio")]
pub use interop::{Outgoing, ReadRope, WhenRoom, WriteRope};
pub use pool::{Backing, Commit, Pool, PoolOptions, PoolStats, Room, RoomFuture};
pub use rope::{Cursor, IntoIter, Rope};
pub use sys::Received;
pub use view::{FinalizeError, View};

/// The README's examples are tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

// So are the guide's, which is a part of the documentation. Its links there come before its own.

/// [async]: crate::guide_async
/// [design]: https://docs.rs/crate/ropewalk/latest/source/docs/design.md
/// [huge]: https://docs.rs/crate/ropewalk/latest/source/docs/benchmarks.md
/// [comparison]: https://docs.rs/crate/ropewalk/latest/source/docs/comparison.md
/// [`Pool::new`]: crate::Pool::new
///
#[cfg(doc)]
#[doc = include_str!("../docs/guide.md")]
pub mod guide {}

/// [guide]: crate::guide
///
#[cfg(all(doc, any(not(doctest), all(feature = "tokio", feature = "http-body"))))]
#[doc = include_str!("../docs/guide-async.md")]
pub mod guide_async {}
