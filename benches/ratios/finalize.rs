//! Making a rope contiguous.

use std::cell::RefCell;
use std::io;

use ropewalk::{Pool, View};
use ropewalk_bench::contiguous::{filled, join, scattered, time_of, touch, whole};
use ropewalk_bench::measure::{Contender, in_turn, timed};

use super::{Bar, Tables};

/// Bytes that an extent has at most.
const EXTENT: usize = 2 << 20;

/// The payload that the bars are for.
const LARGE: usize = 256 << 20;

pub(super) fn table(tables: &mut Tables) -> io::Result<()> {
    for size in [1 << 20, 16 << 20, 64 << 20, LARGE] {
        side_by_side(tables, size);
        for extent in [64 << 10, 256 << 10, EXTENT] {
            if extent <= size / 4 {
                stitched(tables, "finalize", &Pool::new()?, size, extent);
            }
        }
    }
    header(tables);
    let huge = Pool::options().huge_pages(true).create()?;
    if huge.stats().page_size == EXTENT as u64 {
        stitched(tables, "finalize, huge pages", &huge, LARGE, EXTENT);
    } else {
        eprintln!("finalize, huge pages: not measured, this system gives shared memory none (shmem_enabled)");
    }
    Ok(())
}

fn side_by_side(tables: &mut Tables, size: usize) {
    let filled = filled(size);
    let round = || time_of(&filled, whole);
    let mut contenders: [Contender<'_>; 1] = [("contiguous".to_owned(), Box::new(round))];
    let micros = in_turn(&mut contenders, tables.rounds(20))[0].seconds * 1e6;
    let bar = if size == LARGE { Bar::AtMost(2.0) } else { Bar::None };
    tables.figure("finalize", size, "contiguous", (micros, "us"), bar);
}

/// Segments of `extent` bytes, no two of which are adjacent, against a join into resident memory.
fn stitched(tables: &mut Tables, group: &'static str, pool: &Pool, size: usize, extent: usize) {
    let (rope, resident) = (scattered(pool, size, extent), RefCell::new(vec![0; size]));
    let parts = crate::report::size(extent as u64);
    let name = |what: &str| format!("{parts}: {what}");
    let bar = |name: &str, least| {
        let counts = size == LARGE && extent == EXTENT && name.contains("join");
        if counts { Bar::AtLeast(least) } else { Bar::None }
    };
    let mut bare: [Contender<'_>; 2] = [
        (name("stitched"), Box::new(|| time_of(&rope, whole))),
        (name("join"), Box::new(|| timed(|| join(&rope, &mut resident.borrow_mut()).len()))),
    ];
    let timings = in_turn(&mut bare, tables.rounds(12));
    tables.compare(group, size, &timings, |name| bar(name, 50.0));
    let mut read: [Contender<'_>; 3] = [
        (name("stitched, read"), Box::new(|| time_of(&rope, |rope| touched(whole(rope))))),
        (name("join, read"), Box::new(|| timed(|| touch(join(&rope, &mut resident.borrow_mut()))))),
        (name("stitched, read, released"), Box::new(|| time_of(&rope, |rope| drop(touched(whole(rope)))))),
    ];
    let timings = in_turn(&mut read, tables.rounds(12));
    tables.compare(group, size, &timings, |name| bar(name, 3.0));
}

/// A header from elsewhere in front.
fn header(tables: &mut Tables) {
    let mut rope = filled(LARGE);
    rope.push_front(vec![7; 40]);
    let copied = whole(rope).copied_bytes();
    tables.figure(
        "finalize",
        LARGE,
        "copied for 40 bytes in front",
        (copied as f64, "B"),
        Bar::AtMost(8192.0),
    );
}

fn touched(view: View) -> View {
    touch(&view);
    view
}
