//! The program `handover`, as it is run by hand.
#![allow(clippy::unwrap_used)] // a test may panic

#[path = "../../http_upload/tests/support/numbers.rs"]
mod numbers;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use xxhash_rust::xxh3::xxh3_64;

fn handover(args: &[&str]) -> Output {
    Command::new("timeout").args(["120", env!("CARGO_BIN_EXE_handover")]).args(args).output().unwrap()
}

/// A server that ends with the test.
struct Server(Child, String);

impl Server {
    fn start(args: &[&str]) -> Server {
        let mut command = Command::new(env!("CARGO_BIN_EXE_handover"));
        command.args(["serve", "--listen", "127.0.0.1:0"]).args(args);
        let mut process = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().rsplit(' ').next().unwrap().to_owned();
        Server(process, address)
    }

    fn upload(&self, payload: &[u8]) -> String {
        let mut socket = TcpStream::connect(&self.1).unwrap();
        // A server that refuses the rest closes the connection.
        let _ = socket.write_all(payload).and_then(|()| socket.shutdown(Shutdown::Write));
        let mut answer = String::new();
        let _ = socket.read_to_string(&mut answer);
        // The time behind a hash is not looked at.
        match answer.trim().split_once(' ') {
            Some((hash, _)) if hash.len() == 16 => hash.to_owned(),
            _ => answer.trim().to_owned(),
        }
    }

    fn worker(&self) -> String {
        let server = self.0.id();
        let children = fs::read_to_string(format!("/proc/{server}/task/{server}/children")).unwrap();
        children.split_whitespace().next().unwrap_or_default().to_owned()
    }

    fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.0.id())).unwrap().count()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at % 251) as u8).collect()
}

fn hash(payload: &[u8]) -> String {
    format!("{:016x}", xxh3_64(payload))
}

#[test]
fn both_ways_hash_the_same_and_are_measured() {
    let output = handover(&["--size", "3000001", "--uploads", "3"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text} {}", String::from_utf8_lossy(&output.stderr));
    for way in ["sealed", "socket"] {
        let line = text.lines().find(|line| line.starts_with(way)).unwrap();
        assert!(line.ends_with("match"), "{text}");
    }
}

#[test]
fn uploads_of_any_length_at_the_same_time() {
    for way in ["sealed", "socket"] {
        let server = Server::start(&["--way", way]);
        let payload = pattern(2_000_000);
        assert_eq!(server.upload(&payload), hash(&payload));
        let before = server.descriptors();
        thread::scope(|scope| {
            for len in [0, 1, 4096, 4097, 8192, 8193, 100_000, 2_000_000] {
                let (server, payload) = (&server, &payload[..len]);
                scope.spawn(move || assert_eq!(server.upload(payload), hash(payload), "{len} bytes, {way}"));
            }
        });
        // Connections are closed by their threads, after the answer.
        for _ in 0..1000 {
            if server.descriptors() <= before {
                break;
            }
            thread::sleep(Duration::from_millis(10));
        }
        assert!(server.descriptors() <= before);
    }
}

#[test]
fn a_worker_that_dies_is_replaced() {
    for way in ["sealed", "socket"] {
        let server = Server::start(&["--way", way]);
        let payload = pattern(300_000);
        for _ in 0..3 {
            assert_eq!(server.upload(&payload), hash(&payload));
            let worker = server.worker();
            assert!(Command::new("kill").args(["-9", &worker]).status().unwrap().success());
            // The upload that meets the dead worker fails, and says so; the next one does not.
            let answer = server.upload(&payload);
            assert!(answer.starts_with("error: ") || answer == hash(&payload), "{answer}");
        }
        assert_eq!(server.upload(&payload), hash(&payload));
    }
}

#[test]
fn clients_are_bounded() {
    let server = Server::start(&["--max", "1MB", "--time", "1"]);
    let answer = server.upload(&pattern(1_000_001));
    assert!(answer.is_empty() || answer.starts_with("error: "), "{answer}");
    let mut silent = TcpStream::connect(&server.1).unwrap();
    silent.write_all(b"a part").unwrap();
    let mut answer = String::new();
    silent.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("error: "), "{answer}");
    // A byte now and then does not keep a connection.
    let mut slow = TcpStream::connect(&server.1).unwrap();
    slow.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let begin = Instant::now();
    while slow.peek(&mut [0]).is_err() {
        let _ = slow.write_all(b".");
        assert!(begin.elapsed() < Duration::from_secs(30), "it is still received from");
    }
    assert_eq!(server.upload(b"another"), hash(b"another"));
}

#[test]
fn errors_are_one_line() {
    assert!(handover(&["--help"]).status.success());
    let server = Server::start(&[]);
    for (refused, why) in [
        (handover(&["serve", "--listen", &server.1]), "cannot listen"),
        (handover(&["--size", "16EiB"]), "smaller --size"),
    ] {
        let message = String::from_utf8(refused.stderr).unwrap();
        assert_eq!((refused.status.code(), message.lines().count()), (Some(1), 1), "{message}");
        assert!(message.starts_with("handover: ") && message.contains(why), "{message}");
    }
}

#[test]
fn numbers_that_mean_nothing() {
    let program = env!("CARGO_BIN_EXE_handover");
    numbers::assert_refused(program, &["serve", "--listen", "127.0.0.1:0"], &["--time"], &["--max"]);
}
