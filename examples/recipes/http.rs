//! Uploads with hyper or axum.

use std::io::ErrorKind;
use std::time::Duration;

use http::{Request, Response, StatusCode};
use http_body::Body;
use ropewalk::{BodyError, Pool, Rope};
use tokio::time::timeout;

/// Keeps the body, and sends it back. `B` is `hyper::body::Incoming` or `axum::body::Body`.
pub async fn upload<B: Body>(request: Request<B>, pool: &Pool, max: usize, time: Duration) -> Response<Rope> {
    let mut body = Rope::in_pool(pool);
    body.set_limit(max); // a body that announces more is refused before it is read
    match timeout(time, body.receive_body(request.into_body())).await {
        Ok(Ok(_trailers)) => Response::new(body), // a frame per segment, sent by gather writes
        Ok(Err(BodyError::Rope(error))) if error.kind() == ErrorKind::QuotaExceeded => {
            refusal(StatusCode::PAYLOAD_TOO_LARGE)
        }
        Ok(Err(BodyError::Rope(_full))) => refusal(StatusCode::SERVICE_UNAVAILABLE),
        Ok(Err(_broken)) => refusal(StatusCode::BAD_REQUEST),
        Err(_late) => refusal(StatusCode::REQUEST_TIMEOUT),
    }
}

fn refusal(status: StatusCode) -> Response<Rope> {
    let mut response = Response::new(Rope::new());
    *response.status_mut() = status;
    response
}
