//! The requests that the gateway answers, and how.

use std::sync::Arc;

use anyhow::ensure;
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::from_fn;
use axum::response::{IntoResponse, Response};
use axum::routing::MethodRouter;
use headers::{AcceptRanges, ContentLength, ContentRange, HeaderMapExt, LastModified};
use http_body::Body as _;
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreExt};
use ropewalk::Pool;
use tokio::time::timeout;

use crate::conditions::{Outcome, Version, evaluate, range_is_wanted};
use crate::download::body;
use crate::failure::Failure;
use crate::linger::linger;
use crate::parts::Parts;
use crate::ranges::{Wanted, range_field, wanted};
use crate::upload::upload;
use crate::{Limits, activity, rfc9112};

/// Most parts that S3 takes for an object.
const PARTS_MAX: u64 = 10_000;

/// Most bytes of a name that S3 takes, and most in a segment that file systems take, less a suffix: object_store writes
/// under a name beside it.
const NAME_MAX: (usize, usize) = (1024, 240);

/// What all requests share.
pub(crate) struct Gateway {
    store: Arc<dyn ObjectStore>,
    pool: Pool,
    part: u64,
    limits: Limits,
}

impl Gateway {
    pub(crate) fn new(
        store: Arc<dyn ObjectStore>,
        pool: Pool,
        part: u64,
        limits: Limits,
    ) -> anyhow::Result<Arc<Gateway>> {
        let capacity = pool.stats().capacity;
        ensure!(
            (1..=capacity).contains(&part),
            "a part of {part} bytes does not fit into a pool of {capacity}; lower --part or raise --capacity"
        );
        Ok(Arc::new(Gateway { store, pool, part, limits }))
    }

    pub(crate) fn router(self: Arc<Gateway>) -> Router {
        let objects = MethodRouter::new().get(read).put(put).delete(delete);
        Router::new()
            .fallback_service(objects.with_state(self))
            .layer(from_fn(rfc9112::check))
            .layer(from_fn(activity::follow))
            .layer(from_fn(linger))
    }

    /// Bytes of each part of a body: so much room is reserved for one. A body that is shorter needs no more than itself.
    fn part_for(&self, announced: Option<u64>) -> Result<usize, Failure> {
        let len = announced.unwrap_or(self.part);
        let part = self.part.max(len.div_ceil(PARTS_MAX)).min(len.max(1));
        let capacity = self.pool.stats().capacity;
        usize::try_from(part).ok().filter(|_| part <= capacity).ok_or_else(|| {
            let why =
                format!("parts of {part} bytes are needed, and the gateway has {capacity} for all of them");
            Failure::new(StatusCode::PAYLOAD_TOO_LARGE, why)
        })
    }
}

async fn put(State(gateway): State<Arc<Gateway>>, request: Request) -> Result<Response, Failure> {
    let (head, content) = request.into_parts();
    let path = path(&head.uri)?;
    check_write(&head.headers)?;
    let part = gateway.part_for(content.size_hint().exact())?;
    let parts = Parts::new(content, &gateway.pool, part, gateway.limits);
    let stored = upload(&gateway.store, &path, parts, gateway.limits).await?;
    let mut response = StatusCode::NO_CONTENT.into_response();
    set_etag(response.headers_mut(), stored.e_tag.as_deref());
    Ok(response)
}

/// What the gateway cannot keep to, because not every store can: a write that depends on what is there.
fn check_write(headers: &HeaderMap) -> Result<(), Failure> {
    if headers.contains_key(header::CONTENT_RANGE) {
        return Err(Failure::new(
            StatusCode::BAD_REQUEST,
            "an object is replaced as a whole, not a range of it",
        ));
    }
    let conditions = [header::IF_MATCH, header::IF_NONE_MATCH, header::IF_UNMODIFIED_SINCE];
    match conditions.iter().find(|name| headers.contains_key(*name)) {
        Some(name) => {
            Err(Failure::new(StatusCode::NOT_IMPLEMENTED, format!("writing with {name} is not supported")))
        }
        None => Ok(()),
    }
}

async fn delete(
    State(gateway): State<Arc<Gateway>>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<StatusCode, Failure> {
    check_write(&headers)?;
    timeout(gateway.limits.patience, gateway.store.delete(&path(&uri)?)).await??;
    Ok(StatusCode::NO_CONTENT)
}

/// GET and HEAD.
async fn read(
    State(gateway): State<Arc<Gateway>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    let (path, patience) = (path(&uri)?, gateway.limits.patience);
    let mut options = GetOptions { head: method == Method::HEAD, ..GetOptions::default() };
    let mut status = StatusCode::OK;
    if let Some(range) = range_field(&headers).filter(|_| !options.head) {
        let meta = timeout(patience, gateway.store.head(&path)).await??;
        let version = version(&meta);
        match wanted(range, meta.size) {
            // Answered below: preconditions come before ranges.
            _ if evaluate(&method, &headers, Some(&version)) != Outcome::Proceed => {}
            _ if !range_is_wanted(&headers, &version) => {}
            Wanted::Parts(parts) if parts.len() == 1 => {
                status = StatusCode::PARTIAL_CONTENT;
                options.range = Some(GetRange::Bounded(parts[0].clone()));
                // The range is one of this version. Not every version has a tag.
                options.if_match = meta.e_tag;
            }
            Wanted::Unsatisfiable => return Ok(unsatisfiable(meta.size)),
            Wanted::Whole | Wanted::Parts(_) => {} // several ranges may be answered with the whole
        }
    }
    let object = match timeout(patience, gateway.store.get_opts(&path, options)).await? {
        // It was replaced since its size was asked for: all of the new one, as without a range.
        Err(object_store::Error::Precondition { .. }) if status == StatusCode::PARTIAL_CONTENT => {
            status = StatusCode::OK;
            timeout(patience, gateway.store.get(&path)).await??
        }
        object => object?,
    };
    let (meta, range) = (object.meta.clone(), object.range.clone());
    let failed = match evaluate(&method, &headers, Some(&version(&meta))) {
        Outcome::Proceed => None,
        Outcome::NotModified => Some(StatusCode::NOT_MODIFIED),
        Outcome::Failed => Some(StatusCode::PRECONDITION_FAILED),
    };
    if let Some(status) = failed {
        // RFC 9110, section 8.6: a length would be that of the content. Without one, axum takes that of no body for HEAD.
        let len = (status == StatusCode::NOT_MODIFIED).then_some(ContentLength(meta.size));
        let mut response = status.into_response();
        len.into_iter().for_each(|len| response.headers_mut().typed_insert(len));
        set_etag(response.headers_mut(), meta.e_tag.as_deref());
        return Ok(response);
    }
    let body =
        if method == Method::HEAD { Body::empty() } else { body(object, &gateway.pool, gateway.limits)? };
    let mut response = (status, body).into_response();
    let headers = response.headers_mut();
    headers.typed_insert(AcceptRanges::bytes());
    headers.typed_insert(LastModified::from(std::time::SystemTime::from(meta.last_modified)));
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    set_etag(headers, meta.e_tag.as_deref());
    if status == StatusCode::PARTIAL_CONTENT {
        headers.typed_insert(ContentRange::bytes(range.clone(), meta.size).expect("it is not empty"));
    }
    headers.typed_insert(ContentLength(range.end - range.start));
    Ok(response)
}

/// Stores differ in how they write tags, so theirs is not asked to compare them. None says whether an object changed
/// twice in a second.
fn version(meta: &ObjectMeta) -> Version {
    Version {
        etag: meta.e_tag.as_deref().and_then(etag),
        modified: meta.last_modified.into(),
        date_is_strong: false,
    }
}

fn unsatisfiable(size: u64) -> Response {
    let mut response = StatusCode::RANGE_NOT_SATISFIABLE.into_response();
    response.headers_mut().typed_insert(ContentRange::unsatisfied_bytes(size));
    response
}

fn set_etag(headers: &mut HeaderMap, tag: Option<&str>) {
    if let Some(etag) = tag.and_then(etag) {
        headers.insert(header::ETAG, etag);
    }
}

/// Some stores have it with quotes, some without.
fn etag(tag: &str) -> Option<HeaderValue> {
    let is_quoted = tag.ends_with('"') && (tag.starts_with('"') || tag.starts_with("W/\""));
    if is_quoted { tag.parse().ok() } else { format!("\"{tag}\"").parse().ok() }
}

fn path(uri: &Uri) -> Result<Path, Failure> {
    let path = Path::from_url_path(uri.path()).map_err(object_store::Error::from)?;
    if path.as_ref().is_empty() {
        return Err(Failure::new(StatusCode::BAD_REQUEST, "an object needs a name: /name"));
    }
    let (name, segment) = NAME_MAX;
    if path.as_ref().len() > name || path.parts().any(|part| part.as_ref().len() > segment) {
        let why = format!("a name has at most {name} bytes, and {segment} between slashes");
        return Err(Failure::new(StatusCode::BAD_REQUEST, why));
    }
    Ok(path)
}
