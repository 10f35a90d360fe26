//! RPC frames: four bytes of length, big-endian, and as many bytes.

use std::io::{self, ErrorKind};
use std::os::fd::AsFd;

use bytes::Buf;
use ropewalk::Rope;

const HEADER: usize = 4;
const MAX: usize = 16 << 20;

/// Takes the first frame's payload off the rope, once all of it has arrived.
pub fn take_frame(received: &mut Rope) -> io::Result<Option<Rope>> {
    if received.len() < HEADER {
        return Ok(None);
    }
    let len = received.cursor().get_u32() as usize; // a cursor only looks
    if len > MAX {
        return Err(ErrorKind::InvalidData.into());
    }
    if received.len() - HEADER < len {
        return Ok(None);
    }
    received.advance(HEADER);
    Ok(Some(received.split_to(len)))
}

/// Receives once from a non-blocking socket, and gives each frame that is whole then to `each`. `false` is the
/// end of the stream; one that ends inside a frame is an error, and so is `WouldBlock`. Call it until then.
///
/// Between calls the rope holds less than one frame, and a call adds at most what one lacks. A MiB may be
/// 262 144 frames without a payload, so they are not collected.
pub fn receive_frames(from: impl AsFd, received: &mut Rope, mut each: impl FnMut(Rope)) -> io::Result<bool> {
    let room = HEADER + MAX - received.len();
    match received.readv_up_to(from, room)? {
        0 if received.is_empty() => return Ok(false),
        0 => return Err(ErrorKind::UnexpectedEof.into()),
        _ => {}
    }
    while let Some(frame) = take_frame(received)? {
        each(frame);
    }
    Ok(true)
}
