//! The recipes of `docs/guide.md` and `docs/guide-async.md`, each a module whose code is what the guide
//! shows: `tests/guide.rs` fails when one of them is changed without the other. The other tests run each
//! recipe under load and with hostile peers, most of them as a program: `serve` is each server, `proxy` the proxy.
//!
//! ```sh
//! cargo run --release -p recipes --bin proxy -- --listen 127.0.0.1:7000 --to 127.0.0.1:8080
//! cargo run --release -p recipes --bin serve -- frames --listen 127.0.0.1:7000
//! cargo test -p recipes
//! ```

pub mod body;
pub mod broadcast;
pub mod echo;
pub mod framed;
pub mod frames;
pub mod handover;
pub mod http;
pub mod proxy;
pub mod receive;
pub mod room;
pub mod spill;
pub mod stream;
pub mod threads;
