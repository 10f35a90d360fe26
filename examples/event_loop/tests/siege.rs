//! The server besieged by 190 hostile peers while ten others are served.
#![allow(clippy::unwrap_used)] // a test may panic

#[path = "../../recipes/tests/support/siege.rs"]
mod siege;

use siege::{Server, exchange, pattern};

const MAX: usize = 1 << 20;

fn message(len: u64, content: usize) -> Vec<u8> {
    [&len.to_be_bytes()[..], &pattern(9, content)].concat()
}

#[test]
fn others_are_served() {
    let options = format!("serve --max-message {MAX} --capacity 64MiB --max-connections 30 --idle 1");
    let server = Server::start(env!("CARGO_BIN_EXE_event_loop"), 80, &options);
    let openings = [
        vec![],
        vec![0; 3],
        vec![0; 80_000],
        message(MAX as u64, 0),
        message(MAX as u64, MAX / 2),
        message(100_000, 100_000),
        message(1, 1).repeat(1000),
        message(1 << 31, 10),
        message(1 << 63, 10),
        message(u64::MAX, 10),
    ];
    server.besiege(&openings, |address, seed| {
        let lens = [0, 1, 5, 300, 70_000, 300_000, 0, 17];
        let messages: Vec<u8> = lens
            .iter()
            .flat_map(|&len| [&(len as u64).to_be_bytes()[..], &pattern(seed, len)].concat())
            .collect();
        exchange(address, &messages, &messages)
    });
    assert!(server.peak() <= 200 << 10, "{} KiB", server.peak());
}
