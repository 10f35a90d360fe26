//! How much memory there still is: commits stop here before the kernel kills for them.
//!
//! Neither `MADV_POPULATE_WRITE` nor fallocate(2) nor pwrite(2) fails when memory is gone, be it the
//! machine's or a control group's: each calls the out-of-memory killer. So a commit asks first.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::sys::sysinfo::sysinfo;

/// Left to the rest of the process, to page tables and to the buffers of sockets.
const MARGIN: u64 = 4 << 20;

/// Bytes that are being committed just now, by all pools of this process.
static UNDER_WAY: AtomicU64 = AtomicU64::new(0);

/// Memory that may be committed, until this is dropped.
#[derive(Debug)]
pub(crate) struct Admission(u64);

impl Drop for Admission {
    fn drop(&mut self) {
        UNDER_WAY.fetch_sub(self.0, Ordering::Relaxed);
    }
}

/// Asks for `bytes` to commit, of what the machine and the control groups of this process have left.
///
/// # Errors
///
/// `OutOfMemory`, when committing them might end in a kill.
pub(crate) fn admit(bytes: u64) -> io::Result<Admission> {
    if bytes == 0 {
        return Ok(Admission(0));
    }
    let before = UNDER_WAY.fetch_add(bytes, Ordering::Relaxed);
    // Dropped on an error, which undoes it.
    let admission = Admission(bytes);
    let needed = before + bytes + MARGIN;
    if !machine_has(needed) {
        return Err(refusal(bytes, "the machine"));
    }
    match groups().iter().find(|group| !group.has(needed)) {
        Some(group) => Err(refusal(bytes, &group.directory.display().to_string())),
        None => Ok(admission),
    }
}

/// The most memory that this process may ever have.
pub(crate) fn memory_limit() -> u64 {
    groups().iter().map(|group| group.limit).fold(super::memory::physical_memory(), u64::min)
}

fn refusal(bytes: u64, whose: &str) -> io::Error {
    let message = format!("committing {bytes} bytes would use up the memory of {whose}");
    io::Error::new(io::ErrorKind::OutOfMemory, message)
}

/// sysinfo(2), and `MemAvailable` of proc_meminfo(5) only where that is not enough.
fn machine_has(bytes: u64) -> bool {
    sysinfo().is_ok_and(|info| info.ram_unused() >= bytes)
        || fs::read_to_string("/proc/meminfo")
            .ok()
            .and_then(|text| field(&text, "MemAvailable:"))
            .is_none_or(|kib| kib * 1024 >= bytes)
}

/// A control group that limits the memory of this process, cgroups(7).
struct Group {
    directory: PathBuf,
    limit: u64,
    usage: File,
    /// The line of `memory.stat` that counts file pages the kernel can drop.
    reclaimable: &'static str,
}

impl Group {
    /// The group of this directory, if it has a limit.
    fn open(directory: &Path, version: &Version) -> Option<Group> {
        let limit = fs::read_to_string(directory.join(version.limit)).ok()?.trim().parse().ok()?;
        let usage = File::open(directory.join(version.usage)).ok()?;
        let reclaimable = version.reclaimable;
        (limit < super::memory::physical_memory()).then(|| Group {
            directory: directory.into(),
            limit,
            usage,
            reclaimable,
        })
    }

    fn has(&self, bytes: u64) -> bool {
        let Some(used) = self.used() else { return true };
        let left = self.limit.saturating_sub(used);
        left >= bytes || left + self.reclaimable() >= bytes
    }

    fn used(&self) -> Option<u64> {
        let mut digits = [0; 24];
        let len = self.usage.read_at(&mut digits, 0).ok()?;
        std::str::from_utf8(&digits[..len]).ok()?.trim().parse().ok()
    }

    fn reclaimable(&self) -> u64 {
        let text = fs::read_to_string(self.directory.join("memory.stat")).unwrap_or_default();
        field(&text, self.reclaimable).unwrap_or(0)
    }
}

/// Where the two versions of control groups keep what.
struct Version {
    /// The file system's name in proc_pid_mountinfo(5).
    file_system: &'static str,
    /// The option of the mount and the controller in `/proc/self/cgroup`.
    controller: &'static str,
    limit: &'static str,
    usage: &'static str,
    reclaimable: &'static str,
}

const VERSIONS: [Version; 2] = [
    Version {
        file_system: "cgroup2",
        controller: "",
        limit: "memory.max",
        usage: "memory.current",
        reclaimable: "inactive_file",
    },
    Version {
        file_system: "cgroup",
        controller: "memory",
        limit: "memory.limit_in_bytes",
        usage: "memory.usage_in_bytes",
        reclaimable: "total_inactive_file",
    },
];

/// The groups that limit this process, from its own up to the root; as they were at the first call.
fn groups() -> &'static [Group] {
    static GROUPS: OnceLock<Vec<Group>> = OnceLock::new();
    GROUPS.get_or_init(|| {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let (mounts, memberships) = (read("/proc/self/mountinfo"), read("/proc/self/cgroup"));
        VERSIONS
            .iter()
            .filter_map(|version| Some((version, directories(version, &mounts, &memberships)?)))
            .flat_map(|(version, found)| found.into_iter().filter_map(|at| Group::open(&at, version)))
            .collect()
    })
}

/// The directory of this process's group and those above it, as far as they are mounted here.
fn directories(version: &Version, mounts: &str, memberships: &str) -> Option<Vec<PathBuf>> {
    let group = memberships.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let of_version = parts.next()?.split(',').any(|controller| controller == version.controller);
        parts.next().filter(|_| of_version)
    })?;
    let (root, mounted_at) = mounts.lines().find_map(|line| {
        let (mount, file_system) = line.split_once(" - ")?;
        let mut file_system = file_system.split(' ');
        let of_version = file_system.next() == Some(version.file_system)
            && (version.controller.is_empty()
                || file_system.next_back()?.split(',').any(|option| option == version.controller));
        let mut mount = mount.split(' ').skip(3);
        of_version.then_some((mount.next()?, mount.next()?))
    })?;
    let below = Path::new(group).strip_prefix(root).unwrap_or(Path::new(""));
    let own = Path::new(mounted_at).join(below);
    Some(own.ancestors().take(below.components().count() + 1).map(PathBuf::from).collect())
}

/// The number behind `name` in a file of such lines.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        words.next().filter(|word| *word == name)?;
        words.next()?.parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &str = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
        32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
        36 31 0:33 /box /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory\n";
    const V2: &str = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";

    fn paths(found: Option<Vec<PathBuf>>) -> Vec<String> {
        found.unwrap_or_default().iter().map(|path| path.display().to_string()).collect()
    }

    #[test]
    fn groups_are_found_where_they_are_mounted() {
        let [two, one] = VERSIONS;
        assert_eq!(
            paths(directories(&one, V1, "8:pids:/\n4:memory:/box/a/b\n0::/\n")),
            ["/sys/fs/cgroup/memory/a/b", "/sys/fs/cgroup/memory/a", "/sys/fs/cgroup/memory"]
        );
        assert_eq!(
            paths(directories(&two, V2, "0::/user.slice/x.scope\n")),
            ["/sys/fs/cgroup/user.slice/x.scope", "/sys/fs/cgroup/user.slice", "/sys/fs/cgroup"]
        );
        assert!(paths(directories(&two, V1, "4:memory:/box\n")).is_empty());
        assert!(paths(directories(&one, V2, "0::/\n")).is_empty());
    }

    /// Files as the two versions lay them out, since no machine has the memory controller in both.
    #[test]
    #[cfg_attr(miri, ignore = "needs files")]
    fn what_a_group_has_left_is_read_from_its_files() {
        for version in &VERSIONS {
            let directory = tempfile::tempdir().expect("a directory");
            let write = |name, text: &str| fs::write(directory.path().join(name), text).expect("written");
            let group = || Group::open(directory.path(), version);
            assert!(group().is_none(), "no files");
            write(version.usage, "700\n");
            write(version.limit, "max\n");
            assert!(group().is_none(), "no limit");
            write(version.limit, "1000\n");
            let group = group().expect("a limit");
            assert!(group.has(300) && !group.has(301));
            write("memory.stat", &format!("anon 500\n{} 100\nfile 200\n", version.reclaimable));
            assert!(group.has(400) && !group.has(401), "pages of files can be dropped");
            write(version.usage, "1100\n");
            assert!(group.has(100) && !group.has(101), "more is used than allowed");
        }
    }

    #[test]
    fn what_is_not_there_is_refused_and_nothing_stays_under_way() {
        let error = admit(u64::MAX / 4).expect_err("so much there is nowhere");
        assert_eq!(error.kind(), io::ErrorKind::OutOfMemory);
        assert!(error.to_string().contains("use up the memory of the machine"), "{error}");
        drop(admit(4096).expect("so little there is"));
    }
}
