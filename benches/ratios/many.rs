//! Many connections and many threads in one pool.

use std::io;
use std::sync::Barrier;
use std::thread;

use ropewalk::{Pool, Rope};
use ropewalk_bench::measure::{Contender, in_turn, median, timed};
use ropewalk_bench::wire::{self, Peer};

use super::{Bar, Tables};

pub(super) fn table(tables: &mut Tables) -> io::Result<()> {
    for connections in [1, 4, 16, 64] {
        interleaved(tables, connections)?;
    }
    idle(tables)?;
    for threads in [1, 2, 4, 16] {
        contention(tables, threads)?;
    }
    Ok(())
}

/// Ropes that grow at the same time: how much of them is contiguous without a copy?
fn interleaved(tables: &mut Tables, connections: usize) -> io::Result<()> {
    const SIZE: usize = 16 << 20;
    let pool = Pool::new()?;
    let peers: Vec<Peer> = (0..connections).map(|_| Peer::start()).collect();
    let mut copied = 0;
    let seconds = timed(|| -> io::Result<()> {
        let mut open = Vec::new();
        for peer in &peers {
            open.push((peer.order(SIZE)?, Rope::in_pool(&pool), true));
        }
        while open.iter().any(|(.., more)| *more) {
            for (socket, rope, more) in open.iter_mut().filter(|(.., more)| *more) {
                *more = rope.readv_from(&*socket)? > 0;
            }
        }
        for (_, rope, _) in open {
            let view = rope.finalize()?;
            wire::check(&view, SIZE);
            copied += view.copied_bytes();
        }
        Ok(())
    });
    let total = connections * SIZE;
    let kept = 100.0 * (total - copied) as f64 / total as f64;
    let each = seconds / connections as f64 * 1e3;
    tables.figure("many", connections, "connections: not copied", (kept, "%"), Bar::AtLeast(95.0));
    tables.figure("many", connections, "connections: CPU of each", (each, "ms"), Bar::None);
    Ok(())
}

/// Connections on which nothing has come yet.
fn idle(tables: &mut Tables) -> io::Result<()> {
    const ROPES: usize = 10_000;
    let pool = Pool::new()?;
    let (socket, _peer) = wire::pair()?;
    socket.set_nonblocking(true)?;
    let mut ropes: Vec<Rope> = (0..ROPES).map(|_| Rope::in_pool(&pool)).collect();
    for rope in &mut ropes {
        assert_eq!(rope.readv_from(&socket).map_err(|error| error.kind()), Err(io::ErrorKind::WouldBlock));
    }
    let stats = pool.stats();
    tables.figure("many", ROPES, "bytes per idle rope", (size_of::<Rope>() as f64, "B"), Bar::AtMost(256.0));
    tables.figure("many", ROPES, "pool bytes of idle ropes", (stats.in_use as f64, "B"), Bar::AtMost(0.0));
    Ok(())
}

/// One rope per thread at a time, all of one pool, against a pool for each.
fn contention(tables: &mut Tables, threads: usize) -> io::Result<()> {
    let (shared, own) = (Pool::new()?, (0..threads).map(|_| Pool::new()).collect::<io::Result<Vec<_>>>()?);
    let mut contenders: [Contender<'_>; 2] = [
        ("shared pool".to_owned(), Box::new(|| at_once(threads, |_| &shared))),
        ("a pool each".to_owned(), Box::new(|| at_once(threads, |thread| &own[thread]))),
    ];
    let mut timings = in_turn(&mut contenders, tables.rounds(15));
    for timing in &mut timings {
        timing.name = format!("threads: {}", timing.name);
    }
    tables.compare("many", threads, &timings, |name| {
        if threads == 16 && name.contains("each") { Bar::AtLeast(1.0 / 1.05) } else { Bar::None }
    });
    Ok(())
}

/// The median CPU time of the threads.
fn at_once<'a>(threads: usize, pool: impl Fn(usize) -> &'a Pool) -> f64 {
    let start = &Barrier::new(threads);
    let run = |pool: &Pool| {
        start.wait();
        timed(|| work(pool))
    };
    let times = thread::scope(|scope| {
        let spawn = |thread| {
            let pool = pool(thread);
            scope.spawn(move || run(pool))
        };
        let all: Vec<_> = (0..threads).map(spawn).collect();
        all.into_iter().map(|thread| thread.join().expect("no panic")).collect::<Vec<f64>>()
    });
    median(&times)
}

/// Small and larger payloads, filled without the kernel's help so that the pool is most of it.
fn work(pool: &Pool) {
    let piece = [7; 4 << 10];
    for round in 0..200 {
        let mut rope = Rope::in_pool(pool);
        (0..round % 64).for_each(|_| rope.extend_from_slice(&piece));
        drop(rope.finalize());
    }
}
