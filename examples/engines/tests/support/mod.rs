//! What the tests of several engines share.
#![allow(dead_code, clippy::unwrap_used)] // each test uses its part; a test may panic

use ropewalk::{Pool, Rope};

/// Bytes without a period that a part, a page or a segment could have.
pub(crate) fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at as u32).wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect()
}

/// A rope whose bytes are in the pool's pages, as if they had been received.
pub(crate) fn received(pool: &Pool, bytes: &[u8]) -> Rope {
    let mut rope = Rope::in_pool(pool);
    rope.extend_from_slice(bytes);
    rope
}

/// Whether each of these slices lies in the memory of the rope, so that nothing was copied.
pub(crate) fn lie_in<T: AsRef<[u8]>>(rope: &Rope, slices: impl IntoIterator<Item = T>) -> bool {
    slices.into_iter().all(|slice| {
        let slice = slice.as_ref().as_ptr_range();
        rope.chunks().any(|chunk| {
            let chunk = chunk.as_ptr_range();
            chunk.start <= slice.start && slice.end <= chunk.end
        })
    })
}

/// The cryptography that reqwest and quinn use, unless another test of the process has installed it.
pub(crate) fn install_crypto() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}
