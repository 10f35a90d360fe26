//! Which bytes a `Range` field asks for: RFC 9110, section 14. Pure: no I/O.
//!
//! `headers::Range` is not used: it takes `+2` for a number, and an offset beyond `u64` for an invalid range.

use std::ops::Range;

use axum::http::{HeaderMap, HeaderValue, header};

/// Most ranges that are sent one by one.
const RANGES_MAX: usize = 64;

/// What a `Range` field asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// The field is to be ignored: it is invalid, in another unit, or asks for more than the whole.
    Whole,
    /// These bytes, none of them empty.
    Parts(Vec<Range<u64>>),
    /// None of the ranges has a byte of the content.
    Unsatisfiable,
}

/// Returns the one `Range` field. It is not a list, so of several none is valid.
pub(crate) fn range_field(headers: &HeaderMap) -> Option<&HeaderValue> {
    let mut fields = headers.get_all(header::RANGE).iter();
    fields.next().filter(|_| fields.next().is_none())
}

/// Reads a `Range` field for a content of `len` bytes.
pub(crate) fn wanted(field: &HeaderValue, len: u64) -> Wanted {
    let Some(specs) = field.to_str().ok().and_then(parse) else { return Wanted::Whole };
    if specs.len() > RANGES_MAX {
        return Wanted::Whole;
    }
    // A suffix of an empty content is satisfiable, but no `Content-Range` can say so.
    if len == 0 && specs.iter().any(|spec| matches!(spec, Spec::Suffix(1..))) {
        return Wanted::Whole;
    }
    let parts: Vec<_> = specs.iter().filter_map(|spec| spec.within(len)).collect();
    let total: u64 = parts.iter().map(|part| part.end - part.start).fold(0, u64::saturating_add);
    match (parts.is_empty(), total > len) {
        (true, _) => Wanted::Unsatisfiable,
        (false, true) => Wanted::Whole, // they overlap
        (false, false) => Wanted::Parts(parts),
    }
}

/// A range as it was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Spec {
    /// From the first to the last position; `u64::MAX` for a last one that is not given.
    Int(u64, u64),
    /// So many bytes at the end.
    Suffix(u64),
}

impl Spec {
    fn within(self, len: u64) -> Option<Range<u64>> {
        let range = match self {
            Spec::Int(first, last) => first..last.saturating_add(1).min(len),
            Spec::Suffix(count) => len.saturating_sub(count)..len,
        };
        (!range.is_empty()).then_some(range)
    }
}

/// Parses `bytes=…`; `None` if any part is invalid.
fn parse(field: &str) -> Option<Vec<Spec>> {
    let (unit, set) = field.split_once('=')?;
    if !unit.eq_ignore_ascii_case("bytes") {
        return None;
    }
    let elements = set.split(',').map(|element| element.trim_matches([' ', '\t']));
    let specs: Vec<_> = elements.filter(|element| !element.is_empty()).map(spec).collect::<Option<_>>()?;
    (!specs.is_empty()).then_some(specs)
}

fn spec(text: &str) -> Option<Spec> {
    let (first, last) = text.split_once('-')?;
    match (first, last) {
        ("", count) => number(count).map(Spec::Suffix),
        (first, "") => number(first).map(|first| Spec::Int(first, u64::MAX)),
        (first, last) => {
            let (first, last) = (number(first)?, number(last)?);
            (first <= last).then_some(Spec::Int(first, last))
        }
    }
}

/// `1*DIGIT`, of any length: what is beyond `u64` is beyond any content.
fn number(digits: &str) -> Option<u64> {
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| digits.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init)] // a list of ranges is meant
mod tests {
    use super::*;

    fn of(field: &str, len: u64) -> Wanted {
        wanted(&HeaderValue::from_str(field).expect("a field's value"), len)
    }

    #[test]
    fn the_examples_of_section_14_1_2() {
        for (field, parts) in [
            ("bytes=0-499", vec![0..500]),
            ("bytes=500-999", vec![500..1000]),
            ("bytes=-500", vec![9500..10_000]),
            ("bytes=9500-", vec![9500..10_000]),
            ("bytes=0-0,-1", vec![0..1, 9999..10_000]),
            ("bytes= 0-999, 4500-5499, -1000", vec![0..1000, 4500..5500, 9000..10_000]),
            ("bytes=500-600,601-999", vec![500..601, 601..1000]),
            ("bytes=500-700,601-999", vec![500..701, 601..1000]),
        ] {
            assert_eq!(of(field, 10_000), Wanted::Parts(parts), "{field}");
        }
    }

    #[test]
    fn positions_beyond_the_content_and_beyond_u64() {
        for (field, parts) in [
            ("bytes=2-18446744073709551615", vec![2..10]),
            ("bytes=2-18446744073709551616", vec![2..10]),
            ("bytes=2-99999999999999999999999999999999", vec![2..10]),
            ("bytes=-18446744073709551616", vec![0..10]),
            ("bytes=0-3,10-20", vec![0..4]),
            ("BYTES=,, 1-2\t,", vec![1..3]),
        ] {
            assert_eq!(of(field, 10), Wanted::Parts(parts), "{field}");
        }
        for field in
            ["bytes=10-", "bytes=-0", "bytes=10-12,-0", "bytes=18446744073709551616-18446744073709551617"]
        {
            assert_eq!(of(field, 10), Wanted::Unsatisfiable, "{field}");
        }
    }

    #[test]
    fn what_is_no_range_is_ignored() {
        let invalid = "bytes bytes= bytes=, bytes=- bytes=+2-+4 bytes=2-+4 bytes=7-6 bytes=x-y bytes=1 bytes=1-2-3 \
                       bytes=0x1-2 lines=1-2 bytes=1-2,x bytes=--1 =1-2";
        for field in invalid.split_whitespace().chain(["bytes =1-2", "bytes=1 - 2", "bytes=1-2 3-4", ""]) {
            assert_eq!(of(field, 10), Wanted::Whole, "{field}");
        }
    }

    #[test]
    fn more_than_the_whole_is_the_whole() {
        assert_eq!(of("bytes=0-,0-", 10), Wanted::Whole);
        let many = (0..=RANGES_MAX).map(|at| format!("{at}-{at}")).collect::<Vec<_>>().join(",");
        assert_eq!(of(&format!("bytes={many}"), 1000), Wanted::Whole);
    }

    #[test]
    fn of_an_empty_content() {
        assert_eq!(of("bytes=0-", 0), Wanted::Unsatisfiable);
        assert_eq!(of("bytes=0-0", 0), Wanted::Unsatisfiable);
        assert_eq!(of("bytes=-0", 0), Wanted::Unsatisfiable);
        assert_eq!(of("bytes=-1", 0), Wanted::Whole);
    }

    /// Each field of a small alphabet, against the definition.
    #[test]
    fn every_part_lies_within_the_content() {
        let alphabet = ["0", "2", "9", "10", "-", ",", " ", "+"];
        let mut fields = vec!["bytes=".to_owned()];
        for _ in 0..5 {
            fields =
                fields.iter().flat_map(|field| alphabet.map(|piece| format!("{field}{piece}"))).collect();
        }
        for (field, len) in fields.iter().flat_map(|field| [0, 1, 10].map(|len| (field, len))) {
            if let Wanted::Parts(parts) = of(field, len) {
                assert!(!parts.is_empty() && !field.contains('+'), "{field}");
                assert!(
                    parts.iter().all(|part| part.start < part.end && part.end <= len),
                    "{field}: {parts:?}"
                );
            }
        }
    }
}
