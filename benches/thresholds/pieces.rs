//! How much a segment may pin: an owner for each piece of a rope that is contiguous.

use std::io;

use bytes::Bytes;
use ropewalk::{Pool, Rope};
use ropewalk_bench::contiguous::whole;
use ropewalk_bench::measure::timed;
use ropewalk_bench::transmit::sent;

use super::{Tables, Trial, Unit, doubling};

pub(super) fn table(tables: &mut Tables) -> io::Result<()> {
    const TOTAL: usize = 256 << 20;
    let pool = &Pool::new()?;
    let mut rope = Rope::in_pool(pool);
    (0..TOTAL >> 20).for_each(|_| rope.extend_from_slice(&[7; 1 << 20]));
    let all = &Bytes::from(whole(rope));
    let mut trials = Vec::new();
    for piece in doubling(64 << 10, 16 << 20) {
        let cut = move || in_pieces(pool, all, piece);
        trials.push(Trial::new(piece, "owners made, dropped", move || timed(|| cut().len())));
        trials.push(Trial::new(piece, "finalised", move || {
            let rope = cut();
            timed(|| whole(rope))
        }));
        trials.push(Trial::new(piece, "sent", move || {
            let mut rope = cut();
            sent(|socket| rope.write_all_to(socket))
        }));
    }
    tables.weigh("piece", Unit::MICROS, 5, trials);
    pinned(tables)
}

/// The same bytes as segments of `piece` bytes, each of which is kept by itself.
fn in_pieces(pool: &Pool, all: &Bytes, piece: usize) -> Rope {
    let mut rope = Rope::in_pool(pool);
    let pieces = (0..all.len()).step_by(piece).map(|at| all.slice(at..at + piece));
    rope.extend(pieces.map(Bytes::from_owner));
    rope
}

/// What one byte of a rope keeps once the rope is gone.
fn pinned(tables: &mut Tables) -> io::Result<()> {
    let pool = Pool::new()?;
    let mut rope = Rope::in_pool(&pool);
    rope.extend_from_slice(&vec![7; 16 << 20]);
    let kept = rope.slice(..1);
    drop(rope);
    let pinned = pool.stats().in_use as f64 / 1024.0;
    tables.figure("piece", "1 B kept".to_owned(), "pinned", (pinned, "KiB"));
    drop(kept);
    Ok(())
}
