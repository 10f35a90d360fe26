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
pub(crate) mod pipe;
// The switch between the two: `RUSTFLAGS="--cfg ropewalk_portable"` builds on Linux what other systems get.
#[cfg_attr(all(target_os = "linux", not(ropewalk_portable)), path = "linux.rs")]
#[cfg_attr(not(all(target_os = "linux", not(ropewalk_portable))), path = "portable.rs")]
mod platform;
pub(crate) mod pressure;
pub(crate) mod process;
pub(crate) mod psi;
pub(crate) mod seal;
pub(crate) mod shown;
pub(crate) mod space;

pub use io::Received;
pub(crate) use io::{
    at_end_of_stream, check_recv_flags, check_send_flags, next_with_bytes, pread_into, preadv, readv,
    recvmsg, recvmsg_into, sendmsg, writev,
};
pub(crate) use peek::{
    FdKind, KnownFd, at_end_of_file, direct_block, is_no_socket, is_stream_type, max_at, needs_alignment,
    next_message_len, position, set_position,
};

/// Whether this is Linux: an arena is a memfd, whose pages can be mapped twice and sealed; a pipe may have packets.
pub(crate) const IS_LINUX: bool = cfg!(all(target_os = "linux", not(ropewalk_portable)));

/// # Errors
///
/// `Unsupported` on another system, where `what` cannot be had.
pub(crate) fn need_linux(what: &str) -> std::io::Result<()> {
    if IS_LINUX {
        return Ok(());
    }
    Err(std::io::Error::new(std::io::ErrorKind::Unsupported, format!("{what} need Linux")))
}

/// What a call behind an arena returns.
pub(crate) type Result = nix::Result<()>;

/// The kernel does not support a call.
pub(crate) const UNSUPPORTED: nix::errno::Errno = nix::errno::Errno::EOPNOTSUPP;

/// The number of an error of the system.
pub(crate) fn errno(error: &std::io::Error) -> nix::errno::Errno {
    nix::errno::Errno::from_raw(error.raw_os_error().unwrap_or(0))
}

/// Returns whether a call failed because the kernel, or a seccomp filter, does not support it.
pub(crate) fn is_unsupported(error: nix::errno::Errno) -> bool {
    use nix::errno::Errno;
    matches!(error, Errno::EINVAL | Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EPERM | Errno::EACCES)
}

/// Returns whether an error says that descriptors or memory are short: later there may be some.
pub(crate) fn is_short(error: &std::io::Error) -> bool {
    use nix::errno::Errno;
    matches!(errno(error), Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM)
}

/// sysconf(3), `_SC_PAGESIZE`.
pub(crate) fn page_size() -> usize {
    use nix::unistd::{SysconfVar, sysconf};
    let size = sysconf(SysconfVar::PAGE_SIZE).ok().flatten();
    size.and_then(|size| usize::try_from(size).ok()).unwrap_or(4096)
}

/// The number behind `name` in a file of `/proc` or of a control group that has a line for each.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        words.next().filter(|word| *word == name)?;
        words.next()?.parse().ok()
    })
}

/// Makes a call again as long as signals interrupt it.
#[inline]
fn retry_errno<T>(mut call: impl FnMut() -> nix::Result<T>) -> nix::Result<T> {
    loop {
        match call() {
            Err(nix::errno::Errno::EINTR) => {}
            done => return done,
        }
    }
}

/// The same, with the error of `std`.
#[inline]
fn retry<T>(call: impl FnMut() -> nix::Result<T>) -> std::io::Result<T> {
    Ok(retry_errno(call)?)
}

/// Starts a thread that blocks all signals, pthread_sigmask(3): the program's handlers run in the program's threads.
///
/// # Errors
///
/// When the system has no room for it.
pub(crate) fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
    use nix::sys::signal::{SigSet, SigmaskHow};
    let thread = std::thread::Builder::new().name(name.into()).stack_size(128 << 10);
    let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK);
    let started = thread.spawn(run);
    let _ = before.map(|before| before.thread_set_mask());
    // Not the kind of EAGAIN, which says that the call can be repeated once something has become ready.
    started.map(drop).map_err(|error| {
        std::io::Error::other(format!(
            "no thread {name:?}: {error}; raise RLIMIT_NPROC, or the tasks that the control group may have"
        ))
    })
}
