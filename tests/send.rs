//! Sending through real descriptors.

use std::fs::File;
use std::io::{ErrorKind, Read, Seek, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;

use bytes::Bytes;
use ropewalk::{Cursor, Pool, Rope};
use socket2::SockRef;

/// Segments of many lengths, from one byte to a MiB.
fn mixed(total: usize) -> Rope {
    let slab = Bytes::from((0..1u32 << 20).map(|at| (at % 253) as u8).collect::<Vec<u8>>());
    let lengths = [1, 4, 1000, 65_536, 3, 1 << 20].into_iter().cycle();
    let mut rope = Rope::new();
    for len in lengths {
        let len = len.min(total - rope.len());
        rope.push(slab.slice(rope.len() % 7..).slice(..len.min(slab.len() - 7)));
        if rope.len() == total {
            return rope;
        }
    }
    rope
}

/// Reads all that `socket` delivers, in pieces of `piece` bytes.
fn drain(mut socket: impl Read + Send + 'static, piece: usize) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let (mut all, mut buffer) = (Vec::new(), vec![0; piece]);
        loop {
            match socket.read(&mut buffer).unwrap() {
                0 => return all,
                count => all.extend_from_slice(&buffer[..count]),
            }
        }
    })
}

#[test]
fn a_non_blocking_socket_with_a_tiny_buffer_gets_everything() {
    let rope = mixed(3 << 20);
    let expected = rope.to_vec();
    for consuming in [true, false] {
        let (socket, peer) = UnixStream::pair().unwrap();
        SockRef::from(&socket).set_send_buffer_size(1).unwrap();
        socket.set_nonblocking(true).unwrap();
        let reader = drain(peer, 777);
        let mut rope = rope.clone();
        let mut cursor = rope.clone().into_cursor();
        loop {
            let result = if consuming { rope.write_all_to(&socket) } else { cursor.write_all_to(&socket) };
            match result {
                Err(error) if error.kind() == ErrorKind::WouldBlock => thread::yield_now(),
                done => break done.unwrap(),
            }
        }
        drop(socket);
        assert!(reader.join().unwrap() == expected);
    }
}

#[test]
fn pipes_and_files_take_a_rope_too() {
    let rope = mixed(2 << 20);
    let (reader, writer) = nix::unistd::pipe().unwrap();
    let reader = drain(File::from(reader), 4096);
    rope.cursor().write_all_to(&writer).unwrap();
    drop(writer);
    assert!(reader.join().unwrap() == rope.to_vec());

    let mut file: File = tempfile::tempfile().unwrap();
    rope.cursor().write_all_to(&file).unwrap();
    file.rewind().unwrap();
    let mut back = Rope::in_pool(&Pool::new().unwrap());
    while back.readv_from(&file).unwrap() > 0 {}
    assert!(back == rope);
}

#[test]
fn a_peer_that_went_away_is_an_error_and_no_signal() {
    let (socket, peer) = UnixStream::pair().unwrap();
    drop(peer);
    let mut rope = Rope::from("unsent");
    assert_eq!(rope.writev_to(&socket).unwrap_err().kind(), ErrorKind::BrokenPipe);
    assert_eq!(rope.sendmsg_to(&socket, 0, &[]).unwrap_err().kind(), ErrorKind::BrokenPipe);
    assert_eq!(rope, b"unsent");
    let full = File::options().write(true).open("/dev/full").unwrap();
    assert_eq!(rope.writev_to(&full).unwrap_err().kind(), ErrorKind::StorageFull);
    assert_eq!(rope, b"unsent");
}

#[test]
fn descriptors_go_with_the_first_byte_and_once() {
    let (socket, peer) = UnixStream::pair().unwrap();
    SockRef::from(&socket).set_send_buffer_size(1).unwrap();
    socket.set_nonblocking(true).unwrap();
    let (mut passed, kept) = UnixStream::pair().unwrap();
    let mut rope = mixed(1 << 20);
    let expected = rope.to_vec();
    let sent = rope.sendmsg_to(&socket, 0, &[kept.as_fd(), kept.as_fd()]).unwrap();
    assert!(sent < expected.len(), "the socket took all {sent} bytes at once");
    drop(kept);

    let sender = thread::spawn(move || {
        socket.set_nonblocking(false).unwrap();
        rope.write_all_to(&socket).unwrap();
    });
    let mut got = Rope::new();
    let first = got.recvmsg_from(&peer, 0).unwrap();
    assert_eq!((first.fds.len(), first.truncated), (2, false));
    loop {
        let more = got.recvmsg_from(&peer, 0).unwrap();
        assert!(more.fds.is_empty());
        if more.bytes == 0 {
            break;
        }
    }
    sender.join().unwrap();
    assert!(got == expected);

    let other_end = UnixStream::from(first.fds.into_iter().next().unwrap());
    Rope::from("through it").write_all_to(&other_end).unwrap();
    drop(other_end);
    let mut text = String::new();
    passed.read_to_string(&mut text).unwrap();
    assert_eq!(text, "through it");
}

#[test]
fn descriptors_need_a_byte_and_zerocopy_is_refused() {
    let (socket, _peer) = UnixStream::pair().unwrap();
    let error = Rope::new().sendmsg_to(&socket, 0, &[socket.as_fd()]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    let mut rope = Rope::from("bytes");
    let error = rope.sendmsg_to(&socket, 0x400_0000, &[]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert_eq!(rope, b"bytes");
}

#[test]
fn many_cursors_send_one_rope() {
    let rope = Arc::new(mixed(4 << 20));
    let readers: Vec<_> = (0..4)
        .map(|reader| {
            let (socket, peer) = UnixStream::pair().unwrap();
            let mut cursor = Cursor::new(Arc::clone(&rope));
            let sender = thread::spawn(move || cursor.write_all_to(&socket).unwrap());
            (sender, drain(peer, 100 + 10_000 * reader))
        })
        .collect();
    for (sender, reader) in readers {
        sender.join().unwrap();
        assert!(*rope == reader.join().unwrap());
    }
}

#[test]
fn what_was_sent_frees_its_pages() {
    let pool = Pool::new().unwrap();
    let mut rope = Rope::in_pool(&pool);
    rope.extend_from_slice(&vec![1; 32 << 20]);
    let (socket, peer) = UnixStream::pair().unwrap();
    let reader = drain(peer, 1 << 16);
    let mut last = pool.stats().in_use;
    while !rope.is_empty() {
        rope.writev_to(&socket).unwrap();
        let now = pool.stats().in_use;
        assert!(now <= last && now <= rope.len() as u64 + (3 << 20), "{now} in use for {}", rope.len());
        last = now;
    }
    drop(socket);
    assert_eq!(reader.join().unwrap().len(), 32 << 20);
    assert_eq!(last, 0);
}

#[test]
fn the_standard_traits_read_and_write_a_rope() {
    let mut rope = Rope::new();
    write!(rope, "{} and {}", 1, 2).unwrap();
    let mut text = String::new();
    rope.cursor().read_to_string(&mut text).unwrap();
    assert_eq!(text, "1 and 2");
    assert_eq!(rope.len(), 7);
    rope.read_to_string(&mut text).unwrap();
    assert_eq!(text, "1 and 21 and 2");
    assert!(rope.is_empty());
}

#[test]
fn more_segments_than_one_call_may_name_go_in_several() {
    let sent: Vec<u8> = (0..5000_u32).map(|at| (at % 251) as u8).collect();
    let rope: Rope = sent.iter().map(|&byte| vec![byte]).collect();
    assert_eq!(rope.num_segments(), 5000);
    let (socket, peer) = UnixStream::pair().unwrap();
    let received = drain(peer, 1 << 10);
    // The cursor begins inside, where the count of what is named begins too.
    let mut cursor = rope.cursor();
    cursor.set_position(7);
    assert_eq!(cursor.writev_to(&socket).unwrap(), 1024);
    cursor.write_all_to(&socket).unwrap();
    let mut rope = rope;
    rope.write_all_to(&socket).unwrap();
    drop(socket);
    assert!(received.join().unwrap() == [&sent[7..], &sent].concat());
}
