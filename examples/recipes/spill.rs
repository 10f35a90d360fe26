//! Receives what is larger than memory.

use std::io;
use std::net::TcpStream;
use std::path::Path;

use ropewalk::{Pool, Rope, View};

/// A pool that holds 64 MiB in memory, and 1 TiB in a file without a name in `directory`.
pub fn large_pool(directory: &Path) -> io::Result<Pool> {
    Pool::options().capacity(64 << 20).spill(directory, 1 << 40).create()
}

/// Receives an upload of any size, and makes it a file once all of it is there.
pub fn store(socket: &TcpStream, pool: &Pool, path: &Path) -> io::Result<View> {
    let mut rope = Rope::in_pool(pool);
    while rope.readv_from(socket)? > 0 {} // a full disk is an error here; what has arrived is kept
    let view = rope.finalize()?;
    view.persist(path)?; // never a part of it under this name
    Ok(view)
}
