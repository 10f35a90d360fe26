//! What is sent: a rope of mixed segments, as a program that frames messages makes them.

use bytes::Bytes;
use ropewalk::Rope;
use xxhash_rust::xxh3::Xxh3;

/// Bytes that shared segments are slices of.
const NOISE: usize = 8 << 20;
const SLAB: usize = 1 << 20;
const PIECE: usize = 1000;
const PIECES_PER_SLAB: u32 = 64;

static STRAND: [u8; PIECE] = strand();

/// A rope of `size` bytes: headers of 4 bytes, each with a piece of 1 000 behind it, some of these
/// `'static`, and now and then a slab of a mebibyte that shares its memory with others.
///
/// Headers count up and slices start anywhere, so bytes that are lost, doubled or exchanged show in
/// the checksum.
pub(crate) fn build(size: usize) -> Rope {
    let noise = noise();
    let mut rope = Rope::new();
    let mut serial = 0;
    while rope.len() < size {
        for _ in 0..PIECES_PER_SLAB {
            push_message(&mut rope, &noise, serial);
            serial += 1;
        }
        rope.push(somewhere_in(&noise, serial, SLAB));
    }
    rope.truncate(size);
    rope
}

fn push_message(rope: &mut Rope, noise: &Bytes, serial: u32) {
    rope.push(Bytes::copy_from_slice(&serial.to_be_bytes()));
    if serial % 2 == 0 {
        rope.push(&STRAND[..]);
    } else {
        rope.push(somewhere_in(noise, serial, PIECE));
    }
}

/// A slice of `noise` that another `serial` does not soon get again.
fn somewhere_in(noise: &Bytes, serial: u32, len: usize) -> Bytes {
    let from = serial as usize * 7919 % (noise.len() - len);
    noise.slice(from..from + len)
}

fn noise() -> Bytes {
    let words = 1..=(NOISE / 8) as u64;
    words.flat_map(|n| (n.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ n.rotate_left(29)).to_le_bytes()).collect()
}

const fn strand() -> [u8; PIECE] {
    let mut strand = [7u8; PIECE];
    let mut at = 1;
    while at < PIECE {
        strand[at] = strand[at - 1].wrapping_mul(5).wrapping_add(3);
        at += 1;
    }
    strand
}

/// xxh3 over the chunks, one after the other.
pub(crate) fn checksum<'a>(chunks: impl IntoIterator<Item = &'a [u8]>) -> u64 {
    let mut hasher = Xxh3::new();
    chunks.into_iter().for_each(|chunk| hasher.update(chunk));
    hasher.digest()
}
