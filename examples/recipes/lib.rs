//! The recipes of `docs/guide.md` and `docs/guide-async.md`, each a module whose code is what the guide
//! shows: `tests/guide.rs` fails when one of them is changed without the other. The other tests run each
//! recipe under load and with hostile peers.
//!
//! ```sh
//! cargo run --release -p recipes --bin proxy -- --listen 127.0.0.1:7000 --to 127.0.0.1:8080
//! cargo test -p recipes
//! ```

pub mod body;
pub mod broadcast;
pub mod echo;
pub mod frames;
pub mod handover;
pub mod http;
pub mod proxy;
pub mod receive;
pub mod room;
pub mod spill;
