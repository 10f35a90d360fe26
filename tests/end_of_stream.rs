//! `Ok(0)` is the end of the stream, and nothing else: for each kind of descriptor, at the rope's limit and in a
//! full pool.
#![allow(unsafe_code)] // terminals and descriptors of the kernel's own kinds are made by raw calls

#[allow(dead_code)] // it is for several test files
mod support;

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Seek, SeekFrom, Write};
use std::net::{Shutdown, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::libc;
use nix::sys::stat::Mode;
use ropewalk::{Pool, Rope};
use socket2::{Domain, Socket, Type};
use support::pattern;

/// What is to be read from a descriptor, which is kept alive together with the other end of it.
struct Source {
    fd: OwnedFd,
    other: Option<OwnedFd>,
}

impl Source {
    fn of(fd: impl Into<OwnedFd>) -> Source {
        Source { fd: fd.into(), other: None }
    }
}

impl AsFd for Source {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

const BYTES: &[u8] = b"sixteen bytes...";

/// Raw calls return -1 for an error.
fn owned(fd: i32) -> OwnedFd {
    assert!(fd >= 0, "{}", io::Error::last_os_error());
    // SAFETY: just opened, and known here only.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn set_nonblocking(fd: &impl AsRawFd, nonblocking: bool) {
    let flags = if nonblocking { libc::O_NONBLOCK } else { 0 };
    // SAFETY: sets flags of an open descriptor.
    assert_eq!(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags) }, 0);
}

fn pipe() -> (OwnedFd, OwnedFd) {
    let (read, write) = nix::unistd::pipe().unwrap();
    set_nonblocking(&read, true);
    (read, write)
}

/// A pipe with a name, which is not open.
fn named_pipe(path: &Path) {
    let name = CString::new(path.to_str().unwrap()).unwrap();
    // SAFETY: a path that ends with 0.
    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
}

/// A descriptor that only names a file. With musl `O_PATH` is an access mode, which `custom_flags` cannot set.
fn by_path(path: &Path) -> OwnedFd {
    nix::fcntl::open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).unwrap()
}

/// A pipe with a name, which is not open for writing.
fn fifo() -> OwnedFd {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("fifo");
    named_pipe(&path);
    OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&path).unwrap().into()
}

/// The side of a terminal that programs read, raw, and the side of the keyboard.
fn terminal() -> (File, File) {
    let (mut master, mut slave) = (0, 0);
    let (name, how, size) = (std::ptr::null_mut(), std::ptr::null(), std::ptr::null());
    // SAFETY: two descriptors are written to; no name, settings or size are given.
    assert_eq!(unsafe { libc::openpty(&raw mut master, &raw mut slave, name, how, size) }, 0);
    let (master, slave) = (owned(master), owned(slave));
    set_nonblocking(&slave, true);
    (slave.into(), master.into())
}

fn memfd(bytes: &[u8]) -> File {
    // SAFETY: a name that ends with 0.
    let mut file = File::from(owned(unsafe { libc::memfd_create(c"test".as_ptr(), libc::MFD_CLOEXEC) }));
    file.write_all(bytes).unwrap();
    file.rewind().unwrap();
    file
}

fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (client, listener.accept().unwrap().0)
}

fn seqpacket() -> (Socket, Socket) {
    Socket::pair(Domain::UNIX, Type::SEQPACKET, None).unwrap()
}

/// All descriptors that deliver `BYTES` and then end.
fn ending() -> Vec<(&'static str, Source)> {
    let (mut unix, unix_there) = UnixStream::pair().unwrap();
    unix.write_all(BYTES).unwrap();
    let (mut half, half_there) = UnixStream::pair().unwrap();
    half.write_all(BYTES).unwrap();
    half.shutdown(Shutdown::Write).unwrap();
    let (mut tcp, tcp_there) = tcp_pair();
    tcp.write_all(BYTES).unwrap();
    let (packets, packets_there) = seqpacket();
    packets.send(BYTES).unwrap();
    let (piped, write) = pipe();
    File::from(write).write_all(BYTES).unwrap();
    let (blocking, write) = pipe();
    set_nonblocking(&blocking, false);
    File::from(write).write_all(BYTES).unwrap();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(BYTES).unwrap();
    file.rewind().unwrap();
    let (typed, mut keyboard) = terminal();
    keyboard.write_all(BYTES).unwrap();
    // A line that is ended by end of file, and another end of file.
    keyboard.write_all(b"\x04\x04").unwrap();
    vec![
        ("unix stream", Source::of(unix_there)),
        ("unix stream shut down", Source { fd: half_there.into(), other: Some(half.into()) }),
        ("tcp", Source::of(tcp_there)),
        ("seqpacket", Source::of(packets_there)),
        ("pipe", Source::of(piped)),
        ("blocking pipe", Source::of(blocking)),
        ("file", Source::of(file)),
        ("memfd", Source::of(memfd(BYTES))),
        ("terminal", Source { fd: typed.into(), other: Some(keyboard.into()) }),
    ]
}

/// A rope in a pool of one page, and the rope that has taken that page.
fn in_full_pool() -> (Rope, Rope) {
    let pool = Pool::options().capacity(4096).create().unwrap();
    let mut holder = Rope::in_pool(&pool);
    holder.extend_from_slice(&[1; 4096]);
    (Rope::in_pool(&pool), holder)
}

fn read_until_limit(rope: &mut Rope, from: &impl AsFd, limit: usize) {
    rope.set_limit(limit);
    while rope.len() < limit {
        assert!(rope.readv_from(from).unwrap() > 0);
    }
}

fn assert_more(name: &str, rope: &mut Rope, from: &impl AsFd) {
    let before = rope.len();
    for _ in 0..2 {
        let error = rope.readv_from(from).expect_err(name);
        assert_eq!(error.kind(), ErrorKind::QuotaExceeded, "{name}: {error}");
        assert_eq!(rope.len(), before, "{name}");
    }
}

fn assert_end(name: &str, rope: &mut Rope, from: &impl AsFd) {
    for _ in 0..2 {
        assert_eq!(rope.readv_from(from).unwrap_or_else(|error| panic!("{name}: {error}")), 0, "{name}");
    }
}

#[test]
fn at_the_limit_the_end_is_told_from_more() {
    for (name, source) in ending() {
        let mut rope = Rope::new();
        rope.set_limit(BYTES.len() - 1);
        // A message is taken whole or not at all.
        if name != "seqpacket" {
            read_until_limit(&mut rope, &source, BYTES.len() - 1);
        }
        assert_more(name, &mut rope, &source);
        read_until_limit(&mut rope, &source, BYTES.len());
        assert_end(name, &mut rope, &source);
        assert_eq!(rope, BYTES, "{name}");
        assert!(source.other.is_none_or(|other| other.as_raw_fd() > 0));
    }
}

#[test]
fn with_a_limit_of_nothing_too() {
    for (name, source) in ending() {
        let mut rope = Rope::new();
        rope.set_limit(0);
        assert_more(name, &mut rope, &source);
        let mut all = Rope::new();
        while all.readv_from(&source).unwrap() > 0 {}
        assert_eq!(all, BYTES, "{name}: nothing was taken by looking");
        if !name.starts_with("terminal") {
            assert_end(name, &mut rope, &source);
        }
    }
}

#[test]
fn in_a_full_pool_the_end_is_told_from_more() {
    for (name, source) in ending() {
        // A message lies in a segment of its own size; only what finds no room in a page is refused.
        let (mut rope, holder) = in_full_pool();
        rope.push(vec![0; 5000]);
        let error = rope.readv_from(&source).expect_err(name);
        assert_eq!(error.kind(), ErrorKind::OutOfMemory, "{name}: {error}");
        let mut rest = Rope::new();
        while rest.len() < BYTES.len() {
            rest.readv_from(&source).unwrap();
        }
        assert_eq!(rope.readv_from(&source).unwrap_or_else(|error| panic!("{name}: {error}")), 0, "{name}");
        drop(holder);
    }
}

#[test]
fn what_has_no_end_is_over_the_limit() {
    for name in ["/dev/zero", "/dev/full", "/dev/urandom", "/dev/random"] {
        let device = File::open(name).unwrap();
        let mut rope = Rope::new();
        read_until_limit(&mut rope, &device, 10);
        assert_more(name, &mut rope, &device);
    }
    if cfg!(ropewalk_portable) {
        return; // it knows no device numbers, by which the end of this one is told
    }
    let mut rope = Rope::new();
    rope.set_limit(0);
    assert_end("/dev/null", &mut rope, &File::open("/dev/null").unwrap());
}

/// Files that tell no size, or one that is not theirs.
#[test]
fn files_of_the_kernel_end_where_they_end() {
    let made = [
        "/proc/version",
        "/proc/self/limits",
        "/proc/filesystems",
        "/sys/kernel/mm/transparent_hugepage/enabled",
    ];
    for name in made.iter().filter(|name| PathBuf::from(name).exists()) {
        let whole = fs::read(name).unwrap();
        let file = File::open(name).unwrap();
        let mut rope = Rope::new();
        read_until_limit(&mut rope, &file, whole.len() - 1);
        assert_more(name, &mut rope, &file);
        let file = File::open(name).unwrap();
        let mut rope = Rope::new();
        read_until_limit(&mut rope, &file, whole.len());
        assert_end(name, &mut rope, &file);
    }
}

#[test]
fn files_larger_than_an_int() {
    for len in [1 << 31, (1 << 31) + 1, 1 << 32, (1 << 32) + 1, 1 << 33] {
        let file = tempfile::tempfile().unwrap();
        file.set_len(len).unwrap();
        let mut rope = Rope::new();
        read_until_limit(&mut rope, &file, 1);
        assert_more("sparse", &mut rope, &file);
        // One byte before the end, and at the end.
        (&file).seek(SeekFrom::Start(len - 1)).unwrap();
        assert_more("sparse, last byte", &mut rope, &file);
        (&file).seek(SeekFrom::Start(len)).unwrap();
        assert_end("sparse", &mut rope, &file);
    }
}

#[test]
fn files_that_are_read_past_the_cache() {
    let directory = tempfile::tempdir_in(".").unwrap();
    let path = directory.path().join("direct");
    fs::write(&path, pattern(1, 8192)).unwrap();
    let Ok(file) = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(&path) else {
        return println!("skipped: this file system has no O_DIRECT");
    };
    let mut rope = Rope::new();
    rope.set_limit(0);
    assert_more("direct", &mut rope, &file);
    (&file).seek(SeekFrom::Start(8192)).unwrap();
    assert_end("direct", &mut rope, &file);
}

#[test]
fn block_devices() {
    let devices = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let open = devices.filter_map(|entry| File::open(PathBuf::from("/dev").join(entry.file_name())).ok());
    let Some(device) =
        open.into_iter().find(|device| device.read_at(&mut [0; 512], 0).is_ok_and(|got| got > 0))
    else {
        return println!("skipped: no block device that can be read");
    };
    let mut rope = Rope::new();
    read_until_limit(&mut rope, &device, 10);
    assert_more("block device", &mut rope, &device);
    (&device).seek(SeekFrom::End(0)).unwrap();
    assert_end("block device", &mut rope, &device);
}

/// Descriptors that count and never end. Each is given as empty, and how to make it readable.
#[test]
fn descriptors_that_count() {
    // SAFETY: makes descriptors; `mask` and `when` outlive the calls.
    let (event, timer, signal) = unsafe {
        let mut mask = std::mem::zeroed();
        libc::sigemptyset(&raw mut mask);
        libc::sigaddset(&raw mut mask, libc::SIGUSR1);
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const mask, std::ptr::null_mut());
        (
            libc::eventfd(0, libc::EFD_NONBLOCK),
            libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_NONBLOCK),
            libc::signalfd(-1, &raw const mask, libc::SFD_NONBLOCK),
        )
    };
    let (event, timer, signal) = (owned(event), owned(timer), owned(signal));
    let mut rope = Rope::new();
    rope.set_limit(0);
    for fd in [&event, &timer, &signal] {
        assert_eq!(rope.readv_from(fd).unwrap_err().kind(), ErrorKind::WouldBlock);
    }
    File::from(event.try_clone().unwrap()).write_all(&1u64.to_ne_bytes()).unwrap();
    // SAFETY: `when` outlives the call; the signal is blocked in this thread.
    unsafe {
        let mut when: libc::itimerspec = std::mem::zeroed();
        when.it_value.tv_nsec = 1;
        libc::timerfd_settime(timer.as_raw_fd(), 0, &raw const when, std::ptr::null_mut());
        libc::pthread_kill(libc::pthread_self(), libc::SIGUSR1);
    }
    thread::sleep(Duration::from_millis(5));
    for (name, fd) in [("eventfd", &event), ("timerfd", &timer), ("signalfd", &signal)] {
        assert_more(name, &mut rope, fd);
        let mut all = Rope::new();
        assert!(all.readv_from(fd).unwrap() >= 8, "{name}: nothing was taken by looking");
    }
}

#[test]
fn where_nothing_has_come_it_would_block() {
    let (unix, unix_there) = UnixStream::pair().unwrap();
    unix_there.set_nonblocking(true).unwrap();
    let (tcp, tcp_there) = tcp_pair();
    tcp_there.set_nonblocking(true).unwrap();
    let (packets, packets_there) = seqpacket();
    packets_there.set_nonblocking(true).unwrap();
    let (datagrams, datagrams_there) = UnixDatagram::pair().unwrap();
    datagrams_there.set_nonblocking(true).unwrap();
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    udp.set_nonblocking(true).unwrap();
    let (piped, write) = pipe();
    let (typed, keyboard) = terminal();
    let sources = [
        ("unix", OwnedFd::from(unix_there)),
        ("tcp", tcp_there.into()),
        ("seqpacket", packets_there.into()),
        ("unix datagram", datagrams_there.into()),
        ("udp", udp.into()),
        ("pipe", piped),
        ("terminal", typed.into()),
    ];
    for (name, fd) in sources {
        let mut rope = Rope::new();
        rope.set_limit(0);
        assert_eq!(rope.readv_from(&fd).expect_err(name).kind(), ErrorKind::WouldBlock, "{name}");
        let (mut rope, _holder) = in_full_pool();
        rope.push(vec![0; 5000]);
        assert_eq!(rope.readv_from(&fd).expect_err(name).kind(), ErrorKind::WouldBlock, "{name}");
    }
    drop((unix, tcp, packets, datagrams, write, keyboard));
}

/// read(2) returns 0 from a FIFO without a writer, whether there has been one or not.
#[test]
#[cfg_attr(ropewalk_portable, ignore = "needs tee")]
fn a_fifo_without_a_writer_is_at_its_end() {
    for nonblocking in [true, false] {
        let fifo = fifo();
        set_nonblocking(&fifo, nonblocking);
        let mut rope = Rope::new();
        assert_end("fifo", &mut rope, &fifo);
        rope.set_limit(0);
        assert_end("fifo at the limit", &mut rope, &fifo);
    }
}

#[test]
fn a_blocking_descriptor_waits_for_the_answer() {
    let (read, write) = pipe();
    set_nonblocking(&read, false);
    let (unix, unix_there) = UnixStream::pair().unwrap();
    let writers: [(OwnedFd, OwnedFd); 2] = [(read, write), (unix_there.into(), unix.into())];
    for (fd, writer) in writers {
        let late = thread::spawn(move || {
            thread::sleep(Duration::from_millis(30));
            drop(writer);
        });
        let mut rope = Rope::new();
        rope.set_limit(0);
        assert_eq!(rope.readv_from(&fd).unwrap(), 0);
        late.join().unwrap();
    }
}

#[test]
fn a_terminal_that_hangs_up_is_at_its_end() {
    let (typed, keyboard) = terminal();
    drop(keyboard);
    let mut rope = Rope::new();
    rope.set_limit(0);
    assert_end("terminal", &mut rope, &typed);
}

#[test]
fn what_cannot_be_read_is_an_error_as_without_a_limit() {
    let (_read, write) = pipe();
    let (unix, tcp) = (tempfile::tempdir().unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
    let unix_listener = UnixListener::bind(unix.path().join("socket")).unwrap();
    let write_only = OpenOptions::new().write(true).open("/dev/null").unwrap();
    let fifo_path = unix.path().join("fifo");
    named_pipe(&fifo_path);
    let sources = [
        ("pipe", write),
        ("file", write_only.into()),
        ("directory", File::open("/").unwrap().into()),
        ("listening tcp", tcp.into()),
        ("listening unix", unix_listener.into()),
        // SAFETY: makes a descriptor.
        ("epoll", owned(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })),
        // SAFETY: makes a descriptor.
        ("pidfd", owned(unsafe { libc::syscall(libc::SYS_pidfd_open, libc::getpid(), 0) } as i32)),
        ("pipe, by path", by_path(&fifo_path)),
        ("unix socket, by path", by_path(&unix.path().join("socket"))),
        ("terminal, by path", by_path(Path::new("/dev/ptmx"))),
        ("file, by path", by_path(Path::new("/proc/version"))),
    ];
    for (name, fd) in sources {
        let mut rope = Rope::new();
        let unlimited = rope.readv_from(&fd).expect_err(name).raw_os_error();
        rope.set_limit(0);
        assert_eq!(rope.readv_from(&fd).expect_err(name).raw_os_error(), unlimited, "{name}");
        assert!(unlimited.is_some(), "{name}");
    }
}

#[test]
fn reading_nothing_asks_nothing() {
    // As read(2) of 0 bytes: the descriptor is not looked at.
    let (_unix, there) = UnixStream::pair().unwrap();
    assert_eq!(Rope::new().readv_up_to(&there, 0).unwrap(), 0);
}

/// Messages without bytes before, between and behind those with some.
fn send_with_empty_ones(send: impl Fn(&[u8])) {
    for message in [&b""[..], b"", b"one", b"", b"two", b"", b""] {
        send(message);
    }
}

fn message_sockets() -> Vec<(&'static str, OwnedFd, OwnedFd)> {
    let (datagram, datagram_there) = UnixDatagram::pair().unwrap();
    let (packet, packet_there) = seqpacket();
    let (udp, udp_there) = (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
    udp.connect(udp_there.local_addr().unwrap()).unwrap();
    vec![
        ("unix datagram", datagram.into(), datagram_there.into()),
        ("seqpacket", packet.into(), packet_there.into()),
        ("udp", udp.into(), udp_there.into()),
    ]
}

#[test]
fn a_message_without_bytes_is_not_the_end() {
    for (name, sender, receiver) in message_sockets() {
        let (sender, receiver) = (Socket::from(sender), Socket::from(receiver));
        receiver.set_nonblocking(true).unwrap();
        send_with_empty_ones(|message| assert_eq!(sender.send(message).unwrap(), message.len()));
        let mut rope = Rope::new();
        assert_eq!(rope.readv_from(&receiver).unwrap(), 3, "{name}");
        // At the limit as well.
        rope.set_limit(3);
        assert_eq!(rope.readv_from(&receiver).expect_err(name).kind(), ErrorKind::QuotaExceeded);
        rope.set_limit(6);
        assert_eq!(rope.readv_from(&receiver).unwrap(), 3, "{name}");
        assert_eq!(rope, b"onetwo", "{name}");
        assert_eq!(rope.readv_from(&receiver).expect_err(name).kind(), ErrorKind::WouldBlock, "{name}");
    }
}

#[test]
fn nor_if_the_peer_has_hung_up_behind_it() {
    let (sender, receiver) = seqpacket();
    send_with_empty_ones(|message| assert_eq!(sender.send(message).unwrap(), message.len()));
    drop(sender);
    let mut rope = Rope::new();
    while rope.readv_from(&receiver).unwrap() > 0 {}
    assert_eq!(rope, b"onetwo");
    assert_end("seqpacket", &mut rope, &receiver);
    assert!(Rope::new().recvmsg_from(&receiver, 0).unwrap().end);
}

#[test]
fn recvmsg_tells_messages_without_bytes_from_the_end() {
    for (name, sender, receiver) in message_sockets() {
        let (sender, receiver) = (Socket::from(sender), Socket::from(receiver));
        send_with_empty_ones(|message| assert_eq!(sender.send(message).unwrap(), message.len()));
        let mut rope = Rope::new();
        rope.set_limit(6);
        for len in [0, 0, 3, 0, 3, 0, 0] {
            let received = rope.recvmsg_from(&receiver, 0).unwrap();
            assert_eq!((received.bytes, received.end, received.truncated), (len, false, false), "{name}");
        }
        assert_eq!(rope, b"onetwo");
    }
    let (stream, there) = UnixStream::pair().unwrap();
    drop(stream);
    let mut rope = Rope::new();
    assert!(rope.recvmsg_from(&there, 0).unwrap().end);
    rope.set_limit(0);
    assert!(rope.recvmsg_from(&there, 0).unwrap().end);
}

#[test]
fn behind_the_end_a_descriptor_number_may_be_that_of_another_kind() {
    let mut rope = Rope::new();
    let (mut stream, there) = UnixStream::pair().unwrap();
    stream.write_all(b"stream").unwrap();
    drop(stream);
    while rope.readv_from(&there).unwrap() > 0 {}
    let number = there.as_raw_fd();
    drop(there);
    let (sender, receiver) = UnixDatagram::pair().unwrap();
    let again = [receiver.as_raw_fd(), sender.as_raw_fd()].contains(&number);
    sender.send(&pattern(1, 60_000)).unwrap();
    assert_eq!(rope.readv_from(&receiver).unwrap(), 60_000, "the number was used again: {again}");
}

/// Descriptors of which some exist on each machine, and what read(2) says of them: a rope says the same.
#[test]
fn any_other_descriptor_is_as_read_says() {
    let raw = |name: &'static str, fd: libc::c_long| (name, i32::try_from(fd).unwrap());
    let open = |path: &'static str| {
        let path_c = CString::new(path).unwrap();
        // SAFETY: a path that ends.
        (path, unsafe { libc::open(path_c.as_ptr(), libc::O_RDONLY | libc::O_NONBLOCK | libc::O_CLOEXEC) })
    };
    let paths = [
        "/dev/kmsg",
        "/dev/ptmx",
        "/dev/tty",
        "/dev/fuse",
        "/dev/net/tun",
        "/dev/hwrng",
        "/dev/rtc",
        "/proc/self/mem",
        "/proc/self/pagemap",
        "/proc/self/mounts",
        "/proc/self/cmdline",
        "/proc/self/environ",
        "/proc/self/auxv",
        "/proc/net/tcp",
        "/proc/kcore",
        "/proc/sys/kernel/ostype",
        "/proc/uptime",
        "/proc/kallsyms",
        "/sys/kernel/tracing/trace_pipe",
        "/sys/devices/system/cpu/cpu0/topology/core_cpus",
        "/sys/devices/system/node/node0/cpumap",
        "/sys/fs/cgroup/cgroup.procs",
        "/sys/class/net/lo/carrier",
        "/sys/kernel/btf/vmlinux",
        "/dev/shm",
        "/proc/self/fd",
        "/proc/self/ns/net",
        "/proc/self/stack",
        "/proc/self/syscall",
        "/sys/kernel/notes",
    ];
    // SAFETY: calls that make descriptors, without memory of this process or with memory that outlives them.
    let made = unsafe {
        let mut attr = [0u8; 128];
        attr[0] = 1; // a software event: the clock
        attr[4] = 64;
        let bpf: [u32; 18] = [2, 4, 4, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]; // an array of one number
        let inotify = libc::inotify_init1(libc::IN_NONBLOCK);
        libc::inotify_add_watch(inotify, c"/dev/shm".as_ptr(), libc::IN_OPEN);
        drop(fs::read_dir("/dev/shm"));
        let netlink = libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_NONBLOCK, 0);
        let mut request = [0u8; 20]; // RTM_GETLINK, a dump
        request[0] = 20;
        request[4] = 18;
        request[6..8].copy_from_slice(&0x301u16.to_ne_bytes());
        libc::send(netlink, request.as_ptr().cast(), 20, 0);
        let silent = libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_NONBLOCK, 0);
        let mut ring = [0u8; 120];
        [
            raw("inotify with events", inotify.into()),
            raw("inotify without", libc::inotify_init1(libc::IN_NONBLOCK).into()),
            raw("netlink with an answer", netlink.into()),
            raw("netlink without", silent.into()),
            raw("perf event", libc::syscall(libc::SYS_perf_event_open, attr.as_mut_ptr(), 0, -1, -1, 0)),
            raw("bpf map", libc::syscall(libc::SYS_bpf, 0, bpf.as_ptr(), 72)),
            raw("userfaultfd", libc::syscall(libc::SYS_userfaultfd, libc::O_NONBLOCK)),
            raw("memfd_secret", libc::syscall(libc::SYS_memfd_secret, 0)),
            raw("io_uring", libc::syscall(libc::SYS_io_uring_setup, 4, ring.as_mut_ptr())),
            raw("fanotify", libc::syscall(libc::SYS_fanotify_init, 2, 0)),
            raw("landlock", libc::syscall(libc::SYS_landlock_create_ruleset, [1u64].as_ptr(), 8, 0)),
            raw("vsock", libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM | libc::SOCK_NONBLOCK, 0).into()),
            raw("packet", libc::socket(libc::AF_PACKET, libc::SOCK_DGRAM | libc::SOCK_NONBLOCK, 0).into()),
            raw("alg", libc::socket(libc::AF_ALG, libc::SOCK_SEQPACKET | libc::SOCK_NONBLOCK, 0).into()),
            raw("message queue", {
                let name = CString::new(format!("/ropewalk-{}", std::process::id())).unwrap();
                let fd = libc::mq_open(
                    name.as_ptr(),
                    libc::O_RDWR | libc::O_CREAT | libc::O_NONBLOCK,
                    0o600,
                    std::ptr::null_mut::<libc::mq_attr>(),
                );
                libc::mq_unlink(name.as_ptr());
                fd.into()
            }),
        ]
    };
    // So that `trace_pipe` has something, where the test may.
    let _ = fs::write("/sys/kernel/tracing/trace_marker", "ropewalk");
    let mut tried = 0;
    for (name, fd) in made.into_iter().chain(paths.into_iter().map(open)) {
        if fd < 0 {
            println!("skipped: {name}, {}", io::Error::last_os_error());
            continue;
        }
        let fd = owned(fd);
        set_nonblocking(&fd, true);
        let mut rope = Rope::from(BYTES);
        rope.set_limit(BYTES.len());
        let at_limit = rope.readv_from(&fd).map_err(|error| (error.kind(), error.raw_os_error()));
        let mut into = [0u8; 4096];
        // SAFETY: as many bytes as there are.
        let count = unsafe { libc::read(fd.as_raw_fd(), into.as_mut_ptr().cast(), into.len()) };
        let error = io::Error::last_os_error();
        println!(
            "{name}: {at_limit:?}, read(2) {count} {}",
            if count < 0 { error.to_string() } else { String::new() }
        );
        match (count, at_limit) {
            (0, at_limit) => assert_eq!(at_limit, Ok(0), "{name}"),
            // What other processes trace may have come meanwhile.
            (1.., Err((ErrorKind::WouldBlock, _))) if name.ends_with("trace_pipe") => {}
            (1.., at_limit) => assert_eq!(at_limit, Err((ErrorKind::QuotaExceeded, None)), "{name}"),
            (_, Err((ErrorKind::QuotaExceeded, None))) => {} // the kernel does not tell
            (_, Err((kind, _))) => assert_eq!(kind, error.kind(), "{name}"),
            (_, at_limit) => panic!("{name}: {at_limit:?}, but read(2) says {error}"),
        }
        assert_eq!(rope, BYTES);
        tried += 1;
    }
    assert!(tried > 5);
}
