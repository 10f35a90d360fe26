//! Conditional requests: RFC 9110, section 13.

use std::time::SystemTime;

use axum::http::{HeaderMap, Method};
use headers::{ETag, HeaderMapExt, IfMatch, IfModifiedSince, IfNoneMatch, IfRange, IfUnmodifiedSince};

/// The validators of an object's current version.
pub(crate) struct Version {
    /// Not every store has tags.
    pub(crate) etag: Option<ETag>,
    pub(crate) modified: SystemTime,
    /// Section 8.8.2.2: no other version has had this date, and none can get it any more.
    pub(crate) date_is_strong: bool,
}

/// What the preconditions of a request come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Proceed,
    NotModified,
    Failed,
}

/// Evaluates the preconditions in the order of section 13.2.2. `*` stands for any version, with a tag or without.
pub(crate) fn evaluate(method: &Method, headers: &HeaderMap, current: Option<&Version>) -> Outcome {
    let reads = matches!(*method, Method::GET | Method::HEAD);
    let holds = if let Some(wanted) = headers.typed_get::<IfMatch>() {
        let is_wanted = |tag: &ETag| wanted.precondition_passes(tag);
        let any = wanted == IfMatch::any();
        current.is_some_and(|version| any || version.etag.as_ref().is_some_and(is_wanted))
    } else if let Some(since) = headers.typed_get::<IfUnmodifiedSince>() {
        current.is_none_or(|version| since.precondition_passes(version.modified))
    } else {
        true
    };
    if !holds {
        return Outcome::Failed;
    }
    let modified = if let Some(known) = headers.typed_get::<IfNoneMatch>() {
        let is_new = |tag: &ETag| known.precondition_passes(tag);
        let any = known == IfNoneMatch::any();
        current.is_none_or(|version| !any && version.etag.as_ref().is_none_or(is_new))
    } else if let Some(since) = headers.typed_get::<IfModifiedSince>().filter(|_| reads) {
        current.is_none_or(|version| since.is_modified(version.modified))
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
pub(crate) fn range_is_wanted(headers: &HeaderMap, version: &Version) -> bool {
    if !headers.contains_key("if-range") {
        return true;
    }
    let Some(condition) = headers.typed_get::<IfRange>() else { return false };
    !condition.is_modified(version.etag.as_ref(), None)
        || (version.date_is_strong && condition == IfRange::date(version.modified))
}
