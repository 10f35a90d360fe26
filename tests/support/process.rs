//! What another process uses, from procfs.

use std::fs;
use std::os::unix::fs::MetadataExt;

/// Bytes of physical memory: its mapped pages, those it shares in part, and all pages of its memfds,
/// mapped or not.
pub(crate) fn memory(process: u32) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{process}/smaps_rollup")).unwrap();
    let amount = |name| {
        let line = rollup.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
    };
    let (all, shared) = (amount("Pss:"), amount("Pss_Shmem:"));
    all - shared + shared.max(memfds(process))
}

/// Bytes of memory in its memfds. A descriptor that is closed meanwhile has none.
fn memfds(process: u32) -> u64 {
    let fds = fs::read_dir(format!("/proc/{process}/fd")).unwrap();
    let of_memfd = |path| {
        let name = fs::read_link(&path).ok()?;
        let is_memfd = name.to_string_lossy().starts_with("/memfd:");
        is_memfd.then(|| fs::metadata(path).ok().map(|file| file.blocks() * 512))?
    };
    fds.filter_map(|fd| of_memfd(fd.ok()?.path())).sum()
}

/// CPU time so far, in clock ticks.
pub(crate) fn cpu_ticks(process: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    let fields: Vec<_> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}
