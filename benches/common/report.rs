//! Figures for people and for machines.

use std::env;

use serde::Serialize;

/// Sizes by the names that people give them: `64 B`, `4 KiB` ...
#[must_use]
pub fn size(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..0x10_0000 => format!("{} KiB", bytes >> 10),
        0x10_0000..0x4000_0000 => format!("{} MiB", bytes >> 20),
        _ => format!("{} GiB", bytes >> 30),
    }
}

/// Whether `flag` was given behind `--`.
#[must_use]
pub fn asked_for(flag: &str) -> bool {
    env::args().skip(1).any(|argument| argument == flag)
}

/// The word behind `flag`.
#[must_use]
pub fn value_of(flag: &str) -> Option<String> {
    env::args().skip_while(|argument| argument != flag).nth(1)
}

/// What a figure has to reach.
#[derive(Clone, Copy, Serialize)]
pub enum Bar {
    None,
    AtLeast(f64),
    AtMost(f64),
}

impl Bar {
    #[must_use]
    pub fn met(self, figure: f64) -> bool {
        match self {
            Bar::None => true,
            Bar::AtLeast(least) => figure >= least,
            Bar::AtMost(most) => figure <= most,
        }
    }

    /// The bar, and whether `figure` meets it; nothing if there is none.
    #[must_use]
    pub fn verdict(self, figure: f64) -> String {
        let met = if self.met(figure) { "met" } else { "MISSED" };
        match self {
            Bar::None => String::new(),
            Bar::AtLeast(least) => format!(">= {least:.2} {met}"),
            Bar::AtMost(most) => format!("<= {most:.2} {met}"),
        }
    }
}

/// Prints `rows` as one JSON array if `--json` was given; otherwise each with `line` as it comes.
pub struct Report<T> {
    json: bool,
    rows: Vec<T>,
    line: fn(&T) -> String,
}

impl<T: Serialize> Report<T> {
    /// `heading` is for people only.
    pub fn new(heading: &str, line: fn(&T) -> String) -> Report<T> {
        let json = asked_for("--json");
        if !json {
            println!("{heading}");
        }
        Report { json, rows: Vec::new(), line }
    }

    pub fn add(&mut self, row: T) {
        if !self.json {
            println!("{}", (self.line)(&row));
        }
        self.rows.push(row);
    }

    /// Ends the report.
    ///
    /// # Errors
    ///
    /// If a row cannot be put as JSON.
    pub fn end(self) -> serde_json::Result<()> {
        if self.json {
            println!("{}", serde_json::to_string_pretty(&self.rows)?);
        }
        Ok(())
    }
}
