//! The recipes without a runtime, with peers that do less or more than they should.
#![allow(clippy::unwrap_used)] // a test may panic

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::num::NonZero;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use recipes::body::receive_body;
use recipes::broadcast::{Reader, send_to_all};
use recipes::frames::{receive_frames, take_frame};
use recipes::handover::{hand_over, take_over};
use recipes::proxy::{Direction, Next};
use recipes::receive::receive;
use recipes::threads;
use ropewalk::{Pool, Rope};
use socket2::SockRef;

const MIB: usize = 1 << 20;
const TIME: Duration = Duration::from_millis(500);
const PATIENCE: Duration = Duration::from_secs(20);

fn pattern(len: usize) -> Vec<u8> {
    (0..len as u64).map(|i| (i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8).collect()
}

fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (peer, listener.accept().unwrap().0)
}

fn trickle(peer: &mut TcpStream) {
    while peer.write_all(b".").is_ok() {
        thread::sleep(Duration::from_millis(10));
    }
}

fn pool(capacity: usize) -> Pool {
    Pool::options().capacity(capacity as u64).create().unwrap()
}

#[test]
fn receive_takes_all_and_no_more_than_allowed() {
    let pool = pool(64 * MIB);
    for (len, max) in [(0, 0), (1, 1), (20 * MIB, 20 * MIB), (20 * MIB, 20 * MIB - 1), (1, 0)] {
        let (mut peer, socket) = tcp_pair();
        let content = pattern(len);
        let received = thread::scope(|scope| {
            scope.spawn(|| {
                // The other side may have had enough.
                let _ = peer.write_all(&content);
                let _ = peer.shutdown(Shutdown::Write);
            });
            let received = receive(&socket, &pool, max, PATIENCE);
            socket.shutdown(Shutdown::Both).unwrap();
            received
        });
        match received {
            Ok(rope) => assert!(len <= max && rope == content),
            Err(error) => {
                assert!(len > max && error.kind() == ErrorKind::QuotaExceeded, "{len} {max}: {error}")
            }
        }
    }
    assert_eq!(pool.stats().in_use, 0);
}

#[test]
fn receive_does_not_wait_for_ever() {
    for hostile in [|_: &mut TcpStream| (), trickle] {
        let (mut peer, socket) = tcp_pair();
        let begin = Instant::now();
        thread::scope(|scope| {
            scope.spawn(|| hostile(&mut peer));
            let late = receive(&socket, &pool(MIB), MIB, TIME).unwrap_err();
            assert_eq!(late.kind(), ErrorKind::TimedOut);
            assert!((TIME..PATIENCE).contains(&begin.elapsed()), "{:?}", begin.elapsed());
            socket.shutdown(Shutdown::Both).unwrap(); // ends `trickle`
        });
    }
}

#[test]
fn a_body_is_what_was_announced() {
    let pool = pool(64 * MIB);
    let (mut peer, socket) = tcp_pair();
    let content = pattern(20 * MIB);
    thread::scope(|scope| {
        scope.spawn(|| {
            peer.write_all(&content).unwrap();
            peer.write_all(b"the next request").unwrap();
            peer.shutdown(Shutdown::Write).unwrap();
        });
        let body = receive_body(&socket, content.len() as u64, &pool, 20 * MIB, PATIENCE).unwrap();
        assert!(body == content);
        assert_eq!(body.finalize().unwrap().copied_bytes(), 0);
        let next = receive(&socket, &pool, MIB, PATIENCE).unwrap();
        assert_eq!(next, b"the next request");
        let empty = receive_body(&socket, 0, &pool, MIB, PATIENCE).unwrap();
        assert!(empty.is_empty());
        let cut = receive_body(&socket, 1, &pool, MIB, PATIENCE).unwrap_err();
        assert_eq!(cut.kind(), ErrorKind::UnexpectedEof);
    });
}

#[test]
fn bodies_that_are_announced_and_do_not_come_hold_nothing() {
    let pool = pool(4 * MIB);
    let (_peer, socket) = tcp_pair();
    for announced in [4 * MIB as u64 + 1, 1 << 32, 1 << 63, u64::MAX] {
        let refused = receive_body(&socket, announced, &pool, 4 * MIB, TIME).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::QuotaExceeded);
    }
    thread::scope(|scope| {
        for number in 0..20 {
            let pool = &pool;
            scope.spawn(move || {
                let (mut peer, socket) = tcp_pair();
                if number % 2 == 0 {
                    thread::spawn(move || trickle(&mut peer));
                    let late = receive_body(&socket, 4 * MIB as u64, pool, 4 * MIB, TIME).unwrap_err();
                    return assert_eq!(late.kind(), ErrorKind::TimedOut);
                }
                let late = receive_body(&socket, 4 * MIB as u64, pool, 4 * MIB, TIME).unwrap_err();
                assert_eq!(late.kind(), ErrorKind::TimedOut);
            });
        }
        // Meanwhile there is room for others.
        let content = pattern(2 * MIB);
        for _ in 0..5 {
            let (mut peer, socket) = tcp_pair();
            thread::scope(|scope| {
                scope.spawn(|| peer.write_all(&content).unwrap());
                assert!(
                    receive_body(&socket, content.len() as u64, &pool, 4 * MIB, PATIENCE).unwrap() == content
                );
            });
        }
    });
    assert_eq!(pool.stats().in_use, 0);
}

#[test]
fn a_full_pool_is_an_error_and_not_the_end() {
    let pool = pool(MIB);
    let mut held = Rope::in_pool(&pool);
    held.extend_from_slice(&pattern(MIB));
    let (mut peer, socket) = tcp_pair();
    let content = pattern(100_000);
    peer.write_all(&content).unwrap();
    let refused = receive_body(&socket, 100_000, &pool, MIB, TIME).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::OutOfMemory);
    drop(held);
    assert!(receive_body(&socket, 100_000, &pool, MIB, TIME).unwrap() == content);
}

/// Without any poll: a turn is repeated until it has moved what it can.
#[test]
fn a_direction_says_what_it_needs() {
    let (mut peer, from) = UnixStream::pair().unwrap();
    let (to, mut other) = UnixStream::pair().unwrap();
    from.set_nonblocking(true).unwrap();
    to.set_nonblocking(true).unwrap();
    let mut direction = Direction::new(Rope::new());
    assert_eq!(direction.turn(&from, &to).unwrap(), Next::Event);
    peer.write_all(b"through").unwrap();
    assert_eq!(direction.turn(&from, &to).unwrap(), Next::Event);
    assert_eq!(direction.moved(), 14);
    drop(peer);
    assert_eq!(direction.turn(&from, &to).unwrap(), Next::End);
    drop(to);
    let mut got = String::new();
    other.read_to_string(&mut got).unwrap();
    assert_eq!(got, "through");
}

#[test]
fn a_direction_holds_no_more_than_its_limit_and_loses_nothing() {
    let (mut peer, from) = UnixStream::pair().unwrap();
    let (to, other) = UnixStream::pair().unwrap();
    for socket in [&peer, &from, &to] {
        socket.set_nonblocking(true).unwrap();
    }
    let pool = pool(64 * MIB);
    let mut direction = Direction::new(Rope::in_pool(&pool));
    let content = pattern(8 * MIB);
    let (mut sent, mut got, mut piece) = (0, Vec::new(), vec![0; 100_000]);
    other.set_nonblocking(true).unwrap();
    for round in 0.. {
        if sent < content.len() {
            sent += peer.write(&content[sent..]).unwrap_or(0);
        } else {
            peer.shutdown(Shutdown::Write).unwrap();
        }
        let next = direction.turn(&from, &to).unwrap();
        // A growing rope may have room for twice what it holds.
        assert!(pool.stats().in_use <= 4 * MIB as u64, "{:?}", pool.stats());
        if round % 3 == 0 {
            let count = (&other).read(&mut piece).unwrap_or(0);
            got.extend_from_slice(&piece[..count]);
        }
        if next == Next::End {
            break;
        }
    }
    to.shutdown(Shutdown::Write).unwrap();
    other.set_nonblocking(false).unwrap();
    (&other).read_to_end(&mut got).unwrap();
    assert!(got == content);
}

/// The end of the stream would say that the answer is whole.
#[test]
fn an_answer_that_fails_half_way_is_reset() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        threads::serve(&listener, NonZero::<u16>::MIN, |mut socket| {
            let mut fails = [0];
            socket.read_exact(&mut fails)?;
            socket.write_all(b"half of")?;
            if fails == [1] { Err(ErrorKind::TimedOut.into()) } else { Ok(()) }
        });
    });
    for (fails, end) in [(0, Ok(7)), (1, Err(ErrorKind::ConnectionReset))] {
        let mut peer = TcpStream::connect(address).unwrap();
        peer.write_all(&[fails]).unwrap();
        let read = peer.read_to_end(&mut Vec::new());
        assert_eq!(read.map_err(|error| error.kind()), end);
    }
}

#[test]
fn broadcast_delays_no_reader() {
    let content = pattern(4 * MIB);
    let rope = Arc::new(Rope::from(content.clone()));
    let (mut readers, mut peers) = (Vec::new(), Vec::new());
    for _ in 0..6 {
        let (peer, socket) = UnixStream::pair().unwrap();
        socket.set_nonblocking(true).unwrap();
        readers.push(Reader::new(socket, &rope));
        peers.push(peer);
    }
    let (leaves, stuck) = (peers.pop().unwrap(), peers.pop().unwrap());
    drop(leaves);
    thread::scope(|scope| {
        for (number, mut peer) in peers.into_iter().enumerate() {
            let content = &content;
            scope.spawn(move || {
                let (mut got, mut piece) = (Vec::new(), vec![0; 64 << 10]);
                while got.len() < content.len() {
                    let count = peer.read(&mut piece).unwrap();
                    assert!(count > 0, "ended after {} bytes", got.len());
                    got.extend_from_slice(&piece[..count]);
                    thread::sleep(Duration::from_millis(number as u64 * 2));
                }
                assert!(got == *content);
            });
        }
        let begin = Instant::now();
        while !readers.is_empty() {
            if !send_to_all(&mut readers, TIME) {
                thread::sleep(Duration::from_millis(1));
            }
            assert!(begin.elapsed() < PATIENCE, "{} readers are left", readers.len());
        }
    });
    drop(stuck);
}

/// A byte now and then is no progress: such a reader would keep the rope for as long as it likes.
#[test]
fn broadcast_drops_who_takes_a_byte_at_a_time() {
    let (mut peer, socket) = UnixStream::pair().unwrap();
    socket.set_nonblocking(true).unwrap();
    let rope = Arc::new(Rope::from(pattern(4 * MIB)));
    let mut readers = vec![Reader::new(socket, &rope)];
    let begin = Instant::now();
    peer.set_nonblocking(true).unwrap();
    while !readers.is_empty() {
        send_to_all(&mut readers, TIME);
        let _ = peer.read(&mut [0; 100]).unwrap();
        thread::sleep(Duration::from_millis(5));
        assert!(begin.elapsed() < PATIENCE, "it is still served");
    }
    assert!(begin.elapsed() >= TIME && Arc::strong_count(&rope) == 1);
}

/// The end of the stream would tell it that it has the whole rope.
#[test]
fn broadcast_resets_who_is_dropped_and_no_other() {
    let content = pattern(MIB);
    for len in [MIB, 1000] {
        let (mut peer, socket) = tcp_pair();
        socket.set_nonblocking(true).unwrap();
        SockRef::from(&socket).set_send_buffer_size(4096).unwrap();
        SockRef::from(&peer).set_recv_buffer_size(4096).unwrap();
        let mut readers = vec![Reader::new(socket, &Arc::new(Rope::from(content[..len].to_vec())))];
        while !readers.is_empty() {
            send_to_all(&mut readers, Duration::ZERO);
        }
        let mut got = Vec::new();
        let end = peer.read_to_end(&mut got).map(drop).map_err(|error| error.kind());
        let whole = got == content[..len];
        assert_eq!(
            (end, whole),
            if len == MIB { (Err(ErrorKind::ConnectionReset), false) } else { (Ok(()), true) }
        );
    }
}

#[test]
fn broadcast_of_nothing_ends() {
    let (_peer, socket) = UnixStream::pair().unwrap();
    let mut readers = vec![Reader::new(socket, &Arc::new(Rope::new()))];
    assert!(!send_to_all(&mut readers, TIME) && readers.is_empty());
}

#[test]
fn frames_in_any_pieces() {
    let (mut peer, socket) = UnixStream::pair().unwrap();
    socket.set_nonblocking(true).unwrap();
    let frames: Vec<_> = [0, 1, 5, 300, 70_000].map(pattern).into();
    let wire: Vec<u8> =
        frames.iter().flat_map(|frame| [&(frame.len() as u32).to_be_bytes()[..], frame].concat()).collect();
    let mut received = Rope::in_pool(&pool(MIB));
    let blocked = receive_frames(&socket, &mut received, |_| panic!("a frame")).unwrap_err();
    assert_eq!(blocked.kind(), ErrorKind::WouldBlock);
    let mut got = Vec::new();
    for piece in wire.chunks(1).take(400).chain(wire[400..].chunks(30_000)) {
        peer.write_all(piece).unwrap();
        while let Ok(true) = receive_frames(&socket, &mut received, |frame| got.push(frame)) {}
    }
    assert_eq!(got, frames);
    drop(peer);
    assert!(!receive_frames(&socket, &mut received, |_| panic!("a frame")).unwrap());
}

#[test]
fn frames_that_lie() {
    for (wire, kind) in [
        (&[0xFF; 4][..], ErrorKind::InvalidData),
        (&[0x01, 0, 0, 1], ErrorKind::InvalidData),
        (&[0, 0, 0], ErrorKind::UnexpectedEof),
        (&[0, 0, 0, 9, 1], ErrorKind::UnexpectedEof),
    ] {
        let (mut peer, socket) = UnixStream::pair().unwrap();
        socket.set_nonblocking(true).unwrap();
        peer.write_all(wire).unwrap();
        drop(peer);
        let mut received = Rope::new();
        let refused = (0..2).find_map(|_| receive_frames(&socket, &mut received, drop).err());
        assert_eq!(refused.map(|error| error.kind()), Some(kind), "{wire:?}");
    }
    let mut largest = Rope::from(vec![0; 16 << 20]);
    largest.push_front((16u32 << 20).to_be_bytes().to_vec());
    assert_eq!(take_frame(&mut largest).unwrap().unwrap().len(), 16 << 20);
}

/// A peer that sends without end fills no memory: between calls there is less than a frame.
#[test]
fn frames_without_end_take_no_more_than_one_at_a_time() {
    let (mut peer, socket) = UnixStream::pair().unwrap();
    let pool = pool(64 * MIB);
    let mut received = Rope::in_pool(&pool);
    let wire = [&(MIB as u32).to_be_bytes()[..], &pattern(MIB)].concat();
    thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..64 {
                peer.write_all(&wire).unwrap();
            }
            drop(peer);
        });
        let mut count = 0;
        while receive_frames(&socket, &mut received, |_| count += 1).unwrap() {
            assert!(received.len() < wire.len());
        }
        assert_eq!(count, 64);
    });
    assert!(pool.stats().peak <= 24 * MIB as u64, "{:?}", pool.stats());
}

#[test]
fn uploads_are_handed_over_whole_or_not_at_all() {
    let (worker, server) = UnixStream::pair().unwrap();
    for (len, max) in [(0, 0), (1, 1), (8193, MIB), (20 * MIB, 20 * MIB), (20 * MIB, 20 * MIB - 1), (1, 0)] {
        let (mut peer, socket) = tcp_pair();
        let content = pattern(len);
        let handed_over = thread::scope(|scope| {
            scope.spawn(|| {
                // The other side may have had enough.
                let _ = peer.write_all(&content);
                let _ = peer.shutdown(Shutdown::Write);
            });
            let done = hand_over(&socket, &worker, max, PATIENCE);
            socket.shutdown(Shutdown::Both).unwrap();
            done
        });
        match handed_over {
            Ok(()) => assert!(len <= max && *take_over(&server).unwrap().unwrap() == content),
            Err(error) => assert!(len > max && error.kind() == ErrorKind::QuotaExceeded, "{error}"),
        }
    }
    // A peer that sends a byte now and then does not extend the time.
    let (mut peer, socket) = tcp_pair();
    thread::scope(|scope| {
        scope.spawn(move || trickle(&mut peer));
        let refused = hand_over(&socket, &worker, MIB, TIME).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::TimedOut);
        drop(socket);
    });
    // Nor does a worker that takes nothing: its socket is full in the end.
    let begin = Instant::now();
    let late = loop {
        let (mut peer, socket) = tcp_pair();
        peer.write_all(b"a payload").unwrap();
        drop(peer);
        if let Err(late) = hand_over(&socket, &worker, MIB, TIME) {
            break late;
        }
        assert!(begin.elapsed() < PATIENCE);
    };
    assert_eq!(late.kind(), ErrorKind::WouldBlock);
    worker.set_write_timeout(None).unwrap();
    server.set_nonblocking(true).unwrap();
    while let Ok(payload) = take_over(&server) {
        assert_eq!(*payload.unwrap(), b"a payload"[..]);
    }
    (&worker).write_all(b"something else").unwrap();
    assert_eq!(take_over(&server).unwrap_err().kind(), ErrorKind::InvalidData);
    drop(worker);
    assert!(take_over(&server).unwrap().is_none());
}
