//! What RFC 9112 asks of a server and hyper leaves to it.

use axum::extract::Request;
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderValue, StatusCode, Version, header};
use axum::middleware::Next;
use axum::response::Response;

type Refused = (StatusCode, &'static str);

/// Middleware that refuses a request without one valid host, and one whose body would not be what it seems to be.
pub(crate) async fn check(request: Request, next: Next) -> Result<Response, Refused> {
    if !names_one_host(&request) {
        return Err((StatusCode::BAD_REQUEST, "a request has one valid Host field\n"));
    }
    if !is_decoded(request.headers()) {
        return Err((StatusCode::NOT_IMPLEMENTED, "the only transfer coding is chunked, applied once\n"));
    }
    Ok(next.run(request).await)
}

/// Section 3.2.
fn names_one_host(request: &Request) -> bool {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    match (hosts.next(), hosts.next()) {
        (None, _) => request.version() != Version::HTTP_11,
        (Some(host), None) => host.is_empty() || is_host(host),
        (Some(_), Some(_)) => false,
    }
}

/// A field has no user, which a URI's authority may have.
fn is_host(field: &HeaderValue) -> bool {
    !field.as_bytes().contains(&b'@') && Authority::try_from(field.as_bytes()).is_ok()
}

/// Section 6.1: hyper decodes chunks, and hands over what is in them, compressed or not.
fn is_decoded(headers: &HeaderMap) -> bool {
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    codings.next().is_none_or(|coding| coding.as_bytes().eq_ignore_ascii_case(b"chunked"))
        && codings.next().is_none()
}
