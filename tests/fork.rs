//! A child of fork(2) inherits ropes, views and pools. Nothing it does changes a byte of the parent's, nor the other way
//! round; what needs the pool is an error there, and dropping is harmless.
#![allow(unsafe_code)] // forks
#![allow(clippy::unwrap_used)] // a test fails by panicking

#[allow(dead_code)] // some of it is for other tests
mod support;

#[path = "support/seccomp.rs"]
mod seccomp;

use std::io::{ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes};
use nix::libc;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};
use ropewalk::{Pool, PoolOptions, Room, Rope, RopeCodec, View};
use support::{in_child, pair, pattern, received};

const MIB: usize = 1 << 20;

/// Runs `body` in a child; fails if it panics, hangs or is killed. Runs no destructors of the test harness there.
fn in_fork(body: impl FnOnce()) {
    // SAFETY: the child calls nothing but `body`, an alarm and `_exit`; the allocator of this platform survives fork.
    match unsafe { fork() }.unwrap() {
        ForkResult::Parent { child } => assert_eq!(waitpid(child, None), Ok(WaitStatus::Exited(child, 0))),
        ForkResult::Child => {
            // SAFETY: sets a timer.
            unsafe { libc::alarm(20) };
            let done = catch_unwind(AssertUnwindSafe(body));
            // SAFETY: ends the child at once.
            unsafe { libc::_exit(i32::from(done.is_err())) }
        }
    }
}

/// A short slice of a view is a copy, elsewhere.
#[test]
fn a_child_slices_a_view() {
    let pool = Pool::new().unwrap();
    let mut rope = Rope::in_pool(&pool);
    rope.extend_from_slice(&pattern(7, 5000));
    let view = rope.finalize().unwrap();
    in_fork(|| assert_eq!((view.slice(..2500).len(), view.clone().slice(10..10).len()), (2500, 0)));
    assert!(*view == pattern(7, 5000));
}

/// Everything that a process can have of a pool.
struct Held {
    pool: Pool,
    growing: Rope,
    segments: Rope,
    borrowed: View,
    mapped: View,
    moved: View,
    sealed: Bytes,
    room: Room,
    small: Rope,
}

/// Two ropes that grow in turns by so many bytes.
fn scattered(pool: &Pool, payload: &[u8], piece: usize) -> Rope {
    let (mut rope, mut others) = (Rope::in_pool(pool), Vec::new());
    for chunk in payload.chunks(piece) {
        rope.append(received(pool, chunk));
        others.push(received(pool, &[0; 100_000]));
    }
    rope
}

fn held(options: PoolOptions) -> Held {
    let pool = options.create().unwrap();
    let payload = pattern(7, MIB);
    let mut growing = received(&pool, &payload);
    growing.reserve(100_000).unwrap();
    let segments: Rope = received(&pool, &payload).into_iter().collect();
    let borrowed = received(&pool, &payload).finalize().unwrap();
    let mapped = scattered(&pool, &payload, 64 << 10).finalize().unwrap();
    let moved = scattered(&pool, &payload, 512 << 10).finalize().unwrap();
    let sealed = Bytes::from(received(&pool, &payload).finalize().unwrap()).slice(MIB / 2..);
    let room = pool.try_room(MIB).unwrap();
    let small = Rope::from("on the heap");
    Held { pool, growing, segments, borrowed, mapped, moved, sealed, room, small }
}

impl Held {
    fn assert_intact(&self) {
        let payload = pattern(7, MIB);
        assert!(self.growing == payload && self.segments == payload);
        assert!(*self.borrowed == payload && *self.mapped == payload && *self.moved == payload);
        assert!(self.sealed == payload[MIB / 2..] && self.small == b"on the heap"[..]);
        // Recycled pages are not those that are held.
        drop(received(&self.pool, &[0xee; 2 * MIB]));
        assert!(self.growing == payload && *self.moved == payload && *self.borrowed == payload);
    }
}

fn kinds() -> [PoolOptions; 4] {
    let options = || Pool::options().capacity(64 << 20);
    [
        options(),
        options().retain(0),
        options().zero_on_release(true),
        options().decay(Duration::ZERO).background(true),
    ]
}

#[test]
fn what_a_child_drops_stays_with_the_parent() {
    for options in kinds() {
        let held = held(options);
        let drops: [fn(Held); 9] = [
            |held| drop(held.growing),
            |held| drop(held.segments),
            |held| drop(held.borrowed),
            |held| drop(held.mapped),
            |held| drop(held.moved),
            |held| drop(held.sealed),
            |held| drop(held.room),
            |held| drop(held.pool),
            |held| drop(held),
        ];
        let mut held = Some(held);
        for drop_some in drops {
            // The child drops its copy of everything; the parent's stays in the option.
            in_fork(|| drop_some(held.take().unwrap()));
            held.as_ref().unwrap().assert_intact();
        }
        let stats = held.as_ref().unwrap().pool.stats();
        assert!(stats.in_use > 0 && stats.fallbacks == 0);
        drop(held);
    }
}

#[test]
fn what_needs_the_pool_is_an_error_in_a_child() {
    let mut held = held(Pool::options().capacity(64 << 20).decay(Duration::ZERO));
    in_fork(|| {
        let pool = &held.pool;
        let unsupported = |error: std::io::Error| {
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
            assert!(error.to_string().contains("fork()"), "{error}");
        };
        unsupported(pool.trim().unwrap_err());
        unsupported(pool.decay().unwrap_err());
        unsupported(pool.try_room(1).unwrap_err());
        assert_eq!((pool.decay_timeout(), pool.stats().capacity), (None, 0));
        let mut fresh = Rope::in_pool(pool);
        unsupported(fresh.reserve(1).unwrap_err());
        unsupported(fresh.write_all(b"bytes").unwrap_err());
        let (mut peer, socket) = UnixStream::pair().unwrap();
        peer.write_all(&pattern(1, 100_000)).unwrap();
        unsupported(fresh.readv_from(&socket).unwrap_err());
        unsupported(held.growing.readv_from(&socket).unwrap_err());
        for more in [1, MIB] {
            unsupported(held.growing.reserve(more).unwrap_err());
        }
        unsupported(held.growing.write_all(b"bytes").unwrap_err());
        unsupported(
            Rope::in_room(pool.try_room(0).unwrap_or_else(|_| return_room(&mut held.room)))
                .reserve(1)
                .unwrap_err(),
        );
        // Nothing was taken out of the socket.
        let mut heap = Rope::new();
        while heap.len() < 100_000 {
            heap.readv_from(&socket).unwrap();
        }
        assert!(heap == pattern(1, 100_000));
        // What cannot report an error uses the heap.
        let mut copied = Rope::in_pool(pool);
        copied.extend_from_slice(b"on the heap");
        copied.put_u8(b'!');
        assert_eq!(copied.copy_to_bytes(12), "on the heap!");
        held.growing.extend_from_slice(b"beyond");
        held.growing.put_slice(b"and more");
        // A pool that the child makes is its own.
        let own = Pool::new().unwrap();
        assert!(received(&own, &pattern(3, MIB)) == pattern(3, MIB));
        assert!(own.trim().unwrap() > 0);
        unsupported(held.pool.trim().unwrap_err());
    });
    held.assert_intact();
}

fn return_room(room: &mut Room) -> Room {
    let empty = Pool::new().unwrap().try_room(0).unwrap();
    std::mem::replace(room, empty)
}

#[test]
fn finalizing_what_was_inherited_is_an_error() {
    let held = held(Pool::options().capacity(64 << 20));
    let mut apart = received(&held.pool, &pattern(7, MIB));
    drop(apart.split_off(1000));
    apart.append(held.segments.slice(5000..MIB));
    in_fork(|| {
        let error = apart.finalize().unwrap_err();
        assert_eq!(std::io::Error::from(error).kind(), ErrorKind::Unsupported);
    });
    held.assert_intact();
}

#[test]
#[cfg_attr(ropewalk_portable, ignore = "a child has a copy")]
fn bytes_of_a_pool_are_not_mapped_in_a_child() {
    let held = held(Pool::options().capacity(64 << 20));
    let views: [&[u8]; 4] = [&held.borrowed, &held.mapped, &held.moved, &held.sealed];
    for bytes in views {
        // SAFETY: the child reads one byte.
        match unsafe { fork() }.unwrap() {
            ForkResult::Parent { child } => {
                let status = waitpid(child, None).unwrap();
                assert!(matches!(status, WaitStatus::Signaled(_, Signal::SIGSEGV, _)), "{status:?}");
            }
            ForkResult::Child => {
                std::hint::black_box(bytes[MIB / 4]);
                // SAFETY: ends the child at once.
                unsafe { libc::_exit(0) }
            }
        }
    }
    held.assert_intact();
}

#[test]
fn what_the_parent_does_meanwhile_does_not_reach_the_child() {
    let mut held = held(Pool::options().capacity(64 << 20));
    let (mut to_child, mut at_child) = UnixStream::pair().unwrap();
    // SAFETY: the child waits, drops and exits.
    match unsafe { fork() }.unwrap() {
        ForkResult::Parent { child } => {
            held.growing.clear();
            drop(std::mem::take(&mut held.borrowed));
            held.pool.trim().unwrap();
            drop(received(&held.pool, &[0xee; 4 * MIB]));
            to_child.write_all(b"!").unwrap();
            assert_eq!(waitpid(child, None), Ok(WaitStatus::Exited(child, 0)));
        }
        ForkResult::Child => {
            std::io::Read::read_exact(&mut at_child, &mut [0]).unwrap();
            let heap = held.small == b"on the heap"[..];
            drop(held);
            // SAFETY: ends the child at once.
            unsafe { libc::_exit(i32::from(!heap)) }
        }
    }
}

/// Where a dropped view or pool was mapped, the child may have mapped something else by now.
#[test]
#[cfg_attr(ropewalk_portable, ignore = "a child has a copy")]
fn dropping_unmaps_nothing_of_the_childs() {
    let held = held(Pool::options().capacity(64 << 20));
    let (view, arena) = (held.moved.as_ptr().addr(), held.borrowed.as_ptr().addr());
    in_fork(|| {
        let mapped = [view, arena].map(|at| {
            let at = at.next_multiple_of(4096);
            let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
            // SAFETY: nothing is mapped there in the child, or this fails.
            let got = unsafe {
                libc::mmap(at as *mut libc::c_void, 4096, prot, flags | libc::MAP_FIXED_NOREPLACE, -1, 0)
            };
            assert_eq!(got.addr(), at);
            // SAFETY: mapped just now.
            unsafe { got.cast::<u8>().write(7) };
            got.cast::<u8>()
        });
        drop(held);
        // SAFETY: mapped above, by this test alone.
        assert!(mapped.iter().all(|at| unsafe { at.read() } == 7));
    });
}

/// Threads that have the pool's lock are gone in the child, and the lock stays taken: no call may wait for it.
#[test]
fn a_child_never_waits_for_a_lock() {
    let pool = Pool::options().capacity(64 << 20).retain(0).create().unwrap();
    let stop = AtomicBool::new(false);
    let rope = received(&pool, &pattern(5, MIB));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    drop(received(&pool, &[1; 300_000]));
                }
            });
        }
        for _ in 0..50 {
            in_fork(|| {
                let mut copy = rope.clone();
                assert!(copy.reserve(MIB).is_err() && pool.trim().is_err());
                let _ = pool.stats();
                drop(copy.split_off(MIB / 2));
                drop((copy, rope.slice(5..), pool.clone()));
            });
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(rope == pattern(5, MIB));
}

#[test]
fn a_daemon_that_forked_twice_gets_an_error() {
    let pool = Pool::new().unwrap();
    drop(received(&pool, &[1; 100_000]));
    in_fork(|| {
        in_fork(|| {
            assert_eq!(Rope::in_pool(&pool).reserve(1).unwrap_err().kind(), ErrorKind::Unsupported);
            let own = Pool::new().unwrap();
            drop(received(&own, &[2; 100_000]));
            in_fork(|| assert!(own.try_room(1).is_err() && pool.try_room(1).is_err()));
            assert!(own.try_room(1).is_ok());
        });
        assert!(pool.try_room(1).is_err());
    });
    assert!(pool.try_room(1).is_ok());
}

#[cfg(feature = "tokio")]
#[test]
fn receiving_from_a_reader_is_an_error_in_a_child() {
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    let pool = Pool::new().unwrap();
    for mut rope in [Rope::in_pool(&pool), received(&pool, &pattern(1, 10_000))] {
        in_fork(|| {
            let (mut reader, length) = (&b"bytes"[..], rope.len());
            for limit in [usize::MAX, length] {
                rope.set_limit(limit);
                match pin!(rope.receive_from(&mut reader)).poll(&mut Context::from_waker(Waker::noop())) {
                    Poll::Ready(Err(error)) => assert_eq!(error.kind(), ErrorKind::Unsupported),
                    other => panic!("{other:?}"),
                }
            }
            assert_eq!((reader, rope.len()), (&b"bytes"[..], length));
        });
    }
}

/// Types that hold a rope, pages or a place in the queue, each in the state in which it holds them.
fn holders(pool: &Pool) -> Vec<(&'static str, Box<dyn std::any::Any>)> {
    let payload = pattern(7, MIB);
    let rope = || received(pool, &payload);
    let mut half = rope().into_iter();
    half.next().unwrap();
    let mut cursor = rope().into_cursor();
    cursor.set_position(MIB / 2);
    let mapped = scattered(pool, &payload, 64 << 10).finalize().unwrap();
    let mut in_room = Rope::in_room(pool.try_room(MIB).unwrap());
    in_room.extend_from_slice(&payload[..5000]);
    let mut shared = rope();
    let front = shared.split_to(MIB / 2 + 5);
    let mut sent = rope();
    sent.advance(MIB / 2 + 7);
    vec![
        ("segments half taken", Box::new(half)),
        ("cursor", Box::new(cursor)),
        ("slice of a mapped view", Box::new(mapped.slice(5000..900_000))),
        ("cursor of a view", Box::new(mapped.cursor())),
        ("rope in its room", Box::new(in_room)),
        ("halves of a rope", Box::new((shared, front))),
        ("rope half sent", Box::new(sent)),
        ("clone", Box::new((rope().clone(), mapped))),
    ]
}

#[test]
fn whatever_holds_pages_is_dropped_without_harm() {
    for options in kinds() {
        let held = held(options);
        let mut all = holders(&held.pool);
        for (name, one) in &mut all {
            let before = held.pool.stats().in_use;
            in_fork(|| drop(std::mem::replace(one, Box::new(()))));
            held.assert_intact();
            assert_eq!(held.pool.stats().in_use, before, "{name}");
        }
        drop(all);
    }
}

/// A pool whose pages are no file, as where memfd_create(2) is forbidden: they are not in the child either.
#[test]
fn an_anonymous_pool_is_not_inherited() {
    in_child("an_anonymous_pool_is_not_inherited", || {
        seccomp::forbid(libc::SYS_memfd_create, None, libc::EPERM);
        let held = held(Pool::options().capacity(64 << 20));
        assert_eq!(held.pool.stats().backing, ropewalk::Backing::Anonymous);
        in_fork(|| {
            assert_eq!(Rope::in_pool(&held.pool).reserve(1).unwrap_err().kind(), ErrorKind::Unsupported);
            assert_eq!(held.pool.trim().unwrap_err().kind(), ErrorKind::Unsupported);
        });
        let mut held = Some(held);
        in_fork(|| drop(held.take()));
        held.unwrap().assert_intact();
    });
}

/// Waiters that a child inherits: there they are an error, and leave the parent's queue alone.
#[test]
fn a_waiter_is_an_error_in_a_child_and_keeps_its_place_in_the_parent() {
    use std::future::Future;
    use std::pin::Pin;
    use std::task::{Context, Poll, Waker};

    let pool = Pool::options().capacity(1 << 20).create().unwrap();
    let all = pool.try_room(1 << 20).unwrap();
    let mut waiting = pool.wait_for_room(5000);
    let mut granted = pool.wait_for_room(1 << 19);
    let mut context = Context::from_waker(Waker::noop());
    assert!(Pin::new(&mut waiting).poll(&mut context).is_pending());
    assert!(Pin::new(&mut granted).poll(&mut context).is_pending());
    in_fork(|| match Pin::new(&mut waiting).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(Err(error)) => assert_eq!(error.kind(), ErrorKind::Unsupported),
        other => panic!("{other:?}"),
    });
    let mut both = Some((waiting, granted, all));
    in_fork(|| drop(both.take()));
    let (mut waiting, mut granted, all) = both.unwrap();
    assert_eq!(pool.stats().waiting, 2);
    drop(all);
    // Granted, but not yet taken: that is dropped in the child too.
    let mut both = Some((waiting, granted));
    in_fork(|| drop(both.take()));
    (waiting, granted) = both.unwrap();
    let room = |future: &mut ropewalk::RoomFuture| match Pin::new(future)
        .poll(&mut Context::from_waker(Waker::noop()))
    {
        Poll::Ready(Ok(room)) => room,
        other => panic!("{other:?}"),
    };
    let rooms = [room(&mut waiting), room(&mut granted)];
    assert_eq!(pool.stats().reserved, 8192 + (1 << 19));
    drop(rooms);
    assert_eq!((pool.stats().reserved, pool.stats().waiting), (0, 0));
}

#[cfg(feature = "compio")]
#[test]
fn what_is_lent_is_harmless_in_a_child() {
    use compio_buf::IoBufMut;
    let pool = Pool::options().capacity(64 << 20).retain(0).create().unwrap();
    let mut rope = received(&pool, &pattern(7, MIB));
    let mut lent = rope.lend(100_000).unwrap();
    lent.extend_from_slice(&pattern(8, 1000)).unwrap();
    let mut both = Some((rope, lent));
    in_fork(|| drop(both.take()));
    in_fork(|| {
        let (mut rope, lent) = both.take().unwrap();
        rope.take_back(lent);
        assert_eq!(rope.lend(1 << 20).err().map(|error| error.kind()), Some(ErrorKind::Unsupported));
    });
    let (mut rope, lent) = both.unwrap();
    rope.take_back(lent);
    assert!(rope.split_to(MIB) == pattern(7, MIB) && rope == pattern(8, 1000));
}

/// A child that receives into ropes of its own, sends, and trims, while the parent does the same.
#[test]
fn both_go_on_and_neither_sees_the_other() {
    let held = held(Pool::options().capacity(64 << 20).decay(Duration::ZERO));
    in_fork(|| {
        let own = Pool::options().capacity(64 << 20).retain(0).create().unwrap();
        for seed in 0..3 {
            let payload = pattern(seed, MIB);
            let mut rope = received(&own, &payload);
            rope.append(received(&own, &payload));
            let (first, second) = payload.split_at(MIB / 2);
            let view = rope.finalize().unwrap();
            assert!(view[..MIB / 2] == *first && view[MIB + MIB / 2..] == *second);
            own.trim().unwrap();
            let _ = held.pool.stats();
        }
        drop(held.pool.clone());
    });
    held.assert_intact();
}

/// A file's range is not of the pool: the child reads it and sends it, and dropping it there leaves the parent's alone.
#[test]
fn a_child_has_the_files_that_were_pushed() {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&pattern(9, MIB)).unwrap();
    let payload = &pattern(9, MIB)[100..];
    let mut rope = Rope::new();
    rope.push_file(file, 100..MIB as u64).unwrap();
    let mut both = Some((rope.clone(), rope.into_cursor()));
    in_fork(|| {
        let (mut rope, mut cursor) = both.take().unwrap();
        assert!(rope == *payload);
        for by_cursor in [false, true] {
            let (peer, socket) = pair();
            let sent =
                if by_cursor { cursor.writev_to(&socket) } else { rope.clone().writev_to(&socket) }.unwrap();
            let mut got = Rope::new();
            while got.len() < sent {
                got.readv_from(&peer).unwrap();
            }
            assert!(got == payload[..sent]);
        }
        let rest = rope.split_off(5000);
        rope.append(rest);
        assert!(*rope.finalize().unwrap() == *payload);
        drop(cursor);
    });
    let (rope, cursor) = both.unwrap();
    assert!(rope == *payload && cursor.into_inner() == *payload);
}

/// What is not mapped in the child cannot be sent or stored from there: an error, and nothing is written.
#[test]
#[cfg_attr(ropewalk_portable, ignore = "a child has a copy")]
fn sending_and_storing_what_was_inherited_is_an_error() {
    let held = held(Pool::options().capacity(64 << 20));
    let directory = tempfile::tempdir().unwrap();
    in_fork(|| {
        let (_peer, socket) = UnixStream::pair().unwrap();
        let file = tempfile::tempfile().unwrap();
        let mut rope = held.segments.clone();
        for refused in [rope.writev_to(&socket), rope.writev_to(&file), rope.cursor().writev_to(&file)] {
            assert_eq!(refused.unwrap_err().raw_os_error(), Some(libc::EFAULT));
        }
        assert_eq!((rope.len(), file.metadata().unwrap().len()), (MIB, 0));
        for view in [&held.borrowed, &held.mapped, &held.moved] {
            assert!(view.persist(directory.path().join("view")).is_err());
            assert_eq!(view.read_at(&mut [0], 5000).unwrap_err().kind(), ErrorKind::Unsupported);
        }
        assert!(std::fs::read_dir(directory.path()).unwrap().next().is_none());
    });
    held.assert_intact();
}

/// The header of a frame that has half arrived is not mapped in the child: an error, and nothing is received.
#[test]
fn a_frame_that_has_half_arrived_is_an_error_in_a_child() {
    let codec = RopeCodec::new(4 * MIB);
    for len in [100, 10_000, 3 * MIB] {
        let pool = Pool::options().capacity(64 << 20).create().unwrap();
        let (mut peer, socket) = pair();
        let payload = pattern(2, len);
        peer.write_all(&(len as u32).to_be_bytes()).unwrap();
        peer.write_all(&payload[..50]).unwrap();
        let mut rope = Rope::in_pool(&pool);
        assert_eq!(rope.readv_frame(&socket, &codec).unwrap_err().kind(), ErrorKind::WouldBlock);
        peer.write_all(&payload[50..60]).unwrap();
        in_fork(|| {
            assert_eq!(rope.readv_frame(&socket, &codec).unwrap_err().kind(), ErrorKind::Unsupported);
            assert_eq!(codec.take(&mut rope).unwrap_err().kind(), ErrorKind::Unsupported);
        });
        peer.set_nonblocking(false).unwrap();
        let frame = std::thread::scope(|scope| {
            scope.spawn(|| peer.write_all(&payload[60..]).unwrap());
            socket.set_nonblocking(false).unwrap();
            rope.readv_frame(&socket, &codec).unwrap().unwrap()
        });
        assert!(frame == payload);
    }
}

/// A short last segment of the pool, of which the next tail would begin with a copy.
#[test]
fn a_child_appends_behind_a_short_segment() {
    let pool = Pool::options().capacity(64 << 20).create().unwrap();
    let whole = received(&pool, &pattern(7, 300_000));
    let [tail, last] = [(); 2].map(|()| {
        let mut rope = Rope::in_pool(&pool);
        rope.extend_from_slice(b"short");
        rope
    });
    for mut rope in [last, whole.slice(299_990..), whole.slice(..10)] {
        in_fork(|| {
            rope.extend_from_slice(b"x");
            rope.put_slice(&[1; 100_000]);
            assert!(rope.reserve(MIB).is_err());
        });
    }
    // In a rope of the heap, which has room behind it.
    in_fork(|| {
        let mut rope = Rope::new();
        rope.extend_from_slice(b"z");
        rope.append(tail);
        rope.extend_from_slice(b"x");
        assert_eq!(rope.len(), 7);
    });
    assert!(whole == pattern(7, 300_000));
}
