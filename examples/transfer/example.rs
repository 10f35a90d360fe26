//! `cargo run --release --example transfer`: the same program as `main.rs`, which documents it.

use std::process::ExitCode;

fn main() -> ExitCode {
    transfer::main()
}
