//! Bytes of one rope are never seen through another's, though pages are recycled.
#![allow(unsafe_code)] // forks, and reads its own memory

#[allow(dead_code)] // some of it is for other tests
mod support;

use std::fs::{self, File, OpenOptions};
use std::hint::black_box;
use std::io::{IoSlice, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;

use bytes::{Buf, BufMut, Bytes};
use nix::libc;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};
use ropewalk::{Cursor, Pool, Rope, View};
use support::{in_child, pattern, received};

/// What must not be seen, again and again.
const SECRET: &[u8; 16] = b"\xA5secret\xC3 bytes\x5A\x99";

/// Fills `bytes` of the pool with secrets and gives them back.
fn leave_secrets(pool: &Pool, bytes: usize) {
    drop(received(pool, &SECRET.repeat(bytes / SECRET.len())));
    assert_eq!(pool.stats().in_use, 0);
}

fn shows_secrets(bytes: &[u8]) -> bool {
    bytes.windows(4).any(|window| window == &SECRET[..4] || window == &SECRET[12..])
}

#[test]
fn recycled_pages_show_nothing_of_their_past() {
    let pool = Pool::options().capacity(1 << 20).create().unwrap();
    leave_secrets(&pool, 900 << 10);
    assert!(pool.stats().warm >= 900 << 10, "nothing is recycled here");
    // Ropes that share pages at their ends, cut off in the middle of pages.
    let mut ropes: Vec<_> = (0..3).map(|_| Rope::in_pool(&pool)).collect();
    let mut flats = vec![Vec::new(); 3];
    for step in 0..60 {
        let piece = pattern(step, [1, 40, 5000, 33 << 10][step as usize % 4].min(900 << 10 >> 6));
        let at = step as usize % 3;
        match step % 2 {
            0 => ropes[at].extend_from_slice(&piece),
            _ => assert!(support::receive(&mut ropes[at], &piece).1.is_none()),
        }
        flats[at].extend(piece);
    }
    for (rope, flat) in ropes.into_iter().zip(flats) {
        assert!(!shows_secrets(format!("{rope:?}").as_bytes()));
        assert!(rope.slice(1..flat.len() - 1) == flat[1..flat.len() - 1]);
        assert!(rope.segments().flatten().eq(flat.iter().copied()));
        let view = rope.finalize().unwrap();
        assert!(*view == flat[..] && !shows_secrets(format!("{view:?}").as_bytes()));
        let bytes = Bytes::from(view);
        assert!(bytes == flat);
    }
}

#[test]
fn debug_prints_no_contents() {
    let pool = Pool::new().unwrap();
    let rope = received(&pool, &SECRET.repeat(2));
    let cursor = rope.clone().into_cursor();
    let (segments, view) = (rope.clone().into_iter(), rope.clone().finalize().unwrap());
    let text = format!("{rope:?} {cursor:?} {segments:?} {pool:?} {view:?}");
    assert!(!text.contains("secret"), "{text}");
}

#[test]
fn the_spare_capacity_is_not_readable() {
    let pool = Pool::options().capacity(1 << 20).create().unwrap();
    leave_secrets(&pool, 900 << 10);
    let mut rope = Rope::in_pool(&pool);
    // `chunk_mut` hands out uninitialised memory: safe code can write it, not read it.
    let room = rope.chunk_mut().len();
    assert!(room > 0);
    assert_eq!((rope.len(), rope.remaining(), rope.chunks().count()), (0, 0, 0));
    assert!(rope.chunk().is_empty() && rope.to_vec().is_empty());
    let mut into = Vec::new();
    assert_eq!(rope.read_to_end(&mut into).unwrap(), 0);
    assert!(rope.finalize().unwrap().is_empty());
}

#[test]
fn zeroed_pages_are_gone_from_memory() {
    in_child("zeroed_pages_are_gone_from_memory", || {
        let pool = Pool::options().capacity(8 << 20).zero_on_release(true).create().unwrap();
        let secrets = 5 << 20 >> 4;
        let rope = received(&pool, &SECRET.repeat(secrets));
        let view = rope.clone().finalize().unwrap();
        assert!(secrets_in_memory() >= secrets, "the search finds nothing");
        drop(rope);
        assert!(secrets_in_memory() >= secrets, "the view is gone");
        drop(view);
        assert!(pool.stats().warm > 0);
        let left = secrets_in_memory();
        // A vector register that was used to copy some may have been saved on a stack.
        assert!(left < 16, "{left} are still in memory");
    });
}

/// Receives so many secrets, of which this side keeps no copy in writable memory.
fn receive_secrets(rope: &mut Rope, count: usize) {
    let (mut peer, socket) = support::pair();
    let (mut left, before) = (count, rope.len());
    while left > 0 {
        let some = vec![IoSlice::new(SECRET); left.min(512)];
        assert_eq!(peer.write_vectored(&some).unwrap(), some.len() * SECRET.len());
        left -= some.len();
        while rope.readv_from(&socket).is_ok() {}
    }
    assert_eq!(rope.len() - before, count * SECRET.len());
}

/// Two ropes, each of four pieces of so many secrets that lie apart.
fn scattered_secrets(pool: &Pool, count: usize) -> [Rope; 2] {
    let mut ropes = [Rope::in_pool(pool), Rope::in_pool(pool)];
    for _ in 0..4 {
        for rope in &mut ropes {
            let mut piece = Rope::in_pool(pool);
            receive_secrets(&mut piece, count);
            rope.append(piece);
        }
    }
    ropes
}

#[test]
fn zeroed_pages_are_gone_from_all_views() {
    in_child("zeroed_pages_are_gone_from_all_views", || {
        let pool = Pool::options().capacity(8 << 20).zero_on_release(true).create().unwrap();
        let ropes = scattered_secrets(&pool, (256 << 10) / SECRET.len());
        let views = ropes.map(|rope| rope.finalize().unwrap());
        let are_mapped = views.iter().all(|view| view.num_maps() > 1 && view.copied_bytes() == 0);
        assert_ne!(are_mapped, cfg!(ropewalk_portable), "{views:?}");
        let [view, other] = views;
        let (part, bytes) = (Bytes::from(view).slice(1000..2000), Bytes::from(other.clone()));
        drop((other, bytes));
        assert!(secrets_in_memory() >= (1 << 20) / SECRET.len(), "a part keeps all of its view");
        drop(part);
        assert_eq!(pool.stats().in_use, 0);
        let left = secrets_in_memory();
        assert!(left < 16, "{left} are still in memory");
    });
}

/// How many secrets are left in memory after `work` with a pool that zeroes.
#[track_caller]
fn assert_gone_after(work: impl FnOnce(&Pool)) {
    let pool = Pool::options().capacity(1 << 20).zero_on_release(true).create().unwrap();
    work(&pool);
    assert_eq!(pool.stats().in_use, 0);
    let left = secrets_in_memory();
    assert!(left < 16, "{left} are still in memory");
}

#[test]
fn small_messages_are_gone_from_memory() {
    in_child("small_messages_are_gone_from_memory", || {
        assert_gone_after(|pool| {
            // All at once, so that their memory is not used again by the next one.
            let messages = (0..1000).map(|_| {
                let mut rope = Rope::in_pool(pool);
                receive_secrets(&mut rope, 5);
                rope
            });
            drop(messages.collect::<Vec<_>>());
        });
    });
}

/// Bytes that are read beside the rope, since a file with `O_DIRECT` is read by blocks.
#[test]
fn parts_of_blocks_are_gone_from_memory() {
    in_child("parts_of_blocks_are_gone_from_memory", || {
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let path = directory.path().join("file");
        let written = File::create(&path).unwrap().write_vectored(&[IoSlice::new(SECRET); 500]);
        assert_eq!(written.unwrap(), 500 * SECRET.len());
        let Ok(file) = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(&path) else {
            return println!("skipped: this file system has no O_DIRECT");
        };
        assert_gone_after(|pool| {
            for at in [16, 160, 5000] {
                assert!(Rope::in_pool(pool).readv_at(&file, at).unwrap() > 0);
            }
        });
    });
}

#[test]
fn what_was_copied_behind_a_header_is_gone_from_memory() {
    in_child("what_was_copied_behind_a_header_is_gone_from_memory", || {
        assert_gone_after(|pool| {
            let mut rope = Rope::in_pool(pool);
            receive_secrets(&mut rope, 3);
            rope.push_front(b"header".to_vec());
            receive_secrets(&mut rope, 4000);
            rope.finalize().unwrap();
        });
    });
}

#[test]
fn a_copied_view_is_gone_from_memory() {
    in_child("a_copied_view_is_gone_from_memory", || {
        assert_gone_after(|pool| {
            let ropes = scattered_secrets(pool, 1000);
            let view = ropes[0].clone().finalize().unwrap();
            assert!(view.copied_bytes() > 0);
        });
    });
}

#[test]
fn what_a_full_pool_did_not_take_is_gone_from_memory() {
    in_child("what_a_full_pool_did_not_take_is_gone_from_memory", || {
        assert_gone_after(|pool| {
            let mut rope = Rope::in_pool(pool);
            (0..100_000).for_each(|_| rope.extend_from_slice(SECRET));
            assert!(pool.stats().fallbacks > 0);
        });
    });
}

/// How many secrets the writable memory of this process holds, but for those across two pages.
fn secrets_in_memory() -> usize {
    let memory = File::open("/proc/self/mem").unwrap();
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let mut page = vec![0; 4096];
    let mut count = 0;
    for (range, rights) in maps.lines().filter_map(|line| line.split_once(' ')) {
        let (start, end) = range.split_once('-').unwrap();
        let address = |hex| u64::from_str_radix(hex, 16).unwrap();
        for at in (address(start)..address(end)).step_by(page.len()).take_while(|_| rights.starts_with("rw"))
        {
            if memory.read_exact_at(&mut page, at).is_ok() {
                count += memchr::memmem::find_iter(&page, SECRET).count();
                // So that the search does not find what it found before.
                black_box(&mut page).fill(0);
            }
        }
    }
    count
}

#[test]
#[cfg_attr(ropewalk_portable, ignore = "a child has a copy")]
fn a_forked_child_cannot_touch_the_arena() {
    in_child("a_forked_child_cannot_touch_the_arena", || {
        let pool = Pool::options().capacity(4 << 20).create().unwrap();
        let payload = pattern(1, 1 << 20);
        let (mut rope, mut other) = (Rope::in_pool(&pool), Rope::in_pool(&pool));
        // In each other's way, so that what is made whole are pages that were moved.
        for piece in payload.chunks(512 << 10) {
            rope.extend_from_slice(piece);
            other.extend_from_slice(piece);
        }
        let view = other.finalize().unwrap();
        assert_eq!((view.num_maps(), view.copied_bytes()), (2, 0));
        let addresses = [rope.chunks().next().unwrap().as_ptr().cast_mut(), view.as_ptr().cast_mut()];
        for (address, write) in addresses.into_iter().flat_map(|address| [(address, false), (address, true)])
        {
            // SAFETY: the child calls nothing but `_exit`, and dies before that.
            match unsafe { fork() }.unwrap() {
                ForkResult::Child => unsafe {
                    if write {
                        address.write_volatile(0);
                    } else {
                        address.read_volatile();
                    }
                    libc::_exit(0)
                },
                ForkResult::Parent { child } => {
                    let status = waitpid(child, None).unwrap();
                    assert!(matches!(status, WaitStatus::Signaled(_, Signal::SIGSEGV, _)), "{status:?}");
                }
            }
        }
        assert!(rope == payload && *view == payload);
    });
}

#[test]
#[cfg_attr(ropewalk_portable, ignore = "needs a memfd")]
fn the_memfd_is_sealed_and_not_inherited() {
    let pool = Pool::options().capacity(1 << 20).create().unwrap();
    let rope = received(&pool, b"something");
    let ours = fs::read_dir("/proc/self/fd").unwrap().filter_map(|entry| {
        let path = entry.ok()?.path();
        fs::read_link(&path).ok()?.to_str()?.contains("memfd:ropewalk").then_some(path)
    });
    let mut seen = 0;
    for path in ours {
        let fd: libc::c_int = path.file_name().unwrap().to_str().unwrap().parse().unwrap();
        // Another test's pool may be closed meanwhile: then there is nothing to see.
        let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
        let seals = unsafe { libc::fcntl(fd, libc::F_GET_SEALS) };
        if flags >= 0 && seals >= 0 {
            assert_ne!(flags & libc::FD_CLOEXEC, 0);
            let wanted = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
            assert_eq!(seals & wanted, wanted);
            seen += 1;
        }
    }
    assert!(seen > 0);
    drop(rope);
}

/// Whatever one thread makes and another one drops, with the bytes that it must show.
enum Thing {
    Rope(Rope),
    View(View),
    Cursor(Cursor<Rope>),
    Bytes(Bytes),
}

impl Thing {
    fn make(pool: &Pool, step: u64, flat: &mut Vec<u8>) -> Thing {
        let rope = received(pool, flat);
        match step % 5 {
            0 => Thing::Rope(rope),
            1 => Thing::View(rope.finalize().unwrap()),
            2 => Thing::Cursor(rope.into_cursor()),
            3 => {
                flat.drain(..flat.len() / 3);
                let part = rope.slice(rope.len() - flat.len()..);
                // The view shares pages with a rope that is dropped here.
                Thing::View(part.finalize().unwrap())
            }
            _ => {
                let segment = rope.segments().next_back().unwrap();
                flat.drain(..flat.len() - segment.len());
                Thing::Bytes(segment)
            }
        }
    }

    fn shows(&self, flat: &[u8]) -> bool {
        match self {
            Thing::Rope(rope) => *rope == *flat,
            Thing::View(view) => **view == *flat,
            Thing::Cursor(cursor) => *cursor.get_ref() == *flat,
            Thing::Bytes(bytes) => *bytes == *flat,
        }
    }
}

#[test]
fn things_move_between_threads_while_the_pool_trims() {
    const THREADS: usize = 16;
    const STEPS: u64 = if cfg!(debug_assertions) { 150 } else { 1500 };
    let pool = Pool::options().capacity(64 << 20).create().unwrap();
    let done = AtomicBool::new(false);
    let (senders, receivers): (Vec<Sender<_>>, Vec<Receiver<_>>) =
        (0..THREADS).map(|_| mpsc::channel()).unzip();
    thread::scope(|scope| {
        let work = |me: usize, inbox: Receiver<(Thing, Vec<u8>)>, others: Vec<Sender<(Thing, Vec<u8>)>>| {
            for step in 0..STEPS {
                let seed = (me as u64) << 20 | step;
                let mut flat = pattern(seed, 1 + (seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 47) as usize);
                let thing = Thing::make(&pool, step, &mut flat);
                // A thread that has ended already drops it.
                let _ = others[(me + step as usize) % THREADS].send((thing, flat));
                for (thing, flat) in inbox.try_iter().take(2) {
                    assert!(thing.shows(&flat), "thread {me}, step {step}");
                }
            }
            drop(others);
            inbox.iter().for_each(|(thing, flat)| assert!(thing.shows(&flat), "thread {me}, at the end"));
        };
        let workers: Vec<_> = receivers
            .into_iter()
            .enumerate()
            .map(|(me, inbox)| {
                let others = senders.clone();
                scope.spawn(move || work(me, inbox, others))
            })
            .collect();
        drop(senders);
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                pool.trim().unwrap();
                thread::yield_now();
            }
        });
        let ended: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
        done.store(true, Ordering::Relaxed);
        ended.into_iter().for_each(|worker| worker.unwrap());
    });
    assert_eq!(pool.stats().in_use, 0);
}
