//! Other kernels, limits and containers: each works, perhaps in another way that `stats` tells, or is a clear error.
#![allow(unsafe_code)] // limits, seccomp and mlockall are raw calls
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)] // a test fails by panicking

#[path = "support/seccomp.rs"]
mod seccomp;
#[allow(dead_code)] // some of it is for other tests
mod support;

use std::fs;
use std::io::{ErrorKind, Write};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::libc;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use ropewalk::{Backing, Commit, Pool, Rope, Sealed};
use seccomp::forbid;
use support::{bytes_in, in_child, pattern, received};

const MIB: usize = 1 << 20;
const GIB: u64 = 1 << 30;

fn limit(resource: Resource, soft: u64) {
    let (_, hard) = getrlimit(resource).unwrap();
    setrlimit(resource, soft.min(hard), hard).unwrap();
}

fn status(field: &str) -> u64 {
    bytes_in("/proc/self/status", field)
}

/// Receives, gives back and receives again; returns the pool.
fn works(pool: Pool) -> Pool {
    for round in 0..3 {
        let payload = pattern(round, MIB + 123);
        let view = received(&pool, &payload).finalize().unwrap();
        assert!(*view == payload);
        drop(view);
        let _ = pool.trim();
    }
    assert_eq!((pool.stats().in_use, pool.stats().fallbacks), (0, 0));
    pool
}

/// A container without `/proc`, from which limits are read and through which files get names.
#[test]
#[cfg_attr(ropewalk_portable, ignore = "needs a memfd")]
fn without_proc_all_of_it_works() {
    in_child("without_proc_all_of_it_works", || {
        let private = libc::MS_REC | libc::MS_PRIVATE;
        // SAFETY: paths that end, and no other memory.
        let gone = unsafe {
            libc::unshare(libc::CLONE_NEWNS) == 0
                && libc::mount(c"none".as_ptr(), c"/".as_ptr(), std::ptr::null(), private, std::ptr::null())
                    == 0
                && libc::umount2(c"/proc".as_ptr(), libc::MNT_DETACH) == 0
        };
        if !gone || fs::metadata("/proc/self").is_ok() {
            return println!("skipped: /proc cannot be unmounted here");
        }
        let directory = tempfile::tempdir().unwrap();
        let pool = works(Pool::options().capacity(64 << 20).background(true).create().unwrap());
        let payload = pattern(9, 3 * MIB);
        let view = received(&pool, &payload).finalize().unwrap();
        view.persist(directory.path().join("copied")).unwrap();
        let error = view.persist(directory.path().join("copied")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AlreadyExists);
        let error = view.persist(directory.path().join("nowhere/copied")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        let mut rope = Rope::for_file(directory.path(), 64 << 20).unwrap();
        rope.extend_from_slice(&payload);
        rope.finalize().unwrap().persist(directory.path().join("own")).unwrap();
        for name in ["copied", "own"] {
            assert!(fs::read(directory.path().join(name)).unwrap() == payload, "{name}");
        }
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2);
        let spilling = Pool::options().capacity(1 << 20).spill(directory.path(), 64 << 20).create().unwrap();
        assert!(received(&spilling, &payload) == payload);
        let mut handed = Rope::for_handover().unwrap();
        handed.extend_from_slice(&payload);
        assert!(*handed.finalize().unwrap().seal().unwrap() == payload);
    });
}

#[test]
#[cfg_attr(ropewalk_portable, ignore = "needs a memfd")]
fn a_kernel_that_answers_as_gvisor() {
    in_child("a_kernel_that_answers_as_gvisor", || {
        forbid(libc::SYS_madvise, Some((2, libc::MADV_POPULATE_WRITE as u32)), libc::EINVAL);
        for mode in 1..=3 {
            forbid(libc::SYS_fallocate, Some((1, mode)), libc::EOPNOTSUPP);
        }
        let pool = works(Pool::options().capacity(64 << 20).retain(0).create().unwrap());
        let stats = pool.stats();
        assert_eq!((stats.commit, stats.keeps_memory), (Commit::Allocate, true));
        assert!(pool.trim().is_err(), "the memory is still there");
        // And without any fallocate.
        forbid(libc::SYS_fallocate, None, libc::EOPNOTSUPP);
        assert_eq!(works(Pool::new().unwrap()).stats().commit, Commit::Write);
    });
}

#[test]
fn a_kernel_that_clears_no_page_in_a_child() {
    in_child("a_kernel_that_clears_no_page_in_a_child", || {
        // Before Linux 4.14: the process is told apart by its number.
        forbid(libc::SYS_madvise, Some((2, libc::MADV_WIPEONFORK as u32)), libc::EINVAL);
        let pool = works(Pool::new().unwrap());
        // SAFETY: the child only looks at the pool.
        match unsafe { libc::fork() } {
            0 => {
                let refused = Rope::in_pool(&pool)
                    .reserve(1)
                    .is_err_and(|error| error.kind() == ErrorKind::Unsupported);
                // SAFETY: ends the child at once.
                unsafe { libc::_exit(i32::from(!refused)) }
            }
            child => {
                let mut status = 0;
                // SAFETY: waits for the child just made.
                assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
                assert_eq!(status, 0);
            }
        }
    });
}

#[test]
fn an_address_space_limit_leaves_half_to_the_program() {
    in_child("an_address_space_limit_leaves_half_to_the_program", || {
        limit(Resource::RLIMIT_AS, GIB);
        let pool = works(Pool::options().capacity(64 * GIB).create().unwrap());
        assert!(pool.stats().reduced && pool.stats().capacity >= 64 << 20, "{:?}", pool.stats());
        let left = GIB - status("VmSize:");
        assert!(left >= 300 << 20, "{left} bytes of address space are left");
        let many: Vec<Vec<u8>> = (0..200).map(|_| vec![1; MIB]).collect();
        assert_eq!(many.len(), 200);
    });
}

#[test]
fn a_data_limit_leaves_half_to_the_program() {
    in_child("a_data_limit_leaves_half_to_the_program", || {
        let used = status("VmData:");
        limit(Resource::RLIMIT_DATA, used + (32 << 20));
        let pool = works(Pool::options().capacity(64 * GIB).create().unwrap());
        let backing = if cfg!(ropewalk_portable) { Backing::Anonymous } else { Backing::Memfd };
        assert_eq!(pool.stats().backing, backing);
        assert_eq!((0..8).map(|_| vec![1u8; MIB]).collect::<Vec<_>>().len(), 8);
    });
}

#[test]
fn limits_too_small_for_any_pool_are_an_error() {
    in_child("limits_too_small_for_any_pool_are_an_error", || {
        limit(Resource::RLIMIT_AS, status("VmSize:") + (256 << 10));
        let error = Pool::new().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OutOfMemory, "{error}");
    });
}

/// Of memory that only this process can have, at most half of what the limits leave is taken too.
#[test]
fn a_data_limit_leaves_half_to_the_program_without_a_memfd_too() {
    in_child("a_data_limit_leaves_half_to_the_program_without_a_memfd_too", || {
        forbid(libc::SYS_memfd_create, None, libc::EPERM);
        limit(Resource::RLIMIT_DATA, GIB + GIB / 4);
        let directory = tempfile::tempdir().unwrap();
        // Their arenas have 1 GiB of addresses, which would fit.
        for spills in if cfg!(ropewalk_portable) { &[false][..] } else { &[false, true] } {
            let options = Pool::options().capacity(if *spills { 1 << 20 } else { GIB / 2 });
            let pool =
                if *spills { options.spill(directory.path(), GIB / 2) } else { options }.create().unwrap();
            let stats = pool.stats();
            let refused = stats.reduced || cfg!(ropewalk_portable); // which does not ask for a memfd
            assert!(refused && stats.backing == Backing::Anonymous, "{stats:?}");
            let mut own = Vec::<u8>::new();
            own.try_reserve_exact(500 << 20).unwrap();
            assert!(received(&pool, &pattern(1, MIB)) == pattern(1, MIB));
        }
    });
}

/// Bytes in a line of proc_meminfo(5).
fn meminfo(name: &str) -> u64 {
    bytes_in("/proc/meminfo", name)
}

/// `sysctl vm.overcommit_memory=2`, which changes the whole system: so it is skipped unless somebody has set it.
#[test]
fn a_system_that_never_overcommits_keeps_half() {
    if fs::read_to_string("/proc/sys/vm/overcommit_memory").unwrap().trim() != "2" {
        return println!("skipped: the system overcommits");
    }
    in_child("a_system_that_never_overcommits_keeps_half", || {
        let left = || meminfo("CommitLimit:") - meminfo("Committed_AS:");
        let directory = tempfile::tempdir().unwrap();
        // A memfd is charged for pages, not for addresses.
        let pool = works(Pool::options().capacity(1 << 40).create().unwrap());
        assert_eq!((pool.stats().backing, pool.stats().capacity), (Backing::Memfd, 1 << 40));
        drop(pool);
        let before = left();
        let pool = Pool::options().capacity(1 << 20).spill(directory.path(), 1 << 45).create().unwrap();
        println!("{before} bytes were left, then {}: {:?}", left(), pool.stats());
        assert!(pool.stats().reduced && left() > before / 3);
        drop(pool);
        forbid(libc::SYS_memfd_create, None, libc::EPERM);
        let pool = works(Pool::options().capacity(1 << 40).create().unwrap());
        println!("{before} bytes were left, then {}: {:?}", left(), pool.stats());
        assert!(pool.stats().reduced && left() > before / 3);
    });
}

#[test]
#[cfg_attr(target_pointer_width = "32", ignore = "needs more addresses than there are")]
fn locked_memory_is_not_populated() {
    in_child("locked_memory_is_not_populated", || {
        // SAFETY: changes how later mappings are made.
        if unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE) } != 0 {
            println!("mlockall is refused here: nothing is tested");
            return;
        }
        let before = status("VmLck:");
        let pool = works(Pool::options().capacity(4 * GIB).create().unwrap());
        let locked = status("VmLck:") - before;
        assert!(locked < 64 << 20, "{locked} bytes were locked for a pool of 4 GiB");
        assert!(!pool.stats().reduced);
    });
}

#[test]
fn a_limit_of_locked_memory_makes_a_smaller_pool_or_an_error() {
    in_child("a_limit_of_locked_memory_makes_a_smaller_pool_or_an_error", || {
        limit(Resource::RLIMIT_MEMLOCK, 64 << 20);
        // SAFETY: changes who this process is, and how later mappings are made.
        let locked = unsafe { libc::mlockall(libc::MCL_FUTURE) == 0 && libc::setuid(65_534) == 0 };
        if !locked {
            println!("not possible here: nothing is tested");
            return;
        }
        match Pool::options().capacity(GIB).create() {
            Ok(pool) => drop(works(pool)),
            Err(error) => assert_eq!(error.kind(), ErrorKind::OutOfMemory, "{error}"),
        }
    });
}

/// mmap(2) says EAGAIN then, which an event loop would take for "nothing has come yet".
#[test]
#[cfg_attr(ropewalk_portable, ignore = "there are no seals")]
fn a_limit_of_locked_memory_is_no_reason_to_wait() {
    in_child("a_limit_of_locked_memory_is_no_reason_to_wait", || {
        let (sender, receiver) = support::pair();
        Sealed::copy_of(&pattern(1, 32 * MIB)).unwrap().send(&sender).unwrap();
        let file = tempfile::tempfile().unwrap();
        file.set_len(32 << 20).unwrap();
        limit(Resource::RLIMIT_MEMLOCK, 16 << 20);
        // SAFETY: changes who this process is, and how later mappings are made.
        let locked = unsafe { libc::mlockall(libc::MCL_FUTURE) == 0 && libc::setuid(65_534) == 0 };
        if !locked {
            println!("not possible here: nothing is tested");
            return;
        }
        let mut rope = Rope::from("before");
        let refused = [
            Pool::options().capacity(GIB).create().map(drop),
            Rope::for_handover().map(drop),
            rope.push_file(file, 0..32 << 20),
            Sealed::receive(&receiver).map(drop),
        ];
        for (at, refused) in refused.into_iter().enumerate() {
            let refused = refused.map_err(|error| (error.kind(), error.to_string()));
            let is_clear = |(kind, message): &(ErrorKind, String)| {
                *kind == ErrorKind::OutOfMemory && message.contains("RLIMIT_MEMLOCK")
            };
            assert!(refused.as_ref().err().is_none_or(is_clear), "{at}: {refused:?}");
            assert!(at < 2 || refused.is_err(), "{at} locks 32 MiB");
        }
        assert_eq!(rope, b"before");
    });
}

/// Pages that the disk has are mapped anew, by the pool's thread: a receive reports that there is no map, and goes on once
/// there is.
#[test]
#[cfg_attr(ropewalk_portable, ignore = "there is no spilling")]
fn a_pool_that_spills_says_that_locked_memory_is_at_its_limit() {
    in_child("a_pool_that_spills_says_that_locked_memory_is_at_its_limit", || {
        let directory = tempfile::tempdir().unwrap();
        let pool = Pool::options().capacity(1 << 20).spill(directory.path(), 64 << 20).create().unwrap();
        let payload = pattern(1, 24 * MIB);
        limit(Resource::RLIMIT_MEMLOCK, 1 << 20);
        // SAFETY: changes who this process is, and how later mappings are made.
        let locked = unsafe { libc::mlockall(libc::MCL_FUTURE) == 0 && libc::seteuid(65_534) == 0 };
        if !locked {
            println!("not possible here: nothing is tested");
            return;
        }
        let mut rope = Rope::in_pool(&pool);
        let error = rope.write_all(&payload).expect_err("no page can be mapped");
        assert_eq!(error.kind(), ErrorKind::OutOfMemory, "{error}");
        assert!(rope == payload[..rope.len()]);
        // SAFETY: as it was, without that limit.
        assert!(unsafe { libc::munlockall() == 0 && libc::seteuid(0) == 0 });
        // The first call may still be told what the thread has met.
        let begin = Instant::now();
        while rope.write_all(&payload[rope.len()..]).is_err() {
            assert!(begin.elapsed() < Duration::from_secs(60), "{:?}", pool.stats());
        }
        assert!(rope == payload);
    });
}

#[test]
#[cfg_attr(ropewalk_portable, ignore = "core dumps have the arena")]
fn a_core_dump_leaves_the_arena_out() {
    let directory = tempfile::tempdir().unwrap();
    let pattern = fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    if pattern.starts_with('|') || pattern.starts_with('/') {
        println!("cores go to {} here: nothing is tested", pattern.trim());
        return;
    }
    if std::env::var_os("ROPEWALK_DUMPS_CORE").is_some() {
        let pool = Pool::options().capacity(64 << 20).create().unwrap();
        let _rope = received(&pool, b"ten bytes!");
        std::process::abort();
    }
    let this = std::env::current_exe().unwrap();
    let script = "ulimit -c unlimited && exec \"$0\" --exact a_core_dump_leaves_the_arena_out --nocapture";
    let status = Command::new("sh")
        .args(["-c", script])
        .arg(&this)
        .env("ROPEWALK_DUMPS_CORE", "1")
        .current_dir(directory.path())
        .status()
        .unwrap();
    assert!(!status.success());
    let cores: Vec<u64> = fs::read_dir(directory.path())
        .unwrap()
        .map(|entry| entry.unwrap().metadata().unwrap().len())
        .collect();
    assert!(!cores.is_empty(), "no core was written");
    // The binary's own memory is a few MiB; the arena alone would be 128.
    assert!(cores.iter().all(|&len| len < 40 << 20), "{cores:?}");
}

#[test]
#[cfg_attr(target_pointer_width = "32", ignore = "needs more addresses than there are")]
fn a_thousand_pools_are_made_in_no_time() {
    let mut pools = Vec::new();
    let begun = Instant::now();
    for _ in 0..1000 {
        pools.push(Pool::options().capacity(16 << 20).create().unwrap());
    }
    // Half a millisecond each, but the machine may be busy, or emulated.
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
    works(pools.pop().unwrap());
}

#[test]
fn a_small_pool_with_many_small_files_has_room() {
    let pool = Pool::options().capacity(64 << 20).create().unwrap();
    for files in [1, 128, 1000, 10_000] {
        let held: Vec<Rope> = (0..files).map(|_| received(&pool, b"x")).collect();
        let mut rope = Rope::in_pool(&pool);
        rope.reserve(600_000).unwrap_or_else(|error| panic!("{files} files: {error}"));
        drop(held);
    }
}

#[test]
fn what_was_idle_is_given_back_in_slices_on_request() {
    // Longer than it takes to drop what is received, also where the machine is busy or emulated.
    let decay = Duration::from_secs(1);
    let pool = Pool::options().capacity(256 << 20).decay(decay).create().unwrap();
    assert_eq!(pool.decay_timeout(), None);
    let ropes: Vec<Rope> = (0..32).map(|round| received(&pool, &pattern(round, MIB))).collect();
    drop(ropes);
    let begun = Instant::now();
    let mut slices = 0;
    while let Some(timeout) = pool.decay_timeout() {
        assert!(timeout <= decay / 16 + Duration::from_millis(1), "{timeout:?}");
        std::thread::sleep(timeout);
        let given = pool.decay().unwrap();
        assert!(given <= 2 << 20, "{given} bytes at once");
        slices += usize::from(given > 0);
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", pool.stats());
    }
    assert!(slices >= 15, "{slices}");
    assert_eq!((pool.stats().warm, pool.stats().resident), (0, 0));
}

#[test]
fn a_thread_gives_back_what_a_silent_program_left() {
    let pool = Pool::options()
        .capacity(512 << 20)
        .decay(Duration::from_millis(200))
        .background(true)
        .create()
        .unwrap();
    let threads = || fs::read_dir("/proc/self/task").unwrap().count();
    let before = threads();
    drop((0..8).map(|round| received(&pool, &pattern(round, MIB))).collect::<Vec<_>>());
    let memory = pool.clone();
    // No call of the pool from here on, but those that count nothing: what is resident is read from the file.
    let resident = || resident_of_memfds();
    let begun = Instant::now();
    while resident() > MIB as u64 {
        assert!(begun.elapsed() < Duration::from_secs(20), "{} bytes stay", resident());
        std::thread::sleep(Duration::from_millis(10));
    }
    while threads() > before {
        assert!(begun.elapsed() < Duration::from_secs(20), "the thread stays");
        std::thread::sleep(Duration::from_millis(10));
    }
    works(memory);
}

/// Bytes of all memfds of this process that have memory.
fn resident_of_memfds() -> u64 {
    let mut files: Vec<_> =
        fs::read_dir("/proc/self/fd").unwrap().map(|entry| entry.unwrap().path()).collect();
    files
        .retain(|file| fs::read_link(file).is_ok_and(|target| target.to_string_lossy().contains("ropewalk")));
    files
        .iter()
        .filter_map(|file| fs::metadata(file).ok())
        .map(|file| std::os::unix::fs::MetadataExt::blocks(&file) * 512)
        .sum()
}

#[test]
#[cfg_attr(ropewalk_portable, ignore = "is not notified")]
fn memory_pressure_takes_idle_pages_at_once() {
    in_child("memory_pressure_takes_idle_pages_at_once", || {
        let directory = tempfile::tempdir().unwrap();
        let fifo = directory.path().join("pressure");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        // SAFETY: no other thread of this process reads the environment now.
        unsafe { std::env::set_var("MEMORY_PRESSURE_WATCH", &fifo) };
        let pool = Pool::options().decay(Duration::from_secs(3600)).background(true).create().unwrap();
        drop((0..8).map(|round| received(&pool, &pattern(round, MIB))).collect::<Vec<_>>());
        std::thread::sleep(Duration::from_millis(1500));
        assert!(resident_of_memfds() > 4 << 20, "idle pages go without pressure");
        fs::write(&fifo, b"!").unwrap();
        let begun = Instant::now();
        while resident_of_memfds() > 0 {
            assert!(begun.elapsed() < Duration::from_secs(5), "{} bytes stay", resident_of_memfds());
            std::thread::sleep(Duration::from_millis(1));
        }
        println!("given back {:?} after the event", begun.elapsed());
        works(pool);
    });
}

/// Parts and the whole: what is idle is resident, and the peaks are those of what they are said to be.
#[test]
fn figures_fit_each_other() {
    let pool = Pool::options().capacity(64 << 20).create().unwrap();
    let check = |pool: &Pool| {
        let stats = pool.stats();
        assert!(stats.warm <= stats.resident && stats.resident <= stats.peak_resident, "{stats:?}");
        assert!(stats.in_use <= stats.peak && stats.peak <= stats.capacity, "{stats:?}");
        assert!(stats.resident - stats.warm <= stats.in_use, "{stats:?}");
    };
    let mut held = Vec::new();
    for turn in 0..200 {
        let mut rope = Rope::in_pool(&pool);
        rope.extend_from_slice(&pattern(turn, 1 + (turn as usize * 7919) % 300_000));
        held.push(rope);
        if turn % 3 == 0 {
            held.swap_remove((turn as usize * 31) % held.len());
        }
        if turn % 50 == 49 {
            held.drain(..held.len() / 2);
            pool.trim().unwrap();
        }
        check(&pool);
    }
    held.clear();
    check(&pool);
}
