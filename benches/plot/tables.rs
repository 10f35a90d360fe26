//! The tables of the page: each lies between a pair of marks and is written anew.

use std::fs;
use std::io::{self, Error};
use std::path::Path;
use std::process::Command;

use ropewalk_bench::report::size;
use serde_json::Value;

use super::{number, text};

pub(super) fn fill(
    page: &Path,
    [counts, ratios, instructions, thresholds, pool]: [&[Value]; 5],
) -> io::Result<()> {
    let mut text = fs::read_to_string(page)?;
    let tables = [
        ("machine", machine()?),
        ("bars", bars(counts, ratios, instructions)),
        ("cold", counted(counts, false)),
        ("warm", counted(counts, true)),
        ("instructions", executed(instructions)),
        ("thresholds", weighed(thresholds)),
        ("pool", operations(pool)),
    ];
    for (name, table) in tables {
        text = replace(&text, name, &table)?;
    }
    fs::write(page, text)
}

fn replace(page: &str, name: &str, table: &str) -> io::Result<String> {
    let (start, end) = (format!("<!-- {name} -->\n"), format!("<!-- end of {name} -->"));
    let parts = page.split_once(&start).and_then(|(before, rest)| Some((before, rest.split_once(&end)?.1)));
    let (before, after) = parts.ok_or_else(|| Error::other(format!("the page has no place for {name}")))?;
    Ok(format!("{before}{start}\n{table}\n{end}{after}"))
}

fn table(heading: &str, rows: impl Iterator<Item = String>) -> String {
    let rule = "|---".repeat(heading.matches('|').count() - 1) + "|";
    [heading.to_owned(), rule].into_iter().chain(rows).collect::<Vec<_>>().join("\n") + "\n"
}

/// What there is to say of the machine, without its name.
fn machine() -> io::Result<String> {
    let field = |file: &str, name: &str| -> io::Result<String> {
        let text = fs::read_to_string(file)?;
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        Ok(line.split_once(':').map_or("unknown", |(_, value)| value.trim()).to_owned())
    };
    let command = |name: &str, argument: &str| -> io::Result<String> {
        let output = Command::new(name).arg(argument).output()?.stdout;
        Ok(String::from_utf8_lossy(&output).trim().to_owned())
    };
    let cores = std::thread::available_parallelism()?;
    let processor = field("/proc/cpuinfo", "model name")?;
    let memory = field("/proc/meminfo", "MemTotal")?;
    let (kernel, compiler) = (command("uname", "-srm")?, command("rustc", "--version")?);
    // The choice is in brackets.
    let choices = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/shmem_enabled").unwrap_or_default();
    let huge = choices.split(['[', ']']).nth(1).unwrap_or("unknown");
    Ok(format!(
        "{processor}, {cores} cores, {memory} of memory; {kernel}, `shmem_enabled` {huge}; {compiler}.\n"
    ))
}

/// All that has something to reach.
fn bars(counts: &[Value], ratios: &[Value], instructions: &[Value]) -> String {
    let rows = measured(ratios).chain(counted_bars(counts)).chain(executed_bars(instructions));
    table("| what | figure | quartiles | bar | reached |", rows)
}

/// What the pool's operations cost.
fn operations(pool: &[Value]) -> String {
    let rows = pool.iter().map(|row| {
        let (figure, unit) = (number(row, "figure"), text(row, "unit"));
        let (bar, verdict) = bar(row).map_or((String::new(), ""), |(sign, bar)| {
            (format!("{sign} {bar}"), if row["met"] == true { "yes" } else { "**no**" })
        });
        format!("| {}: {} | {figure:.3} {unit} | {bar} | {verdict} |", text(row, "group"), text(row, "name"))
    });
    table("| operation | figure | bar | reached |", rows)
}

/// The sign and the figure of a row's bar, if it has one.
fn bar(row: &Value) -> Option<(&'static str, f64)> {
    [("AtLeast", "≥"), ("AtMost", "≤")]
        .into_iter()
        .find_map(|(name, sign)| Some((sign, row["bar"].get(name)?.as_f64()?)))
}

fn measured(ratios: &[Value]) -> impl Iterator<Item = String> {
    ratios.iter().filter_map(|row| {
        let (sign, bar) = bar(row)?;
        let (figure, unit) = (number(row, "figure"), text(row, "unit"));
        let verdict = if row["met"] == true { "yes" } else { "**no**" };
        let what = format!("{}: {}", place(row), text(row, "name"));
        let (low, high) = (number(row, "quartiles/0"), number(row, "quartiles/1"));
        let spread = if low.is_finite() { format!("{low:.2} – {high:.2}") } else { String::new() };
        Some(format!("| {what} | {figure:.2} {unit} | {spread} | {sign} {bar:.2} | {verdict} |"))
    })
}

/// What ropewalk may count, by payload.
fn counted_bars(counts: &[Value]) -> impl Iterator<Item = String> {
    counts.iter().filter(|row| row["variant"] == "ropewalk").flat_map(|row| {
        let (payload, warm) = (number(row, "payload"), row["warm"] == true);
        let most = |field: &str, what: &str, bar: f64| {
            let (figure, state) = (number(row, field), if warm { "warm" } else { "cold" });
            let verdict = if figure <= bar { "yes" } else { "**no**" };
            let payload = size(payload as u64);
            format!("| counts, {state}, {payload}: {what} | {figure:.0} | | ≤ {bar:.0} | {verdict} |")
        };
        let mut bars = vec![most("peak_bytes", "peak memory, bytes", payload * 1.01 + f64::from(2 << 20))];
        if warm && payload >= f64::from(16 << 20) {
            bars.push(most("page_faults", "page faults", 0.0));
            // The values themselves are moved, the payload is not.
            bars.push(most("copied_bytes", "bytes copied", 4096.0));
            bars.push(most("syscalls", "system calls", payload / f64::from(256 << 10) + 8.0));
        }
        if warm && payload == 64.0 {
            bars.push(most("allocations", "allocations", 1.0));
        }
        bars
    })
}

/// Instructions against every competitor that does the same.
fn executed_bars(instructions: &[Value]) -> impl Iterator<Item = String> {
    instructions.iter().filter_map(|row| {
        let (operation, variant) = (text(row, "operation"), text(row, "variant"));
        let bar = match operation {
            "append, advance" => 1.0,
            _ if operation.starts_with("receive") => 1.0 / 1.05,
            _ => return None,
        };
        let own =
            instructions.iter().find(|own| own["operation"] == operation && own["variant"] == "ropewalk")?;
        if variant.starts_with("ropewalk") {
            return None;
        }
        let figure = number(row, "instructions") / number(own, "instructions");
        let verdict = if figure >= bar { "yes" } else { "**no**" };
        Some(format!("| instructions, {operation}: {variant} | {figure:.2} x | | ≥ {bar:.2} | {verdict} |"))
    })
}

fn place(row: &Value) -> String {
    let (group, number) = (text(row, "group"), row["size"].as_u64().unwrap_or(0));
    if group == "many" { format!("{group}, {number}") } else { format!("{group}, {}", size(number)) }
}

fn counted(counts: &[Value], warm: bool) -> String {
    let heading = "| payload | | page faults | syscalls | allocations | copied, bytes | peak / payload |";
    let rows = counts.iter().filter(|row| row["warm"] == warm).map(|row| {
        let payload = number(row, "payload");
        format!(
            "| {} | {} | {} | {} | {} | {} | {:.3} |",
            size(payload as u64),
            text(row, "variant"),
            row["page_faults"],
            row["syscalls"],
            row["allocations"],
            row["copied_bytes"],
            number(row, "peak_bytes") / payload
        )
    });
    table(heading, rows)
}

fn executed(instructions: &[Value]) -> String {
    let rows = instructions.iter().map(|row| {
        format!(
            "| {} | {} | {:.0} |",
            text(row, "operation"),
            text(row, "variant"),
            number(row, "instructions")
        )
    });
    table("| operation | | instructions |", rows)
}

/// A table for each group: a row for each size, a column for each way.
fn weighed(thresholds: &[Value]) -> String {
    let groups = distinct(thresholds, |row| text(row, "group").to_owned());
    let tables = groups.iter().map(|group| {
        let rows: Vec<Value> = thresholds.iter().filter(|row| row["group"] == **group).cloned().collect();
        by_way(group, &rows)
    });
    tables.collect::<Vec<_>>().join("\n")
}

fn by_way(group: &str, rows: &[Value]) -> String {
    let way = |row: &Value| format!("{}, {}", text(row, "name"), text(row, "unit"));
    let ways = distinct(rows, way);
    let lines = distinct(rows, |row| text(row, "at").to_owned()).into_iter().map(|at| {
        let cells = ways.iter().map(|name| {
            let cell = rows.iter().find(|row| row["at"] == *at && way(row) == *name);
            cell.map_or(String::new(), |row| format!("{:.2}", number(row, "figure")))
        });
        format!("| {at} | {} |", cells.collect::<Vec<_>>().join(" | "))
    });
    table(&format!("| {group} | {} |", ways.join(" | ")), lines)
}

/// What `what` says of the rows, in their order, each only once.
fn distinct(rows: &[Value], what: impl Fn(&Value) -> String) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    for value in rows.iter().map(what) {
        if !all.contains(&value) {
            all.push(value);
        }
    }
    all
}
