//! Every size that comes from a caller or a peer, at the boundaries: it is served, or an error, or the documented panic
//! with both numbers; and whatever refuses it leaves the rope and the pool as they were.
#![allow(clippy::unwrap_used)] // a test fails by panicking
#![allow(unsafe_code)] // `advance_mut` is unsafe to call

#[allow(dead_code)] // some of it is for other tests
mod support;

use std::future::Future;
use std::io::{ErrorKind, Seek, SeekFrom, Write};
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes};
use nix::libc;
use ropewalk::{Cursor, Pool, PoolStats, Rope, Sealed};
use support::{pattern, received};

const PAGE: usize = 4096;

/// Bytes in the rope: three segments, the last of which is a tail.
const LEN: usize = 3 * PAGE + 10;

/// Bytes of the pool's capacity.
const CAPACITY: usize = 64 * PAGE;

/// 0, 1, and each boundary with its neighbours; those that this machine has.
fn numbers(boundaries: &[usize]) -> impl Iterator<Item = usize> {
    let fixed = [1, PAGE as u64, 1 << 31, 1 << 32, 1 << 63].into_iter();
    let all = fixed
        .chain(boundaries.iter().map(|&at| at as u64))
        .flat_map(|at| [at.saturating_sub(1), at, at.saturating_add(1)]);
    let mut all: Vec<_> =
        all.chain([u64::MAX - 1, u64::MAX]).filter_map(|n| usize::try_from(n).ok()).collect();
    all.extend([usize::MAX - 1, usize::MAX]);
    all.sort_unstable();
    all.dedup();
    all.into_iter()
}

/// One rope in a pool, and one on the heap.
fn ropes() -> [(Pool, Rope); 2] {
    let fill = |mut rope: Rope, pool| {
        rope.push(pattern(1, LEN)[..PAGE].to_vec());
        rope.extend_from_slice(&pattern(1, LEN)[PAGE..2 * PAGE]);
        rope.push(pattern(1, LEN)[2 * PAGE..3 * PAGE].to_vec());
        rope.extend_from_slice(&pattern(1, LEN)[3 * PAGE..]);
        (pool, rope)
    };
    let pool = || Pool::options().capacity(CAPACITY as u64).create().unwrap();
    let first = pool();
    [fill(Rope::in_pool(&first), first), fill(Rope::new(), pool())]
}

/// What must not change: of what is only counted up, nothing is looked at.
fn state(pool: &Pool, rope: &Rope) -> (PoolStats, Vec<u8>, usize) {
    let mut stats = pool.stats();
    (stats.extents, stats.peak, stats.peak_resident, stats.bytes_copied) = (0, 0, 0, 0);
    (stats.warm, stats.resident) = (0, 0); // a refusal may empty a page cache
    stats.low = 0; // time passes
    (stats, rope.to_vec(), rope.limit())
}

/// The message of a panic, if `call` panics.
fn panics<T>(call: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(call)).map_err(|payload| match payload.downcast::<String>() {
        Ok(message) => *message,
        Err(payload) => (*payload.downcast::<&str>().unwrap()).to_owned(),
    })
}

/// Calls `call` with each number on fresh ropes. Up to `most` it returns; beyond, it panics with both numbers and changes
/// nothing.
fn up_to<T>(name: &str, most: usize, call: impl Fn(&mut Rope, usize) -> T) {
    for n in numbers(&[PAGE, 2 * PAGE, 3 * PAGE, most]) {
        for (pool, mut rope) in ropes() {
            let before = state(&pool, &rope);
            match panics(|| call(&mut rope, n)) {
                Ok(_) => assert!(n <= most, "{name}({n}) was accepted"),
                Err(message) => {
                    assert!(n > most, "{name}({n}) panicked: {message}");
                    let both = message.contains(&n.to_string()) && message.contains(&most.to_string());
                    assert!(both, "{name}({n}) says: {message}");
                    assert!(state(&pool, &rope) == before, "{name}({n}) has changed something");
                }
            }
            drop(rope);
            assert_eq!((pool.stats().in_use, pool.stats().reserved), (0, 0), "{name}({n})");
        }
    }
}

#[test]
fn positions_and_lengths_that_panic_beyond_the_rope() {
    let payload = pattern(1, LEN);
    up_to("split_to", LEN, |rope, n| {
        let front = rope.split_to(n);
        assert!(front == payload[..n] && *rope == payload[n..]);
    });
    up_to("split_off", LEN, |rope, n| {
        let back = rope.split_off(n);
        assert!(*rope == payload[..n] && back == payload[n..]);
    });
    up_to("advance", LEN, |rope, n| {
        rope.advance(n);
        assert!(*rope == payload[n..]);
    });
    up_to("slice to", LEN, |rope, n| assert!(rope.slice(..n) == payload[..n]));
    up_to("slice from", LEN, |rope, n| {
        // A start beyond the rope is after the end, which is its length.
        assert!(rope.slice(n..) == payload[n..]);
    });
    up_to("copy_to_bytes", LEN, |rope, n| assert!(rope.copy_to_bytes(n) == payload[..n]));
    up_to("find_from", LEN, |rope, n| assert_eq!(rope.find_from(n, b""), Some(n)));
    up_to("set_position", LEN, |rope, n| {
        let mut cursor = rope.cursor();
        cursor.set_position(n);
        assert_eq!((cursor.position(), cursor.remaining()), (n, LEN - n));
    });
    up_to("Cursor::advance", LEN - 5, |rope, n| {
        let mut cursor = rope.cursor();
        cursor.advance(5);
        cursor.advance(n);
        assert!(cursor.chunks().eq(rope.slice(5 + n..).chunks()));
    });
    up_to("Cursor::copy_to_bytes", LEN, |rope, n| {
        assert!(Buf::copy_to_bytes(&mut rope.cursor(), n) == payload[..n]);
    });
    up_to("View::slice to", LEN, |rope, n| {
        assert!(rope.clone().finalize().unwrap().slice(..n) == payload[..n]);
    });
    up_to("View::slice from", LEN, |rope, n| {
        assert!(rope.clone().finalize().unwrap().slice(n..) == payload[n..]);
    });
}

#[test]
fn inclusive_ranges_do_not_wrap() {
    up_to("slice to and with", LEN, |rope, n| match n.checked_sub(1) {
        Some(last) => drop(rope.slice(..=last)),
        None => drop(rope.slice(0..0)),
    });
    for (_pool, rope) in ropes() {
        assert!(panics(|| rope.slice(..=usize::MAX)).is_err());
        assert!(
            panics(|| rope.slice((std::ops::Bound::Excluded(usize::MAX), std::ops::Bound::Unbounded)))
                .is_err()
        );
    }
}

#[test]
fn truncate_takes_any_length() {
    for n in numbers(&[LEN]) {
        for (pool, mut rope) in ropes() {
            rope.truncate(n);
            assert!(rope == pattern(1, LEN)[..n.min(LEN)]);
            drop(rope);
            assert_eq!(pool.stats().in_use, 0);
        }
    }
}

#[test]
fn seeking_is_an_error_beyond_the_rope() {
    for n in numbers(&[LEN]) {
        for (_pool, rope) in ropes() {
            let mut cursor = rope.cursor();
            cursor.set_position(5);
            let backwards = i64::try_from(n).unwrap_or(i64::MAX);
            for (to, target) in [
                (SeekFrom::Start(n as u64), n as i128),
                (SeekFrom::Current(backwards), 5 + i128::from(backwards)),
                (SeekFrom::Current(-backwards), 5 - i128::from(backwards)),
                (SeekFrom::End(-backwards), LEN as i128 - i128::from(backwards)),
                (SeekFrom::End(i64::MIN), -1),
            ] {
                cursor.set_position(5);
                match cursor.seek(to) {
                    Ok(position) => {
                        assert_eq!((i128::from(position), cursor.position() as i128), (target, target))
                    }
                    Err(error) => {
                        assert_eq!((error.kind(), cursor.position()), (ErrorKind::InvalidInput, 5));
                        assert!(target < 0 || target > LEN as i128, "{to:?}: {error}");
                        assert!(error.to_string().contains(&LEN.to_string()), "{error}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_reservation_is_made_or_an_error() {
    for limit in numbers(&[LEN, LEN + PAGE, LEN + CAPACITY]) {
        for n in numbers(&[10, PAGE, CAPACITY - LEN, CAPACITY, limit.saturating_sub(LEN)]) {
            for (index, (pool, mut rope)) in ropes().into_iter().enumerate() {
                rope.set_limit(limit);
                let before = state(&pool, &rope);
                match rope.reserve(n) {
                    Ok(()) => {
                        assert!(n <= limit.saturating_sub(LEN));
                        assert!(index == 1 || n <= CAPACITY, "{n} of {CAPACITY}");
                    }
                    Err(error) => {
                        // Without a limit memory is what is missing.
                        let beyond = limit < usize::MAX && n > limit.saturating_sub(LEN);
                        let kind = if beyond { ErrorKind::QuotaExceeded } else { ErrorKind::OutOfMemory };
                        assert_eq!(error.kind(), kind, "reserve({n}) of {limit}: {error}");
                        let free = CAPACITY - before.0.in_use as usize;
                        // A reservation goes on where in a page the rope ends.
                        let large = if index == 0 { n > free - PAGE } else { n > 1 << 30 };
                        assert!(beyond || large, "reserve({n}) of {limit}: {error}");
                        assert!(state(&pool, &rope) == before);
                    }
                }
                assert!(rope == pattern(1, LEN));
                drop(rope);
                assert_eq!((pool.stats().in_use, pool.stats().reserved), (0, 0));
            }
        }
    }
}

#[test]
fn limits_hold_and_reads_take_no_more_than_they_may() {
    const SENT: usize = 20_000;
    for n in numbers(&[SENT, LEN, LEN + SENT]) {
        let (mut peer, socket) = UnixStream::pair().unwrap();
        socket.set_nonblocking(true).unwrap();
        peer.write_all(&pattern(2, SENT)).unwrap();
        for (pool, mut rope) in ropes() {
            assert_eq!(rope.readv_up_to(&socket, 0).unwrap(), 0);
            rope.set_limit(n);
            let allowed = n.saturating_sub(LEN);
            match rope.readv_up_to(&socket, 1) {
                Ok(count) => assert!(count == 1 && allowed > 0),
                Err(error) => {
                    assert!(error.kind() == ErrorKind::QuotaExceeded && allowed == 0, "{n}: {error}")
                }
            }
            rope.truncate(LEN);
            assert!(rope == pattern(1, LEN));
            drop(rope);
            assert_eq!(pool.stats().in_use, 0);
        }
        for (pool, mut rope) in ropes() {
            let (mut peer, socket) = UnixStream::pair().unwrap();
            peer.write_all(&pattern(2, SENT)).unwrap();
            let mut missing = n.min(SENT);
            while missing > 0 {
                let count = rope.readv_up_to(&socket, n - (n.min(SENT) - missing)).unwrap();
                assert!(count > 0 && count <= missing);
                missing -= count;
            }
            assert!(rope.slice(LEN..) == pattern(2, SENT)[..n.min(SENT)]);
            drop(rope);
            assert_eq!(pool.stats().in_use, 0);
        }
    }
}

#[test]
fn room_is_reserved_or_an_error() {
    for n in numbers(&[CAPACITY]) {
        let (pool, rope) = ropes().into_iter().next_back().unwrap();
        let before = state(&pool, &rope);
        let check = |room: std::io::Result<ropewalk::Room>| match room {
            Ok(room) => {
                assert!(n <= CAPACITY && room.len() == n.next_multiple_of(PAGE) as u64);
                drop(Rope::in_room(room));
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::OutOfMemory);
                assert!(n > CAPACITY && error.to_string().contains("256.0 KiB"), "{error}");
            }
        };
        check(pool.try_room(n));
        match pin!(pool.wait_for_room(n)).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(room) => check(room),
            Poll::Pending => panic!("wait_for_room({n}) waits although nothing is held"),
        }
        assert!(state(&pool, &rope) == before);
    }
}

#[test]
fn pools_of_any_capacity() {
    let page = PAGE as u64;
    let most = (u64::from(u32::MAX) / 2) * page;
    for n in numbers(&[]).map(|n| n as u64).chain([most - 1, most, most + 1, u64::MAX]) {
        match Pool::options().capacity(n).create() {
            Ok(pool) => {
                let stats = pool.stats();
                assert!(n > 0 && n <= most);
                assert!(stats.capacity == n.next_multiple_of(page) || stats.reduced && stats.capacity < n);
                drop(received(&pool, &pattern(3, PAGE)));
                assert_eq!(pool.stats().in_use, 0);
            }
            Err(error) => {
                assert!(error.kind() == ErrorKind::InvalidInput && (n == 0 || n > most), "{n}: {error}");
                let message = error.to_string();
                assert!(message.contains(&n.to_string()) && message.contains(&most.to_string()), "{message}");
            }
        }
    }
}

#[test]
#[cfg_attr(ropewalk_portable, ignore = "needs a file")]
fn pools_that_spill_as_much_as_anyone_likes() {
    const UNIT: u64 = 2 << 20;
    let directory = tempfile::tempdir().unwrap();
    let most = (u64::from(u32::MAX) / 2) * UNIT;
    let all = numbers(&[]).map(|n| n as u64).chain([UNIT, UNIT + 1, most - 1, most, most + 1]);
    for n in all {
        match Pool::options().capacity(CAPACITY as u64).spill(directory.path(), n).create() {
            Ok(pool) => {
                let stats = pool.stats();
                assert!(n > 0 && n <= most, "{n}");
                let whole = n.next_multiple_of(UNIT);
                let spill = stats.spill_capacity;
                assert!(spill == whole || stats.reduced && spill < n, "{n}: {stats:?}");
                // More than its memory holds.
                let payload = pattern(3, CAPACITY + PAGE);
                assert!(received(&pool, &payload) == payload);
                pool.trim().unwrap();
                assert_eq!((pool.stats().in_use, pool.stats().spilled), (0, 0));
            }
            Err(error) => {
                assert!(error.kind() == ErrorKind::InvalidInput && (n == 0 || n > most), "{n}: {error}");
                let message = error.to_string();
                assert!(message.contains(&n.to_string()) && message.contains(&most.to_string()), "{message}");
            }
        }
    }
}

#[test]
fn pools_that_retain_and_decay_as_anyone_likes() {
    let times = [Duration::ZERO, Duration::from_nanos(1), Duration::from_secs(1), Duration::MAX];
    for retain in numbers(&[PAGE, CAPACITY]) {
        for decay in times {
            let options = Pool::options().capacity(CAPACITY as u64).retain(retain as u64).decay(decay);
            let pool = options.create().unwrap();
            for _ in 0..3 {
                let payload = pattern(4, 10 * PAGE);
                let rope = received(&pool, &payload);
                assert!(rope == payload);
                drop(rope);
                pool.decay().unwrap();
                let timeout = pool.decay_timeout();
                assert!(timeout.is_none_or(|timeout| timeout <= decay.max(Duration::from_nanos(16))));
            }
            let stats = pool.stats();
            assert!(stats.in_use == 0 && stats.warm <= CAPACITY as u64);
            assert!(retain as u64 >= stats.warm || stats.keeps_memory, "{retain}: {stats:?}");
            pool.trim().unwrap();
            assert_eq!(pool.stats().warm, 0);
        }
    }
}

#[test]
fn a_cursor_of_an_empty_rope() {
    for n in numbers(&[]) {
        let mut cursor = Cursor::new(Rope::new());
        assert_eq!(panics(|| cursor.set_position(n)).is_ok(), n == 0);
        assert_eq!(panics(|| cursor.advance(n)).is_ok(), n == 0);
        assert_eq!((cursor.position(), cursor.remaining()), (0, 0));
    }
}

#[cfg(feature = "tokio")]
#[test]
fn frames_of_any_length() {
    use ropewalk::RopeCodec;

    for max in numbers(&[LEN, u32::MAX as usize]) {
        let codec = RopeCodec::new(max);
        let refuses = |length: usize, error: &std::io::Error, kind| {
            let said = error.to_string();
            assert_eq!((error.kind(), length > max), (kind, true), "{error}");
            assert!(said.contains(&length.to_string()) && said.contains(&max.to_string()), "{said}");
        };
        for (pool, rope) in ropes() {
            match codec.wrap(rope.clone()) {
                Ok(mut frame) => {
                    assert!(codec.take(&mut frame).unwrap().unwrap() == rope && frame.is_empty())
                }
                Err(error) => refuses(LEN, &error, ErrorKind::InvalidInput),
            }
            drop(rope);
            assert_eq!(pool.stats().in_use, 0);
        }
        // What a peer announces, without sending it.
        for length in numbers(&[LEN]).filter_map(|n| u32::try_from(n).ok()) {
            let codec = RopeCodec::new(max);
            let header = length.to_be_bytes();
            let mut rope = Rope::from(header.to_vec());
            match codec.take(&mut rope) {
                Ok(frame) => assert!(length as usize <= max && frame.is_some() == (length == 0)),
                Err(error) => refuses(length as usize, &error, ErrorKind::InvalidData),
            }
        }
    }
}

/// What a peer announces with a length of any width, and what is added to it, without sending any of it.
#[cfg(feature = "tokio")]
#[test]
fn lengths_of_any_width() {
    use ropewalk::RopeCodec;

    let pool = Pool::options().capacity(CAPACITY as u64).create().unwrap();
    let adjustments = [isize::MIN, isize::MIN + 1, -(1 << 20), -9, -1, 0, 1, isize::MAX - 1, isize::MAX];
    for (width, adjustment) in (1..=8).flat_map(|width| adjustments.map(|adjustment| (width, adjustment))) {
        for max in [0, 1, LEN, usize::MAX - 1, usize::MAX] {
            for (at, length) in numbers(&[255, 1 << 16, LEN]).enumerate() {
                let length = length as u64 & (u64::MAX >> (64 - 8 * width));
                let align = [1, PAGE, 1 << (usize::BITS - 1)][at % 3];
                let codec = RopeCodec::new(max)
                    .length_field_length(width)
                    .length_adjustment(adjustment)
                    .alignment(align);
                let header = length.to_be_bytes()[8 - width..].to_vec();
                let frame = usize::try_from(i128::from(length) + adjustment as i128);
                let frame = frame.ok().filter(|&len| len <= max);
                a_frame_that_does_not_come(&pool, &codec, &header, frame, align);
            }
        }
        // Of as many bytes as there are.
        let frame = RopeCodec::new(LEN).length_field_length(width).length_adjustment(adjustment);
        let length = LEN as i128 - adjustment as i128;
        let fits = u64::try_from(length).is_ok_and(|length| length <= u64::MAX >> (64 - 8 * width));
        match frame.wrap(Rope::from(pattern(1, LEN))) {
            Ok(mut wire) => {
                assert!(fits && frame.take(&mut wire).unwrap().unwrap() == pattern(1, LEN));
            }
            Err(error) => assert!(!fits && error.kind() == ErrorKind::InvalidInput, "{error}"),
        }
    }
}

/// A header, and then the end of the stream; `frame` is the length of the frame if it is allowed.
#[cfg(feature = "tokio")]
fn a_frame_that_does_not_come(
    pool: &Pool,
    codec: &ropewalk::RopeCodec,
    header: &[u8],
    frame: Option<usize>,
    align: usize,
) {
    let check = |result: std::io::Result<Option<Rope>>, rope: &Rope, way| match (frame, result) {
        (Some(0), Ok(Some(empty))) => assert!(empty.is_empty() && rope.is_empty()),
        (Some(1..), Ok(None)) if way == "take" => assert_eq!(*rope, *header),
        (frame, Err(error)) => {
            let allowed = match error.kind() {
                ErrorKind::InvalidData => frame.is_none(),
                ErrorKind::UnexpectedEof => frame.is_some() && way != "take",
                // More than a rope can hold, with the header.
                ErrorKind::QuotaExceeded => frame.is_some_and(|len| len > usize::MAX - header.len()),
                // What has to be aligned has to be in one run.
                ErrorKind::OutOfMemory => align > 1 && frame.is_some_and(|len| len.max(align) > CAPACITY / 2),
                _ => false,
            };
            assert!(allowed, "{way} of {frame:?} behind {header:?}: {error}");
            assert_eq!(*rope, *header);
        }
        (_, result) => panic!("{way} of {frame:?} behind {header:?}: {result:?}"),
    };
    let mut rope = Rope::from(header.to_vec());
    check(codec.take(&mut rope), &rope, "take");
    for mut rope in [Rope::in_pool(pool), Rope::new()] {
        let (mut peer, socket) = UnixStream::pair().unwrap();
        peer.write_all(header).unwrap();
        drop(peer);
        check(rope.readv_frame(&socket, codec), &rope, "readv_frame");
    }
    for mut rope in [Rope::in_pool(pool), Rope::new()] {
        let mut reader = header;
        let done = {
            let receive = pin!(rope.receive_frame_from(&mut reader, codec));
            receive.poll(&mut Context::from_waker(Waker::noop()))
        };
        let Poll::Ready(done) = done else { panic!("nothing to wait for") };
        check(done, &rope, "receive_frame_from");
    }
    assert_eq!((pool.stats().in_use, pool.stats().reserved), (0, 0));
}

#[cfg(feature = "tokio")]
#[test]
fn exactly_so_many_of_a_reader() {
    for n in numbers(&[LEN]) {
        for limit in numbers(&[LEN, 2 * LEN]) {
            for (pool, mut rope) in ropes() {
                let sent = pattern(5, LEN);
                let mut reader = &sent[..];
                rope.set_limit(limit);
                let done = {
                    let receive = pin!(rope.receive_exact_from(&mut reader, n));
                    receive.poll(&mut Context::from_waker(Waker::noop()))
                };
                let Poll::Ready(done) = done else { panic!("nothing to wait for") };
                let allowed = limit.saturating_sub(LEN);
                let kind = done.map_err(|error| error.kind());
                let expected = match n {
                    n if n <= allowed.min(LEN) => Ok(()),
                    _ if allowed < LEN => Err(ErrorKind::QuotaExceeded),
                    _ => Err(ErrorKind::UnexpectedEof),
                };
                assert_eq!(kind, expected, "{n} of {limit}");
                assert_eq!(rope.len(), LEN + n.min(allowed).min(LEN));
                drop(rope);
                assert_eq!(pool.stats().in_use, 0);
            }
        }
    }
}

#[cfg(feature = "compio")]
#[test]
fn room_that_is_lent() {
    use compio_buf::IoBufMut;
    for limit in numbers(&[LEN, LEN + 1, LEN + PAGE]) {
        for n in numbers(&[CAPACITY]) {
            for (pool, mut rope) in ropes() {
                rope.set_limit(limit);
                match rope.lend(n) {
                    Ok(mut lent) => assert!((1..=n.max(1).min(limit - LEN)).contains(&lent.buf_capacity())),
                    Err(error) => {
                        assert!(error.kind() == ErrorKind::QuotaExceeded && limit <= LEN, "{error}")
                    }
                }
                assert!(rope == pattern(1, LEN));
                drop(rope);
                assert_eq!(pool.stats().in_use, 0);
            }
        }
    }
}

/// Iterators that say that much more comes than does.
#[test]
fn hints_are_not_believed() {
    struct Lies(usize, usize);
    impl Iterator for Lies {
        type Item = Bytes;

        fn next(&mut self) -> Option<Bytes> {
            self.1 = self.1.checked_sub(1)?;
            Some(Bytes::from_static(b"seg"))
        }

        fn size_hint(&self) -> (usize, Option<usize>) {
            (self.0, None)
        }
    }
    for n in numbers(&[]) {
        for actual in [0, 1, 100] {
            let rope: Rope = Lies(n, actual).collect();
            let mut extended = rope.clone();
            extended.extend(Lies(n, actual));
            assert_eq!((rope.len(), extended.len()), (3 * actual, 6 * actual));
        }
    }
}

/// More than was offered is never counted, even where there is memory for it.
#[test]
fn bytes_beyond_the_offer_are_not_counted() {
    for limit in numbers(&[LEN, LEN + 10]) {
        for n in numbers(&[]) {
            for (_pool, mut rope) in ropes() {
                rope.set_limit(limit);
                let offered = rope.chunk_mut().len();
                assert!(offered <= limit.saturating_sub(LEN));
                if n > offered {
                    // SAFETY: it panics before it counts any.
                    assert!(panics(|| unsafe { rope.advance_mut(n) }).is_err(), "{n} of {offered}");
                }
                assert!(rope == pattern(1, LEN));
                let (more, room) = (vec![7; n.min(2 * PAGE)], limit.saturating_sub(LEN));
                assert_eq!(panics(|| rope.put_slice(&more)).is_ok(), more.len() <= room);
                assert_eq!(rope.len(), if more.len() <= room { LEN + more.len() } else { LEN });
            }
        }
    }
}

/// Address space, which is read as zeros.
#[cfg(target_pointer_width = "64")]
struct Zeros(std::ptr::NonNull<libc::c_void>);

#[cfg(target_pointer_width = "64")]
impl Zeros {
    const LEN: usize = 1 << 46;

    fn new() -> Option<Zeros> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a map of its own.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), Zeros::LEN, libc::PROT_READ, flags, -1, 0) };
        if at == libc::MAP_FAILED { None } else { std::ptr::NonNull::new(at).map(Zeros) }
    }
}

// SAFETY: nothing changes the memory.
#[cfg(target_pointer_width = "64")]
unsafe impl Send for Zeros {}

#[cfg(target_pointer_width = "64")]
impl AsRef<[u8]> for Zeros {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: mapped by `new` until it is dropped.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast(), Zeros::LEN) }
    }
}

#[cfg(target_pointer_width = "64")]
impl Drop for Zeros {
    fn drop(&mut self) {
        // SAFETY: the map is this value's.
        unsafe { libc::munmap(self.0.as_ptr(), Zeros::LEN) };
    }
}

/// Segments that share memory, as many bytes as can be counted.
#[cfg(target_pointer_width = "64")]
#[test]
fn a_rope_of_as_many_bytes_as_there_can_be() {
    use std::io::Read;

    let Some(zeros) = Zeros::new() else { return println!("skipped: no address space of 64 TiB") };
    let zeros = Bytes::from_owner(zeros);
    let pool = Pool::options().capacity(CAPACITY as u64).create().unwrap();
    for spare in [0, 1, 9] {
        let mut rope = Rope::in_pool(&pool);
        rope.extend((1..usize::MAX / Zeros::LEN + 1).map(|_| zeros.clone()));
        rope.push(zeros.slice(..Zeros::LEN - 1 - spare));
        let len = usize::MAX - spare;
        assert_eq!(rope.len(), len);
        let more = [1; 10];
        let unchanged = |rope: &Rope, what| {
            assert_eq!(rope.len(), len, "{what} has changed the length");
            assert_eq!(rope.slice(len - 1..), [0], "{what}");
        };
        type Call = (&'static str, fn(&mut Rope, &[u8]));
        let calls: [Call; 8] = [
            ("push", |rope, more| rope.push(more.to_vec())),
            ("extend_from_slice", |rope, more| rope.extend_from_slice(more)),
            ("put_slice", |rope, more| rope.put_slice(more)),
            ("put_bytes", |rope, more| rope.put_bytes(1, more.len())),
            ("append", |rope, more| rope.append(Rope::from(more.to_vec()))),
            ("append of a tail", |rope, more| {
                let mut other = Rope::new();
                other.extend_from_slice(more);
                rope.append(other);
            }),
            ("extend", |rope, more| rope.extend([Bytes::copy_from_slice(more)])),
            ("push_front", |rope, more| {
                let mut other = Rope::from(more.to_vec());
                other.append(rope.clone());
            }),
        ];
        for (what, call) in calls {
            let message = panics(|| call(&mut rope, &more)).expect_err(what);
            assert!(message.contains("10"), "{what} says {message}");
            unchanged(&rope, what);
        }
        assert_eq!(rope.write(&more).map_err(|error| error.kind()).unwrap_or(0), spare.min(10));
        rope.truncate(len);
        assert!(rope.reserve(usize::MAX).is_err());
        unchanged(&rope, "reserve");
        let (mut peer, socket) = UnixStream::pair().unwrap();
        peer.write_all(&more).unwrap();
        peer.set_nonblocking(true).unwrap();
        socket.set_nonblocking(true).unwrap();
        match rope.readv_from(&socket) {
            Ok(count) => assert_eq!((spare > 0, count), (true, spare)),
            Err(error) => assert_eq!((spare, error.kind()), (0, ErrorKind::QuotaExceeded)),
        }
        rope.truncate(len);
        let (mut cursor, mut into) = (rope.cursor(), [1; 10]);
        assert_eq!(cursor.seek(SeekFrom::End(-5)).unwrap(), len as u64 - 5);
        assert_eq!(cursor.read(&mut into).unwrap(), 5);
        assert_eq!(cursor.seek(SeekFrom::Start(0)).unwrap(), 0);
        assert!(cursor.read_to_end(&mut Vec::new()).is_err());
        while cursor.writev_to(&peer).is_ok() {}
        assert!(cursor.position() > 0);
        assert_eq!(cursor.sendmsg_to(&peer, 0, &[]).unwrap_err().kind(), ErrorKind::WouldBlock);
        assert_eq!(rope.clone().finalize().unwrap_err().into_rope().len(), len);
        let back = rope.split_off(len - 3);
        assert_eq!((rope.len(), back.len()), (len - 3, 3));
        rope.append(back);
        unchanged(&rope, "split_off");
        rope.advance(len - 2);
        assert_eq!(rope, [0, 0]);
    }
    assert_eq!(pool.stats().in_use, 0);
}

/// Few and many slices, empty ones among them.
#[test]
fn slices_of_any_number() {
    use std::io::{IoSlice, IoSliceMut, Read};

    for n in [0, 1, 2, 16, 1023, 1024, 1025, 100_000] {
        let bytes = pattern(6, n);
        let slices: Vec<_> =
            bytes.chunks(1).flat_map(|byte| [IoSlice::new(b""), IoSlice::new(byte)]).collect();
        for limit in [0, n / 2, n, usize::MAX] {
            let mut rope = Rope::new();
            rope.set_limit(limit);
            let written = rope.write_vectored(&slices);
            match limit.min(n) {
                0 if n > 0 => assert_eq!(written.unwrap_err().kind(), ErrorKind::QuotaExceeded),
                most => assert_eq!(written.unwrap(), most),
            }
            assert!(rope == bytes[..limit.min(n)]);
        }
        let mut rope: Rope = bytes.chunks(1).map(<[u8]>::to_vec).collect();
        for room in [0, n / 2, n, n + 1] {
            let mut into = vec![IoSlice::new(b"untouched"); room];
            let count = rope.chunks_vectored(&mut into);
            assert_eq!(count, room.min(n));
            assert!(into[..count].iter().flat_map(|slice| slice.iter()).eq(&bytes[..count]));
            let mut sent = Vec::new();
            let mut cursor = rope.cursor();
            assert!(cursor.read_vectored(&mut []).unwrap() == 0);
            cursor.read_to_end(&mut sent).unwrap();
            assert!(sent == bytes);
        }
        let mut memory = vec![0; n];
        let mut into: Vec<_> = memory.chunks_mut(1).map(IoSliceMut::new).collect();
        let mut read = 0;
        while read < n {
            read += rope.read_vectored(&mut into[read..]).unwrap();
        }
        assert_eq!(rope.read_vectored(&mut into).unwrap(), 0);
        assert!(memory == bytes && rope.is_empty());
    }
}

/// Offsets and lengths of files and views.
#[test]
#[cfg_attr(ropewalk_portable, ignore = "needs memfds and spill files")]
fn files_and_views_of_any_length_at_any_offset() {
    let directory = tempfile::tempdir().unwrap();
    let file = tempfile::tempfile().unwrap();
    let payload = pattern(7, LEN);
    std::os::unix::fs::FileExt::write_all_at(&file, &payload, 0).unwrap();
    let view = Rope::from(payload.clone()).finalize().unwrap();
    for n in numbers(&[LEN]) {
        let at = n.min(LEN);
        let mut into = vec![0; LEN + 1];
        let count = view.read_at(&mut into, n as u64).unwrap();
        assert!(into[..count] == payload[at..]);
        assert_eq!(view.read_at(&mut [], n as u64).unwrap(), 0);
        for (pool, mut rope) in ropes() {
            match rope.readv_at(&file, n as u64) {
                Ok(count) => assert!(rope.slice(LEN..) == payload[at..][..count] && (count > 0 || at == LEN)),
                // A read of more bytes than there are offsets is EOVERFLOW.
                Err(error) => assert!(
                    n as u64 > i64::MAX as u64 - (1 << 20)
                        && [libc::EINVAL, libc::EOVERFLOW].map(Some).contains(&error.raw_os_error()),
                    "{n}: {error}"
                ),
            }
            drop(rope);
            assert_eq!(pool.stats().in_use, 0);
        }
        match Sealed::copy_of_file(&file, n) {
            Ok(sealed) => assert!(*sealed == payload[..n]),
            Err(error) => assert!(n > LEN, "{n}: {error}"),
        }
        match Rope::for_file(directory.path(), n as u64) {
            Ok(mut rope) => {
                rope.extend_from_slice(&payload);
                assert!(rope == payload);
            }
            Err(error) => assert!(n == 0 || n > 1 << 30, "{n}: {error}"),
        }
        for range in [n as u64..n as u64, 0..n as u64, n as u64..LEN as u64, n as u64..u64::MAX] {
            let mut rope = Rope::from("before");
            match rope.push_file(file.try_clone().unwrap(), range.clone()) {
                Ok(()) => assert!(rope.slice(6..) == payload[range.start as usize..range.end as usize]),
                Err(error) => {
                    assert!(range.start > range.end || range.end > LEN as u64, "{range:?}: {error}");
                    assert_eq!(rope, b"before");
                }
            }
        }
    }
}
