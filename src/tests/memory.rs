//! What the kernel may answer to the calls behind the arena.

use std::io::{self, Write};

use nix::errno::Errno;

use super::{ERRORS, any_fd, kernel_is_older_than, pattern};
use crate::pool::{Backing, Commit, Pool};
use crate::rope::Rope;
use crate::sys::memory;
use crate::sys::mock::{self, Call};

fn pool() -> io::Result<Pool> {
    Pool::options().small_limits().capacity(1 << 20).create()
}

#[test]
#[cfg_attr(any(miri, ropewalk_portable), ignore = "needs memory maps")]
fn without_a_memfd_the_arena_is_anonymous() {
    let bytes = pattern(100_000);
    for call in [Call::Memfd, Call::Resize, Call::Seal] {
        for &error in ERRORS {
            let pool = mock::refusing(call, [Some(error)], pool).unwrap();
            let stats = pool.stats();
            assert_eq!((stats.backing, stats.reduced), (Backing::Anonymous, true), "{call:?}: {error}");
            let mut rope = Rope::in_pool(&pool);
            rope.extend_from_slice(&bytes);
            assert!(*rope.finalize().unwrap() == bytes);
        }
    }
}

#[test]
#[cfg_attr(any(miri, ropewalk_portable), ignore = "needs memory maps")]
fn pages_that_are_not_taken_back_stay_warm() {
    let pool = pool().unwrap();
    let used = |pool: &Pool| Rope::in_pool(pool).extend_from_slice(&pattern(100_000));
    for &error in ERRORS {
        used(&pool);
        let warm = pool.stats().warm;
        assert!(warm >= 100_000);
        let refused = mock::refusing(Call::Punch, [Some(error)], || pool.trim()).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(error as i32));
        assert_eq!((pool.stats().warm, pool.stats().in_use), (warm, 0));
        pool.assert_invariants();
        used(&pool);
    }
    let interrupted = [Some(Errno::EINTR), Some(Errno::EINTR)];
    assert!(mock::refusing(Call::Punch, interrupted, || pool.trim()).unwrap() >= 100_000);
    assert_eq!(pool.stats().warm, 0);
}

#[test]
#[cfg_attr(any(miri, ropewalk_portable), ignore = "needs memory maps")]
fn a_signal_does_not_stop_an_allocation() {
    let (file, len) = memory::memfd(1 << 16).unwrap();
    let allocate = || memory::allocate(&file, 0, len);
    mock::refusing(Call::Allocate, [Some(Errno::EINTR), Some(Errno::EINTR)], allocate).unwrap();
    for &error in ERRORS {
        let refused = mock::refusing(Call::Allocate, [Some(error)], allocate).unwrap_err();
        let lacks_memory = matches!(error, Errno::EFAULT | Errno::ENOSPC);
        assert_eq!(refused, if lacks_memory { Errno::ENOMEM } else { error });
    }
}

#[test]
#[cfg_attr(any(miri, ropewalk_portable), ignore = "needs memory maps")]
fn the_arena_begins_where_a_table_of_entries_does() {
    for capacity in [4096, 5 << 20, 256 << 20] {
        let pool = Pool::options().small_limits().capacity(capacity).create().unwrap();
        let first = pool.address_of(0);
        assert_eq!((first.addr().get() % memory::TABLE, pool.stats().capacity), (0, capacity));
    }
}

#[test]
#[cfg_attr(any(miri, ropewalk_portable), ignore = "needs memory maps")]
fn a_pool_may_have_huge_pages() {
    const HUGE: usize = 2 << 20;
    let create = || Pool::options().small_limits().capacity(100 << 20).huge_pages(true).create().unwrap();
    let pool = mock::with_huge_pages(HUGE, create);
    assert_eq!(pool.stats().page_size, HUGE as u64);
    let bytes = pattern(3 * HUGE + 123_456);
    let mut ropes = [(); 3].map(|()| Rope::in_pool(&pool));
    // Each in the way of the others.
    for piece in bytes.chunks(HUGE) {
        ropes.iter_mut().for_each(|rope| rope.extend_from_slice(piece));
    }
    assert_eq!(pool.stats().in_use, 3 * 4 * HUGE as u64);
    ropes.iter().for_each(Rope::assert_invariants);
    let [whole, mut cut, other] = ropes;
    let place = pool.offset_of(whole.chunks().next().unwrap()).unwrap();
    let view = whole.finalize().unwrap();
    assert!(*view == bytes && view.num_maps() > 1);
    // The remainder of both is 0: huge pages stay huge.
    assert_eq!((view.copied_bytes(), view.as_ptr().addr() % HUGE, place % HUGE), (0, 0, 0));
    drop(view);
    // Cut anywhere, such a rope is still made whole, by small pages and copies.
    let rest = cut.split_off(HUGE + 5000);
    cut.append(rest.slice(7..));
    let expected = [&bytes[..HUGE + 5000], &bytes[HUGE + 5007..]].concat();
    assert!(*cut.finalize().unwrap() == expected);
    drop(rest);
    pool.assert_invariants();
    assert_eq!(pool.stats().in_use, 4 * HUGE as u64);
    drop(other);
    assert_eq!(pool.stats().in_use, 0);
    assert_eq!(pool.trim().unwrap(), 3 * 4 * HUGE as u64);
}

/// Receives a payload with the first commits refused; returns how pages were committed in the end.
fn received_although(refusals: &[(Call, Errno)], anonymous: bool) -> Commit {
    let pool =
        if anonymous { mock::refusing(Call::Memfd, [Some(Errno::EPERM)], pool) } else { pool() }.unwrap();
    let bytes = pattern(300_000);
    let refusals =
        refusals.iter().map(|&(call, error)| (call, std::iter::repeat_n(Some(error), 1000).collect()));
    let mut rope = Rope::in_pool(&pool);
    mock::refusing_some(refusals.collect::<Vec<_>>(), || rope.extend_from_slice(&bytes));
    assert!(*rope.finalize().unwrap() == bytes);
    assert_eq!(pool.stats().fallbacks, 0);
    pool.stats().commit
}

#[test]
#[cfg_attr(any(miri, ropewalk_portable), ignore = "needs memory maps")]
fn what_the_kernel_does_not_support_is_done_in_another_way() {
    if kernel_is_older_than(5, 14, "MADV_POPULATE_WRITE") {
        return;
    }
    for error in [Errno::EINVAL, Errno::ENOSYS, Errno::EPERM, Errno::EOPNOTSUPP] {
        let (populate, allocate) = ((Call::Populate, error), (Call::Allocate, error));
        assert_eq!(received_although(&[], false), Commit::Populate);
        assert_eq!(received_although(&[populate], false), Commit::Allocate);
        assert_eq!(received_although(&[populate, allocate], false), Commit::Write);
        assert_eq!(received_although(&[populate], true), Commit::Fault);
    }
}

#[test]
#[cfg_attr(any(miri, ropewalk_portable), ignore = "needs memory maps")]
fn memory_that_is_not_taken_back_is_not_offered_again_and_again() {
    let pool = Pool::options().small_limits().capacity(1 << 20).retain(0).create().unwrap();
    let used = || Rope::in_pool(&pool).extend_from_slice(&pattern(100_000));
    mock::refusing(Call::Punch, [Some(Errno::EOPNOTSUPP)], used);
    assert!(pool.stats().keeps_memory && pool.stats().warm > 0 && pool.decay_timeout().is_none());
    assert!(pool.trim().unwrap() > 0, "asked for, it is tried again");
    assert!(!pool.stats().keeps_memory);
}

#[test]
#[cfg_attr(any(miri, ropewalk_portable), ignore = "needs memory maps")]
fn a_refused_commit_is_an_error_and_loses_nothing() {
    if kernel_is_older_than(5, 14, "MADV_POPULATE_WRITE") {
        return;
    }
    for error in [Errno::ENOMEM, Errno::ENOSPC, Errno::EFAULT, Errno::EHWPOISON] {
        let (pool, bytes) = (pool().unwrap(), pattern(50_000));
        let mut rope = Rope::in_pool(&pool);
        mock::run([], &bytes[..5000], || rope.readv_from(any_fd()).unwrap());
        let refused = mock::refusing(Call::Populate, [Some(error); 8], || {
            rope.reserve(40_000).and_then(|()| {
                let mut full = Rope::in_pool(&pool);
                full.write_all(&bytes)
            })
        });
        // A lack of memory has many names.
        let named = if error == Errno::EHWPOISON { error } else { Errno::ENOMEM };
        assert_eq!(refused.unwrap_err().raw_os_error(), Some(named as i32));
        assert_eq!(rope, bytes[..5000]);
        rope.assert_invariants();
        mock::run([], &bytes[5000..], || while rope.readv_from(any_fd()).unwrap() > 0 {});
        assert!(*rope.finalize().unwrap() == bytes);
        pool.assert_invariants();
    }
}

#[test]
#[cfg_attr(any(miri, ropewalk_portable), ignore = "needs memory maps")]
fn where_memory_is_short_idle_pages_are_reused_wherever_they_are() {
    if kernel_is_older_than(5, 14, "MADV_POPULATE_WRITE") {
        return;
    }
    let (pool, bytes) = (pool().unwrap(), pattern(100_000));
    Rope::in_pool(&pool).extend_from_slice(&bytes);
    let warm = pool.stats().warm;
    assert!(warm >= 100_000);
    mock::refusing(Call::Populate, [Some(Errno::ENOMEM); 1000], || {
        let mut ropes = [(); 3].map(|()| Rope::in_pool(&pool));
        for piece in bytes[..60_000].chunks(4000) {
            ropes.iter_mut().for_each(|rope| drop(rope.write_all(&piece[..1000])));
        }
        assert!(ropes.iter().all(|rope| rope.len() == 15_000), "{ropes:?}");
        let mut greedy = Rope::in_pool(&pool);
        assert!(greedy.write_all(&bytes).is_err() && greedy.len() > 20_000, "{greedy:?}");
    });
    assert_eq!((pool.stats().fallbacks, pool.stats().in_use, pool.stats().warm), (0, 0, warm));
}
