//! Peers that do less or more than they should, a server that runs out of something, and its end.
#![allow(clippy::unwrap_used)] // a test may panic

#[path = "support/numbers.rs"]
mod numbers;
mod support;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use ropewalk::Rope;
use support::{MIB, PATIENCE, Reply, Server, assert_closed, etag, hash, pattern, request};

/// Announces a body and sends the first bytes of it.
fn upload(server: &Server, announced: usize, sent: &[u8]) -> TcpStream {
    let mut peer = server.connect();
    let head = format!("PUT /hostile HTTP/1.1\r\nContent-Length: {announced}\r\n");
    peer.write_all(&request(&head, sent)).unwrap();
    peer
}

#[test]
fn bodies_that_are_announced_and_do_not_come_hold_nothing() {
    let server = Server::start("8MiB 8MiB --stall 3 --patience 8");
    server.put("first", &pattern(100_000));
    // Half of them fit, if they came; the other half has to wait for room first.
    let announced = [4 * MIB, 8 * MIB].into_iter().cycle().take(20).enumerate();
    let mut silent: Vec<_> = announced.map(|(sent, len)| upload(&server, len, &pattern(sent))).collect();
    server.wait_until(|server| server.figure("uploads_waiting") == 10);
    let begin = Instant::now();
    for number in 0..4 {
        server.put(&format!("file{number}"), &pattern(MIB));
    }
    assert!(begin.elapsed() < Duration::from_secs(5), "others had to wait: {:?}", begin.elapsed());
    for peer in &mut silent {
        assert!([408, 503].contains(&Reply::read(peer).status));
    }
    // The objects, and nothing of what did not come.
    server.wait_until(|server| server.figure("pool_in_use_bytes") < 5 * MIB as u64);
}

#[test]
fn names_and_fields_that_are_kept_are_short() {
    let server = Server::start("");
    let name = "n".repeat(4000);
    server.put(&name, b"content");
    assert_eq!(server.try_put(&name.repeat(2), b"content").status, 431);
    let fields = format!("PUT /file HTTP/1.1\r\nContent-Type: {name}{name}\r\nContent-Length: 7\r\n");
    assert_eq!(server.ask(&fields, b"content").status, 431);
    let trailers = format!("7\r\ncontent\r\n0\r\nX: {name}{name}\r\n\r\n");
    let status =
        server.ask("PUT /file HTTP/1.1\r\nTransfer-Encoding: chunked\r\n", trailers.as_bytes()).status;
    assert!([400, 431].contains(&status), "{status}");
    assert_eq!(server.get("file", "").status, 404);
}

#[test]
fn bodies_that_come_byte_by_byte_are_cut_off() {
    let server = Server::start("8MiB 8MiB --stall 1");
    let mut peer = upload(&server, 8 * MIB, b"");
    let begin = Instant::now();
    while peer.write_all(b".").is_ok() && begin.elapsed() < PATIENCE {
        if peer.peek(&mut [0]).is_ok_and(|count| count > 0) {
            break;
        }
        peer.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    }
    peer.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(Reply::read(&mut peer).status, 408);
}

#[test]
fn half_a_head_is_not_waited_for() {
    let server = Server::start("--idle 1");
    let mut peers: Vec<_> =
        ["", "G", "GET /x HTTP/1.1\r\nHost: ", "PRI * HTTP/2.0\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"]
            .map(|half| {
                let mut peer = server.connect();
                peer.write_all(half.as_bytes()).unwrap();
                peer
            })
            .into();
    let mut trickling = server.connect();
    let begin = Instant::now();
    while trickling.write_all(b"X").is_ok() {
        assert!(begin.elapsed() < PATIENCE, "a byte now and then keeps a connection open");
        thread::sleep(Duration::from_millis(50));
    }
    peers.iter_mut().for_each(assert_closed);
    server.put("file", b"still there");
    server.wait_until(|server| server.figure("connections") == 1);
}

#[test]
fn heads_that_do_not_end_are_refused() {
    let server = Server::start("");
    let mut peer = server.connect();
    let _ = peer.write_all(b"GET / HTTP/1.1\r\nX: ");
    let _ = peer.write_all(&vec![b'x'; 200_000]);
    assert_eq!(Reply::read(&mut peer).status, 431);
    let mut peer = server.connect();
    let _ = peer.write_all("X: y\r\n".repeat(200).as_bytes());
    assert_closed(&mut peer);
}

#[test]
fn responses_that_are_not_read_are_cut_off() {
    let server = Server::start("--stall 2 --idle 2");
    let content = pattern(64 * MIB);
    server.put("large", &content);
    let ask = || {
        let mut peer = server.connect();
        peer.write_all(&request("GET /large HTTP/1.1\r\n", b"")).unwrap();
        peer
    };
    let mut silent: Vec<_> = (0..10).map(|_| ask()).collect();
    let mut trickling = ask();
    let begin = Instant::now();
    server.put("small", b"meanwhile");
    assert_eq!(server.get("small", "").body, b"meanwhile");
    server.ask("DELETE /large HTTP/1.1\r\n", b"");
    while trickling.read(&mut [0; 100]).is_ok_and(|count| count > 0)
        && begin.elapsed() < Duration::from_secs(6)
    {
        thread::sleep(Duration::from_millis(20));
    }
    // What they held is free, though none of them has closed its connection.
    server.wait_until(|server| server.figure("pool_in_use_bytes") < MIB as u64);
    server.wait_until(|server| server.figure("connections") == 1);
    for peer in &mut silent {
        let mut got = Vec::new();
        let _ = peer.read_to_end(&mut got);
        assert!(got.len() < content.len(), "{} bytes", got.len());
    }
}

/// If some MiB waited there, a peer could take much more than 64 KiB in each `--stall` without making it writable.
#[test]
fn what_a_peer_does_not_read_waits_in_the_rope_and_not_in_the_socket() {
    let server = Server::start("--stall 1 --idle 1");
    let content = pattern(64 * MIB);
    server.put("large", &content);
    let mut peer = server.connect();
    peer.write_all(&request("GET /large HTTP/1.1\r\n", b"")).unwrap();
    server.wait_until(|server| server.figure("overdue_connections_total") == 1);
    let received = peer.peek(&mut vec![0; 65 * MIB]).unwrap(); // what lies in its own socket
    let mut rest = Vec::new();
    peer.read_to_end(&mut rest).unwrap();
    let waited = rest.len() - received;
    assert!(waited < MIB, "{waited} bytes waited in the server's socket, {received} in the peer's");
}

#[test]
fn a_slow_reader_gets_all_of_it() {
    let server = Server::start("--stall 1 --idle 1");
    let content = pattern(8 * MIB);
    server.put("file", &content);
    let mut peer = server.connect();
    peer.write_all(&request("GET /file HTTP/1.1\r\n", b"")).unwrap();
    let (mut got, mut piece) = (Vec::new(), vec![0; 128 << 10]);
    loop {
        match peer.read(&mut piece).unwrap() {
            0 => break,
            count => got.extend_from_slice(&piece[..count]),
        }
        thread::sleep(Duration::from_millis(40)); // some 3 MB/s: longer than both limits in all
    }
    assert!(got.ends_with(&content));
}

#[test]
fn idle_connections_take_all_descriptors() {
    let server = Server::with_few_files(40, "--idle 2");
    let mut idle: Vec<_> = (0..60).map(|_| server.connect()).collect();
    // A further connection waits until some of them are closed, and is served.
    let begin = Instant::now();
    server.put("file", b"in the end");
    assert!(begin.elapsed() < Duration::from_secs(15), "{:?}", begin.elapsed());
    idle.iter_mut().for_each(assert_closed);
    assert_eq!(server.get("file", "").body, b"in the end");
    assert!(server.figure("accept_errors_total") > 0, "descriptors have never run out");
}

#[test]
fn more_connections_than_allowed_wait() {
    let server = Server::start("--max-connections 2 --idle 2");
    let mut idle = [server.connect(), server.connect()];
    thread::sleep(Duration::from_millis(100));
    let begin = Instant::now();
    server.put("file", b"in the end");
    assert!(begin.elapsed() > Duration::from_millis(500), "{:?}", begin.elapsed());
    idle.iter_mut().for_each(assert_closed);
}

#[test]
fn uploads_beyond_the_pool_wait_or_come_again_later() {
    let server = Server::start("1MiB 1MiB --patience 1");
    server.put("first", &pattern(700_000));
    let chunked = [b"aae60\r\n", &pattern(700_000)[..], b"\r\n0\r\n\r\n"].concat();
    for reply in [
        server.try_put("second", &pattern(700_000)),
        server.ask("PUT /second HTTP/1.1\r\nTransfer-Encoding: chunked\r\n", &chunked),
    ] {
        assert_eq!((reply.status, reply.field("retry-after")), (503, Some("1")), "{reply:?}");
    }
    server.put("small", b"there is room for it");
    thread::scope(|scope| {
        let waiting = scope.spawn(|| server.try_put("second", &pattern(700_000)).status);
        server.wait_until(|server| server.figure("uploads_waiting") == 1);
        server.ask("DELETE /first HTTP/1.1\r\n", b"");
        assert_eq!(waiting.join().unwrap(), 201);
    });
    assert_eq!(server.get("second", "").field("etag"), Some(&*etag(&pattern(700_000))));
}

#[test]
fn uploads_that_do_not_fit_together_do_not_hold_each_other_for_ever() {
    let server = Server::start("6MiB 8MiB --patience 1 --stall 3");
    let mut peers: Vec<_> = (0..4).map(|_| upload(&server, 6 * MIB, &pattern(3 * MIB))).collect();
    for peer in &mut peers {
        let _ = peer.write_all(&pattern(6 * MIB)[3 * MIB..]);
    }
    for peer in &mut peers {
        let status = Reply::read(peer).status;
        // 408 on a machine so busy that a peer got no 64 KiB out in time.
        assert!([200, 201, 408, 503].contains(&status), "{status}");
    }
    server.ask("DELETE /hostile HTTP/1.1\r\n", b"");
    server.wait_until(|server| server.figure("pool_in_use_bytes") == 0);
    server.put("file", &pattern(6 * MIB));
}

#[test]
fn more_objects_than_allowed_are_refused() {
    let server = Server::start("--max-objects 2");
    server.put("a", b"");
    server.put("b", b"");
    assert_eq!(server.try_put("c", b"").status, 507);
    server.put("a", b"replaced");
    server.ask("DELETE /b HTTP/1.1\r\n", b"");
    server.put("c", b"");
}

#[test]
fn a_client_that_leaves_half_way_leaves_nothing_behind() {
    let server = Server::start("");
    for head in ["Content-Length: 10000000", "Transfer-Encoding: chunked"] {
        let mut peer = server.connect();
        write!(peer, "PUT /half HTTP/1.1\r\nHost: here\r\n{head}\r\n\r\n4c4b40\r\n").unwrap();
        peer.write_all(&pattern(4_000_000)).unwrap();
        server.wait_until(|server| server.figure("pool_in_use_bytes") > 3_000_000);
        drop(peer);
        server.wait_until(|server| server.figure("pool_in_use_bytes") == 0);
    }
    assert_eq!(server.get("half", "").status, 404);
}

#[test]
fn two_hundred_clients_at_a_time() {
    let server = Server::start("1MiB 200MiB --patience 30");
    thread::scope(|scope| {
        for number in 0..200 {
            let server = &server;
            scope.spawn(move || {
                let (name, content) = (format!("file{number}"), pattern(300_000 + number));
                server.put(&name, &content);
                assert!(server.get(&name, "").body == content, "{name}");
            });
        }
    });
    assert!(server.figure("pool_in_use_bytes") >= 200 * 300_000);
}

fn terminate(server: &Server) {
    kill(Pid::from_raw(server.child.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
}

#[test]
fn requests_in_progress_are_answered_before_the_end() {
    let mut server = Server::start("--idle 60");
    let mut idle = server.connect();
    let content = pattern(MIB);
    let mut peer = upload(&server, MIB, &content[..1000]);
    server.wait_until(|server| server.figure("pool_in_use_bytes") > 0);
    terminate(&server);
    assert_closed(&mut idle);
    assert!(TcpStream::connect(server.address).is_err(), "it still accepts");
    peer.write_all(&content[1000..]).unwrap();
    assert_eq!(Reply::read(&mut peer).text().trim(), hash(&content));
    assert_eq!(server.child.wait().unwrap().code(), Some(0));
}

#[test]
fn the_end_does_not_wait_for_ever() {
    let mut server = Server::start("--grace 1 --stall 60");
    let mut peer = upload(&server, MIB, b"and no more");
    server.wait_until(|server| server.figure("pool_in_use_bytes") > 0);
    let begin = Instant::now();
    terminate(&server);
    assert_eq!(server.child.wait().unwrap().code(), Some(0));
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    assert_closed(&mut peer);
}

#[test]
fn the_command_line() {
    let run = |args: &[&str]| Command::new(env!("CARGO_BIN_EXE_http_upload")).args(args).output().unwrap();
    let help = run(&["--help"]);
    assert!(help.status.success() && String::from_utf8(help.stdout).unwrap().contains("--max-connections"));
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let refused = run(&[&taken.local_addr().unwrap().to_string()]);
    let message = String::from_utf8(refused.stderr).unwrap();
    assert_eq!((refused.status.code(), refused.stdout.len()), (Some(1), 0));
    assert!(
        message.starts_with("http_upload: cannot listen on 127.0.0.1:") && message.contains("in use"),
        "{message}"
    );
    assert_eq!(message.lines().count(), 1, "{message}");
    for capacity in ["0", "nan", "18446744073709551615", "18446744073709551616"] {
        assert_eq!(run(&["127.0.0.1:0", "1MiB", capacity]).status.code(), Some(2), "{capacity}");
    }
}

#[test]
fn numbers_that_mean_nothing() {
    let options = [
        "--spill-capacity",
        "--max-connections",
        "--max-objects",
        "--idle",
        "--stall",
        "--patience",
        "--grace",
    ];
    let program = env!("CARGO_BIN_EXE_http_upload");
    numbers::assert_refused(program, &["127.0.0.1:0", "--spill=/var/tmp"], &options, &[]);
}

/// Over HTTP/2 the connection itself is never blocked: its stream is, for want of a window.
#[test]
fn streams_that_are_not_read_are_cut_off() {
    let server = Server::start("--stall 1 --idle 1");
    server.put("large", &pattern(8 * MIB));
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let stream = tokio::net::TcpStream::connect(server.address).await.unwrap();
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder.initial_stream_window_size(1000).timer(TokioTimer::new());
        // Its pings are answered: only the response makes no progress.
        builder.keep_alive_interval(Duration::from_millis(100)).keep_alive_while_idle(true);
        let (mut client, connection) = builder.handshake(TokioIo::new(stream)).await.unwrap();
        let connection = tokio::spawn(connection);
        let request = hyper::Request::get("http://here/large").body(Rope::new()).unwrap();
        let response = client.send_request(request).await.unwrap();
        assert_eq!(response.status(), 200);
        let ended = tokio::time::timeout(PATIENCE, connection).await;
        assert!(ended.is_ok(), "the connection is still open");
    });
    server.wait_until(|server| server.figure("connections") == 1);
}
