//! The recipes of `docs/engines.md`, each a module whose code is what the page shows: `tests/page.rs` fails when one of
//! them is changed without the other. The other tests run each recipe against its engine and count the copies.
//!
//! It is not among the workspace's default members: its dependencies take minutes to compile.
//!
//! ```sh
//! cargo test -p engines
//! ```

pub mod arrow;
pub mod flight;
pub mod grpc;
pub mod http;
pub mod nats;
pub mod objects;
pub mod opendal;
pub mod quic;
pub mod uring;
