//! What happens when something runs out. Each test sets the real limit, in a process of its own.
#![allow(unsafe_code)] // the limits are set by raw calls

#[path = "support/seccomp.rs"]
mod seccomp;
#[allow(dead_code)] // some of it is for other tests
mod support;

use std::fs::{self, File};
use std::hint::black_box;
use std::io::{self, ErrorKind, IoSlice, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process;
use std::ptr;
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nix::sys::stat::Mode;
use nix::unistd::{mkfifo, pipe2};
use ropewalk::{Backing, Pool, Rope, Sealed};
use seccomp::forbid;
use support::{in_child, pair, pattern, receive, receive_all, received};
use tokio::task::JoinSet;
use tokio::time::timeout;

const MIB: usize = 1 << 20;

fn limit(resource: Resource, soft: u64) {
    let (_, hard) = getrlimit(resource).unwrap();
    setrlimit(resource, soft, hard).unwrap();
}

fn pool(capacity: usize) -> Pool {
    Pool::options().capacity(capacity as u64).create().unwrap()
}

/// Ropes of which each received a page in turn, so that none is contiguous.
fn interleaved(pool: &Pool, payload: &[u8], piece: usize) -> [Rope; 2] {
    let mut ropes = [Rope::in_pool(pool), Rope::in_pool(pool)];
    for chunk in payload.chunks(piece) {
        for rope in &mut ropes {
            // A rope that grows would have been given room.
            let mut piece = Rope::in_pool(pool);
            assert!(receive(&mut piece, chunk).1.is_none());
            rope.append(piece);
        }
    }
    ropes
}

/// A pool in which something has run out keeps what it holds, refuses more for this `reason`, and goes
/// on once there is room.
fn refuses_and_goes_on(pool: &Pool, reason: &str) {
    let payload = pattern(2, MIB);
    let other = received(pool, &payload);
    let mut rope = Rope::in_pool(pool);
    let error = (0..1024).find_map(|_| receive(&mut rope, &payload).1).expect("so much does not fit");
    assert_eq!(error.kind(), ErrorKind::OutOfMemory);
    assert!(error.to_string().contains(reason), "{error}");
    assert!(rope.len() > 2 * MIB);
    assert!(consists_of(&rope, &payload), "what had arrived is not readable");
    assert!(other == payload, "another rope was touched");
    rope.advance(2 * MIB);
    assert!(receive(&mut rope, &payload[..MIB / 2]).1.is_none(), "work does not go on");
    drop((rope, other));
    assert_eq!(pool.stats().in_use, 0);
    pool.trim().unwrap();
    drop(received(pool, &payload));
}

/// Whether the rope is `payload` again and again, the last time perhaps in part.
fn consists_of(rope: &Rope, payload: &[u8]) -> bool {
    (0..rope.len()).step_by(payload.len()).all(|at| {
        let len = payload.len().min(rope.len() - at);
        rope.slice(at..at + len) == payload[..len]
    })
}

#[test]
fn address_space_makes_the_arena_smaller() {
    in_child("address_space_makes_the_arena_smaller", || {
        limit(Resource::RLIMIT_AS, address_space() + 200 * MIB as u64);
        let pool = pool(1 << 30);
        let stats = pool.stats();
        assert!(stats.reduced && stats.capacity >= 64 << 20 && stats.capacity <= 200 << 20, "{stats:?}");
        let backing = if cfg!(ropewalk_portable) { Backing::Anonymous } else { Backing::Memfd };
        assert_eq!(stats.backing, backing);
        refuses_and_goes_on(&pool, "at capacity");
    });
}

#[test]
fn without_any_address_space_there_is_no_pool() {
    in_child("without_any_address_space_there_is_no_pool", || {
        // Some is left for the error: musl's allocator sets none aside.
        limit(Resource::RLIMIT_AS, address_space() + (256 << 10));
        let error = Pool::new().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OutOfMemory);
    });
}

#[test]
fn a_view_for_which_there_is_no_address_space_gives_the_rope_back() {
    in_child("a_view_for_which_there_is_no_address_space_gives_the_rope_back", || {
        let pool = pool(160 * MIB);
        // More than glibc has set aside for the heap of a thread.
        let payload = pattern(3, 72 * MIB);
        let [rope, other] = interleaved(&pool, &payload, MIB);
        limit(Resource::RLIMIT_AS, address_space() + 4 * MIB as u64);
        let error = rope.finalize().unwrap_err();
        assert_eq!(io::Error::from(other.finalize().unwrap_err()).kind(), ErrorKind::OutOfMemory);
        assert!(error.to_string().contains("75497472 bytes"), "{error}");
        assert!(format!("{error:?}").len() < 300, "no contents: {error:?}");
        let rope = error.into_rope();
        assert!(rope == payload);
        limit(Resource::RLIMIT_AS, address_space() + 128 * MIB as u64);
        assert!(*rope.finalize().unwrap() == payload[..]);
    });
}

/// Bytes of address space that this process uses.
fn address_space() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmSize:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

#[test]
fn without_descriptors_the_arena_is_anonymous() {
    in_child("without_descriptors_the_arena_is_anonymous", || {
        let sockets = pair();
        limit(Resource::RLIMIT_NOFILE, 0);
        let pool = pool(8 * MIB);
        let refused = cfg!(not(ropewalk_portable)); // the memfd, which the portable part does not ask for
        assert_eq!((pool.stats().backing, pool.stats().reduced), (Backing::Anonymous, refused));
        let (mut peer, socket) = sockets;
        let payload = pattern(4, 64 << 10);
        let mut ropes = [Rope::in_pool(&pool), Rope::in_pool(&pool)];
        for chunk in payload.chunks(16 << 10) {
            for rope in &mut ropes {
                peer.write_all(chunk).unwrap();
                while rope.readv_from(&socket).is_ok() {}
            }
        }
        for rope in ropes {
            assert!(*rope.finalize().unwrap() == payload[..]);
        }
        assert_eq!((pool.stats().maps, pool.stats().in_use), (0, 0));
    });
}

#[test]
fn descriptors_for_which_there_is_no_room_are_reported() {
    in_child("descriptors_for_which_there_is_no_room_are_reported", || {
        let (peer, socket) = pair();
        let sent = [io::stderr().as_raw_fd(); 3];
        sendmsg::<()>(
            peer.as_raw_fd(),
            &[IoSlice::new(b"three")],
            &[ControlMessage::ScmRights(&sent)],
            MsgFlags::empty(),
            None,
        )
        .unwrap();
        // Descriptors get the lowest free numbers: one more is free below this limit.
        let next = socket.as_fd().try_clone_to_owned().unwrap();
        limit(Resource::RLIMIT_NOFILE, next.as_raw_fd() as u64 + 2);
        let mut rope = Rope::new();
        let received = rope.recvmsg_from(&socket, 0).unwrap();
        assert_eq!((received.bytes, received.fds.len(), received.truncated), (5, 1, true));
        assert_eq!(rope, b"three");
    });
}

/// No descriptor is left, or one where two are needed. Each call that opens one fails and leaves nothing behind, and
/// succeeds once there are some.
#[test]
#[cfg_attr(ropewalk_portable, ignore = "needs memfds and spill files")]
fn without_descriptors_each_call_is_an_error_that_loses_nothing() {
    in_child("without_descriptors_each_call_is_an_error_that_loses_nothing", || {
        let directory = tempfile::tempdir().unwrap();
        let names = || fs::read_dir(directory.path()).unwrap().count();
        let open = || fs::read_dir("/proc/self/fd").unwrap().count();
        let threads = || fs::read_dir("/proc/self/task").unwrap().count();
        let payload = pattern(11, 3 * MIB);
        let pool = pool(32 * MIB);
        let view = received(&pool, &payload).finalize().unwrap();
        let path = directory.path().join("payload");
        let source = tempfile::tempfile().unwrap();
        std::os::unix::fs::FileExt::write_all_at(&source, &payload, 0).unwrap();
        let mut spliced = Rope::for_handover().unwrap();
        receive_all(&mut spliced, &payload);
        let (mut peer, socket) = pair();
        let (packets, writer) = pipe2(OFlag::O_DIRECT | OFlag::O_CLOEXEC).unwrap();
        let mut writer = File::from(writer);
        writer.write_all(&payload[..3000]).unwrap();
        let (before, running) = (open(), threads());
        for spare in [0, 1] {
            peer.write_all(&payload[..30_000]).unwrap();
            let next = File::open("/dev/null").unwrap().as_raw_fd() as u64;
            limit(Resource::RLIMIT_NOFILE, next + spare);
            let refused = |error: io::Error| {
                assert!(error.to_string().contains("os error 24"), "{error}");
            };
            let mut rope = Rope::new();
            rope.set_limit(2999);
            refused(rope.readv_from(&packets).unwrap_err());
            assert!(rope.is_empty());
            let len = spliced.len();
            let count = spliced.splice_from(&socket).unwrap();
            assert!(count > 0 && spliced.slice(len..) == payload[..count]);
            if spare == 0 {
                refused(Pool::options().spill(directory.path(), 64 << 20).create().unwrap_err());
                refused(Rope::for_file(directory.path(), 64 << 20).unwrap_err());
                refused(view.persist(&path).unwrap_err());
                refused(Sealed::copy_of(&payload).unwrap_err());
                refused(Sealed::copy_of_file(&source, payload.len()).unwrap_err());
                let error = view.clone().seal().unwrap_err();
                assert!(*error.into_view() == payload[..]);
            }
            // What needs none.
            for options in [Pool::options(), Pool::options().background(true)] {
                let mut rope = Rope::in_pool(&options.capacity(8 << 20).create().unwrap());
                rope.extend_from_slice(&payload);
                assert!(*rope.finalize().unwrap() == payload[..]);
            }
            limit(Resource::RLIMIT_NOFILE, 1024);
            // The thread of a pool that is dropped leaves within a second. Until then it may open what reports pressure.
            while threads() > running {
                thread::sleep(Duration::from_millis(1));
            }
            assert_eq!((open(), names()), (before, 0));
        }
        let mut rope = Rope::new();
        rope.set_limit(3000);
        assert_eq!(rope.readv_from(&packets).unwrap(), 3000);
        assert!(rope == payload[..3000] && *view == payload[..]);
        view.persist(&path).unwrap();
        assert!(fs::read(&path).unwrap() == payload);
        assert!(*Sealed::copy_of_file(&source, payload.len()).unwrap() == payload);
        let mut rope = Rope::for_file(directory.path(), 64 << 20).unwrap();
        receive_all(&mut rope, &payload);
        assert!(rope == payload);
    });
}

/// A FIFO that never had a writer, which only a copy of its content tells, and a rope at its limit.
#[test]
#[cfg_attr(ropewalk_portable, ignore = "needs tee")]
fn without_descriptors_the_end_of_a_fifo_is_not_waited_for() {
    in_child("without_descriptors_the_end_of_a_fifo_is_not_waited_for", || {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("fifo");
        mkfifo(&path, Mode::S_IRWXU).unwrap();
        let fifo = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(&path).unwrap();
        for waits in [false, true] {
            fcntl(&fifo, FcntlArg::F_SETFL(if waits { OFlag::empty() } else { OFlag::O_NONBLOCK })).unwrap();
            let mut rope = Rope::from("full");
            rope.set_limit(4);
            limit(Resource::RLIMIT_NOFILE, fifo.as_raw_fd() as u64 + 1);
            assert_eq!(rope.readv_from(&fifo).unwrap_err().raw_os_error(), Some(libc::EMFILE));
            limit(Resource::RLIMIT_NOFILE, 1024);
            assert_eq!(rope.readv_from(&fifo).unwrap(), 0);
            assert_eq!(rope, b"full");
        }
    });
}

#[test]
#[cfg_attr(ropewalk_portable, ignore = "needs a memfd")]
fn a_file_size_limit_makes_the_arena_smaller() {
    in_child("a_file_size_limit_makes_the_arena_smaller", || {
        limit(Resource::RLIMIT_FSIZE, 8 * MIB as u64);
        let pool = pool(64 * MIB);
        let stats = pool.stats();
        assert_eq!((stats.capacity, stats.backing, stats.reduced), (8 << 20, Backing::Memfd, true));
        refuses_and_goes_on(&pool, "at capacity");
    });
}

#[test]
#[cfg_attr(ropewalk_portable, ignore = "needs a memfd")]
fn a_file_size_limit_of_nothing_makes_the_arena_anonymous() {
    in_child("a_file_size_limit_of_nothing_makes_the_arena_anonymous", || {
        let before = pool(16 * MIB);
        limit(Resource::RLIMIT_FSIZE, 0);
        let stats = pool(16 * MIB).stats();
        assert_eq!((stats.capacity, stats.backing, stats.reduced), (16 << 20, Backing::Anonymous, true));
        // A limit that comes after the arena does not touch it.
        refuses_and_goes_on(&before, "at capacity");
    });
}

#[test]
#[cfg_attr(ropewalk_portable, ignore = "asks for no memory")]
fn a_memory_cgroup_refuses_before_it_kills() {
    in_child("a_memory_cgroup_refuses_before_it_kills", || {
        for name in Group::limits() {
            let Some(group) = Group::enter(name, 64 * MIB) else {
                return println!("skipped: no memory cgroup may be made here");
            };
            let pool = Pool::new().unwrap();
            assert_eq!(pool.stats().capacity, 64 << 20, "{name}");
            refuses_and_goes_on(&pool, &group.0.display().to_string());
            let large = self::pool(512 * MIB);
            refuses_and_goes_on(&large, &group.0.display().to_string());
            group.has_killed_nothing();
        }
    });
}

/// The limit that a pool was made under is not the one that counts.
#[test]
#[cfg_attr(ropewalk_portable, ignore = "asks for no memory")]
fn a_limit_that_comes_down_is_noticed() {
    in_child("a_limit_that_comes_down_is_noticed", || {
        for name in Group::limits() {
            let Some(group) = Group::enter(name, 1024 * MIB) else {
                return println!("skipped: no memory cgroup may be made here");
            };
            let pool = pool(512 * MIB);
            let other = self::pool(32 * MIB);
            let held = received(&other, &pattern(6, 16 * MIB));
            group.limit(name, 64 * MIB).unwrap();
            refuses_and_goes_on(&pool, &group.0.display().to_string());
            assert!(held == pattern(6, 16 * MIB));
            // More is allowed again.
            group.limit(name, 1024 * MIB).unwrap();
            let more = received(&pool, &pattern(7, 80 * MIB));
            assert!(pool.stats().in_use >= 80 << 20);
            drop((held, more));
            group.has_killed_nothing();
        }
    });
}

#[test]
#[cfg_attr(ropewalk_portable, ignore = "asks for no memory")]
fn a_limit_that_comes_later_is_noticed() {
    in_child("a_limit_that_comes_later_is_noticed", || {
        for name in Group::limits() {
            let pool = pool(512 * MIB);
            drop(received(&pool, &pattern(6, MIB)));
            pool.trim().unwrap();
            // What was charged elsewhere stays there.
            let Some(group) = Group::enter(name, 64 * MIB) else {
                return println!("skipped: no memory cgroup may be made here");
            };
            refuses_and_goes_on(&pool, &group.0.display().to_string());
            group.has_killed_nothing();
        }
    });
}

/// One descriptor is left when the process is moved to the group; reading its limits takes two. Later there are more.
#[test]
#[cfg_attr(ropewalk_portable, ignore = "asks for no memory")]
fn a_group_that_cannot_be_read_at_first_is_noticed_later() {
    in_child("a_group_that_cannot_be_read_at_first_is_noticed_later", || {
        for name in Group::limits() {
            let pool = pool(512 * MIB);
            drop(received(&pool, &pattern(6, MIB)));
            let mut rope = Rope::in_pool(&pool);
            let next = File::open("/dev/null").unwrap().as_raw_fd() as u64;
            limit(Resource::RLIMIT_NOFILE, next + 1);
            let group = Group::enter(name, 64 * MIB);
            // More than is admitted before limits are read again.
            rope.extend_from_slice(&pattern(7, 8 * MIB));
            limit(Resource::RLIMIT_NOFILE, 1024);
            let Some(group) = group else {
                return println!("skipped: no memory cgroup may be made here");
            };
            drop(rope);
            refuses_and_goes_on(&pool, &group.0.display().to_string());
            group.has_killed_nothing();
        }
    });
}

/// The pages of files count as used, though the kernel can drop them: `memory.stat` says how many those are.
#[test]
#[cfg_attr(ropewalk_portable, ignore = "asks for no memory")]
fn a_group_full_of_file_pages_has_room_without_descriptors() {
    in_child("a_group_full_of_file_pages_has_room_without_descriptors", || {
        let Some(group) = Group::enter(Group::limits()[0], 64 * MIB) else {
            return println!("skipped: no memory cgroup may be made here");
        };
        let pool = pool(512 * MIB);
        drop(received(&pool, &pattern(6, MIB)));
        let mut file = tempfile::tempfile_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        (0..96).for_each(|seed| file.write_all(&pattern(seed, MIB)).unwrap());
        file.sync_all().unwrap();
        let mut rope = Rope::in_pool(&pool);
        let next = File::open("/dev/null").unwrap().as_raw_fd() as u64;
        limit(Resource::RLIMIT_NOFILE, next);
        let payload = pattern(7, 16 * MIB);
        let written = rope.write_all(&payload);
        limit(Resource::RLIMIT_NOFILE, 1024);
        written.unwrap();
        assert!(rope == payload);
        group.has_killed_nothing();
    });
}

/// What a payload is spliced through is asked for again once there are descriptors.
#[test]
#[cfg_attr(ropewalk_portable, ignore = "needs a memfd")]
fn a_payload_is_spliced_once_there_are_descriptors() {
    in_child("a_payload_is_spliced_once_there_are_descriptors", || {
        let open = || fs::read_dir("/proc/self/fd").unwrap().count();
        let (mut peer, socket) = pair();
        let mut rope = Rope::for_handover().unwrap();
        receive_all(&mut rope, &pattern(8, MIB));
        let before = open();
        for spare in [0, 1, 100] {
            peer.write_all(&pattern(9, 30_000)).unwrap();
            let next = File::open("/dev/null").unwrap().as_raw_fd() as u64;
            limit(Resource::RLIMIT_NOFILE, next + spare);
            assert_eq!(rope.splice_from(&socket).unwrap(), 30_000);
            limit(Resource::RLIMIT_NOFILE, 1024);
            assert_eq!(open(), before + if spare < 2 { 0 } else { 2 }, "{spare}");
        }
    });
}

/// Reports of pressure are asked for again once there are descriptors.
#[test]
#[cfg_attr(ropewalk_portable, ignore = "is not notified")]
fn pressure_is_noticed_once_there_are_descriptors() {
    in_child("pressure_is_noticed_once_there_are_descriptors", || {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pressure");
        mkfifo(&path, Mode::S_IRWXU).unwrap();
        let mut pressure = fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
        // SAFETY: no other thread of this process reads the environment now.
        unsafe { std::env::set_var("MEMORY_PRESSURE_WATCH", &path) };
        let pool = Pool::options().decay(Duration::from_secs(3600)).background(true).create().unwrap();
        let rope = received(&pool, &pattern(1, 4 * MIB));
        let next = File::open("/dev/null").unwrap().as_raw_fd() as u64;
        limit(Resource::RLIMIT_NOFILE, next);
        drop(rope);
        // For the thread to meet the limit. If it is late, nothing is shown.
        thread::sleep(Duration::from_millis(100));
        limit(Resource::RLIMIT_NOFILE, 1024);
        pressure.write_all(b"!").unwrap();
        let begun = Instant::now();
        while pool.stats().warm > 0 {
            assert!(begun.elapsed() < Duration::from_secs(120), "{:?}", pool.stats());
            thread::sleep(Duration::from_millis(1));
        }
    });
}

/// It has the name of one that was removed, whose open files cannot be read any more.
#[test]
#[cfg_attr(ropewalk_portable, ignore = "asks for no memory")]
fn a_group_that_is_made_again_is_noticed() {
    in_child("a_group_that_is_made_again_is_noticed", || {
        for bytes in [64 * MIB, 96 * MIB] {
            let Some(group) = Group::enter(Group::limits()[0], bytes) else {
                return println!("skipped: no memory cgroup may be made here");
            };
            let pool = Pool::new().unwrap();
            assert_eq!(pool.stats().capacity, bytes as u64);
            refuses_and_goes_on(&self::pool(512 * MIB), &group.0.display().to_string());
        }
    });
}

#[test]
#[cfg_attr(ropewalk_portable, ignore = "asks for no memory")]
fn the_limit_of_a_group_above_counts() {
    in_child("the_limit_of_a_group_above_counts", || {
        for name in Group::limits() {
            let Some((above, group)) = Group::enter_nested(name, 64 * MIB) else {
                return println!("skipped: no memory cgroups may be made here");
            };
            assert_eq!(Pool::new().unwrap().stats().capacity, 64 << 20, "{name}");
            let pool = pool(512 * MIB);
            refuses_and_goes_on(&pool, &above.0.display().to_string());
            // The lower of the two is the one that counts.
            group.limit(name, 32 * MIB).unwrap();
            refuses_and_goes_on(&pool, &group.0.display().to_string());
            group.has_killed_nothing();
            above.has_killed_nothing();
        }
    });
}

/// Beyond `memory.high` each page that is charged makes the process wait, so a pool stays below. Once it is beyond, as here
/// where the limit has come down, what it holds can be read and sent, and given back.
#[test]
#[cfg_attr(ropewalk_portable, ignore = "asks for no memory")]
fn a_limit_below_what_is_held_refuses_until_enough_is_given_back() {
    in_child("a_limit_below_what_is_held_refuses_until_enough_is_given_back", || {
        let Some(name) = Group::limits().iter().find(|&&name| name == "memory.high") else {
            return println!("skipped: the memory controller is not of version 2");
        };
        let Some(group) = Group::enter(name, 1024 * MIB) else {
            return println!("skipped: no memory cgroup may be made here");
        };
        let payload = pattern(3, 16 * MIB);
        let pool = pool(512 * MIB);
        let mut held = received(&pool, &[&payload[..]; 4].concat());
        let mut other = Rope::in_pool(&pool);
        group.limit(name, 48 * MIB).unwrap();
        let (_, error) = receive(&mut other, &payload);
        let error = error.expect("more is held than allowed");
        assert_eq!(error.kind(), ErrorKind::OutOfMemory);
        assert!(error.to_string().contains(&group.0.display().to_string()), "{error}");
        assert!(consists_of(&held, &payload));
        held.advance(3 * payload.len());
        pool.trim().unwrap();
        drop(other);
        assert!(received(&pool, &payload[..4 * MIB]) == payload[..4 * MIB]);
        assert!(held == payload);
        group.has_killed_nothing();
    });
}

/// As the kernel reports it, where nobody names another file in the environment.
#[test]
#[cfg_attr(ropewalk_portable, ignore = "is not notified")]
fn pressure_in_its_own_group_takes_idle_pages() {
    in_child("pressure_in_its_own_group_takes_idle_pages", || {
        let group = Group::enter("memory.high", 1024 * MIB);
        let Some(group) = group.filter(|group| fs::read(group.0.join("memory.pressure")).is_ok()) else {
            return println!("skipped: no group may be made here of which the kernel reports pressure");
        };
        let pool = Pool::options().decay(Duration::from_secs(3600)).background(true).create().unwrap();
        drop(received(&pool, &pattern(1, 32 * MIB)));
        assert!(pool.stats().warm > 24 << 20, "{:?}", pool.stats());
        group.limit("memory.high", 16 * MIB).unwrap();
        let begun = Instant::now();
        while pool.stats().warm > 0 {
            assert!(begun.elapsed() < Duration::from_secs(120), "{:?}", pool.stats());
            // Each page that is charged beyond the limit makes this thread wait, which the kernel reports.
            drop(black_box(vec![1_u8; MIB]));
        }
        println!("given back after {:?}", begun.elapsed());
        group.has_killed_nothing();
    });
}

/// It was larger than memory, so a copy of it would not fit either.
#[test]
#[cfg_attr(ropewalk_portable, ignore = "needs spill files")]
fn a_spilled_payload_that_cannot_be_mapped_is_not_copied_beyond_the_memory() {
    in_child("a_spilled_payload_that_cannot_be_mapped_is_not_copied_beyond_the_memory", || {
        const BYTES: usize = 200 * MIB;
        let Some(group) = Group::enter(Group::limits()[0], 128 * MIB) else {
            return println!("skipped: no memory cgroup may be made here");
        };
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let options = Pool::options().capacity(8 << 20).spill(directory.path(), 4 * BYTES as u64);
        let pool = options.create().unwrap();
        // Two that grow in turns, so that neither is contiguous.
        let (mut rope, mut other) = (Rope::in_pool(&pool), Rope::in_pool(&pool));
        let zeros = File::open("/dev/zero").unwrap();
        while rope.len() < BYTES {
            let count = rope.readv_up_to(&zeros, BYTES - rope.len()).unwrap();
            other.readv_up_to(&zeros, count).unwrap();
        }
        let maps = use_up_maps();
        let error = rope.finalize().unwrap_err();
        assert!(error.to_string().contains("would use up the memory of"), "{error}");
        drop(maps);
        let view = error.into_rope().finalize().unwrap();
        // How long the runs are depends on the disk's speed, and short ones are copied.
        assert!(view.len() == BYTES && view.copied_bytes() < BYTES / 16, "{view:?}");
        group.has_killed_nothing();
    });
}

/// Files on a tmpfs are memory of the group too, which kills where it has no more.
#[test]
#[cfg_attr(ropewalk_portable, ignore = "needs spill files")]
fn files_in_memory_are_refused_before_a_kill() {
    in_child("files_in_memory_are_refused_before_a_kill", || {
        const BYTES: usize = 64 * MIB;
        let memory = Path::new("/dev/shm");
        let kind = nix::sys::statfs::statfs(memory).map(|found| found.filesystem_type());
        if kind != Ok(nix::sys::statfs::TMPFS_MAGIC) {
            return println!("skipped: no tmpfs at {}", memory.display());
        }
        let large = received(&pool(128 * MIB), &pattern(15, BYTES)).finalize().unwrap();
        let Some(group) = Group::enter(Group::limits()[0], 64 * MIB) else {
            return println!("skipped: no memory cgroup may be made here");
        };
        let directory = tempfile::tempdir_in(memory).unwrap();
        let zeros = File::open("/dev/zero").unwrap();
        let options = Pool::options().capacity(8 << 20).spill(directory.path(), 4 * BYTES as u64);
        let spilling = options.create().unwrap();
        for mut rope in
            [Rope::in_pool(&spilling), Rope::for_file(directory.path(), 4 * BYTES as u64).unwrap()]
        {
            let refused = loop {
                match rope.readv_up_to(&zeros, BYTES) {
                    Ok(count) => assert!(count > 0 && rope.len() < BYTES, "{} bytes", rope.len()),
                    Err(error) => break error,
                }
            };
            assert_eq!(refused.kind(), ErrorKind::OutOfMemory, "{refused}");
            assert!(refused.to_string().contains("would use up the memory of"), "{refused}");
            assert!(rope.len() > 8 * MIB, "{} bytes", rope.len());
            let pool = rope.pool().unwrap().clone();
            drop(rope);
            pool.trim().unwrap();
        }
        let path = directory.path().join("name");
        let refused = large.persist(&path).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::OutOfMemory, "{refused}");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
        large.slice(..16 * MIB).persist(&path).unwrap();
        assert!(fs::read(&path).unwrap() == large[..16 * MIB]);
        group.has_killed_nothing();
    });
}

/// So are those on a ramfs, and on an overlay over a tmpfs, which says that it is an overlay.
#[test]
#[cfg_attr(ropewalk_portable, ignore = "does not know file systems")]
fn files_in_memory_below_another_name_are_refused_before_a_kill() {
    in_child("files_in_memory_below_another_name_are_refused_before_a_kill", || {
        const BYTES: usize = 64 * MIB;
        let (ramfs, tmpfs, overlay) = (Mounted::new(), Mounted::new(), Mounted::new());
        let layers = ["lower", "upper", "work"].map(|name| tmpfs.0.path().join(name));
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            layers[0].display(),
            layers[1].display(),
            layers[2].display()
        );
        let mounted = ramfs.mount("ramfs", "mode=755") && tmpfs.mount("tmpfs", "size=1g") && {
            layers.iter().for_each(|layer| fs::create_dir(layer).unwrap());
            overlay.mount("overlay", &options)
        };
        if !mounted {
            return println!("skipped: this process may not mount a ramfs, a tmpfs and an overlay");
        }
        let large = received(&pool(128 * MIB), &pattern(15, BYTES)).finalize().unwrap();
        let Some(group) = Group::enter(Group::limits()[0], 64 * MIB) else {
            return println!("skipped: no memory cgroup may be made here");
        };
        for directory in [ramfs.0.path(), overlay.0.path()] {
            let path = directory.join("name");
            let refused = large.persist(&path).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::OutOfMemory, "{refused}");
            assert!(refused.to_string().contains("would use up the memory of"), "{refused}");
            assert_eq!(fs::read_dir(directory).unwrap().count(), 0);
            large.slice(..16 * MIB).persist(&path).unwrap();
            assert!(fs::read(&path).unwrap() == large[..16 * MIB]);
            fs::remove_file(&path).unwrap();
        }
        group.has_killed_nothing();
    });
}

/// A directory on which a file system is mounted.
struct Mounted(tempfile::TempDir);

impl Mounted {
    fn new() -> Mounted {
        Mounted(tempfile::tempdir().unwrap())
    }

    /// Returns whether that is allowed.
    fn mount(&self, kind: &str, options: &str) -> bool {
        let mut mount = process::Command::new("mount");
        let mount = mount.args(["-t", kind, "-o", options, "ropewalk-test"]).arg(self.0.path()).output();
        mount.is_ok_and(|output| output.status.success())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = process::Command::new("umount").arg("--lazy").arg(self.0.path()).output();
    }
}

/// A control group of this process's own.
struct Group(PathBuf);

impl Group {
    /// Where the memory controller is, of version 1 or 2.
    fn root() -> &'static Path {
        let (v1, v2) = (Path::new("/sys/fs/cgroup/memory"), Path::new("/sys/fs/cgroup"));
        if v1.join("memory.limit_in_bytes").exists() { v1 } else { v2 }
    }

    /// The files of a group that limit its memory.
    fn limits() -> &'static [&'static str] {
        if Group::root().ends_with("memory") {
            &["memory.limit_in_bytes"]
        } else {
            &["memory.max", "memory.high"]
        }
    }

    /// With a limit of so many bytes, in the file `name`; `None` where that is not allowed.
    fn enter(name: &str, bytes: usize) -> Option<Group> {
        let group = Group::create(Group::root())?;
        group.limit(name, bytes).and_then(|()| group.join()).ok()?;
        Some(group)
    }

    /// A group with a limit and, within it, one without, which this process enters.
    fn enter_nested(name: &str, bytes: usize) -> Option<(Group, Group)> {
        let above = Group::create(Group::root())?;
        above.limit(name, bytes).ok()?;
        // In version 1 there is no such file.
        let _ = fs::write(above.0.join("cgroup.subtree_control"), "+memory");
        let group = Group::create(&above.0)?;
        group.join().ok()?;
        group.0.join(name).exists().then_some((above, group))
    }

    fn create(directory: &Path) -> Option<Group> {
        let group = Group(directory.join(format!("ropewalk-test-{}", process::id())));
        fs::create_dir(&group.0).ok()?;
        Some(group)
    }

    fn limit(&self, name: &str, bytes: usize) -> io::Result<()> {
        fs::write(self.0.join(name), bytes.to_string())
    }

    fn join(&self) -> io::Result<()> {
        fs::write(self.0.join("cgroup.procs"), process::id().to_string())
    }

    /// No process of it: this one would be the next.
    fn has_killed_nothing(&self) {
        let events =
            ["memory.events", "memory.oom_control"].map(|name| fs::read_to_string(self.0.join(name)));
        let events = events.into_iter().find_map(Result::ok).expect("one of the two versions");
        assert!(events.lines().any(|line| line == "oom_kill 0"), "{events}");
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::write(Group::root().join("cgroup.procs"), process::id().to_string());
        let _ = fs::remove_dir(&self.0);
    }
}

#[test]
#[cfg_attr(ropewalk_portable, ignore = "maps no views")]
fn without_maps_a_view_is_copied() {
    in_child("without_maps_a_view_is_copied", || {
        let pool = pool(32 * MIB);
        let payload = pattern(5, 8 * MIB);
        let [rope, other] = interleaved(&pool, &payload, 256 << 10);
        let maps = use_up_maps();
        let view = rope.finalize().unwrap();
        assert!(*view == payload[..]);
        assert_eq!((view.copied_bytes(), view.num_maps()), (payload.len(), 0));
        drop(maps);
        let view = other.finalize().unwrap();
        assert!(*view == payload[..]);
        assert!(view.num_maps() > 4 && view.copied_bytes() < payload.len() / 4, "{view:?}");
    });
}

/// Every other call that maps something.
#[test]
#[cfg_attr(ropewalk_portable, ignore = "needs memfds and spill files")]
fn without_maps_each_call_is_an_error_that_loses_nothing() {
    in_child("without_maps_each_call_is_an_error_that_loses_nothing", || {
        let directory = tempfile::tempdir().unwrap();
        let payload = pattern(12, 6 * MIB);
        let source = tempfile::tempfile().unwrap();
        std::os::unix::fs::FileExt::write_all_at(&source, &payload, 0).unwrap();
        let (here, there) = pair();
        let spilling =
            Pool::options().capacity(MIB as u64).spill(directory.path(), 64 << 20).create().unwrap();
        let mut spilled = received(&spilling, &payload[..4 * MIB]);
        let pool = pool(32 * MIB);
        let view = received(&pool, &payload).finalize().unwrap();
        let mut handed = Rope::for_handover().unwrap();
        receive_all(&mut handed, &payload);
        let handed = handed.finalize().unwrap();
        let sealed = Sealed::copy_of(&payload).unwrap();
        sealed.send(&here).unwrap();
        let mut pushed = Vec::with_capacity(10); // once the maps are used up, musl cannot allocate it
        let maps = use_up_maps();
        let refused = |error: io::Error| assert_eq!(error.kind(), ErrorKind::OutOfMemory, "{error}");
        let push = |rope: &mut Rope| rope.push_file(source.try_clone().unwrap(), 0..payload.len() as u64);
        let mut rope = Rope::from("before");
        while push(&mut rope).is_ok() {
            assert!(pushed.len() < 10);
            pushed.push(rope.split_off(6));
        }
        for _ in 0..2 {
            refused(push(&mut rope).unwrap_err());
            refused(Sealed::receive(&there).unwrap_err());
            refused(Sealed::copy_of_file(&source, payload.len()).unwrap_err());
            refused(Pool::options().capacity(64 << 20).create().unwrap_err());
            refused(Rope::for_file(directory.path(), 64 << 20).unwrap_err());
        }
        assert_eq!(rope, b"before");
        // Full pages whose addresses cannot show the file stay in memory, and the rope gets as far as that has room.
        receive_all(&mut spilled, &payload[4 * MIB..]);
        let slice = view.slice(MIB..2 * MIB);
        assert!(*slice == payload[MIB..2 * MIB]);
        drop(slice);
        let handed = match handed.seal() {
            Ok(sealed) => {
                assert!(*sealed == payload[..]);
                None
            }
            Err(error) => Some(error.into_view()),
        };
        drop((maps, pushed));
        assert!(spilled == payload);
        assert!(*spilled.finalize().unwrap() == payload[..]);
        assert!(*view == payload[..] && handed.is_none_or(|view| *view == payload[..]));
        assert!(*Sealed::receive(&there).unwrap() == payload[..]);
        push(&mut rope).unwrap();
        assert!(rope.slice(6..) == payload);
        spilling.trim().unwrap();
        drop(view);
        assert_eq!(pool.stats().in_use, 0);
    });
}

#[test]
#[cfg_attr(ropewalk_portable, ignore = "maps no views")]
fn without_maps_the_pages_of_a_view_come_back() {
    in_child("without_maps_the_pages_of_a_view_come_back", || {
        let pool = pool(64 * MIB);
        let payload = pattern(5, 4 * MIB);
        let [rope, other] = interleaved(&pool, &payload, 512 << 10);
        let (kept, view) = (rope.clone(), rope.finalize().unwrap());
        assert!(view.num_maps() > 1 && view.copied_bytes() == 0);
        let maps = use_up_maps();
        drop(view);
        assert!(kept == payload[..] && other == payload[..]);
        drop((kept, other));
        assert_eq!(pool.stats().in_use, 0);
        drop(maps);
        for rope in interleaved(&pool, &payload, 512 << 10) {
            assert!(*rope.finalize().unwrap() == payload[..]);
        }
    });
}

#[test]
#[cfg_attr(ropewalk_portable, ignore = "maps no views")]
fn without_mremap_views_are_mapped_and_their_pages_come_back() {
    in_child("without_mremap_views_are_mapped_and_their_pages_come_back", || {
        let pool = pool(64 * MIB);
        let payload = pattern(5, 4 * MIB);
        let [rope, other] = interleaved(&pool, &payload, 512 << 10);
        let moved = rope.clone().finalize().unwrap();
        forbid(libc::SYS_mremap, None, libc::EPERM);
        let mapped = other.finalize().unwrap();
        assert!(mapped.num_maps() > 1 && mapped.copied_bytes() == 0);
        assert!(*moved == payload[..] && *mapped == payload[..]);
        drop((moved, mapped));
        assert!(rope == payload[..]);
        drop(rope);
        assert_eq!(pool.stats().in_use, 0);
        refuses_and_goes_on(&pool, "at capacity");
    });
}

#[test]
#[cfg_attr(ropewalk_portable, ignore = "maps no views")]
fn views_leave_maps_to_others() {
    in_child("views_leave_maps_to_others", || {
        let pool = pool(64 * MIB);
        let payload = pattern(6, 16 * MIB);
        let [rope, _other] = interleaved(&pool, &payload, 32 << 10);
        let most = max_map_count();
        let mut views = Vec::new();
        let mut maps = 0;
        while views.len() < 200 {
            let view = rope.clone().finalize().unwrap();
            if view.num_maps() == 0 {
                break;
            }
            maps += view.num_maps();
            views.push(view);
        }
        assert!(maps > 10_000 && maps <= most / 4, "{maps} maps");
        assert!(views.iter().all(|view| **view == payload[..]));
        views.clear();
        assert!(rope.finalize().unwrap().num_maps() > 0, "maps are not given back");
    });
}

fn max_map_count() -> usize {
    fs::read_to_string("/proc/sys/vm/max_map_count").unwrap().trim().parse().unwrap()
}

/// Some address space of alternating protection: each page is a map of its own.
struct Maps(*mut libc::c_void, usize);

/// Leaves just enough maps for the heap.
fn use_up_maps() -> Maps {
    let used = fs::read_to_string("/proc/self/maps").unwrap().lines().count();
    let pages = max_map_count() - used - 4;
    let len = pages * 4096;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    let base = unsafe { libc::mmap(ptr::null_mut(), len, libc::PROT_NONE, flags, -1, 0) };
    assert_ne!(base, libc::MAP_FAILED);
    for page in (0..pages).step_by(2) {
        let failed = unsafe { libc::mprotect(base.byte_add(page * 4096), 4096, libc::PROT_READ) };
        if failed != 0 {
            break;
        }
    }
    Maps(base, len)
}

impl Drop for Maps {
    fn drop(&mut self) {
        unsafe { libc::munmap(self.0, self.1) };
    }
}

#[test]
#[cfg_attr(ropewalk_portable, ignore = "needs a memfd")]
fn a_forbidden_memfd_makes_the_arena_anonymous() {
    in_child("a_forbidden_memfd_makes_the_arena_anonymous", || {
        forbid(libc::SYS_memfd_create, None, libc::EPERM);
        let pool = pool(16 * MIB);
        let stats = pool.stats();
        assert_eq!((stats.backing, stats.reduced, stats.capacity), (Backing::Anonymous, true, 16 << 20));
        let payload = pattern(7, 2 * MIB);
        for rope in interleaved(&pool, &payload, 256 << 10) {
            let view = rope.finalize().unwrap();
            assert!(*view == payload[..]);
            assert_eq!((view.num_maps(), view.copied_bytes()), (0, payload.len()));
        }
        refuses_and_goes_on(&pool, "at capacity");
    });
}

#[test]
#[cfg_attr(ropewalk_portable, ignore = "needs a memfd")]
fn pages_that_cannot_be_given_back_stay_usable() {
    in_child("pages_that_cannot_be_given_back_stay_usable", || {
        forbid(libc::SYS_fallocate, None, libc::EPERM);
        let pool = pool(16 * MIB);
        drop(received(&pool, &pattern(8, 4 * MIB)));
        let warm = pool.stats().warm;
        assert_eq!(pool.trim().unwrap_err().kind(), ErrorKind::PermissionDenied);
        assert_eq!((pool.stats().warm, pool.stats().in_use), (warm, 0));
        drop(received(&pool, &pattern(8, 8 * MIB)));
    });
}

#[test]
fn a_kernel_without_populate_commits_by_fallocate() {
    in_child("a_kernel_without_populate_commits_by_fallocate", || {
        // As before Linux 5.14.
        forbid(libc::SYS_madvise, Some((2, libc::MADV_POPULATE_WRITE as u32)), libc::EINVAL);
        refuses_and_goes_on(&pool(16 * MIB), "at capacity");
    });
}

#[test]
#[cfg_attr(ropewalk_portable, ignore = "needs a memfd")]
#[cfg_attr(target_pointer_width = "32", ignore = "forbids a call by its number with 64 bits")]
fn an_arena_that_may_not_be_shared_is_anonymous() {
    in_child("an_arena_that_may_not_be_shared_is_anonymous", || {
        forbid(libc::SYS_mmap, Some((3, libc::MAP_SHARED as u32)), libc::ENOMEM);
        let pool = pool(16 * MIB);
        assert_eq!((pool.stats().backing, pool.stats().reduced), (Backing::Anonymous, true));
        refuses_and_goes_on(&pool, "at capacity");
        let private = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        forbid(libc::SYS_mmap, Some((3, private as u32)), libc::EPERM);
        // musl reports EPERM of an anonymous map as ENOMEM.
        let musl = cfg!(target_env = "musl");
        let kind = if musl { ErrorKind::OutOfMemory } else { ErrorKind::PermissionDenied };
        assert_eq!(Pool::new().unwrap_err().kind(), kind);
        drop(received(&pool, &pattern(8, MIB)));
    });
}

#[test]
#[cfg_attr(ropewalk_portable, ignore = "asks for no memory")]
fn cold_pages_that_get_no_memory_lose_nothing() {
    in_child("cold_pages_that_get_no_memory_lose_nothing", || {
        for errno in [libc::ENOMEM, libc::EFAULT, libc::ENOSPC, libc::EIO] {
            // What is forbidden is forbidden to one thread.
            thread::spawn(move || without_memory_for_cold_pages(errno)).join().unwrap();
        }
    });
}

/// Neither by a fault nor by a write is there memory for a cold page, and the kernel says `errno`.
fn without_memory_for_cold_pages(errno: i32) {
    let pool = pool(16 * MIB);
    let payload = pattern(10, MIB);
    let other = received(&pool, &payload);
    drop(received(&pool, &payload[..MIB / 2]));
    assert!(pool.stats().warm >= MIB as u64 / 2);
    forbid(libc::SYS_pwrite64, None, errno);
    forbid(libc::SYS_madvise, Some((2, libc::MADV_POPULATE_WRITE as u32)), errno);
    forbid(libc::SYS_fallocate, Some((1, 0)), errno); // before Linux 5.14
    let mut rope = Rope::in_pool(&pool);
    let (got, error) = receive(&mut rope, &payload);
    let error = error.expect("there is not so much warm memory");
    let named = if errno == libc::EIO { errno } else { libc::ENOMEM };
    assert_eq!(error.raw_os_error(), Some(named), "{error}");
    assert!(got >= MIB / 2 && rope == payload[..got], "what had arrived is not readable");
    assert!(other == payload, "another rope was touched");
    drop(other);
    let (more, error) = receive(&mut rope, &payload[got..]);
    assert!(error.is_none(), "of {:?} {got} came, then {more}, then {error:?}", pool.stats());
    assert!(*rope.finalize().unwrap() == payload[..]);
    assert_eq!(pool.stats().in_use, 0);
}

/// Ropes of `pool` and sockets in which more waits for them than the pool can hold.
fn more_than_fits(pool: &Pool) -> Vec<(Rope, UnixStream, Vec<u8>)> {
    let connection = |seed| {
        let (mut peer, socket) = pair();
        let payload = pattern(seed, 100 << 10);
        peer.write_all(&payload).unwrap();
        peer.shutdown(Shutdown::Write).unwrap();
        (Rope::in_pool(pool), socket, payload)
    };
    (0..64).map(connection).collect()
}

#[test]
fn many_ropes_wait_for_a_pool_at_its_capacity() {
    let pool = pool(MIB);
    let mut waiting = more_than_fits(&pool);
    let (mut complete, mut given_up) = (0, 0);
    while !waiting.is_empty() {
        let mut refused = 0;
        waiting.retain_mut(|(rope, socket, payload)| match rope.readv_up_to(&*socket, 10 << 10) {
            Ok(0) => {
                assert!(*rope == *payload);
                complete += 1;
                false
            }
            Ok(_) => true,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::OutOfMemory);
                refused += 1;
                true
            }
        });
        assert!(pool.stats().in_use <= 1 << 20);
        for (rope, _, payload) in &waiting {
            assert!(*rope == payload[..rope.len()], "what had arrived is not readable");
        }
        if refused == waiting.len() && refused > 0 {
            // All that has room has come; waiters for memory have to be given some.
            waiting.pop();
            given_up += 1;
        }
    }
    assert!(complete >= 8 && given_up > 0 && complete + given_up == 64, "{complete} of 64 are complete");
    assert_eq!((pool.stats().in_use, pool.stats().peak), (0, 1 << 20));
}

/// The same ropes, none of which is refused: each waits until all it needs is reserved.
#[tokio::test]
async fn all_ropes_that_wait_for_their_turn_get_it() {
    let pool = pool(MIB);
    let before = received(&pool, &pattern(99, MIB / 2));
    let mut work = JoinSet::new();
    for (_, socket, payload) in more_than_fits(&pool) {
        let pool = pool.clone();
        work.spawn(async move {
            let mut rope = Rope::in_room(pool.wait_for_room(payload.len()).await.unwrap());
            while rope.readv_up_to(&socket, 10 << 10).unwrap() > 0 {
                tokio::task::yield_now().await;
            }
            assert!(*rope.finalize().unwrap() == payload[..]);
        });
    }
    let mut most = 0;
    while let Ok(done) = timeout(Duration::from_secs(20), work.join_next()).await.map(Option::transpose) {
        most = most.max(pool.stats().waiting);
        if done.unwrap().is_none() {
            break;
        }
    }
    assert!(work.is_empty(), "{} wait for ever", work.len());
    assert!(most > 32, "no more than {most} waited");
    assert!(before == pattern(99, MIB / 2), "another rope was touched");
    drop(before);
    assert_eq!((pool.stats().waiting, pool.stats().in_use, pool.stats().fallbacks), (0, 0, 0));
}

#[test]
fn a_copy_beside_a_short_segment_ends_though_the_pool_is_full() {
    in_child("a_copy_beside_a_short_segment_ends_though_the_pool_is_full", || {
        let pool = pool(4096);
        let full = received(&pool, &pattern(9, 4096));
        for len in [1, 63, 64, 100, 4095, 4096] {
            let mut rope = Rope::in_pool(&pool);
            rope.push(pattern(1, len));
            rope.extend_from_slice(b"x");
            assert!(rope.len() == len + 1 && rope.slice(len..) == b"x");
        }
        assert_eq!(pool.stats().fallbacks, 6);
        drop(full);
    });
}

#[test]
fn a_copy_for_which_there_is_no_memory_is_an_error_and_changes_nothing() {
    in_child("a_copy_for_which_there_is_no_memory_is_an_error_and_changes_nothing", || {
        let payload = vec![7; 256 * MIB];
        for held in [0, 5, MIB] {
            let mut rope = Rope::in_pool(&pool(2 * MIB));
            rope.try_extend_from_slice(&payload[..held]).unwrap();
            limit(Resource::RLIMIT_AS, address_space() + 16 * MIB as u64);
            let error = rope.try_extend_from_slice(&payload).unwrap_err();
            limit(Resource::RLIMIT_AS, libc::RLIM_INFINITY);
            assert_eq!(error.kind(), ErrorKind::OutOfMemory);
            assert!(rope == payload[..held], "{held} bytes became {}", rope.len());
            rope.try_extend_from_slice(&payload[held..held + 100]).unwrap();
            assert!(rope == payload[..held + 100]);
        }
    });
}

#[test]
fn a_table_of_segments_for_which_there_is_no_memory_is_an_error() {
    in_child("a_table_of_segments_for_which_there_is_no_memory_is_an_error", || {
        let mut rope = Rope::new();
        limit(Resource::RLIMIT_AS, address_space() + 64 * MIB as u64);
        let error = loop {
            if let Err(error) = rope.reserve_segments(1) {
                break error;
            }
            rope.push("x");
        };
        assert_eq!(error.kind(), ErrorKind::OutOfMemory);
        assert!(error.to_string().contains(&format!("a table of {} and 1 segments", rope.len())), "{error}");
        assert!(rope.len() > 100_000);
        let error = rope.reserve_segments(usize::MAX).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OutOfMemory);
        rope.advance(rope.len() - 1);
        rope.reserve_segments(1).unwrap();
        rope.push("y");
        assert_eq!(rope, b"xy");
    });
}

/// What is left of a payload does not keep all of a small pool from what follows.
#[test]
fn the_rest_of_a_payload_pins_a_part_of_a_small_pool() {
    for capacity in [256 << 10, 1 << 20, 4 << 20] {
        let pool = Pool::options().capacity(capacity as u64).create().unwrap();
        let payload = pattern(1, capacity * 9 / 10);
        let mut rope = received(&pool, &payload);
        rope.advance(payload.len() - 1);
        let more = pattern(2, capacity * 3 / 4);
        receive_all(&mut rope, &more);
        assert!(rope.slice(1..) == more);
    }
}
