//! Conditional requests: RFC 9110, section 13.

use std::time::{Duration, SystemTime};

use axum::http::{HeaderMap, Method};
use headers::{HeaderMapExt, IfMatch, IfModifiedSince, IfNoneMatch, IfRange, IfUnmodifiedSince};

use crate::store::Object;

/// What the preconditions of a request come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Proceed,
    NotModified,
    Failed,
}

/// Evaluates the preconditions in the order of section 13.2.2.
pub(crate) fn evaluate(method: &Method, headers: &HeaderMap, current: Option<&Object>) -> Outcome {
    let reads = matches!(*method, Method::GET | Method::HEAD);
    if let Some(wanted) = headers.typed_get::<IfMatch>() {
        if !current.is_some_and(|object| wanted.precondition_passes(&object.etag)) {
            return Outcome::Failed;
        }
    } else if let Some(since) = headers.typed_get::<IfUnmodifiedSince>() {
        if current.is_some_and(|object| !since.precondition_passes(object.modified)) {
            return Outcome::Failed;
        }
    }
    let modified = if let Some(known) = headers.typed_get::<IfNoneMatch>() {
        current.is_none_or(|object| known.precondition_passes(&object.etag))
    } else if let Some(since) = headers.typed_get::<IfModifiedSince>().filter(|_| reads) {
        current.is_none_or(|object| since.is_modified(object.modified))
    } else {
        true
    };
    match (modified, reads) {
        (true, _) => Outcome::Proceed,
        (false, true) => Outcome::NotModified,
        (false, false) => Outcome::Failed,
    }
}

/// Evaluates `If-Range`: whether a range of this version is wanted, not the whole of another. Section 13.1.5
/// compares entity tags strongly, and takes a date only where it is as good as one.
pub(crate) fn range_is_wanted(headers: &HeaderMap, object: &Object) -> bool {
    if !headers.contains_key("if-range") {
        return true;
    }
    let Some(condition) = headers.typed_get::<IfRange>() else { return false };
    !condition.is_modified(Some(&object.etag), None)
        || (condition == IfRange::date(object.modified) && date_is_strong(object))
}

/// Section 8.8.2.2: no other version can have had this date, nor can one get it any more.
fn date_is_strong(object: &Object) -> bool {
    object.alone_in_its_second && SystemTime::now() >= object.modified + Duration::from_secs(1)
}
