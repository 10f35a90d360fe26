//! The example's server, as `curl` and many clients at a time meet it.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)] // a test fails by panicking

#[path = "../main.rs"]
#[allow(dead_code, unreachable_pub)] // it is a program of its own
mod http_upload;

use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::net::SocketAddr;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use http_upload::{Server, serve};
use hyper::client::conn::http1;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use ropewalk::{Pool, Rope};
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

const MIB: usize = 1 << 20;

/// A server that runs until this is dropped.
struct Running {
    runtime: Runtime,
    pool: Pool,
    address: SocketAddr,
    files: TempDir,
}

impl Running {
    fn new(limit: usize, capacity: usize, patience: Duration) -> Running {
        let runtime = Runtime::new().unwrap();
        let pool = Pool::options().capacity(capacity as u64).create().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        runtime.spawn(serve(listener, Arc::new(Server::new(pool.clone(), limit, patience))));
        Running { runtime, pool, address, files: TempDir::new().unwrap() }
    }

    fn curl(&self, args: &[&str], name: &str) -> Output {
        self.curl_with(Stdio::null(), args, name)
    }

    fn curl_with(&self, stdin: impl Into<Stdio>, args: &[&str], name: &str) -> Output {
        let url = format!("http://{}/{name}", self.address);
        let always = ["-s", "--noproxy", "*", "--max-time", "60", "-w", "%{stderr}%{http_code}"];
        Command::new("curl").stdin(stdin).args(always).args(args).arg(url).output().unwrap()
    }

    /// `curl -T` of a file, or of a stream whose length it does not know.
    fn upload(&self, how: How, name: &str, content: &[u8]) -> Output {
        let file = self.files.path().join("upload");
        std::fs::write(&file, content).unwrap();
        match how {
            How::Sized => self.curl(&["-T", file.to_str().unwrap()], name),
            How::Chunked => self.curl_with(File::open(file).unwrap(), &["-T", "-"], name),
        }
    }

    /// Puts it there and checks the hash in the answer.
    fn put(&self, how: How, name: &str, content: &[u8]) {
        let output = self.upload(how, name, content);
        assert!(["200", "201"].contains(&status(&output)), "{output:?}");
        assert_eq!(String::from_utf8(output.stdout).unwrap().trim(), hash(content));
    }

    fn waits_until(&self, what: impl Fn(&Pool) -> bool) {
        let late = Instant::now() + Duration::from_secs(30);
        while !what(&self.pool) {
            assert!(Instant::now() < late, "{:?}", self.pool);
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

#[derive(Clone, Copy)]
enum How {
    Sized,
    Chunked,
}

fn status(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

fn hash(content: &[u8]) -> String {
    Sha256::digest(content).iter().fold(String::new(), |mut hex, byte| {
        write!(hex, "{byte:02x}").unwrap();
        hex
    })
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len as u64).map(|i| (i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8).collect()
}

/// Says why a test does nothing, where there is no `curl`.
fn no_curl() -> bool {
    let missing = Command::new("curl").arg("--version").output().is_err();
    if missing {
        eprintln!("skipped: there is no curl");
    }
    missing
}

#[test]
fn uploads_of_all_sizes_come_back() {
    if no_curl() {
        return;
    }
    let server = Running::new(64 * MIB, 256 * MIB, Duration::from_secs(10));
    for len in [0, 1, 100_000, 64 * MIB] {
        let content = pattern(len);
        for how in [How::Sized, How::Chunked] {
            server.put(how, "file", &content);
            let got = server.curl(&[], "file");
            assert_eq!(status(&got), "200");
            assert!(got.stdout == content, "{} bytes came back of {len}", got.stdout.len());
        }
    }
    assert_eq!(status(&server.curl(&[], "nothing")), "404");
    assert_eq!(status(&server.curl(&["-X", "DELETE"], "file")), "405");
}

#[test]
fn ranges_are_parts_of_the_file() {
    if no_curl() {
        return;
    }
    let server = Running::new(64 * MIB, 64 * MIB, Duration::from_secs(10));
    let content = pattern(5 * MIB);
    let len = content.len();
    server.put(How::Sized, "file", &content);
    for (range, expected) in [
        ("0-0", 0..1),
        ("100-199", 100..200),
        ("2097151-2097152", 2 * MIB - 1..2 * MIB + 1),
        ("5242879-", len - 1..len),
        ("1-99999999", 1..len),
        ("-7", len - 7..len),
        ("-99999999", 0..len),
    ] {
        let got = server.curl(&["-r", range], "file");
        assert_eq!(status(&got), "206", "{range}");
        assert!(got.stdout == content[expected], "{range}");
    }
    for range in ["5242880-", "7-6", "-0", "x-y", "-"] {
        let refused = server.curl(&["-D", "-", "-H", &format!("Range: bytes={range}")], "file");
        assert_eq!(status(&refused), "416", "{range}");
        assert!(String::from_utf8_lossy(&refused.stdout).contains("content-range: bytes */5242880"));
    }
    for range in ["bytes=0-1,3-4", "lines=1-2"] {
        let got = server.curl(&["-H", &format!("Range: {range}")], "file");
        assert!(status(&got) == "200" && got.stdout == content, "{range} may be ignored");
    }
    server.put(How::Sized, "empty", &[]);
    assert_eq!(status(&server.curl(&["-r", "0-0"], "empty")), "416");
    assert_eq!(status(&server.curl(&["-I"], "file")), "200");
}

#[test]
fn too_much_is_refused_whether_it_is_announced_or_not() {
    if no_curl() {
        return;
    }
    let server = Running::new(MIB, 64 * MIB, Duration::from_secs(10));
    server.put(How::Sized, "just", &pattern(MIB));
    for how in [How::Sized, How::Chunked] {
        assert_eq!(status(&server.upload(how, "large", &pattern(MIB + 1))), "413");
    }
    assert_eq!(status(&server.curl(&[], "large")), "404");
    server.waits_until(|pool| pool.stats().in_use == MIB as u64);
}

#[test]
fn the_pool_bounds_what_all_uploads_take() {
    if no_curl() {
        return;
    }
    let server = Running::new(MIB, MIB, Duration::from_millis(300));
    server.put(How::Sized, "first", &pattern(700_000));
    for how in [How::Sized, How::Chunked] {
        assert_eq!(status(&server.upload(how, "second", &pattern(700_000))), "503");
    }
    server.put(How::Sized, "first", b"small");
    server.put(How::Sized, "second", &pattern(700_000));
    assert!(server.pool.stats().peak <= MIB as u64);
    assert_eq!(server.pool.stats().fallbacks, 0);
}

#[test]
fn a_client_that_leaves_half_way_leaves_nothing_behind() {
    let server = Running::new(64 * MIB, 128 * MIB, Duration::from_secs(10));
    for head in ["Content-Length: 10000000", "Transfer-Encoding: chunked"] {
        let mut client = std::net::TcpStream::connect(server.address).unwrap();
        write!(client, "PUT /half HTTP/1.1\r\nHost: here\r\n{head}\r\n\r\n4c4b40\r\n").unwrap();
        client.write_all(&pattern(4_000_000)).unwrap();
        server.waits_until(|pool| pool.stats().in_use > 3_000_000);
        drop(client);
        server.waits_until(|pool| pool.stats().in_use == 0);
    }
    server.runtime.block_on(put_and_get(server.address, "whole".into(), pattern(100_000)));
}

#[test]
fn two_hundred_clients_at_a_time() {
    let clients = 200;
    let server = Running::new(MIB, 200 * MIB, Duration::from_secs(30));
    server.runtime.block_on(async {
        let mut tasks = JoinSet::new();
        for number in 0..clients {
            let mut content = pattern(300_000 + number);
            content.push(number as u8);
            tasks.spawn(put_and_get(server.address, format!("file{number}"), content));
        }
        tasks.join_all().await;
    });
    let stats = server.pool.stats();
    assert!(stats.in_use >= 200 * 300_000, "{stats:?}");
    assert_eq!((stats.fallbacks, stats.waiting), (0, 0));
}

/// One client, one connection: puts a file, gets it back, and compares.
async fn put_and_get(address: SocketAddr, name: String, content: Vec<u8>) {
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut client, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    let connection = tokio::spawn(connection);
    let content = Rope::from(content);
    let request = |method| Request::builder().method(method).uri(format!("/{name}")).header("Host", "here");

    let put = client.send_request(request("PUT").body(content.clone()).unwrap()).await.unwrap();
    assert_eq!(put.status(), StatusCode::CREATED);
    let mut answer = Rope::new();
    answer.receive_body(put.into_body()).await.unwrap();
    assert_eq!(answer.to_vec(), format!("{}\n", hash(&content.to_vec())).into_bytes());

    client.ready().await.unwrap();
    let got = client.send_request(request("GET").body(Rope::new()).unwrap()).await.unwrap();
    assert_eq!(got.status(), StatusCode::OK);
    let mut back = Rope::new();
    back.receive_body(got.into_body()).await.unwrap();
    assert!(back == content);
    drop(client);
    connection.await.unwrap().unwrap();
}

/// Two requests that arrive in one piece are two answers.
#[test]
fn requests_may_follow_each_other_on_one_connection() {
    let server = Running::new(MIB, 64 * MIB, Duration::from_secs(10));
    server.runtime.block_on(async {
        let mut client = TcpStream::connect(server.address).await.unwrap();
        let put = "PUT /a HTTP/1.1\r\nHost: here\r\nContent-Length: 5\r\n\r\nhello";
        let get = "GET /a HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n";
        client.write_all(format!("{put}{get}").as_bytes()).await.unwrap();
        let mut answers = String::new();
        tokio::io::AsyncReadExt::read_to_string(&mut client, &mut answers).await.unwrap();
        assert!(answers.contains(&hash(b"hello")) && answers.ends_with("\r\n\r\nhello"), "{answers}");
    });
}
