//! What a piece of work costs this process.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::resource::{Usage, UsageWho, getrusage};
use nix::sys::time::TimeVal;

/// How each figure comes about, for `--help`.
pub(crate) const HOW: &str = "\
How it is measured:
  Each variant receives in a child process of its own that lives through all rounds: round 1 is cold,
  the others are warm. The variants take turns. This process sends, by a cursor that leaves the
  payload as it is. Nothing but the socket is shared, and its options are the system's defaults.

  ropewalk     readv into a rope in a pool, then finalize(). Pages that are new to the pool
               get memory by madvise(2) before they are filled: in ms, cpu ms and faults
  list+join    reads of 256 KiB into a list, then one concatenation
  read_to_end  reads into the spare capacity of a Vec that doubles, as std's read_to_end does it; that
               function itself would need an adapter that waits, and zero-fills memory for those

  ms           receiver: from the accepted connection until all bytes are contiguous
  cpu ms       receiver: user and system time of that, getrusage(2)
  recv calls   receiver: reads, and the polls between them, and writes, syscw in /proc/self/io; not
               what the allocator or the pool asks the kernel for memory with
  send calls   sender: writes, and the polls between them
  faults       receiver: page faults of receiving and making contiguous, getrusage(2)
  to read      receiver: page faults of the checksum after that
  copied       bytes copied in user space to make the payload contiguous
  peak         receiver: memory over that at its start, as a multiple of the payload: Pss_Anon in
               /proc/self/smaps_rollup and all pages of its memfds, mapped or not; the larger of after
               receiving and after making it contiguous, before anything is dropped. What a pool
               keeps warm between rounds counts.
  Checksum, sampling and giving memory back are outside ms, cpu ms and faults.";

/// What work has cost so far.
#[derive(Default)]
pub(crate) struct Cost {
    pub(crate) wall: Duration,
    pub(crate) cpu: Duration,
    pub(crate) faults: u64,
    /// Calls of write(2) and its like.
    pub(crate) writes: u64,
}

impl Cost {
    /// Does some `work` and adds what it costs.
    pub(crate) fn of<T>(&mut self, work: impl FnOnce() -> T) -> io::Result<T> {
        let writes_before = writes()?;
        let (usage, start) = (getrusage(UsageWho::RUSAGE_SELF)?, Instant::now());
        let done = work();
        self.wall += start.elapsed();
        let after = getrusage(UsageWho::RUSAGE_SELF)?;
        self.cpu += cpu(&after).saturating_sub(cpu(&usage));
        self.faults += faults(&after).saturating_sub(faults(&usage));
        self.writes += writes()? - writes_before;
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

/// Bytes of memory that this process takes for data: anonymous pages, and all pages of its memory files,
/// mapped or not. The program's own pages do not count: their share changes as other processes come and go.
pub(crate) fn physical_memory() -> io::Result<u64> {
    let rollup = fs::read_to_string("/proc/self/smaps_rollup")?;
    let (anonymous, shared) = (amount(&rollup, "Pss_Anon:")?, amount(&rollup, "Pss_Shmem:")?);
    Ok(anonymous + shared.max(memory_files()?))
}

/// Bytes of memory in this process's memfds.
fn memory_files() -> io::Result<u64> {
    let is_memfd =
        |fd: &PathBuf| fs::read_link(fd).is_ok_and(|name| name.to_string_lossy().starts_with("/memfd:"));
    let fds = fs::read_dir("/proc/self/fd")?.map(|fd| fd.map(|fd| fd.path()));
    fds.filter(|fd| fd.as_ref().is_ok_and(is_memfd)).map(|fd| Ok(fs::metadata(fd?)?.blocks() * 512)).sum()
}

/// Bytes that the system can still give to programs.
pub(crate) fn available_memory() -> io::Result<u64> {
    amount(&fs::read_to_string("/proc/meminfo")?, "MemAvailable:")
}

/// Bytes in the line that starts with `name`, as procfs writes it.
fn amount(lines: &str, name: &str) -> io::Result<u64> {
    let kib = lines.lines().find_map(|line| line.strip_prefix(name)?.strip_suffix("kB"));
    let kib = kib.and_then(|kib| kib.trim().parse::<u64>().ok());
    kib.map(|kib| kib << 10).ok_or_else(|| io::Error::other(format!("no {name} in procfs")))
}

/// Calls of write(2) and its like so far.
fn writes() -> io::Result<u64> {
    let io = fs::read_to_string("/proc/self/io")?;
    let count = io.lines().find_map(|line| line.strip_prefix("syscw: ")?.parse().ok());
    count.ok_or_else(|| io::Error::other("no syscw in /proc/self/io"))
}
