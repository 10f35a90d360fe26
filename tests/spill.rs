//! Payloads that are larger than a pool's memory: a rope of memory and a file.
#![cfg(not(ropewalk_portable))] // which does not spill

#[allow(dead_code)] // some of it is for other tests
mod support;

use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use nix::unistd::{Whence, lseek64};
use ropewalk::{Pool, Rope};
use support::{bytes_in, in_child, pattern, receive, receive_all};

const MIB: usize = 1 << 20;

/// Bytes per page of a spill file.
const UNIT: u64 = 2 << 20;

/// A pool with so many bytes of memory that spills to `directory`.
fn pool(directory: &Path, memory: usize, disk: usize) -> Pool {
    Pool::options().capacity(memory as u64).spill(directory, disk as u64).create().unwrap()
}

fn received(pool: &Pool, payload: &[u8]) -> Rope {
    support::received(pool, payload)
}

/// Disk space and names in use under a directory that has a file system of its own, or of the files of this process there.
fn is_empty(directory: &Path) -> bool {
    fs::read_dir(directory).unwrap().next().is_none()
}

/// Waits until all that can be written is.
fn settle(pool: &Pool) {
    pool.trim().unwrap();
}

/// Bytes of the page cache or the disk in this process's files without a name in `directory`. Not their blocks: XFS allocates
/// some behind the end of a file that grows, and takes them back when it is full.
fn disk_bytes(directory: &Path) -> u64 {
    let of = |entry: io::Result<fs::DirEntry>| {
        let path = entry.ok()?.path();
        let name = fs::read_link(&path).ok()?;
        name.starts_with(directory).then(|| fs::File::open(&path).ok().map(|file| data_bytes(&file)))?
    };
    fs::read_dir("/proc/self/fd").unwrap().filter_map(of).sum()
}

/// Bytes that are in no hole.
fn data_bytes(file: &fs::File) -> u64 {
    let (mut sum, mut end) = (0, 0);
    while let Ok(start) = lseek64(file, end, Whence::SeekData) {
        end = lseek64(file, start, Whence::SeekHole).unwrap();
        sum += end - start;
    }
    sum.unsigned_abs()
}

#[test]
fn a_payload_larger_than_memory_is_one_rope_and_one_view() {
    let directory = tempfile::tempdir().unwrap();
    let pool = pool(directory.path(), MIB, 64 * MIB);
    let payload = pattern(1, 20 * MIB + 12_345);
    let rope = received(&pool, &payload);
    let stats = pool.stats();
    assert!(stats.in_use <= MIB as u64, "{stats:?}");
    assert!(stats.spilled >= 19 * MIB as u64 && stats.spilled <= 22 * MIB as u64, "{stats:?}");
    assert_eq!(stats.spill_capacity, 64 * MIB as u64);
    assert!(rope == payload);
    assert!(is_empty(directory.path()), "the file has a name");
    settle(&pool);
    assert!(rope == payload, "it was changed by being written");
    let wanted = &payload[15 * MIB..15 * MIB + 4096];
    let first = payload.windows(4096).position(|window| window == wanted);
    assert_eq!(rope.find(wanted), first);
    let view = rope.finalize().unwrap();
    assert!(view == payload);
    assert!(view.copied_bytes() <= 3 * MIB, "{view:?}");
    assert!(view.mapped_bytes() >= 17 * MIB, "{view:?}");
    drop(view);
    settle(&pool);
    assert_eq!(pool.stats().spilled, 0);
    assert_eq!(pool.stats().in_use, 0);
    assert!(disk_bytes(directory.path()) <= UNIT, "{} bytes of disk", disk_bytes(directory.path()));
}

#[test]
fn memory_is_given_back_once_the_disk_has_the_bytes() {
    in_child("memory_is_given_back_once_the_disk_has_the_bytes", || {
        let directory = tempfile::tempdir().unwrap();
        let pool = pool(directory.path(), MIB, 256 * MIB);
        let payload = pattern(2, 8 * MIB);
        let mut rope = Rope::in_pool(&pool);
        for _ in 0..16 {
            receive_all(&mut rope, &payload);
        }
        settle(&pool);
        let bytes = bytes_in("/proc/self/status", "RssAnon:");
        assert!(bytes < 40 << 20, "{bytes} bytes of anonymous memory for 128 MiB");
        assert!((0..16).all(|at| rope.slice(at * 8 * MIB..(at + 1) * 8 * MIB) == payload));
    });
}

#[test]
fn a_spilled_rope_is_sent_and_what_was_sent_can_be_freed_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let pool = pool(directory.path(), MIB, 128 * MIB);
    let payload = pattern(3, 24 * MIB + 777);
    for (case, written) in [true, false, true].into_iter().enumerate() {
        let mut rope = received(&pool, &payload);
        if written {
            settle(&pool);
        }
        let (mut here, there) = UnixStream::pair().unwrap();
        let reader = thread::spawn(move || {
            // Slow, so that sent pages are freed and used again before they are read.
            let (mut all, mut there) = (Vec::new(), there);
            let mut part = vec![0; 64 << 10];
            loop {
                match there.read(&mut part).unwrap() {
                    0 => return all,
                    count => all.extend_from_slice(&part[..count]),
                }
                if all.len() % MIB < 32 << 10 {
                    thread::sleep(Duration::from_millis(1));
                }
            }
        });
        if case == 2 {
            let view = rope.finalize().unwrap();
            view.cursor().write_all_to(&here).unwrap();
        } else {
            while !rope.is_empty() {
                rope.writev_to(&here).unwrap();
                // Others take what was freed.
                drop(received(&pool, &payload[..3 * MIB]));
            }
        }
        here.flush().unwrap();
        drop(here);
        assert!(reader.join().unwrap() == payload, "case {case}");
    }
    settle(&pool);
    assert_eq!(pool.stats().spilled, 0);
}

#[test]
fn bytes_on_their_way_are_not_changed_by_those_that_follow_in_their_place() {
    let directory = tempfile::tempdir().unwrap();
    let pool = pool(directory.path(), 4096, 2 * MIB);
    let _held = pool.try_room(4096).unwrap();
    for round in 0..4 {
        let payloads = [pattern(20 + round, 100_000), pattern(40 + round, 100_000)];
        let (here, mut there) = UnixStream::pair().unwrap();
        for payload in &payloads {
            let view = received(&pool, payload).finalize().unwrap();
            settle(&pool);
            if payload == &payloads[0] {
                here.set_nonblocking(true).unwrap();
                view.cursor().write_all_to(&here).unwrap();
            }
            drop(view);
            // The pool has one page, so the second payload gets that of the first.
            settle(&pool);
        }
        let mut got = vec![0; payloads[0].len()];
        there.read_exact(&mut got).unwrap();
        assert!(got == payloads[0], "round {round}: others' bytes came");
    }
}

#[test]
fn ropes_that_spill_at_the_same_time_keep_apart() {
    let directory = tempfile::tempdir().unwrap();
    let (one, other) = (pool(directory.path(), MIB, 256 * MIB), pool(directory.path(), MIB, 256 * MIB));
    let pools = Arc::new([one, other]);
    let threads = (0..4).map(|seed| {
        let pools = Arc::clone(&pools);
        thread::spawn(move || {
            for round in 0..3 {
                let payload = pattern(100 + 10 * seed + round, 9 * MIB + 4_321 * seed as usize);
                let rope = received(&pools[seed as usize % 2], &payload);
                assert!(rope == payload);
                let half = rope.slice(5 * MIB..);
                let view = rope.finalize().unwrap();
                assert!(view == payload);
                drop(view);
                assert!(half == payload[5 * MIB..]);
            }
        })
    });
    threads.collect::<Vec<_>>().into_iter().for_each(|thread| thread.join().unwrap());
    for pool in &*pools {
        settle(pool);
        assert_eq!(pool.stats().spilled, 0);
    }
}

#[test]
fn when_both_are_full_it_is_an_error_and_what_has_arrived_stays() {
    let directory = tempfile::tempdir().unwrap();
    let pool = pool(directory.path(), MIB, 4 * MIB);
    let payload = pattern(4, 12 * MIB);
    let mut rope = Rope::in_pool(&pool);
    let (got, error) = receive(&mut rope, &payload);
    let error = error.expect("5 MiB do not hold 12");
    assert_eq!(error.kind(), ErrorKind::OutOfMemory);
    assert!(error.to_string().contains("spill"), "{error}");
    assert!(got >= 4 * MIB, "{got} {:?}", pool.stats());
    assert!(rope == payload[..got]);
    rope.advance(3 * MIB);
    settle(&pool);
    let (more, error) = receive(&mut rope, &payload[got..got + MIB]);
    assert_eq!((more, error.map(|error| error.to_string())), (MIB, None));
    assert!(rope == payload[3 * MIB..got + MIB]);
}

#[test]
fn what_cannot_work_is_refused_when_the_pool_is_made() {
    let create = |options: ropewalk::PoolOptions| options.create().unwrap_err();
    let directory = tempfile::tempdir().unwrap();
    let missing = create(Pool::options().spill(directory.path().join("missing"), 1 << 30));
    assert_eq!(missing.kind(), ErrorKind::NotFound);
    assert!(missing.to_string().contains("missing"), "{missing}");
    let zeroes = create(Pool::options().spill(directory.path(), 1 << 30).zero_on_release(true));
    assert_eq!(zeroes.kind(), ErrorKind::InvalidInput);
    let nothing = create(Pool::options().spill(directory.path(), 0));
    assert_eq!(nothing.kind(), ErrorKind::InvalidInput);
    let everything = create(Pool::options().spill(directory.path(), u64::MAX));
    assert_eq!(everything.kind(), ErrorKind::InvalidInput);
    let file = directory.path().join("file");
    fs::write(&file, b"there").unwrap();
    symlink(directory.path().join("nowhere"), directory.path().join("dangling")).unwrap();
    for (name, kind) in [
        ("file", ErrorKind::NotADirectory),
        ("file/below", ErrorKind::NotADirectory),
        ("dangling", ErrorKind::NotFound),
        ("nul\0", ErrorKind::InvalidInput),
        (&"x".repeat(256), ErrorKind::InvalidFilename),
    ] {
        let path = directory.path().join(name);
        assert_eq!(create(Pool::options().spill(&path, 1 << 30)).kind(), kind, "{name}");
        assert_eq!(Rope::for_file(&path, 1 << 30).unwrap_err().kind(), kind, "{name}");
    }
    assert_eq!(create(Pool::options().spill("", 1 << 30)).kind(), ErrorKind::NotFound);
    assert_eq!(create(Pool::options().spill("/dev/null", 1 << 30)).kind(), ErrorKind::NotADirectory);
    assert!(fs::read(&file).unwrap() == b"there");
    fs::remove_file(directory.path().join("dangling")).unwrap();
    fs::remove_file(file).unwrap();
    // A file system without holes.
    let proc = create(Pool::options().spill("/proc", 1 << 30));
    assert!(proc.to_string().contains("/proc"), "{proc}");
    assert!(is_empty(directory.path()));
}

#[test]
fn a_pool_that_is_dropped_ends_its_thread_and_its_file() {
    in_child("a_pool_that_is_dropped_ends_its_thread_and_its_file", || {
        let directory = tempfile::tempdir().unwrap();
        let payload = pattern(5, 9 * MIB);
        let view = {
            let pool = pool(directory.path(), MIB, 64 * MIB);
            received(&pool, &payload).finalize().unwrap()
        };
        assert!(view == payload, "a view keeps its bytes");
        drop(view);
        let threads = || {
            fs::read_dir("/proc/self/task")
                .unwrap()
                .filter(|task| {
                    let name = task.as_ref().unwrap().path().join("comm");
                    fs::read_to_string(name).unwrap_or_default().starts_with("ropewalk-spill")
                })
                .count()
        };
        let deadline = Instant::now() + Duration::from_secs(60);
        while threads() > 0 || disk_bytes(directory.path()) > 0 {
            assert!(
                Instant::now() < deadline,
                "{} threads, {} bytes",
                threads(),
                disk_bytes(directory.path())
            );
            thread::sleep(Duration::from_millis(5));
        }
    });
}

/// A tmpfs of 48 MiB, where this process may mount one.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount() -> Option<SmallDisk> {
        let directory = tempfile::tempdir().unwrap();
        let mount = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=48m", "ropewalk-test"])
            .arg(directory.path())
            .output();
        mount.is_ok_and(|output| output.status.success()).then(|| SmallDisk(directory))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("--lazy").arg(self.path()).output();
    }
}

/// Receives all of `payload` behind what the rope has, although it is an error at first.
fn receive_in_the_end(rope: &mut Rope, payload: &[u8]) {
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut got = 0;
    while got < payload.len() {
        let (more, error) = receive(rope, &payload[got..]);
        got += more;
        if let Some(error) = error {
            assert!(Instant::now() < deadline, "still {error}");
            thread::sleep(Duration::from_millis(1));
        }
    }
}

#[test]
fn a_full_disk_at_any_point_is_an_error_and_loses_nothing() {
    let Some(disk) = SmallDisk::mount() else {
        println!("skipped: this process may not mount a tmpfs");
        return;
    };
    let rounds = std::env::var("ROPEWALK_FULL_DISKS").map_or(12, |rounds| rounds.parse().unwrap());
    let payload = pattern(6, 64 * MIB);
    let mut seed = 88_172_645_463_325_252_u64;
    for round in 0..rounds {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        let pool = pool(disk.path(), MIB, 256 * MIB);
        // From a disk that is full to one that takes 24 MiB.
        let free = usize::try_from(seed % (24 << 20)).unwrap();
        let filler = disk.path().join("filler");
        // It may be full before, with what the pool of the last round has not given back yet.
        let _ = fs::write(&filler, vec![1; 48 * MIB - free]);
        let mut rope = Rope::in_pool(&pool);
        let (got, error) = receive(&mut rope, &payload);
        let error = error.unwrap_or_else(|| panic!("round {round}: 64 MiB do not fit into {free} bytes"));
        assert_eq!(error.kind(), ErrorKind::StorageFull, "{error}");
        assert!(error.to_string().contains("cannot spill to"), "{error}");
        assert!(rope == payload[..got], "round {round}: what had arrived was changed");
        assert!(got > MIB);
        match round % 3 {
            0 => assert!(rope.finalize().unwrap() == payload[..got], "round {round}"),
            // There is room again.
            1 => {
                fs::remove_file(&filler).unwrap();
                let more = &payload[got..got + 4 * MIB];
                receive_in_the_end(&mut rope, more);
                assert!(rope == payload[..got + 4 * MIB], "round {round}");
            }
            _ => {
                rope.advance(got / 2);
                assert!(rope == payload[got / 2..got], "round {round}");
            }
        }
        let _ = fs::remove_file(&filler);
    }
}

#[test]
fn a_limit_on_file_sizes_is_an_error_and_no_signal() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    in_child("a_limit_on_file_sizes_is_an_error_and_no_signal", || {
        let directory = tempfile::tempdir().unwrap();
        let pool = pool(directory.path(), MIB, 256 * MIB);
        let (_, hard) = getrlimit(Resource::RLIMIT_FSIZE).unwrap();
        setrlimit(Resource::RLIMIT_FSIZE, 5 << 20, hard).unwrap();
        let payload = pattern(7, 64 * MIB);
        let mut rope = Rope::in_pool(&pool);
        let (got, error) = receive(&mut rope, &payload);
        let error = error.expect("more than the limit");
        assert_eq!(error.kind(), ErrorKind::FileTooLarge);
        assert!(error.to_string().contains("RLIMIT_FSIZE"), "{error}");
        assert!(rope == payload[..got]);
        setrlimit(Resource::RLIMIT_FSIZE, hard, hard).unwrap();
        receive_in_the_end(&mut rope, &payload[got..]);
        assert!(rope == payload);
    });
}

#[test]
fn many_ropes_that_fill_their_first_pages_are_an_error_in_the_end() {
    let directory = tempfile::tempdir().unwrap();
    let pool = pool(directory.path(), MIB, 1024 * MIB);
    let held = received(&pool, &pattern(8, MIB));
    let payload = pattern(9, 100_000);
    let mut ropes: Vec<Rope> = Vec::new();
    let error = loop {
        let mut rope = Rope::in_pool(&pool);
        let (_, error) = receive(&mut rope, &payload);
        ropes.push(rope);
        if let Some(error) = error {
            break error;
        }
        assert!(ropes.len() < 100);
    };
    assert_eq!(error.kind(), ErrorKind::OutOfMemory);
    assert!(error.to_string().contains("spill at once"), "{error}");
    // Each that is done makes room.
    let views: Vec<_> = ropes.drain(..ropes.len() - 1).map(|rope| rope.finalize().unwrap()).collect();
    settle(&pool);
    let mut rope = Rope::in_pool(&pool);
    assert!(receive(&mut rope, &payload).1.is_none());
    assert!(views.iter().all(|view| view == &payload));
    drop(held);
}

#[test]
fn parts_of_a_page_that_is_done_are_written_and_kept() {
    let directory = tempfile::tempdir().unwrap();
    let pool = pool(directory.path(), MIB, 64 * MIB);
    let payload = pattern(10, 7 * MIB + 5);
    let mut rope = received(&pool, &payload);
    rope.push("pushed behind");
    let tail = rope.slice(6 * MIB..);
    rope.truncate(payload.len());
    settle(&pool);
    assert!(rope == payload);
    let front = rope.split_to(3 * MIB + 1);
    drop(rope);
    settle(&pool);
    assert!(front == payload[..3 * MIB + 1]);
    drop(front);
    settle(&pool);
    assert!(tail.slice(..MIB + 5) == payload[6 * MIB..]);
    assert!(pool.stats().spilled <= 2 * UNIT, "{:?}", pool.stats());
    drop(tail);
    settle(&pool);
    assert_eq!(pool.stats().spilled, 0);
}

#[test]
fn a_clone_of_what_is_dropped_is_written_too() {
    let directory = tempfile::tempdir().unwrap();
    let pool = pool(directory.path(), 4096, 256 * MIB);
    let _held = pool.try_room(4096).unwrap();
    // More than may be in memory.
    let payload = pattern(12, MIB);
    let clones: Vec<Rope> = (0..32).map(|_| received(&pool, &payload).clone()).collect();
    assert!(clones.iter().all(|clone| clone == &payload));
}

#[test]
fn a_child_of_fork_leaves_the_file_alone() {
    use nix::sys::wait::{WaitStatus, waitpid};
    use nix::unistd::{ForkResult, fork};
    in_child("a_child_of_fork_leaves_the_file_alone", || {
        let directory = tempfile::tempdir().unwrap();
        let pool = pool(directory.path(), MIB, 64 * MIB);
        let payload = pattern(13, 9 * MIB);
        let rope = received(&pool, &payload);
        let view = received(&pool, &payload).finalize().unwrap();
        #[allow(unsafe_code)]
        // SAFETY: the child only uses this pool and ends.
        match unsafe { fork() }.unwrap() {
            ForkResult::Child => {
                let stats = pool.stats();
                let mut rope = rope;
                let refused = rope.reserve(3 << 20).unwrap_err().kind() == ErrorKind::Unsupported
                    && pool.trim().unwrap_err().kind() == ErrorKind::Unsupported
                    && rope.clone().finalize().is_err();
                drop((rope, view, pool));
                std::process::exit(i32::from(!(refused && stats.spilled == 0)));
            }
            ForkResult::Parent { child } => {
                let status = waitpid(child, None).unwrap();
                assert!(matches!(status, WaitStatus::Exited(_, 0)), "{status:?}");
            }
        }
        assert!(rope == payload && view == payload);
        settle(&pool);
        assert!(rope == payload && view == payload);
        assert!(received(&pool, &payload) == payload);
    });
}

/// In a child the thread that holds a lock may not exist, so none is waited for as long as it takes. Whatever cannot be
/// noted then must not be done either.
#[test]
fn a_child_of_fork_spills_while_its_threads_map_files() {
    use nix::sys::wait::{WaitStatus, waitpid};
    use nix::unistd::{ForkResult, fork};
    use std::sync::atomic::{AtomicBool, Ordering};
    in_child("a_child_of_fork_spills_while_its_threads_map_files", || {
        let directory = tempfile::tempdir().unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&pattern(1, 10_000)).unwrap();
        // The parent is the first to map a file.
        Rope::new().push_file(file.try_clone().unwrap(), 0..10_000).unwrap();
        #[allow(unsafe_code)]
        // SAFETY: this process has no other thread that holds a lock; the child ends in this function.
        match unsafe { fork() }.unwrap() {
            ForkResult::Parent { child } => {
                let status = waitpid(child, None).unwrap();
                assert!(matches!(status, WaitStatus::Exited(_, 0)), "{status:?}");
            }
            ForkResult::Child => {
                nix::unistd::alarm::set(240);
                let (pool, stop) = (pool(directory.path(), MIB, 64 * MIB), AtomicBool::new(false));
                thread::scope(|scope| {
                    for _ in 0..3 {
                        scope.spawn(|| {
                            while !stop.load(Ordering::Relaxed) {
                                let mut rope = Rope::new();
                                for _ in 0..50 {
                                    rope.push_file(file.try_clone().unwrap(), 5..9000).unwrap();
                                }
                            }
                        });
                    }
                    for seed in 0..20 {
                        let payload = pattern(seed, 9 * MIB);
                        let mut rope = Rope::in_pool(&pool);
                        receive_in_the_end(&mut rope, &payload);
                        assert!(rope == payload);
                    }
                    stop.store(true, Ordering::Relaxed);
                });
                std::process::exit(0);
            }
        }
    });
}

#[cfg(feature = "tokio")]
#[test]
fn a_task_awaits_what_is_written_and_others_go_on() {
    use ropewalk::ReadRope;
    let directory = tempfile::tempdir().unwrap();
    let pool = pool(directory.path(), MIB, 256 * MIB);
    let payload = pattern(14, 48 * MIB);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (rope, ticks) = runtime.block_on(async {
        let (mut here, there) = tokio::net::UnixStream::pair().unwrap();
        let sent = payload.clone();
        let sender = tokio::spawn(async move {
            tokio::io::AsyncWriteExt::write_all(&mut here, &sent).await.unwrap();
        });
        let ticks = std::rc::Rc::new(std::cell::Cell::new(0));
        let local = tokio::task::LocalSet::new();
        let counter = std::rc::Rc::clone(&ticks);
        local.spawn_local(async move {
            loop {
                counter.set(counter.get() + 1);
                tokio::task::yield_now().await;
            }
        });
        let receive = async {
            let mut rope = Rope::in_pool(&pool);
            while there.read_rope(&mut rope).await.unwrap() > 0 {}
            rope
        };
        let rope = local.run_until(receive).await;
        sender.await.unwrap();
        (rope, ticks.get())
    });
    assert!(rope == payload);
    assert!(ticks > 100, "{ticks}");
}

#[cfg(feature = "tokio")]
#[test]
fn a_task_that_waits_for_room_goes_on_when_the_disk_has_some() {
    use ropewalk::ReadRope;
    let directory = tempfile::tempdir().unwrap();
    let pool = pool(directory.path(), 1 << 16, 4 * MIB);
    let payload = pattern(15, MIB);
    let _memory = pool.try_room(1 << 16).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let held = received(&pool, &pattern(16, 4 * MIB));
        let (mut here, there) = tokio::net::UnixStream::pair().unwrap();
        let sent = payload.clone();
        let sender = tokio::spawn(async move {
            tokio::io::AsyncWriteExt::write_all(&mut here, &sent).await.unwrap();
        });
        let receive = async {
            let mut rope = Rope::in_pool(&pool);
            while there.when_room().read_rope(&mut rope).await.unwrap() > 0 {}
            rope
        };
        let release = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            drop(held);
        };
        let both = async { tokio::join!(receive, release).0 };
        let rope = tokio::time::timeout(Duration::from_secs(60), both).await.expect("it hangs");
        assert!(rope == payload);
        sender.await.unwrap();
    });
}

/// The only thing that these bodies are waited for is the disk.
#[cfg(feature = "http-body")]
#[test]
fn a_body_that_is_given_up_while_the_disk_is_waited_for_loses_nothing() {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};
    let directory = tempfile::tempdir().unwrap();
    let pool = pool(directory.path(), MIB, 256 * MIB);
    let payload = pattern(21, 24 * MIB);
    let mut waits = [0; 2];
    for (part, waits) in waits.iter_mut().enumerate() {
        let mut body: Rope = payload.chunks(256 << 10).map(<[u8]>::to_vec).collect();
        let mut rope = Rope::in_pool(&pool);
        loop {
            let mut context = Context::from_waker(Waker::noop());
            let polled = match part {
                0 => pin!(rope.receive_body(&mut body)).poll(&mut context).map_ok(|_| 0),
                _ => pin!(rope.receive_some(&mut body)).poll(&mut context),
            };
            match polled.map(Result::unwrap) {
                Poll::Ready(0) => break,
                Poll::Ready(_) => {}
                Poll::Pending => *waits += 1,
            }
            thread::yield_now();
        }
        assert_eq!(rope.len(), payload.len(), "given up {waits} times");
        assert!(rope == payload, "given up {waits} times");
    }
    println!("given up {waits:?} times");
}

#[test]
fn a_part_of_a_view_keeps_only_its_pages() {
    let directory = tempfile::tempdir().unwrap();
    let pool = pool(directory.path(), 4096, 64 * MIB);
    let _held = pool.try_room(4096).unwrap();
    let payload = pattern(11, 9 * MIB);
    let view = received(&pool, &payload).finalize().unwrap();
    assert_eq!((view.copied_bytes(), view.num_maps()), (0, 0), "it is contiguous in the file: {view:?}");
    let part = view.slice(5 * MIB..5 * MIB + 100);
    drop(view);
    settle(&pool);
    assert!(part == payload[5 * MIB..5 * MIB + 100]);
    assert_eq!(pool.stats().spilled, UNIT);
}

/// Whoever waits for the thread when the process forks has none to wait for in the child.
#[test]
#[allow(unsafe_code)] // forks
fn waiting_for_the_disk_ends_in_a_child_of_fork() {
    use nix::sys::wait::{WaitStatus, waitpid};
    use nix::unistd::{ForkResult, fork};
    use std::future::Future;
    use std::task::{Context, Waker};
    let directory = tempfile::tempdir().unwrap();
    let pool = pool(directory.path(), MIB, 256 * MIB);
    let payload = pattern(15, 24 * MIB);
    // Received faster than it is written, sooner or later.
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut forked = false;
    while !forked && Instant::now() < deadline {
        let _rope = received(&pool, &payload);
        let mut waiting = Box::pin(pool.wait_for_spill());
        let mut poll = || waiting.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        if poll().is_ready() {
            continue;
        }
        forked = true;
        // SAFETY: the child polls once and ends.
        match unsafe { fork() }.unwrap() {
            ForkResult::Child => {
                let ready = poll().is_ready();
                // SAFETY: ends the child at once.
                unsafe { nix::libc::_exit(i32::from(!ready)) }
            }
            ForkResult::Parent { child } => {
                assert_eq!(waitpid(child, None), Ok(WaitStatus::Exited(child, 0)))
            }
        }
    }
    if !forked {
        println!("skipped: this disk is faster than a socket");
    }
}

#[test]
fn a_file_size_limit_below_a_page_is_an_error_that_names_it() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    in_child("a_file_size_limit_below_a_page_is_an_error_that_names_it", || {
        let directory = tempfile::tempdir().unwrap();
        let (_, hard) = getrlimit(Resource::RLIMIT_FSIZE).unwrap();
        for limit in [0, 4096, MIB as u64, UNIT - 1, UNIT] {
            setrlimit(Resource::RLIMIT_FSIZE, limit, hard).unwrap();
            let spills =
                Pool::options().capacity(64 << 20).spill(directory.path(), 64 << 20).create().map(drop);
            let for_file = Rope::for_file(directory.path(), 64 << 20).map(drop);
            for error in [spills, for_file].into_iter().filter_map(Result::err) {
                assert!(error.to_string().contains("RLIMIT_FSIZE"), "{limit}: {error}");
            }
        }
    });
}
