//! Ratios of CPU time, measured in turn inside one run.
//!
//! ```text
//! cargo bench --bench ratios                        all tables
//! cargo bench --bench ratios -- --only send         one: receive huge small cold finalize send many
//! cargo bench --bench ratios -- --json --quick      for machines; fewer rounds, nothing above 256 MiB
//! ```
//!
//! A figure is how many times ropewalk's CPU time the other one takes: above 1, ropewalk is ahead.
//! What is timed is the thread that receives or sends (`CLOCK_THREAD_CPUTIME_ID`); the other end of the
//! connection is another thread. Round by round each variant has its turn; a round gives one ratio, and
//! the median of those is shown, with the quartiles.

use std::io;

use ropewalk_bench::measure::{Contender, Timing, in_turn};
use ropewalk_bench::report::{self, Bar, Report};
use serde::Serialize;

#[path = "ratios/cold.rs"]
mod cold;
#[path = "ratios/finalize.rs"]
mod finalize;
#[path = "ratios/many.rs"]
mod many;
#[path = "ratios/receive.rs"]
mod receive;
#[path = "ratios/send.rs"]
mod send;

fn main() -> io::Result<()> {
    if let Some(name) = report::value_of("--cold") {
        return cold::receiver(&name);
    }
    let mut tables = Tables {
        quick: report::asked_for("--quick"),
        report: Report::new("group                  size      what                          figure", line),
    };
    let only = report::value_of("--only");
    let all: [(&str, Table); 7] = [
        ("receive", receive::large),
        ("huge", receive::huge),
        ("small", receive::small),
        ("cold", cold::table),
        ("finalize", finalize::table),
        ("send", send::table),
        ("many", many::table),
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
    /// Bytes of the payload, or of a segment where the group says so; connections or threads in `many`.
    size: usize,
    name: String,
    figure: f64,
    unit: &'static str,
    quartiles: Option<(f64, f64)>,
    seconds: Option<f64>,
    bar: Bar,
    met: bool,
}

struct Tables {
    quick: bool,
    report: Report<Row>,
}

impl Tables {
    /// How often to measure.
    fn rounds(&self, rounds: usize) -> usize {
        if self.quick { rounds.div_ceil(4).max(3) } else { rounds }
    }

    /// Measures in turn those that are near each other, in many rounds, and then those that are far, in few:
    /// ropewalk comes first in both and is a row once.
    fn near_and_far(
        &mut self,
        group: &'static str,
        size: usize,
        [(mut near, many), (mut far, few)]: [(Vec<Contender<'_>>, usize); 2],
        bar: impl Fn(&str) -> Bar,
    ) {
        let timings = in_turn(&mut near, self.rounds(many));
        // It may hold as much memory as all that come next.
        drop(near);
        self.compare(group, size, &timings, &bar);
        let timings = in_turn(&mut far, self.rounds(few));
        self.compare(group, size, &timings[1..], bar);
    }

    /// Adds what was measured in turn, ropewalk first; `bar` tells by the name what has to be reached.
    fn compare(&mut self, group: &'static str, size: usize, timings: &[Timing], bar: impl Fn(&str) -> Bar) {
        for timing in timings {
            let bar = bar(&timing.name);
            self.report.add(Row {
                group,
                size,
                name: timing.name.clone(),
                figure: timing.ratio,
                unit: "x",
                quartiles: Some(timing.quartiles),
                seconds: Some(timing.seconds),
                bar,
                met: bar.met(timing.ratio),
            });
        }
    }

    /// Adds a figure that is no ratio of times.
    fn figure(
        &mut self,
        group: &'static str,
        size: usize,
        name: &str,
        (figure, unit): (f64, &'static str),
        bar: Bar,
    ) {
        let (quartiles, seconds, met) = (None, None, bar.met(figure));
        self.report.add(Row {
            group,
            size,
            name: name.to_owned(),
            figure,
            unit,
            quartiles,
            seconds,
            bar,
            met,
        });
    }
}

fn line(row: &Row) -> String {
    let spread = row.quartiles.map(|(low, high)| format!("{low:.2} .. {high:.2}")).unwrap_or_default();
    let time = row.seconds.map(|seconds| format!("{:.3} ms", seconds * 1e3)).unwrap_or_default();
    let verdict = row.bar.verdict(row.figure);
    let size = if row.group == "many" { row.size.to_string() } else { report::size(row.size as u64) };
    let figure = format!("{:.3} {}", row.figure, row.unit);
    format!("{:22} {size:9} {:32} {figure:>14}  {spread:>16} {time:>13}  {verdict}", row.group, row.name)
}
