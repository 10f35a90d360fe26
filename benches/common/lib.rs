//! What the benchmarks share.
//!
//! ```text
//! accumulate.rs  the ways to receive a payload and have it contiguous, ropewalk's among them
//! gather.rs      the containers of pieces that some of them use
//! contiguous.rs  ropes to be finalised, and the ways to join pieces
//! wire.rs        loopback connections, and who sends into them
//! measure.rs     the CPU time of this thread, and ratios of it measured in turn
//! operation.rs   what is done in memory: append, cut, seek, build and parse messages
//! transmit.rs    the ways to send what lies in many segments
//! brief.rs       how criterion is used
//! report.rs      figures for people and for machines
//! ```

pub mod accumulate;
pub mod brief;
pub mod contiguous;
pub mod gather;
pub mod measure;
pub mod operation;
pub mod report;
pub mod transmit;
pub mod wire;
