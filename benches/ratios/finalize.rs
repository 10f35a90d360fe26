//! Making a rope contiguous.

use std::cell::RefCell;
use std::hint::black_box;
use std::io;

use bytes::Bytes;
use ropewalk::{Pool, Rope, View};
use ropewalk_bench::measure::{Contender, in_turn, timed};

use super::{Bar, Tables};

/// Bytes that an extent has at most.
const EXTENT: usize = 2 << 20;

pub(super) fn table(tables: &mut Tables) -> io::Result<()> {
    for size in [1 << 20, 16 << 20, 64 << 20, 256 << 20] {
        side_by_side(tables, size)?;
        for extent in [64 << 10, 256 << 10, EXTENT] {
            if extent <= size / 4 {
                stitched(tables, size, extent)?;
            }
        }
    }
    header(tables)
}

fn side_by_side(tables: &mut Tables, size: usize) -> io::Result<()> {
    let pool = Pool::new()?;
    let filled = filled(&pool, size);
    let mut contenders: [Contender<'_>; 1] =
        [("side by side".to_owned(), Box::new(|| timed(|| whole(filled.clone()))))];
    let timings = in_turn(&mut contenders, tables.rounds(20));
    let micros = timings[0].seconds * 1e6;
    let bar = if size == 256 << 20 { Bar::AtMost(2.0) } else { Bar::None };
    tables.figure("finalize", size, "side by side", (micros, "us"), bar);
    Ok(())
}

/// Segments of `extent` bytes, no two of which lie side by side, against a join into resident memory.
fn stitched(tables: &mut Tables, size: usize, extent: usize) -> io::Result<()> {
    let pool = Pool::new()?;
    let scattered = scattered(&pool, size, extent);
    let resident = RefCell::new(vec![0; size]);
    let parts = crate::report::size(extent as u64);
    let name = |what: &str| format!("{parts}: {what}");
    let mut bare: [Contender<'_>; 2] = [
        (name("stitched"), Box::new(|| time_of(&scattered, whole))),
        (name("join"), Box::new(|| timed(|| join(&scattered, &mut resident.borrow_mut()).len()))),
    ];
    let timings = in_turn(&mut bare, tables.rounds(12));
    let bar = |name: &str, least| {
        let counts = size == 256 << 20 && extent == EXTENT && name.contains("join");
        if counts { Bar::AtLeast(least) } else { Bar::None }
    };
    tables.compare("finalize", size, &timings, |name| bar(name, 50.0));
    let mut read: [Contender<'_>; 3] = [
        (name("stitched, read"), Box::new(|| time_of(&scattered, |rope| touched(whole(rope))))),
        (name("join, read"), Box::new(|| timed(|| touch(join(&scattered, &mut resident.borrow_mut()))))),
        (
            name("stitched, read, released"),
            Box::new(|| time_of(&scattered, |rope| drop(touched(whole(rope))))),
        ),
    ];
    let timings = in_turn(&mut read, tables.rounds(12));
    tables.compare("finalize", size, &timings, |name| bar(name, 3.0));
    Ok(())
}

/// A header from elsewhere in front.
fn header(tables: &mut Tables) -> io::Result<()> {
    const SIZE: usize = 256 << 20;
    let mut rope = filled(&Pool::new()?, SIZE);
    rope.push_front(vec![7; 40]);
    let copied = whole(rope).copied_bytes();
    tables.figure(
        "finalize",
        SIZE,
        "copied for 40 bytes in front",
        (copied as f64, "B"),
        Bar::AtMost(8192.0),
    );
    Ok(())
}

fn filled(pool: &Pool, size: usize) -> Rope {
    let mut rope = Rope::in_pool(pool);
    let page = [7; 64 << 10];
    (0..size / page.len()).for_each(|_| rope.extend_from_slice(&page));
    rope
}

/// The pieces of a filled rope, the even ones first.
fn scattered(pool: &Pool, size: usize, extent: usize) -> Rope {
    let whole = Bytes::from(whole(filled(pool, size)));
    let piece = |at: usize| whole.slice(at * extent..(at + 1) * extent);
    let mut rope = Rope::in_pool(pool);
    let count = size / extent;
    (0..count).step_by(2).chain((1..count).step_by(2)).for_each(|at| rope.push(piece(at)));
    rope
}

/// Copying the rope's segments to have another round is not part of it.
fn time_of<T>(rope: &Rope, finish: impl FnOnce(Rope) -> T) -> f64 {
    let rope = rope.clone();
    timed(|| finish(rope))
}

fn whole(rope: Rope) -> View {
    rope.finalize().expect("there is memory")
}

fn join<'a>(rope: &Rope, into: &'a mut Vec<u8>) -> &'a [u8] {
    into.clear();
    rope.chunks().for_each(|chunk| into.extend_from_slice(chunk));
    black_box(into)
}

fn touched(view: View) -> View {
    touch(&view);
    view
}

/// Reads a byte of every page.
fn touch(all: &[u8]) {
    black_box(all.iter().step_by(4096).fold(0_u8, |sum, byte| sum.wrapping_add(*byte)));
}
