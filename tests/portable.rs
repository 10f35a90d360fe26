//! What differs on other systems than Linux, tested on Linux by `--cfg ropewalk_portable`.
#![cfg(ropewalk_portable)]

#[allow(dead_code)] // some of it is for other tests
mod support;

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixDatagram, UnixStream};

use ropewalk::{Backing, Commit, Pool, Rope, Sealed};
use support::{pair, pattern, received};

const MIB: usize = 1 << 20;

#[test]
fn a_pool_is_anonymous_memory_and_nothing_was_refused() {
    let pool = Pool::options().capacity(64 << 20).create().unwrap();
    let payload = pattern(1, MIB + 123);
    let view = received(&pool, &payload).finalize().unwrap();
    assert!(*view == payload && view.copied_bytes() == 0, "{view:?}");
    let stats = pool.stats();
    assert_eq!((stats.backing, stats.commit, stats.reduced), (Backing::Anonymous, Commit::Fault, false));
    assert_eq!((stats.capacity, stats.fallbacks), (64 << 20, 0));
    drop(view);
    assert!(pool.trim().unwrap() >= payload.len() as u64);
    assert_eq!((pool.stats().warm, pool.stats().keeps_memory), (0, false));
    assert!(received(&pool, &payload) == payload[..], "pages that were given back are filled again");
}

#[test]
fn ropes_that_grew_in_turns_are_copied() {
    let pool = Pool::options().capacity(64 << 20).create().unwrap();
    let payloads = [pattern(2, 4 * MIB), pattern(3, 4 * MIB)];
    let mut ropes = [(); 2].map(|()| Rope::in_pool(&pool));
    for at in (0..4 * MIB).step_by(MIB) {
        for (rope, payload) in ropes.iter_mut().zip(&payloads) {
            rope.append(received(&pool, &payload[at..at + MIB]));
        }
    }
    for (rope, payload) in ropes.into_iter().zip(payloads) {
        let view = rope.finalize().unwrap();
        assert!(*view == payload);
        assert_eq!((view.copied_bytes(), view.mapped_bytes(), view.num_maps()), (4 * MIB, 0, 0));
    }
    assert_eq!(pool.stats().in_use, 0, "the copies are on the heap");
}

#[test]
fn what_needs_linux_says_so() {
    let (here, there) = UnixStream::pair().unwrap();
    (&here).write_all(b"stays where it is").unwrap();
    let directory = tempfile::tempdir().unwrap();
    let view = Rope::from("some bytes").finalize().unwrap();
    let refused = view.seal().unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unsupported);
    assert_eq!(refused.into_view(), *b"some bytes");
    let errors = [
        Rope::for_handover().unwrap_err(),
        Sealed::copy_of(b"some bytes").unwrap_err(),
        Sealed::copy_of_file(&here, 1).unwrap_err(),
        Sealed::from_fd(tempfile::tempfile().unwrap().into()).unwrap_err(),
        Sealed::receive(&there).unwrap_err(),
        Pool::options().spill(directory.path(), 8 << 20).create().unwrap_err(),
        Rope::for_file(directory.path(), 8 << 20).unwrap_err(),
    ];
    for error in errors {
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        assert!(
            error.to_string().contains("needs Linux") || error.to_string().contains("need Linux"),
            "{error}"
        );
    }
    let mut left = [0; 17];
    (&there).read_exact(&mut left).unwrap();
    assert_eq!(&left, b"stays where it is");
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
}

/// Without a flag that tells the length of a message, it is found by looking at the message.
#[test]
fn messages_of_any_length_are_whole() {
    let (one, other) = UnixDatagram::pair().unwrap();
    for len in [1, 4096, 65_535, 65_536, 65_537, 150_000] {
        let message = pattern(len as u64, len);
        assert_eq!(one.send(&message).unwrap(), len);
        let mut rope = Rope::new();
        assert_eq!(rope.readv_from(&other).unwrap(), len);
        assert_eq!(rope, message[..]);
    }
}

#[test]
fn a_file_is_sent_and_persisted() {
    let directory = tempfile::tempdir().unwrap();
    let payload = pattern(4, 2 * MIB + 5);
    let (from, to) = (directory.path().join("from"), directory.path().join("to"));
    fs::write(&from, &payload).unwrap();
    let mut rope = Rope::from("head");
    rope.push_file(fs::File::open(&from).unwrap(), 3..payload.len() as u64).unwrap();
    let expected = [b"head", &payload[3..]].concat();

    let (socket, mut peer) = UnixStream::pair().unwrap();
    let reader = std::thread::spawn(move || {
        let mut all = Vec::new();
        peer.read_to_end(&mut all).unwrap();
        all
    });
    rope.cursor().write_all_to(&socket).unwrap();
    drop(socket);
    assert!(reader.join().unwrap() == expected);

    rope.finalize().unwrap().persist(&to).unwrap();
    assert!(fs::read(&to).unwrap() == expected);
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2, "no other name is left");
}

/// Received descriptors are close-on-exec, although no flag asks for that.
#[test]
fn descriptors_are_passed_and_close_on_exec() {
    use std::os::fd::AsFd;
    let (one, other) = pair();
    Rope::from("a socket").sendmsg_to(&one, 0, &[one.as_fd()]).unwrap();
    let received = Rope::new().recvmsg_from(&other, 0).unwrap();
    assert_eq!((received.bytes, received.fds.len()), (8, 1));
    let flags = nix::fcntl::fcntl(&received.fds[0], nix::fcntl::FcntlArg::F_GETFD).unwrap();
    assert_eq!(flags, nix::libc::FD_CLOEXEC);
}
