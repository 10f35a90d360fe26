//! Receiving from real descriptors.

use std::io::{ErrorKind, Read, Seek, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Barrier;
use std::thread;

use bytes::Bytes;
use ropewalk::{Pool, Rope};

/// A connected pair on loopback, both ends blocking.
fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let here = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (here, listener.accept().unwrap().0)
}

/// Bytes in which every position differs from its neighbours and no page repeats.
fn pattern(len: usize) -> Vec<u8> {
    (0..len as u64).map(|i| (i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8).collect()
}

fn receive_all(rope: &mut Rope, from: &TcpStream) {
    while rope.readv_from(from).unwrap() > 0 {}
}

#[test]
fn a_payload_of_unknown_size_is_contiguous_without_a_copy() {
    let pool = Pool::new().unwrap();
    for _ in 0..2 {
        let (mut peer, socket) = tcp_pair();
        let payload = pattern(64 << 20);
        let expected = payload.clone();
        let sender = thread::spawn(move || peer.write_all(&payload).unwrap());
        let mut rope = Rope::in_pool(&pool);
        receive_all(&mut rope, &socket);
        sender.join().unwrap();
        let view = rope.finalize().unwrap();
        assert!(*view == expected[..]);
        assert_eq!((view.copied_bytes(), view.mapped_bytes(), view.num_maps()), (0, 0, 0));
        drop(view);
        assert_eq!(pool.stats().in_use, 0);
    }
}

#[test]
fn a_million_one_byte_reads_are_one_segment() {
    let pool = Pool::new().unwrap();
    let (mut peer, socket) = UnixStream::pair().unwrap();
    let payload = pattern(1_000_000);
    let expected = payload.clone();
    let sender = thread::spawn(move || peer.write_all(&payload).unwrap());
    let mut rope = Rope::in_pool(&pool);
    while rope.readv_up_to(&socket, 1).unwrap() > 0 {}
    sender.join().unwrap();
    assert_eq!(rope.num_segments(), 1);
    assert!(rope == expected);
}

#[test]
#[cfg_attr(ropewalk_portable, ignore = "maps no views")]
fn ropes_that_grow_at_the_same_time_are_mapped() {
    let pool = Pool::new().unwrap();
    let payload = pattern(16 << 20);
    let pairs: Vec<_> = (0..8).map(|_| tcp_pair()).collect();
    let mut ropes: Vec<_> = (0..8).map(|_| Rope::in_pool(&pool)).collect();
    thread::scope(|scope| {
        for (peer, _) in &pairs {
            let payload = &payload;
            scope.spawn(move || {
                let mut peer = peer;
                peer.write_all(payload).unwrap();
                peer.shutdown(std::net::Shutdown::Write).unwrap();
            });
        }
        let mut open = [true; 8];
        while open.contains(&true) {
            for (at, (_, socket)) in pairs.iter().enumerate() {
                open[at] = open[at] && ropes[at].readv_from(socket).unwrap() > 0;
            }
        }
    });
    for rope in ropes {
        let view = rope.finalize().unwrap();
        assert!(*view == payload[..]);
        // Each extent is as large as all that came before it.
        assert!(view.copied_bytes() < payload.len() / 20 && view.num_maps() < 20, "{view:?}");
    }
}

#[test]
fn small_ropes_that_grow_in_turns_are_borrowed() {
    const LEN: usize = 256 << 10;
    let pool = Pool::new().unwrap();
    let mut pairs: Vec<_> = (0..16).map(|_| UnixStream::pair().unwrap()).collect();
    let payload = pattern(LEN);
    let mut kept = Vec::new();
    for round in 0..4 {
        let mut ropes = [(); 16].map(|()| Rope::in_pool(&pool));
        // Each comes in pieces of its own size, and one after the other a piece of each.
        while ropes.iter().any(|rope| rope.len() < LEN) {
            for (which, (rope, (peer, socket))) in ropes.iter_mut().zip(&mut pairs).enumerate() {
                let next = (rope.len() + 10_000 + 7_777 * which).min(LEN);
                peer.write_all(&payload[rope.len()..next]).unwrap();
                while rope.len() < next {
                    rope.readv_up_to(&*socket, LEN - rope.len()).unwrap();
                }
            }
        }
        for rope in ropes {
            let view = rope.finalize().unwrap();
            assert!(*view == payload);
            assert_eq!((view.copied_bytes(), view.num_maps()), (0, 0), "round {round}");
            kept.push(view);
        }
        // Some are still held when the next ones come.
        kept.drain(..kept.len() - 5);
    }
}

#[test]
fn a_large_payload_after_a_small_one_comes_whole() {
    let pool = Pool::new().unwrap();
    for len in [4095, 4096, 4097, 8192, 65_544, 200_000] {
        for cold in [true, false] {
            let (mut peer, socket) = UnixStream::pair().unwrap();
            peer.write_all(b"small").unwrap();
            Rope::in_pool(&pool).readv_from(&socket).unwrap();
            if cold {
                pool.trim().unwrap();
            }
            let payload = pattern(len);
            let expected = payload.clone();
            let sender = thread::spawn(move || peer.write_all(&payload).unwrap());
            let mut rope = Rope::in_pool(&pool);
            while rope.readv_from(&socket).unwrap() > 0 {}
            sender.join().unwrap();
            assert!(rope == expected, "{len} bytes, cold: {cold}");
            let view = rope.finalize().unwrap();
            assert!(*view == expected[..]);
            assert_eq!((view.copied_bytes(), view.num_maps()), (0, 0), "{len} bytes, cold: {cold}");
        }
    }
}

#[test]
fn the_last_page_of_a_pool_is_no_end_of_the_stream() {
    let pool = Pool::options().capacity(4096).create().unwrap();
    let (mut peer, socket) = UnixStream::pair().unwrap();
    let payload = pattern(8192);
    peer.write_all(b"small").unwrap();
    Rope::in_pool(&pool).readv_from(&socket).unwrap();
    peer.write_all(&payload).unwrap();
    drop(peer);
    let mut rope = Rope::in_pool(&pool);
    while rope.readv_from(&socket).unwrap() > 0 {}
    assert!(rope == payload, "{} bytes", rope.len());
}

#[test]
fn the_limit_takes_nothing_out_of_the_socket() {
    let (mut peer, mut socket) = UnixStream::pair().unwrap();
    peer.write_all(b"0123456789").unwrap();
    let mut rope = Rope::new();
    rope.set_limit(4);
    assert_eq!(rope.readv_from(&socket).unwrap(), 4);
    let error = rope.readv_from(&socket).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::QuotaExceeded);
    assert!(error.to_string().contains("limit of 4 bytes"), "{error}");
    assert_eq!(rope, b"0123");
    let mut rest = [0; 6];
    socket.read_exact(&mut rest).unwrap();
    assert_eq!(&rest, b"456789");
    drop(peer);
    assert_eq!(rope.readv_from(&socket).unwrap(), 0, "a payload of just the limit ends well");
}

#[test]
fn an_idle_connection_holds_nothing() {
    let pool = Pool::new().unwrap();
    let (_peer, socket) = UnixStream::pair().unwrap();
    socket.set_nonblocking(true).unwrap();
    let mut rope = Rope::in_pool(&pool);
    assert_eq!(rope.readv_from(&socket).unwrap_err().kind(), ErrorKind::WouldBlock);
    assert_eq!(pool.stats().in_use, 0);
}

#[test]
fn what_is_reserved_stays_until_it_is_filled() {
    const SIZE: usize = 10 << 20;
    let pool = Pool::new().unwrap();
    let (mut peer, socket) = UnixStream::pair().unwrap();
    let mut rope = Rope::in_pool(&pool);
    rope.reserve(SIZE).unwrap();
    assert_eq!(pool.stats().in_use, SIZE as u64);
    for _ in 0..3 {
        peer.write_all(&[1; 1000]).unwrap();
        rope.readv_from(&socket).unwrap();
        rope.reserve(1).unwrap();
        assert_eq!(pool.stats().in_use, SIZE as u64);
    }
    assert_eq!(rope.split_to(3000).len(), 3000);
    peer.write_all(&[1]).unwrap();
    rope.readv_from(&socket).unwrap();
    assert!(pool.stats().in_use > (SIZE - 4096) as u64);
    rope.clear();
    assert_eq!(pool.stats().in_use, 0);
}

#[test]
fn a_look_at_the_end_waits_no_longer_than_the_call_would() {
    let (_peer, socket) = UnixStream::pair().unwrap();
    let mut rope = Rope::from("full");
    rope.set_limit(4);
    let error = rope.recvmsg_from(&socket, nix::libc::MSG_DONTWAIT).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
}

#[test]
fn a_first_read_that_was_filled_asks_for_more_the_next_time() {
    let pool = Pool::new().unwrap();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&[7; 1 << 20]).unwrap();
    let first_reads = [(); 4].map(|()| {
        file.rewind().unwrap();
        Rope::in_pool(&pool).readv_from(&file).unwrap()
    });
    assert_eq!(first_reads, [64 << 10, 128 << 10, 256 << 10, 256 << 10]);
}

#[test]
fn ropes_of_different_threads_stay_side_by_side() {
    // Two threads may have the same lane, or the second one that in which the first began: all the same.
    assert_eq!((0..32).map(|_| grow_beside_each_other()).sum::<usize>(), 0);
}

/// Two ropes of one pool that grow in turns on threads of their own: how many bytes their views copy.
fn grow_beside_each_other() -> usize {
    let (pool, turns) = (&Pool::new().unwrap(), &Barrier::new(2));
    let grow = |first: bool| {
        let mut rope = Rope::in_pool(pool);
        for _ in 0..8 {
            for turn in [true, false] {
                if turn == first {
                    rope.extend_from_slice(&[7; 16 << 10]);
                }
                turns.wait();
            }
        }
        rope.finalize().unwrap().copied_bytes()
    };
    thread::scope(|scope| {
        let threads = [true, false].map(|first| scope.spawn(move || grow(first)));
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    })
}

#[test]
fn a_rope_that_was_emptied_goes_on_in_pages_that_are_resident() {
    const BYTES: usize = 128 << 20;
    let file = tempfile::tempfile().unwrap();
    file.set_len(BYTES as u64).unwrap();
    let pool = Pool::new().unwrap();
    let (mut rope, mut left) = (Rope::in_pool(&pool), BYTES);
    while left > 0 {
        left -= rope.readv_up_to(&file, 1 << 20).unwrap();
        rope.advance(rope.len());
    }
    let resident = pool.stats().peak_resident;
    assert!(resident <= 4 << 20, "{resident} bytes for a rope of at most 1 MiB");
}

/// An aligned block of each size would lie above all smaller ones.
#[test]
fn payloads_of_mixed_sizes_use_the_same_pages() {
    let pool = Pool::new().unwrap();
    let mut held = Rope::in_pool(&pool);
    held.extend_from_slice(b"at the start of the arena");
    for kib in [600, 1100, 2200, 4500, 9000, 700, 1030, 2050, 4100, 8200] {
        let mut rope = Rope::in_pool(&pool);
        rope.reserve(kib << 10).unwrap();
        rope.extend_from_slice(&vec![7; kib << 10]);
    }
    let resident = pool.stats().peak_resident;
    assert!(resident <= 10 << 20, "{resident} bytes for payloads of at most 9 000 KiB");
}

/// Nothing announces how long they become, but those before them were as long.
#[test]
fn ropes_that_grow_in_turns_are_contiguous_once_others_were_as_long() {
    const BYTES: usize = 1 << 20;
    let pool = Pool::new().unwrap();
    let not_contiguous_in_round = || {
        let mut ropes: Vec<Rope> = (0..32).map(|_| Rope::in_pool(&pool)).collect();
        for _ in 0..16 {
            ropes.iter_mut().for_each(|rope| rope.extend_from_slice(&[7; BYTES / 16]));
        }
        let views = ropes.iter().map(|rope| rope.clone().finalize().unwrap());
        views.filter(|view| view.mapped_bytes() + view.copied_bytes() > 0).count()
    };
    assert_eq!(not_contiguous_in_round(), 32, "the first ones meet");
    assert_eq!((not_contiguous_in_round(), not_contiguous_in_round()), (0, 0));
    let resident = pool.stats().peak_resident;
    assert!(resident <= 40 << 20, "{resident} bytes for 32 payloads of 1 MiB");
}

/// What is reserved whole lies above what is not, and both leave idle pages behind.
#[test]
fn idle_pages_and_ropes_together_stay_within_the_capacity() {
    const CAPACITY: usize = 24 << 20;
    let pool = Pool::options().capacity(CAPACITY as u64).create().unwrap();
    let mut held = Vec::new();
    for kib in [8000, 300, 5000, 8000, 2, 7000, 1100, 8000, 60, 6000, 8000, 3000].repeat(4) {
        while kib << 10 > CAPACITY - pool.stats().in_use as usize {
            held.remove(held.len() / 2);
        }
        let mut rope = Rope::in_pool(&pool);
        if kib > 1000 && rope.reserve(kib << 10).is_err() {
            continue; // no run of so many pages
        }
        rope.extend_from_slice(&vec![7; kib << 10]);
        held.push(rope);
    }
    let stats = pool.stats();
    assert!(stats.peak_resident <= CAPACITY as u64, "{stats:?}");
}

/// Bytes whose owner panics when it is dropped.
struct Header;

impl AsRef<[u8]> for Header {
    fn as_ref(&self) -> &[u8] {
        b"header"
    }
}

impl Drop for Header {
    fn drop(&mut self) {
        panic!("an owner that panics");
    }
}

/// A short segment is copied in front of what follows it, and its owner is dropped then.
#[test]
fn an_owner_that_panics_takes_no_bytes_along() {
    for pool in [None, Some(Pool::new().unwrap())] {
        for reserves in [false, true] {
            let (mut peer, socket) = UnixStream::pair().unwrap();
            peer.write_all(&pattern(3000)).unwrap();
            let mut rope = pool.as_ref().map_or_else(Rope::new, Rope::in_pool);
            rope.push(Bytes::from_owner(Header));
            let filled = catch_unwind(AssertUnwindSafe(|| match reserves {
                true => rope.reserve(100_000).unwrap(),
                false => assert_eq!(rope.readv_from(&socket).unwrap(), 3000),
            }));
            assert!(filled.is_err(), "the owner is not dropped here");
            if reserves {
                assert_eq!(rope, b"header");
                rope.readv_from(&socket).unwrap();
            }
            assert!(rope == [b"header", &pattern(3000)[..]].concat());
        }
    }
}
