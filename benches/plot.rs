//! Draws the plots of `docs/benchmarks/` and fills the tables of `docs/benchmarks.md`, from the JSON
//! that the benches print.
//!
//! ```text
//! cargo bench --bench plot
//! ```

use std::fs;
use std::io;
use std::path::Path;

use chart::Chart;
use serde_json::Value;

#[path = "plot/chart.rs"]
mod chart;
#[path = "plot/tables.rs"]
mod tables;

fn main() -> io::Result<()> {
    let docs = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs"));
    let data = &docs.join("benchmarks");
    let read = |name| rows(data, name);
    let (counts, ratios) = (read("counts")?, read("ratios")?);
    let (instructions, thresholds, pool) = (read("instructions")?, read("thresholds")?, read("pool")?);
    for (name, chart) in charts(&counts, &ratios) {
        fs::write(data.join(name).with_extension("svg"), chart.draw())?;
    }
    tables::fill(&docs.join("benchmarks.md"), [&counts, &ratios, &instructions, &thresholds, &pool])
}

/// What a bench printed; nothing if it had nothing to count with.
fn rows(data: &Path, name: &str) -> io::Result<Vec<Value>> {
    let text = fs::read_to_string(data.join(name).with_extension("json"))?;
    if text.trim().is_empty() { Ok(Vec::new()) } else { Ok(serde_json::from_str(&text)?) }
}

/// The ways that are drawn, of all in the tables: five, since more cannot be told apart.
const RECEIVING: [&str; 5] = ["ropewalk", "Vec, known size", "Vec, read_to_end", "BytesMut", "list + concat"];
const SENDING: [&str; 5] =
    ["ropewalk", "writev by hand", "buf-list, write_all_buf", "linkedbytes, write_all_vectored", "send each"];

fn charts(counts: &[Value], ratios: &[Value]) -> Vec<(&'static str, Chart)> {
    vec![
        ("receive", receive(ratios)),
        ("finalize", finalize(ratios)),
        ("send", send(ratios)),
        ("memory", memory(counts)),
        ("segments", segments(ratios)),
        ("connections", connections(ratios)),
    ]
}

fn receive(ratios: &[Value]) -> Chart {
    let title = "Receive and make contiguous, warm: CPU time as a multiple of ropewalk's; lower is better";
    let mut chart = Chart::new(title, "payload, bytes", "times");
    for row in of_groups(ratios, &["receive, small", "receive, warm"]) {
        if RECEIVING.contains(&text(row, "name")) && number(row, "quartiles/0").is_finite() {
            chart.add(text(row, "name"), number(row, "size"), number(row, "figure"));
        }
    }
    chart
}

fn send(ratios: &[Value]) -> Chart {
    let title = "Send: CPU time as a multiple of ropewalk's; lower is better";
    let mut chart = Chart::new(title, "bytes per segment", "times");
    for row in of_groups(ratios, &["send, by segment"]).filter(|row| SENDING.contains(&text(row, "name"))) {
        chart.add(text(row, "name"), number(row, "size"), number(row, "figure"));
    }
    chart
}

fn finalize(ratios: &[Value]) -> Chart {
    let mut chart = Chart::new("Finalise: CPU time; lower is better", "payload, bytes", "ms");
    for row in of_groups(ratios, &["finalize"]).filter(|row| !coincides(text(row, "name"))) {
        let size = number(row, "size");
        match text(row, "unit") {
            "us" => chart.add(text(row, "name"), size, number(row, "figure") / 1e3),
            "x" if text(row, "name").starts_with("2 MiB") => {
                chart.add(text(row, "name"), size, number(row, "seconds") * 1e3);
            }
            _ => {}
        }
    }
    chart
}

/// Whether the line would hide another: reading the result of a join adds little to it.
fn coincides(name: &str) -> bool {
    name.ends_with("join, read")
}

fn memory(counts: &[Value]) -> Chart {
    let title = "Peak memory of a process's first payload, as a multiple of it; lower is better";
    let mut chart = Chart::new(title, "payload, bytes", "times");
    let cold = counts.iter().filter(|row| row["warm"] == false && number(row, "payload") >= 65536.0);
    // `BytesMut` grows as `read_to_end` does, so that line would hide the other.
    let drawn = |name| RECEIVING.contains(&name) && name != "BytesMut";
    for row in cold.filter(|row| drawn(text(row, "variant"))) {
        chart.add(
            text(row, "variant"),
            number(row, "payload"),
            number(row, "peak_bytes") / number(row, "payload"),
        );
    }
    chart
}

/// The same 256 MiB in more and more segments.
fn segments(ratios: &[Value]) -> Chart {
    const PAYLOAD: u64 = 256 << 20;
    let mut chart = Chart::new("Finalise 256 MiB: CPU time; lower is better", "segments", "ms");
    for row in of_groups(ratios, &["finalize"]).filter(|row| row["size"] == PAYLOAD) {
        if let Some((extent, what)) = text(row, "name").split_once(": ").filter(|(_, what)| !coincides(what))
        {
            let number_of = PAYLOAD as f64 / bytes(extent);
            chart.add(what, number_of, number(row, "seconds") * 1e3);
        }
    }
    chart
}

fn connections(ratios: &[Value]) -> Chart {
    let title = "16 MiB on each of many connections, interleaved, warm: CPU time; lower is better";
    let mut chart = Chart::new(title, "connections", "ms for each");
    for row in of_groups(ratios, &["many"]) {
        if let Some(name) = text(row, "name").strip_prefix("connections, CPU of each: ") {
            chart.add(name, number(row, "size"), number(row, "figure"));
        }
    }
    chart
}

fn of_groups<'a>(rows: &'a [Value], groups: &'a [&str]) -> impl Iterator<Item = &'a Value> {
    rows.iter().filter(move |row| groups.contains(&text(row, "group")))
}

fn text<'a>(row: &'a Value, field: &str) -> &'a str {
    row[field].as_str().unwrap_or_default()
}

/// The number at a path of fields; none is NaN.
fn number(row: &Value, path: &str) -> f64 {
    row.pointer(&format!("/{path}")).and_then(Value::as_f64).unwrap_or(f64::NAN)
}

/// Reads `64 KiB` or `2 MiB`.
fn bytes(size: &str) -> f64 {
    let (count, unit) = size.split_once(' ').unwrap_or((size, ""));
    let unit = if unit == "MiB" { 1 << 20 } else { 1 << 10 };
    count.parse::<f64>().unwrap_or(f64::NAN) * f64::from(unit)
}
