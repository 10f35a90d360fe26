//! Starts the processes of each case, runs their rounds by turns, and gathers the rows of the tables.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::Args;

use crate::case::{Case, Scale};
use crate::measured::Purpose;
use crate::meter::{self, Used};
use crate::process::{Hello, Process};
use crate::report::{Report, Row, Samples};
use crate::traffic::Order;
use crate::workloads::{self, Workload};

/// The binaries, by the allocator that each has.
const ALLOCATORS: [&str; 3] = ["glibc", "jemalloc", "mimalloc"];

/// Time between two looks at the memory of a process.
const SAMPLE: Duration = Duration::from_millis(1);

/// The part of the available memory that the payloads of one case may take. Up to thirty processes of a
/// case are alive at once, and their allocators may keep what a round has used.
const PART_OF_MEMORY: u64 = 32;

/// The command line of the driver.
#[derive(Args)]
pub(crate) struct Options {
    /// Fewer cases, less traffic, fewer rounds: two minutes. Its figures show that all works, and no more.
    #[arg(long)]
    quick: bool,
    /// Only these workloads: frames, uploads, downloads, proxy, broadcast, tls, idle.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    only: Vec<String>,
    /// Only the cases whose names have this in them, such as "1 KiB, 1 connection, dropped".
    #[arg(long, value_name = "TEXT", default_value = "")]
    case: String,
    /// Only these allocators: glibc, jemalloc, mimalloc.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    allocators: Vec<String>,
    /// Timed rounds of each process.
    #[arg(long)]
    rounds: Option<usize>,
    /// Threads of the runtime of a measured process.
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Where workloads.json, workloads.md and the plots go.
    #[arg(long, value_name = "DIRECTORY", default_value = "target/workloads")]
    out: PathBuf,
}

/// Runs all that is asked for, and writes the report. Fails if a case failed, after all others have run.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let mut report = Report::new(options.quick, options.threads)?;
    let mut failed = 0;
    for workload in chosen(&options.only)? {
        for case in cases(workload, options, &mut report)? {
            eprintln!("{}: {case}", workload.name);
            match Contest::start(options, workload, &case).and_then(|contest| contest.run(options)) {
                Ok(rows) => report.add(rows),
                Err(error) => {
                    eprintln!("{}: {case}: FAILED: {error:#}", workload.name);
                    failed += 1;
                }
            }
            report.write(&options.out)?;
        }
    }
    println!("{}", report.summary());
    eprintln!("All figures are in {}.", options.out.display());
    ensure!(failed == 0, "{failed} cases failed");
    Ok(())
}

fn chosen(only: &[String]) -> anyhow::Result<Vec<&'static Workload>> {
    if only.is_empty() {
        return Ok(workloads::ALL.iter().collect());
    }
    only.iter().map(|name| workloads::named(name)).collect()
}

/// The cases that are asked for and whose payloads fit the memory.
fn cases(workload: &Workload, options: &Options, report: &mut Report) -> anyhow::Result<Vec<Case>> {
    let room = available_memory()? / PART_OF_MEMORY;
    let all = workload.cases(&Scale::new(options.quick)).into_iter();
    let (fit, too_large): (Vec<_>, Vec<_>) = all
        .filter(|case| case.to_string().contains(&options.case))
        .partition(|case| case.live() as u64 <= room);
    for case in too_large {
        let (needs, room) = (case.live() >> 20, room >> 20);
        let line = format!("{}: {case}: left out: up to {needs} MiB in use, more than {room}", workload.name);
        eprintln!("{line}");
        report.note(line);
    }
    Ok(fit)
}

fn available_memory() -> anyhow::Result<u64> {
    let memory = std::fs::read_to_string("/proc/meminfo")?;
    let line = memory.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().next()).context("no MemAvailable")?;
    Ok(kilobytes.parse::<u64>()? << 10)
}

/// All ways under all allocators, each in a process of its own, and the one that makes their traffic.
struct Contest {
    case: Case,
    traffic: Process,
    contenders: Vec<Contender>,
}

struct Contender {
    allocator: &'static str,
    way: &'static str,
    process: Process,
    hello: Hello,
    /// Bytes that the process held before its first round.
    base: u64,
    samples: Samples,
}

impl Contest {
    fn start(options: &Options, workload: &Workload, case: &Case) -> anyhow::Result<Contest> {
        let json = serde_json::to_string(case)?;
        let mut traffic = Process::start(&binary("glibc")?, &["traffic", "--case", &json])?;
        let peer: Hello = traffic.hear()?;
        let mut contenders = Vec::new();
        for allocator in allocators(&options.allocators)? {
            for way in workload.ways(case) {
                let (peer, threads) = (peer.address.to_string(), options.threads.to_string());
                let arguments =
                    ["measured", "--case", &json, "--way", way.name, "--peer", &peer, "--threads", &threads];
                let mut process = Process::start(&binary(allocator)?, &arguments)?;
                let hello = process.hear()?;
                let base = meter::held(process.id())?;
                let (way, samples) = (way.name, Samples::default());
                contenders.push(Contender { allocator, way, process, hello, base, samples });
            }
        }
        Ok(Contest { case: case.clone(), traffic, contenders })
    }

    /// A round in which every byte is compared, one that does not count, and then those that do.
    fn run(mut self, options: &Options) -> anyhow::Result<Vec<Row>> {
        let timed = options.rounds.unwrap_or(if options.quick { 3 } else { 9 });
        self.turn(Purpose::Verify, false)?;
        self.turn(Purpose::Time, true)?;
        self.contenders.iter_mut().for_each(|contender| contender.samples = Samples::default());
        for round in 0..timed {
            self.turn(Purpose::Time, round % 2 == 0)?;
        }
        self.turn(Purpose::Calls, false)?;
        for round in 0..if options.quick { 1 } else { 2 } {
            self.turn(Purpose::Memory, round % 2 == 0)?;
        }
        let rows = self.contenders.iter().map(|own| {
            let reference = self.contenders.iter().find(|other| other.allocator == own.allocator);
            let reference = &reference.unwrap_or(own).samples;
            Row::new(&self.case, own.allocator, own.way, own.base, &own.samples, reference)
        });
        Ok(rows.collect())
    }

    /// A round of every contender; there and back by turns, so that no contender always follows the same one.
    fn turn(&mut self, purpose: Purpose, backwards: bool) -> anyhow::Result<()> {
        let count = self.contenders.len();
        for at in 0..count {
            let contender = &mut self.contenders[if backwards { count - 1 - at } else { at }];
            let (way, allocator) = (contender.way, contender.allocator);
            contender.turn(&mut self.traffic, purpose).with_context(|| format!("{way} under {allocator}"))?;
        }
        Ok(())
    }
}

impl Contender {
    /// A timed round comes after one that is not: while the others had their turns this process's lines
    /// have left the caches, and pools and allocators have given back what was idle for too long.
    fn turn(&mut self, traffic: &mut Process, purpose: Purpose) -> anyhow::Result<()> {
        if purpose == Purpose::Time {
            self.round(traffic, purpose)?;
            self.samples.timed.pop();
        }
        self.round(traffic, purpose)
    }

    fn round(&mut self, traffic: &mut Process, purpose: Purpose) -> anyhow::Result<()> {
        self.process.tell(&purpose)?;
        traffic.tell(&Order { target: self.hello.clone(), verify: purpose == Purpose::Verify })?;
        let used: Used = match purpose {
            Purpose::Memory => {
                let (used, peak) = sampled(&mut self.process)?;
                self.samples.peak = self.samples.peak.max(peak);
                used
            }
            _ => self.process.hear()?,
        };
        traffic.hear::<()>()?;
        match purpose {
            Purpose::Time => self.samples.timed.push(used),
            Purpose::Calls => self.samples.calls = used.calls,
            Purpose::Verify | Purpose::Memory => {}
        }
        Ok(())
    }
}

/// Waits for the end of a round, and looks at the process's memory meanwhile.
fn sampled(process: &mut Process) -> anyhow::Result<(Used, u64)> {
    let (id, done) = (process.id(), AtomicBool::new(false));
    thread::scope(|scope| {
        let sampler = scope.spawn(|| {
            let mut peak = 0;
            loop {
                let last = done.load(Ordering::Relaxed);
                peak = peak.max(meter::held(id).unwrap_or(0)); // the process may have died
                if last {
                    return peak;
                }
                thread::sleep(SAMPLE);
            }
        });
        let used = process.hear();
        done.store(true, Ordering::Relaxed);
        let peak = sampler.join().map_err(|_| anyhow::anyhow!("the sampler panicked"))?;
        Ok((used?, peak))
    })
}

/// Those that were asked for and built.
fn allocators(only: &[String]) -> anyhow::Result<Vec<&'static str>> {
    let asked = |name: &str| only.is_empty() || only.iter().any(|asked| asked == name);
    let found =
        ALLOCATORS.into_iter().filter(|name| asked(name) && binary(name).is_ok_and(|path| path.exists()));
    let found: Vec<_> = found.collect();
    ensure!(!found.is_empty(), "there is no binary for any of these allocators: {only:?}");
    Ok(found)
}

/// The binary of an allocator, beside this one.
fn binary(allocator: &str) -> anyhow::Result<PathBuf> {
    let this = std::env::current_exe()?;
    Ok(this.parent().unwrap_or(Path::new("")).join(allocator))
}
