//! Ropes to be made contiguous, and the ways to do it.

use std::collections::VecDeque;
use std::hint::black_box;

use buf_list::BufList;
use bytes::Bytes;
use bytes_utils::SegmentedBuf;
use linkedbytes::LinkedBytes;
use ropewalk::{Pool, Rope, View};

use crate::gather::Gather;
use crate::measure::{Contender, timed};

/// A rope that was filled while it was alone in its pool.
///
/// # Panics
///
/// If there is no memory.
#[must_use]
pub fn filled(size: usize) -> Rope {
    filled_in(&Pool::new().expect("a pool"), size)
}

fn filled_in(pool: &Pool, size: usize) -> Rope {
    let mut rope = Rope::in_pool(pool);
    let piece = vec![7; size.min(64 << 10)];
    (0..size / piece.len()).for_each(|_| rope.extend_from_slice(&piece));
    rope
}

/// A rope of `extent` bytes after `extent` bytes, no two of which are adjacent. The pool holds nothing else.
#[must_use]
pub fn scattered(pool: &Pool, size: usize, extent: usize) -> Rope {
    let filled = filled_in(pool, size);
    let mut rope = filled.slice(..0);
    let whole = Bytes::from(whole(filled));
    let piece = |at: usize| whole.slice(at * extent..(at + 1) * extent);
    let count = size / extent;
    (0..count).step_by(2).chain((1..count).step_by(2)).for_each(|at| rope.push(piece(at)));
    rope
}

/// Its view.
///
/// # Panics
///
/// If there is no memory.
#[must_use]
pub fn whole(rope: Rope) -> View {
    rope.finalize().expect("there is memory")
}

/// A join into memory that is already there.
pub fn join<'a>(rope: &Rope, into: &'a mut Vec<u8>) -> &'a [u8] {
    into.clear();
    rope.chunks().for_each(|chunk| into.extend_from_slice(chunk));
    black_box(into)
}

/// Reads a byte of every page.
pub fn touch(all: &[u8]) {
    black_box(all.iter().step_by(4096).fold(0_u8, |sum, byte| sum.wrapping_add(*byte)));
}

/// Copying a rope's segments, to have another round, is not part of what `finish` takes.
pub fn time_of<T>(rope: &Rope, finish: impl FnOnce(Rope) -> T) -> f64 {
    let rope = rope.clone();
    timed(|| finish(rope))
}

/// All ways, ropewalk first.
#[must_use]
pub fn contenders(size: usize, extent: usize) -> Vec<Contender<'static>> {
    let (alone, apart) = (filled(size), scattered(&Pool::new().expect("a pool"), size, extent));
    let (same, mut resident) = (apart.clone(), vec![0; size]);
    vec![
        ("ropewalk, contiguous".to_owned(), Box::new(move || time_of(&alone, |rope| drop(whole(rope))))),
        joined::<Vec<Bytes>>("list + concat", &apart),
        joined::<VecDeque<Bytes>>("VecDeque<Bytes>", &apart),
        joined::<BufList>("buf-list", &apart),
        joined::<SegmentedBuf<Bytes>>("SegmentedBuf", &apart),
        joined::<LinkedBytes>("linkedbytes", &apart),
        ("ropewalk, stitched".to_owned(), Box::new(move || time_of(&apart, |rope| drop(whole(rope))))),
        ("join, resident".to_owned(), Box::new(move || timed(|| join(&same, &mut resident).len()))),
    ]
}

fn joined<G: Gather>(name: &str, rope: &Rope) -> Contender<'static> {
    let pieces: Vec<Bytes> = rope.segments().collect();
    let round = move || {
        let mut gather = G::default();
        pieces.iter().cloned().for_each(|piece| gather.add(piece));
        timed(|| black_box(gather.join().as_ref().len()))
    };
    (name.to_owned(), Box::new(round))
}
