//! How much memory is available: commits stop here before the kernel kills for them.
//!
//! What stands in the way of memory, and how that is noticed:
//!
//! | limit | noticed when | as |
//! |---|---|---|
//! | the machine's memory | a page is touched | a kill, so [`admit`] asks first: `OutOfMemory` |
//! | a control group's `memory.max`, `memory.limit_in_bytes` | the same | the same |
//! | a control group's `memory.high` | the same | stalls of seconds, so [`admit`] counts it as a limit |
//! | `RLIMIT_AS` | the arena, a view or the heap is mapped | `ENOMEM` |
//! | `RLIMIT_DATA` | the heap or an anonymous arena is mapped; a memfd does not count | `ENOMEM` |
//! | `RLIMIT_MEMLOCK` with `mlockall(MCL_FUTURE)` | the arena, a view or the heap is mapped | `EAGAIN` |
//! | overcommit mode 2 | an anonymous arena is mapped; a memfd's page is populated | `ENOMEM`; `EFAULT` |
//! | `RLIMIT_FSIZE` | the memfd is sized: SIGXFSZ, so [`memory`](super::memory) asks first | a smaller arena |
//!
//! Only the first three need to be asked for: the kernel reports the others by itself, before it is too late. It
//! never reports these. `MADV_POPULATE_WRITE`, fallocate(2) and pwrite(2) all call the out-of-memory killer.
//!
//! Limits change while a process runs, and it can be moved to another group. So they are read again before more than
//! [`REFRESH_BYTES`] are admitted by what was known, and after [`REFRESH_TIME`].
//!
//! # Cost
//!
//! An admission is one sysinfo(2), and one pread(2) for each group that has a limit. Reading the limits again is one
//! sysinfo(2), one open, read and close of `/proc/self/cgroup`, and for each group on the way to the root one pread(2)
//! in version 1 and two in version 2: about 1 % of the time that it takes to commit [`REFRESH_BYTES`].

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::RwLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use nix::sys::resource::Resource;

use super::platform::ADDRESS_SPACE;
use super::{field, is_short, memory, platform};

/// Left to the rest of the process, to page tables and to the buffers of sockets.
const MARGIN: u64 = 4 << 20;

/// Most bytes that are admitted before the limits are read again. Less than the margin, so that a limit that has come
/// down since leaves room for them.
const REFRESH_BYTES: u64 = MARGIN / 2;

/// Nanoseconds for which the limits are not read again.
const REFRESH_TIME: u64 = 20_000_000;

/// Bytes that are being committed just now, by all pools of this process.
static UNDER_WAY: AtomicU64 = AtomicU64::new(0);

/// Memory that may be committed, until this is dropped.
#[derive(Debug)]
pub(crate) struct Admission(u64);

impl Drop for Admission {
    fn drop(&mut self) {
        UNDER_WAY.fetch_sub(self.0, Relaxed);
    }
}

/// Asks for `bytes` to commit, of what the machine and the control groups of this process have left.
///
/// # Errors
///
/// `OutOfMemory`, when committing them might end in a kill.
pub(crate) fn admit(bytes: u64) -> io::Result<Admission> {
    // Miri knows no sysinfo(2).
    if bytes == 0 || cfg!(miri) {
        return Ok(Admission(0));
    }
    let before = UNDER_WAY.fetch_add(bytes, Relaxed);
    // Dropped on an error, which undoes it.
    let admission = Admission(bytes);
    let needed = before.saturating_add(bytes).saturating_add(MARGIN);
    if !machine_has(needed) {
        return Err(refusal(bytes, "the machine"));
    }
    FRESHNESS.refresh(bytes);
    // Never waits: a child may have been forked while the lock was held. It is held for a moment when this process
    // has been moved to another group.
    let Ok(groups) = GROUPS.try_read() else { return Ok(admission) };
    match groups.found.iter().find(|group| !group.has(needed)) {
        Some(group) => Err(refusal(bytes, &group.directory.display().to_string())),
        None => Ok(admission),
    }
}

/// The most memory that this process may have now.
pub(crate) fn memory_limit() -> u64 {
    if cfg!(miri) {
        return 1 << 30; // it knows none of the calls below
    }
    refresh();
    let physical = memory::physical_memory();
    GROUPS.try_read().map_or(physical, |groups| {
        groups.found.iter().map(|group| group.limit.load(Relaxed)).fold(physical, u64::min)
    })
}

fn refusal(bytes: u64, whose: &str) -> io::Error {
    let message = format!("committing {bytes} bytes would use up the memory of {whose}");
    io::Error::new(io::ErrorKind::OutOfMemory, message)
}

/// When the limits were read, and how much was admitted by them.
struct Freshness {
    /// On the coarse clock, which makes no system call.
    read_at: AtomicU64,
    admitted: AtomicU64,
}

/// As if they were read long ago.
static FRESHNESS: Freshness =
    Freshness { read_at: AtomicU64::new(0), admitted: AtomicU64::new(REFRESH_BYTES) };

impl Freshness {
    /// Reads the limits again if it is time, before another `bytes` are admitted by them.
    fn refresh(&self, bytes: u64) {
        let now = memory::now_coarse();
        let admitted = self.admitted.fetch_add(bytes, Relaxed).saturating_add(bytes);
        if admitted > REFRESH_BYTES || now.saturating_sub(self.read_at.load(Relaxed)) >= REFRESH_TIME {
            self.read_at.store(now, Relaxed);
            self.admitted.store(bytes, Relaxed);
            refresh();
        }
    }
}

/// The groups that limit this process, from its own up to the root.
struct Groups {
    /// The text of `/proc/self/cgroup` by which they were found.
    memberships: Vec<u8>,
    found: Vec<Group>,
}

static GROUPS: RwLock<Groups> = RwLock::new(Groups { memberships: Vec::new(), found: Vec::new() });

/// Reads the limits again, and finds the groups again if this process has been moved.
fn refresh() {
    let (mut buffer, physical) = ([0; MEMBERSHIPS], memory::physical_memory());
    let memberships = read_memberships(&mut buffer);
    if let Ok(groups) = GROUPS.try_read() {
        // Nothing could be read where no descriptor is left: the groups that are known stay.
        let unknown = memberships.is_empty();
        if unknown || groups.memberships == memberships {
            // A group that was removed cannot be read, though another of its name may have taken its place.
            let gone = groups.found.iter().filter(|group| group.refresh(physical).is_err()).count();
            if unknown || gone == 0 {
                return;
            }
        }
    }
    // Where descriptors are short, those that are known stay, and are looked for again the next time.
    let Ok(mut found) = find(&String::from_utf8_lossy(memberships)) else { return };
    found.retain(|group| group.refresh(physical).is_ok());
    if let Ok(mut groups) = GROUPS.try_write() {
        *groups = Groups { memberships: memberships.into(), found };
    }
}

/// Bytes of `/proc/self/cgroup` that are looked at: a dozen controllers with paths of 300 bytes.
const MEMBERSHIPS: usize = 4096;

/// Bytes of `memory.stat` that are looked at: 2 KiB in version 1 and 2 as of Linux 6.18, with one counter a line.
const STAT: usize = 16 << 10;

/// open(2), pread(2), close(2), without an allocation. It is opened each time, since what is open would stay the parent's
/// after a fork.
fn read_memberships(buffer: &mut [u8; MEMBERSHIPS]) -> &[u8] {
    let read = File::open("/proc/self/cgroup").and_then(|file| file.read_at(buffer, 0));
    &buffer[..read.unwrap_or(0)]
}

/// The directory of this process's group in version 2, mounted or not.
///
/// # Errors
///
/// When descriptors or memory are short.
pub(super) fn own_group() -> io::Result<Option<PathBuf>> {
    let read = |path| Ok::<_, io::Error>(if_shown(fs::read_to_string(path))?.unwrap_or_default());
    let found = directories(&VERSIONS[0], &read("/proc/self/mountinfo")?, &read("/proc/self/cgroup")?);
    Ok(found.and_then(|directories| directories.into_iter().next()))
}

/// # Errors
///
/// When descriptors or memory are short.
fn find(memberships: &str) -> io::Result<Vec<Group>> {
    let mounts = if_shown(fs::read_to_string("/proc/self/mountinfo"))?.unwrap_or_default();
    let mut found = Vec::new();
    for version in &VERSIONS {
        for directory in directories(version, &mounts, memberships).unwrap_or_default() {
            found.extend(Group::open(&directory, version)?);
        }
    }
    Ok(found)
}

/// `None` for what a sandbox does not have or does not show.
///
/// # Errors
///
/// When descriptors or memory are short.
fn if_shown<T>(opened: io::Result<T>) -> io::Result<Option<T>> {
    match opened {
        Err(error) if is_short(&error) => Err(error),
        opened => Ok(opened.ok()),
    }
}

/// sysinfo(2), and `MemAvailable` of proc_meminfo(5) only where that is not enough.
fn machine_has(bytes: u64) -> bool {
    platform::free_memory().is_some_and(|free| free >= bytes)
        || available().is_none_or(|available| available >= bytes)
}

/// `MemAvailable` of proc_meminfo(5), in its third line: bytes. Nothing is allocated, since memory may be short.
fn available() -> Option<u64> {
    let mut start = [0; 256];
    let len = File::open("/proc/meminfo").and_then(|file| file.read_at(&mut start, 0)).ok()?;
    field(&String::from_utf8_lossy(&start[..len]), "MemAvailable:")?.checked_mul(1024)
}

/// Bytes that may still be mapped under `RLIMIT_AS` and, if they are `private` and writable, under `RLIMIT_DATA` and the
/// system's commit limit: proc_pid_statm(5).
pub(crate) fn mappable(private: bool) -> u64 {
    if cfg!(miri) {
        return u64::MAX; // it knows no limits, and warns of what is read from `/proc`
    }
    let sizes = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let used = |field: usize| {
        let pages: u64 = sizes.split(' ').nth(field).and_then(|pages| pages.trim().parse().ok()).unwrap_or(0);
        pages * super::page_size() as u64
    };
    let left = |resource, field| memory::limit(resource).saturating_sub(used(field));
    let all = left(ADDRESS_SPACE, 0);
    if private { all.min(left(Resource::RLIMIT_DATA, 5)).min(committable()) } else { all }
}

/// Bytes that the system lets all processes map, where it never overcommits: `overcommit_memory` 2 of proc_sys_vm(5).
/// `MAP_NORESERVE` has no effect there.
fn committable() -> u64 {
    let never = fs::read_to_string("/proc/sys/vm/overcommit_memory").is_ok_and(|mode| mode.trim() == "2");
    let left = || {
        let text = fs::read_to_string("/proc/meminfo").ok()?;
        let kib = |name| field(&text, name);
        Some(kib("CommitLimit:")?.saturating_sub(kib("Committed_AS:")?).saturating_mul(1024))
    };
    if never { left().unwrap_or(u64::MAX) } else { u64::MAX }
}

/// A control group, cgroups(7). It may have no limit yet.
struct Group {
    directory: PathBuf,
    /// Least of its limits; `u64::MAX` if it has none, or they were not read yet.
    limit: AtomicU64,
    limits: Vec<File>,
    usage: File,
    /// `memory.stat`, open because descriptors may be short when it is asked for.
    stat: Option<File>,
    /// The line of `memory.stat` that counts file pages the kernel can drop.
    reclaimable: &'static str,
}

impl Group {
    /// The group of this directory, if it can limit memory.
    ///
    /// # Errors
    ///
    /// When descriptors or memory are short.
    fn open(directory: &Path, version: &Version) -> io::Result<Option<Group>> {
        let open = |name: &&str| if_shown(File::open(directory.join(name)));
        let limits =
            version.limits.iter().map(open).filter_map(Result::transpose).collect::<io::Result<Vec<_>>>()?;
        let (usage, stat) = (open(&version.usage)?, open(&"memory.stat")?);
        Ok(usage.filter(|_| !limits.is_empty()).map(|usage| Group {
            directory: directory.into(),
            limit: AtomicU64::new(u64::MAX),
            usage,
            stat,
            limits,
            reclaimable: version.reclaimable,
        }))
    }

    /// Reads the limits again. "max" is none, nor is more than the `physical` memory.
    ///
    /// # Errors
    ///
    /// `ENODEV` if the group was removed.
    fn refresh(&self, physical: u64) -> io::Result<()> {
        let mut least = physical;
        for file in &self.limits {
            least = least.min(number(file)?.unwrap_or(u64::MAX));
        }
        self.limit.store(if least < physical { least } else { u64::MAX }, Relaxed);
        Ok(())
    }

    fn has(&self, bytes: u64) -> bool {
        let limit = self.limit.load(Relaxed);
        if limit == u64::MAX {
            return true;
        }
        let Ok(Some(used)) = number(&self.usage) else { return true };
        let left = limit.saturating_sub(used);
        left >= bytes || left.saturating_add(self.reclaimable()) >= bytes
    }

    fn reclaimable(&self) -> u64 {
        let mut text = [0; STAT];
        let len = self.stat.as_ref().map_or(Ok(0), |stat| stat.read_at(&mut text, 0)).unwrap_or(0);
        field(&String::from_utf8_lossy(&text[..len]), self.reclaimable).unwrap_or(0)
    }
}

/// pread(2) of a file that is one number, or a word such as "max".
fn number(file: &File) -> io::Result<Option<u64>> {
    let mut digits = [0; 24];
    let len = file.read_at(&mut digits, 0)?;
    Ok(std::str::from_utf8(&digits[..len]).ok().and_then(|text| text.trim().parse().ok()))
}

/// Where the two versions of control groups keep what.
struct Version {
    /// The file system's name in proc_pid_mountinfo(5).
    file_system: &'static str,
    /// The option of the mount and the controller in `/proc/self/cgroup`.
    controller: &'static str,
    limits: &'static [&'static str],
    usage: &'static str,
    reclaimable: &'static str,
}

const VERSIONS: [Version; 2] = [
    Version {
        file_system: "cgroup2",
        controller: "",
        limits: &["memory.max", "memory.high"],
        usage: "memory.current",
        reclaimable: "inactive_file",
    },
    Version {
        file_system: "cgroup",
        controller: "memory",
        limits: &["memory.limit_in_bytes"],
        usage: "memory.usage_in_bytes",
        reclaimable: "total_inactive_file",
    },
];

/// The directory of this process's group and those above it, those that are mounted here.
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
            let group = || Group::open(directory.path(), version).expect("descriptors");
            assert!(group().is_none(), "no files");
            write(version.usage, "700\n");
            assert!(group().is_none(), "no limits");
            version.limits.iter().for_each(|limit| write(limit, "max\n"));
            write("memory.stat", "anon 700\n");
            let group = group().expect("files");
            assert!(group.has(u64::MAX), "no limit yet");
            for limit in version.limits {
                write(limit, "1000\n");
                assert!(group.has(301), "not read again yet");
                group.refresh(1 << 30).expect("read");
                assert!(group.has(300) && !group.has(301), "a limit that has come later");
                write(limit, "800\n");
                group.refresh(1 << 30).expect("read");
                assert!(group.has(100) && !group.has(101), "a limit that has come down");
                write(limit, "max\n");
                group.refresh(1 << 30).expect("read");
                assert!(group.has(u64::MAX), "a limit that is gone");
            }
            write(version.limits[0], "1000\n");
            group.refresh(1 << 30).expect("read");
            write("memory.stat", &format!("anon 500\n{} 100\nfile 200\n", version.reclaimable));
            assert!(group.has(400) && !group.has(401), "pages of files can be dropped");
            write(version.usage, "1100\n");
            assert!(group.has(100) && !group.has(101), "more is used than allowed");
            write(version.limits[0], "0\n");
            group.refresh(1 << 30).expect("read");
            assert!(!group.has(101), "nothing is allowed");
        }
    }

    #[test]
    fn limits_are_read_again_in_time() {
        let freshness =
            Freshness { read_at: AtomicU64::new(memory::now_coarse()), admitted: AtomicU64::new(0) };
        let is_read = |bytes| {
            let before = freshness.admitted.load(Relaxed);
            freshness.refresh(bytes);
            freshness.admitted.load(Relaxed) != before + bytes
        };
        assert!(!is_read(REFRESH_BYTES));
        assert!(is_read(1), "more than may be admitted");
        assert!(is_read(u64::MAX / 2));
        freshness.admitted.store(7, Relaxed);
        freshness.read_at.store(memory::now_coarse() - REFRESH_TIME, Relaxed);
        assert!(is_read(1), "too old");
    }

    #[test]
    fn what_is_not_there_is_refused_and_nothing_stays_under_way() {
        let error = admit(u64::MAX / 4).expect_err("so much there is nowhere");
        assert_eq!(error.kind(), io::ErrorKind::OutOfMemory);
        assert!(error.to_string().contains("use up the memory of the machine"), "{error}");
        drop(admit(4096).expect("so little there is"));
    }
}
