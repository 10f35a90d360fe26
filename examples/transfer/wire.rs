//! The wire format of `send` and `recv`, which `main.rs` specifies.

use ropewalk::Rope;

/// The first bytes of a stream.
pub(crate) const MAGIC: &[u8; 8] = b"ropewalk";

/// The length that ends a payload.
pub(crate) const END: [u8; 4] = 0u32.to_be_bytes();

/// Most bytes that this program sends as one piece; a receiver takes pieces of any length.
pub(crate) const PIECE_MAX: usize = 4 << 20;

/// Puts its length in front of a piece of at most [`PIECE_MAX`] bytes.
pub(crate) fn frame(piece: &mut Rope) {
    let len = u32::try_from(piece.len()).expect("a piece is at most PIECE_MAX bytes long");
    piece.push_front(len.to_be_bytes().to_vec());
}
