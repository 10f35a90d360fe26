//! Floor 0: the kernel. The only folder that names `nix`.
//!
//! Each function here is one system call, repeated on EINTR. It does *not* wait, loop until done,
//! or hold state; that belongs to the floors above.

mod io;
pub(crate) mod iovec;
pub(crate) mod memory;
#[cfg(test)]
pub(crate) mod mock;
mod peek;
pub(crate) mod pressure;
pub(crate) mod psi;
pub(crate) mod space;

pub use io::Received;
pub(crate) use io::{at_end_of_stream, check_recv_flags, check_send_flags, readv, recvmsg, sendmsg, writev};
pub(crate) use peek::{FdKind, KnownFd, is_no_socket, next_message_len};
