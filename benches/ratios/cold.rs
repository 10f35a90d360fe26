//! The first and the second payload of a fresh process.

use std::env;
use std::io::{self, Error};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::{Command, Stdio};

use ropewalk_bench::accumulate::{Message, huge_pages, variant};
use ropewalk_bench::measure::{Contender, in_turn, timed};
use ropewalk_bench::report;
use ropewalk_bench::wire;

use super::{Bar, Tables};

pub(super) fn table(tables: &mut Tables) -> io::Result<()> {
    const NAMES: [&str; 4] = ["ropewalk", "ropewalk, known size", "Vec, known size", "Vec, read_to_end"];
    for (size, rounds) in [(1 << 20, 30), (16 << 20, 15), (256 << 20, 9)] {
        compare(tables, "receive, cold", NAMES.into_iter().chain(huge_pages()), (size, 0), rounds, |name| {
            let barred = size == 256 << 20 && name == "Vec, known size";
            if barred { Bar::AtLeast(1.0) } else { Bar::None }
        });
    }
    // Pages that the first one has filled are mapped when the second one takes them.
    const SECOND: [&str; 4] = ["ropewalk", "Vec, known size", "Vec, reused", "Vec, read_to_end"];
    compare(tables, "receive, second", SECOND.into_iter().chain(huge_pages()), (256 << 20, 1), 9, |_| {
        Bar::None
    });
    Ok(())
}

fn compare(
    tables: &mut Tables,
    group: &'static str,
    names: impl IntoIterator<Item = &'static str>,
    (size, before): (usize, usize),
    rounds: usize,
    bar: impl Fn(&str) -> Bar,
) {
    let fresh = |name: &'static str| move || payload(name, size, before).expect("a fresh process");
    let mut contenders: Vec<Contender<'_>> =
        names.into_iter().map(|name| (name.to_owned(), Box::new(fresh(name)) as Box<_>)).collect();
    let timings = in_turn(&mut contenders, tables.rounds(rounds));
    tables.compare(group, size, &timings, bar);
}

/// Sends payloads to a process that has just started; the seconds that the one after `before` others took there.
fn payload(name: &str, size: usize, before: usize) -> io::Result<f64> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port().to_string();
    let child = Command::new(env::current_exe()?)
        .args(["--cold", name, "--size", &size.to_string(), "--port", &port])
        .args(["--before", &before.to_string()])
        .stdout(Stdio::piped())
        .spawn()?;
    for _ in 0..=before {
        let socket = listener.accept()?.0;
        wire::send(&socket, &wire::pattern(), size)?;
        socket.shutdown(Shutdown::Write)?;
    }
    let output = child.wait_with_output()?;
    String::from_utf8_lossy(&output.stdout).trim().parse().map_err(Error::other)
}

/// The process that has just started. Making the pool belongs to what the first payload takes.
pub(super) fn receiver(name: &str) -> io::Result<()> {
    let number =
        |flag| report::value_of(flag).and_then(|word| word.parse().ok()).ok_or(io::ErrorKind::InvalidInput);
    let (size, port, before): (usize, usize, usize) =
        (number("--size")?, number("--port")?, number("--before")?);
    let (mut kept, mut seconds) = (None, 0.0);
    for _ in 0..=before {
        let socket = TcpStream::connect(("127.0.0.1", u16::try_from(port).map_err(Error::other)?))?;
        wire::steady(&socket)?;
        let message = Message { size, framed: false };
        let mut result = Ok(());
        seconds = timed(|| {
            let receiver = kept.get_or_insert_with(|| variant(name));
            result = receiver.receive(&socket, message, &mut |all| assert_eq!(all.len(), size));
        });
        result?;
    }
    println!("{seconds}");
    Ok(())
}
