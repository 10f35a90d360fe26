//! What a piece of work costs this process.

use std::fs;
use std::io;
use std::time::{Duration, Instant};

use nix::sys::resource::{Usage, UsageWho, getrusage};
use nix::sys::time::TimeVal;

/// How each figure comes about, for `--help`.
pub(crate) const HOW: &str = "\
How it is measured:
  Each variant receives in a child process of its own that lives through all rounds: round 1 is cold,
  the others are warm. The variants take turns. This process sends, by a cursor that leaves the
  payload as it is. Nothing but the socket is shared, and its options are the system's defaults.

  ropewalk     readv into a rope in a pool, then finalize()
  list+join    reads of 256 KiB into a list, then one concatenation
  read_to_end  reads into the spare capacity of a Vec that doubles, as std's read_to_end does it; that
               function itself would need an adapter that waits, and zero-fills memory for those

  ms           receiver: from the accepted connection until all bytes are contiguous
  cpu ms       receiver: user and system time of that, getrusage(2)
  faults       receiver: page faults of that, getrusage(2); 'to read': those of the checksum after it
  calls        system calls on the socket, the polls included, each side counting its own
  copied       bytes copied in user space to make the payload contiguous
  peak         receiver: physical memory over that at its start, as a multiple of the payload: Pss in
               /proc/self/smaps_rollup, the larger of after receiving and after making it contiguous,
               before anything is dropped. What a pool keeps warm between rounds counts.
  Checksum, sampling and giving memory back are outside ms, cpu ms and faults.";

/// What work has cost so far.
#[derive(Default)]
pub(crate) struct Cost {
    pub(crate) wall: Duration,
    pub(crate) cpu: Duration,
    pub(crate) faults: u64,
}

impl Cost {
    /// Does some `work` and adds what it costs.
    pub(crate) fn of<T>(&mut self, work: impl FnOnce() -> T) -> io::Result<T> {
        let (usage, start) = (getrusage(UsageWho::RUSAGE_SELF)?, Instant::now());
        let done = work();
        self.wall += start.elapsed();
        let after = getrusage(UsageWho::RUSAGE_SELF)?;
        self.cpu += cpu(&after).saturating_sub(cpu(&usage));
        self.faults += faults(&after).saturating_sub(faults(&usage));
        Ok(done)
    }
}

fn cpu(usage: &Usage) -> Duration {
    duration(usage.user_time()) + duration(usage.system_time())
}

fn duration(time: TimeVal) -> Duration {
    let micros = time.tv_sec() * 1_000_000 + time.tv_usec();
    Duration::from_micros(micros.unsigned_abs())
}

fn faults(usage: &Usage) -> u64 {
    (usage.minor_page_faults() + usage.major_page_faults()).unsigned_abs()
}

/// Physical memory of this process in bytes; pages shared with others count in proportion, and a page
/// mapped twice counts once.
pub(crate) fn physical_memory() -> io::Result<u64> {
    amount("/proc/self/smaps_rollup", "Pss:")
}

/// Bytes that the system can still give to programs.
pub(crate) fn available_memory() -> io::Result<u64> {
    amount("/proc/meminfo", "MemAvailable:")
}

/// Bytes in the line of a file of procfs that starts with `name`.
fn amount(file: &str, name: &str) -> io::Result<u64> {
    let lines = fs::read_to_string(file)?;
    let kib = lines.lines().find_map(|line| line.strip_prefix(name)?.strip_suffix("kB"));
    let kib = kib.and_then(|kib| kib.trim().parse::<u64>().ok());
    kib.map(|kib| kib << 10).ok_or_else(|| io::Error::other(format!("no {name} in {file}")))
}
