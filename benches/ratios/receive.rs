//! Receiving and making contiguous, warm.

use std::io;
use std::net::TcpStream;

use ropewalk_bench::accumulate::{Accumulate, Message, VARIANTS, ends, huge_pages, receiving, variant};
use ropewalk_bench::measure::{Contender, in_turn, timed};
use ropewalk_bench::wire::{self, Peer};

use super::{Bar, Tables};

/// 5 % behind is even.
const EVEN: f64 = 1.0 / 1.05;

/// Payloads of a size that is unknown to all but two of them.
pub(super) fn large(tables: &mut Tables) -> io::Result<()> {
    const NEAR: [&str; 2] = ["ropewalk", "Vec, reused"];
    const FAR: [&str; 5] = ["ropewalk", "Vec, known size", "Vec, read_to_end", "BytesMut", "list + concat"];
    let peer = Peer::start();
    for (size, many, few) in [(16 << 20, 60, 20), (64 << 20, 30, 7), (256 << 20, 15, 5), (1 << 30, 9, 3)] {
        if tables.quick && size > 256 << 20 {
            continue;
        }
        let near = NEAR.into_iter().chain(huge_pages()).map(|name| receiving(name, &peer, size)).collect();
        let far = FAR.iter().map(|name| receiving(name, &peer, size)).collect();
        tables.near_and_far("receive, warm", size, [(near, many), (far, few)], |name| match name {
            "Vec, reused" => Bar::AtLeast(EVEN),
            "Vec, read_to_end" if size == 256 << 20 => Bar::AtLeast(2.0),
            "list + concat" if size == 256 << 20 => Bar::AtLeast(3.0),
            _ => Bar::None,
        });
    }
    Ok(())
}

/// 8 GiB through one rope, against 256 MiB in the same minute.
pub(super) fn huge(tables: &mut Tables) -> io::Result<()> {
    const MEASURE: usize = 256 << 20;
    const HUGE: usize = 8 << 30;
    if tables.quick {
        return Ok(());
    }
    let peer = &Peer::start();
    let (mut short, mut long) = (receiving("ropewalk", peer, MEASURE).1, receiving("ropewalk", peer, HUGE).1);
    let mut speeds = Vec::new();
    for round in 0..3 {
        let (short, long) = (short(), long());
        if round > 0 {
            speeds.push((MEASURE as f64 / short, HUGE as f64 / long));
        }
    }
    let ratio: Vec<f64> = speeds.iter().map(|(short, long)| long / short).collect();
    let ratio = ropewalk_bench::measure::median(&ratio);
    tables.figure("receive, warm", HUGE, "GB/s, of those at 256 MiB", (ratio, "x"), Bar::AtLeast(0.85));
    Ok(())
}

/// Messages one after another on one connection, each received by itself. They are in the socket
/// before the clock starts.
pub(super) fn small(tables: &mut Tables) -> io::Result<()> {
    for size in [64, 1 << 10, 4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20] {
        let messages = (QUEUED / size).clamp(1, 1000);
        let mut contenders = Vec::new();
        for (name, _) in &VARIANTS[..7] {
            contenders.push(messages_received(name, size, messages)?);
        }
        let timings = in_turn(&mut contenders, tables.rounds(100));
        tables.compare("receive, small", size, &timings, |name| {
            if name.starts_with("ropewalk") { Bar::None } else { Bar::AtLeast(EVEN) }
        });
    }
    Ok(())
}

/// Bytes that wait in a socket at most.
const QUEUED: usize = 1 << 20;

fn messages_received(name: &str, size: usize, messages: usize) -> io::Result<Contender<'static>> {
    let (mine, theirs) = wire::local(QUEUED)?;
    let (mut variant, pattern) = (variant(name), wire::pattern());
    let mut some = move || {
        wire::send(&theirs, &pattern, size * messages).expect("sent");
        timed(|| (0..messages).for_each(|_| take(&mut *variant, &mine, size)))
    };
    // The first turn brings back to the cache what the others have displaced, and does not count.
    let round = move || {
        some();
        some()
    };
    Ok((name.to_owned(), Box::new(round)))
}

fn take(variant: &mut dyn Accumulate, socket: &TcpStream, size: usize) {
    let message = Message { size, framed: true };
    variant.receive(socket, message, &mut |payload| ends(payload, size)).expect("received");
}
