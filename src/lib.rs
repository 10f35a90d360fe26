//! A buffer for I/O on Linux: `readv` fills recycled pages, gather writes send them, and one contiguous view shows them
//! without a join.
//!
//! # Which call for which job
//!
//! | job | use |
//! |---|---|
//! | receive bytes, length unknown | [`Rope::in_pool`], [`readv_from`](Rope::readv_from) until `Ok(0)` |
//! | receive bytes, length known | [`reserve`](Rope::reserve) first, then [`readv_up_to`](Rope::readv_up_to) |
//! | receive a part of a file, its position kept | [`readv_at`](Rope::readv_at) |
//! | receive bytes from TLS, or any `AsyncRead` | `Rope::receive_from`, with the feature `tokio` |
//! | bound what a peer can make the program hold | [`set_limit`](Rope::set_limit), [`PoolOptions::capacity`] |
//! | wait for memory instead of failing | [`Pool::wait_for_room`], [`Room`] |
//! | receive more than there is memory for | [`PoolOptions::spill`], [`View::read_at`] |
//! | make them a file | [`Rope::for_file`], [`View::persist`] |
//! | send a file between other bytes | [`push_file`](Rope::push_file) |
//! | read them as one `&[u8]` | [`finalize`](Rope::finalize), a [`View`] |
//! | send them once | [`write_all_to`](Rope::write_all_to), [`writev_to`](Rope::writev_to) |
//! | send them again, or to several readers | [`Cursor`], which has the same methods |
//! | cut messages out of a stream | [`split_to`](Rope::split_to), [`find`](Rope::find), [`bytes::Buf`] |
//! | put headers before bodies | [`push_front`](Rope::push_front), [`append`](Rope::append) |
//! | pass descriptors along | [`recvmsg_from`](Rope::recvmsg_from), [`sendmsg_to`](Rope::sendmsg_to) |
//! | hand them to another process | [`Rope::for_handover`], [`splice_from`](Rope::splice_from), [`View::seal`], [`Sealed::send`], [`Sealed::receive`] |
//! | observe memory, give it back | [`Pool::stats`], [`Pool::trim`], [`Pool::decay`], [`PoolOptions::background`] |
//!
//! [The guide](crate::guide) has recipes, and shows what to change in code that uses `Vec`, `BytesMut`, list and join,
//! or `BufList`; [its second part](crate::guide_async) covers tokio and hyper. [Operating](crate::operating) says what
//! to plot, and where the memory shows.
//!
//! # How it works
//!
//! ```text
//!  socket ── readv ──► Rope [seg][seg][tail···] ── writev ──► socket
//!                        │ finalize
//!                        ▼
//!                      View: borrowed, else mapped, else copied
//!                        │
//!                      Pool: one memfd; runs of pages, reused while they are resident
//! ```
//!
//! Large payloads cost page faults more than copies, so a [`Pool`] reuses resident pages, and a tail grows in place
//! while the pages behind it are free. A rope that is alone in its pool is contiguous. For ropes that grew in turns, a
//! view maps their pages a second time.
//!
//! # Non-blocking descriptors
//!
//! Every `fd` parameter is [`AsFd`](std::os::fd::AsFd): the sockets of std, `mio` and `socket2`, pipes and files. Every
//! receive and send is resumable: after `WouldBlock`, a short count or an error, the rope and its position reflect
//! exactly the bytes that the kernel accepted or delivered. EINTR is retried.
//!
//! # Fork
//!
//! A child of fork(2) cannot use a pool that it inherits, and changes no byte of its parent's; see [`Pool`].
//!
//! # Platforms
//!
//! Linux. On macOS and FreeBSD, for developing services that run on Linux, pools are anonymous memory, views borrow or
//! copy, and [`Rope::for_handover`], [`View::seal`], [`Sealed`], [`PoolOptions::spill`] and [`Rope::for_file`] are errors
//! of kind [`Unsupported`](std::io::ErrorKind::Unsupported).
//!
//! # Features
//!
//! None is on by default. `mio` needs none: its sockets are [`AsFd`](std::os::fd::AsFd).
//!
//! | feature | adds |
//! |---|---|
//! | `tokio` | `ReadRope` and `WriteRope` for its sockets and pipes, `Rope::receive_from` for any other `AsyncRead`, `read_frame`; its `AsyncRead`, `AsyncBufRead`, `AsyncWrite` and `AsyncSeek` |
//! | `http-body` | a rope is a `Body`, for hyper, axum and tonic; `Rope::receive_body` |
//! | `futures-io` | `AsyncRead`, `AsyncBufRead`, `AsyncWrite`, `AsyncSeek` |
//! | `compio` | `IoBuf`, `IoVectoredBuf`; `Rope::lend` for reads |
//! | `arrow` | a [`View`] becomes a `Buffer` without a copy |
//! | `metrics` | `Pool::report_metrics`, for the recorder of the crate `metrics` |
//! | `serde` | ropes and views serialise as bytes |
//! | `tracing` | pools and views emit events of target `ropewalk`; a subscriber's panic goes no further |
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
pub use view::{FinalizeError, SealError, Sealed, View};

/// Runs the README's examples as tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

// The guide is a part of the documentation, and its examples are tests. These link targets precede its own, so they
// win.

/// [async]: crate::guide_async
/// [design]: https://docs.rs/crate/ropewalk/latest/source/docs/design.md
/// [comparison]: https://docs.rs/crate/ropewalk/latest/source/docs/comparison.md
/// [leak]: crate::operating#a-leak-by-small-slices
/// [`Pool::new`]: crate::Pool::new
///
#[cfg(doc)]
#[doc = include_str!("../docs/guide.md")]
pub mod guide {}

/// [guide]: crate::guide
/// [uring]: https://docs.rs/crate/ropewalk/latest/source/docs/engines.md
///
#[cfg(all(doc, any(not(doctest), all(feature = "tokio", feature = "http-body"))))]
#[doc = include_str!("../docs/guide-async.md")]
pub mod guide_async {}

/// [kernel]: crate::guide#the-kernel
///
#[cfg(all(doc, any(not(doctest), all(feature = "metrics", feature = "tokio"))))]
#[doc = include_str!("../docs/operating.md")]
pub mod operating {}
