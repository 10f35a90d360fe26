//! A server process, and a client that speaks HTTP/1.1 on a raw socket.
#![allow(dead_code)] // each test file uses a part

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

pub(crate) const MIB: usize = 1 << 20;

/// Longest wait for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A server that is killed when this is dropped.
pub(crate) struct Server {
    pub(crate) child: Child,
    pub(crate) address: SocketAddr,
}

impl Server {
    pub(crate) fn start(options: &str) -> Server {
        let mut command = Command::new(env!("CARGO_BIN_EXE_http_upload"));
        Server::of(command.arg("127.0.0.1:0").args(options.split_whitespace()))
    }

    /// A server that may open `files` files.
    pub(crate) fn with_few_files(files: u32, options: &str) -> Server {
        let mut command = Command::new("sh");
        let script = format!("ulimit -n {files}; exec \"$0\" 127.0.0.1:0 {options}");
        Server::of(command.args(["-c", &script]).arg(env!("CARGO_BIN_EXE_http_upload")))
    }

    fn of(command: &mut Command) -> Server {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("http://").and_then(|address| address.parse().ok());
        Server { child, address: address.unwrap_or_else(|| panic!("{line:?}")) }
    }

    pub(crate) fn connect(&self) -> TcpStream {
        let peer = TcpStream::connect_timeout(&self.address, PATIENCE).unwrap();
        peer.set_nodelay(true).unwrap();
        peer.set_read_timeout(Some(PATIENCE)).unwrap();
        peer.set_write_timeout(Some(PATIENCE)).unwrap();
        peer
    }

    /// One request on a connection of its own. `head` is the request line and the fields but Host.
    #[track_caller]
    pub(crate) fn ask(&self, head: &str, body: &[u8]) -> Reply {
        let mut peer = self.connect();
        // A refusal may come before all is sent.
        let _ = peer.write_all(&request(head, body));
        Reply::read(&mut peer)
    }

    #[track_caller]
    pub(crate) fn get(&self, name: &str, fields: &str) -> Reply {
        self.ask(&format!("GET /{name} HTTP/1.1\r\n{fields}"), b"")
    }

    /// Puts an object there and checks the hash in the answer.
    #[track_caller]
    pub(crate) fn put(&self, name: &str, content: &[u8]) -> Reply {
        let reply = self.try_put(name, content);
        assert!([200, 201].contains(&reply.status), "{reply:?}");
        assert_eq!(reply.text().trim(), hash(content));
        reply
    }

    #[track_caller]
    pub(crate) fn try_put(&self, name: &str, content: &[u8]) -> Reply {
        self.ask(&format!("PUT /{name} HTTP/1.1\r\nContent-Length: {}\r\n", content.len()), content)
    }

    /// A figure of `/metrics`.
    #[track_caller]
    pub(crate) fn figure(&self, name: &str) -> u64 {
        let reply = self.get("metrics", "");
        let text = reply.text();
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("http_upload_{name} ")));
        line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
    }

    #[track_caller]
    pub(crate) fn wait_until(&self, what: impl Fn(&Server) -> bool) {
        let begin = Instant::now();
        while !what(self) {
            assert!(begin.elapsed() < PATIENCE, "it did not happen within {PATIENCE:?}");
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself; that is for the test to notice.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A whole request that closes the connection.
pub(crate) fn request(head: &str, body: &[u8]) -> Vec<u8> {
    [format!("{head}Host: here\r\nConnection: close\r\n\r\n").as_bytes(), body].concat()
}

/// A response.
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl std::fmt::Debug for Reply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}{} bytes: {:.200}", self.head, self.body.len(), self.text())
    }
}

impl Reply {
    /// Reads until the connection ends.
    #[track_caller]
    pub(crate) fn read(peer: &mut TcpStream) -> Reply {
        let mut bytes = Vec::new();
        peer.read_to_end(&mut bytes).unwrap_or_else(|error| panic!("{error} after {:?}", text(&bytes)));
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n");
        let end = end.unwrap_or_else(|| panic!("no head in {:?}", text(&bytes))) + 4;
        let head = text(&bytes[..end]);
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Reply { status, head, body: bytes[end..].to_vec() }
    }

    /// The value of a field.
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.into_iter().find(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    pub(crate) fn text(&self) -> String {
        text(&self.body)
    }
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub(crate) fn hash(content: &[u8]) -> String {
    Sha256::digest(content).iter().fold(String::new(), |mut hex, byte| {
        write!(hex, "{byte:02x}").unwrap();
        hex
    })
}

pub(crate) fn etag(content: &[u8]) -> String {
    format!("\"{}\"", hash(content))
}

pub(crate) fn pattern(len: usize) -> Vec<u8> {
    (0..len as u64).map(|i| (i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8).collect()
}

/// Whether the server has closed the connection, within the time limit of the socket.
#[track_caller]
pub(crate) fn assert_closed(peer: &mut TcpStream) {
    let mut rest = Vec::new();
    match peer.read_to_end(&mut rest) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "not closed: {error}"),
    }
}

pub(crate) fn finish_sending(peer: &TcpStream) {
    peer.shutdown(Shutdown::Write).unwrap();
}
