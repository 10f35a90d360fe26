//! What server and worker use, from procfs and their CPU clocks.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::Context;
use nix::time::{ClockId, clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;

/// Between two looks at the memory.
const PERIOD: Duration = Duration::from_millis(5);

/// What the uploads cost.
pub(crate) struct Cost {
    pub(crate) server: Duration,
    pub(crate) worker: Duration,
    /// Most bytes of memory that both had together.
    pub(crate) peak: u64,
}

/// Samples the memory of a server and its worker.
pub(crate) struct Meter {
    processes: [u32; 2],
    before: [Duration; 2],
    ended: Arc<AtomicBool>,
    sampler: JoinHandle<u64>,
}

impl Meter {
    pub(crate) fn start(server: u32) -> anyhow::Result<Meter> {
        let children = fs::read_to_string(format!("/proc/{server}/task/{server}/children"))?;
        let worker = children.split_whitespace().next().context("the server has no worker")?.parse()?;
        let processes = [server, worker];
        let ended = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&ended);
        let sampler = thread::Builder::new().spawn(move || {
            let mut peak = 0;
            while !until.load(Ordering::Relaxed) {
                peak = peak.max(memory(&processes));
                thread::sleep(PERIOD);
            }
            peak
        })?;
        Ok(Meter { processes, before: [cpu(server)?, cpu(worker)?], ended, sampler })
    }

    pub(crate) fn stop(self) -> anyhow::Result<Cost> {
        let [server, worker] = self.processes;
        let (server, worker) = (cpu(server)? - self.before[0], cpu(worker)? - self.before[1]);
        self.ended.store(true, Ordering::Relaxed);
        let peak = self.sampler.join().expect("the sampler does not panic");
        Ok(Cost { server, worker, peak })
    }
}

/// CPU time of this thread so far.
pub(crate) fn thread_cpu() -> nix::Result<Duration> {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map(Duration::from)
}

/// CPU time of a process so far.
fn cpu(process: u32) -> anyhow::Result<Duration> {
    let clock: ClockId = clock_getcpuclockid(Pid::from_raw(i32::try_from(process)?))?;
    Ok(clock_gettime(clock)?.into())
}

/// Bytes of physical memory of these processes together: their private pages, and all pages of their memfds, mapped or
/// not, each once.
fn memory(processes: &[u32]) -> u64 {
    let private: u64 = processes.iter().filter_map(|&process| private(process)).sum();
    let memfds: HashMap<u64, u64> = processes.iter().flat_map(|&process| memfds(process)).collect();
    private + memfds.values().sum::<u64>()
}

fn private(process: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    amount(&status, "RssAnon:")
}

/// Memfds of a process: inode, and bytes of memory.
fn memfds(process: u32) -> Vec<(u64, u64)> {
    let of_memfd = |path| {
        let is_memfd = fs::read_link(&path).ok()?.to_string_lossy().starts_with("/memfd:");
        let stat = fs::metadata(path).ok()?;
        is_memfd.then(|| (stat.ino(), stat.blocks() * 512))
    };
    let fds = fs::read_dir(format!("/proc/{process}/fd")).into_iter().flatten();
    fds.filter_map(|fd| of_memfd(fd.ok()?.path())).collect()
}

/// Bytes of memory that the machine has left.
pub(crate) fn available() -> anyhow::Result<u64> {
    amount(&fs::read_to_string("/proc/meminfo")?, "MemAvailable:").context("no MemAvailable in procfs")
}

/// Bytes in the line that starts with `name`, as procfs writes it.
fn amount(lines: &str, name: &str) -> Option<u64> {
    let line = lines.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    Some(kib << 10)
}
