//! What a process has used: CPU time, page faults, system calls, memory.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use anyhow::Context;
use nix::sys::resource::{UsageWho, getrusage};
use perf_event::events::Tracepoint;
use perf_event::{Builder, Counter};
use serde::{Deserialize, Serialize};

/// What the measured process used in a round.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Used {
    /// User and system time of all threads.
    pub(crate) cpu: Duration,
    /// Minor and major ones.
    pub(crate) faults: u64,
    /// `None` if they were not counted in this round, or cannot be.
    pub(crate) calls: Option<u64>,
}

/// Counts from its start until the first [`stop`](Meter::stop).
pub(crate) struct Meter {
    start: Mutex<Used>,
    calls: Mutex<Vec<Counter>>,
    used: OnceLock<Used>,
}

impl Meter {
    /// Starts. An open tracepoint slows every system call down, so the calls are counted in rounds of
    /// their own.
    pub(crate) fn start(count_calls: bool) -> anyhow::Result<Meter> {
        let calls = if count_calls { call_counters().unwrap_or_default() } else { Vec::new() };
        Ok(Meter { start: Mutex::new(usage()?), calls: Mutex::new(calls), used: OnceLock::new() })
    }

    /// Starts anew: what was used so far does not count.
    pub(crate) fn restart(&self) -> anyhow::Result<()> {
        locked(&self.calls).iter_mut().try_for_each(Counter::reset)?;
        *locked(&self.start) = usage()?;
        Ok(())
    }

    /// CPU time since the start.
    pub(crate) fn so_far(&self) -> anyhow::Result<Duration> {
        Ok(usage()?.cpu - locked(&self.start).cpu)
    }

    /// Stops, unless it was stopped before, and returns what was used up to the first stop.
    pub(crate) fn stop(&self) -> anyhow::Result<Used> {
        if let Some(used) = self.used.get() {
            return Ok(*used);
        }
        let (start, end) = (*locked(&self.start), usage()?);
        let used = Used { cpu: end.cpu - start.cpu, faults: end.faults - start.faults, calls: self.calls()? };
        Ok(*self.used.get_or_init(|| used))
    }

    fn calls(&self) -> io::Result<Option<u64>> {
        let counts = locked(&self.calls).iter_mut().map(Counter::read).collect::<io::Result<Vec<u64>>>()?;
        Ok(if counts.is_empty() { None } else { Some(counts.iter().sum()) })
    }
}

fn locked<T>(value: &Mutex<T>) -> MutexGuard<'_, T> {
    value.lock().unwrap_or_else(PoisonError::into_inner)
}

fn usage() -> anyhow::Result<Used> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let time = |value: nix::sys::time::TimeVal| {
        Duration::new(value.tv_sec() as u64, value.tv_usec() as u32 * 1000) // both are never negative
    };
    let faults = usage.minor_page_faults() + usage.major_page_faults();
    Ok(Used { cpu: time(usage.user_time()) + time(usage.system_time()), faults: faults as u64, calls: None })
}

/// One counter for each thread that there is.
fn call_counters() -> anyhow::Result<Vec<Counter>> {
    let event = Tracepoint::with_id(tracepoint("raw_syscalls/sys_enter")?);
    fs::read_dir("/proc/self/task")?
        .map(|entry| {
            let thread: i32 = entry?.file_name().to_string_lossy().parse()?;
            let mut counter = Builder::new(event).observe_pid(thread).include_kernel().build()?;
            counter.enable()?;
            Ok(counter)
        })
        .collect()
}

/// The number of a tracepoint, from tracefs at either place where it is mounted.
fn tracepoint(name: &str) -> anyhow::Result<u64> {
    let id = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"]
        .iter()
        .find_map(|root| fs::read_to_string(format!("{root}/events/{name}/id")).ok());
    Ok(id.context("tracefs is not readable")?.trim().parse()?)
}

/// Returns `true` if system calls can be counted: root, or `CAP_PERFMON` and a readable tracefs.
#[must_use]
pub(crate) fn can_count_calls() -> bool {
    call_counters().is_ok()
}

/// Bytes that a process holds: anonymous pages by their proportional set size, and the pages of its
/// memfds, mapped or not, each once.
///
/// `Pss_Shmem` counts a memfd's page once however often this process maps it, and misses pages that are
/// not mapped; the file's blocks have all of them. The larger of the two is taken, not the sum.
pub(crate) fn held(process: u32) -> anyhow::Result<u64> {
    let rollup = fs::read_to_string(format!("/proc/{process}/smaps_rollup"))?;
    let field = |name: &str| -> anyhow::Result<u64> {
        let line = rollup.lines().find_map(|line| line.strip_prefix(name));
        let kilobytes = line.and_then(|line| line.split_whitespace().next());
        Ok(kilobytes.context("smaps_rollup is not as in Linux 5.4")?.parse::<u64>()? << 10)
    };
    Ok(field("Pss_Anon:")? + field("Pss_Shmem:")?.max(in_memfds(process)?))
}

fn in_memfds(process: u32) -> io::Result<u64> {
    let mut files = Vec::new();
    for entry in fs::read_dir(format!("/proc/{process}/fd"))? {
        let path = entry?.path();
        if fs::read_link(&path).is_ok_and(|name| name.as_os_str().as_encoded_bytes().starts_with(b"/memfd:"))
        {
            files.extend(fs::metadata(&path).map(|file| (file.ino(), file.blocks() * 512)));
        }
    }
    files.sort_unstable();
    files.dedup_by_key(|&mut (inode, _)| inode); // a duplicated descriptor
    Ok(files.iter().map(|(_, bytes)| bytes).sum())
}
