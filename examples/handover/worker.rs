//! The worker: hashes each payload that comes, and answers with the hash and the CPU time that receiving it took, 8 bytes
//! each.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use ropewalk::{Pool, Rope, Sealed};
use xxhash_rust::xxh3::Xxh3;

use crate::Way;
use crate::meter::thread_cpu;

/// Answers until the server ends the stream.
pub(crate) fn run(way: Way) -> anyhow::Result<()> {
    let mut socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let pool = Pool::new()?;
    loop {
        let before = thread_cpu()?;
        let received = match way {
            Way::Sealed => Sealed::receive(&socket).map(Rope::from),
            Way::Socket => receive(&mut socket, &pool),
        };
        let took = thread_cpu()? - before;
        match received {
            Ok(payload) => {
                let answer = [hash(&payload), u64::try_from(took.as_nanos())?];
                socket.write_all(&answer.map(u64::to_le_bytes).concat())?;
            }
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

/// The hash of all bytes, which a sealed payload has in one chunk.
fn hash(payload: &Rope) -> u64 {
    let mut hash = Xxh3::new();
    payload.chunks().for_each(|chunk| hash.update(chunk));
    hash.digest()
}

/// A payload behind its length, from the server, which is trusted.
fn receive(socket: &mut UnixStream, pool: &Pool) -> io::Result<Rope> {
    let mut len = [0; 8];
    socket.read_exact(&mut len)?;
    let len = usize::try_from(u64::from_le_bytes(len)).map_err(io::Error::other)?;
    let mut payload = Rope::in_pool(pool);
    while payload.len() < len {
        if payload.readv_up_to(&mut *socket, len - payload.len())? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(payload)
}
