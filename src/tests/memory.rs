//! What the kernel may answer to the calls behind the arena.

use std::io;

use nix::errno::Errno;

use super::{ERRORS, pattern};
use crate::pool::{Backing, Pool};
use crate::rope::Rope;
use crate::sys::memory;
use crate::sys::script::{self, Call};

fn pool() -> io::Result<Pool> {
    Pool::options().capacity(1 << 20).create()
}

#[test]
#[cfg_attr(miri, ignore = "needs memory maps")]
fn without_a_memfd_the_arena_is_anonymous() {
    let bytes = pattern(100_000);
    for call in [Call::Memfd, Call::Resize, Call::Seal] {
        for &error in ERRORS {
            let pool = script::refusing(call, [Some(error)], pool).unwrap();
            let stats = pool.stats();
            assert_eq!((stats.backing, stats.reduced), (Backing::Anonymous, true), "{call:?}: {error}");
            let mut rope = Rope::in_pool(&pool);
            rope.extend_from_slice(&bytes);
            assert!(*rope.finalize().unwrap() == bytes);
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "needs memory maps")]
fn pages_that_are_not_taken_back_stay_warm() {
    let pool = pool().unwrap();
    let used = |pool: &Pool| Rope::in_pool(pool).extend_from_slice(&pattern(100_000));
    for &error in ERRORS {
        used(&pool);
        let warm = pool.stats().warm;
        assert!(warm >= 100_000);
        let refused = script::refusing(Call::Punch, [Some(error)], || pool.trim()).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(error as i32));
        assert_eq!((pool.stats().warm, pool.stats().in_use), (warm, 0));
        pool.assert_invariants();
        used(&pool);
    }
    let interrupted = [Some(Errno::EINTR), Some(Errno::EINTR)];
    assert!(script::refusing(Call::Punch, interrupted, || pool.trim()).unwrap() >= 100_000);
    assert_eq!(pool.stats().warm, 0);
}

#[test]
#[cfg_attr(miri, ignore = "needs memory maps")]
fn a_signal_does_not_stop_an_allocation() {
    let (file, len) = memory::memfd(1 << 16).unwrap();
    let allocate = || memory::allocate(&file, 0, len);
    script::refusing(Call::Allocate, [Some(Errno::EINTR), Some(Errno::EINTR)], allocate).unwrap();
    for &error in ERRORS {
        let refused = script::refusing(Call::Allocate, [Some(error)], allocate).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(error as i32));
    }
}
