//! What the rounds have shown, as JSON, as Markdown and as plots.

use std::fs;
use std::path::Path;

use anyhow::Context;
use serde::Serialize;

use crate::case::Case;
use crate::meter::{self, Used};
use crate::plots;
use crate::workloads;

/// What was seen of one process.
#[derive(Default)]
pub(crate) struct Samples {
    /// By round.
    pub(crate) timed: Vec<Used>,
    /// System calls of one round.
    pub(crate) calls: Option<u64>,
    /// The most bytes that it held.
    pub(crate) peak: u64,
}

/// One way under one allocator, with one case.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) workload: String,
    pub(crate) case: String,
    /// Mean bytes of a message.
    pub(crate) payload: f64,
    pub(crate) connections: usize,
    pub(crate) variant: String,
    pub(crate) allocator: &'static str,
    pub(crate) way: &'static str,
    /// In one round.
    pub(crate) messages: usize,
    pub(crate) bytes: usize,
    pub(crate) cpu_us_per_message: Spread,
    pub(crate) cpu_us_per_mib: Spread,
    /// CPU time divided by that of ropewalk under the same allocator in the same round.
    pub(crate) times_ropewalk: Spread,
    pub(crate) faults_per_message: Spread,
    pub(crate) calls_per_message: Option<f64>,
    /// Bytes that the process held before its first round.
    pub(crate) base: u64,
    /// The most bytes that it held.
    pub(crate) peak: u64,
    /// The most bytes of payload that can be in use at a moment.
    pub(crate) live: usize,
}

/// A median and its quartiles.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
}

impl Spread {
    fn of(values: impl Iterator<Item = f64>) -> Spread {
        let mut sorted: Vec<f64> = values.collect();
        sorted.sort_by(f64::total_cmp);
        let at = |part: f64| quantile(&sorted, part);
        Spread { median: at(0.5), low: at(0.25), high: at(0.75) }
    }

    fn scaled(self, by: f64) -> Spread {
        Spread { median: self.median * by, low: self.low * by, high: self.high * by }
    }
}

/// Between the two values next to it.
fn quantile(sorted: &[f64], part: f64) -> f64 {
    let at = part * sorted.len().saturating_sub(1) as f64;
    match (sorted.get(at.floor() as usize), sorted.get(at.ceil() as usize)) {
        (Some(low), Some(high)) => low + (high - low) * at.fract(),
        _ => f64::NAN,
    }
}

impl Row {
    pub(crate) fn new(
        case: &Case,
        allocator: &'static str,
        way: &'static str,
        base: u64,
        own: &Samples,
        reference: &Samples,
    ) -> Row {
        let (messages, bytes) = (case.connections * case.messages, case.bytes());
        let each = 1.0 / messages as f64;
        let cpu = Spread::of(own.timed.iter().map(|used| used.cpu.as_secs_f64() * 1e6));
        let ratio = |(own, other): (&Used, &Used)| own.cpu.as_secs_f64() / other.cpu.as_secs_f64();
        Row {
            workload: case.workload.clone(),
            case: case.to_string(),
            payload: bytes as f64 * each,
            connections: case.connections,
            variant: case.variant.to_string(),
            allocator,
            way,
            messages,
            bytes,
            cpu_us_per_message: cpu.scaled(each),
            cpu_us_per_mib: cpu.scaled(f64::from(1 << 20) / bytes as f64),
            times_ropewalk: Spread::of(own.timed.iter().zip(&reference.timed).map(ratio)),
            faults_per_message: Spread::of(own.timed.iter().map(|used| used.faults as f64 * each)),
            calls_per_message: own.calls.map(|calls| calls as f64 * each),
            base,
            peak: own.peak,
            live: case.live(),
        }
    }
}

/// All rows, and what has to be known to read them.
#[derive(Serialize)]
pub(crate) struct Report {
    machine: String,
    quick: bool,
    threads: usize,
    /// What was left out, and what could not be counted.
    notes: Vec<String>,
    rows: Vec<Row>,
}

impl Report {
    pub(crate) fn new(quick: bool, threads: usize) -> anyhow::Result<Report> {
        let mut report = Report { machine: machine()?, quick, threads, notes: Vec::new(), rows: Vec::new() };
        if !meter::can_count_calls() {
            report.note("System calls are not counted: that takes root, or CAP_PERFMON and tracefs.".into());
        }
        Ok(report)
    }

    pub(crate) fn add(&mut self, rows: Vec<Row>) {
        self.rows.extend(rows);
    }

    pub(crate) fn note(&mut self, line: String) {
        self.notes.push(line);
    }

    /// Writes all there is so far.
    pub(crate) fn write(&self, directory: &Path) -> anyhow::Result<()> {
        fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
        fs::write(directory.join("workloads.json"), serde_json::to_string_pretty(self)?)?;
        fs::write(directory.join("workloads.md"), self.summary() + "\n" + &self.details())?;
        Ok(plots::draw(directory, &self.rows)?)
    }

    /// A table of CPU time and one of memory for each workload.
    pub(crate) fn summary(&self) -> String {
        let quick = if self.quick { " These are figures of `--quick`, which prove nothing." } else { "" };
        let mut text = format!("{}, {} runtime thread(s).{quick}\n", self.machine, self.threads);
        self.notes.iter().for_each(|note| text += &format!("\n* {note}"));
        for (workload, rows) in self.by_workload() {
            let allocators = distinct(&rows, |row| row.allocator).join(" / ");
            text += &format!("\n## {}\n\n", workload.title);
            text += &format!(
                "CPU time of a message with ropewalk in microseconds, and how many times that the others take; \
                 under {allocators}:\n\n"
            );
            text += &matrix(
                &rows,
                |row| row.case.clone(),
                |row| match row.way == rows[0].way {
                    true => figure(row.cpu_us_per_message.median),
                    false => format!("{:.2}x", row.times_ropewalk.median),
                },
            );
            text += &format!(
                "\nPeak of resident memory in MiB, under {allocators}, and the most payload in use at a moment:\n\n"
            );
            text += &matrix(&rows, with_payload, |row| mebibytes(row.peak));
            text += &format!("\nSystem calls of a message, under {allocators}:\n\n");
            text += &matrix(&rows, |row| row.case.clone(), calls);
        }
        text
    }

    /// Every figure of every row.
    fn details(&self) -> String {
        let mut text = "## Every figure\n\nMedians, with quartiles in parentheses.\n".to_owned();
        for (workload, rows) in self.by_workload() {
            for case in distinct(&rows, |row| row.case.as_str()) {
                let rows: Vec<&Row> = rows.iter().copied().filter(|row| row.case == case).collect();
                text += &format!("\n### {}: {case}\n\n", workload.title);
                text += &format!(
                    "At most {} MiB of payload in use at a moment; {} messages a round.\n\n",
                    mebibytes(rows[0].live as u64),
                    rows[0].messages
                );
                text += &table(&HEADINGS.map(str::to_owned), rows.iter().map(|row| detail(row)));
            }
        }
        text
    }

    fn by_workload(&self) -> impl Iterator<Item = (&'static workloads::Workload, Vec<&Row>)> {
        workloads::ALL.iter().filter_map(|workload| {
            let rows: Vec<&Row> = self.rows.iter().filter(|row| row.workload == workload.name).collect();
            (!rows.is_empty()).then_some((workload, rows))
        })
    }
}

const HEADINGS: [&str; 8] = [
    "way",
    "allocator",
    "CPU, us/message",
    "CPU, us/MiB",
    "times ropewalk",
    "peak, MiB",
    "calls/message",
    "faults/message",
];

fn detail(row: &Row) -> Vec<String> {
    vec![
        row.way.to_owned(),
        row.allocator.to_owned(),
        spread(row.cpu_us_per_message),
        spread(row.cpu_us_per_mib),
        spread(row.times_ropewalk),
        mebibytes(row.peak),
        calls(row),
        figure(row.faults_per_message.median),
    ]
}

fn calls(row: &Row) -> String {
    row.calls_per_message.map_or_else(|| "-".to_owned(), figure)
}

fn with_payload(row: &Row) -> String {
    format!("{}: {}", row.case, mebibytes(row.live as u64))
}

/// A line for each case, which `name` names, a column for each way, the allocators side by side in a cell.
fn matrix(rows: &[&Row], name: impl Fn(&Row) -> String, cell: impl Fn(&Row) -> String) -> String {
    let ways = distinct(rows, |row| row.way);
    let lines = distinct(rows, |row| name(row)).into_iter().map(|case| {
        let cells = ways.iter().map(|&way| {
            let cells = rows.iter().filter(|row| name(row) == case && row.way == way).map(|row| cell(row));
            cells.collect::<Vec<_>>().join(" / ")
        });
        [case.clone()].into_iter().chain(cells).collect()
    });
    let headings: Vec<String> =
        ["".to_owned()].into_iter().chain(ways.iter().map(|&way| way.to_owned())).collect();
    table(&headings, lines)
}

fn table(headings: &[String], lines: impl Iterator<Item = Vec<String>>) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let mut text = line(headings) + &"|---".repeat(headings.len()) + "|\n";
    lines.for_each(|cells| text += &line(&cells));
    text
}

fn distinct<'a, T: PartialEq>(rows: &[&'a Row], what: impl Fn(&'a Row) -> T) -> Vec<T> {
    let mut all = Vec::new();
    for value in rows.iter().map(|row| what(row)) {
        if !all.contains(&value) {
            all.push(value);
        }
    }
    all
}

fn spread(of: Spread) -> String {
    format!("{} ({} – {})", figure(of.median), figure(of.low), figure(of.high))
}

/// Three digits that count.
fn figure(value: f64) -> String {
    let digits = if value < 1.0 {
        3
    } else if value < 10.0 {
        2
    } else {
        usize::from(value < 100.0)
    };
    format!("{value:.digits$}")
}

fn mebibytes(bytes: u64) -> String {
    figure(bytes as f64 / f64::from(1 << 20))
}

fn machine() -> anyhow::Result<String> {
    let processors = fs::read_to_string("/proc/cpuinfo")?;
    let field = |name: &str| processors.lines().find(|line| line.starts_with(name))?.split(": ").nth(1);
    let model = field("model name").unwrap_or("unknown processor").to_owned();
    let cores = std::thread::available_parallelism()?;
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    Ok(format!("{model}, {cores} cores; Linux {}", kernel.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quartiles_lie_between_values() {
        let spread = Spread::of([4.0, 1.0, 3.0, 2.0].into_iter());
        assert_eq!((spread.low, spread.median, spread.high), (1.75, 2.5, 3.25));
        assert_eq!(Spread::of([7.0].into_iter()).high, 7.0);
        assert!(Spread::of(std::iter::empty()).median.is_nan());
    }
}
