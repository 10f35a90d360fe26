//! CPU time over the size of messages, a plot for each workload and allocator.

use std::fs;
use std::io;
use std::path::Path;

use chart::Chart;

use crate::report::Row;

#[path = "../../plot/chart.rs"]
mod chart;

/// The workloads whose cases differ by size, and which of their variants is drawn.
const DRAWN: [(&str, &str); 4] = [
    ("frames", "dropped at once"),
    ("uploads", "Content-Length"),
    ("downloads", "Content-Length"),
    ("tls", "length known"),
];

/// Ways that the tables have and the plots leave out, since more than five lines cannot be told apart. One allocates
/// for each frame the buffer that a drawn one reuses; the other finalises frames that are contiguous already.
const LEFT_OUT: [&str; 2] = ["BufReader + read_exact", "ropewalk, read_frame + finalize"];

/// Draws what there is.
pub(crate) fn draw(directory: &Path, rows: &[Row]) -> io::Result<()> {
    for (workload, variant) in DRAWN {
        let drawn = |row: &&Row| {
            row.workload == workload
                && row.variant == variant
                && row.connections == 1
                && !row.case.contains("mixed")
                && !LEFT_OUT.contains(&row.way)
        };
        let rows: Vec<&Row> = rows.iter().filter(drawn).collect();
        for allocator in ["glibc", "jemalloc", "mimalloc"] {
            let rows = rows.iter().filter(|row| row.allocator == allocator);
            let title =
                format!("{workload}, one connection, {variant}, {allocator}: CPU time; lower is better");
            let mut chart = Chart::new(title, "bytes of a message", "us per MiB");
            let points = rows.map(|row| chart.add(row.way, row.payload, row.cpu_us_per_mib.median)).count();
            if points > 0 {
                fs::write(directory.join(format!("{workload}-{allocator}.svg")), chart.draw())?;
            }
        }
    }
    Ok(())
}
