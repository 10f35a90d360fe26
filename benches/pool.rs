//! What the pool's operations cost when it is fragmented, full, or large: each with the bound that it must keep.
//!
//! ```text
//! cargo bench --bench pool                           all; needs 5 GiB of memory
//! cargo bench --bench pool -- --only trim            one: fill threads trim decay refuse wait create payload tail
//! cargo bench --bench pool -- --json --quick         for machines; a tenth of the pages
//! ```
//!
//! Times are CPU time of the thread that does it (`CLOCK_THREAD_CPUTIME_ID`), the median over rounds; those of several
//! threads are by the clock. Free runs of one page are made by dropping every other page of what was filled.

use std::collections::VecDeque;
use std::env;
use std::hint::black_box;
use std::io::{self, Error};
use std::pin::Pin;
use std::process::Command;
use std::sync::Barrier;
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Buf;
use ropewalk::{Pool, RoomFuture, Rope};
use ropewalk_bench::accumulate::{Message, ends, variant};
use ropewalk_bench::measure::{median, timed};
use ropewalk_bench::report::{self, Bar, Report};
use ropewalk_bench::wire::Peer;
use serde::Serialize;

const PAGE: usize = 4096;
const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
const GIB: u64 = 1 << 30;

/// Idle pages of what is fragmented stay resident.
const NEVER: Duration = Duration::MAX;

fn main() -> io::Result<()> {
    if let Some(name) = report::value_of("--payloads") {
        return payloads(&name);
    }
    let mut table = Table {
        quick: report::asked_for("--quick"),
        report: Report::new(
            "operation  what                                                 figure  bar",
            line,
        ),
    };
    let only = report::value_of("--only");
    let all: [(&str, Group); 9] = [
        ("fill", fill),
        ("threads", threads),
        ("trim", trim),
        ("decay", decay),
        ("refuse", refuse),
        ("wait", wait),
        ("create", create),
        ("payload", payload),
        ("tail", tail),
    ];
    for (name, measure) in all {
        if only.as_deref().is_none_or(|only| only == name) {
            measure(&mut table)?;
        }
    }
    Ok(table.report.end()?)
}

/// Measures rows and adds them.
type Group = fn(&mut Table) -> io::Result<()>;

#[derive(Serialize)]
struct Row {
    group: &'static str,
    name: String,
    figure: f64,
    unit: &'static str,
    bar: Bar,
    met: bool,
}

struct Table {
    quick: bool,
    report: Report<Row>,
}

impl Table {
    /// So many pages or runs; a tenth of them if it has to be quick.
    fn scaled(&self, count: usize) -> usize {
        if self.quick { count / 10 } else { count }
    }

    fn add(
        &mut self,
        group: &'static str,
        name: impl Into<String>,
        (figure, unit): (f64, &'static str),
        bar: Bar,
    ) {
        self.report.add(Row { group, name: name.into(), figure, unit, bar, met: bar.met(figure) });
    }
}

fn line(row: &Row) -> String {
    let figure = format!("{:.3} {}", row.figure, row.unit);
    format!("{:10} {:48} {figure:>14}  {}", row.group, row.name, row.bar.verdict(row.figure))
}

/// Seconds that one `work` takes: the median of rounds of `times` each, after one that does not count.
fn each(times: u32, mut work: impl FnMut()) -> f64 {
    const ROUNDS: usize = 9;
    let mut round = || timed(|| (0..times).for_each(|_| work())) / f64::from(times);
    round();
    median(&(0..ROUNDS).map(|_| round()).collect::<Vec<_>>())
}

fn micros(seconds: f64) -> (f64, &'static str) {
    (seconds * 1e6, "us")
}

/// Makes `count` free runs of one page; they stay so until what it returns is dropped.
fn fragment(pool: &Pool, count: usize) -> io::Result<Vec<Rope>> {
    let bytes = vec![7; 2 * MIB];
    let mut kept = Vec::with_capacity(count);
    while kept.len() < count {
        let mut filled = Rope::in_pool(pool);
        filled.reserve(bytes.len())?;
        filled.extend_from_slice(&bytes);
        // Of a tail a slice keeps its own pages only.
        let pages = (0..bytes.len()).step_by(2 * PAGE).take(count - kept.len());
        kept.extend(pages.map(|at| filled.slice(at..at + PAGE)));
    }
    assert_eq!(pool.stats().in_use, (count * PAGE) as u64);
    Ok(kept)
}

/// A payload that is received and gone.
fn fill_and_drop(pool: &Pool, bytes: &[u8]) {
    let mut rope = Rope::in_pool(pool);
    rope.extend_from_slice(bytes);
    black_box(rope);
}

fn fill(table: &mut Table) -> io::Result<()> {
    let (bytes, runs) = (&vec![7; 64 * KIB], table.scaled(300_000));
    let whole = Pool::new()?;
    let unfragmented = each(1000, || fill_and_drop(&whole, bytes));
    table.add("fill", "64 KiB, drop; unfragmented", micros(unfragmented), Bar::None);

    let pool = Pool::options().decay(NEVER).create()?;
    let kept = fragment(&pool, runs)?;
    let seconds = each(1000, || fill_and_drop(&pool, bytes));
    table.add("fill", format!("64 KiB, drop; {runs} free pages"), micros(seconds), Bar::None);
    table.add("fill", "64 KiB, of unfragmented", (seconds / unfragmented, "x"), Bar::AtMost(2.0));
    let seconds = each(1000, || Rope::in_pool(&pool).reserve(300 * KIB).expect("there is room"));
    table.add("fill", format!("reserve(300 KiB); {runs} free pages"), micros(seconds), Bar::AtMost(5.0));
    drop(kept);
    Ok(())
}

/// Payloads per second of all threads.
fn threads(table: &mut Table) -> io::Result<()> {
    let (bytes, runs) = (&vec![7; 128 * KIB], table.scaled(100_000));
    let pool = &Pool::options().decay(NEVER).create()?;
    let kept = fragment(pool, runs)?;
    for count in [1, 4, 16] {
        let times = if table.quick { 10_000 } else { 100_000 } / count;
        let start = Barrier::new(count + 1);
        let seconds = thread::scope(|scope| {
            let workers: Vec<_> = (0..count)
                .map(|_| {
                    scope.spawn(|| {
                        fill_and_drop(pool, bytes);
                        start.wait();
                        (0..times).for_each(|_| fill_and_drop(pool, bytes));
                    })
                })
                .collect();
            start.wait();
            let begun = Instant::now();
            workers.into_iter().for_each(|worker| worker.join().expect("it does not panic"));
            begun.elapsed().as_secs_f64()
        });
        let rate = (times * count) as f64 / seconds;
        let name = format!("128 KiB, drop; {count} threads, {runs} free pages");
        table.add("threads", name, (rate, "/s"), Bar::AtLeast(150_000.0));
    }
    drop(kept);
    Ok(())
}

fn trim(table: &mut Table) -> io::Result<()> {
    let pool = Pool::options().capacity(16 * GIB).decay(NEVER).create()?;
    let kept = fragment(&pool, 20_000)?;
    let mut trimmed = 0;
    let seconds = timed(|| trimmed = pool.trim().expect("the kernel takes it"));
    assert!(trimmed >= 20_000 * PAGE as u64);
    table.add("trim", "20000 runs of a 16 GiB pool", (seconds, "s"), Bar::AtMost(0.3));
    drop(kept);
    Ok(())
}

/// The longest drop of a small rope while much is due.
fn decay(table: &mut Table) -> io::Result<()> {
    const IDLE: Duration = Duration::from_millis(300);
    let pool = Pool::options().decay(IDLE).create()?;
    let (size, bytes) = (table.scaled(4096) * MIB, vec![7; 2 * MIB]);
    let mut rope = Rope::in_pool(&pool);
    (0..size / bytes.len()).for_each(|_| rope.extend_from_slice(&bytes));
    drop(rope);
    let warm = pool.stats().warm;
    thread::sleep(2 * IDLE);
    let (mut longest, mut drops) = (0.0_f64, 0);
    while pool.stats().resident > 64 * MIB as u64 {
        for _ in 0..100 {
            let mut rope = Rope::in_pool(&pool);
            rope.extend_from_slice(&bytes[..64]);
            longest = longest.max(timed(|| drop(rope)));
            drops += 1;
        }
    }
    let name = format!("longest of {drops} drops, {} MiB warm", warm >> 20);
    table.add("decay", name, (longest * 1e3, "ms"), Bar::AtMost(1.0));
    Ok(())
}

fn refuse(table: &mut Table) -> io::Result<()> {
    let pool = Pool::options().capacity(16 * GIB).decay(NEVER).create()?;
    let capacity = usize::try_from(pool.stats().capacity).map_err(Error::other)?;
    let _all = pool.try_room(capacity)?;
    let mut rope = Rope::in_pool(&pool);
    let mut refused = || each(10_000, || assert!(black_box(rope.reserve(1)).is_err()));
    table.add("refuse", "16 GiB in use", micros(refused()), Bar::AtMost(0.5));
    let waiter = waiting(&pool);
    table.add("refuse", "16 GiB in use, while one waits", micros(refused()), Bar::AtMost(0.5));
    drop(waiter);
    table.add("refuse", "16 GiB in use, after one has waited", micros(refused()), Bar::AtMost(0.5));
    Ok(())
}

/// A request that is queued.
fn waiting(pool: &Pool) -> RoomFuture {
    let mut request = pool.wait_for_room(PAGE);
    let polled = Pin::new(&mut request).poll(&mut Context::from_waker(Waker::noop()));
    assert!(matches!(polled, Poll::Pending));
    request
}

/// A waiter comes and leaves, of few and of many.
fn wait(table: &mut Table) -> io::Result<()> {
    let pool = Pool::options().capacity(16 * MIB as u64).create()?;
    let _all = pool.try_room(16 * MIB)?;
    let mut leave = |count: usize| {
        let mut queue: VecDeque<RoomFuture> = (0..count).map(|_| waiting(&pool)).collect();
        // From the middle, where no end of a queue is near.
        let mut seconds = || {
            let gone = queue.swap_remove_back(queue.len() / 2).expect("one of many");
            let seconds = timed(|| drop(gone));
            queue.push_back(waiting(&pool));
            seconds
        };
        let all: Vec<f64> = (0..1000).map(|_| seconds()).collect();
        let seconds = median(&all);
        table.add("wait", format!("one of {count} leaves"), micros(seconds), Bar::None);
        seconds
    };
    let (few, many) = (leave(100), leave(100_000));
    // Of n waiters O(log n), with the cache misses of a thousand times the memory.
    table.add("wait", "one of 100000 leaves, of one of 100", (many / few, "x"), Bar::AtMost(5.0));
    Ok(())
}

fn create(table: &mut Table) -> io::Result<()> {
    let first = Pool::new()?;
    let (mut times, mut bytes) = (Vec::new(), 0);
    for _ in 0..9 {
        let before = allocated();
        let mut pool = None;
        times.push(timed(|| pool = Some(Pool::new())));
        bytes = allocated() - before;
        drop(pool);
    }
    drop(first);
    table.add("create", "second pool", (median(&times) * 1e3, "ms"), Bar::AtMost(0.5));
    table.add("create", "second pool, heap", (bytes as f64 / KIB as f64, "KiB"), Bar::AtMost(64.0));
    Ok(())
}

/// mallinfo2(3): bytes that are allocated now.
fn allocated() -> usize {
    // SAFETY: it only reads the allocator's counters.
    let info = unsafe { nix::libc::mallinfo2() };
    info.uordblks + info.hblkhd
}

const PAYLOAD: usize = 256 * MIB;
const ROUNDS: usize = 5;

/// The first payloads of fresh processes.
fn payload(table: &mut Table) -> io::Result<()> {
    let (mut first, mut second) = (Vec::new(), Vec::new());
    for _ in 0..if table.quick { 3 } else { 7 } {
        let own = fresh("ropewalk")?;
        first.push(fresh("Vec, known size")?[0] / own[0]);
        second.push(own[1] / median(&own[2..]));
    }
    table.add("payload", "first, 256 MiB: malloc of known size", (median(&first), "x"), Bar::AtLeast(1.05));
    table.add("payload", "second, 256 MiB, of warm", (median(&second), "x"), Bar::AtMost(1.2));
    Ok(())
}

/// Seconds that each of the first payloads takes in a process of its own.
fn fresh(name: &str) -> io::Result<Vec<f64>> {
    let output = Command::new(env::current_exe()?).args(["--payloads", name]).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let seconds: Vec<f64> =
        text.lines().map(|line| line.parse().map_err(Error::other)).collect::<Result<_, _>>()?;
    assert_eq!(seconds.len(), ROUNDS, "{}", String::from_utf8_lossy(&output.stderr));
    Ok(seconds)
}

/// The process that has just started. Making the pool belongs to what the first payload takes.
fn payloads(name: &str) -> io::Result<()> {
    let (peer, mut receiver) = (Peer::start(), None);
    for _ in 0..ROUNDS {
        let socket = peer.order(PAYLOAD)?;
        let message = Message { size: PAYLOAD, framed: false };
        let mut received = Ok(());
        let seconds = timed(|| {
            let receiver = receiver.get_or_insert_with(|| variant(name));
            received = receiver.receive(&socket, message, &mut |payload| ends(payload, PAYLOAD));
        });
        received?;
        println!("{seconds}");
    }
    Ok(())
}

/// Reading a page of a tail, and all of it.
fn tail(table: &mut Table) -> io::Result<()> {
    let pool = Pool::new()?;
    let filled = |bytes: usize| -> io::Result<Rope> {
        let mut rope = Rope::in_pool(&pool);
        rope.reserve(bytes)?;
        rope.extend_from_slice(&vec![7; bytes]);
        assert_eq!(rope.num_segments(), 1);
        Ok(rope)
    };
    let (short, long) = (filled(2 * PAGE)?, filled(2 * MIB)?);
    let slice = |rope: &Rope| drop(black_box(rope.slice(PAGE..2 * PAGE)));
    let copy = |rope: &Rope| {
        let mut cursor = rope.cursor();
        cursor.advance(PAGE);
        drop(black_box(Buf::copy_to_bytes(&mut cursor, PAGE)));
    };
    let mut compare = |what: &str, work: &dyn Fn(&Rope)| {
        let [of_short, of_long] = [&short, &long].map(|rope| each(10_000, || work(rope)));
        table.add("tail", format!("{what} of a page, 2 MiB"), (of_long * 1e9, "ns"), Bar::None);
        table.add(
            "tail",
            format!("{what} of a page, of that of 8 KiB"),
            (of_long / of_short, "x"),
            Bar::AtMost(1.5),
        );
    };
    compare("slice", &slice);
    compare("copy_to_bytes", &copy);
    let clone = each(1000, || drop(black_box(long.clone())));
    table.add("tail", "clone, 2 MiB: 512 pages", (clone * 1e9, "ns"), Bar::None);
    let segments = each(1000, || drop(black_box(long.segments().next())));
    table.add("tail", "segments, 2 MiB: 512 pages", (segments * 1e9, "ns"), Bar::None);
    Ok(())
}
