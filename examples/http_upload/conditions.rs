//! Conditional requests: RFC 9110, section 13.
//!
//! `headers` reads the dates. Its entity tags are not used: in its lists a tag that is not ASCII hides all others, and one
//! with a space panics in debug builds.

use std::time::SystemTime;

use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use headers::{Header, HeaderMapExt, IfModifiedSince, IfUnmodifiedSince, LastModified};

/// The validators of an object's current version.
pub(crate) struct Version {
    /// With its quotes, and with `W/` if it is weak. Not every store has tags.
    pub(crate) etag: Option<HeaderValue>,
    pub(crate) modified: SystemTime,
    /// Section 8.8.2.2: no other version has had this date, and none can get it any more.
    pub(crate) date_is_strong: bool,
}

/// Section 8.8.3.2: the two comparisons of entity tags.
impl Version {
    fn is_strongly(&self, tag: &[u8]) -> bool {
        !tag.starts_with(b"W/") && self.etag.as_ref().is_some_and(|etag| etag == tag)
    }

    fn is_weakly(&self, tag: &[u8]) -> bool {
        self.etag.as_ref().is_some_and(|etag| opaque(etag.as_bytes()) == opaque(tag))
    }
}

fn opaque(tag: &[u8]) -> &[u8] {
    tag.strip_prefix(b"W/").unwrap_or(tag)
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
    let holds = if headers.contains_key(header::IF_MATCH) {
        current.is_some_and(|version| lists(headers, header::IF_MATCH, |tag| version.is_strongly(tag)))
    } else if let Some(since) = headers.typed_get::<IfUnmodifiedSince>() {
        current.is_none_or(|version| since.precondition_passes(version.modified))
    } else {
        true
    };
    if !holds {
        return Outcome::Failed;
    }
    let modified = if headers.contains_key(header::IF_NONE_MATCH) {
        current.is_none_or(|version| !lists(headers, header::IF_NONE_MATCH, |tag| version.is_weakly(tag)))
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

/// Whether a list of tags has `*` or one that `is_it`. Quotes are never escaped in a tag, and commas within them are part
/// of it.
fn lists(headers: &HeaderMap, name: HeaderName, is_it: impl Fn(&[u8]) -> bool) -> bool {
    headers.get_all(name).iter().any(|field| {
        let mut quoted = false;
        let mut tags = field.as_bytes().split(|&byte| {
            quoted ^= byte == b'"';
            byte == b',' && !quoted
        });
        tags.any(|tag| matches!(tag.trim_ascii(), b"*") || is_it(tag.trim_ascii()))
    })
}

/// Evaluates `If-Range`: whether a range of this version is wanted, not the whole of another. Section 13.1.5
/// compares entity tags strongly, and takes a date only where it is as good as one.
pub(crate) fn range_is_wanted(headers: &HeaderMap, version: &Version) -> bool {
    let mut conditions = headers.get_all(header::IF_RANGE).iter();
    match (conditions.next(), conditions.next()) {
        (None, _) => true,
        (Some(condition), None) => {
            let date = || LastModified::decode(&mut [condition].into_iter()).ok();
            version.is_strongly(condition.as_bytes())
                || (version.date_is_strong && date() == Some(version.modified.into()))
        }
        (Some(_), Some(_)) => false, // not a list
    }
}
