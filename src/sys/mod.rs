//! Floor 0: the kernel. The only folder that names `nix`.
//!
//! Each function here is one system call, repeated on EINTR. It does *not* wait, loop until done,
//! or hold state; that belongs to the floors above.

mod call;
pub(crate) mod headroom;
pub(crate) mod iovec;
pub(crate) mod memory;
#[cfg(test)]
pub(crate) mod script;
pub(crate) mod space;

pub use call::Received;
pub(crate) use call::{
    at_end_of_stream, check_recv_flags, check_send_flags, is_refused_as_no_socket, readv, recvmsg, sendmsg,
    writev,
};
