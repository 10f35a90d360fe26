//! Whether an operation costs more on a rope of more segments: each at 10^3 to 10^6 segments of one byte. The ratio
//! is to 10^3.

use std::hint::black_box;
use std::io;

use ropewalk::Rope;
use ropewalk_bench::measure::timed;

use super::{Tables, Trial, Unit};

/// Times that an operation is repeated in a round.
const TIMES: usize = 1000;

const NANOS: Unit = Unit("ns", 1e9);

type Operation = (&'static str, fn(&mut Rope, usize));

/// Each leaves the rope as it was.
const OPERATIONS: [Operation; 8] = [
    ("append behind 1, split_to", |rope, _| {
        let mut header = Rope::from("h");
        header.append(std::mem::take(rope));
        drop(header.split_to(1));
        *rope = header;
    }),
    ("append behind 100, split_to", |rope, _| {
        let mut header: Rope = (0..100).map(|_| "h").collect();
        header.append(std::mem::take(rope));
        drop(header.split_to(100));
        *rope = header;
    }),
    ("append 100, split_off", |rope, _| {
        let len = rope.len();
        rope.append((0..100).map(|_| "t").collect());
        drop(rope.split_off(len));
    }),
    ("push_front, advance", |rope, _| {
        rope.push_front("h");
        rope.advance(1);
    }),
    ("push, split_off", |rope, _| {
        let len = rope.len();
        rope.push("t");
        drop(rope.split_off(len));
    }),
    ("slice of 10", |rope, turn| {
        let at = turn * 7919 % (rope.len() - 10);
        drop(black_box(rope.slice(at..at + 10)));
    }),
    ("set_position", |rope, turn| {
        let at = turn * 7919 % rope.len();
        let mut cursor = rope.cursor();
        cursor.set_position(at);
        black_box(cursor.chunk());
    }),
    ("find_from the last 100", |rope, _| {
        black_box(rope.find_from(rope.len() - 100, b"none"));
    }),
];

pub(super) fn table(tables: &mut Tables) -> io::Result<()> {
    let sizes = [1000, 10_000, 100_000, 1_000_000];
    for (way, operation) in OPERATIONS {
        let trial = |segments| {
            let mut rope = tiny(segments);
            let repeat = move || (0..TIMES).for_each(|turn| operation(&mut rope, turn));
            let mut repeat = Box::new(repeat);
            Trial {
                at: segments.to_string(),
                way,
                round: Box::new(move || timed(&mut repeat) / TIMES as f64),
            }
        };
        tables.weigh("growth", NANOS, 15, sizes.map(trial).into());
    }
    for len in [4, 64, 4096, 65_536] {
        find(tables, len, &sizes);
    }
    Ok(())
}

/// Time per byte that is searched for a needle of which all but the last byte is everywhere.
fn find(tables: &mut Tables, len: usize, sizes: &[usize]) {
    let mut needle = vec![b's'; len];
    needle[len - 1] = b'n';
    let way = match len {
        4 => "find of 4 B, per byte",
        64 => "find of 64 B, per byte",
        4096 => "find of 4 KiB, per byte",
        _ => "find of 64 KiB, per byte",
    };
    let needle = &needle;
    let trial = |&segments: &usize| {
        let rope = tiny(segments);
        let round = move || timed(|| rope.find(needle)) / segments as f64;
        Trial { at: segments.to_string(), way, round: Box::new(round) }
    };
    tables.weigh("growth", NANOS, 5, sizes.iter().map(trial).collect());
}

/// A rope of so many segments of one byte.
fn tiny(segments: usize) -> Rope {
    (0..segments).map(|_| "s").collect()
}
