//! axum and reqwest.

use std::io::{self, ErrorKind};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use http::header::TRAILER;
use http::{HeaderMap, StatusCode};
use ropewalk::{BodyError, Pool, Rope};
use tokio::time::timeout;

/// Longest time for a body: a client that stops in the middle would hold its pages.
const TIME: Duration = Duration::from_secs(30);

/// An axum handler that sends the body back, and its trailers. Receiving copies once, into the pool's pages; the
/// response is the rope's segments, without a copy.
pub async fn echo(State(pool): State<Pool>, request: Request) -> Result<Response, StatusCode> {
    let mut body = Rope::in_pool(&pool);
    body.set_limit(64 << 20); // a body that announces more is refused before it is read
    let received = timeout(TIME, body.receive_body(request.into_body())).await;
    let trailers = received.map_err(|_late| StatusCode::REQUEST_TIMEOUT)?.map_err(|error| match error {
        BodyError::Rope(error) if error.kind() == ErrorKind::QuotaExceeded => StatusCode::PAYLOAD_TOO_LARGE,
        BodyError::Rope(_full) => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::BAD_REQUEST,
    })?;
    let Some(trailers) = trailers else { return Ok(Response::new(Body::new(body))) };
    let names: Vec<_> = trailers.keys().cloned().collect();
    let mut response = Response::new(Body::new(body.with_trailers(trailers)));
    for name in names {
        response.headers_mut().append(TRAILER, name.into()); // HTTP/1.1 sends those that are announced
    }
    Ok(response)
}

/// Uploads a rope with reqwest: no copy. A clone can be sent again.
pub async fn upload(client: &reqwest::Client, url: &str, rope: &Rope) -> reqwest::Result<reqwest::Response> {
    client.put(url).body(reqwest::Body::wrap(rope.clone())).send().await
}

/// Receives the response of reqwest, at most `max` bytes. Copies once, into the pool's pages. How long a server may be
/// silent is `ClientBuilder::read_timeout`; without it one holds this for ever.
pub async fn download(
    response: reqwest::Response,
    pool: &Pool,
    max: usize,
) -> io::Result<(Rope, Option<HeaderMap>)> {
    let mut rope = Rope::in_pool(pool);
    rope.set_limit(max);
    let trailers = rope.receive_body(reqwest::Body::from(response)).await?;
    Ok((rope, trailers))
}
