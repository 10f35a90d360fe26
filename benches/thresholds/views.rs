//! Copy or map: from which size on pages are given a second address.

use std::io;

use ropewalk_bench::contiguous::touch;
use ropewalk_bench::measure::timed;

use super::memory::Memfd;
use super::{Tables, Trial, Unit, doubling};

/// Views of two runs: made, read once, and dropped. The last way has the memory that the allocator recycles,
/// as long as it does.
pub(super) fn map(tables: &mut Tables) -> io::Result<()> {
    const MOST: usize = 64 << 20;
    let memfd = &Memfd::warm(MOST * 2)?;
    for size in doubling(16 << 10, MOST) {
        weigh(tables, ("map", size), memfd, &[MOST, 0], size / 2);
    }
    Ok(())
}

/// Views of 4 MiB in runs of a size, every other one of which is elsewhere.
pub(super) fn run(tables: &mut Tables) -> io::Result<()> {
    const VIEW: usize = 4 << 20;
    let memfd = &Memfd::warm(VIEW)?;
    for size in doubling(4 << 10, 2 << 20) {
        let (even, odd) = ((0..VIEW).step_by(size * 2), (size..VIEW).step_by(size * 2));
        let places: Vec<usize> = even.chain(odd).collect();
        weigh(tables, ("run", size), memfd, &places, size);
    }
    Ok(())
}

/// 256 MiB in runs of 2 MiB, every other one of which is elsewhere: what is the least that a view can take?
pub(super) fn stitch(tables: &mut Tables) -> io::Result<()> {
    const VIEW: usize = 256 << 20;
    const RUN: usize = 2 << 20;
    let memfd = &Memfd::warm(VIEW)?;
    let places: &Vec<usize> = &(0..VIEW).step_by(2 * RUN).chain((RUN..VIEW).step_by(2 * RUN)).collect();
    let mut resident = vec![0; VIEW];
    let join = |into: &mut Vec<u8>| {
        into.clear();
        places.iter().for_each(|&place| into.extend_from_slice(&memfd.as_ref()[place..place + RUN]));
    };
    let map = || memfd.side_by_side(places, RUN);
    let mut same = resident.clone();
    let trials = vec![
        Trial::new(RUN, "join, resident", || timed(|| join(&mut resident))),
        Trial::new(RUN, "map", often(1, || map().map(drop))),
        Trial::new(
            RUN,
            "map over a reservation",
            often(1, || memfd.over_a_reservation(places, RUN).map(drop)),
        ),
        Trial::new(RUN, "join, resident, read", || {
            timed(|| {
                join(&mut same);
                touch(&same);
            })
        }),
        Trial::new(RUN, "move", often(1, || memfd.moved(places, RUN).map(drop))),
        Trial::new(RUN, "map, read", often(1, || map().map(|view| touch(view.as_ref())))),
        Trial::new(RUN, "move, read", often(1, || memfd.moved(places, RUN).map(|view| touch(view.as_ref())))),
        Trial::new(
            RUN,
            "map, populate, read",
            often(1, || {
                let view = map()?;
                view.populate()?;
                touch(view.as_ref());
                Ok(())
            }),
        ),
    ];
    tables.weigh("stitch", Unit("ms", 1e3), 9, trials);
    Ok(())
}

fn weigh(
    tables: &mut Tables,
    (group, size): (&'static str, usize),
    memfd: &Memfd,
    places: &[usize],
    len: usize,
) {
    // A small view by itself is too short for the clock.
    let views = ((1 << 20) / (places.len() * len)).max(1);
    let mapped = || memfd.side_by_side(places, len).map(|view| touch(view.as_ref()));
    let moved = || memfd.moved(places, len).map(|view| touch(view.as_ref()));
    let fresh = || memfd.copied(places, len).map(|view| touch(view.as_ref()));
    let recycled = || {
        let mut view = Vec::with_capacity(places.len() * len);
        places.iter().for_each(|&place| view.extend_from_slice(&memfd.as_ref()[place..place + len]));
        touch(&view);
        Ok(())
    };
    let trials = vec![
        Trial::new(size, "map", often(views, mapped)),
        Trial::new(size, "move", often(views, moved)),
        Trial::new(size, "copy, fresh memory", often(views, fresh)),
        Trial::new(size, "copy, recycled memory", often(views, recycled)),
    ];
    tables.weigh(group, Unit("us", 1e6 / views as f64), 15, trials);
}

fn often(views: usize, view: impl Fn() -> io::Result<()>) -> impl FnMut() -> f64 {
    move || timed(|| (0..views).for_each(|_| view().expect("a view")))
}
