//! Instructions of user code per operation, counted by `valgrind --tool=callgrind`.
//!
//! Each operation runs N and 2N times in a process of its own; the difference, divided by N, is what one
//! costs, whatever the process does beside it. Without valgrind nothing is counted.
//!
//! ```text
//! cargo bench --bench instructions                                              all operations
//! cargo bench --bench instructions -- --only 'receive, 64 B'                    one
//! cargo bench --bench instructions -- --only 'receive, 64 B' --profile ropewalk where they go, by function
//! ```
//!
//! A profile is of 50 000 operations, or of `--times`, and of what the process does beside them.

use std::io::{self, Error};
use std::path::Path;
use std::process::Command;
use std::{env, fs, iter};

use ropewalk_bench::accumulate::{Message, VARIANTS, variant};
use ropewalk_bench::operation::{self, MESSAGES, Operation};
use ropewalk_bench::report::{self, Report};
use ropewalk_bench::transmit;
use ropewalk_bench::wire;
use serde::Serialize;

/// Operations beyond those of the first run.
const TIMES: u64 = 500;

#[derive(Serialize)]
struct Row {
    operation: String,
    variant: String,
    instructions: f64,
}

fn main() -> io::Result<()> {
    let times = report::value_of("--times").and_then(|word| word.parse().ok()).unwrap_or(100 * TIMES);
    if let Some(index) = report::value_of("--run") {
        let index = index.parse::<usize>().map_err(Error::other)?;
        all().nth(index).ok_or(io::ErrorKind::InvalidInput)?.run.as_mut()(times);
        return Ok(());
    }
    if Command::new("valgrind").arg("--version").output().is_err() {
        eprintln!("no valgrind here: no instructions are counted");
        return Ok(());
    }
    let mut report =
        Report::new("operation            variant                          instructions", |row: &Row| {
            format!("{:20} {:32} {:12.1}", row.operation, row.variant, row.instructions)
        });
    let only = report::value_of("--only");
    if let Some(wanted) = report::value_of("--profile") {
        let is_wanted = |what: &str| only.as_deref().is_none_or(|only| what.starts_with(only));
        let mut operations = all().enumerate();
        let found = operations.find(|(_, one)| is_wanted(one.what) && one.variant == wanted);
        return profile(found.ok_or(io::ErrorKind::NotFound)?.0, times);
    }
    for (index, Operation { what, variant, .. }) in all().enumerate() {
        if only.as_deref().is_none_or(|only| what.starts_with(only)) {
            // A turn of the codec is many messages.
            let per = if what.starts_with("codec") { MESSAGES as f64 } else { 1.0 };
            let (more, less) = (instructions(index, 2 * TIMES)?, instructions(index, TIMES)?);
            let instructions = (more - less) / TIMES as f64 / per;
            report.add(Row { operation: what.to_owned(), variant: variant.to_owned(), instructions });
        }
    }
    Ok(report.end()?)
}

fn all() -> impl Iterator<Item = Operation> {
    let small = [("receive, 64 B", 64), ("receive, 4 KiB", 4 << 10), ("receive, 16 KiB", 16 << 10)];
    let receive = small.into_iter().flat_map(|(what, size)| {
        VARIANTS[..7].iter().map(move |(variant, _)| Operation {
            what,
            variant,
            run: receiving(variant, size),
        })
    });
    iter::empty()
        .chain(operation::push())
        .chain(operation::codec())
        .chain(transmit::operations())
        .chain(receive)
}

/// Bytes that a socket holds, whatever its settings.
const QUEUED: usize = 64 << 10;

/// One message after another; several of them are written to the socket at once.
fn receiving(name: &'static str, size: usize) -> Box<dyn FnMut(u64)> {
    Box::new(move |times| {
        let (mut variant, pattern) = (variant(name), wire::pattern());
        let (mine, theirs) = wire::pair().expect("a connection");
        let message = Message { size, framed: true };
        let at_once = (QUEUED / size).clamp(1, 100);
        for _ in 0..times / at_once as u64 {
            wire::send(&theirs, &pattern, at_once * size).expect("sent");
            (0..at_once).for_each(|_| variant.receive(&mine, message, &mut |_| ()).expect("received"));
        }
    })
}

/// Prints what each function executes, most first, of so many operations and of what is done beside them.
fn profile(index: usize, times: u64) -> io::Result<()> {
    let file = env::temp_dir().join(format!("ropewalk-profile-{}", std::process::id()));
    callgrind(index, times, &file)?;
    let printed = Command::new("callgrind_annotate").arg("--threshold=95").arg(&file).status();
    fs::remove_file(&file)?;
    printed.map(drop)
}

/// All that the process executes.
fn instructions(index: usize, times: u64) -> io::Result<f64> {
    let log = callgrind(index, times, Path::new("/dev/null"))?;
    let line = log.lines().find_map(|line| line.split_once("Collected :"));
    let count = line.and_then(|(_, count)| count.trim().parse().ok());
    count.ok_or_else(|| Error::other(format!("callgrind counted nothing: {log}")))
}

/// Runs an operation so many times in a process of its own; returns what callgrind says.
fn callgrind(index: usize, times: u64, to: &Path) -> io::Result<String> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--dump-line=no"])
        .arg(format!("--callgrind-out-file={}", to.display()))
        .arg(env::current_exe()?)
        .args(["--run", &index.to_string(), "--times", &times.to_string()])
        .output()?;
    Ok(String::from_utf8_lossy(&output.stderr).into_owned())
}
