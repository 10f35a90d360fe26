//! Receives what is larger than memory.

use std::io;
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use ropewalk::{Pool, View};

use crate::receive::receive;

/// A pool that holds 64 MiB in memory, and 1 TiB in a file without a name in `directory`.
pub fn large_pool(directory: &Path) -> io::Result<Pool> {
    Pool::options().capacity(64 << 20).spill(directory, 1 << 40).create()
}

/// Receives an upload of at most `max` bytes within `time`, and makes it a file once all of it is there.
pub fn store(socket: &TcpStream, pool: &Pool, path: &Path, max: usize, time: Duration) -> io::Result<View> {
    let rope = receive(socket, pool, max, time)?; // a full disk is an error here
    let view = rope.finalize()?;
    view.persist(path)?; // never a part of it under this name
    Ok(view)
}
