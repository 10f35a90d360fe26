//! Tests that need the inside: a mock kernel, and a flat model of the rope.
//!
//! Constants are small here (two iovecs a call, pieces of four pages), so that every seam is met often.

mod files;
mod finalize;
mod handover;
mod memory;
mod model;
mod receive;
mod send;

use nix::errno::Errno;

use crate::rope::Rope;

/// What a call may fail with while the rope lives on.
const ALL_ERRORS: [Errno; 11] = [
    Errno::EAGAIN,
    Errno::ENOBUFS,
    Errno::EPIPE,
    Errno::ECONNRESET,
    Errno::EMSGSIZE,
    Errno::ENOMEM,
    Errno::ENOSPC,
    Errno::EMFILE,
    Errno::EPERM,
    Errno::EFAULT,
    Errno::EIO,
];

/// All of them, but for Miri, which is slow and looks at memory only.
const ERRORS: &[Errno] = ALL_ERRORS.split_at(if cfg!(miri) { 1 } else { ALL_ERRORS.len() }).0;

/// Bytes in which neighbours differ.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| u8::try_from(at % 251).unwrap()).collect()
}

/// A rope of these bytes in segments of the given lengths; the rest is in the tail.
fn rope_of(bytes: &[u8], lengths: &[usize]) -> Rope {
    let mut rope = Rope::with_small_limits();
    let mut rest = bytes;
    for &len in lengths {
        let (segment, behind) = rest.split_at(len);
        rope.push(segment.to_vec());
        rest = behind;
    }
    rope.extend_from_slice(rest);
    rope.assert_invariants();
    rope
}

/// A descriptor for calls that never reach the kernel.
fn any_fd() -> std::io::Stdin {
    std::io::stdin()
}

/// Whether the kernel is older than the version that has `what` the test is about, and says so.
fn kernel_is_older_than(major: u32, minor: u32, what: &str) -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|number| number.parse().ok());
    let Some(version) = numbers.next().zip(numbers.next()) else { return false };
    let is_older = version < (major, minor);
    if is_older {
        println!("skipped: this kernel has no {what}");
    }
    is_older
}

#[test]
fn an_idle_rope_is_small() {
    assert!(size_of::<Rope>() <= 256, "{} bytes", size_of::<Rope>());
}

#[test]
fn everything_can_change_threads() {
    fn check<T: Send + Sync>() {}
    check::<Rope>();
    check::<crate::Cursor<std::sync::Arc<Rope>>>();
    check::<crate::Pool>();
    check::<crate::View>();
    check::<crate::FinalizeError>();
}
