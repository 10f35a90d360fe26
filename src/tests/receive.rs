//! Short reads, errors and lies at every point.

use nix::errno::Errno;

use super::{ERRORS, any_fd, pattern};
use crate::pool::Pool;
use crate::rope::Rope;
use crate::sys::script::{self, Step};

fn ropes() -> Vec<Rope> {
    let pool = (!cfg!(miri)).then(|| Rope::in_pool(&Pool::options().capacity(1 << 20).create().unwrap()));
    pool.into_iter().chain([Rope::new()]).collect()
}

#[test]
fn every_split_and_error() {
    let bytes = pattern(9);
    for error in ERRORS {
        for first in 1..9 {
            for mut rope in ropes() {
                let steps = [Step::Fail(Errno::EINTR), Step::Move(first), Step::Fail(error), Step::Lie(1)];
                let (_, _) = script::run(steps, &bytes, || {
                    assert_eq!(rope.readv_from(any_fd()).unwrap(), first);
                    assert_eq!(rope, bytes[..first]);
                    assert_eq!(rope.readv_from(any_fd()).unwrap_err().raw_os_error(), Some(error as i32));
                    assert_eq!(rope, bytes[..first]);
                    let lie = rope.readv_from(any_fd()).unwrap_err().to_string();
                    assert!(lie.contains("offered"), "{lie}");
                    assert_eq!(rope, bytes[..first]);
                    assert_eq!(rope.readv_from(any_fd()).unwrap(), bytes.len() - first);
                    assert_eq!(rope.readv_from(any_fd()).unwrap(), 0);
                });
                rope.assert_invariants();
                assert_eq!(rope, bytes);
                assert_eq!(rope.num_segments(), 1);
            }
        }
    }
}

#[test]
fn never_more_than_asked_for() {
    let bytes = pattern(80);
    for mut rope in ropes() {
        script::run([], &bytes, || {
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
    let bytes = pattern(if cfg!(miri) { 20_000 } else { 300_000 });
    for mut rope in ropes() {
        let steps = [1, 4095, 1, 4096, 17, 70_000, 3].map(Step::Move);
        script::run(steps, &bytes, || while rope.readv_from(any_fd()).unwrap() > 0 {});
        rope.assert_invariants();
        assert_eq!(rope, bytes);
        assert!(rope.chunks().all(|chunk| chunk.len() <= crate::pool::PIECE));
        let view = rope.finalize().unwrap();
        assert_eq!(*view, bytes);
    }
}

#[test]
fn the_flags_that_would_tell_lies_are_refused() {
    for flags in [nix::libc::MSG_PEEK, nix::libc::MSG_TRUNC, nix::libc::MSG_ERRQUEUE] {
        let error = Rope::new().recvmsg_from(any_fd(), flags).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
    }
}

#[test]
#[cfg_attr(miri, ignore = "needs memory maps")]
fn what_cold_pages_do_not_take_is_kept_on_the_heap() {
    let bytes = pattern(300_000);
    for written in [0, 1, 4095, 4096, 5000] {
        for before in [0, 100, 70_000] {
            let pool = Pool::new().unwrap();
            let mut rope = Rope::in_pool(&pool);
            let answers = [Ok(written), Err(Errno::ENOMEM)];
            script::cold_writes([], &bytes[..before], || rope.readv_from(any_fd()).unwrap());
            let from = rope.len();
            script::cold_writes(answers, &bytes[from..], || while rope.readv_from(any_fd()).unwrap() > 0 {});
            rope.assert_invariants();
            assert!(rope == bytes, "{written} written after {before}");
            assert_eq!(pool.stats().fallbacks, 1);
            assert!(*rope.finalize().unwrap() == bytes);
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "needs memory maps")]
fn what_came_before_a_payload_lies_before_it() {
    let bytes = pattern(100_000);
    for (before, reserved) in [(5, false), (5, true), (16, false), (16, true)] {
        let pool = Pool::new().unwrap();
        let mut rope = Rope::in_pool(&pool);
        rope.push(bytes[..before].to_vec());
        if reserved {
            rope.reserve(bytes.len() - before).unwrap();
        }
        let other = script::run([Step::Fail(Errno::EAGAIN), Step::Move(7000)], &bytes[before..], || {
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
#[cfg_attr(miri, ignore = "needs memory maps")]
fn small_messages_take_no_page_once_they_are_expected() {
    let pool = Pool::new().unwrap();
    for round in 0..3 {
        let mut rope = Rope::in_pool(&pool);
        script::run([], b"small", || rope.readv_from(any_fd()).unwrap());
        assert_eq!(rope, b"small");
        assert_eq!(pool.stats().in_use > 0, round == 0);
    }
    let mut rope = Rope::in_pool(&pool);
    let bytes = pattern(100_000);
    script::run([], &bytes, || while rope.readv_from(any_fd()).unwrap() > 0 {});
    assert_eq!(rope.finalize().unwrap().copied_bytes(), 0, "a large one is side by side all the same");
}
