//! Sockets that keep message boundaries: a message arrives whole or is reported, is sent by one call or not at all,
//! and every descriptor that comes with one is owned.
#![allow(unsafe_code)] // socket options that have no safe interface

#[allow(dead_code)] // it is for several test files
mod support;

use std::fs::{self, File};
use std::io::{ErrorKind, IoSlice, Write};
use std::net::{Shutdown, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::process;
use std::thread;
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::libc;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nix::unistd::pipe2;
use ropewalk::{Pool, Rope};
use socket2::{Domain, Socket, Type};
use support::{in_child, pattern};

/// Both ends of each kind, with room in the socket for 1 MiB.
fn sockets() -> Vec<(&'static str, Socket, Socket)> {
    let udp = || Socket::from(UdpSocket::bind("127.0.0.1:0").unwrap());
    let (udp, udp_there) = (udp(), udp());
    udp.connect(&udp_there.local_addr().unwrap()).unwrap();
    let unix = |kind| Socket::pair(Domain::UNIX, kind, None).unwrap();
    let ((datagram, datagram_there), (packet, packet_there)) = (unix(Type::DGRAM), unix(Type::SEQPACKET));
    let all = vec![
        ("udp", udp, udp_there),
        ("unix datagram", datagram, datagram_there),
        ("seqpacket", packet, packet_there),
    ];
    for (_, sender, receiver) in &all {
        sender.set_send_buffer_size(1 << 20).unwrap();
        receiver.set_recv_buffer_size(1 << 20).unwrap();
        receiver.set_nonblocking(true).unwrap();
    }
    all
}

fn sizes(name: &str) -> impl Iterator<Item = usize> {
    let most = if name == "udp" { 65_507 } else { 200 << 10 };
    let sizes =
        [1, 2, 15, 16, 17, 4095, 4096, 4097, 8000, 8191, 8192, 8193, 65_507, 65_536, 65_537, 200 << 10];
    sizes.into_iter().filter(move |&size| size <= most)
}

/// Ropes that a message may meet: fresh, behind something short or long, with reserved room; on the heap and in a
/// pool.
fn ropes(pool: &Pool) -> Vec<(&'static str, Rope)> {
    let both = || [Rope::new(), Rope::in_pool(pool)];
    let mut ropes = Vec::new();
    ropes.extend(both().map(|rope| ("fresh", rope)));
    ropes.extend(both().map(|mut rope| {
        rope.push("short");
        ("behind a segment", rope)
    }));
    ropes.extend(both().map(|mut rope| {
        rope.extend_from_slice(&[7; 5000]);
        ("behind a tail", rope)
    }));
    ropes.extend(both().map(|mut rope| {
        rope.reserve(65_536).unwrap();
        ("with reserved room", rope)
    }));
    ropes
}

fn open_descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn messages_of_all_sizes_arrive_whole() {
    let pool = Pool::options().capacity(64 << 20).create().unwrap();
    for (name, sender, receiver) in sockets() {
        for size in sizes(name) {
            let message = pattern(size as u64, size);
            for (state, mut rope) in ropes(&pool) {
                let before = rope.len();
                sender.send(&message).unwrap();
                assert_eq!(rope.readv_from(&receiver).unwrap(), size, "{name}, {size} bytes, {state}");
                assert_eq!(rope.slice(before..), message, "{name}, {size} bytes, {state}");
                sender.send(&message).unwrap();
                let received = rope.recvmsg_from(&receiver, 0).unwrap();
                assert_eq!(
                    (received.bytes, received.truncated),
                    (size, false),
                    "{name}, {size} bytes, {state}"
                );
                assert_eq!(rope.slice(before + size..), message, "{name}, {size} bytes, {state}");
                let error = rope.readv_from(&receiver).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::WouldBlock, "one call is one message");
            }
        }
    }
    assert_eq!(pool.stats().in_use, 0);
}

/// What has no room stays in the socket, and comes once there is room.
#[test]
fn a_message_without_room_is_not_taken() {
    let message = pattern(3, 5000);
    for (name, sender, receiver) in sockets() {
        sender.send(&message).unwrap();
        let mut rope = Rope::new();
        rope.set_limit(4999);
        for _ in 0..2 {
            assert_eq!(rope.readv_from(&receiver).expect_err(name).kind(), ErrorKind::QuotaExceeded);
            assert_eq!(rope.recvmsg_from(&receiver, 0).expect_err(name).kind(), ErrorKind::QuotaExceeded);
        }
        rope.set_limit(usize::MAX);
        let error = rope.readv_up_to(&receiver, 4999).expect_err(name);
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.to_string().contains("5000") && error.to_string().contains("4999"), "{error}");
        let pool = Pool::options().capacity(4096).create().unwrap();
        let mut pooled = Rope::in_pool(&pool);
        assert_eq!(pooled.readv_from(&receiver).expect_err(name).kind(), ErrorKind::OutOfMemory);
        assert_eq!((rope.len(), pooled.len()), (0, 0));
        assert_eq!(rope.readv_up_to(&receiver, 5000).unwrap(), 5000, "{name}");
        assert_eq!(rope, message, "{name}");
    }
}

#[test]
fn a_rope_is_sent_as_one_message() {
    for (name, sender, receiver) in sockets() {
        for size in sizes(name) {
            for segments in [1, 2, 3, 1023, 1024].into_iter().filter(|&segments| segments <= size) {
                let message = pattern(size as u64, size);
                let rope: Rope = message.chunks(size.div_ceil(segments)).map(<[u8]>::to_vec).collect();
                rope.cursor().writev_to(&sender).unwrap_or_else(|error| panic!("{name}, {size}: {error}"));
                let mut got = Rope::new();
                assert_eq!(got.readv_from(&receiver).unwrap(), size, "{name}, {size} in {segments}");
                assert_eq!(got, message);
                let mut rope = rope;
                rope.write_all_to(&sender).unwrap();
                assert_eq!(got.readv_from(&receiver).unwrap(), size, "{name}, {size} in {segments}");
                assert!(rope.is_empty());
            }
        }
        assert_eq!(Rope::new().writev_to(&sender).unwrap(), 0);
        assert_eq!(Rope::new().readv_from(&receiver).unwrap_err().kind(), ErrorKind::WouldBlock);
    }
}

#[test]
fn a_rope_of_too_many_segments_is_no_message() {
    for (name, sender, receiver) in sockets() {
        let mut rope: Rope = (0..1025).map(|_| vec![1; 10]).collect();
        for _ in 0..2 {
            let error = rope.writev_to(&sender).expect_err(name);
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            assert!(error.to_string().contains("10250 bytes"), "{error}");
            let error = rope.cursor().write_all_to(&sender).expect_err(name);
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            assert_eq!(rope.sendmsg_to(&sender, 0, &[]).expect_err(name).kind(), ErrorKind::InvalidInput);
        }
        assert_eq!(rope.len(), 10_250, "nothing was sent");
        assert_eq!(Rope::new().readv_from(&receiver).unwrap_err().kind(), ErrorKind::WouldBlock);
        rope.advance(10);
        assert_eq!(rope.writev_to(&sender).unwrap(), 10_240);
        assert_eq!(Rope::new().readv_from(&receiver).unwrap(), 10_240, "{name}");
    }
}

/// More than the adaptive send size offers at first, which is 1 MiB.
#[test]
fn a_large_message_is_one_message_or_an_error() {
    for (name, sender, receiver) in sockets() {
        let mut rope: Rope = (0..3).map(|_| vec![1; 1 << 20]).collect();
        let large =
            sender.set_send_buffer_size(8 << 20).is_ok() && sender.send_buffer_size().unwrap() > 4 << 20;
        match rope.writev_to(&sender) {
            Ok(sent) => {
                assert_eq!((sent, rope.len()), (3 << 20, 0), "{name}");
                assert_eq!(Rope::new().readv_from(&receiver).unwrap(), 3 << 20);
            }
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(libc::EMSGSIZE), "{name}, buffer is large: {large}");
                assert_eq!(rope.len(), 3 << 20);
            }
        }
        assert_eq!(Rope::new().readv_from(&receiver).unwrap_err().kind(), ErrorKind::WouldBlock, "{name}");
    }
}

/// Two readers of one socket: one takes the message whose length the other has asked for. Whatever is received is
/// whole, or reported.
#[test]
fn readers_that_share_a_socket_lose_nothing_silently() {
    let (sender, receiver) = Socket::pair(Domain::UNIX, Type::DGRAM, None).unwrap();
    let total = 2000;
    let readers: Vec<_> = (0..2)
        .map(|_| {
            let receiver = receiver.try_clone().unwrap();
            thread::spawn(move || {
                let mut taken = 0;
                loop {
                    let mut rope = Rope::new();
                    match rope.readv_from(&receiver) {
                        Ok(0) => return taken,
                        Ok(len) => assert!(rope == pattern(len as u64, len), "a message of {len} bytes"),
                        Err(error) => {
                            assert_eq!(error.kind(), ErrorKind::InvalidData, "{error}");
                            assert!(rope.is_empty() && error.to_string().contains("was cut"), "{error}");
                        }
                    }
                    taken += 1;
                }
            })
        })
        .collect();
    for at in 0..total {
        let len = if at % 2 == 0 { 10 } else { 20_000 };
        sender.send(&pattern(len as u64, len)).unwrap();
        // Which a reader skips that looks at it, and another one may have taken meanwhile.
        sender.send(b"").unwrap();
    }
    receiver.shutdown(Shutdown::Read).unwrap();
    assert_eq!(readers.into_iter().map(|reader| reader.join().unwrap()).sum::<usize>(), total);
}

/// After a shutdown the end is behind what has arrived, however many messages without bytes are in between.
#[test]
fn messages_without_bytes_are_not_the_end_after_a_shutdown() {
    for (name, sender, receiver) in sockets() {
        for message in [&b""[..], b"", b"one", b"", b"", b"", b"two", b"", b""] {
            assert_eq!(sender.send(message).unwrap(), message.len());
        }
        if name == "udp" {
            receiver.connect(&sender.local_addr().unwrap()).unwrap(); // else there is nothing to shut down
        }
        receiver.shutdown(Shutdown::Read).unwrap();
        let mut rope = Rope::new();
        let received: Vec<_> = (0..3).map(|_| rope.readv_from(&receiver).unwrap_or(usize::MAX)).collect();
        assert_eq!(received[..2], [3, 3], "{name}");
        assert_eq!(rope, b"onetwo", "{name}");
    }
}

fn enable(socket: &impl AsRawFd, level: i32, name: i32) -> bool {
    let (on, len) = (1i32, size_of::<i32>() as libc::socklen_t);
    // SAFETY: `on` has `len` bytes.
    unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const on).cast(), len) == 0 }
}

fn send_with_descriptors(socket: &impl AsRawFd, bytes: &[u8], count: usize) {
    let null = File::open("/dev/null").unwrap();
    let fds = vec![null.as_raw_fd(); count];
    let rights = [ControlMessage::ScmRights(&fds)];
    let slices = [IoSlice::new(bytes)];
    let control = if count == 0 { &[] } else { &rights[..] };
    assert_eq!(
        sendmsg::<()>(socket.as_raw_fd(), &slices, control, MsgFlags::empty(), None).unwrap(),
        bytes.len()
    );
}

/// `SO_PASSPIDFD` since Linux 6.5; not in `libc` for all targets.
const SO_PASSPIDFD: i32 = 76;
const SO_TIMESTAMP_NEW: i32 = 63;
const SO_TIMESTAMPNS_NEW: i32 = 64;

#[test]
fn every_descriptor_that_comes_is_owned() {
    in_child("every_descriptor_that_comes_is_owned", || {
        let options = [
            vec![],
            vec![SO_PASSPIDFD],
            vec![libc::SO_PASSCRED],
            vec![SO_PASSPIDFD, libc::SO_PASSCRED, libc::SO_TIMESTAMP, libc::SO_PASSSEC],
            vec![SO_TIMESTAMP_NEW, SO_PASSPIDFD],
            vec![SO_TIMESTAMPNS_NEW, libc::SO_PASSCRED],
        ];
        for kind in [Type::STREAM, Type::DGRAM, Type::SEQPACKET] {
            for options in &options {
                let before = open_descriptors();
                descriptors_of_each_count(kind, options);
                assert_eq!(open_descriptors(), before, "{kind:?} {options:?}");
            }
        }
    });
}

fn descriptors_of_each_count(kind: Type, options: &[i32]) {
    let (sender, receiver) = Socket::pair(Domain::UNIX, kind, None).unwrap();
    let set = |&&name: &&i32| enable(&receiver, libc::SOL_SOCKET, name);
    let set: Vec<_> = options.iter().filter(set).collect();
    for count in [0, 1, 2, 252, 253] {
        send_with_descriptors(&sender, b"with descriptors", count);
        let received = Rope::new().recvmsg_from(&receiver, 0).unwrap();
        assert_eq!((received.bytes, received.fds.len(), received.truncated), (16, count, false));
        assert_eq!(received.pidfd.is_some(), set.contains(&&SO_PASSPIDFD), "{set:?}");
        for fd in received.fds.iter().chain(&received.pidfd) {
            // SAFETY: asks for the flags of an open descriptor.
            assert_eq!(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFD) }, libc::FD_CLOEXEC);
        }
    }
    send_with_descriptors(&sender, b"one more", 0);
    if let Some(pidfd) = Rope::new().recvmsg_from(&receiver, 0).unwrap().pidfd {
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd())).unwrap();
        assert!(info.contains(&format!("Pid:\t{}", process::id())), "{info}");
    }
    // A call that fails owns them as well, and so does one that has no place to report them.
    send_with_descriptors(&sender, b"with descriptors", 5);
    let mut rope = Rope::new();
    rope.set_limit(3);
    if kind == Type::STREAM {
        assert_eq!(rope.recvmsg_from(&receiver, 0).unwrap().bytes, 3);
    }
    assert_eq!(rope.recvmsg_from(&receiver, 0).unwrap_err().kind(), ErrorKind::QuotaExceeded);
    assert!(Rope::new().readv_from(&receiver).unwrap() > 0);
}

/// Descriptors of a message without bytes: datagrams may have them.
#[test]
fn descriptors_without_a_byte() {
    in_child("descriptors_without_a_byte", || {
        for kind in [Type::DGRAM, Type::SEQPACKET] {
            let before = open_descriptors();
            let (sender, receiver) = Socket::pair(Domain::UNIX, kind, None).unwrap();
            receiver.set_nonblocking(true).unwrap();
            for limit in [usize::MAX, 0] {
                send_with_descriptors(&sender, b"", 3);
                let mut rope = Rope::new();
                rope.set_limit(limit);
                let received = rope.recvmsg_from(&receiver, 0).unwrap();
                assert_eq!((received.bytes, received.fds.len(), received.end), (0, 3, false));
                send_with_descriptors(&sender, b"", 3);
                assert_eq!(rope.readv_from(&receiver).unwrap_err().kind(), ErrorKind::WouldBlock);
            }
            drop((sender, receiver));
            assert_eq!(open_descriptors(), before);
        }
    });
}

/// What is dropped for want of descriptors is reported.
#[test]
fn descriptors_for_which_the_process_has_no_room() {
    in_child("descriptors_for_which_the_process_has_no_room", || {
        let (sender, receiver) = Socket::pair(Domain::UNIX, Type::SEQPACKET, None).unwrap();
        send_with_descriptors(&sender, b"five", 5);
        let (_, hard) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).unwrap();
        let numbers = receiver.as_raw_fd().max(sender.as_raw_fd()) as u64 + 1;
        nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, numbers + 2, hard)
            .unwrap();
        let received = Rope::new().recvmsg_from(&receiver, 0).unwrap();
        assert!(received.truncated && received.fds.len() < 5, "{received:?}");
        assert_eq!(received.bytes, 4);
    });
}

#[test]
fn waiting_for_all_loses_nothing() {
    let (mut here, there) = UnixStream::pair().unwrap();
    let writer = thread::spawn(move || {
        for piece in [&b"in "[..], b"three ", b"pieces"] {
            here.write_all(piece).unwrap();
            thread::sleep(Duration::from_millis(10));
        }
        send_with_descriptors(&here, b"!", 2);
    });
    let mut rope = Rope::new();
    rope.set_limit(12);
    assert_eq!(rope.recvmsg_from(&there, libc::MSG_WAITALL).unwrap().bytes, 12);
    let error = rope.recvmsg_from(&there, libc::MSG_WAITALL).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::QuotaExceeded);
    rope.set_limit(1000);
    // The rest, the descriptors, and then the end, which is before all have come.
    let (mut fds, mut end) = (0, false);
    while !end {
        let received = rope.recvmsg_from(&there, libc::MSG_WAITALL).unwrap();
        (fds, end) = (fds + received.fds.len(), received.end);
    }
    assert_eq!((&rope, fds), (&Rope::from("in three pieces!"), 2));
    writer.join().unwrap();
}

/// A message is never waited for in parts: `MSG_WAITALL` is for streams.
#[test]
fn waiting_for_all_of_a_message() {
    for (name, sender, receiver) in sockets() {
        let mut rope = Rope::new();
        for message in ["one", "other"] {
            sender.send(message.as_bytes()).unwrap();
            assert_eq!(
                rope.recvmsg_from(&receiver, libc::MSG_WAITALL).unwrap().bytes,
                message.len(),
                "{name}"
            );
        }
    }
}

#[test]
fn a_signal_and_a_timeout_lose_nothing() {
    let (mut here, there) = UnixStream::pair().unwrap();
    there.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    here.write_all(b"part").unwrap();
    let mut rope = Rope::new();
    assert_eq!(rope.recvmsg_from(&there, libc::MSG_WAITALL).unwrap().bytes, 4);
    assert_eq!(rope.recvmsg_from(&there, libc::MSG_WAITALL).unwrap_err().kind(), ErrorKind::WouldBlock);
    assert_eq!(rope, b"part");
}

/// Datagram sockets without a peer of their own.
#[test]
fn messages_of_many_senders() {
    let directory = tempfile::tempdir().unwrap();
    let receiver = UnixDatagram::bind(directory.path().join("socket")).unwrap();
    let mut rope = Rope::new();
    for size in [8000, 0, 1, 70_000] {
        let sender = UnixDatagram::unbound().unwrap();
        sender.connect(directory.path().join("socket")).unwrap();
        sender.send(&pattern(1, size)).unwrap();
    }
    for size in [8000, 1, 70_000] {
        assert_eq!(rope.readv_from(&receiver).unwrap(), size);
    }
    drop(OwnedFd::from(receiver));
}

/// A descriptor's number is given away again: what was known of it is no longer true.
#[test]
fn a_message_is_whole_behind_the_number_of_a_closed_stream() {
    for len in [0, 1, 4096, 4097, 60_000] {
        let (stream, mut stream_there) = UnixStream::pair().unwrap();
        stream_there.write_all(b"never read to its end").unwrap();
        assert_eq!(Rope::new().readv_up_to(&stream, 5).unwrap(), 5);

        let (there, socket) = UnixDatagram::pair().unwrap();
        let number = stream.as_raw_fd();
        drop(stream);
        // SAFETY: duplicates a descriptor that is open. It gets `number`, unless another test has taken that meanwhile.
        let fd = unsafe { libc::fcntl(socket.as_raw_fd(), libc::F_DUPFD_CLOEXEC, number) };
        assert!(fd >= number);
        // SAFETY: `fcntl` has just made it, and nothing else owns it.
        let socket = unsafe { UnixDatagram::from_raw_fd(fd) };
        let message = pattern(7, len.max(1));
        if len == 0 {
            there.send(b"").unwrap(); // skipped
        }
        there.send(&message).unwrap();
        let mut rope = Rope::new();
        assert_eq!(rope.readv_from(&socket).unwrap(), message.len());
        assert_eq!(rope, message[..]);
    }
}

/// A rope that goes on behind the number of a closed stream reads a message as the stream: what it has no room for is gone,
/// which is reported, and the next message is whole. A message without bytes is no end.
#[test]
fn a_rope_that_goes_on_behind_a_number_reports_what_is_cut() {
    for is_pipe in [false, true] {
        for pool in [None, Some(Pool::new().unwrap())] {
            for len in [0, 1, 4095, 100_000] {
                let mut rope = pool.as_ref().map_or_else(Rope::new, Rope::in_pool);
                let (there, socket) = UnixDatagram::pair().unwrap();
                let number = if is_pipe {
                    let (pipe, writer) = pipe2(OFlag::O_CLOEXEC).unwrap();
                    File::from(writer).write_all(b"never read to its end").unwrap();
                    rope.readv_up_to(&pipe, 5).unwrap();
                    pipe.as_raw_fd()
                } else {
                    let (stream, mut peer) = UnixStream::pair().unwrap();
                    peer.write_all(b"never read to its end").unwrap();
                    rope.readv_up_to(stream.as_fd(), 5).unwrap();
                    stream.as_raw_fd()
                };
                rope.clear();
                // SAFETY: duplicates a descriptor that is open. It gets `number`, unless another test has taken that meanwhile.
                let fd = unsafe { libc::fcntl(socket.as_raw_fd(), libc::F_DUPFD_CLOEXEC, number) };
                // SAFETY: `fcntl` has just made it, and nothing else owns it.
                let socket = unsafe { UnixDatagram::from_raw_fd(fd) };
                let message = pattern(7, len);
                there.send(&message).unwrap();
                there.send(b"the next").unwrap();
                match rope.readv_from(&socket) {
                    Ok(count) if len > 0 && count == len => {
                        assert_eq!(rope, message[..]);
                        rope.clear();
                        assert_eq!(rope.readv_from(&socket).unwrap(), 8);
                    }
                    Ok(count) => assert_eq!((len, count), (0, 8), "cut"),
                    Err(error) => {
                        assert_eq!((error.kind(), rope.len()), (ErrorKind::InvalidData, 0));
                        assert_eq!(rope.readv_from(&socket).unwrap(), 8);
                    }
                }
                assert_eq!(rope, b"the next");
            }
        }
    }
}

/// A pipe whose writes are packets: what a read has no room for is dropped by the kernel.
fn packet_pipe() -> (File, File) {
    let (read, write) = pipe2(OFlag::O_DIRECT | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC).unwrap();
    (read.into(), write.into())
}

#[test]
#[cfg_attr(ropewalk_portable, ignore = "knows no pipes of packets")]
fn packets_of_a_pipe_are_taken_whole_or_not_at_all() {
    let kind = |read: std::io::Result<usize>| read.map_err(|error| error.kind());
    for sizes in [[1, 10, 3], [10, 1, 4], [4, 4, 4], [2, 1, 1], [1, 1, 5], [4096, 1, 4096]] {
        for room in 1..12 {
            let (read, mut write) = packet_pipe();
            let mut rope = Rope::new();
            for (seed, size) in sizes.into_iter().enumerate() {
                write.write_all(&pattern(seed as u64, size)).unwrap();
            }
            for (seed, size) in sizes.into_iter().enumerate() {
                let packet = pattern(seed as u64, size);
                if size > room {
                    assert_eq!(
                        kind(rope.readv_up_to(&read, room)),
                        Err(ErrorKind::InvalidInput),
                        "{sizes:?}"
                    );
                    rope.set_limit(room);
                    assert_eq!(kind(rope.readv_from(&read)), Err(ErrorKind::QuotaExceeded), "{sizes:?}");
                    rope.set_limit(usize::MAX);
                }
                assert_eq!(kind(rope.readv_up_to(&read, room.max(size))), Ok(size), "{sizes:?} {room}");
                assert_eq!(rope, packet, "{sizes:?} {room}");
                rope.clear();
            }
            assert_eq!(kind(rope.readv_up_to(&read, room)), Err(ErrorKind::WouldBlock));
            drop(write);
            assert_eq!(kind(rope.readv_up_to(&read, room)), Ok(0));
        }
    }
}

#[test]
#[cfg_attr(ropewalk_portable, ignore = "knows no pipes of packets")]
fn a_packet_that_finds_no_room_in_the_pool_stays_in_its_pipe() {
    let pool = Pool::options().capacity(4096).create().unwrap();
    for spare in [1, 5, 9, 10, 11] {
        let (read, mut write) = packet_pipe();
        write.write_all(b"ten bytes.").unwrap();
        write.write_all(b"and more").unwrap();
        let mut rope = Rope::in_pool(&pool);
        rope.extend_from_slice(&vec![1; 4096 - spare]);
        let got = rope.readv_from(&read).map_err(|error| error.kind());
        assert_eq!(got, if spare < 10 { Err(ErrorKind::OutOfMemory) } else { Ok(10) }, "{spare}");
        rope.advance(4096 - spare);
        let mut rest = Rope::new();
        while rest.len() + rope.len() < 18 {
            assert!(rest.readv_from(&read).unwrap() > 0, "{spare}");
        }
        rope.append(rest);
        assert_eq!(rope, b"ten bytes.and more");
    }
}

#[cfg(feature = "tokio")]
#[test]
#[cfg_attr(ropewalk_portable, ignore = "knows no pipes of packets")]
fn packets_behind_a_long_frame_are_not_cut() {
    let (read, mut write) = packet_pipe();
    let codec = ropewalk::RopeCodec::new(1 << 20);
    let (first, second) = (pattern(1, 64 << 10), pattern(2, 4000));
    let mut wire = codec.wrap(Rope::from(first.clone())).unwrap();
    // The last packet of the first frame is longer than what is missing of it.
    wire.append(codec.wrap(Rope::from(second.clone())).unwrap());
    let wire = wire.to_vec();
    let (mut sent, mut rope, mut frames) = (0, Rope::new(), Vec::new());
    while frames.len() < 2 {
        if sent < wire.len() {
            sent += write.write(&wire[sent..(sent + 4096).min(wire.len())]).unwrap_or(0);
        }
        match rope.readv_frame(&read, &codec) {
            Ok(frame) => frames.push(frame.unwrap()),
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}"),
        }
    }
    assert!(frames[0] == first && frames[1] == second);
}

/// As read(2) does: a pipe that is not `O_NONBLOCK` is waited for.
#[test]
#[cfg_attr(ropewalk_portable, ignore = "knows no pipes of packets")]
fn the_next_packet_of_a_pipe_is_waited_for() {
    let (read, write) = pipe2(OFlag::O_DIRECT | OFlag::O_CLOEXEC).unwrap();
    let mut write = File::from(write);
    write.write_all(b"more than two bytes").unwrap();
    let mut rope = Rope::new();
    // From now on the rope knows that these are packets.
    assert_eq!(rope.readv_up_to(&read, 2).unwrap_err().kind(), ErrorKind::InvalidInput);
    assert_eq!(rope.readv_from(&read).unwrap(), 19);
    let writer = thread::spawn(move || {
        thread::sleep(Duration::from_millis(50));
        write.write_all(b"late").unwrap();
    });
    assert_eq!(rope.readv_up_to(&read, 5).unwrap(), 4);
    writer.join().unwrap();
    assert_eq!(rope.readv_from(&read).unwrap(), 0);
}

/// Bytes, which a small read may leave a part of.
#[test]
fn a_pipe_of_bytes_is_read_in_any_pieces() {
    for writes in [&[1, 1, 20][..], &[10, 1, 11], &[22]] {
        let (read, write) = pipe2(OFlag::O_NONBLOCK | OFlag::O_CLOEXEC).unwrap();
        let (sent, mut at) = (pattern(3, 22), 0);
        for size in writes {
            File::from(write.try_clone().unwrap()).write_all(&sent[at..at + size]).unwrap();
            at += size;
        }
        let mut rope = Rope::new();
        for count in [1, 2, 7, 12] {
            assert_eq!(rope.readv_up_to(&read, count).unwrap(), count);
        }
        assert_eq!(rope, sent);
    }
}

#[test]
fn a_stream_is_read_as_one_behind_the_number_of_a_closed_message_socket() {
    for mut rope in [Rope::new(), Rope::in_pool(&Pool::new().unwrap())] {
        let (there, socket) = UnixDatagram::pair().unwrap();
        there.send(b"a message").unwrap();
        assert_eq!(rope.readv_from(&socket).unwrap(), 9);

        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let stream = listener.accept().unwrap().0;
        let number = socket.as_raw_fd();
        drop(socket);
        // SAFETY: duplicates a descriptor that is open. It gets `number`, unless another test has taken that meanwhile.
        let fd = unsafe { libc::fcntl(stream.as_raw_fd(), libc::F_DUPFD_CLOEXEC, number) };
        assert!(fd >= number);
        // SAFETY: `fcntl` has just made it, and nothing else owns it.
        let stream = unsafe { TcpStream::from_raw_fd(fd) };
        let payload = pattern(3, 50_000);
        peer.write_all(&payload).unwrap();
        while rope.len() < 9 + payload.len() {
            assert!(rope.readv_from(&stream).unwrap() > 0);
        }
        rope.advance(9);
        assert_eq!(rope, payload[..]);
    }
}

/// With `MSG_PROBE`, udp(7) counts bytes that it does not send: they would leave the rope, and be lost.
#[test]
#[cfg_attr(ropewalk_portable, ignore = "the flag is Linux's")]
fn bytes_that_are_only_probed_for_stay_in_the_rope() {
    const MSG_PROBE: i32 = 0x10; // <linux/socket.h>
    for (name, sender, receiver) in sockets() {
        let mut rope = Rope::from("a message");
        let probed = rope.sendmsg_to(&sender, MSG_PROBE, &[]);
        assert_eq!(probed.map_err(|error| error.kind()), Err(ErrorKind::InvalidInput), "{name}");
        assert_eq!(rope, b"a message", "{name}");
        assert!(rope.cursor().sendmsg_to(&sender, MSG_PROBE, &[]).is_err(), "{name}");
        let mut got = Rope::new();
        assert_eq!(got.readv_from(&receiver).unwrap_err().kind(), ErrorKind::WouldBlock, "{name}");
    }
}

/// A short segment may be moved in front of what comes, but not into room that a message needs.
#[test]
fn a_message_that_fills_the_reserved_room_is_not_cut() {
    for capacity in [4096, 1 << 20] {
        let pool = Pool::options().capacity(capacity).create().unwrap();
        for len in [4090, 4091, 4095, 4096] {
            for by_message in [false, true] {
                let (peer, socket) = UnixDatagram::pair().unwrap();
                let message = pattern(5, len);
                peer.send(&message).unwrap();
                let mut rope = Rope::in_pool(&pool);
                rope.reserve(len).unwrap();
                rope.push("short");
                let received = if by_message {
                    rope.recvmsg_from(&socket, 0).unwrap().bytes
                } else {
                    rope.readv_from(&socket).unwrap()
                };
                assert_eq!(received, len);
                assert_eq!(rope, [b"short", &message[..]].concat());
            }
        }
    }
}

/// Gives the number of `old`, which is closed, to what is behind `new`.
fn take_number(new: &impl AsRawFd, old: &OwnedFd) {
    // SAFETY: both are open, and `old` owns what is behind its number from then on.
    assert!(unsafe { libc::dup2(new.as_raw_fd(), old.as_raw_fd()) } >= 0);
}

/// Receiving ends that hold two writes of these sizes, whether they keep them apart, and what keeps them open.
fn ends(sizes: [usize; 2]) -> Vec<(&'static str, OwnedFd, bool, OwnedFd)> {
    let mut ends = Vec::new();
    for (name, kind) in [("stream", Type::STREAM), ("datagram", Type::DGRAM), ("seqpacket", Type::SEQPACKET)]
    {
        let (sender, receiver) = Socket::pair(Domain::UNIX, kind, None).unwrap();
        ends.push((name, receiver.into(), kind != Type::STREAM, sender.into()));
    }
    let (read, write) = pipe2(OFlag::O_CLOEXEC).unwrap();
    ends.push(("pipe", read, false, write));
    if !cfg!(ropewalk_portable) {
        let (read, write) = packet_pipe();
        ends.push(("packets", read.into(), true, write.into()));
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    ends.push(("file", file.reopen().unwrap().into(), false, file.into_file().into()));
    for (_, end, _, writer) in &ends {
        let mut writer = File::from(writer.try_clone().unwrap());
        for (seed, size) in sizes.into_iter().enumerate() {
            writer.write_all(&pattern(seed as u64, size)).unwrap();
        }
        // SAFETY: a descriptor that is open.
        assert!(unsafe { libc::fcntl(end.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) } >= 0);
    }
    ends
}

type Receive = fn(&mut Rope, &OwnedFd, usize) -> std::io::Result<usize>;

/// A rope goes on behind the number of a closed descriptor of each kind with one of each kind: nothing is cut without an
/// error, and bytes are received as ever.
#[test]
fn a_rope_goes_on_behind_a_number_with_another_kind() {
    let calls: [(&str, Receive); 3] = [
        ("readv", |rope, fd, max| rope.readv_up_to(fd, max)),
        ("recvmsg", |rope, fd, _| {
            let received = rope.recvmsg_from(fd, 0)?;
            if received.truncated { Err(ErrorKind::InvalidData.into()) } else { Ok(received.bytes) }
        }),
        ("splice", |rope, fd, _| rope.splice_from(fd)),
    ];
    let pool = Pool::new().unwrap();
    for (first, max, filled) in [(5, 5, 0), (20, 20, 0), (5, 3, 0), (5, 9, 4090), (5, 9, 4096), (5, 5000, 0)]
    {
        for (call, receive) in calls {
            for before in 0..ends([20, 20]).len() {
                for after in 0..ends([12, 7]).len() {
                    for in_pool in [false, true] {
                        let (was, old, _, _peer) = ends([20, 20]).swap_remove(before);
                        let (is, new, keeps, _writer) = ends([12, 7]).swap_remove(after);
                        let case = format!("{call}: {was} to {is}, {first}, {max}, {filled}, {in_pool}");
                        let mut rope = if in_pool { Rope::in_pool(&pool) } else { Rope::new() };
                        let _ = rope.readv_up_to(&old, first); // refused for a message
                        rope.clear();
                        rope.write_all(&pattern(9, filled)).unwrap();
                        take_number(&new, &old);
                        let socket = ["stream", "datagram", "seqpacket"].contains(&is);
                        if call == "recvmsg" && !socket {
                            continue;
                        }
                        let start = rope.len();
                        if !keeps {
                            while rope.len() - start < 19 {
                                assert!(receive(&mut rope, &old, max).expect(&case) > 0, "{case}");
                            }
                            rope.advance(start);
                            assert_eq!(rope, [pattern(0, 12), pattern(1, 7)].concat()[..], "{case}");
                            continue;
                        }
                        let mut at = 0;
                        while at < 2 {
                            let size = [12, 7][at];
                            let len = rope.len();
                            match receive(&mut rope, &old, max) {
                                Ok(count) => {
                                    assert_eq!(count, size, "{case}");
                                    rope.advance(len);
                                    assert_eq!(rope, pattern(at as u64, size)[..], "{case}");
                                    at += 1;
                                }
                                Err(error) if error.kind() == ErrorKind::InvalidInput => {
                                    assert!(max < size, "{case}: {error}");
                                    assert_eq!(rope.readv_from(&old).expect(&case), size, "{case}");
                                    at += 1;
                                }
                                Err(error) => {
                                    assert_eq!(
                                        (error.kind(), at),
                                        (ErrorKind::InvalidData, 0),
                                        "{case}: {error}"
                                    );
                                    at += 1;
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// An empty pipe that is non-blocking, behind the number of a stream and of a pipe of bytes.
#[test]
#[cfg_attr(ropewalk_portable, ignore = "knows no pipes of packets")]
fn no_packet_behind_a_number_would_block() {
    for (name, old, keeps, _peer) in ends([20, 20]) {
        let mut rope = Rope::new();
        let _ = rope.readv_up_to(&old, 5); // refused for a message
        let (read, mut write) = packet_pipe();
        take_number(&read, &old);
        let refused = rope.readv_up_to(&old, 5).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::WouldBlock, "{name}, {keeps}: {refused}");
        write.write_all(&pattern(1, 12)).unwrap();
        assert_eq!(rope.readv_up_to(&old, 5).unwrap_err().kind(), ErrorKind::InvalidInput, "{name}");
        rope.clear();
        assert_eq!(rope.readv_from(&old).unwrap(), 12, "{name}");
        drop(write);
        assert_eq!(rope.readv_up_to(&old, 5).unwrap(), 0, "{name}");
    }
}

/// An empty pipe, whose first packet comes while the read waits.
#[test]
#[cfg_attr(ropewalk_portable, ignore = "knows no pipes of packets")]
fn a_packet_that_is_waited_for_is_not_cut() {
    for room in [3, 11, 4095] {
        let (read, write) = pipe2(OFlag::O_DIRECT | OFlag::O_CLOEXEC).unwrap();
        let reader = thread::spawn(move || {
            let mut rope = Rope::new();
            let first = rope.readv_up_to(&read, room);
            let got = (first.map_err(|error| error.kind()), rope.len(), rope.readv_from(&read).unwrap());
            (got, read) // open until all is written
        });
        thread::sleep(Duration::from_millis(50)); // either way the packet is whole
        let mut write = File::from(write);
        write.write_all(&pattern(1, 12)).unwrap();
        write.write_all(b"next").unwrap();
        let whole = (Ok(12), 12, 4);
        let refused = (Err(ErrorKind::InvalidInput), 0, 12);
        assert_eq!(reader.join().unwrap().0, if room < 12 { refused } else { whole });
    }
}

/// A datagram is no part of a stream that is spliced from, and one without bytes is not its end.
#[test]
#[cfg_attr(ropewalk_portable, ignore = "hands nothing over")]
fn what_is_spliced_from_a_number_is_whole() {
    for len in [0, 100, 60_000, 150_000] {
        let mut rope = Rope::for_handover().unwrap();
        let (mut peer, stream) = UnixStream::pair().unwrap();
        let stream = OwnedFd::from(stream);
        let sent = pattern(1, 300 << 10);
        let writer = thread::spawn(move || {
            peer.write_all(&sent).unwrap();
            peer
        });
        while rope.len() < 300 << 10 {
            rope.splice_from(&stream).unwrap();
        }
        let _peer = writer.join().unwrap();
        let (there, socket) = Socket::pair(Domain::UNIX, Type::DGRAM, None).unwrap();
        there.set_send_buffer_size(1 << 20).unwrap();
        socket.set_nonblocking(true).unwrap();
        take_number(&socket, &stream);
        there.send(&pattern(2, len)).unwrap();
        there.send(b"the next").unwrap();
        rope.set_limit((300 << 10) + 200_000);
        if len > 0 {
            assert_eq!(rope.splice_from(&stream).unwrap(), len);
        }
        assert_eq!(rope.splice_from(&stream).unwrap(), 8);
        rope.advance(300 << 10);
        assert_eq!(rope, [&pattern(2, len)[..], b"the next"].concat()[..]);
    }
}

/// Behind the end of a stream that recvmsg(2) has told, and behind a message that was cut, the kind is asked for again.
#[test]
fn after_the_end_and_after_a_cut_recvmsg_asks_again() {
    for ended in [false, true] {
        for by_message in [false, true] {
            let mut rope = Rope::new();
            let (mut peer, stream) = UnixStream::pair().unwrap();
            let stream = OwnedFd::from(stream);
            peer.write_all(b"first").unwrap();
            assert_eq!(rope.recvmsg_from(&stream, 0).unwrap().bytes, 5);
            drop(peer);
            if ended {
                assert!(rope.recvmsg_from(&stream, 0).unwrap().end);
            }
            let (there, socket) = UnixDatagram::pair().unwrap();
            take_number(&socket, &stream);
            there.send(&pattern(1, 60_000)).unwrap();
            there.send(&pattern(2, 60_000)).unwrap();
            rope.clear();
            if !ended {
                assert!(rope.recvmsg_from(&stream, 0).unwrap().truncated);
                rope.clear();
            }
            let count = if by_message {
                let received = rope.recvmsg_from(&stream, 0).unwrap();
                assert!(!received.truncated);
                received.bytes
            } else {
                rope.readv_from(&stream).unwrap()
            };
            assert_eq!(count, 60_000);
            assert_eq!(rope, pattern(if ended { 1 } else { 2 }, 60_000)[..]);
        }
    }
}

/// The rest of a long frame comes from a pipe of packets that has the number of the stream.
#[test]
#[cfg_attr(ropewalk_portable, ignore = "knows no pipes of packets")]
fn a_frame_goes_on_behind_a_number_with_packets() {
    for in_pool in [false, true] {
        let pool = Pool::new().unwrap();
        let mut rope = if in_pool { Rope::in_pool(&pool) } else { Rope::new() };
        let codec = ropewalk::RopeCodec::new(1 << 20);
        let (first, second) = (pattern(1, 100_000), pattern(2, 2000));
        let mut wire = codec.wrap(Rope::from(first.clone())).unwrap();
        wire.append(codec.wrap(Rope::from(second.clone())).unwrap());
        let wire = wire.to_vec();
        let (stream, mut peer) = UnixStream::pair().unwrap();
        stream.set_nonblocking(true).unwrap();
        let stream = OwnedFd::from(stream);
        let cut = 100_000 - 100;
        peer.write_all(&wire[..cut]).unwrap();
        assert_eq!(rope.readv_frame(&stream, &codec).unwrap_err().kind(), ErrorKind::WouldBlock);
        let (read, mut write) = packet_pipe();
        take_number(&read, &stream);
        write.write_all(&wire[cut..]).unwrap();
        assert_eq!(rope.readv_frame(&stream, &codec).unwrap().unwrap(), first);
        assert_eq!(rope.readv_frame(&stream, &codec).unwrap().unwrap(), second);
    }
}
