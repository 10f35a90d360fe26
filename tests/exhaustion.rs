//! What happens when something runs out. Each test sets the real limit, in a process of its own.
#![allow(unsafe_code)] // the limits are set by raw calls

#[path = "support/seccomp.rs"]
mod seccomp;
#[allow(dead_code)] // some of it is for other tests
mod support;

use std::fs;
use std::io::{self, ErrorKind, IoSlice, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process;
use std::ptr;
use std::thread;
use std::time::Duration;

use nix::libc;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use ropewalk::{Backing, Pool, Rope};
use seccomp::forbid;
use support::{in_child, pair, pattern, receive, received};
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
        let pool = pool(1 << 38);
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
        let Some(group) = Group::enter(96 * MIB) else {
            return println!("skipped: no memory cgroup may be made here");
        };
        let pool = Pool::new().unwrap();
        assert_eq!(pool.stats().capacity, 96 << 20);
        refuses_and_goes_on(&pool, &group.0.display().to_string());
        let large = self::pool(512 * MIB);
        refuses_and_goes_on(&large, &group.0.display().to_string());
    });
}

/// The limit that a pool was made under is not the one that counts.
#[test]
#[cfg_attr(ropewalk_portable, ignore = "asks for no memory")]
fn a_limit_that_comes_down_is_noticed() {
    in_child("a_limit_that_comes_down_is_noticed", || {
        let Some(group) = Group::enter(1024 * MIB) else {
            return println!("skipped: no memory cgroup may be made here");
        };
        let pool = pool(512 * MIB);
        let other = self::pool(32 * MIB);
        let held = received(&other, &pattern(6, 16 * MIB));
        group.limit(64 * MIB).unwrap();
        refuses_and_goes_on(&pool, &group.0.display().to_string());
        assert!(held == pattern(6, 16 * MIB));
        // More is allowed again.
        group.limit(1024 * MIB).unwrap();
        let more = received(&pool, &pattern(7, 80 * MIB));
        assert!(pool.stats().in_use >= 80 << 20);
        drop((held, more));
    });
}

#[test]
#[cfg_attr(ropewalk_portable, ignore = "asks for no memory")]
fn a_limit_that_comes_later_is_noticed() {
    in_child("a_limit_that_comes_later_is_noticed", || {
        let pool = pool(512 * MIB);
        drop(received(&pool, &pattern(6, MIB)));
        pool.trim().unwrap();
        // What was charged elsewhere stays there.
        let Some(group) = Group::enter(64 * MIB) else {
            return println!("skipped: no memory cgroup may be made here");
        };
        refuses_and_goes_on(&pool, &group.0.display().to_string());
    });
}

/// A control group of this process's own.
struct Group(PathBuf);

impl Group {
    /// With a limit of so many bytes; `None` where that is not allowed.
    fn enter(bytes: usize) -> Option<Group> {
        let id = process::id();
        let (v1, v2) = (Path::new("/sys/fs/cgroup/memory"), Path::new("/sys/fs/cgroup"));
        let root = if v1.join("memory.limit_in_bytes").exists() { v1 } else { v2 };
        let group = Group(root.join(format!("ropewalk-test-{id}")));
        fs::create_dir(&group.0).ok()?;
        group.limit(bytes).ok()?;
        fs::write(group.0.join("cgroup.procs"), id.to_string()).ok()?;
        Some(group)
    }

    fn limit(&self, bytes: usize) -> io::Result<()> {
        let (v1, v2) = (self.0.join("memory.limit_in_bytes"), self.0.join("memory.max"));
        fs::write(if v1.exists() { v1 } else { v2 }, bytes.to_string())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let root = self.0.parent().expect("made below one");
        let _ = fs::write(root.join("cgroup.procs"), process::id().to_string());
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
