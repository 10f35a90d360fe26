//! The server besieged by 190 hostile peers while ten others are served.
#![allow(clippy::unwrap_used)] // a test may panic

#[path = "../../recipes/tests/support/siege.rs"]
mod siege;

use std::io::{Error, Read, Write};
use std::net::{Shutdown, TcpStream};

use siege::{Server, pattern};
use xxhash_rust::xxh3::xxh3_64;

#[test]
fn others_are_served() {
    let options = "serve --listen 127.0.0.1:0 --max 1MiB --time 1";
    let server = Server::start(env!("CARGO_BIN_EXE_handover"), 50, options);
    let openings = [0, 1, 100_000, (1 << 20) + 1].map(|len| pattern(9, len));
    server.besiege(&openings, |address, seed| {
        let content = pattern(seed, 300_000 + seed as usize);
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(siege::PATIENCE))?;
        stream.write_all(&content)?;
        stream.shutdown(Shutdown::Write)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        match answer.split_once(' ') {
            Some((hash, _)) if hash.len() == 16 => {
                assert_eq!(hash, format!("{:016x}", xxh3_64(&content)));
                Ok(())
            }
            _ => Err(Error::other(answer)),
        }
    });
}
