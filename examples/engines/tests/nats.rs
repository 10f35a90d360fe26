//! NATS, against a server that the test starts: `nats-server` in `PATH`, or beside `/usr/sbin`. Without one the tests
//! say so and pass, unless `CI` is set.
#![allow(clippy::unwrap_used)] // a test may panic

mod support;

use std::io::{BufRead, BufReader, ErrorKind};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use async_nats::Client;
use engines::nats::{publish, receive};
use ropewalk::{Pool, Rope};
use support::{lie_in, pattern, received};

/// A server on a free port of loopback, ended with the test.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start() -> Option<(Server, String)> {
    let path = format!("{}:/usr/sbin:/usr/local/sbin", std::env::var("PATH").unwrap_or_default());
    let mut command = Command::new("nats-server");
    command.args(["--addr", "127.0.0.1", "--port", "-1"]).env("PATH", path);
    let mut child = match command.stderr(Stdio::piped()).spawn() {
        Ok(child) => child,
        Err(error) => {
            assert!(std::env::var_os("CI").is_none(), "nats-server cannot be started: {error}");
            eprintln!("skipped: nats-server cannot be started: {error}");
            return None;
        }
    };
    let log = BufReader::new(child.stderr.take().unwrap());
    let server = Server(child);
    let (tell, told) = mpsc::channel();
    // Reads on, so that the server never blocks on its log.
    std::thread::spawn(move || {
        for line in log.lines().map_while(Result::ok) {
            if let Some((_, address)) = line.split_once("Listening for client connections on ") {
                let _ = tell.send(address.trim().to_owned());
            }
        }
    });
    let address = told.recv_timeout(Duration::from_secs(60)).unwrap();
    Some((server, address))
}

async fn connect() -> Option<(Server, Client)> {
    let (server, address) = start()?;
    Some((server, async_nats::connect(address).await.unwrap()))
}

#[tokio::test(flavor = "multi_thread")]
async fn payloads_both_ways() {
    let Some((_server, client)) = connect().await else { return };
    let pool = Pool::new().unwrap();
    let mut messages = client.subscribe("payloads").await.unwrap();
    client.flush().await.unwrap();
    for len in [0, 1, 1 << 20, (5 << 20) + 3] {
        let bytes = pattern(len);
        publish(&client, "payloads", received(&pool, &bytes)).await.unwrap();
        let rope = receive(&mut messages, len).await.unwrap();
        assert_eq!(rope, bytes);
        let max = client.server_info().max_payload - 64;
        assert_eq!(rope.num_segments(), len.div_ceil(max)); // the messages, as they came
    }
    assert_eq!(pool.stats().bytes_copied, 0);
    publish(&client, "payloads", Rope::from("three")).await.unwrap();
    assert_eq!(receive(&mut messages, 4).await.unwrap_err().kind(), ErrorKind::QuotaExceeded);
}

#[test]
fn a_part_that_is_contiguous_is_not_copied() {
    let mut rope = received(&Pool::new().unwrap(), &pattern(5 << 20));
    let kept = rope.clone();
    while !rope.is_empty() {
        let part = rope.split_to(rope.len().min(1 << 20));
        assert!(lie_in(&kept, part.chunks()));
        let part = bytes::Bytes::from(part);
        let range =
            kept.chunks().next().unwrap().as_ptr()..kept.chunks().next_back().unwrap().as_ptr_range().end;
        assert!(range.contains(&part.as_ptr()));
    }
}
