//! The bytes of every message, and the check that they have arrived.
//!
//! Byte `i` of a message is byte `(phase + i) % PERIOD` of a fixed random sequence, and the phase depends
//! on the message's index and length: a stale, shifted or truncated message does not match.

use std::iter;
use std::sync::LazyLock;

use anyhow::ensure;

/// A prime just above the page size: no two pages of a message within 16 MiB are alike.
const PERIOD: usize = 4099;

/// Bytes of the first piece: small, so that a buffered writer sends it together with the header.
const FIRST_PIECE: usize = 32 << 10;

/// Bytes of every further piece.
const PIECE: usize = 1 << 20;

/// Distance between the bytes that the cheap check compares.
const PAGE: usize = 4096;

static BYTES: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut random = fastrand::Rng::with_seed(4099);
    let period: Vec<u8> = iter::repeat_with(|| random.u8(..)).take(PERIOD).collect();
    period.iter().copied().cycle().take(PIECE + PERIOD).collect()
});

/// How closely a message is compared with the bytes that were sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Check {
    /// Its length, its first and its last byte, and one byte of every page: cheap enough for timed rounds,
    /// and it pays for the page faults of memory that is mapped but not yet touched.
    Sampled,
    /// Every byte.
    Full,
}

/// Where in the sequence message `index` of a connection starts.
#[must_use]
pub(crate) fn phase(index: usize, len: usize) -> usize {
    (index.wrapping_mul(7919) + len) % PERIOD
}

/// The `len` bytes that start at `phase`, in pieces of at most 1 MiB.
pub(crate) fn pieces(phase: usize, len: usize) -> impl Iterator<Item = &'static [u8]> {
    let mut done = 0;
    iter::from_fn(move || {
        let piece = (len - done).min(if done == 0 { FIRST_PIECE } else { PIECE });
        let start = (phase + done) % PERIOD;
        done += piece;
        (piece > 0).then(|| &BYTES[start..start + piece])
    })
}

/// Compares `chunks` with the bytes that start at `phase`, and returns how many there are.
///
/// # Errors
///
/// If a byte that was compared differs.
pub(crate) fn check<'a>(
    chunks: impl Iterator<Item = &'a [u8]>,
    phase: usize,
    how: Check,
) -> anyhow::Result<usize> {
    let mut done = 0;
    for chunk in chunks {
        ensure!(
            matches(chunk, phase + done, how),
            "a message differs within {} bytes of {done}",
            chunk.len()
        );
        done += chunk.len();
    }
    Ok(done)
}

fn matches(chunk: &[u8], phase: usize, how: Check) -> bool {
    match how {
        Check::Full => {
            let mut rest = chunk;
            pieces(phase, chunk.len()).all(|piece| rest.split_off(..piece.len()) == Some(piece))
        }
        Check::Sampled => {
            let expected = |at: usize| BYTES[(phase + at) % PERIOD];
            let last = chunk.len().saturating_sub(1);
            (0..chunk.len()).step_by(PAGE).chain([last]).all(|at| chunk.get(at) == Some(&expected(at)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(phase: usize, len: usize) -> Vec<u8> {
        pieces(phase, len).flatten().copied().collect()
    }

    #[test]
    fn messages_match_in_any_chunks() {
        for len in [1, 64, 4096, 4100, 1 << 20, (3 << 20) + 5] {
            let (phase, how) = (phase(3, len), [Check::Sampled, Check::Full]);
            let bytes = message(phase, len);
            for (how, chunk) in how.into_iter().flat_map(|how| [(how, 1000), (how, 70_000), (how, len)]) {
                assert_eq!(check(bytes.chunks(chunk), phase, how).unwrap(), len);
            }
        }
    }

    #[test]
    fn faults_are_found() {
        let (len, right) = (1 << 20, phase(3, 1 << 20));
        let bytes = message(right, len);
        assert!(check(iter::once(&bytes[..]), phase(4, len), Check::Sampled).is_err(), "stale");
        assert!(check(iter::once(&bytes[1..]), right, Check::Sampled).is_err(), "shifted");
        assert!(check(iter::once(&bytes[4096..]), right, Check::Sampled).is_err(), "a page is missing");
        let mut flipped = bytes;
        flipped[5000] ^= 1;
        assert!(check(iter::once(&flipped[..]), right, Check::Full).is_err(), "one bit");
    }
}
