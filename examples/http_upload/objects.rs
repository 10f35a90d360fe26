//! The requests that the server answers, and how.

use std::borrow::Cow;
use std::fmt::Write;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::{from_fn, map_request};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get};
use headers::{AcceptRanges, HeaderMapExt, LastModified};
use http_body::Body as _;
use percent_encoding::percent_decode_str;
use ropewalk::{Pool, Rope};
use sha2::{Digest, Sha256};
use tower_http::trace::{DefaultMakeSpan, DefaultOnResponse, TraceLayer};
use tracing::Level;

use crate::conditions::{Outcome, evaluate, range_is_wanted};
use crate::content::{Content, content_range, multipart, slice};
use crate::linger::linger;
use crate::metrics::Metrics;
use crate::ranges::{Wanted, range_field, wanted};
use crate::store::{Object, Store};
use crate::upload::Upload;
use crate::{Limits, activity, metrics, rfc9112};

/// Fields of a PUT that describe its content; they are stored, and sent with it.
const METADATA: [HeaderName; 3] = [header::CONTENT_TYPE, header::CONTENT_ENCODING, header::CONTENT_LANGUAGE];

/// Fields that no trailer section may have: RFC 9110, section 6.5.1, and RFC 9113, section 8.2.2.
const NO_TRAILERS: [HeaderName; 20] = [
    header::AUTHORIZATION,
    header::CACHE_CONTROL,
    header::CONNECTION,
    header::CONTENT_ENCODING,
    header::CONTENT_LENGTH,
    header::CONTENT_RANGE,
    header::CONTENT_TYPE,
    header::EXPECT,
    header::HOST,
    HeaderName::from_static("keep-alive"),
    header::MAX_FORWARDS,
    header::PRAGMA,
    header::PROXY_AUTHORIZATION,
    HeaderName::from_static("proxy-connection"),
    header::RANGE,
    header::SET_COOKIE,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// Most bytes of an object's name, metadata and trailers, none of which is in the pool.
const HEADS_MAX: usize = 4 << 10;

const ANY_TYPE: &str = "application/octet-stream";

/// The one name that is not an object's.
const METRICS: &str = "/metrics";

/// What all requests share.
pub(crate) struct Objects {
    pool: Pool,
    /// Most bytes in one upload.
    most: usize,
    limits: Limits,
    store: Store,
    metrics: Arc<Metrics>,
}

impl Objects {
    pub(crate) fn new(pool: Pool, most: usize, limits: Limits, metrics: Arc<Metrics>) -> Arc<Objects> {
        let store = Store::new(limits.max_objects.get() as usize);
        Arc::new(Objects { pool, most, limits, store, metrics })
    }

    pub(crate) fn router(self: Arc<Objects>) -> Router {
        let objects = MethodRouter::new().get(read).put(put).delete(delete).options(options).fallback(refuse);
        let log = TraceLayer::new_for_http()
            .make_span_with(DefaultMakeSpan::new().level(Level::INFO))
            .on_response(DefaultOnResponse::new().level(Level::INFO));
        let metrics = Arc::clone(&self.metrics);
        let routes = Router::new()
            .route(METRICS, get(metrics::show).with_state(Arc::clone(&metrics)))
            .fallback_service(objects.with_state(self));
        Router::new()
            .fallback_service(routes)
            .layer(map_request(decode_metrics))
            .layer(from_fn(rfc9112::check))
            .layer(axum::middleware::from_fn_with_state(metrics, metrics::count))
            .layer(log)
            .layer(from_fn(activity::follow))
            .layer(from_fn(linger))
    }
}

type Answer = Result<Response, Refusal>;

/// The name of an object: the path, in which `%C3%BC` and `ü` are the same (RFC 9110, section 4.2.3). The query is no
/// part of it.
fn name(target: &Uri) -> Result<Cow<'_, str>, Refusal> {
    let name = percent_decode_str(target.path()).decode_utf8().ok();
    let is_name = |name: &Cow<'_, str>| {
        name.starts_with('/')
            && !name.contains('\0')
            && !name.split('/').any(|part| part == "." || part == "..")
    };
    name.filter(is_name).ok_or_else(|| {
        Refusal::new(
            StatusCode::BAD_REQUEST,
            "a name must be UTF-8, without NUL and without segments . and ..",
        )
    })
}

/// Makes a target that is equivalent to `/metrics` equal to it: routes are compared before they are decoded.
async fn decode_metrics(mut request: Request) -> Request {
    if name(request.uri()).is_ok_and(|name| name == METRICS) {
        *request.uri_mut() = Uri::from_static(METRICS);
    }
    request
}

async fn put(State(objects): State<Arc<Objects>>, request: Request) -> Answer {
    let (head, mut body) = request.into_parts();
    objects.receive(&head, &mut body).await
}

impl Objects {
    async fn receive(&self, head: &Parts, body: &mut Body) -> Answer {
        let (name, headers) = (&*name(&head.uri)?, &head.headers);
        check_put(headers)?;
        let check = |current: Option<&Object>| {
            precondition(evaluate(&Method::PUT, headers, current.map(Object::version).as_ref()))
        };
        check(self.store.get(name).as_deref())?;
        let announced = body.size_hint().exact();
        let upload =
            Upload::begin(&self.pool, self.most, &self.limits, &self.metrics.waiting, announced).await?;
        let (content, trailers) = upload.receive(body).await?;
        let (metadata, trailers) = (metadata(headers), trailers.and_then(kept));
        check_heads(name, [Some(&metadata), trailers.as_ref()])?;
        self.metrics.received_bytes.inc_by(content.len() as u64);
        let copy = content.clone(); // shares the memory
        let hash = tokio::task::spawn_blocking(|| hash(copy)).await.map_err(io::Error::from)??;
        let etag = ascii(&format!("\"{hash}\""));
        let object = Object::new(content, etag.clone(), metadata, trailers);
        let replaced = self.store.put(name, object, check)?;
        let mut response = text(if replaced { StatusCode::OK } else { StatusCode::CREATED }, hash);
        response.headers_mut().insert(header::ETAG, etag);
        Ok(response)
    }
}

/// Section 14.5: a part must not be taken for the whole. Section 10.1.1: no other expectation is known.
fn check_put(headers: &HeaderMap) -> Result<(), Refusal> {
    if headers.contains_key(header::CONTENT_RANGE) {
        return Err(Refusal::new(StatusCode::BAD_REQUEST, "Content-Range in a PUT: send the whole content"));
    }
    let is_known = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"100-continue");
    if headers.get_all(header::EXPECT).iter().any(|value| !is_known(value)) {
        return Err(Refusal::new(StatusCode::EXPECTATION_FAILED, "only 100-continue can be expected"));
    }
    Ok(())
}

fn check_heads(name: &str, maps: [Option<&HeaderMap>; 2]) -> Result<(), Refusal> {
    let fields = maps.into_iter().flatten().flatten();
    let len = name.len() + fields.map(|(name, value)| name.as_str().len() + value.len()).sum::<usize>();
    if len <= HEADS_MAX {
        return Ok(());
    }
    let why = format!("name, metadata and trailers have {len} bytes; {HEADS_MAX} are allowed");
    Err(Refusal::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, why))
}

fn metadata(headers: &HeaderMap) -> HeaderMap {
    let kept = headers.iter().filter(|(name, _)| METADATA.contains(name));
    kept.map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// What is kept of trailers; `None` if nothing is.
fn kept(mut trailers: HeaderMap) -> Option<HeaderMap> {
    for name in NO_TRAILERS {
        trailers.remove(name);
    }
    (!trailers.is_empty()).then_some(trailers)
}

/// The hash needs one slice: the view is one, without a join.
fn hash(rope: Rope) -> io::Result<String> {
    let view = rope.finalize()?;
    Ok(Sha256::digest(&*view).iter().fold(String::new(), |mut hex, byte| {
        write!(hex, "{byte:02x}").expect("into a string");
        hex
    }))
}

async fn delete(State(objects): State<Arc<Objects>>, request: Request) -> Answer {
    let check =
        |object: &Object| precondition(evaluate(&Method::DELETE, request.headers(), Some(&object.version())));
    match objects.store.remove(&name(request.uri())?, check)? {
        true => Ok(StatusCode::NO_CONTENT.into_response()),
        false => Err(not_found()),
    }
}

async fn options() -> Response {
    (StatusCode::NO_CONTENT, [(header::ALLOW, "GET,HEAD,PUT,DELETE,OPTIONS")]).into_response()
}

/// RFC 9110, section 9.1: 405, with the `Allow` that axum adds, for a method that is known.
async fn refuse(method: Method) -> Refusal {
    let is_known = [Method::POST, Method::PATCH, Method::TRACE, Method::CONNECT].contains(&method);
    let status = if is_known { StatusCode::METHOD_NOT_ALLOWED } else { StatusCode::NOT_IMPLEMENTED };
    Refusal::new(status, format!("an object has no method {method}"))
}

/// GET and HEAD.
async fn read(State(objects): State<Arc<Objects>>, request: Request) -> Answer {
    let (method, headers) = (request.method(), request.headers());
    let object = objects.store.get(&name(request.uri())?).ok_or_else(not_found)?;
    let mut response = match evaluate(method, headers, Some(&object.version())) {
        Outcome::Proceed => represent(method, headers, &object),
        Outcome::NotModified => not_modified(object.content.len()),
        Outcome::Failed => return Err(failed()),
    };
    response.headers_mut().insert(header::ETAG, object.etag.clone());
    response.headers_mut().typed_insert(LastModified::from(object.modified));
    response.headers_mut().typed_insert(AcceptRanges::bytes());
    Ok(response)
}

/// Section 8.6: a `Content-Length` would be that of the content. Without one, axum takes that of no body for HEAD.
fn not_modified(len: usize) -> Response {
    (StatusCode::NOT_MODIFIED, [(header::CONTENT_LENGTH, HeaderValue::from(len))]).into_response()
}

fn represent(method: &Method, headers: &HeaderMap, object: &Object) -> Response {
    let len = object.content.len() as u64;
    match asked(method, headers, object) {
        Wanted::Whole => whole(headers, object),
        Wanted::Unsatisfiable => unsatisfiable(len),
        Wanted::Parts(parts) if parts.len() == 1 => {
            let mut response = content(Content::new(slice(&object.content, &parts[0])), object);
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
            response.headers_mut().insert(header::CONTENT_RANGE, ascii(&content_range(&parts[0], len)));
            response
        }
        Wanted::Parts(parts) => {
            let boundary = format!("{:032x}", fastrand::u128(..));
            let part_type = object.metadata.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
            let body = multipart(&object.content, part_type.unwrap_or(ANY_TYPE), &parts, &boundary);
            let mut response = content(Content::new(body), object);
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
            let kind = ascii(&format!("multipart/byteranges; boundary={boundary}"));
            response.headers_mut().insert(header::CONTENT_TYPE, kind);
            response
        }
    }
}

/// Section 14.2: only GET has ranges.
fn asked(method: &Method, headers: &HeaderMap, object: &Object) -> Wanted {
    match range_field(headers) {
        Some(field) if method == Method::GET && range_is_wanted(headers, &object.version()) => {
            wanted(field, object.content.len() as u64)
        }
        _ => Wanted::Whole,
    }
}

/// With the trailers that came with it, for a client that says `TE: trailers`.
fn whole(headers: &HeaderMap, object: &Object) -> Response {
    match &object.trailers {
        Some(trailers) if takes_trailers(headers) => {
            let names = trailers.keys().map(|name| name.as_str()).collect::<Vec<_>>().join(", ");
            let body = Content::with_trailers(object.content.clone(), trailers.clone());
            let mut response = content(body, object);
            response.headers_mut().insert(header::TRAILER, ascii(&names));
            response
        }
        _ => content(Content::new(object.content.clone()), object),
    }
}

fn takes_trailers(headers: &HeaderMap) -> bool {
    let values = headers.get_all(header::TE).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|coding| coding.trim().eq_ignore_ascii_case("trailers"))
}

fn content(body: Content, object: &Object) -> Response {
    let len = body.size_hint().exact();
    let mut response = Body::new(body).into_response();
    let headers = response.headers_mut();
    headers.extend(object.metadata.clone());
    headers.entry(header::CONTENT_TYPE).or_insert(HeaderValue::from_static(ANY_TYPE));
    if let Some(len) = len {
        headers.insert(header::CONTENT_LENGTH, len.into());
    }
    response
}

fn unsatisfiable(len: u64) -> Response {
    let mut response = text(StatusCode::RANGE_NOT_SATISFIABLE, format!("the content has {len} bytes"));
    response.headers_mut().insert(header::CONTENT_RANGE, ascii(&format!("bytes */{len}")));
    response
}

fn ascii(value: &str) -> HeaderValue {
    HeaderValue::from_str(value).expect("visible ASCII")
}

fn text(status: StatusCode, line: impl Into<String>) -> Response {
    (status, line.into() + "\n").into_response()
}

/// Why a request is not served: the status, and a line for a human.
#[derive(Debug)]
pub(crate) struct Refusal {
    status: StatusCode,
    why: String,
    retry_after: Option<Duration>,
}

impl Refusal {
    pub(crate) fn new(status: StatusCode, why: impl Into<String>) -> Refusal {
        Refusal { status, why: why.into(), retry_after: None }
    }

    pub(crate) fn retry_after(self, time: Duration) -> Refusal {
        Refusal { retry_after: Some(time), ..self }
    }
}

fn not_found() -> Refusal {
    Refusal::new(StatusCode::NOT_FOUND, "no such object")
}

fn failed() -> Refusal {
    Refusal::new(StatusCode::PRECONDITION_FAILED, "a precondition does not hold")
}

fn precondition(outcome: Outcome) -> Result<(), Refusal> {
    if outcome == Outcome::Proceed { Ok(()) } else { Err(failed()) }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = text(self.status, self.why);
        if let Some(time) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, time.as_secs().max(1).into());
        }
        response
    }
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Refusal {
        match error.kind() {
            io::ErrorKind::OutOfMemory => Refusal::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string())
                .retry_after(Duration::from_secs(1)),
            _ => Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        }
    }
}
