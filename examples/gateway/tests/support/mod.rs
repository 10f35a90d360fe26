//! A gateway process, a client that speaks HTTP/1.1 on a raw socket, and a store that fails on demand.
#![allow(clippy::unwrap_used)] // a test may panic

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::pin::Pin;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s::{Body, HttpError};
use tempfile::TempDir;
use tokio::net::TcpListener;

pub(crate) const MIB: usize = 1 << 20;

/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at as u32).wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect()
}

/// A gateway that is killed when this is dropped.
pub(crate) struct Gateway {
    child: Child,
    address: SocketAddr,
}

impl Gateway {
    pub(crate) fn start(store: &str, options: &str, variables: &[(&str, String)]) -> Gateway {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gateway"));
        command.args([store, "127.0.0.1:0"]).args(options.split_whitespace());
        command.envs(variables.iter().map(|(name, value)| (name, value)));
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("http://").and_then(|address| address.parse().ok());
        Gateway { child, address: address.unwrap_or_else(|| panic!("{line:?}")) }
    }

    /// What a gateway that does not start says.
    pub(crate) fn refusal(store: &str, options: &str) -> String {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gateway"));
        let output = command.args([store, "127.0.0.1:0"]).args(options.split_whitespace()).output().unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    }

    pub(crate) fn connect(&self) -> TcpStream {
        let peer = TcpStream::connect_timeout(&self.address, PATIENCE).unwrap();
        peer.set_nodelay(true).unwrap();
        peer.set_read_timeout(Some(PATIENCE)).unwrap();
        peer.set_write_timeout(Some(PATIENCE)).unwrap();
        peer
    }

    /// How many sockets it has open.
    pub(crate) fn sockets(&self) -> usize {
        let files = fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap();
        let targets = files.filter_map(|file| fs::read_link(file.unwrap().path()).ok());
        targets.filter(|target| target.to_string_lossy().starts_with("socket:")).count()
    }

    pub(crate) fn accepts(&self) -> bool {
        TcpStream::connect_timeout(&self.address, PATIENCE).is_ok()
    }

    /// One request on a connection of its own. `head` is the request line and the fields but Host.
    #[track_caller]
    pub(crate) fn ask(&self, head: &str, body: &[u8]) -> Reply {
        let mut peer = self.connect();
        let request = [head.as_bytes(), b"Host: here\r\nConnection: close\r\n\r\n", body].concat();
        // A refusal may come before all is sent.
        let mut sender = peer.try_clone().unwrap();
        let sender = thread::spawn(move || sender.write_all(&request));
        let reply = Reply::read(&mut peer);
        drop(peer);
        let _ = sender.join().unwrap();
        reply
    }

    /// The same by a client that reads nothing before it has sent all of it.
    #[track_caller]
    pub(crate) fn ask_when_sent(&self, head: &str, body: &[u8]) -> Reply {
        let mut peer = self.connect();
        peer.write_all(&[head.as_bytes(), b"Host: here\r\n\r\n", body].concat()).unwrap();
        peer.shutdown(Shutdown::Write).unwrap();
        Reply::read(&mut peer)
    }

    /// The status that curl gets over HTTP/2; `None` where it is not installed.
    pub(crate) fn curl_http2(&self, args: &[&str], body: &[u8]) -> Option<String> {
        let url = format!("http://{}/object", self.address);
        let always = ["-s", "--http2-prior-knowledge", "--noproxy", "*", "--max-time", "60", "-T", "-"];
        let mut command = Command::new("curl");
        command.args(always).args(["-o", "/dev/null", "-w", "%{http_code}"]).args(args).arg(url);
        let Ok(mut curl) = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn() else {
            eprintln!("SKIPPED: curl is not installed");
            return None;
        };
        let _ = curl.stdin.take().unwrap().write_all(body); // it may end before
        Some(String::from_utf8(curl.wait_with_output().unwrap().stdout).unwrap())
    }

    #[track_caller]
    pub(crate) fn put(&self, name: &str, body: &[u8]) -> Reply {
        self.ask(&format!("PUT /{name} HTTP/1.1\r\nContent-Length: {}\r\n", body.len()), body)
    }

    #[track_caller]
    pub(crate) fn get(&self, name: &str, fields: &str) -> Reply {
        self.ask(&format!("GET /{name} HTTP/1.1\r\n{fields}"), b"")
    }

    /// Most bytes of physical memory so far.
    pub(crate) fn peak_memory(&self) -> usize {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
    }

    pub(crate) fn terminate(&self) {
        kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM).unwrap();
    }

    #[track_caller]
    pub(crate) fn wait(&mut self) -> ExitStatus {
        wait_until(|| self.child.try_wait().unwrap().is_some());
        self.child.wait().unwrap()
    }

    #[track_caller]
    pub(crate) fn wait_until(&self, condition: impl Fn(&Gateway) -> bool) {
        wait_until(|| condition(self));
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[track_caller]
fn wait_until(mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE);
        thread::sleep(Duration::from_millis(20));
    }
}

/// A response; `body` is what follows its head.
pub(crate) struct Reply {
    pub(crate) status: u16,
    head: String,
    pub(crate) body: Vec<u8>,
}

impl Reply {
    #[track_caller]
    pub(crate) fn read(peer: &mut TcpStream) -> Reply {
        let mut bytes = Vec::new();
        // A server that refuses a body may reset the connection behind the response.
        let _ = peer.read_to_end(&mut bytes);
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n");
        let end = end.unwrap_or_else(|| panic!("no head in {:?}", String::from_utf8_lossy(&bytes)));
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Reply { status, head, body: bytes.split_off(end + 4) }
    }

    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        let fields = self.head.lines().skip(1).filter_map(|line| line.split_once(':'));
        fields.filter(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim()).next()
    }
}

impl std::fmt::Debug for Reply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let body = &self.body[..self.body.len().min(200)];
        write!(f, "{}\n{} bytes: {}", self.head, self.body.len(), String::from_utf8_lossy(body))
    }
}

/// How a store answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Usual,
    /// Each request takes so long.
    Slow(Duration),
    /// No request is answered.
    Silent,
    /// Nothing can be stored.
    Full,
    /// Uploads can be begun, and their parts cannot be stored.
    PartsFull,
    /// Connections are closed.
    Gone,
}

/// A server with the S3 protocol over a directory, on a free port of loopback.
pub(crate) struct Store {
    root: TempDir,
    mode: Arc<Mutex<Mode>>,
    address: SocketAddr,
    _runtime: tokio::runtime::Runtime,
}

impl Store {
    pub(crate) fn start() -> Store {
        let root = TempDir::new().unwrap();
        fs::create_dir(root.path().join("bucket")).unwrap();
        let mut service = S3ServiceBuilder::new(s3s_fs::FileSystem::new(root.path()).unwrap());
        service.set_auth(SimpleAuth::from_single("key", "secret"));
        let mode = Arc::new(Mutex::new(Mode::Usual));
        let moody = Moody { service: service.build(), mode: Arc::clone(&mode) };
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        runtime.spawn(async move {
            while let Ok((stream, _peer)) = listener.accept().await {
                if *moody.mode.lock().unwrap() == Mode::Gone {
                    continue;
                }
                let (moody, stream) = (moody.clone(), TokioIo::new(stream));
                tokio::spawn(async move {
                    let service = hyper::service::service_fn(|request| moody.answer(request));
                    let _ = Builder::new(TokioExecutor::new()).serve_connection(stream, service).await;
                });
            }
        });
        Store { root, mode, address, _runtime: runtime }
    }

    pub(crate) fn gateway(&self, options: &str) -> Gateway {
        let variables = [
            ("AWS_ACCESS_KEY_ID", "key".to_owned()),
            ("AWS_SECRET_ACCESS_KEY", "secret".to_owned()),
            ("AWS_REGION", "us-east-1".to_owned()),
            ("AWS_ENDPOINT", format!("http://{}", self.address)),
        ];
        Gateway::start("s3://bucket", options, &variables)
    }

    pub(crate) fn set(&self, mode: Mode) {
        *self.mode.lock().unwrap() = mode;
    }

    /// Multipart uploads that were begun, and neither completed nor aborted.
    pub(crate) fn uploads(&self) -> usize {
        let names = |path: PathBuf| fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name());
        let names = names(self.root.path().to_owned()).chain(names(self.root.path().join("bucket")));
        names.filter(|name| name.to_string_lossy().starts_with(".upload-")).count()
    }

    #[track_caller]
    pub(crate) fn wait_until(&self, condition: impl Fn(&Store) -> bool) {
        wait_until(|| condition(self));
    }
}

/// The store, as its mode lets it answer.
#[derive(Clone)]
struct Moody {
    service: S3Service,
    mode: Arc<Mutex<Mode>>,
}

type Answer = Pin<Box<dyn Future<Output = Result<Response<Body>, HttpError>> + Send>>;

impl Moody {
    fn answer(&self, request: Request<Incoming>) -> Answer {
        let (service, mode) = (self.service.clone(), *self.mode.lock().unwrap());
        let stores = matches!(*request.method(), Method::PUT | Method::POST);
        let is_part = request.method() == Method::PUT && request.uri().query().is_some();
        Box::pin(async move {
            match mode {
                Mode::Slow(time) => tokio::time::sleep(time).await,
                Mode::Silent => std::future::pending().await,
                Mode::Gone => return Err(HttpError::new("the connection is to be closed".into())),
                Mode::Full if stores => return Ok(full(request).await),
                Mode::PartsFull if is_part => return Ok(full(request).await),
                Mode::Usual | Mode::Full | Mode::PartsFull => {}
            }
            service.call(request.map(Body::from)).await
        })
    }
}

/// Takes the body first: a client that is still sending may not see the response.
async fn full(request: Request<Incoming>) -> Response<Body> {
    let _ = request.into_body().collect().await;
    let mut response = Response::new(Body::from("<Error><Code>XMinioStorageFull</Code></Error>".to_owned()));
    *response.status_mut() = StatusCode::INSUFFICIENT_STORAGE;
    response
}
