//! What the benchmarks share.
//!
//! ```text
//! accumulate.rs  the ways to receive a payload and have it contiguous, ropewalk's among them
//! gather.rs      the containers of pieces that some of them use
//! wire.rs        loopback connections, and who sends into them
//! measure.rs     the CPU time of this thread, and ratios of it measured in turn
//! report.rs      figures for people and for machines
//! ```

pub mod accumulate;
pub mod gather;
pub mod measure;
pub mod report;
pub mod wire;
