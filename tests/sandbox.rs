//! A sandbox that allows no network calls: ropes go on over pipes and files, and say clearly what does not work.
#![allow(unsafe_code)] // the calls are forbidden by raw calls

#[allow(dead_code)] // it is for several test files
#[path = "support/seccomp.rs"]
mod seccomp;
#[allow(dead_code)]
mod support;

use std::fs::File;
use std::io::{ErrorKind, Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::thread;

use nix::libc;
use ropewalk::{Pool, Rope};
use seccomp::forbid;
use support::{in_child, pattern};

const NETWORK_CALLS: [libc::c_long; 6] = [
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_getsockopt,
    libc::SYS_socket,
];

/// Runs `body` for each error that such a sandbox gives; a filter stays with its thread for good.
fn without_network_calls(name: &str, body: fn(errno: i32)) {
    in_child(name, || {
        for errno in [libc::EPERM, libc::ENOSYS, libc::EACCES] {
            thread::spawn(move || {
                NETWORK_CALLS.iter().for_each(|&call| forbid(call, None, errno));
                body(errno);
            })
            .join()
            .unwrap();
        }
    });
}

#[test]
fn pipes_and_files_work() {
    without_network_calls("pipes_and_files_work", |_| {
        let payload = pattern(1, 300_000);
        let pool = Pool::options().capacity(4 << 20).create().unwrap();
        let mut file = tempfile::tempfile().unwrap();
        Rope::from(payload.clone()).write_all_to(&file).unwrap();
        file.rewind().unwrap();
        let mut rope = Rope::in_pool(&pool);
        while rope.readv_from(&file).unwrap() > 0 {}
        assert!(rope == payload);
        let (read, write) = nix::unistd::pipe().unwrap();
        let half = thread::spawn(move || Rope::from(payload).write_all_to(write).unwrap());
        rope.clear();
        rope.set_limit(299_999);
        while rope.len() < 299_999 {
            assert!(rope.readv_from(&read).unwrap() > 0);
        }
        assert_eq!(rope.readv_from(&read).unwrap_err().kind(), ErrorKind::QuotaExceeded);
        rope.set_limit(300_000);
        assert_eq!(rope.readv_from(&read).unwrap(), 1);
        half.join().unwrap();
        assert_eq!(rope.readv_from(&read).unwrap(), 0);
    });
}

#[test]
fn a_socket_is_read_and_says_why_it_is_not_written() {
    let name = "a_socket_is_read_and_says_why_it_is_not_written";
    without_network_calls(name, |errno| {
        // Made by socketpair(2), as a descriptor that was inherited would be.
        let (here, there) = UnixStream::pair().unwrap();
        let here = File::from(OwnedFd::from(here));
        (&here).write_all(b"read").unwrap();
        let mut rope = Rope::new();
        rope.set_limit(3);
        assert_eq!(rope.readv_from(&there).unwrap(), 3);
        assert_eq!(rope.readv_from(&there).unwrap_err().kind(), ErrorKind::QuotaExceeded);
        rope.set_limit(4);
        assert_eq!(rope.readv_from(&there).unwrap(), 1);
        // writev(2) might raise SIGPIPE.
        assert_eq!(rope.writev_to(&there).unwrap_err().raw_os_error(), Some(errno));
        assert_eq!(rope, b"read");
        drop(here);
        assert_eq!(rope.readv_from(&there).unwrap(), 0);
    });
}
