//! System calls that fail, as a sandbox or another kernel lets them.

use std::ptr;

use nix::libc;

/// Makes a system call fail for this thread, for good; if an `argument` is named, only where its low half has this value.
pub(crate) fn forbid(call: libc::c_long, argument: Option<(u32, u32)>, errno: i32) {
    let load = |at: u32| statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, at, 0);
    // Whatever does not equal is allowed, by the last instruction.
    let unequal = |value: u32, skip: u8| statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, value, skip);
    let give = |what: u32| statement(libc::BPF_RET | libc::BPF_K, what, 0);
    // `seccomp_data`: the call's number at 0, its arguments from 16 on.
    let mut filter = vec![load(0), unequal(call as u32, if argument.is_some() { 3 } else { 1 })];
    if let Some((at, value)) = argument {
        filter.extend([load(16 + 8 * at), unequal(value, 1)]);
    }
    filter.extend([give(libc::SECCOMP_RET_ERRNO | errno as u32), give(libc::SECCOMP_RET_ALLOW)]);
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    let set =
        |option, a: libc::c_ulong, b: *const libc::sock_fprog| unsafe { libc::prctl(option, a, b, 0, 0) };
    assert_eq!(set(libc::PR_SET_NO_NEW_PRIVS, 1, ptr::null()), 0);
    assert_eq!(set(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER as libc::c_ulong, &program), 0);
}

fn statement(code: u32, k: u32, skip_unless: u8) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt: 0, jf: skip_unless, k }
}
