//! The program `tls`, its server, and peers of both kinds.
#![allow(clippy::unwrap_used)] // a test may panic

#[path = "../../http_upload/tests/support/numbers.rs"]
mod numbers;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use tempfile::TempDir;
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

const PATIENCE: Duration = Duration::from_secs(20);

/// A server that is killed when this is dropped.
struct Server {
    child: Child,
    address: SocketAddr,
    log: Arc<Mutex<Vec<String>>>,
    files: TempDir,
}

type Tls = StreamOwned<ClientConnection, TcpStream>;

impl Server {
    fn start(options: &str) -> Server {
        Server::with_files(options, 1000)
    }

    fn with_files(options: &str, count: u32) -> Server {
        let files = TempDir::new().unwrap();
        let certificate = files.path().join("certificate.pem");
        let script = format!("ulimit -n {count}; exec \"$0\" serve --certificate \"$1\" {options}");
        let mut child = Command::new("sh")
            .args(["-c", &script, env!("CARGO_BIN_EXE_tls")])
            .arg(certificate)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let (stderr, lines) = (BufReader::new(child.stderr.take().unwrap()), Arc::clone(&log));
        thread::spawn(move || {
            stderr.lines().map_while(Result::ok).for_each(|line| lines.lock().unwrap().push(line))
        });
        let mut first = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut first).unwrap();
        let address = first.trim().strip_prefix("listening on ").expect(&first).parse().unwrap();
        Server { child, address, log, files }
    }

    /// A connection without TLS.
    fn plain(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    fn connect(&self) -> Tls {
        let mut roots = RootCertStore::empty();
        let certificate = CertificateDer::from_pem_file(self.files.path().join("certificate.pem")).unwrap();
        roots.add(certificate).unwrap();
        let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        let name = ServerName::try_from("localhost").unwrap();
        let (mut connection, mut stream) =
            (ClientConnection::new(Arc::new(config), name).unwrap(), self.plain());
        connection.complete_io(&mut stream).unwrap();
        StreamOwned::new(connection, stream)
    }

    #[track_caller]
    fn assert_serves(&self, content: &[u8]) {
        let mut client = self.connect();
        client.write_all(content).unwrap();
        end(&mut client);
        let mut back = Vec::new();
        client.read_to_end(&mut back).unwrap();
        assert!(back == content, "{} of {} bytes came back", back.len(), content.len());
    }

    #[track_caller]
    fn expect_refusal(&self, peer: &TcpStream, why: &str) {
        let begin = format!("refused {}: ", peer.local_addr().unwrap());
        wait_for(|| {
            self.log.lock().unwrap().iter().any(|line| line.starts_with(&begin) && line.contains(why))
        });
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            println!("the server's log: {:#?}", self.log.lock().unwrap());
        }
    }
}

fn end(client: &mut Tls) {
    client.conn.send_close_notify();
    client.flush().unwrap();
}

#[track_caller]
fn wait_for(what: impl Fn() -> bool) {
    let begin = Instant::now();
    while !what() {
        assert!(begin.elapsed() < PATIENCE, "it did not happen within {PATIENCE:?}");
        thread::sleep(Duration::from_millis(10));
    }
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len as u64).map(|i| (i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8).collect()
}

#[test]
fn it_shows_itself() {
    for size in ["0B", "1B", "3MiB"] {
        let shown = Command::new(env!("CARGO_BIN_EXE_tls")).args(["--size", size]).output().unwrap();
        let text = String::from_utf8(shown.stdout).unwrap();
        assert!(shown.status.success() && text.contains("bytes there and back"), "{text}");
    }
}

#[test]
fn content_of_all_sizes_comes_back() {
    let server = Server::start("");
    for len in [0, 1, 16 << 10, 5_000_003] {
        server.assert_serves(&pattern(len));
    }
}

#[test]
fn more_than_allowed_is_an_error_and_not_the_end() {
    let server = Server::start("--max-message 100000B");
    server.assert_serves(&pattern(100_000));
    let mut client = server.connect();
    let sent = client.write_all(&pattern(100_001)).and_then(|()| client.flush());
    let mut back = Vec::new();
    let read = sent.and_then(|()| client.read_to_end(&mut back));
    assert!(read.is_err() && back.is_empty(), "{read:?} {} bytes", back.len());
    server.expect_refusal(client.get_ref(), "more than the rope's limit of 100000 bytes");
}

#[test]
fn a_stream_that_is_cut_off_is_not_answered() {
    let server = Server::start("");
    let mut client = server.connect();
    client.write_all(b"half of it").unwrap();
    client.get_ref().shutdown(std::net::Shutdown::Write).unwrap(); // without `close_notify`
    let mut back = Vec::new();
    let _ = client.read_to_end(&mut back);
    assert!(back.is_empty());
    server.expect_refusal(client.get_ref(), "close_notify");
}

#[test]
fn peers_that_make_no_progress_are_closed() {
    let server = Server::start("--idle 5 --capacity 4MiB --max-message 4MiB");
    let silent = server.plain();
    let mut half_a_hello = server.plain();
    half_a_hello.write_all(&[0x16, 3, 1, 2, 0, 1]).unwrap();
    let mut no_tls = server.plain();
    no_tls.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let mut half = server.connect();
    half.write_all(&pattern(3 << 20)).unwrap();
    let mut no_reader = server.connect();
    no_reader.write_all(b"small").unwrap();
    server.assert_serves(b"meanwhile");
    for peer in [&silent, &half_a_hello, half.get_ref(), no_reader.get_ref()] {
        server.expect_refusal(peer, "");
    }
    server.expect_refusal(&no_tls, "");
    server.assert_serves(&pattern(3 << 20));
}

#[test]
fn who_never_reads_is_closed() {
    let server = Server::start("--idle 5"); // more than 64 KiB take on a busy machine
    let mut client = server.connect();
    client.write_all(&pattern(32 << 20)).unwrap();
    end(&mut client);
    server.expect_refusal(client.get_ref(), "less than 64 KiB moved");
    // What was not read waited in the rope: a socket with some MiB would hide that a slow peer reads.
    let socket = client.get_mut();
    let received = socket.peek(&mut vec![0; 33 << 20]).unwrap();
    let mut rest = Vec::new();
    let _ = socket.read_to_end(&mut rest); // it may be a reset
    assert!(rest.len() - received < 1 << 20, "{} bytes waited in the server's socket", rest.len() - received);
}

#[test]
fn a_full_pool_is_waited_for() {
    let server = Server::start("--idle 3 --capacity 4MiB --max-message 4MiB");
    let mut holds = server.connect();
    holds.write_all(&pattern(3 << 20)).unwrap();
    holds.flush().unwrap();
    thread::sleep(Duration::from_millis(500));
    thread::scope(|scope| {
        let waiting = scope.spawn(|| server.assert_serves(&pattern(2 << 20)));
        thread::sleep(Duration::from_millis(500));
        drop(holds);
        waiting.join().unwrap();
    });
}

#[test]
fn descriptors_run_out() {
    let server = Server::with_files("--idle 2", 30);
    let idle: Vec<_> = (0..60).map(|_| server.plain()).collect();
    server.assert_serves(b"in the end");
    assert!(server.log.lock().unwrap().iter().any(|line| line.starts_with("cannot accept now")));
    drop(idle);
}

#[test]
fn the_command_line() {
    let run = |args: &[&str]| Command::new(env!("CARGO_BIN_EXE_tls")).args(args).output().unwrap();
    assert!(run(&["--help"]).status.success() && run(&["serve", "--help"]).status.success());
    let server = Server::start("");
    for (args, why) in [
        (&["serve", "--listen", &server.address.to_string()][..], "in use"),
        (&["--size", "1GiB"], "smaller --size"),
        (&["serve", "--certificate", "/absent/file"], "cannot write /absent/file"),
    ] {
        let refused = run(args);
        let message = String::from_utf8(refused.stderr).unwrap();
        assert_eq!((refused.status.code(), message.lines().count()), (Some(1), 1), "{args:?} {message}");
        assert!(message.starts_with("tls: ") && message.contains(why), "{message}");
    }
}

#[test]
fn numbers_that_mean_nothing() {
    let program = env!("CARGO_BIN_EXE_tls");
    numbers::assert_refused(
        program,
        &["serve"],
        &["--max-connections", "--capacity", "--idle"],
        &["--max-message"],
    );
}
