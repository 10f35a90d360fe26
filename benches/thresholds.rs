//! What the crate's constants weigh: the ways between which each of them decides, over a range of sizes.
//!
//! ```text
//! cargo bench --bench thresholds                     all tables, in less than a minute
//! cargo bench --bench thresholds -- --only map       one: read commit map run stitch piece gather calls decay growth handover
//! cargo bench --bench thresholds -- --json --quick   for machines; fewer rounds
//! ```
//!
//! A figure is the CPU time of the thread that does it (`CLOCK_THREAD_CPUTIME_ID`), the median over rounds
//! in which each way had its turn. Figures of one table compare; machines do not. The ways are tried outside
//! the crate, so that its constants rule out no size.

use std::io;

use ropewalk_bench::measure::{Contender, in_turn};
use ropewalk_bench::report::{self, Report, size};
use serde::Serialize;

#[path = "thresholds/calls.rs"]
mod calls;
#[path = "thresholds/cold.rs"]
mod cold;
#[path = "thresholds/growth.rs"]
mod growth;
#[path = "thresholds/handover.rs"]
mod handover;
#[path = "thresholds/memory.rs"]
mod memory;
#[path = "thresholds/pieces.rs"]
mod pieces;
#[path = "thresholds/views.rs"]
mod views;

fn main() -> io::Result<()> {
    let mut tables = Tables {
        quick: report::asked_for("--quick"),
        report: Report::new("group      at            way                                  figure", line),
    };
    let only = report::value_of("--only");
    let all: [(&str, Table); 11] = [
        ("read", calls::read),
        ("commit", cold::commit),
        ("map", views::map),
        ("run", views::run),
        ("stitch", views::stitch),
        ("piece", pieces::table),
        ("gather", calls::gather),
        ("calls", calls::offered),
        ("decay", cold::decay),
        ("growth", growth::table),
        ("handover", handover::table),
    ];
    for (name, table) in all {
        if only.as_deref().is_none_or(|only| only == name) {
            table(&mut tables)?;
        }
    }
    Ok(tables.report.end()?)
}

type Table = fn(&mut Tables) -> io::Result<()>;

#[derive(Serialize)]
struct Row {
    group: &'static str,
    /// The size that is varied.
    at: String,
    name: String,
    figure: f64,
    unit: &'static str,
    /// The median of the ratios to the first way that had its turn in the same rounds, and their quartiles.
    ratio: Option<f64>,
    quartiles: Option<(f64, f64)>,
}

/// What a figure counts: its name, and how many of it a second per `bytes` or per time are.
#[derive(Clone, Copy)]
struct Unit(&'static str, f64);

impl Unit {
    /// Microseconds.
    const MICROS: Unit = Unit("us", 1e6);

    /// Microseconds for each of so many.
    fn each(count: usize) -> Unit {
        Unit("us each", 1e6 / count as f64)
    }

    /// Microseconds per MiB of `bytes`.
    fn per_mib(bytes: usize) -> Unit {
        Unit("us/MiB", 1e6 * f64::from(1 << 20) / bytes as f64)
    }
}

/// One way at one size: one round of it, in seconds.
struct Trial<'a> {
    at: String,
    way: &'static str,
    round: Box<dyn FnMut() -> f64 + 'a>,
}

impl<'a> Trial<'a> {
    fn new(bytes: usize, way: &'static str, round: impl FnMut() -> f64 + 'a) -> Trial<'a> {
        Trial { at: size(bytes as u64), way, round: Box::new(round) }
    }
}

struct Tables {
    quick: bool,
    report: Report<Row>,
}

impl Tables {
    /// Measures `trials` in turn; returns their seconds.
    fn weigh(&mut self, group: &'static str, unit: Unit, rounds: usize, trials: Vec<Trial<'_>>) -> Vec<f64> {
        let rounds = if self.quick { rounds.div_ceil(4).max(3) } else { rounds };
        let (places, mut contenders): (Vec<String>, Vec<Contender<'_>>) =
            trials.into_iter().map(|trial| (trial.at, (trial.way.to_owned(), trial.round))).unzip();
        let timings = in_turn(&mut contenders, rounds);
        let seconds = timings.iter().map(|timing| timing.seconds).collect();
        for (at, timing) in places.into_iter().zip(timings) {
            self.report.add(Row {
                group,
                at,
                name: timing.name,
                figure: timing.seconds * unit.1,
                unit: unit.0,
                ratio: Some(timing.ratio),
                quartiles: Some(timing.quartiles),
            });
        }
        seconds
    }

    /// Adds a figure that is no time.
    fn figure(&mut self, group: &'static str, at: String, name: &str, (figure, unit): (f64, &'static str)) {
        self.report.add(Row { group, at, name: name.to_owned(), figure, unit, ratio: None, quartiles: None });
    }
}

/// `least`, twice that and so on, `most` included.
fn doubling(least: usize, most: usize) -> impl Iterator<Item = usize> {
    std::iter::successors(Some(least), |size| Some(size * 2)).take_while(move |&size| size <= most)
}

fn line(row: &Row) -> String {
    let figure = format!("{:.2} {}", row.figure, row.unit);
    let ratio = match (row.ratio, row.quartiles) {
        (Some(ratio), Some((low, high))) => format!("x{ratio:.2} ({low:.2} .. {high:.2})"),
        _ => String::new(),
    };
    format!("{:10} {:13} {:28} {figure:>16}   {ratio}", row.group, row.at, row.name)
}
