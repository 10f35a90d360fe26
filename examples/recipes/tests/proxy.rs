//! The proxy made of the recipe, under mio's edge-triggered poll, with load and with hostile peers.
#![allow(clippy::unwrap_used)] // a test may panic

#[path = "../../http_upload/tests/support/numbers.rs"]
mod numbers;

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use socket2::SockRef;

const MIB: usize = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(30);

/// A proxy that is killed when this is dropped, and where it forwards connections to.
struct Proxy {
    child: Child,
    address: SocketAddr,
    behind: TcpListener,
}

impl Proxy {
    fn start(options: &str) -> Proxy {
        Proxy::with_files(1000, options)
    }

    fn with_files(files: u32, options: &str) -> Proxy {
        let behind = TcpListener::bind("127.0.0.1:0").unwrap();
        let to = behind.local_addr().unwrap();
        let script = format!("ulimit -n {files}; exec \"$0\" --to {to} {options}");
        let mut child = Command::new("sh")
            .args(["-c", &script, env!("CARGO_BIN_EXE_proxy")])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("listening on ").expect(&line).parse().unwrap();
        Proxy { child, address, behind }
    }

    fn connect(&self) -> TcpStream {
        patient(TcpStream::connect(self.address).unwrap())
    }

    /// Both ends of a connection through it.
    fn pair(&self) -> (TcpStream, TcpStream) {
        (self.connect(), patient(self.behind.accept().unwrap().0))
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn patient(stream: TcpStream) -> TcpStream {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let at = |i: u64| (i.wrapping_add(seed << 40).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8;
    (0..len as u64).map(at).collect()
}

/// Sends `content` and ends the stream; meanwhile receives all that comes, resting after each piece.
fn exchange(stream: &TcpStream, content: &[u8], rest: Duration) -> Vec<u8> {
    thread::scope(|scope| {
        scope.spawn(|| {
            (&*stream).write_all(content).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
        });
        let (mut got, mut piece) = (Vec::new(), vec![0; 128 << 10]);
        loop {
            match (&*stream).read(&mut piece).unwrap() {
                0 => return got,
                count => got.extend_from_slice(&piece[..count]),
            }
            thread::sleep(rest);
        }
    })
}

fn assert_closed(stream: &mut TcpStream) {
    let mut rest = Vec::new();
    if let Err(error) = stream.read_to_end(&mut rest) {
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "not closed: {error}");
    }
}

#[test]
fn sixty_four_mebibytes_each_way() {
    let proxy = Proxy::start("");
    let (there, back) = (pattern(1, 64 * MIB), pattern(2, 64 * MIB));
    for round in 0..10 {
        let (client, server) = proxy.pair();
        thread::scope(|scope| {
            let client = scope.spawn(|| exchange(&client, &there, Duration::ZERO));
            assert!(exchange(&server, &back, Duration::ZERO) == there, "round {round}");
            assert!(client.join().unwrap() == back, "round {round}");
        });
    }
}

#[test]
fn fifty_connections_of_which_some_are_slow() {
    let proxy = Proxy::start("");
    let content = pattern(3, 2 * MIB);
    thread::scope(|scope| {
        for number in 0..50 {
            let (client, server) = proxy.pair();
            let rest = Duration::from_millis(if number % 5 == 0 { 5 } else { 0 });
            let content = &content;
            scope.spawn(move || assert!(exchange(&client, content, rest) == *content));
            scope.spawn(move || assert!(exchange(&server, content, Duration::ZERO) == *content));
        }
    });
}

#[test]
fn one_way_may_end_long_before_the_other() {
    let proxy = Proxy::start("");
    let (mut client, mut server) = proxy.pair();
    client.write_all(b"a question").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut question = String::new();
    server.read_to_string(&mut question).unwrap();
    assert_eq!(question, "a question");
    thread::sleep(Duration::from_millis(200));
    server.write_all(b"an answer").unwrap();
    drop(server);
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "an answer");
}

#[test]
fn peers_that_leave_end_their_connection_only() {
    let proxy = Proxy::start("");
    let (mut other_client, mut other_server) = proxy.pair();
    for _ in 0..20 {
        let (mut client, mut server) = proxy.pair();
        client.write_all(&pattern(4, 100_000)).unwrap();
        drop(client); // unread and unsent bytes: a reset, or the end
        assert_closed(&mut server);
        let (mut client, server) = proxy.pair();
        drop(server);
        assert_closed(&mut client);
    }
    other_client.write_all(b"still through").unwrap();
    let mut got = [0; 13];
    other_server.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"still through");
}

#[test]
fn a_stream_that_breaks_off_does_not_end_for_the_other_side() {
    let proxy = Proxy::start("");
    for from_client in [true, false] {
        let (client, server) = proxy.pair();
        let (mut from, to) = if from_client { (client, server) } else { (server, client) };
        from.write_all(b"half of").unwrap();
        (&to).read_exact(&mut [0; 7]).unwrap();
        SockRef::from(&from).set_linger(Some(Duration::ZERO)).unwrap();
        drop(from);
        assert_reset(&to);
    }
}

#[test]
fn a_connection_that_is_given_up_does_not_end_for_its_sides() {
    let proxy = Proxy::start("--idle 1");
    let (mut client, server) = proxy.pair();
    client.write_all(b"half of").unwrap();
    (&server).read_exact(&mut [0; 7]).unwrap();
    assert_reset(&server);
    assert_reset(&client);
}

#[test]
fn a_proxy_that_is_killed_ends_no_stream() {
    let proxy = Proxy::start("");
    let (mut client, server) = proxy.pair();
    client.write_all(b"half of").unwrap();
    (&server).read_exact(&mut [0; 7]).unwrap();
    drop(proxy);
    assert_reset(&server);
    assert_reset(&client);
}

#[track_caller]
fn assert_reset(mut stream: &TcpStream) {
    let read = stream.read(&mut [0]);
    assert_eq!(read.map_err(|error| error.kind()), Err(ErrorKind::ConnectionReset));
}

#[test]
fn no_server_behind_it() {
    let mut proxy = Proxy::start("");
    // Its address is free from here on.
    let address = proxy.behind.local_addr().unwrap();
    proxy.behind = TcpListener::bind("127.0.0.1:0").unwrap();
    assert_closed(&mut proxy.connect());
    let behind = TcpListener::bind(address).unwrap();
    let (mut client, (mut server, _)) = (proxy.connect(), behind.accept().unwrap());
    client.write_all(b"now").unwrap();
    server.read_exact(&mut [0; 3]).unwrap();
}

#[test]
fn who_takes_nothing_is_not_read_for_and_is_closed() {
    let proxy = Proxy::start("--idle 2");
    let (client, mut server) = proxy.pair();
    client.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    let (content, mut sent) = (pattern(5, MIB), 0);
    while let Ok(count) = (&client).write(&content) {
        sent += count;
        assert!(sent < 64 * MIB, "it reads on though the other side takes nothing");
    }
    let (mut other_client, mut other_server) = proxy.pair();
    other_client.write_all(b"meanwhile").unwrap();
    other_server.read_exact(&mut [0; 9]).unwrap();
    let begin = Instant::now();
    assert_closed(&mut server);
    assert!(begin.elapsed() < Duration::from_secs(10));
}

#[test]
fn descriptors_run_out() {
    let proxy = Proxy::with_files(30, "--idle 1");
    let idle: Vec<_> = (0..40).map(|_| proxy.connect()).collect();
    thread::sleep(Duration::from_millis(1500));
    let begin = Instant::now();
    loop {
        // Those that were refused were closed; in the end there is room.
        let mut client = proxy.connect();
        proxy.behind.set_nonblocking(false).unwrap();
        let sent = client.write_all(b"in the end").is_ok();
        let mut server = patient(proxy.behind.accept().unwrap().0);
        if sent && server.read_exact(&mut [0; 10]).is_ok() {
            break;
        }
        assert!(begin.elapsed() < PATIENCE);
    }
    drop(idle);
}

#[test]
fn the_command_line() {
    let run = |args: &[&str]| Command::new(env!("CARGO_BIN_EXE_proxy")).args(args).output().unwrap();
    assert!(run(&["--help"]).status.success());
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let refused = run(&["--listen", &address, "--to", &address]);
    let message = String::from_utf8(refused.stderr).unwrap();
    assert_eq!((refused.status.code(), message.lines().count()), (Some(1), 1), "{message}");
    assert!(message.starts_with("proxy: cannot listen on ") && message.contains("free port: "), "{message}");
}

#[test]
fn numbers_that_mean_nothing() {
    let program = env!("CARGO_BIN_EXE_proxy");
    numbers::assert_refused(program, &["--to=127.0.0.1:1"], &["--max-connections", "--idle"], &[]);
}
