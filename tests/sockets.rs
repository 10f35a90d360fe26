//! Socket options of the caller, kinds of sockets that few programs use, and connections that break: what has arrived
//! stays, and the error is the kernel's.
#![allow(unsafe_code)] // socket options that have no safe interface

#[path = "support/seccomp.rs"]
mod seccomp;
#[allow(dead_code)] // it is for several test files
mod support;

use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::mem;
use std::net::{Shutdown, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use nix::libc;
use ropewalk::{Pool, Rope, RopeCodec};
use seccomp::forbid;
use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, Type};
use support::{in_child, pattern};

fn set(socket: &impl AsRawFd, level: i32, name: i32, value: i32) -> io::Result<()> {
    let value = &raw const value;
    // SAFETY: the value outlives the call and has its size.
    match unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, value.cast(), 4) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let here = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (here, listener.accept().unwrap().0)
}

/// Moves this thread to a network of its own, where everyone may ping.
fn own_network() -> io::Result<()> {
    // SAFETY: touches no memory.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
        return Err(io::Error::last_os_error());
    }
    fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647")?;
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    // SAFETY: a C struct of integers, for which zero is valid.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    request.ifr_name[..2].copy_from_slice(&[b'l' as _, b'o' as _]);
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as _;
    // SAFETY: the request outlives the call.
    match unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw const request) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Sockets that do not tell the length of a message of which they copy nothing.
#[test]
fn messages_whose_length_the_kernel_does_not_tell() {
    in_child("messages_whose_length_the_kernel_does_not_tell", || {
        if let Err(error) = own_network() {
            return println!("skipped: no network of its own, {error}");
        }
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::ICMPV4)).unwrap();
        socket.connect(&"127.0.0.1:0".parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        for len in [0, 1, 100, 4088, 5000, 20_000, 60_000] {
            let mut echo = vec![8, 0, 0, 0, 0, 0, 0, 1];
            echo.extend(pattern(len as u64, len));
            for with_header in [false, true] {
                for mut rope in [Rope::new(), Rope::in_pool(&Pool::new().unwrap())] {
                    socket.send(&echo).unwrap();
                    rope.set_limit(echo.len() - 1);
                    assert_eq!(rope.readv_from(&socket).unwrap_err().kind(), ErrorKind::QuotaExceeded);
                    rope.set_limit(echo.len());
                    if with_header {
                        let received = rope.recvmsg_from(&socket, 0).unwrap();
                        assert_eq!((received.bytes, received.truncated), (echo.len(), false), "{len} bytes");
                    } else {
                        assert_eq!(rope.readv_from(&socket).unwrap(), echo.len(), "{len} bytes");
                    }
                    assert_eq!(rope.slice(8..), echo[8..]);
                }
            }
        }
    });
}

const SOL_UDP: i32 = 17;
const UDP_SEGMENT: i32 = 103;
const UDP_GRO: i32 = 104;

#[test]
#[cfg_attr(ropewalk_portable, ignore = "merges no datagrams")]
fn merged_datagrams_are_told_apart() {
    let (sender, receiver) =
        (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
    sender.connect(receiver.local_addr().unwrap()).unwrap();
    receiver.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    if let Err(error) =
        set(&sender, SOL_UDP, UDP_SEGMENT, 1000).and_then(|()| set(&receiver, SOL_UDP, UDP_GRO, 1))
    {
        return println!("skipped: {error}");
    }
    let message = pattern(1, 3500);
    for timestamps in [0, 1] {
        set(&receiver, libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, timestamps).unwrap();
        sender.send(&message).unwrap();
        let mut rope = Rope::new();
        let received = rope.recvmsg_from(&receiver, 0).unwrap();
        if received.bytes == 1000 {
            return println!("skipped: this kernel takes datagrams apart on the way"); // Linux 5.10
        }
        assert_eq!((received.bytes, received.truncated), (3500, false));
        assert_eq!(received.gro_size, Some(1000));
        assert_eq!(rope, message);
        // One datagram of its own is not merged.
        sender.send(&message[..900]).unwrap();
        let received = rope.recvmsg_from(&receiver, 0).unwrap();
        assert_eq!((received.bytes, received.gro_size), (900, None));
    }
}

/// A limit, or none, and a header that has arrived: what a peer's reset must not take away.
#[test]
fn a_reset_in_the_middle_of_anything_keeps_what_has_arrived() {
    let payload = pattern(2, 300_000);
    let codec = RopeCodec::new(1 << 20);
    let mut frame = 1_000_000u32.to_be_bytes().to_vec();
    frame.extend_from_slice(&payload);
    for what in ["readv", "recvmsg", "frame", "splice", "limited", "full"] {
        let pool = Pool::options().capacity(4 << 20).create().unwrap();
        let (mut peer, socket) = tcp_pair();
        socket.set_nonblocking(true).unwrap();
        let mut rope = match what {
            "splice" if cfg!(ropewalk_portable) => continue,
            "splice" => Rope::for_handover().unwrap(),
            _ => Rope::in_pool(&pool),
        };
        let sent = if what == "frame" { &frame } else { &payload };
        let receive = |rope: &mut Rope| match what {
            "recvmsg" => rope.recvmsg_from(&socket, 0).map(|received| received.bytes),
            "frame" => rope.readv_frame(&socket, &codec).map(|frame| usize::from(frame.is_some())),
            "splice" => rope.splice_from(&socket),
            _ => rope.readv_from(&socket),
        };
        let writer = thread::spawn({
            let sent = sent.clone();
            move || {
                peer.write_all(&sent).unwrap();
                peer
            }
        });
        while rope.len() < sent.len() {
            if let Err(error) = receive(&mut rope) {
                assert_eq!(error.kind(), ErrorKind::WouldBlock, "{what}");
            }
        }
        let peer = writer.join().unwrap();
        let holder = match what {
            "limited" => {
                rope.set_limit(rope.len());
                None
            }
            "full" => {
                let mut holder = Rope::in_pool(&pool);
                while holder.reserve(holder.len() + 4096).is_ok() {
                    holder.extend_from_slice(&[1; 4096]);
                }
                Some(holder)
            }
            _ => None,
        };
        SockRef::from(&peer).set_linger(Some(Duration::ZERO)).unwrap();
        drop(peer);
        let error = loop {
            match receive(&mut rope) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => thread::yield_now(),
                done => break done.expect_err(what),
            }
        };
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{what}");
        assert_eq!(rope, *sent, "{what}");
        // The kernel reports a reset once, then the end.
        let after = receive(&mut rope);
        match what {
            "frame" => assert_eq!(after.expect_err(what).kind(), ErrorKind::UnexpectedEof),
            _ => assert_eq!(after.unwrap(), 0, "{what}"),
        }
        assert_eq!(*rope.finalize().unwrap(), sent[..], "{what}");
        drop(holder);
    }
}

#[test]
fn a_low_water_mark_and_timeouts_lose_nothing() {
    for tcp in [false, true] {
        let (mut peer, socket): (Box<dyn Write>, OwnedFd) = if tcp {
            let (peer, socket) = tcp_pair();
            (Box::new(peer), socket.into())
        } else {
            let (peer, socket) = UnixStream::pair().unwrap();
            (Box::new(peer), socket.into())
        };
        set(&socket, libc::SOL_SOCKET, libc::SO_RCVLOWAT, 100_000).unwrap();
        SockRef::from(&socket).set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let mut rope = Rope::new();
        assert_eq!(rope.readv_from(&socket).unwrap_err().kind(), ErrorKind::WouldBlock);
        peer.write_all(b"few").unwrap();
        assert_eq!(rope.readv_from(&socket).unwrap(), 3);
        rope.set_limit(3);
        assert_eq!(rope.readv_from(&socket).unwrap_err().kind(), ErrorKind::WouldBlock);
        peer.write_all(b"more").unwrap();
        assert_eq!(rope.readv_from(&socket).unwrap_err().kind(), ErrorKind::QuotaExceeded);
        rope.set_limit(5);
        assert_eq!(rope.readv_from(&socket).unwrap(), 2);
        rope.set_limit(100);
        assert_eq!(rope.readv_up_to(&socket, 1).unwrap(), 1);
        assert_eq!(rope.readv_from(&socket).unwrap(), 1);
        drop(peer);
        assert_eq!(rope.readv_from(&socket).unwrap(), 0);
        assert_eq!(rope, b"fewmore");
    }
}

#[test]
fn a_send_that_times_out_keeps_what_was_not_sent() {
    let payload = pattern(3, 4 << 20);
    for tcp in [false, true] {
        let (socket, peer) = if tcp {
            let (socket, peer) = tcp_pair();
            (Socket::from(socket), Socket::from(peer))
        } else {
            Socket::pair(Domain::UNIX, Type::STREAM, None).unwrap()
        };
        socket.set_send_buffer_size(64 << 10).unwrap();
        peer.set_recv_buffer_size(64 << 10).unwrap();
        socket.set_write_timeout(Some(Duration::from_millis(50))).unwrap();
        let mut rope: Rope = payload.chunks(1000).map(<[u8]>::to_vec).collect();
        let error = loop {
            match rope.sendmsg_to(&socket, 0, &[]) {
                Ok(count) => assert!(count > 0),
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
        let sent = payload.len() - rope.len();
        assert!(sent > 0 && rope == payload[sent..]);
        let reader = thread::spawn(move || {
            let mut all = Vec::new();
            (&peer).read_to_end(&mut all).unwrap();
            all
        });
        while !rope.is_empty() {
            if let Err(error) = rope.writev_to(&socket) {
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
            }
        }
        drop(socket);
        assert!(reader.join().unwrap() == payload);
    }
}

fn send_urgent(socket: &impl AsRawFd, bytes: &[u8]) -> io::Result<()> {
    // SAFETY: as many bytes as there are.
    let sent = unsafe { libc::send(socket.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), libc::MSG_OOB) };
    if sent == bytes.len() as isize { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The same connection read by a rope and by read(2), with urgent bytes anywhere, in the stream or beside it.
#[test]
fn urgent_bytes_are_received_as_by_read() {
    let unix_has_them = send_urgent(&UnixStream::pair().unwrap().0, b"!").is_ok(); // since Linux 5.15
    if !unix_has_them {
        println!("skipped for Unix sockets, which have no urgent bytes here");
    }
    for (tcp, inline, limited) in [false, true]
        .into_iter()
        .flat_map(|a| [false, true].into_iter().flat_map(move |b| [false, true].map(|c| (a, b, c))))
    {
        if !tcp && !unix_has_them {
            continue;
        }
        for script in ["u", "a!", "!", "a!b", "!b", "!!", "a!!b", "a!b!", "ab!!!cd"] {
            let make = || -> (OwnedFd, OwnedFd) {
                let (peer, socket): (OwnedFd, OwnedFd) = if tcp {
                    let (peer, socket) = tcp_pair();
                    (peer.into(), socket.into())
                } else {
                    let (peer, socket) = UnixStream::pair().unwrap();
                    (peer.into(), socket.into())
                };
                if inline {
                    set(&socket, libc::SOL_SOCKET, libc::SO_OOBINLINE, 1).unwrap();
                }
                let out = Socket::from(peer.try_clone().unwrap());
                if tcp {
                    out.set_tcp_nodelay(true).unwrap();
                }
                for byte in script.bytes() {
                    match byte {
                        b'!' => send_urgent(&peer, b"!").unwrap(),
                        byte => assert_eq!(out.send(&[byte]).unwrap(), 1),
                    }
                }
                out.shutdown(Shutdown::Write).unwrap();
                (peer, socket)
            };
            let (peer, socket) = make();
            let mut expected = Vec::new();
            Socket::from(socket).read_to_end(&mut expected).unwrap();
            drop(peer);
            let (peer, socket) = make();
            let mut rope = Rope::new();
            if limited {
                rope.set_limit(0);
            }
            loop {
                match rope.readv_from(&socket) {
                    Ok(0) => break,
                    Ok(_) => {}
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::QuotaExceeded);
                        assert!(rope.len() < 20, "never ends");
                        rope.set_limit(rope.len() + 1);
                    }
                }
            }
            assert_eq!(rope, expected, "{script:?}, tcp {tcp}, inline {inline}, limited {limited}");
            drop(peer);
        }
    }
}

/// Received with recvmsg(2)'s own flag for it.
#[test]
fn an_urgent_byte_is_received_alone() {
    let (mut peer, socket) = tcp_pair();
    peer.write_all(b"before").unwrap();
    send_urgent(&peer, b"!").unwrap();
    let mut rope = Rope::new();
    while rope.len() < 6 {
        rope.readv_from(&socket).unwrap();
    }
    let received = rope.recvmsg_from(&socket, libc::MSG_OOB).unwrap();
    assert_eq!((received.bytes, received.end), (1, false));
    assert_eq!(rope, b"before!");
    assert_eq!(rope.recvmsg_from(&socket, libc::MSG_OOB).unwrap_err().kind(), ErrorKind::InvalidInput);
}

/// The socket waits, and no byte of the stream comes that it could wait for.
#[test]
fn an_urgent_byte_at_the_limit_is_not_waited_for() {
    let (peer, socket) = tcp_pair();
    let mut limited = Rope::from("full");
    limited.set_limit(4);
    for sent in [false, true] {
        if sent {
            send_urgent(&peer, b"!").unwrap();
        }
        let refused = limited.recvmsg_from(&socket, libc::MSG_OOB).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::QuotaExceeded);
    }
    limited.set_limit(5);
    while limited.len() < 5 {
        let _not_yet = limited.recvmsg_from(&socket, libc::MSG_OOB);
    }
    assert_eq!(limited, b"full!");
}

/// Answers of the kernel in many messages, each received whole, compared with recv(2).
#[test]
fn answers_of_netlink_come_whole() {
    let ask = || {
        let socket = Socket::new(libc::AF_NETLINK.into(), Type::RAW, None).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut request = [0u8; 20]; // RTM_GETADDR, a dump
        request[0] = 20;
        request[4..6].copy_from_slice(&26u16.to_ne_bytes()); // RTM_GETROUTE
        request[6..8].copy_from_slice(&0x301u16.to_ne_bytes());
        socket.send(&request).unwrap();
        socket
    };
    let ends = |bytes: &[u8]| {
        let mut at = 0;
        while at + 16 <= bytes.len() {
            let len = u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
            assert!((16..=bytes.len() - at).contains(&len), "a record was cut");
            if u16::from_ne_bytes(bytes[at + 4..at + 6].try_into().unwrap()) == 3 {
                return true;
            }
            at += len.next_multiple_of(4);
        }
        false
    };
    for with_header in [false, true] {
        let socket = ask();
        loop {
            let mut rope = Rope::new();
            if with_header {
                assert!(!rope.recvmsg_from(&socket, 0).unwrap().truncated);
            } else {
                rope.readv_from(&socket).unwrap();
            }
            assert!(!rope.is_empty());
            if ends(&rope.to_vec()) {
                break;
            }
        }
    }
}

/// Frames of the network, seen by a packet socket.
#[test]
fn packets_of_the_network_come_whole() {
    in_child("packets_of_the_network_come_whole", || {
        if let Err(error) = own_network() {
            return println!("skipped: no network of its own, {error}");
        }
        let (sender, receiver) =
            (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
        sender.connect(receiver.local_addr().unwrap()).unwrap();
        for kind in [libc::SOCK_DGRAM, libc::SOCK_RAW] {
            // SAFETY: makes a descriptor.
            let fd = unsafe { libc::socket(libc::AF_PACKET, kind, i32::from((3u16).to_be())) };
            assert!(fd >= 0);
            // SAFETY: it has no other owner.
            let packets = unsafe { OwnedFd::from_raw_fd(fd) };
            set(&packets, 263, 8, 1).unwrap(); // SOL_PACKET, PACKET_AUXDATA
            SockRef::from(&packets).set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            for len in [0, 1, 5000, 60_000] {
                sender.send(&pattern(1, len)).unwrap();
                let head = 28 + if kind == libc::SOCK_RAW { 14 } else { 0 };
                // On its way out and in.
                let mut rope = Rope::new();
                assert_eq!(rope.readv_from(&packets).unwrap(), head + len);
                assert_eq!(rope.slice(head..), pattern(1, len));
                let received = rope.recvmsg_from(&packets, 0).unwrap();
                assert_eq!((received.bytes, received.truncated), (head + len, false));
            }
        }
    });
}

/// An offset for peeks (`SO_PEEK_OFF`), which those of a rope move on UDP sockets only. Where it is not at the start of the
/// next message, the kernel tells the length of the rest, or of another message: what is cut is reported.
#[test]
#[cfg_attr(ropewalk_portable, ignore = "an option of Linux")]
fn an_offset_for_peeks_cuts_no_message_silently() {
    let unix = |kind| Socket::pair(Domain::UNIX, kind, None).unwrap();
    let udp = || Socket::from(UdpSocket::bind("127.0.0.1:0").unwrap());
    let udp = (udp(), udp());
    udp.0.connect(&udp.1.local_addr().unwrap()).unwrap();
    for (name, (sender, receiver)) in
        [("datagram", unix(Type::DGRAM)), ("seqpacket", unix(Type::SEQPACKET)), ("udp", udp)]
    {
        receiver.set_nonblocking(true).unwrap();
        set(&receiver, libc::SOL_SOCKET, libc::SO_PEEK_OFF, 0).unwrap();
        for with_header in [false, true] {
            for len in [5000, 0, 10, 20_000] {
                sender.send(&pattern(1, len)).unwrap();
            }
            for len in [5000, 10, 20_000] {
                let mut rope = Rope::new();
                rope.set_limit(len - 1);
                for _ in 0..if name == "udp" { 0 } else { 3 } {
                    assert_eq!(
                        rope.readv_from(&receiver).expect_err(name).kind(),
                        ErrorKind::QuotaExceeded,
                        "{name} {len}"
                    );
                }
                rope.set_limit(len);
                if with_header {
                    while rope.is_empty() {
                        assert!(!rope.recvmsg_from(&receiver, 0).unwrap().truncated);
                    }
                } else {
                    assert_eq!(rope.readv_from(&receiver).unwrap(), len, "{name}");
                }
                assert!(rope == pattern(1, len), "{name}");
            }
            // Into the first message, and behind it, where one without bytes is next.
            for peeked in [10, 5000] {
                sender.send(&pattern(1, 5000)).unwrap();
                sender.send(b"").unwrap();
                assert_eq!(receiver.peek(&mut vec![mem::MaybeUninit::uninit(); peeked]).unwrap(), peeked);
                let mut rope = Rope::new();
                let whole = if with_header {
                    !rope.recvmsg_from(&receiver, 0).unwrap().truncated
                } else {
                    let received = rope.readv_from(&receiver).map_err(|error| error.kind());
                    assert!(
                        matches!(received, Ok(5000) | Err(ErrorKind::InvalidData)),
                        "{name}: {received:?}"
                    );
                    received.is_ok()
                };
                // UDP tells the length of the whole message.
                assert_eq!(whole, name == "udp" && peeked == 10, "{name}");
                assert!(!whole || rope == pattern(1, 5000));
                assert_eq!(receiver.recv(&mut []).unwrap(), 0);
                set(&receiver, libc::SOL_SOCKET, libc::SO_PEEK_OFF, 0).unwrap();
            }
        }
    }
}

/// Listens and connects with a protocol of its own, where the kernel has it.
fn connected(protocol: i32, fast: bool) -> io::Result<(Socket, Socket)> {
    let listener = Socket::new(Domain::IPV4, Type::STREAM, Some(protocol.into()))?;
    if fast {
        set(&listener, libc::IPPROTO_TCP, libc::TCP_FASTOPEN, 5)?;
    }
    listener.bind(&"127.0.0.1:0".parse::<std::net::SocketAddr>().unwrap().into())?;
    listener.listen(5)?;
    let here = Socket::new(Domain::IPV4, Type::STREAM, Some(protocol.into()))?;
    if fast {
        set(&here, libc::IPPROTO_TCP, libc::TCP_FASTOPEN_CONNECT, 1)?;
        set(&here, libc::IPPROTO_TCP, TCP_FASTOPEN_NO_COOKIE, 1)?;
        here.set_nonblocking(true)?;
    }
    here.connect(&listener.local_addr()?)?;
    if !fast {
        return Ok((here, listener.accept()?.0));
    }
    // Connected by the first send.
    Ok((here, listener))
}

const TCP_FASTOPEN_NO_COOKIE: i32 = 34;
const MPTCP: i32 = 262;

#[test]
fn a_stream_over_several_paths_is_a_stream() {
    is_a_stream(|| connected(MPTCP, false));
}

#[test]
fn a_stream_between_machines_is_a_stream() {
    is_a_stream(|| vsock_pair(Type::STREAM));
}

#[test]
fn a_stream_that_the_kernel_encrypts_is_a_stream() {
    is_a_stream(|| {
        let (here, there) = connected(libc::IPPROTO_TCP, false)?;
        encrypt(&here, TLS_TX)?;
        encrypt(&there, TLS_RX)?;
        Ok((here, there))
    });
}

/// Receives from a stream in every way, at a limit and to the end; skips where it cannot be connected.
fn is_a_stream(connect: impl Fn() -> io::Result<(Socket, Socket)>) {
    let payload = pattern(4, 500_000);
    for what in ["readv", "recvmsg", "splice"] {
        let (here, there) = match connect() {
            Ok(pair) => pair,
            Err(error) => return println!("skipped: {error}"),
        };
        let mut rope = match what {
            "splice" if cfg!(ropewalk_portable) => continue,
            "splice" => Rope::for_handover().unwrap(),
            _ => Rope::in_pool(&Pool::new().unwrap()),
        };
        let receive = |rope: &mut Rope| match what {
            "recvmsg" => rope.recvmsg_from(&there, 0).map(|received| received.bytes),
            "splice" => rope.splice_from(&there),
            _ => rope.readv_from(&there),
        };
        let writer = thread::spawn({
            let mut rope: Rope = payload.chunks(5000).map(<[u8]>::to_vec).collect();
            move || rope.write_all_to(&here)
        });
        rope.set_limit(payload.len() - 1);
        while rope.len() < payload.len() - 1 {
            assert!(receive(&mut rope).unwrap() > 0, "{what}");
        }
        assert_eq!(receive(&mut rope).expect_err(what).kind(), ErrorKind::QuotaExceeded);
        rope.set_limit(payload.len());
        assert_eq!(receive(&mut rope).unwrap(), 1, "{what}");
        writer.join().unwrap().unwrap();
        assert_eq!(receive(&mut rope).unwrap(), 0, "{what}");
        assert!(rope == payload, "{what}");
    }
}

#[test]
fn messages_between_machines_come_whole_into_reserved_room() {
    match vsock_pair(Type::SEQPACKET) {
        Ok((here, there)) => come_whole_into_reserved_room(&here, &there),
        Err(error) => println!("skipped: {error}"),
    }
}

/// A domain that is not known stands in for vsock(7), which few machines have.
#[test]
#[cfg_attr(ropewalk_portable, ignore = "asks getsockname(2) for the domain")]
fn messages_of_any_domain_come_whole_into_reserved_room() {
    in_child("messages_of_any_domain_come_whole_into_reserved_room", || {
        let (here, there) = Socket::pair(Domain::UNIX, Type::SEQPACKET, None).unwrap();
        forbid(libc::SYS_getsockopt, Some((2, libc::SO_DOMAIN as u32)), libc::ENOPROTOOPT);
        come_whole_into_reserved_room(&here, &there);
    });
}

/// Messages whose length the kernel does not tell: without room they are cut, and `recvmsg_from` says so.
fn come_whole_into_reserved_room(here: &Socket, there: &Socket) {
    let pool = Pool::new().unwrap();
    for len in [1, 4096, 4097, 100_000] {
        for what in ["readv", "recvmsg"] {
            let message = pattern(len as u64, len);
            assert_eq!(here.send(&message).unwrap(), len);
            let mut rope = Rope::in_pool(&pool);
            rope.reserve(len).unwrap();
            let got = match what {
                "readv" => rope.readv_from(there).unwrap(),
                _ => {
                    let got = rope.recvmsg_from(there, 0).unwrap();
                    assert!(!got.truncated, "{len}");
                    got.bytes
                }
            };
            assert_eq!(got, len, "{what}");
            assert!(rope == message, "{what}");
        }
    }
    let message = pattern(5, 200_000);
    here.send(&message).unwrap();
    let mut rope = Rope::in_pool(&Pool::new().unwrap());
    let got = rope.recvmsg_from(there, 0).unwrap();
    assert!(got.truncated && got.bytes < message.len(), "{got:?}");
    assert!(rope == message[..got.bytes]);
    here.shutdown(Shutdown::Both).unwrap();
    assert_eq!(rope.readv_from(there).unwrap(), 0);
}

/// Connected sockets between machines, vsock(7), of which both are this one.
fn vsock_pair(kind: Type) -> io::Result<(Socket, Socket)> {
    let listener = Socket::new(Domain::VSOCK, kind, None)?;
    listener.bind(&SockAddr::vsock(libc::VMADDR_CID_LOCAL, libc::VMADDR_PORT_ANY))?;
    listener.listen(1)?;
    let (_, port) = listener.local_addr()?.as_vsock_address().expect("bound to one");
    let here = Socket::new(Domain::VSOCK, kind, None)?;
    here.connect(&SockAddr::vsock(libc::VMADDR_CID_LOCAL, port))?;
    Ok((here, listener.accept()?.0))
}

const TLS_TX: i32 = 1;
const TLS_RX: i32 = 2;

/// Has the kernel encrypt or decrypt a connection, with a key of zeros: TLS 1.2, AES-GCM with 128 bits.
fn encrypt(socket: &impl AsRawFd, direction: i32) -> io::Result<()> {
    const SOL_TLS: i32 = 282;
    // `struct tls12_crypto_info_aes_gcm_128`: version, cipher, nonce, key, salt and number of the record.
    let mut info = [0; 40];
    info[..4].copy_from_slice(&[0x03_u8, 0x03, 51, 0]);
    let option = |level, name, value: &[u8]| {
        let (at, len) = (value.as_ptr().cast(), value.len() as libc::socklen_t);
        // SAFETY: the value outlives the call and has this length.
        match unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, at, len) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    option(libc::IPPROTO_TCP, libc::TCP_ULP, b"tls")?;
    option(SOL_TLS, direction, &info)
}

/// The first send connects. It may say that this is in progress, with nothing sent, or bytes that go with the SYN.
#[test]
fn a_send_that_connects_loses_nothing() {
    let payload = pattern(5, 300_000);
    for round in 0..4 {
        let (here, listener) = match connected(libc::IPPROTO_TCP, true) {
            Ok(pair) => pair,
            Err(error) => return println!("skipped: {error}"),
        };
        let reader = thread::spawn(move || {
            let (there, mut all) = (listener.accept().unwrap().0, Vec::new());
            (&there).read_to_end(&mut all).unwrap();
            all
        });
        let mut rope: Rope = payload.chunks(5000).map(<[u8]>::to_vec).collect();
        while !rope.is_empty() {
            let before = rope.len();
            let sent = if round % 2 == 0 { rope.writev_to(&here) } else { rope.sendmsg_to(&here, 0, &[]) };
            match sent {
                Ok(count) => assert!(count > 0 && rope.len() == before - count),
                Err(error) => {
                    let in_progress = error.raw_os_error() == Some(libc::EINPROGRESS);
                    assert!(in_progress || error.kind() == ErrorKind::WouldBlock, "{error}");
                    assert_eq!(rope.len(), before);
                    thread::sleep(Duration::from_millis(1));
                }
            }
        }
        drop(here);
        assert!(reader.join().unwrap() == payload);
    }
}

/// With it the kernel would read pages after they are reused.
#[test]
fn zerocopy_is_refused_beside_any_flag_and_where_the_socket_allows_it() {
    let (sender, receiver) = tcp_pair();
    set(&sender, libc::SOL_SOCKET, libc::SO_ZEROCOPY, 1).unwrap();
    let mut rope = Rope::from(vec![7; 100_000]);
    for beside in (0..31).map(|bit| 1 << bit) {
        let flags = libc::MSG_ZEROCOPY | beside;
        for refused in [
            rope.sendmsg_to(&sender, flags, &[]).unwrap_err(),
            rope.cursor().sendmsg_to(&sender, flags, &[]).unwrap_err(),
            Rope::new().sendmsg_to(&sender, flags, &[]).unwrap_err(),
        ] {
            assert_eq!(refused.kind(), ErrorKind::InvalidInput, "{flags:#x}: {refused}");
        }
    }
    assert_eq!(rope.len(), 100_000);
    // What is sent has no completion, which an error queue would have.
    rope.sendmsg_to(&sender, libc::MSG_MORE | libc::MSG_DONTWAIT, &[]).unwrap();
    rope.writev_to(&sender).unwrap();
    let flags = nix::sys::socket::MsgFlags::MSG_ERRQUEUE | nix::sys::socket::MsgFlags::MSG_DONTWAIT;
    let completion = nix::sys::socket::recvmsg::<()>(sender.as_raw_fd(), &mut [], None, flags);
    assert_eq!(completion.unwrap_err(), nix::errno::Errno::EAGAIN);
    drop(receiver);
}
