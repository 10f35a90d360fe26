//! Short reads, errors and lies at every point.

use nix::errno::Errno;
use proptest::prelude::*;

use super::{ERRORS, any_fd, pattern};
use crate::limits::Limits;
use crate::pool::Pool;
use crate::rope::Rope;
use crate::sys::mock::{self, Step};

fn ropes() -> Vec<Rope> {
    let pool = Pool::options().small_limits().capacity(1 << 20).create().unwrap();
    vec![Rope::in_pool(&pool), Rope::with_small_limits()]
}

/// The ways to receive, each of which has the whole stream to take.
const WAYS: [fn(&mut Rope) -> std::io::Result<usize>; 3] = [
    |rope| rope.readv_from(any_fd()),
    |rope| rope.readv_up_to(any_fd(), 1000),
    |rope| rope.recvmsg_from(any_fd(), 0).map(|received| received.bytes),
];

/// What a rope may hold when it receives: nothing, a segment that is copied or one that is not, a tail.
fn holding(before: &[u8], mut rope: Rope, kind: usize) -> Rope {
    match kind {
        0 => rope.extend_from_slice(before),
        1 => rope.push(before.to_vec()),
        _ => {
            rope.extend_from_slice(&before[..1]);
            rope.push(before[1..].to_vec());
        }
    }
    rope
}

#[test]
fn every_split_and_error() {
    let bytes = pattern(9);
    for &error in ERRORS {
        for first in (1..9).step_by(if cfg!(miri) { 4 } else { 1 }) {
            for receive in WAYS {
                for rope in ropes() {
                    one_split_and_error(rope, &bytes, 0, first, error, receive);
                }
            }
        }
    }
}

#[test]
fn every_split_and_error_behind_something() {
    let bytes = pattern(40);
    for before in [2, 16, 20] {
        for kind in 0..3 {
            for (at, receive) in WAYS.into_iter().enumerate() {
                for first in (1..bytes.len() - before).step_by(if cfg!(miri) { 19 } else { 1 }) {
                    let error = ERRORS[(first + at) % ERRORS.len()];
                    for rope in ropes() {
                        let rope = holding(&bytes[..before], rope, kind);
                        one_split_and_error(rope, &bytes, before, first, error, receive);
                    }
                }
            }
        }
    }
}

/// A signal, a short read of `first` bytes, an `error`, a lie, then the rest and the end of the stream.
fn one_split_and_error(
    mut rope: Rope,
    bytes: &[u8],
    before: usize,
    first: usize,
    error: Errno,
    receive: impl Fn(&mut Rope) -> std::io::Result<usize>,
) {
    let steps = [Step::Fail(Errno::EINTR), Step::Move(first), Step::Fail(error), Step::Lie(1)];
    let (_, _) = mock::run(steps, &bytes[before..], || {
        // Where little is expected, little is offered.
        let got = receive(&mut rope).unwrap();
        assert!(got >= first.min(16) && got <= first, "{got} of {first}");
        let so_far = &bytes[..before + got];
        assert_eq!(rope, *so_far);
        assert_eq!(receive(&mut rope).unwrap_err().raw_os_error(), Some(error as i32));
        rope.assert_invariants();
        assert_eq!(rope, *so_far);
        let lie = receive(&mut rope).unwrap_err().to_string();
        assert!(lie.contains("offered"), "{lie}");
        rope.assert_invariants();
        assert_eq!(rope, *so_far);
        while receive(&mut rope).unwrap() > 0 {}
    });
    rope.assert_invariants();
    assert_eq!(rope, *bytes);
    assert!(before > 0 || rope.num_segments() == 1);
}

#[test]
fn never_more_than_asked_for() {
    let bytes = pattern(80);
    for mut rope in ropes() {
        mock::run([], &bytes, || {
            for max in 0..12 {
                assert_eq!(rope.readv_up_to(any_fd(), max).unwrap(), max);
            }
            assert_eq!(rope.recvmsg_from(any_fd(), 0).unwrap().bytes, 80 - 66);
        });
        assert_eq!(rope, bytes);
    }
}

#[test]
fn a_payload_over_many_pieces_is_cut_at_pages() {
    let bytes = pattern(if cfg!(miri) { 5_000 } else { 300_000 });
    for mut rope in ropes() {
        let steps = [1, 4095, 1, 4096, 17, 70_000, 3].map(Step::Move);
        mock::run(steps, &bytes, || while rope.readv_from(any_fd()).unwrap() > 0 {});
        rope.assert_invariants();
        assert_eq!(rope, bytes);
        assert!(rope.chunks().all(|chunk| chunk.len() <= Limits::SMALL.max_segment));
        let view = rope.finalize().unwrap();
        assert_eq!(*view, bytes);
    }
}

#[test]
fn the_flags_that_would_tell_lies_are_refused() {
    for flags in [nix::libc::MSG_PEEK, nix::libc::MSG_TRUNC, nix::libc::MSG_ERRQUEUE] {
        let error = Rope::with_small_limits().recvmsg_from(any_fd(), flags).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
    }
}

#[test]
#[cfg_attr(miri, ignore = "needs memory maps")]
fn what_came_before_a_payload_lies_before_it() {
    let bytes = pattern(100_000);
    for (before, reserved) in [(5, false), (5, true), (16, false), (16, true)] {
        let pool = Pool::options().small_limits().create().unwrap();
        let mut rope = Rope::in_pool(&pool);
        rope.push(bytes[..before].to_vec());
        if reserved {
            rope.reserve(bytes.len() - before).unwrap();
        }
        let other = mock::run([Step::Fail(Errno::EAGAIN), Step::Move(7000)], &bytes[before..], || {
            rope.readv_from(any_fd()).unwrap_err();
            assert_eq!(rope, bytes[..before], "an error changes nothing");
            rope.readv_from(any_fd()).unwrap();
            // Takes the pages behind, unless they are reserved.
            let mut other = Rope::in_pool(&pool);
            if reserved {
                other.extend_from_slice(b"somebody else's");
            }
            while rope.readv_from(any_fd()).unwrap() > 0 {}
            other
        });
        rope.assert_invariants();
        let view = rope.finalize().unwrap();
        assert!(*view == bytes);
        assert_eq!((view.copied_bytes(), view.num_maps()), (0, 0), "{before} bytes before, {reserved}");
        drop(other);
    }
}

#[test]
fn room_that_was_reserved_is_asked_for_at_once() {
    let bytes = pattern(if cfg!(miri) { 10_000 } else { 100_000 });
    let read = |rope: &mut Rope| mock::run([], &bytes, || rope.readv_from(any_fd()).unwrap()).0;
    let mut rope = Rope::new();
    assert!(read(&mut rope) < bytes.len(), "a first read is careful");
    let pool = Pool::new().unwrap();
    for mut rope in [Rope::new(), Rope::in_pool(&pool), Rope::in_pool(&pool)] {
        let pages_were_used = pool.stats().warm > 0;
        rope.reserve(bytes.len()).unwrap();
        let count = read(&mut rope);
        // Pages are given memory as bytes arrive.
        assert!(count == bytes.len() || rope.pool().is_some() && !pages_were_used, "{count} bytes");
        rope.assert_invariants();
        rope.set_limit(bytes.len());
        while rope.len() < bytes.len() {
            mock::run([], &bytes[rope.len()..], || rope.readv_from(any_fd()).unwrap());
        }
        assert!(rope == bytes[..]);
    }
}

#[test]
fn small_messages_take_no_page_once_they_are_expected() {
    let pool = Pool::options().small_limits().capacity(1 << 20).create().unwrap();
    for round in 0..3 {
        let mut rope = Rope::in_pool(&pool);
        mock::run([], b"small", || rope.readv_from(any_fd()).unwrap());
        assert_eq!(rope, b"small");
        assert_eq!(pool.stats().in_use > 0, round == 0);
    }
    let mut rope = Rope::in_pool(&pool);
    let bytes = pattern(if cfg!(miri) { 10_000 } else { 100_000 });
    mock::run([], &bytes, || while rope.readv_from(any_fd()).unwrap() > 0 {});
    assert_eq!(rope.finalize().unwrap().copied_bytes(), 0, "a large one is contiguous all the same");
}

fn answer() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => (1..6000usize).prop_map(Step::Move),
        1 => (0..ERRORS.len()).prop_map(|at| Step::Fail(ERRORS[at])),
        1 => Just(Step::Fail(Errno::EINTR)),
        1 => Just(Step::Move(0)),
        1 => (1..9usize).prop_map(Step::Lie),
    ]
}

/// Longest stream.
const MOST: usize = if cfg!(miri) { 100 } else { 40_000 };

/// Most calls.
const CALLS: usize = if cfg!(miri) { 15 } else { 60 };

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: if cfg!(miri) { 2 } else { 256 }, ..Default::default() })]

    /// What an end of the stream in the middle means is for the caller to say: the next call goes on.
    #[test]
    fn any_answers_in_any_order(
        len in 0..MOST,
        limit in 0..MOST + MOST / 4,
        steps in proptest::collection::vec((answer(), 0..WAYS.len()), 0..CALLS),
    ) {
        let bytes = pattern(len);
        for mut rope in ropes() {
            rope.set_limit(limit);
            let (answers, ways): (Vec<_>, Vec<_>) = steps.iter().copied().unzip();
            let mut got = 0;
            mock::run(answers, &bytes, || {
                for way in ways {
                    // At the limit the real descriptor would be asked whether the stream has ended.
                    if rope.len() < limit {
                        got += WAYS[way](&mut rope).unwrap_or(0);
                        rope.assert_invariants();
                        assert!(got <= limit && rope == bytes[..got]);
                    }
                }
            });
            assert!(*rope.finalize().unwrap() == bytes[..got]);
        }
    }
}
