//! An HTTP server that keeps what is put into it, in memory, and gives it back.
//!
//! `PUT /name` accumulates a body of any size in a rope, makes it contiguous without a join, and answers
//! with its SHA-256. `GET /name` sends it by gather writes, whole or a range. All uploads together take
//! no more memory than the pool's capacity: one whose length is known waits for room, in its turn, and
//! for as long as the server has patience; one whose length is not known fails when there is none.
//!
//! ```sh
//! cargo run --release --features tokio,http-body --example http_upload -- 127.0.0.1:8080
//! curl -T some.file http://127.0.0.1:8080/some.file
//! curl -r 100-199 http://127.0.0.1:8080/some.file
//! ```
//!
//! Arguments, all optional: the address, the most bytes in one upload, the most bytes in all of them.

use std::collections::HashMap;
use std::convert::Infallible;
use std::error::Error;
use std::fmt::Write;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::body::{Body, Incoming};
use hyper::header::{ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, HeaderValue, RANGE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use ropewalk::{BodyError, Pool, Rope};
use sha2::{Digest, Sha256};
use tokio::net::TcpListener;

/// What all connections share.
#[derive(Debug)]
pub struct Server {
    pool: Pool,
    /// Most bytes in one upload.
    limit: usize,
    /// How long an upload waits for room.
    patience: Duration,
    files: Mutex<HashMap<String, Rope>>,
}

type Answer = Result<Response<Rope>, Refusal>;

/// Why there is no file: the status, and a line for a human.
struct Refusal(StatusCode, String);

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let listener = TcpListener::bind(args.next().as_deref().unwrap_or("127.0.0.1:8080")).await?;
    let mut bytes = |default: u64| args.next().map_or(Ok(default), |arg| arg.parse());
    let limit = usize::try_from(bytes(2 << 30)?)?;
    let pool = Pool::options().capacity(bytes(4 << 30)?).create()?;
    println!("http://{}", listener.local_addr()?);
    serve(listener, Arc::new(Server::new(pool, limit, Duration::from_secs(10)))).await?;
    Ok(())
}

/// Accepts connections for ever.
pub async fn serve(listener: TcpListener, server: Arc<Server>) -> io::Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        let server = Arc::clone(&server);
        let service = service_fn(move |request| Arc::clone(&server).answer(request));
        tokio::spawn(async move {
            if let Err(error) = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await {
                eprintln!("a connection failed: {error}");
            }
        });
    }
}

impl Server {
    /// A server without files, for uploads of up to `limit` bytes that wait for room up to `patience`.
    pub fn new(pool: Pool, limit: usize, patience: Duration) -> Server {
        Server { pool, limit, patience, files: Mutex::default() }
    }

    async fn answer(self: Arc<Server>, request: Request<Incoming>) -> Result<Response<Rope>, Infallible> {
        let answer = match *request.method() {
            Method::PUT => self.put(request).await,
            Method::GET | Method::HEAD => self.get(&request),
            _ => Err(Refusal(StatusCode::METHOD_NOT_ALLOWED, "PUT, GET or HEAD".into())),
        };
        Ok(answer.unwrap_or_else(|Refusal(status, why)| text(status, why)))
    }

    async fn put(&self, request: Request<Incoming>) -> Answer {
        let name = request.uri().path().to_owned();
        let body = request.into_body();
        let mut rope = self.rope_for(body.size_hint().exact()).await?;
        rope.receive_body(body).await?;
        let copy = rope.clone(); // shares the memory
        let hash = tokio::task::spawn_blocking(|| hash(copy)).await.map_err(io::Error::from)??;
        let replaced = self.files().insert(name, rope);
        let status = if replaced.is_some() { StatusCode::OK } else { StatusCode::CREATED };
        Ok(text(status, hash))
    }

    /// An empty rope, with room for a body whose length is known.
    async fn rope_for(&self, len: Option<u64>) -> Result<Rope, Refusal> {
        let mut rope = Rope::in_pool(&self.pool);
        rope.set_limit(self.limit);
        let len = len.and_then(|len| usize::try_from(len).ok()).filter(|&len| len <= self.limit);
        let Some(len) = len else { return Ok(rope) };
        let mut turn = self.pool.wait_for_room(len);
        let reserved = async {
            loop {
                (&mut turn).await;
                if rope.reserve(len).is_ok() {
                    return;
                }
            }
        };
        match tokio::time::timeout(self.patience, reserved).await {
            Ok(()) => Ok(rope),
            Err(_) => Err(Refusal(StatusCode::SERVICE_UNAVAILABLE, format!("no room for {len} bytes"))),
        }
    }

    fn get(&self, request: &Request<Incoming>) -> Answer {
        let file = self.files().get(request.uri().path()).cloned();
        let file = file.ok_or_else(|| Refusal(StatusCode::NOT_FOUND, "no such file".into()))?;
        let (len, range) = (file.len(), request.headers().get(RANGE));
        let mut response = match range.and_then(|range| single_range(range, len)) {
            None => Response::new(file),
            Some(Some((first, last))) => {
                let part = Response::builder()
                    .status(StatusCode::PARTIAL_CONTENT)
                    .header(CONTENT_RANGE, format!("bytes {first}-{last}/{len}"));
                part.body(file.slice(first..=last)).expect("these headers are valid")
            }
            Some(None) => {
                let mut refused = text(StatusCode::RANGE_NOT_SATISFIABLE, "no such range".into());
                let range = HeaderValue::try_from(format!("bytes */{len}")).expect("only ASCII");
                refused.headers_mut().insert(CONTENT_RANGE, range);
                refused
            }
        };
        let len = HeaderValue::from(response.body().len());
        response.headers_mut().insert(CONTENT_LENGTH, len);
        response.headers_mut().insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        Ok(response)
    }

    fn files(&self) -> std::sync::MutexGuard<'_, HashMap<String, Rope>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The hash wants one slice: the view is one, without a join.
fn hash(rope: Rope) -> io::Result<String> {
    let view = rope.finalize()?;
    let mut hex = String::new();
    Sha256::digest(&*view).iter().for_each(|byte| write!(hex, "{byte:02x}").expect("into a string"));
    Ok(hex)
}

/// The first and last byte of a range. `None`: it asks for something that may be ignored, such as many
/// ranges. `Some(None)`: there is no such range.
fn single_range(value: &HeaderValue, len: usize) -> Option<Option<(usize, usize)>> {
    let range = value.to_str().ok()?.strip_prefix("bytes=")?;
    if range.contains(',') {
        return None;
    }
    let (first, last) = range.split_once('-')?;
    let end = len.checked_sub(1);
    let bounds = match (first.parse().ok(), last.parse::<usize>().ok()) {
        (Some(first), Some(last)) => Some(first).zip(end.map(|end| last.min(end))),
        (Some(first), None) if last.is_empty() => Some(first).zip(end),
        (None, Some(count)) if first.is_empty() && count > 0 => Some(len.saturating_sub(count)).zip(end),
        _ => None,
    };
    Some(bounds.filter(|(first, last)| first <= last))
}

fn text(status: StatusCode, line: String) -> Response<Rope> {
    let mut response = Response::new(Rope::from(line + "\n"));
    *response.status_mut() = status;
    response
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Refusal {
        let status = match error.kind() {
            io::ErrorKind::QuotaExceeded => StatusCode::PAYLOAD_TOO_LARGE,
            io::ErrorKind::OutOfMemory => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Refusal(status, error.to_string())
    }
}

impl From<BodyError<hyper::Error>> for Refusal {
    fn from(error: BodyError<hyper::Error>) -> Refusal {
        match error {
            BodyError::Rope(error) => error.into(),
            error => Refusal(StatusCode::BAD_REQUEST, error.to_string()),
        }
    }
}
