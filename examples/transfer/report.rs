//! The figures of a comparison, as a table or as JSON.

use std::io::{self, Write};
use std::time::Duration;

use bytesize::ByteSize;
use serde::Serialize;

use crate::variant::Receipt;

#[derive(Serialize)]
pub(crate) struct Figures {
    pub(crate) bytes: u64,
    /// Whether every round was.
    pub(crate) verified: bool,
    pub(crate) rounds: Vec<Round>,
}

/// One payload received by one variant.
#[derive(Serialize)]
pub(crate) struct Round {
    pub(crate) variant: &'static str,
    pub(crate) round: u32,
    pub(crate) bytes: u64,
    pub(crate) verified: bool,
    ms: f64,
    gb_per_s: f64,
    cpu_ms: f64,
    syscalls: u64,
    send_syscalls: u64,
    page_faults: u64,
    page_faults_to_read: u64,
    copied_bytes: u64,
    peak_ratio: f64,
}

impl Round {
    pub(crate) fn new(
        variant: &'static str,
        round: u32,
        of: &Receipt,
        send_calls: u64,
        verified: bool,
    ) -> Round {
        Round {
            variant,
            round,
            bytes: of.bytes,
            verified,
            ms: millis(of.wall),
            gb_per_s: of.bytes as f64 / 1e9 / of.wall.as_secs_f64(),
            cpu_ms: millis(of.cpu),
            syscalls: of.calls,
            send_syscalls: send_calls,
            page_faults: of.faults,
            page_faults_to_read: of.faults_to_read,
            copied_bytes: of.copied,
            peak_ratio: of.peak as f64 / of.bytes as f64,
        }
    }
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

impl Figures {
    pub(crate) fn new(bytes: u64, rounds: Vec<Round>) -> Figures {
        Figures { bytes, verified: rounds.iter().all(|round| round.verified), rounds }
    }

    pub(crate) fn print_json(&self) -> anyhow::Result<()> {
        Ok(writeln!(io::stdout(), "{}", serde_json::to_string(self)?)?)
    }

    pub(crate) fn print_table(&self) -> io::Result<()> {
        let mut out = io::stdout().lock();
        let size = ByteSize(self.bytes).display().iec();
        writeln!(out, "{size} in each round; how it is measured: transfer --help\n")?;
        writeln!(out, "{}", row(COLUMNS.map(|(title, _width)| title.to_owned())))?;
        self.rounds.iter().try_for_each(|round| writeln!(out, "{}", row(round.cells())))
    }
}

const COLUMNS: [(&str, usize); 13] = [
    ("variant", 11),
    ("round", 5),
    ("bytes", 11),
    ("ms", 8),
    ("GB/s", 5),
    ("cpu ms", 8),
    ("recv calls", 10),
    ("send calls", 10),
    ("faults", 8),
    ("to read", 8),
    ("copied", 11),
    ("peak", 5),
    ("checksum", 8),
];

impl Round {
    fn cells(&self) -> [String; COLUMNS.len()] {
        [
            self.variant.to_owned(),
            self.round.to_string(),
            self.bytes.to_string(),
            format!("{:.1}", self.ms),
            format!("{:.2}", self.gb_per_s),
            format!("{:.1}", self.cpu_ms),
            self.syscalls.to_string(),
            self.send_syscalls.to_string(),
            self.page_faults.to_string(),
            self.page_faults_to_read.to_string(),
            self.copied_bytes.to_string(),
            format!("{:.2}", self.peak_ratio),
            if self.verified { "same" } else { "DIFFERS" }.to_owned(),
        ]
    }
}

fn row(cells: [String; COLUMNS.len()]) -> String {
    let padded = cells.iter().zip(COLUMNS).map(|(cell, (_title, width))| format!("{cell:>width$}"));
    padded.collect::<Vec<_>>().join("  ")
}
