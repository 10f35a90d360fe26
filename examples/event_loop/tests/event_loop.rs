//! The example `event_loop` and its peers, friendly and hostile, each test with a server of its own.
#![allow(clippy::unwrap_used)] // a test may panic

#[path = "../../../tests/support/process.rs"]
mod process;

#[path = "../../http_upload/tests/support/numbers.rs"]
mod numbers;

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use socket2::SockRef;

/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(20);

const MIB: u64 = 1 << 20;

/// What a server may have in memory beside its pool: code, stacks, the heap.
const OVERHEAD: u64 = 8 * MIB;

/// A server that is killed when this is dropped.
struct Server {
    child: Child,
    address: SocketAddr,
    log: Arc<Mutex<Vec<String>>>,
}

impl Server {
    fn start(options: &str) -> Server {
        let mut command = Command::new(env!("CARGO_BIN_EXE_event_loop"));
        Server::of(command.arg("serve").args(options.split_whitespace()))
    }

    /// A server that may open `files` files.
    fn with_few_files(files: u32) -> Server {
        let mut command = Command::new("sh");
        Server::of(
            command
                .args(["-c", &format!("ulimit -n {files}; exec \"$0\" serve")])
                .arg(env!("CARGO_BIN_EXE_event_loop")),
        )
    }

    fn of(command: &mut Command) -> Server {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let (stderr, lines) = (BufReader::new(child.stderr.take().unwrap()), Arc::clone(&log));
        thread::spawn(move || {
            stderr.lines().map_while(Result::ok).for_each(|line| lines.lock().unwrap().push(line))
        });
        let mut first = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut first).unwrap();
        let address = first.strip_prefix("listening on ").and_then(|address| address.trim().parse().ok());
        let address = address.unwrap_or_else(|| panic!("{first:?} {:?}", log.lock().unwrap()));
        Server { child, address, log }
    }

    fn connect(&self) -> TcpStream {
        let peer = TcpStream::connect_timeout(&self.address, PATIENCE).unwrap();
        peer.set_nodelay(true).unwrap();
        peer.set_read_timeout(Some(PATIENCE)).unwrap();
        peer.set_write_timeout(Some(PATIENCE)).unwrap();
        peer
    }

    /// How many lines of the log have `words` in them.
    fn count(&self, words: &str) -> usize {
        self.log.lock().unwrap().iter().filter(|line| line.contains(words)).count()
    }

    /// Waits for the line that says that `peer` was refused, and why.
    #[track_caller]
    fn expect_refusal(&self, peer: &TcpStream, reason: &str) {
        self.expect_refusal_of(peer.local_addr().unwrap(), &[reason]);
    }

    /// That it was for one of these reasons. An earlier peer may have had the same port, and another reason.
    #[track_caller]
    fn expect_refusal_of(&self, peer: SocketAddr, reasons: &[&str]) {
        let begin = format!("refused {peer}: ");
        let is_that = |line: &String| {
            line.strip_prefix(&begin).is_some_and(|why| reasons.iter().any(|reason| why.contains(reason)))
        };
        wait_for(|| self.log.lock().unwrap().iter().any(is_that).then_some(()));
    }

    /// A figure of the last line of statistics.
    fn figure(&self, name: &str) -> u64 {
        wait_for(|| self.figures(name).pop())
    }

    /// A figure of all lines of statistics so far.
    fn figures(&self, name: &str) -> Vec<u64> {
        let log = self.log.lock().unwrap();
        let stats = log.iter().filter_map(|line| line.strip_prefix("stats "));
        let named = |figure: &str| figure.strip_prefix(name)?.strip_prefix('=')?.parse().ok();
        stats.map(|line| line.split(' ').find_map(named).unwrap()).collect()
    }

    fn memory(&self) -> u64 {
        process::memory(self.child.id())
    }

    /// Returns the peak of memory while peers `attack`. Fails unless connections made before and meanwhile are served.
    #[track_caller]
    fn peak_under(&self, attack: impl FnOnce() + Send) -> u64 {
        let mut honest = self.connect();
        let mut peak = 0;
        thread::scope(|scope| {
            let attack = scope.spawn(attack);
            loop {
                let last = attack.is_finished();
                assert_echo(&mut honest, b"not harmed");
                self.assert_serves();
                peak = peak.max(self.memory());
                if last {
                    break;
                }
                thread::sleep(Duration::from_millis(5));
            }
        });
        peak
    }

    /// Waits until nothing is held for anybody any more; needs `--stats`.
    fn wait_until_idle(&self) {
        wait_for(|| (self.figure("connections") == 0 && self.figure("in_use") == 0).then_some(()));
    }

    /// That a new peer is served now.
    #[track_caller]
    fn assert_serves(&self) {
        assert_echo(&mut self.connect(), b"still there?");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself; that is for the test to notice.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            println!("the server's log: {:#?}", self.log.lock().unwrap());
        }
    }
}

#[track_caller]
fn wait_for<T>(mut what: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(found) = what() {
            return found;
        }
        assert!(begin.elapsed() < PATIENCE, "it did not happen within {PATIENCE:?}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Bytes in which no page repeats.
fn pattern(len: usize) -> Vec<u8> {
    (0..len as u64).map(|i| (i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8).collect()
}

fn length(len: usize) -> [u8; 8] {
    (len as u64).to_be_bytes()
}

fn message(body: &[u8]) -> Vec<u8> {
    [&length(body.len()), body].concat()
}

/// Sends one message and compares its echo.
#[track_caller]
fn assert_echo(peer: &mut TcpStream, body: &[u8]) {
    let message = message(body);
    peer.write_all(&message).unwrap();
    assert_received(peer, &message);
}

#[track_caller]
fn assert_received(peer: &mut TcpStream, expected: &[u8]) {
    let mut got = vec![0; expected.len()];
    peer.read_exact(&mut got).unwrap();
    assert!(got == expected, "another echo of {} bytes", expected.len());
}

/// That the server has closed the connection, politely or not.
#[track_caller]
fn assert_closed(peer: &mut TcpStream) {
    match peer.read(&mut [0]) {
        Ok(0) => {}
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        other => panic!("not closed: {other:?}"),
    }
}

/// Sends until the server has read nothing for a second, or closes the connection.
fn send_until_stuck(peer: &mut TcpStream, bytes: &[u8]) {
    peer.set_write_timeout(Some(Duration::from_secs(1))).unwrap();
    let mut sent = 0;
    loop {
        match peer.write(&bytes[sent % bytes.len()..]) {
            Ok(count) => sent += count,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::ConnectionReset) => {
                return;
            }
            Err(error) => panic!("after {sent} bytes: {error}"),
        }
        assert!(sent < 200 << 20, "the server goes on reading though its echo is not read");
    }
}

/// As many files as this process may open.
fn allow_many_files() -> usize {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    usize::try_from(hard).unwrap()
}

#[test]
fn messages_of_all_sizes_come_back() {
    let server = Server::start("");
    let mut peer = server.connect();
    for len in [0, 1, 64 << 10, 20 << 20, 0, 4096, 1_000_003] {
        assert_echo(&mut peer, &pattern(len));
    }
}

#[test]
fn a_message_may_come_byte_by_byte() {
    let server = Server::start("");
    let mut peer = server.connect();
    let message = message(&pattern(50));
    for byte in &message {
        peer.write_all(&[*byte]).unwrap();
        thread::sleep(Duration::from_millis(1));
    }
    assert_received(&mut peer, &message);
}

#[test]
fn pipelined_messages_come_back_in_order() {
    let server = Server::start("");
    let mut peer = server.connect();
    let stream: Vec<u8> = (0..1000).flat_map(|len| message(&pattern(len))).collect();
    peer.write_all(&stream).unwrap();
    assert_received(&mut peer, &stream);
}

#[test]
fn a_million_empty_messages_take_little_memory() {
    let server = Server::start("--capacity 64MiB --max-message 16MiB --stats 1");
    let mut peer = server.connect();
    let mut sender = peer.try_clone().unwrap();
    let peak = server.peak_under(move || {
        let sending = thread::spawn(move || sender.write_all(&vec![0; 8_000_000]).unwrap());
        assert_received(&mut peer, &vec![0; 8_000_000]);
        sending.join().unwrap();
    });
    println!("{peak} bytes of memory during a million empty messages");
    assert!(peak < OVERHEAD, "{peak} bytes");
    assert_eq!(server.count("refused 127"), 0);
    server.wait_until_idle();
}

#[test]
fn half_a_stream_is_answered() {
    let server = Server::start("");
    let mut peer = server.connect();
    let stream = [message(b"one"), message(&pattern(100_000))].concat();
    peer.write_all(&stream).unwrap();
    peer.shutdown(Shutdown::Write).unwrap();
    assert_received(&mut peer, &stream);
    assert_closed(&mut peer);

    let mut peer = server.connect();
    peer.write_all(&[&message(b"whole")[..], &length(1000), b"not whole"].concat()).unwrap();
    peer.shutdown(Shutdown::Write).unwrap();
    assert_received(&mut peer, &message(b"whole"));
    assert_closed(&mut peer);
    server.expect_refusal(&peer, "inside a message: 17 bytes arrived, 991 are missing");
    assert_eq!(server.count("refused 127"), 1);
}

#[test]
fn many_halves_of_streams_leave_nothing_behind() {
    let server = Server::start("--stats 1");
    let half = [&message(b"whole")[..], &length(1 << 20), &pattern(1 << 16)].concat();
    let peak = server.peak_under(|| {
        for _ in 0..200 {
            let mut peer = server.connect();
            peer.write_all(&half).unwrap();
            peer.shutdown(Shutdown::Write).unwrap();
            assert_received(&mut peer, &message(b"whole"));
            assert_closed(&mut peer);
            server.expect_refusal(&peer, "inside a message: 65544 bytes arrived, 983040 are missing");
        }
    });
    assert!(peak < OVERHEAD, "{peak} bytes");
    assert_eq!(server.count("refused 127"), 200);
    server.wait_until_idle();
}

#[test]
fn a_bad_length_is_refused_and_other_peers_go_on() {
    let server = Server::start("--max-message 1MiB");
    let mut other = server.connect();
    other.write_all(&length(5)).unwrap();
    let peak = server.peak_under(|| {
        for bad in [1 << 63, (1 << 20) + 1, u64::MAX].into_iter().cycle().take(300) {
            let mut peer = server.connect();
            peer.write_all(&[&message(b"good")[..], &bad.to_be_bytes()].concat()).unwrap();
            assert_received(&mut peer, &message(b"good"));
            assert_closed(&mut peer);
            server.expect_refusal(&peer, &format!("a message of {bad} bytes, 1048576 are allowed"));
        }
    });
    assert!(peak < OVERHEAD, "{peak} bytes");
    assert_eq!(server.count("refused 127"), 300);
    other.write_all(b"other").unwrap();
    assert_received(&mut other, &message(b"other"));
    assert_echo(&mut other, &pattern(1 << 20));
}

#[test]
fn a_length_that_is_announced_takes_no_memory() {
    let server = Server::start("--capacity 512MiB --max-message 128MiB --idle 1 --stats 1");
    let mut peers: Vec<_> = (0..200).map(|_| server.connect()).collect();
    let peak = server.peak_under(|| {
        peers.iter_mut().for_each(|peer| peer.write_all(&length(100 << 20)).unwrap());
        peers.iter_mut().for_each(assert_closed);
    });
    println!("{peak} bytes of memory while 200 messages of 100 MiB do not come");
    assert!(peak < OVERHEAD, "{peak} bytes");
    peers
        .iter()
        .for_each(|peer| server.expect_refusal(peer, "8 bytes of a message arrived, 104857600 are missing"));
    server.wait_until_idle();
}

#[test]
fn who_does_not_get_on_is_closed() {
    let server = Server::start("--idle 1");
    let mut quiet = server.connect();
    assert_echo(&mut quiet, b"nothing is owed now");

    let mut half_a_length = server.connect();
    half_a_length.write_all(&[0; 4]).unwrap();
    let mut no_body = server.connect();
    no_body.write_all(&length(100 << 20)).unwrap();
    let mut trickle = server.connect();
    trickle.write_all(&length(1000)).unwrap();
    let begin = Instant::now();
    let peak = server.peak_under(|| {
        while trickle.write_all(b".").is_ok() {
            assert!(begin.elapsed() < PATIENCE, "a byte now and then keeps a connection open");
            thread::sleep(Duration::from_millis(50));
        }
    });

    assert!(peak < OVERHEAD, "{peak} bytes");
    assert_closed(&mut half_a_length);
    assert_closed(&mut no_body);
    server.expect_refusal(&half_a_length, "4 bytes of a message arrived, 4 are missing");
    server.expect_refusal(&no_body, "8 bytes of a message arrived, 104857600 are missing");
    server.expect_refusal(&trickle, "too slow");
    assert_echo(&mut quiet, b"and so it stays open");
}

#[test]
fn other_peers_go_on_after_a_reset_in_the_middle() {
    let server = Server::start("--stats 1");
    let mut other = server.connect();
    other.write_all(&length(5)).unwrap();
    let half = [&length(1 << 20)[..], &pattern(1 << 19)].concat();
    let peak = server.peak_under(|| {
        for _ in 0..100 {
            let mut peer = server.connect();
            peer.write_all(&half).unwrap();
            let address = peer.local_addr().unwrap();
            SockRef::from(&peer).set_linger(Some(Duration::ZERO)).unwrap();
            drop(peer);
            server.expect_refusal_of(address, &["Connection reset"]);
        }
    });
    // A few at once hold something, not all one hundred.
    assert!(peak < 16 * MIB + OVERHEAD, "{peak} bytes");
    assert_eq!(server.count("refused 127"), 100);
    other.write_all(b"other").unwrap();
    assert_received(&mut other, &message(b"other"));
    drop(other);
    server.wait_until_idle();
}

#[test]
fn ten_thousand_connections_at_once() {
    let files = allow_many_files();
    let count = 10_000.min(files.saturating_sub(500));
    if count < 10_000 {
        println!("only {count} connections: no more than {files} files may be open here");
    }
    // Those of `peak_under` come on top.
    let server = Server::start("--max-connections 10010 --stats 1");
    let mut peers = Vec::new();
    let peak = server.peak_under(|| {
        peers.extend((0..count).map(|_| server.connect()));
        for (index, peer) in peers.iter_mut().enumerate() {
            peer.write_all(&message(&index.to_be_bytes())).unwrap();
        }
        for (index, peer) in peers.iter_mut().enumerate() {
            assert_received(peer, &message(&index.to_be_bytes()));
        }
    });
    println!("{count} connections, {peak} bytes of memory at the peak");
    assert!(peak < OVERHEAD + count as u64 * 8192, "{peak} bytes");
    assert_eq!(server.count("refused 127"), 0);
    drop(peers);
    server.wait_until_idle();
}

#[test]
fn more_connections_than_allowed_are_refused() {
    let server = Server::start("--max-connections 2");
    let mut served = [server.connect(), server.connect()];
    served.iter_mut().for_each(|peer| assert_echo(peer, b"served"));
    let mut third = server.connect();
    assert_closed(&mut third);
    server.expect_refusal(&third, "2 connections are being served");
    served.iter_mut().for_each(|peer| assert_echo(peer, b"still served"));
    drop(served);
    wait_for(|| {
        let mut peer = server.connect();
        peer.write_all(&message(b"")).and_then(|()| peer.read_exact(&mut [0; 8])).ok()
    });
}

#[test]
fn when_files_run_out_the_others_wait() {
    let server = Server::with_few_files(32);
    let mut peers: Vec<_> = (0..60).map(|_| server.connect()).collect();
    peers.iter_mut().for_each(|peer| peer.write_all(&message(b"sooner or later")).unwrap());
    wait_for(|| (server.count("cannot accept now") > 0).then_some(()));
    let before = process::cpu_ticks(server.child.id());
    thread::sleep(Duration::from_millis(500));
    assert!(process::cpu_ticks(server.child.id()) - before < 20, "it is busy with waiting");
    for mut peer in peers {
        // Each that goes makes room for one that waits.
        assert_received(&mut peer, &message(b"sooner or later"));
    }
    assert_eq!(server.count("refused 127"), 0);
}

#[test]
fn who_never_reads_takes_no_more_than_is_allowed() {
    const CAPACITY: u64 = 48 * MIB;
    const IDLE: Duration = Duration::from_secs(4);
    let server = Server::start("--capacity 48MiB --max-message 4MiB --idle 4 --stats 1");
    let mut greedy: Vec<_> = (0..12).map(|_| server.connect()).collect();
    let large = message(&pattern(4 << 20));
    let mut most = 0;
    thread::scope(|scope| {
        let begin = Instant::now();
        for peer in &mut greedy {
            scope.spawn(|| send_until_stuck(peer, &large));
        }
        while begin.elapsed() < IDLE / 2 {
            most = most.max(server.memory());
            server.assert_serves();
        }
        assert!(begin.elapsed() < IDLE, "others had to wait until the greedy ones were closed");
    });
    println!("{most} bytes of memory while 12 peers do not read");
    assert!(most < CAPACITY + OVERHEAD, "{most} bytes");
    let reasons = ["bytes of its echo are not read", "bytes of a message arrived"];
    greedy.iter().for_each(|peer| server.expect_refusal_of(peer.local_addr().unwrap(), &reasons));
    assert_eq!(server.count("refused 127"), greedy.len());
    assert!(server.count(reasons[0]) > 0);
    server.wait_until_idle();
    server.assert_serves();
}

/// If some MiB waited there, a peer could read much more than 64 KiB in each `--idle` without making it writable.
#[test]
fn what_a_peer_does_not_read_waits_in_the_rope_and_not_in_the_socket() {
    let server = Server::start("--idle 2");
    let mut peer = server.connect();
    peer.write_all(&message(&pattern(32 << 20))).unwrap();
    server.expect_refusal(&peer, "bytes of its echo are not read");
    let received = peer.peek(&mut vec![0; 33 << 20]).unwrap(); // what lies in its own socket
    let mut rest = Vec::new();
    let _ = peer.read_to_end(&mut rest); // it may be a reset
    let waited = rest.len() - received;
    assert!(waited < 1 << 20, "{waited} bytes waited in the server's socket, {received} in the peer's");
}

#[test]
fn small_echoes_that_are_not_read_are_bounded_too() {
    // Time enough to fill all four, however busy the machine is, before the first one is closed.
    let server = Server::start("--idle 10 --stats 1");
    let mut greedy: Vec<_> = (0..4).map(|_| server.connect()).collect();
    let empty = vec![0; 80_000];
    let peak = server.peak_under(|| {
        thread::scope(|scope| {
            for peer in &mut greedy {
                scope.spawn(|| send_until_stuck(peer, &empty));
            }
        });
    });
    // A MiB of echo each and what one turn adds to it; and as much again of the front message, which one turn received,
    // that is sent already: its pages are freed together. What arrived in turns with that of others may have been copied
    // out of the pool.
    let bound = 4 * (MIB + 2 * (256 << 10));
    let held = || {
        server.figures("in_use").into_iter().zip(server.figures("copies")).map(|(used, copies)| used + copies)
    };
    let most = wait_for(|| held().max().filter(|&most| most >= 4 * MIB));
    println!("{most} bytes held while 4 peers do not read, {peak} bytes of memory");
    assert!(most <= bound, "{most} of {bound} bytes");
    assert!(peak < bound + OVERHEAD, "{peak} bytes");
    greedy.iter().for_each(|peer| server.expect_refusal(peer, "bytes of its echo are not read"));
    server.wait_until_idle();
}

#[test]
fn messages_that_do_not_fit_together_take_turns() {
    const CAPACITY: u64 = 24 * MIB;
    let server = Server::start("--capacity 24MiB --max-message 8MiB --idle 60 --stats 1");
    let body = pattern(8 << 20);
    let peak = server.peak_under(|| {
        thread::scope(|scope| {
            for mut peer in (0..8).map(|_| server.connect()) {
                let body = &body;
                scope.spawn(move || assert_echo(&mut peer, body));
            }
        });
    });
    println!("{peak} bytes of memory at the peak for 8 messages of 8 MiB");
    assert!(peak < CAPACITY + OVERHEAD, "{peak} bytes");
    assert_eq!(server.count("refused 127"), 0);
    server.wait_until_idle();
}

#[test]
fn halves_of_messages_cannot_hold_all_memory_for_ever() {
    const CAPACITY: u64 = 24 * MIB;
    let server = Server::start("--capacity 24MiB --max-message 8MiB --idle 1 --stats 1");
    let most_of_it = [&length(8 << 20)[..], &pattern(7 << 20)].concat();
    let mut stalled: Vec<_> = (0..6).map(|_| server.connect()).collect();
    let peak = server.peak_under(|| {
        thread::scope(|scope| {
            for peer in &mut stalled {
                let most_of_it = &most_of_it;
                // Where there is no room the server reads nothing, and in the end it closes.
                scope.spawn(move || -> io::Result<()> { peer.write_all(most_of_it) });
            }
            let mut honest = server.connect();
            assert_echo(&mut honest, &pattern(8 << 20));
        });
    });
    assert!(peak < CAPACITY + OVERHEAD, "{peak} bytes");
    let reasons = ["too slow: ", "no room within "];
    stalled.iter().for_each(|peer| server.expect_refusal_of(peer.local_addr().unwrap(), &reasons));
    assert_eq!(server.count("refused 127"), stalled.len());
    server.wait_until_idle();
}

#[test]
fn the_command_line() {
    let run = |args: &[&str]| Command::new(env!("CARGO_BIN_EXE_event_loop")).args(args).output().unwrap();
    assert!(run(&["--help"]).status.success() && run(&["serve", "--help"]).status.success());
    let server = Server::start("");
    let taken = server.address.to_string();
    for (args, why) in [
        (&["serve", "--listen", &taken][..], "in use"),
        (&["serve", "--capacity", "1B"], "less than three messages"),
    ] {
        let refused = run(args);
        let message = String::from_utf8(refused.stderr).unwrap();
        assert_eq!((refused.status.code(), message.lines().count()), (Some(1), 1), "{args:?} {message}");
        assert!(
            message.starts_with("event_loop: cannot serve on 127.0.0.1:") && message.contains(why),
            "{message}"
        );
    }
}

#[test]
fn numbers_that_mean_nothing() {
    let program = env!("CARGO_BIN_EXE_event_loop");
    numbers::assert_refused(
        program,
        &["serve"],
        &["--max-connections", "--capacity", "--idle", "--stats"],
        &["--max-message"],
    );
}
