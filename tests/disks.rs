//! Payloads that spill or become files, on file systems of all kinds: each is mounted for its test, where this process may.
#![cfg(not(ropewalk_portable))] // which has no file for a pool
#![allow(unsafe_code)] // an ioctl

#[allow(dead_code)] // some of it is for other tests
mod support;

use std::ffi::OsStr;
use std::fs;
use std::io::{self, ErrorKind, Read};
use std::mem;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use ropewalk::{Pool, Rope};
use support::{in_child, pattern, receive, receive_all, received};

const MIB: usize = 1 << 20;

/// A file system of its own.
struct Disk {
    directory: tempfile::TempDir,
    /// Of a loop device.
    _image: Option<tempfile::NamedTempFile>,
}

impl Disk {
    /// One that needs no device.
    fn mount(kind: &str, options: &str) -> Option<Disk> {
        let directory = tempfile::tempdir().unwrap();
        let args = ["-t", kind, "-o", options, "ropewalk-test"].map(OsStr::new);
        run("mount", args, directory.path()).then_some(Disk { directory, _image: None })
    }

    /// One of `bytes` in a file.
    fn make(kind: &str, bytes: u64) -> Option<Disk> {
        let (directory, image) = (tempfile::tempdir().unwrap(), tempfile::NamedTempFile::new().unwrap());
        image.as_file().set_len(bytes).unwrap();
        let made = run(&format!("mkfs.{kind}"), [OsStr::new("-q")], image.path());
        let args = [OsStr::new("-o"), OsStr::new("loop"), image.path().as_os_str()];
        (made && run("mount", args, directory.path())).then(|| Disk { directory, _image: Some(image) })
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Leaves about `bytes` free; returns the file that has the rest.
    fn fill(&self, bytes: usize) -> PathBuf {
        let path = self.path().join("filler");
        let free = free(self.path()).saturating_sub(bytes as u64);
        let part = pattern(1, MIB);
        let mut file = fs::File::create(&path).unwrap();
        for _ in 0..free / MIB as u64 {
            if io::Write::write_all(&mut file, &part).is_err() {
                break;
            }
        }
        let _ = file.sync_all();
        path
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        run("umount", [OsStr::new("--lazy")], self.path());
    }
}

fn run<const N: usize>(program: &str, args: [&OsStr; N], last: &Path) -> bool {
    let output = Command::new(program).args(args).arg(last).output();
    output.is_ok_and(|output| output.status.success())
}

fn free(directory: &Path) -> u64 {
    let found = nix::sys::statvfs::statvfs(directory).unwrap();
    found.blocks_available() as u64 * found.fragment_size() as u64
}

fn disks() -> impl Iterator<Item = (&'static str, Disk)> {
    let tmpfs = || Disk::mount("tmpfs", "size=64m");
    let made = [("ext4", 64), ("ext3", 64), ("ext2", 64), ("xfs", 320), ("btrfs", 128)];
    let made = made.into_iter().map(|(kind, size)| (kind, Disk::make(kind, size << 20)));
    std::iter::once(("tmpfs", tmpfs())).chain(made).filter_map(|(kind, disk)| {
        if disk.is_none() {
            println!("skipped: no {kind}");
        }
        Some((kind, disk?))
    })
}

fn pool(directory: &Path) -> Pool {
    Pool::options().capacity(1 << 20).spill(directory, 1 << 30).create().unwrap()
}

/// Returns whether this process has the file at `path` open.
fn is_open(path: &Path) -> bool {
    let file = fs::metadata(path).unwrap();
    let is_it = |open: fs::Metadata| (open.dev(), open.ino()) == (file.dev(), file.ino());
    fs::read_dir("/proc/self/fd").unwrap().any(|fd| fs::metadata(fd.unwrap().path()).is_ok_and(is_it))
}

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count() - 1
}

/// Waits for what another thread does.
fn until(what: &str, done: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < deadline, "{what}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// Bytes on a disk that has no room for all of them.
fn receive_too_much(kind: &str, rope: &mut Rope, payload: &[u8]) -> usize {
    let (got, error) = receive(rope, payload);
    let error = error.unwrap_or_else(|| panic!("{kind}: {got} bytes on a full disk"));
    assert_eq!(error.kind(), ErrorKind::StorageFull, "{kind}: {error}");
    assert!(error.to_string().contains("cannot spill to"), "{kind}: {error}");
    assert!(*rope == payload[..got], "{kind}");
    got
}

#[test]
fn a_file_whose_disk_was_full_is_named_once_there_is_room() {
    let payload = pattern(2, 128 * MIB);
    for (kind, disk) in disks() {
        let filler = disk.fill(20 * MIB);
        let mut rope = Rope::for_file(disk.path(), 1 << 30).unwrap();
        let got = receive_too_much(kind, &mut rope, &payload);
        let view = rope.finalize().unwrap();
        let path = disk.path().join("upload");
        let refused = view.persist(&path).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::StorageFull, "{kind}: {refused}");
        assert!(!path.exists(), "{kind}");
        fs::remove_file(filler).unwrap();
        // btrfs and XFS free the blocks later. Room for what is not written yet, not only for a part of it, or the rest is
        // copied once there is more.
        until(kind, || run("sync", [OsStr::new("-f")], disk.path()) && free(disk.path()) > 24 << 20);
        view.persist(&path).unwrap();
        assert!(is_open(&path), "{kind}: it was copied: {view:?}");
        assert!(fs::read(&path).unwrap() == payload[..got], "{kind}");
    }
}

#[test]
fn a_disk_that_was_full_is_forgotten_with_what_it_had_no_room_for() {
    let payload = pattern(3, 128 * MIB);
    for (kind, disk) in disks() {
        let pool = pool(disk.path());
        let filler = disk.fill(20 * MIB);
        for _ in 0..3 {
            let mut rope = Rope::in_pool(&pool);
            let got = receive_too_much(kind, &mut rope, &payload);
            assert!(got > 16 * MIB, "{kind}: {got} bytes, of an error that is over");
            let part = rope.split_to(got / 2);
            drop(rope);
            assert!(part == payload[..got / 2], "{kind}");
            drop(part);
            until(kind, || pool.stats().spilled == 0);
        }
        fs::remove_file(filler).unwrap();
        let mut rope = Rope::in_pool(&pool);
        let (got, error) = receive(&mut rope, &payload[..32 * MIB]);
        assert_eq!((got, error.map(|error| error.to_string())), (32 * MIB, None), "{kind}");
        assert!(rope == payload[..got], "{kind}");
    }
}

#[test]
fn a_full_quota_is_a_full_disk_and_no_limit_of_a_rope() {
    let Some(disk) = Disk::make("btrfs", 128 << 20) else { return println!("skipped: no btrfs") };
    let limited = run("btrfs", ["quota", "enable"].map(OsStr::new), disk.path())
        && run("btrfs", ["qgroup", "limit", "20M"].map(OsStr::new), disk.path());
    if !limited {
        return println!("skipped: no quota");
    }
    let payload = pattern(4, 128 * MIB);
    let pool = pool(disk.path());
    for mut rope in [Rope::for_file(disk.path(), 1 << 30).unwrap(), Rope::in_pool(&pool)] {
        let (got, error) = receive(&mut rope, &payload);
        let error = error.expect("more than the quota");
        assert_eq!(error.kind(), ErrorKind::StorageFull, "{error}");
        assert!(error.to_string().contains("os error 122"), "{error}");
        assert!(rope == payload[..got]);
    }
    // Here a hole takes disk space too, which there is none of.
    pool.trim().unwrap();
    assert!(run("btrfs", ["qgroup", "limit", "none"].map(OsStr::new), disk.path()));
    pool.trim().unwrap();
    assert_eq!(pool.stats().spilled, 0);
    let mut rope = Rope::in_pool(&pool);
    receive_all(&mut rope, &payload[..32 * MIB]);
    assert!(rope == payload[..32 * MIB]);
}

/// FS_IOC_SHUTDOWN, without the journal: from now on each call is EIO.
fn shut_down(disk: &Disk) {
    nix::ioctl_read!(shut_down, b'X', 125, u32);
    let root = fs::File::open(disk.path()).unwrap();
    let mut no_journal = 2;
    // SAFETY: the call reads one number.
    unsafe { shut_down(root.as_raw_fd(), &raw mut no_journal) }.unwrap();
}

#[test]
fn a_disk_that_fails_is_an_error_of_receives_and_reads() {
    let payload = pattern(5, 128 * MIB);
    for (kind, size) in [("ext4", 64), ("xfs", 320)] {
        let Some(disk) = Disk::make(kind, size << 20) else {
            println!("skipped: no {kind}");
            continue;
        };
        let ropes = [Rope::in_pool(&pool(disk.path())), Rope::for_file(disk.path(), 1 << 30).unwrap()];
        let mut ropes = ropes.map(|mut rope| {
            receive_all(&mut rope, &payload[..9 * MIB]);
            rope.pool().unwrap().trim().unwrap();
            rope
        });
        let pools = ropes.each_ref().map(|rope| rope.pool().unwrap().clone());
        shut_down(&disk);
        for rope in &mut ropes {
            let (got, error) = receive(rope, &payload[9 * MIB..]);
            let error = error.unwrap_or_else(|| panic!("{kind}: {got} bytes"));
            assert!(error.to_string().contains("os error 5"), "{kind}: {error}");
            assert!(error.to_string().contains("cannot spill to"), "{kind}: {error}");
            let len = 9 * MIB + got;
            assert_eq!(rope.len(), len);
            // What the disk does not give back is an error, and what it has not got is in memory.
            let (lost, kept) = (4 * MIB, 9 * MIB);
            assert!(got > 0, "{kind}");
            assert!(rope.cursor().read_exact(&mut vec![0; 8 * MIB]).is_err(), "{kind}");
            let mut cursor = rope.cursor();
            cursor.set_position(kept);
            let mut read = vec![0; len - kept];
            cursor.read_exact(&mut read).unwrap();
            assert!(read == payload[kept..len], "{kind}");
            // The disk does not let it be mapped either, and reading it for a copy is an error.
            match rope.clone().finalize() {
                Ok(view) => assert!(view.read_at(&mut read, lost as u64).is_err(), "{kind}: {view:?}"),
                Err(error) => assert_eq!(error.into_rope().len(), len, "{kind}"),
            }
            rope.advance(kept);
            let view = mem::take(rope).finalize().unwrap();
            assert!(view == payload[kept..len], "{kind}");
            assert!(view.persist(disk.path().join("upload")).is_err(), "{kind}");
        }
        for pool in &pools {
            pool.trim().unwrap();
        }
    }
}

#[test]
fn file_systems_that_cannot_have_the_file_are_refused_at_creation() {
    // Alone: it counts descriptors.
    in_child("file_systems_that_cannot_have_the_file_are_refused_at_creation", || {
        drop(Pool::new().unwrap()); // opens the files of this process's control group
        for (kind, options, expected, hint) in [
            ("ramfs", "mode=755", ErrorKind::Unsupported, "makes no holes"),
            ("hugetlbfs", "mode=755", ErrorKind::Unsupported, "has no write(2)"),
            ("tmpfs", "ro", ErrorKind::ReadOnlyFilesystem, "os error 30"),
            ("tmpfs", "nr_inodes=1", ErrorKind::StorageFull, "os error 28"),
        ] {
            let Some(disk) = Disk::mount(kind, options) else {
                println!("skipped: no {kind}");
                continue;
            };
            let before = descriptors();
            for refused in [
                Pool::options().spill(disk.path(), 1 << 30).create().unwrap_err(),
                Rope::for_file(disk.path(), 1 << 30).unwrap_err(),
            ] {
                assert_eq!(refused.kind(), expected, "{kind}: {refused}");
                assert!(refused.to_string().contains(hint), "{kind}: {refused}");
                let path = disk.path().to_str().unwrap();
                assert!(refused.to_string().contains(path), "{kind}: {refused}");
            }
            assert_eq!(descriptors(), before, "{kind}");
            assert!(fs::read_dir(disk.path()).unwrap().next().is_none(), "{kind}");
        }
    });
}

#[test]
fn a_directory_that_is_removed_keeps_what_was_received_into_it() {
    let parent = tempfile::tempdir().unwrap();
    let directory = parent.path().join("uploads");
    fs::create_dir(&directory).unwrap();
    let payload = pattern(6, 9 * MIB);
    let pool = pool(&directory);
    let ropes = [Rope::in_pool(&pool), Rope::for_file(&directory, 1 << 30).unwrap()];
    fs::remove_dir(&directory).unwrap();
    for mut rope in ropes {
        receive_all(&mut rope, &payload);
        let view = rope.finalize().unwrap();
        assert_eq!(view.persist(directory.join("upload")).unwrap_err().kind(), ErrorKind::NotFound);
        view.persist(parent.path().join("upload")).unwrap();
        assert!(fs::read(parent.path().join("upload")).unwrap() == payload && view == payload);
        fs::remove_file(parent.path().join("upload")).unwrap();
    }
}

#[test]
fn a_descriptor_that_is_lacking_is_an_error_and_leaves_none_open() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let next = || fs::File::open("/dev/null").unwrap().as_raw_fd() as u64;
    in_child("a_descriptor_that_is_lacking_is_an_error_and_leaves_none_open", || {
        let directory = tempfile::tempdir().unwrap();
        let payload = pattern(7, 5 * MIB);
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        let pool = pool(directory.path());
        let view = received(&pool, &payload).finalize().unwrap();
        let before = descriptors();
        let names = || fs::read_dir(directory.path()).unwrap().count();
        let mut refused = [0; 3];
        for left in 0..12 {
            let path = directory.path().join("upload");
            let with_limit = |call: &dyn Fn() -> io::Result<()>| {
                setrlimit(Resource::RLIMIT_NOFILE, next() + left, hard).unwrap();
                let called = call();
                setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
                called
            };
            let calls: [&dyn Fn() -> io::Result<()>; 3] = [
                &|| Pool::options().spill(directory.path(), 1 << 30).create().map(drop),
                &|| Rope::for_file(directory.path(), 1 << 30).map(drop),
                &|| view.persist(&path),
            ];
            for (call, refused) in calls.into_iter().zip(&mut refused) {
                if let Err(error) = with_limit(call) {
                    *refused += 1;
                    assert!(error.to_string().contains("os error 24"), "{error}");
                    assert_eq!(names(), 0);
                } else {
                    let _ = fs::remove_file(&path);
                }
                until("descriptors", || descriptors() == before);
            }
        }
        assert!(refused.iter().all(|&count| count > 0 && count < 12), "{refused:?}");
        assert!(view == payload && received(&pool, &payload) == payload);
    });
}
