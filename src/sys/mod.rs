//! Floor 0: the kernel. The only folder that names `nix`.
//!
//! Each function here is one system call, repeated on EINTR. It does *not* wait, loop until done,
//! or hold state; that belongs to the floors above.

pub(crate) mod file;
mod io;
pub(crate) mod iovec;
pub(crate) mod memory;
#[cfg(test)]
pub(crate) mod mock;
mod peek;
// The switch between the two: `RUSTFLAGS="--cfg ropewalk_portable"` builds on Linux what other systems get.
#[cfg_attr(all(target_os = "linux", not(ropewalk_portable)), path = "linux.rs")]
#[cfg_attr(not(all(target_os = "linux", not(ropewalk_portable))), path = "portable.rs")]
mod platform;
pub(crate) mod process;
pub(crate) mod shown;

pub use io::Received;
pub(crate) use io::{
    at_end_of_stream, check_recv_flags, check_send_flags, pread_into, preadv, readv, recvmsg, recvmsg_into,
    sendmsg, writev,
};
pub(crate) use peek::{
    FdKind, KnownFd, at_end_of_file, is_no_socket, is_stream_type, needs_alignment, next_message_len,
    next_with_bytes, position, set_position,
};
pub(crate) use platform::{HAS_MEMFD, check_spill, pipe, pressure, psi, seal, space};

/// What a call behind an arena returns.
pub(crate) type Result = nix::Result<()>;

/// The kernel does not support a call.
pub(crate) const UNSUPPORTED: nix::errno::Errno = nix::errno::Errno::EOPNOTSUPP;

/// Returns whether a call failed because the kernel, or a seccomp filter, does not support it.
pub(crate) fn is_unsupported(error: nix::errno::Errno) -> bool {
    use nix::errno::Errno;
    matches!(error, Errno::EINVAL | Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EPERM | Errno::EACCES)
}

/// pthread_sigmask(3): runs `call`, and lets threads that it starts block all signals.
pub(crate) fn without_signals<T>(call: impl FnOnce() -> T) -> T {
    use nix::sys::signal::{SigSet, SigmaskHow, pthread_sigmask};
    let mut before = SigSet::empty();
    let blocked = pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut before));
    let result = call();
    if blocked.is_ok() {
        let _ = pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&before), None);
    }
    result
}
