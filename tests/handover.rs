//! A payload is sealed and handed to another process: nothing is copied, nothing changes, nothing leaks, whatever a peer
//! sends.
#![cfg(not(ropewalk_portable))] // which has no memfd
#![allow(unsafe_code)] // memfds of a hostile peer, forks
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)] // a test fails by panicking

#[path = "support/seccomp.rs"]
mod seccomp;
#[allow(dead_code)] // some of it is for other tests
mod support;

use std::env;
use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Child, Command, Stdio};
use std::ptr;
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use nix::errno::Errno;
use nix::libc;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};
use ropewalk::{Pool, Rope, Sealed};
use socket2::{Domain, SockRef, Socket, Type};
use support::{bytes_in, in_child, pattern, receive_all, received};

const MIB: usize = 1 << 20;
const ALL: i32 = libc::F_SEAL_SEAL | libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_WRITE;
const TYPES: [Type; 3] = [Type::STREAM, Type::SEQPACKET, Type::DGRAM];

/// Lengths around those that decide: inline segments, copied messages, pages, segments.
const LENGTHS: [usize; 13] =
    [0, 1, 4095, 4096, 4097, 8192, 8193, 65_536, 100_001, MIB, 2 * MIB + 1, 5 * MIB - 1, 9 * MIB];

/// How often a loop runs: as often as the variable says, else `default`.
fn count(variable: &str, default: usize) -> usize {
    env::var(variable).map_or(default, |count| count.parse().unwrap())
}

/// A rope for a handover that has received `payload`.
fn for_handover(payload: &[u8]) -> Rope {
    let mut rope = Rope::for_handover().unwrap();
    receive_all(&mut rope, payload);
    rope
}

fn sealed(payload: &[u8]) -> Sealed {
    for_handover(payload).finalize().unwrap().seal().unwrap()
}

/// Two sockets that give up instead of waiting for ever.
fn pair(kind: Type) -> (Socket, Socket) {
    let pair = Socket::pair(Domain::UNIX, kind, None).unwrap();
    for socket in [&pair.0, &pair.1] {
        socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        socket.set_write_timeout(Some(Duration::from_secs(60))).unwrap();
    }
    pair
}

fn pipe() -> (File, File) {
    let (from, to) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
    (from.into(), to.into())
}

fn file(fd: impl AsFd) -> File {
    File::from(fd.as_fd().try_clone_to_owned().unwrap())
}

fn inode(fd: impl AsFd) -> u64 {
    file(fd).metadata().unwrap().ino()
}

/// The numbers of the memfds of this process that are `len` bytes or more.
fn memfds(len: u64) -> Vec<u64> {
    let fds = fs::read_dir("/proc/self/fd").unwrap();
    let of_memfd = |path| {
        let is_memfd = fs::read_link(&path).ok()?.to_string_lossy().starts_with("/memfd:ropewalk");
        let stat = fs::metadata(path).ok()?;
        (is_memfd && stat.len() >= len).then(|| stat.ino())
    };
    fds.filter_map(|fd| of_memfd(fd.ok()?.path())).collect()
}

/// Descriptors of this process, with those that the crate keeps to read the limits of control groups.
fn descriptors() -> usize {
    drop(Sealed::copy_of(b"something").unwrap());
    fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Maps of memfds in this process.
fn maps() -> usize {
    fs::read_to_string("/proc/self/maps").unwrap().matches("/memfd:").count()
}

fn memfd(flags: libc::c_uint) -> File {
    let fd = unsafe { libc::memfd_create(c"hostile".as_ptr(), flags | libc::MFD_CLOEXEC) };
    assert!(fd >= 0, "{}", Errno::last());
    unsafe { File::from_raw_fd(fd) }
}

/// A memfd of these bytes with some seals.
fn with_seals(bytes: &[u8], seals: i32) -> File {
    let file = memfd(libc::MFD_ALLOW_SEALING);
    file.write_all_at(bytes, 0).unwrap();
    add_seals(&file, seals).unwrap();
    file
}

fn not_executable(bytes: &[u8]) -> File {
    const MFD_NOEXEC_SEAL: libc::c_uint = 8;
    let fd = unsafe { libc::memfd_create(c"test".as_ptr(), MFD_NOEXEC_SEAL | libc::MFD_CLOEXEC) };
    let file = if fd >= 0 { unsafe { File::from_raw_fd(fd) } } else { memfd(libc::MFD_ALLOW_SEALING) };
    file.write_all_at(bytes, 0).unwrap();
    add_seals(&file, ALL).unwrap();
    file
}

fn add_seals(file: &File, seals: i32) -> Result<i32, Errno> {
    Errno::result(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) })
}

/// A shared, writable map of a file's first page.
struct SharedMap(*mut libc::c_void);

impl SharedMap {
    fn new(file: &File) -> Result<SharedMap, Errno> {
        let (prot, fd) = (libc::PROT_READ | libc::PROT_WRITE, file.as_raw_fd());
        let map = unsafe { libc::mmap(ptr::null_mut(), 4096, prot, libc::MAP_SHARED, fd, 0) };
        if map == libc::MAP_FAILED { Err(Errno::last()) } else { Ok(SharedMap(map)) }
    }
}

impl Drop for SharedMap {
    fn drop(&mut self) {
        unsafe { libc::munmap(self.0, 4096) };
    }
}

/// Tries all that a process with the descriptor can do to the file.
fn assert_unchangeable(fd: impl AsFd, payload: &[u8]) {
    let file = file(fd);
    let again = format!("/proc/self/fd/{}", file.as_raw_fd());
    // The mode of the descriptor protects nothing: this succeeds for one that was opened for reading, too.
    let reopened = OpenOptions::new().read(true).write(true).open(again).unwrap();
    for file in [&file, &reopened] {
        let (fd, len) = (file.as_raw_fd(), payload.len() as i64);
        assert!(payload.is_empty() || file.write_at(b"!", 0).is_err());
        assert!(file.write_at(b"!", payload.len() as u64).is_err());
        assert!(file.set_len(payload.len() as u64 + 1).is_err());
        assert!(payload.is_empty() || file.set_len(payload.len() as u64 - 1).is_err());
        let hole = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        assert!(payload.is_empty() || unsafe { libc::fallocate(fd, hole, 0, len) } < 0);
        assert!(payload.is_empty() || SharedMap::new(file).is_err());
        assert_eq!(add_seals(file, 0).unwrap_err(), Errno::EPERM);
    }
    let mut bytes = vec![0; payload.len()];
    file.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes == payload);
}

#[test]
fn a_payload_of_any_length_is_sealed_in_place_and_handed_over() {
    in_child("a_payload_of_any_length_is_sealed_in_place_and_handed_over", || {
        for len in LENGTHS {
            let payload = pattern(len as u64, len);
            let rope = for_handover(&payload);
            let own = memfds(1 << 20);
            let sealed = rope.finalize().unwrap().seal().unwrap();
            // What is longer than a small message keeps its memfd, others are copied into one.
            assert!(len <= 4096 || own.contains(&inode(&sealed)), "{len} bytes were copied");
            assert_eq!(file(&sealed).metadata().unwrap().len(), len as u64);
            assert!(*sealed == payload);
            assert_unchangeable(&sealed, &payload);
            for kind in TYPES {
                let (here, there) = pair(kind);
                sealed.send(&here).unwrap();
                let received = Sealed::receive(&there).unwrap();
                assert!(*received == payload);
                assert_eq!(inode(&received) == inode(&sealed), len > 4096, "{len} bytes");
                assert_unchangeable(&received, &payload);
                // Forwarded, and pushed into a rope.
                received.send(&here).unwrap();
                let third = Sealed::receive(&there).unwrap();
                assert_eq!(inode(&third) == inode(&sealed), len > 4096);
                let mut rope = Rope::from("a header, ");
                rope.push(third.clone());
                assert!(rope.slice(10..) == payload && Bytes::from(third) == payload);
            }
        }
    });
}

#[test]
#[cfg_attr(target_pointer_width = "32", ignore = "looks for a memfd of more addresses than there are")]
fn nothing_is_copied_and_nothing_stays_mapped_for_writing() {
    in_child("nothing_is_copied_and_nothing_stays_mapped_for_writing", || {
        let payload = pattern(3, 5 * MIB + 17);
        let before = (descriptors(), maps());
        let rope = for_handover(&payload);
        assert_eq!(memfds(1 << 30).len(), 1);
        let sealed = rope.finalize().unwrap().seal().unwrap();
        assert!(memfds(1 << 30).is_empty());
        assert_eq!((descriptors(), maps()), (before.0 + 1, before.1 + 1));
        // Whole pages, and none behind the end.
        assert_eq!(
            file(&sealed).metadata().unwrap().blocks() * 512,
            payload.len().next_multiple_of(4096) as u64
        );
        let bytes = Bytes::from(sealed);
        assert_eq!((descriptors(), maps()), (before.0, before.1 + 1));
        assert!(bytes == payload);
        drop(bytes);
        assert_eq!((descriptors(), maps()), before);
    });
}

#[test]
#[cfg_attr(target_pointer_width = "32", ignore = "looks for a memfd of more addresses than there are")]
fn a_view_with_other_readers_comes_back_unchanged() {
    in_child("a_view_with_other_readers_comes_back_unchanged", || {
        let payload = pattern(1, 3 * MIB);
        let mut view = for_handover(&payload).finalize().unwrap();
        let ino = memfds(1 << 30)[0];
        type Keep = fn(&ropewalk::View) -> Box<dyn std::any::Any>;
        let keeps: [Keep; 5] = [
            |view| Box::new(view.clone()),
            |view| Box::new(view.slice(100_000..100_001)),
            |view| Box::new(Bytes::from(view.clone()).slice(5..)),
            |view| Box::new(Rope::from(view.clone())),
            |view| Box::new(view.cursor()),
        ];
        for keep in keeps {
            let kept = keep(&view);
            let refused = view.seal().unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::ResourceBusy);
            assert!(refused.to_string().contains("other references to the pages"), "{refused}");
            view = refused.into_view();
            assert!(*view == payload && view.copied_bytes() == 0);
            drop(kept);
        }
        let sealed = view.seal().unwrap();
        assert!(*sealed == payload && inode(&sealed) == ino);
    });
}

#[test]
fn a_rope_in_the_same_pool_prevents_it() {
    let payload = pattern(2, MIB);
    let mut rope = for_handover(&payload);
    let pool = rope.pool().unwrap().clone();
    let clone = rope.clone();
    rope.reserve(100_000).unwrap();
    let view = rope.finalize().unwrap();
    let view = view.seal().unwrap_err().into_view();
    drop(clone);
    let view = view.seal().unwrap_err().into_view();
    // A handle of the pool could allocate pages of the memfd.
    let other = Rope::in_pool(&pool);
    drop(pool);
    let view = view.seal().unwrap_err().into_view();
    drop(other);
    assert!(*view.seal().unwrap() == payload);
}

#[test]
#[cfg_attr(target_pointer_width = "32", ignore = "looks for a memfd of more addresses than there are")]
fn what_the_kernel_holds_prevents_it_until_it_is_done() {
    in_child("what_the_kernel_holds_prevents_it_until_it_is_done", || {
        let payload = pattern(4, MIB + 1);
        let view = for_handover(&payload).finalize().unwrap();
        let ino = memfds(1 << 30)[0];
        let open = || {
            let fds = fs::read_dir("/proc/self/fd").unwrap().map(|fd| fd.unwrap().path());
            let path =
                fds.into_iter().find(|path| fs::metadata(path).is_ok_and(|stat| stat.ino() == ino)).unwrap();
            OpenOptions::new().read(true).write(true).open(path).unwrap()
        };
        // Another process can map it through `/proc`.
        let (other, map) = {
            let file = open();
            (file.try_clone().unwrap(), SharedMap::new(&file).unwrap())
        };
        let refused = view.seal().unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ResourceBusy, "{refused}");
        let view = refused.into_view();
        assert!(*view == payload);
        // Clones of it do no harm now.
        let reader = view.clone();
        assert!(
            reader.slice(7..100_007) == payload[7..100_007]
                && *view.clone().seal().unwrap_err().into_view() == payload
        );
        drop(map);
        // A page in a pipe is held by the kernel.
        let (mut from, to) = pipe();
        let spliced =
            unsafe { libc::splice(other.as_raw_fd(), &mut 0, to.as_raw_fd(), ptr::null_mut(), 4096, 0) };
        assert_eq!(spliced, 4096);
        let refused = view.seal().unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ResourceBusy, "{refused}");
        from.read_exact(&mut [0; 4096]).unwrap();
        let sealed = refused.into_view().seal().unwrap();
        assert!(*sealed == payload && *reader == payload && inode(&sealed) == ino);
        assert_unchangeable(&sealed, &payload);
    });
}

#[test]
fn any_other_view_is_copied_once() {
    let pool = Pool::new().unwrap();
    let payload = pattern(5, 3 * MIB + 5);
    let view = received(&pool, &payload).finalize().unwrap();
    let reader = view.clone();
    assert!(*view.seal().unwrap() == payload && *reader == payload);
    // On the heap, in segments, and behind other bytes.
    let heap = Rope::from(payload.clone()).finalize().unwrap().seal().unwrap();
    let mut with_header = for_handover(&payload);
    with_header.push_front("header");
    let with_header = with_header.finalize().unwrap().seal().unwrap();
    let mut behind = for_handover(&payload);
    behind.advance(1);
    let behind = behind.finalize().unwrap().seal().unwrap();
    assert!(*heap == payload && with_header[6..] == payload && *behind == payload[1..]);
    let part = received(&pool, &payload).finalize().unwrap().slice(10_000..2_000_000).seal().unwrap();
    assert!(*part == payload[10_000..2_000_000]);
    for sealed in [&heap, &with_header, &behind, &part] {
        assert_unchangeable(sealed, sealed);
    }
    // A rope that has sent some and goes on, as one that is used for a stream.
    let mut rope = for_handover(&payload);
    let rest = rope.split_off(MIB);
    assert!(*rest.finalize().unwrap().seal().unwrap() == payload[MIB..]);
    assert!(*rope.finalize().unwrap().seal().unwrap() == payload[..MIB]);
}

#[test]
fn old_bytes_behind_the_end_are_gone() {
    let mut rope = for_handover(&[0xee; 100_000]);
    rope.truncate(50_001);
    let sealed = rope.finalize().unwrap().seal().unwrap();
    assert_eq!(sealed.len(), 50_001);
    // The kernel shows the whole last page to a process that maps it.
    let map = unsafe { memmap2::MmapOptions::new().len(53_248).map(&file(&sealed)) }.unwrap();
    assert!(map[..50_001].iter().all(|&byte| byte == 0xee) && map[50_001..].iter().all(|&byte| byte == 0));
}

#[test]
fn files_that_are_not_sealed_memfds_are_refused() {
    in_child("files_that_are_not_sealed_memfds_are_refused", || {
        let payload = pattern(6, 10_000);
        let refused = |file: File| {
            let error = Sealed::from_fd(file.into()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidData, "{error}");
            error.to_string()
        };
        let before = descriptors();
        // Every set of seals but the whole one, and all of them with one that stands in for `F_SEAL_WRITE`.
        for seals in 0..ALL {
            assert!(refused(with_seals(&payload, seals)).contains("seals"));
            assert!(
                refused(with_seals(&payload, seals & !libc::F_SEAL_SEAL | libc::F_SEAL_FUTURE_WRITE))
                    .contains("seals")
            );
        }
        // Not a memfd: on tmpfs `F_GET_SEALS` reports `F_SEAL_SEAL` (0x1), on a disk EINVAL.
        let of_disk = tempfile::tempfile_in(".").unwrap();
        of_disk.write_all_at(&payload, 0).unwrap();
        refused(of_disk);
        if let Ok(of_tmpfs) = tempfile::tempfile_in("/dev/shm") {
            of_tmpfs.write_all_at(&payload, 0).unwrap();
            let said = refused(of_tmpfs);
            assert!(said.contains("seals 0x1,") || said.contains("no seals"), "{said}");
        }
        refused(memfd(0));
        for path in ["/proc/self/exe", "/dev/null", "/proc/self/maps", "/"] {
            refused(File::open(path).unwrap());
        }
        refused(File::from(OwnedFd::from(UnixStream::pair().unwrap().0)));
        refused(pipe().0);
        // Secret memory, which has no seals but would be a memfd by its name, and descriptors that are no file.
        for number in [
            unsafe { libc::syscall(libc::SYS_memfd_secret, libc::O_CLOEXEC) },
            unsafe { libc::syscall(libc::SYS_pidfd_open, std::process::id(), 0) },
            unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) }.into(),
            unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) }.into(),
            unsafe { libc::inotify_init1(libc::IN_CLOEXEC) }.into(),
        ] {
            if let Some(fd) = i32::try_from(number).ok().filter(|&fd| fd >= 0) {
                refused(unsafe { File::from_raw_fd(fd) });
            }
        }
        // Holes: in the middle, everywhere, and with as much memory behind the end as is missing.
        let sparse = |len, fill: &dyn Fn(&File)| {
            let file = memfd(libc::MFD_ALLOW_SEALING);
            file.set_len(len).unwrap();
            fill(&file);
            add_seals(&file, ALL).unwrap();
            refused(file)
        };
        assert!(sparse(1 << 40, &|_| ()).contains("holes"));
        assert!(sparse(i64::MAX as u64, &|_| ()).contains("holes"));
        assert!(sparse(16 << 12, &|file| file.write_all_at(&payload, 0).unwrap()).contains("holes"));
        let hidden = |file: &File| {
            file.write_all_at(&payload, 0).unwrap();
            let keep = libc::FALLOC_FL_KEEP_SIZE;
            assert_eq!(unsafe { libc::fallocate(file.as_raw_fd(), keep, 16 << 12, 64 << 12) }, 0);
        };
        assert!(sparse(16 << 12, &hidden).contains("holes"));
        // Huge pages of hugetlbfs, where the system has the file system at all.
        let fd = unsafe {
            libc::memfd_create(
                c"huge".as_ptr(),
                libc::MFD_HUGETLB | libc::MFD_ALLOW_SEALING | libc::MFD_CLOEXEC,
            )
        };
        if fd >= 0 {
            let huge = unsafe { File::from_raw_fd(fd) };
            huge.set_len(2 << 20).unwrap();
            add_seals(&huge, ALL).unwrap();
            assert!(refused(huge).contains("huge"));
        } else {
            println!("skipped: no hugetlbfs");
        }
        // Opened for writing only, and as a path: other errors.
        let good = with_seals(&payload, ALL);
        let path = format!("/proc/self/fd/{}", good.as_raw_fd());
        let write_only = OpenOptions::new().write(true).open(&path).unwrap();
        assert_eq!(Sealed::from_fd(write_only.into()).unwrap_err().kind(), ErrorKind::PermissionDenied);
        // Not by `OpenOptions`: under musl `O_PATH` is a part of `O_ACCMODE`, which it removes.
        let name = CString::new(path.clone()).unwrap();
        let fd = unsafe { libc::open(name.as_ptr(), libc::O_PATH | libc::O_CLOEXEC) };
        assert!(fd >= 0, "{}", Errno::last());
        let as_path = unsafe { File::from_raw_fd(fd) };
        assert_eq!(Sealed::from_fd(as_path.into()).unwrap_err().raw_os_error(), Some(libc::EBADF));
        assert_eq!(descriptors(), before + 1);
        // The rest is for comparison: what is accepted.
        let read_only = File::open(&path).unwrap();
        // Not executable for ever, by a seal of its own (Linux 6.3).
        let sealed = Sealed::from_fd(not_executable(&payload).into()).unwrap();
        assert_unchangeable(&sealed, &payload);
        drop(sealed);
        for file in
            [good, read_only, with_seals(&payload, ALL | libc::F_SEAL_FUTURE_WRITE), with_seals(&[], ALL)]
        {
            let expected = if file.metadata().unwrap().len() > 0 { &payload[..] } else { &[] };
            let sealed = Sealed::from_fd(file.into()).unwrap();
            assert!(*sealed == *expected);
            assert_unchangeable(&sealed, expected);
        }
    });
}

#[test]
fn what_is_not_sealed_can_be_copied_instead() {
    let payload = pattern(8, 3 * MIB + 9);
    for seals in [0, libc::F_SEAL_SHRINK, ALL] {
        let mut file = with_seals(&payload, seals);
        file.read_exact(&mut [0; 5]).unwrap();
        let sealed = Sealed::copy_of_file(&file, payload.len()).unwrap();
        assert!(*sealed == payload);
        assert_unchangeable(&sealed, &payload);
        let error = Sealed::copy_of_file(&file, payload.len() + 1).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnexpectedEof, "{error}");
        assert!(*Sealed::copy_of_file(&file, 3).unwrap() == payload[..3]);
        let mut next = [0];
        file.read_exact(&mut next).unwrap();
        assert_eq!(next[0], payload[5], "the position stays");
    }
    let mut from_file =
        Sealed::copy_of_file(File::open("/proc/self/exe").unwrap(), 100_000).map(file).unwrap();
    assert!(from_file.read(&mut [0; 10]).unwrap() == 10, "a file starts at its start");
    assert!(Sealed::copy_of_file(UnixStream::pair().unwrap().0, 1).is_err());
}

/// A message as `Sealed::send` makes it.
fn message(version: u16, how: u16, len: u64, bytes: &[u8]) -> Vec<u8> {
    let mut message = b"ropewalk".to_vec();
    message.extend(version.to_le_bytes());
    message.extend(how.to_le_bytes());
    message.extend([0; 4]);
    message.extend(len.to_le_bytes());
    message.extend(bytes);
    message
}

fn send_with(socket: &Socket, message: &[u8], fds: &[BorrowedFd<'_>]) {
    Rope::from(message.to_vec()).sendmsg_to(socket, 0, fds).unwrap();
}

/// Numbers that look random and repeat.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        ((self.0 >> 33) % bound as u64) as usize
    }
}

/// What a peer tries: sends a message, and goes on with the file when it was received.
fn attack(random: &mut Random, socket: &Socket, payload: &[u8]) -> Option<SharedMap> {
    let len = payload.len() as u64;
    let seals = match random.below(4) {
        0 => random.below(1 + ALL as usize) as i32,
        1 => ALL & !libc::F_SEAL_WRITE | libc::F_SEAL_FUTURE_WRITE,
        _ => ALL,
    };
    let file = memfd(libc::MFD_ALLOW_SEALING);
    file.write_all_at(payload, 0).unwrap();
    let mut kept = None;
    match random.below(8) {
        // A map from before the seals: the kernel refuses `F_SEAL_WRITE`, so the rest is sent.
        0 => {
            kept = SharedMap::new(&file).ok();
            assert!(payload.is_empty() || add_seals(&file, ALL).is_err());
            let _ = add_seals(&file, seals & !libc::F_SEAL_WRITE);
        }
        1 => {
            let _ = file.set_len(len + (random.below(1 << 20) as u64));
            let _ = add_seals(&file, seals);
        }
        _ => {
            let _ = add_seals(&file, seals);
        }
    }
    let disk;
    let file = match random.below(16) {
        0 => {
            disk = tempfile::tempfile_in("/dev/shm").unwrap_or_else(|_| memfd(0));
            disk.write_all_at(payload, 0).unwrap();
            &disk
        }
        1 => {
            disk = tempfile::tempfile_in(".").unwrap();
            disk.write_all_at(payload, 0).unwrap();
            &disk
        }
        2 => {
            disk = File::open("/dev/null").unwrap();
            &disk
        }
        _ => &file,
    };
    let announced = match random.below(6) {
        0 => len.wrapping_add(1),
        1 => [0, len / 2, u64::MAX, 1 << 63, 1 << 32, 4097][random.below(6)],
        _ => len,
    };
    let how = if random.below(8) == 0 { random.below(4) as u16 } else { 0 };
    let version = if random.below(16) == 0 { random.below(4) as u16 } else { 1 };
    let body = if random.below(8) == 0 { &payload[..random.below(payload.len() + 1)] } else { &[] };
    let mut message = message(version, how, announced, body);
    if random.below(16) == 0 {
        let at = random.below(message.len());
        message[at] ^= 1 << random.below(8);
    }
    if random.below(16) == 0 {
        message.truncate(1 + random.below(message.len()));
    }
    let fds = match random.below(8) {
        0 => vec![],
        1 => vec![file.as_fd(); 2 + random.below(252)],
        _ => vec![file.as_fd()],
    };
    send_with(socket, &message, &fds);
    kept
}

#[test]
fn hostile_handovers() {
    in_child("hostile_handovers", || {
        let rounds = count("ROPEWALK_HOSTILE", 4000);
        let (mut random, mut accepted) = (Random(7), 0);
        let before = (descriptors(), maps());
        for round in 0..rounds {
            let kind = TYPES[round % 3];
            let (here, there) = pair(kind);
            there.set_nonblocking(true).unwrap();
            let payload = pattern(round as u64, [0, 1, 100, 4095, 4096, 4097, 20_000][random.below(7)]);
            let _map = attack(&mut random, &here, &payload);
            match Sealed::receive(&there) {
                // What is accepted can be read, and cannot be changed.
                Ok(sealed) => {
                    accepted += 1;
                    let copy = sealed.to_vec();
                    assert!(payload.starts_with(&copy) || copy.starts_with(&payload));
                    assert_unchangeable(&sealed, &copy);
                    assert!(*sealed == copy);
                }
                Err(error) => assert!(
                    [ErrorKind::InvalidData, ErrorKind::PermissionDenied].contains(&error.kind()),
                    "{round}: {error:?}"
                ),
            }
            drop((here, there, _map));
            if round % 256 == 0 {
                assert_eq!((descriptors(), maps()), before, "after {round}");
            }
        }
        assert_eq!((descriptors(), maps()), before);
        assert!(accepted > rounds / 20 && accepted < rounds, "{accepted} of {rounds} were accepted");
        println!("{rounds} hostile handovers: {accepted} accepted, the others refused");
    });
}

#[test]
fn messages_that_are_not_handovers() {
    in_child("messages_that_are_not_handovers", || {
        let payload = pattern(9, 3000);
        let good = with_seals(&payload, ALL);
        let before = descriptors();
        let fds = |count| vec![good.as_fd(); count];
        let cases: [(Vec<u8>, usize, &str); 11] = [
            (b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n".to_vec(), 0, "begin with"),
            (message(2, 0, 3000, &[]), 1, "version 2"),
            (message(1, 2, 3000, &[]), 1, "way 2"),
            (message(1, 0, 3001, &[]), 1, "3000 bytes came with a message of 3001"),
            (message(1, 0, u64::MAX, &[]), 1, "possible"),
            (message(1, 0, 3000, &[]), 0, "0 descriptors came with a message that has 1"),
            (message(1, 0, 3000, &[]), 3, "3 descriptors came with a message that has 1"),
            (message(1, 1, 3000, &payload), 1, "1 descriptors came with a message that has 0"),
            (message(1, 1, 3000, &payload[1..]), 0, "one piece"),
            (message(1, 1, 4097, &payload), 0, "at most 4096"),
            (message(1, 0, 3000, &[])[..23].to_vec(), 1, "23 bytes, 24 is the least"),
        ];
        for kind in TYPES {
            for (bytes, count, why) in &cases {
                let (here, there) = pair(kind);
                there.set_nonblocking(true).unwrap();
                send_with(&here, bytes, &fds(*count));
                let error = Sealed::receive(&there).unwrap_err();
                assert!(
                    error.kind() == ErrorKind::InvalidData && error.to_string().contains(why),
                    "{error}: {why}"
                );
                // A message socket goes on with the next message.
                if kind != Type::STREAM {
                    Sealed::copy_of(&payload).unwrap().send(&here).unwrap();
                    assert!(*Sealed::receive(&there).unwrap() == payload);
                }
            }
            // Longer than it says.
            let (here, there) = pair(kind);
            send_with(&here, &message(1, 1, 2000, &payload), &[]);
            let got = Sealed::receive(&there);
            assert_eq!(got.is_ok(), kind == Type::STREAM, "what follows on a stream is the next message");
        }
        // Nothing has come; the end; what is no socket.
        for kind in TYPES {
            let (here, there) = pair(kind);
            there.set_nonblocking(true).unwrap();
            assert_eq!(Sealed::receive(&there).unwrap_err().kind(), ErrorKind::WouldBlock);
            if kind != Type::DGRAM {
                drop(here);
                assert_eq!(Sealed::receive(&there).unwrap_err().kind(), ErrorKind::UnexpectedEof);
            }
        }
        let sealed = Sealed::copy_of(b"one").unwrap();
        assert_eq!(Sealed::receive(&good).unwrap_err().raw_os_error(), Some(libc::ENOTSOCK));
        assert_eq!(sealed.send(&good).unwrap_err().kind(), ErrorKind::InvalidInput);
        // TCP would drop the descriptor and say nothing.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let tcp = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert_eq!(sealed.send(&tcp).unwrap_err().kind(), ErrorKind::InvalidInput);
        let (here, there) = pair(Type::STREAM);
        drop(there);
        assert_eq!(sealed.send(&here).unwrap_err().kind(), ErrorKind::BrokenPipe);
        drop((here, sealed));
        assert_eq!(descriptors(), before + 2);
    });
}

#[test]
fn a_full_socket_takes_a_message_whole_or_not_at_all() {
    for kind in TYPES {
        for buffer in [1, 4 << 10, 17 << 10, 64 << 10] {
            for len in [0, 1, 100, 2000, 4095, 4096, 4097, 100_000] {
                let payload = pattern(len as u64, len);
                let sealed = Sealed::copy_of(&payload).unwrap();
                let (here, there) = pair(kind);
                SockRef::from(&here).set_send_buffer_size(buffer).unwrap();
                SockRef::from(&there).set_recv_buffer_size(buffer).unwrap();
                here.set_nonblocking(true).unwrap();
                there.set_nonblocking(true).unwrap();
                let (mut sent, mut got) = (0, 0);
                for _ in 0..3 {
                    let mut blocked = false;
                    for _ in 0..400 {
                        match sealed.send(&here) {
                            Ok(()) => sent += 1,
                            Err(error) => {
                                // Linux reports a full queue of a message socket so, too.
                                assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}");
                                blocked = true;
                                break;
                            }
                        }
                    }
                    assert!(blocked && sent > got, "{kind:?}, {buffer} bytes of buffer, {len} of payload");
                    // Some are taken, so that the next round begins with a part of the queue.
                    let keep = sent - got;
                    for _ in 0..keep - keep / 3 {
                        assert!(*Sealed::receive(&there).unwrap() == payload);
                        got += 1;
                    }
                }
                while got < sent {
                    assert!(*Sealed::receive(&there).unwrap() == payload);
                    got += 1;
                }
                assert_eq!(Sealed::receive(&there).unwrap_err().kind(), ErrorKind::WouldBlock);
            }
        }
    }
}

#[test]
fn a_blocking_socket_waits_both_ways() {
    let (here, there) = pair(Type::STREAM);
    SockRef::from(&here).set_send_buffer_size(1).unwrap();
    let sender = thread::spawn(move || {
        for round in 0..2000u64 {
            let len = [0, 1, 4000, 4096, 4097, 50_000][round as usize % 6];
            Sealed::copy_of(&pattern(round, len)).unwrap().send(&here).unwrap();
        }
    });
    for round in 0..2000u64 {
        let len = [0, 1, 4000, 4096, 4097, 50_000][round as usize % 6];
        assert!(*Sealed::receive(&there).unwrap() == pattern(round, len));
    }
    sender.join().unwrap();
    assert_eq!(Sealed::receive(&there).unwrap_err().kind(), ErrorKind::UnexpectedEof);
}

#[test]
fn several_readers_of_a_message_socket_get_each_payload_once() {
    for kind in [Type::SEQPACKET, Type::DGRAM] {
        let (here, there) = pair(kind);
        let readers: Vec<_> = (0..4)
            .map(|_| {
                let there = there.try_clone().unwrap();
                thread::spawn(move || {
                    let mut seen = Vec::new();
                    loop {
                        let sealed = Sealed::receive(&there).unwrap();
                        if sealed.is_empty() {
                            return seen;
                        }
                        let seed = u64::from_le_bytes(sealed[..8].try_into().unwrap());
                        assert!(sealed[8..] == pattern(seed, sealed.len() - 8));
                        seen.push(seed);
                    }
                })
            })
            .collect();
        for seed in 0..500u64 {
            let len = [10, 4088, 4089, 30_000][seed as usize % 4];
            let payload = [&seed.to_le_bytes()[..], &pattern(seed, len)].concat();
            Sealed::copy_of(&payload).unwrap().send(&here).unwrap();
        }
        for _ in &readers {
            Sealed::copy_of(&[]).unwrap().send(&here).unwrap();
        }
        let mut seen: Vec<_> = readers.into_iter().flat_map(|reader| reader.join().unwrap()).collect();
        seen.sort_unstable();
        assert!(seen.into_iter().eq(0..500));
    }
}

fn limit(resource: Resource, soft: u64) {
    let (_, hard) = getrlimit(resource).unwrap();
    setrlimit(resource, soft.min(hard), hard).unwrap();
}

#[test]
fn without_a_descriptor_left_a_message_stays_in_the_socket() {
    in_child("without_a_descriptor_left_a_message_stays_in_the_socket", || {
        let (here, there) = pair(Type::SEQPACKET);
        let small = Sealed::copy_of(&pattern(1, 100)).unwrap();
        let large = Sealed::copy_of(&pattern(2, 100_000)).unwrap();
        let view = Rope::from(pattern(3, 100_000)).finalize().unwrap();
        let next = File::open("/dev/null").unwrap().as_raw_fd() as u64;
        for sealed in [&small, &large] {
            sealed.send(&here).unwrap();
            limit(Resource::RLIMIT_NOFILE, next);
            for _ in 0..3 {
                assert_eq!(Sealed::receive(&there).unwrap_err().raw_os_error(), Some(libc::EMFILE));
            }
            assert_eq!(Rope::for_handover().unwrap_err().raw_os_error(), Some(libc::EMFILE));
            let refused = view.clone().seal().unwrap_err();
            assert!(*refused.into_view() == *view);
            limit(Resource::RLIMIT_NOFILE, next + 1);
            assert!(*Sealed::receive(&there).unwrap() == **sealed);
        }
        // Several descriptors, of which there is room for one: the kernel cuts the control data.
        let good = file(&large);
        limit(Resource::RLIMIT_NOFILE, next + 2);
        send_with(&here, &message(1, 0, 100_000, &[]), &[good.as_fd(); 5]);
        let error = Sealed::receive(&there).unwrap_err();
        assert!(
            error.kind() == ErrorKind::InvalidData && error.to_string().contains("RLIMIT_NOFILE"),
            "{error}"
        );
        let open = File::open("/dev/null").expect("the descriptor that came is closed");
        drop(open);
    });
}

#[test]
fn without_address_space_a_message_stays_in_the_socket() {
    in_child("without_address_space_a_message_stays_in_the_socket", || {
        let payload = pattern(2, 64 * MIB);
        let sealed = Sealed::copy_of(&payload).unwrap();
        for kind in TYPES {
            let (here, there) = pair(kind);
            there.set_nonblocking(true).unwrap();
            sealed.send(&here).unwrap();
            let before = (descriptors(), maps());
            limit(Resource::RLIMIT_AS, bytes_in("/proc/self/status", "VmSize:") + (8 << 20));
            for _ in 0..3 {
                assert_eq!(Sealed::receive(&there).unwrap_err().kind(), ErrorKind::OutOfMemory);
            }
            assert_eq!((descriptors(), maps()), before);
            limit(Resource::RLIMIT_AS, u64::MAX);
            assert!(*Sealed::receive(&there).unwrap() == payload);
            // No file can have so many bytes: such a message does not stay.
            send_with(&here, &message(1, 0, 1 << 62, &[]), &[sealed.as_fd()]);
            assert_eq!(Sealed::receive(&there).unwrap_err().kind(), ErrorKind::InvalidData);
            assert_eq!(Sealed::receive(&there).unwrap_err().kind(), ErrorKind::WouldBlock);
        }
    });
}

/// A descriptor of the sender with each message, since Linux 6.5; 76 wherever it is not Alpha, PA-RISC or SPARC.
const SO_PASSPIDFD: i32 = 76;

/// Returns whether the kernel has the option.
fn set(socket: &Socket, option: i32, value: i32) -> bool {
    let value = ptr::from_ref(&value).cast();
    // SAFETY: the option is an `int`.
    unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, option, value, 4) == 0 }
}

/// The kernel makes a descriptor of the sender too, where the option is set, after those that were sent.
#[test]
fn with_few_descriptors_left_a_socket_that_adds_some_loses_nothing() {
    in_child("with_few_descriptors_left_a_socket_that_adds_some_loses_nothing", || {
        let payloads = [0, 100, 4097, 100_000].map(|len| sealed(&pattern(len as u64, len)));
        let next = File::open("/dev/null").unwrap().as_raw_fd() as u64;
        for kind in TYPES {
            for options in [&[][..], &[SO_PASSPIDFD], &[libc::SO_PASSCRED, libc::SO_PASSSEC, SO_PASSPIDFD]] {
                let (here, there) = pair(kind);
                there.set_nonblocking(true).unwrap();
                if !options.iter().all(|&option| set(&there, option, 1)) {
                    continue;
                }
                let sockets = descriptors();
                for payload in &payloads {
                    payload.send(&here).unwrap();
                    let received = (0..4).find_map(|left| {
                        limit(Resource::RLIMIT_NOFILE, next + 2 + left);
                        let received = Sealed::receive(&there);
                        limit(Resource::RLIMIT_NOFILE, 1000);
                        match received {
                            Ok(received) => Some((left, received)),
                            Err(error) => {
                                assert_eq!(error.raw_os_error(), Some(libc::EMFILE), "{error}");
                                assert_eq!(descriptors(), sockets);
                                None
                            }
                        }
                    });
                    let (left, received) = received.unwrap();
                    assert_eq!(left, 1, "{kind:?} {options:?}");
                    assert!(*received == **payload);
                    assert_eq!(descriptors(), sockets + 1, "{kind:?} {options:?}");
                    drop(received);
                    assert_eq!(Sealed::receive(&there).unwrap_err().kind(), ErrorKind::WouldBlock);
                    // More descriptors than may come, of which there is room for some.
                    for left in 1..5 {
                        let fds = [payload.as_fd(); 3];
                        send_with(&here, &message(1, 0, payload.len() as u64, &[]), &fds);
                        limit(Resource::RLIMIT_NOFILE, next + 2 + left);
                        let refused = Sealed::receive(&there).unwrap_err();
                        limit(Resource::RLIMIT_NOFILE, 1000);
                        assert_eq!(refused.kind(), ErrorKind::InvalidData, "{refused}");
                        assert_eq!(descriptors(), sockets, "{kind:?} {options:?}");
                    }
                }
            }
        }
    });
}

#[test]
fn a_socket_that_adds_credentials_or_moves_with_peeks_loses_nothing() {
    for kind in TYPES {
        for (option, value) in [
            (libc::SO_PASSCRED, 1),
            (libc::SO_TIMESTAMPNS, 1),
            (libc::SO_PEEK_OFF, 0),
            (libc::SO_PASSSEC, 1),
            (SO_PASSPIDFD, 1),
        ] {
            let (here, there) = pair(kind);
            there.set_nonblocking(true).unwrap();
            if !set(&there, option, value) {
                assert!(option == SO_PASSPIDFD, "{option}: {}", Errno::last());
                continue;
            }
            for len in [0, 100, 4096, 4097, 100_000] {
                let payload = pattern(len as u64, len);
                Sealed::copy_of(&payload).unwrap().send(&here).unwrap();
                let got =
                    Sealed::receive(&there).unwrap_or_else(|error| panic!("{kind:?} {option}: {error}"));
                assert!(*got == payload, "{kind:?} {option}, {len} bytes");
                assert_eq!(Sealed::receive(&there).unwrap_err().kind(), ErrorKind::WouldBlock);
            }
        }
    }
}

#[test]
fn a_file_size_limit_is_an_error_not_a_signal() {
    in_child("a_file_size_limit_is_an_error_not_a_signal", || {
        let payload = pattern(1, 3 * MIB);
        let view = Rope::from(payload.clone()).finalize().unwrap();
        limit(Resource::RLIMIT_FSIZE, 2 << 20);
        let refused = view.seal().unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::FileTooLarge, "{refused}");
        assert!(*refused.into_view() == payload);
        assert!(Sealed::copy_of_file(File::open("/proc/self/exe").unwrap(), 3 * MIB).is_err());
        let mut rope = Rope::for_handover().unwrap();
        rope.extend_from_slice(&payload[..MIB]);
        assert!(*rope.finalize().unwrap().seal().unwrap() == payload[..MIB]);
    });
}

#[test]
fn kernels_that_refuse_shared_maps_of_sealed_files() {
    in_child("kernels_that_refuse_shared_maps_of_sealed_files", || {
        let payload = pattern(1, 3 * MIB);
        let view = for_handover(&payload).finalize().unwrap();
        // Before 6.7, and in 6.12.0 to 6.12.8, for write-sealed files.
        seccomp::forbid(libc::SYS_mmap, Some((3, libc::MAP_SHARED as u32)), libc::EPERM);
        let sealed = view.seal().unwrap();
        let (here, there) = UnixStream::pair().unwrap();
        sealed.send(&here).unwrap();
        assert!(*Sealed::receive(&there).unwrap() == payload && *sealed == payload);
    });
}

#[test]
#[cfg_attr(target_pointer_width = "32", ignore = "forbids a call by its number with 64 bits")]
fn a_sandbox_without_seals_or_memfds() {
    in_child("a_sandbox_without_seals_or_memfds", || {
        let payload = pattern(1, MIB);
        let view = for_handover(&payload).finalize().unwrap();
        let other = Sealed::copy_of(&payload).unwrap();
        let (here, there) = UnixStream::pair().unwrap();
        other.send(&here).unwrap();
        Sealed::copy_of(b"small").unwrap().send(&here).unwrap();
        seccomp::forbid(libc::SYS_memfd_create, None, libc::EPERM);
        assert_eq!(Rope::for_handover().unwrap_err().kind(), ErrorKind::PermissionDenied);
        assert!(*Sealed::receive(&there).unwrap() == payload, "needs no memfd of its own");
        // One that was copied into the message does, and stays in the socket.
        for _ in 0..3 {
            assert_eq!(Sealed::receive(&there).unwrap_err().kind(), ErrorKind::PermissionDenied);
        }
        seccomp::forbid(libc::SYS_fcntl, Some((1, libc::F_ADD_SEALS as u32)), libc::EPERM);
        let refused = view.seal().unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::PermissionDenied);
        assert!(*refused.into_view() == payload);
    });
}

/// Runs `body` in a child; fails if it panics, hangs or is killed.
fn in_fork(body: impl FnOnce()) {
    // SAFETY: the child calls nothing but `body`, an alarm and `_exit`; the allocator of this platform survives fork.
    match unsafe { fork() }.unwrap() {
        ForkResult::Parent { child } => assert_eq!(waitpid(child, None), Ok(WaitStatus::Exited(child, 0))),
        ForkResult::Child => {
            unsafe { libc::alarm(20) };
            let done = catch_unwind(AssertUnwindSafe(body));
            unsafe { libc::_exit(i32::from(done.is_err())) }
        }
    }
}

#[test]
fn a_forked_child_reads_what_is_sealed_and_cannot_seal() {
    in_child("a_forked_child_reads_what_is_sealed_and_cannot_seal", || {
        let payload = pattern(1, 2 * MIB);
        let sealed = sealed(&payload);
        let mut view = Some(for_handover(&payload).finalize().unwrap());
        let rope = for_handover(&payload);
        let (here, there) = UnixStream::pair().unwrap();
        in_fork(|| {
            assert!(*sealed == payload);
            sealed.send(&here).unwrap();
            let refused = view.take().unwrap().seal().unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::Unsupported);
            drop(refused);
            drop(sealed.clone());
            // It makes its own.
            assert!(*filled_and_sealed(&payload[..MIB]) == payload[..MIB]);
        });
        assert!(*Sealed::receive(&there).unwrap() == payload && *sealed == payload);
        // A child that lives has no map of the memfd, so it does not prevent sealing.
        let (ends, ended) = pipe();
        // SAFETY: the child only waits for the end of the pipe.
        match unsafe { fork() }.unwrap() {
            ForkResult::Child => {
                drop(ended);
                let mut ends = ends;
                unsafe { libc::alarm(60) };
                let _ = ends.read(&mut [0]);
                unsafe { libc::_exit(0) }
            }
            ForkResult::Parent { child } => {
                assert!(*view.unwrap().seal().unwrap() == payload);
                assert!(*rope.finalize().unwrap().seal().unwrap() == payload);
                drop(ended);
                assert_eq!(waitpid(child, None), Ok(WaitStatus::Exited(child, 0)));
            }
        }
    });
}

fn filled_and_sealed(payload: &[u8]) -> Sealed {
    let mut rope = Rope::for_handover().unwrap();
    rope.extend_from_slice(payload);
    rope.finalize().unwrap().seal().unwrap()
}

/// Names the part that this program plays as a process of its own.
const PART: &str = "ROPEWALK_TEST_PART";

/// Starts this program, as `part` of the test `name`, with a socket as its standard input.
fn start(name: &str, part: &str, stdin: UnixStream) -> Child {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args([name, "--exact", "--nocapture"]).env(PART, part);
    command.stdin(OwnedFd::from(stdin)).stdout(Stdio::null()).spawn().unwrap()
}

/// The standard input of a process that was started so, a socket.
fn stdin_socket() -> UnixStream {
    UnixStream::from(io::stdin().as_fd().try_clone_to_owned().unwrap())
}

#[test]
fn a_third_process_gets_the_same_memory() {
    const NAME: &str = "a_third_process_gets_the_same_memory";
    match env::var(PART).ok().as_deref() {
        // Sends back what comes, through a process of its own, and ends with the stream.
        Some("second") => {
            let first = stdin_socket();
            let (here, there) = UnixStream::pair().unwrap();
            let mut third = start(NAME, "third", there);
            while let Ok(sealed) = Sealed::receive(&first) {
                sealed.send(&here).unwrap();
                let back = Sealed::receive(&here).unwrap();
                assert_eq!(inode(&back) == inode(&sealed), sealed.len() > 4096);
                back.send(&first).unwrap();
            }
            drop(here);
            third.wait().unwrap();
        }
        Some(_third) => {
            let socket = stdin_socket();
            while let Ok(sealed) = Sealed::receive(&socket) {
                assert_unchangeable(&sealed, &sealed);
                sealed.send(&socket).unwrap();
            }
        }
        None => {
            let (here, there) = UnixStream::pair().unwrap();
            let mut second = start(NAME, "second", there);
            for len in LENGTHS {
                let payload = pattern(len as u64, len);
                let sealed = sealed(&payload);
                sealed.send(&here).unwrap();
                let back = Sealed::receive(&here).unwrap();
                assert!(*back == payload);
                assert_eq!(inode(&back) == inode(&sealed), len > 4096);
            }
            drop(here);
            assert!(second.wait().unwrap().success());
        }
    }
}

#[test]
fn a_receiver_that_is_killed_leaves_nothing_behind() {
    const NAME: &str = "a_receiver_that_is_killed_leaves_nothing_behind";
    if env::var(PART).is_ok() {
        let socket = stdin_socket();
        let mut kept = Vec::new();
        while let Ok(sealed) = Sealed::receive(&socket) {
            let sum = sealed.iter().map(|&byte| u64::from(byte)).sum::<u64>();
            (&socket).write_all(&sum.to_le_bytes()).unwrap();
            kept.push(sealed);
        }
        return;
    }
    // In a process of its own, whose descriptors no other test changes.
    in_child(NAME, || {
        let (rounds, mut random) = (count("ROPEWALK_KILLS", 25), Random(3));
        let payloads = [pattern(1, 100), pattern(2, 8193), pattern(3, 3 * MIB)];
        let all = payloads.each_ref().map(|payload| filled_and_sealed(payload));
        let before = (descriptors(), maps(), shared_memory());
        let mut received = 0;
        for round in 0..rounds {
            let (here, there) = UnixStream::pair().unwrap();
            here.set_nonblocking(true).unwrap();
            let mut receiver = start(NAME, "receiver", there);
            // Every other one at any moment from its start, the others while they receive.
            let mut end = Instant::now() + Duration::from_micros(random.below(20_000) as u64);
            let (mut own, mut answers) = (Vec::new(), 0);
            while Instant::now() < end || (round % 2 == 0 && answers == 0) {
                // What only this round has: it must be freed with the receiver.
                own = vec![filled_and_sealed(&payloads[2])];
                for sealed in all.iter().chain(own.last()) {
                    match sealed.send(&here) {
                        Ok(()) => {}
                        Err(error) => assert!(
                            [ErrorKind::WouldBlock, ErrorKind::BrokenPipe, ErrorKind::ConnectionReset]
                                .contains(&error.kind())
                                || error.raw_os_error() == Some(libc::ETOOMANYREFS),
                            "{error}"
                        ),
                    }
                }
                let mut sum = [0; 8];
                while (&here).read(&mut sum).is_ok_and(|count| count > 0) {
                    if answers == 0 && round % 2 == 0 {
                        end = Instant::now() + Duration::from_micros(random.below(5000) as u64);
                    }
                    answers += 1;
                }
            }
            received += answers;
            drop(own);
            receiver.kill().unwrap();
            receiver.wait().unwrap();
            // Still whole, and still good for the next receiver.
            assert!(all.iter().zip(&payloads).all(|(sealed, payload)| **sealed == **payload));
        }
        assert_eq!((descriptors(), maps()), (before.0, before.1));
        let grown = shared_memory().saturating_sub(before.2) >> 20;
        assert!(received >= rounds / 2);
        println!(
            "{rounds} receivers killed behind {received} payloads; shared memory of the machine grew by {grown} MiB meanwhile"
        );
    });
}

/// Bytes of shared memory of the whole machine.
fn shared_memory() -> u64 {
    bytes_in("/proc/meminfo", "Shmem:")
}

#[test]
fn threads_seal_send_and_receive_at_the_same_time() {
    let threads: Vec<_> = (0..4u64)
        .map(|seed| {
            thread::spawn(move || {
                let (here, there) = UnixDatagram::pair().unwrap();
                for round in 0..50 {
                    let payload = pattern(seed * 100 + round, 20_000 + 10_007 * round as usize);
                    let sealed = sealed(&payload);
                    sealed.send(&here).unwrap();
                    let clone = sealed.clone();
                    let received = Sealed::receive(&there).unwrap();
                    assert!(*received == payload && *clone == payload);
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}
