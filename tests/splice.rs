//! Payloads that go from a socket to the memfd in which they are handed over, past this process.
#![cfg(not(ropewalk_portable))] // which has no memfd

#[allow(dead_code)] // some of it is for other tests
mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::thread;

use ropewalk::{Pool, Rope};
use support::{bytes_in, in_child, pattern};

const MIB: usize = 1 << 20;

/// Sends `payload` from a thread; `receive` gets the other end.
fn over_unix<T>(payload: &[u8], receive: impl FnOnce(&UnixStream) -> T) -> T {
    let (mut here, there) = UnixStream::pair().unwrap();
    thread::scope(|scope| {
        scope.spawn(move || here.write_all(payload));
        receive(&there)
    })
}

/// The same over TCP.
fn over_tcp<T>(payload: &[u8], receive: impl FnOnce(&TcpStream) -> T) -> T {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut here = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let there = listener.accept().unwrap().0;
    thread::scope(|scope| {
        scope.spawn(move || here.write_all(payload));
        receive(&there)
    })
}

/// All that comes.
fn spliced(mut rope: Rope, socket: impl std::os::fd::AsFd) -> Rope {
    while rope.splice_from(&socket).unwrap() > 0 {}
    rope
}

/// Bytes of shared memory that are mapped.
fn mapped() -> usize {
    bytes_in("/proc/self/status", "RssShmem:") as usize
}

#[test]
fn a_payload_of_any_length_is_received_and_sealed() {
    for (seed, len) in (0..).zip([0, 1, 65_535, 65_536, 65_537, MIB - 1, 3 * MIB, 20 * MIB + 4321]) {
        let payload = pattern(seed, len);
        let check = |rope: Rope| {
            assert_eq!(rope.len(), len);
            let view = rope.finalize().unwrap();
            assert!(view.copied_bytes() == 0 && view == payload, "{len}: {view:?}");
            assert!(*view.seal().unwrap() == payload, "{len}");
        };
        check(over_unix(&payload, |socket| spliced(Rope::for_handover().unwrap(), socket)));
        check(over_tcp(&payload, |socket| spliced(Rope::for_handover().unwrap(), socket)));
    }
}

#[test]
fn its_pages_are_not_mapped_here() {
    in_child("its_pages_are_not_mapped_here", || {
        let payload = pattern(10, 32 * MIB);
        let before = mapped();
        let rope = over_tcp(&payload, |socket| spliced(Rope::for_handover().unwrap(), socket));
        let grown = mapped() - before;
        assert!(grown < 2 * MIB, "{grown} bytes are mapped");
        let in_use = rope.pool().unwrap().stats().in_use;
        assert!((32 << 20..33 << 20).contains(&in_use), "{in_use}");
        let sealed = rope.finalize().unwrap().seal().unwrap();
        assert!(mapped() - before < 2 * MIB);
        assert!(*sealed == payload);
        // What it is compared with.
        let before = mapped();
        let rope = over_tcp(&payload, |socket| {
            let mut rope = Rope::for_handover().unwrap();
            while rope.readv_from(socket).unwrap() > 0 {}
            rope
        });
        assert!(mapped() - before >= 30 * MIB);
        assert!(rope == payload);
    });
}

#[test]
fn both_ways_to_receive_take_turns() {
    let payload = pattern(11, 9 * MIB + 7);
    for odd in [0, 1] {
        let rope = over_unix(&payload, |socket| {
            let mut rope = Rope::for_handover().unwrap();
            for turn in 0.. {
                let got = match turn % 3 {
                    0 => rope.readv_up_to(socket, 5000 + odd),
                    1 => rope.readv_from(socket),
                    _ => rope.splice_from(socket),
                };
                if got.unwrap() == 0 {
                    break;
                }
            }
            rope
        });
        assert!(rope == payload);
        let mut cut = rope;
        let tail = cut.split_off(3 * MIB + 1);
        let both = over_unix(&payload, |socket| [spliced(cut, socket), tail]);
        assert!(both[0] == [&payload[..3 * MIB + 1], &payload].concat());
        assert!(both[1] == payload[3 * MIB + 1..]);
    }
}

#[test]
fn any_other_rope_or_descriptor_is_received_as_ever() {
    let payload = pattern(12, 3 * MIB);
    let pool = Pool::new().unwrap();
    for rope in [Rope::new(), Rope::in_pool(&pool)] {
        assert!(over_unix(&payload, |socket| spliced(rope, socket)) == payload);
    }
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&payload).unwrap();
    std::io::Seek::rewind(&mut file).unwrap();
    assert!(spliced(Rope::for_handover().unwrap(), &file) == payload);
    let (here, there) = UnixDatagram::pair().unwrap();
    let mut rope = Rope::for_handover().unwrap();
    rope.extend_from_slice(&payload[..MIB]);
    here.send(&payload[MIB..MIB + 1000]).unwrap();
    assert_eq!(rope.splice_from(&there).unwrap(), 1000);
    assert!(rope == payload[..MIB + 1000]);
}

#[test]
fn the_limit_and_an_empty_socket_take_nothing() {
    let payload = pattern(13, 2 * MIB);
    let (mut here, mut there) = UnixStream::pair().unwrap();
    there.set_nonblocking(true).unwrap();
    let mut rope = Rope::for_handover().unwrap();
    rope.extend_from_slice(&payload[..MIB]);
    assert_eq!(rope.splice_from(&there).unwrap_err().kind(), ErrorKind::WouldBlock);
    for limit in [MIB + 50_001, MIB + 50_010] {
        rope.set_limit(limit);
        here.write_all(&payload[rope.len()..limit + 100]).unwrap();
        while rope.len() < limit {
            rope.splice_from(&there).unwrap();
        }
        assert_eq!(rope.splice_from(&there).unwrap_err().kind(), ErrorKind::QuotaExceeded);
        assert!(rope == payload[..limit]);
        let mut left = [0; 100];
        there.read_exact(&mut left).unwrap();
        assert!(left == payload[limit..limit + 100]);
    }
    rope.set_limit(usize::MAX);
    drop(here);
    assert_eq!(rope.splice_from(&there).unwrap(), 0);
    assert!(*rope.finalize().unwrap().seal().unwrap() == payload[..MIB + 50_010]);
}

#[test]
fn a_limit_on_file_sizes_is_no_signal() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    in_child("a_limit_on_file_sizes_is_no_signal", || {
        let payload = pattern(14, 4 * MIB);
        let rope = Rope::for_handover().unwrap();
        let (_, hard) = getrlimit(Resource::RLIMIT_FSIZE).unwrap();
        setrlimit(Resource::RLIMIT_FSIZE, MIB as u64, hard).unwrap();
        assert!(over_tcp(&payload, |socket| spliced(rope, socket)) == payload);
    });
}

#[test]
fn it_can_be_read_and_sent_before_it_is_sealed() {
    let payload = pattern(15, 5 * MIB);
    let rope = over_tcp(&payload, |socket| spliced(Rope::for_handover().unwrap(), socket));
    let wanted = &payload[4 * MIB..4 * MIB + 4096];
    assert_eq!(rope.find(wanted), payload.windows(4096).position(|window| window == wanted));
    let (here, there) = UnixStream::pair().unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            rope.cursor().write_all_to(&here).unwrap();
            here.shutdown(std::net::Shutdown::Write).unwrap();
        });
        assert!(spliced(Rope::for_handover().unwrap(), &there) == payload);
    });
}
