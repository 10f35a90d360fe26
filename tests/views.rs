//! What ropes and views become, and what is copied and kept for it.
#![allow(clippy::cmp_owned, clippy::op_ref, clippy::nonminimal_bool)] // conversions and both sides of a comparison are what is tested
#![allow(clippy::unwrap_used)] // a test fails by panicking

#[allow(dead_code)] // some of it is for other tests
mod support;

use bytes::{Bytes, BytesMut};
use ropewalk::{Pool, Rope, View};
use support::{pattern, received};

const PAGE: usize = 4096;
const MIB: usize = 1 << 20;

/// A view of each kind of `payload`: borrowed of one extent and of many segments, mapped, moved, copied.
fn views(pool: &Pool, payload: &[u8]) -> Vec<(&'static str, View)> {
    let one_run = received(pool, payload).finalize().unwrap();
    assert_eq!((one_run.copied_bytes(), one_run.mapped_bytes()), (0, 0));
    let mapped = scattered(pool, payload, 64 << 10).finalize().unwrap();
    let moved = scattered(pool, payload, 512 << 10).finalize().unwrap();
    assert!(cfg!(ropewalk_portable) || mapped.mapped_bytes() > 0 && moved.mapped_bytes() > 0);
    let copied: Rope = payload.chunks(1000).map(<[u8]>::to_vec).collect();
    let copied = copied.finalize().unwrap();
    let pushed = Rope::from(payload.to_vec()).finalize().unwrap();
    vec![("borrowed", one_run), ("mapped", mapped), ("moved", moved), ("copied", copied), ("pushed", pushed)]
}

/// A rope whose pieces are not adjacent.
fn scattered(pool: &Pool, payload: &[u8], piece: usize) -> Rope {
    let (mut rope, mut between) = (Rope::in_pool(pool), Vec::new());
    for chunk in payload.chunks(piece) {
        rope.append(received(pool, chunk));
        between.push(received(pool, &[0; 100_000]));
    }
    rope
}

#[test]
fn a_slice_of_a_view_keeps_the_pages_of_its_range() {
    let len = 64 * MIB + 7;
    let pool = Pool::new().unwrap();
    let payload = pattern(1, len);
    let mut rope = Rope::in_pool(&pool);
    rope.reserve(len).unwrap();
    rope.extend_from_slice(&payload);
    let view = rope.finalize().unwrap();
    assert_eq!(view.copied_bytes() + view.mapped_bytes(), 0);
    let address = view.as_ptr().addr();
    let seam = PAGE - address % PAGE;
    for range in [0..10, len - 1..len, seam - 1..seam + 1, 2 * MIB - 1..2 * MIB + 1, 5 * MIB..7 * MIB] {
        let slice = view.slice(range.clone());
        assert!(
            *slice == payload[range.clone()] && slice.as_ptr().addr() == address + range.start,
            "no copy"
        );
        assert_eq!((slice.copied_bytes(), slice.mapped_bytes(), slice.num_maps()), (0, 0, 0));
        let of_slice = slice.slice(1..);
        assert!(*of_slice == payload[range.start + 1..range.end]);
        let in_use = pool.stats().in_use;
        drop((slice, of_slice));
        assert_eq!(pool.stats().in_use, in_use, "the view keeps them all");
    }
    let slices = [view.slice(..10), view.slice(5 * MIB + PAGE..7 * MIB), view.slice(len - 1..)];
    let kept = slices.iter().map(|slice| {
        let start = slice.as_ptr().addr();
        ((start + slice.len()).div_ceil(PAGE) - start / PAGE) * PAGE
    });
    let kept: usize = kept.sum();
    drop(view);
    assert_eq!(pool.stats().in_use, kept as u64);
    // Recycled pages are not those that are kept.
    drop(received(&pool, &[0xee; 8 * MIB]));
    assert!(*slices[0] == payload[..10] && *slices[1] == payload[5 * MIB + PAGE..7 * MIB]);
    let bytes = slices.map(Bytes::from);
    assert_eq!(bytes[2], payload[len - 1..]);
    drop(bytes);
    assert_eq!(pool.stats().in_use, 0);
}

#[test]
fn ten_bytes_of_any_view_keep_a_page_at_most() {
    let pool = Pool::new().unwrap();
    let payload = pattern(2, 2 * MIB);
    for index in 0..5 {
        for start in [0, 1, MIB - 5, 2 * MIB - 10] {
            let (kind, view) = views(&pool, &payload).swap_remove(index);
            let ten = view.slice(start..start + 10);
            let shares = view.slice(start..).slice(10..);
            drop(view);
            assert_eq!(shares, payload[start + 10..], "{kind}");
            drop(shares);
            assert_eq!(ten, payload[start..start + 10], "{kind}");
            assert!(pool.stats().in_use <= 2 * PAGE as u64, "{kind} at {start}: {}", pool.stats().in_use);
            drop(ten);
            assert_eq!(pool.stats().in_use, 0, "{kind}");
        }
    }
}

#[test]
fn slices_of_all_shapes_are_those_of_the_bytes() {
    let pool = Pool::new().unwrap();
    let payload = pattern(3, MIB);
    for (kind, view) in views(&pool, &payload) {
        for start in [0, 1, PAGE - 1, PAGE, PAGE + 1, 600_000, MIB - 1, MIB] {
            for end in [0, 1, PAGE - 1, PAGE, PAGE + 1, 600_001, MIB - 1, MIB] {
                if start <= end {
                    assert!(view.slice(start..end) == payload[start..end], "{kind} {start}..{end}");
                }
            }
        }
        assert!(view.slice(..) == view && view.slice(..=9) == payload[..10]);
    }
}

#[test]
#[should_panic(expected = "is beyond the view's 3 bytes")]
fn beyond_the_view() {
    let _ = Rope::from("abc").finalize().unwrap().slice(..usize::MAX);
}

#[test]
#[should_panic(expected = "the range starts at 2, after its end at 1")]
#[allow(clippy::reversed_empty_ranges)]
fn a_range_that_is_none() {
    let _ = Rope::from("abc").finalize().unwrap().slice(2..1);
}

#[test]
fn a_view_becomes_a_rope_without_a_copy_and_a_vector() {
    let pool = Pool::new().unwrap();
    let payload = pattern(4, MIB);
    for (kind, view) in views(&pool, &payload) {
        let address = view.as_ptr();
        let mut rope = Rope::from(view.clone());
        assert_eq!((rope.num_segments(), rope.chunks().next().unwrap().as_ptr()), (1, address), "{kind}");
        rope.push_front("header");
        assert!(rope.slice(6..) == view && rope.starts_with(b"header"));
        drop(rope);
        let mut cursor = view.cursor();
        assert_eq!(cursor.chunk().as_ptr(), address);
        cursor.advance(MIB - 1);
        assert_eq!(cursor.remaining(), 1);
        drop(cursor);
        let copied_before = view.copied_bytes() == MIB || kind == "pushed";
        let vec = Vec::from(view);
        assert!(vec == payload);
        assert_eq!(vec.as_ptr() == address, copied_before, "{kind}");
    }
    assert_eq!(pool.stats().in_use, 0);
}

#[test]
fn a_vector_comes_back_without_a_copy_where_it_can() {
    // As it was pushed, with spare capacity or not.
    for capacity in [10, 1000] {
        let mut vec = Vec::with_capacity(capacity);
        vec.extend_from_slice(b"some bytes");
        let address = vec.as_ptr();
        let vec = Vec::from(Rope::from(vec));
        assert_eq!((vec.as_ptr(), &vec[..]), (address, &b"some bytes"[..]));
        let vec = BytesMut::from(Rope::from(vec));
        assert_eq!((vec.as_ptr(), &vec[..]), (address, &b"some bytes"[..]));
    }
    // As it was copied or received on the heap.
    let payload = pattern(5, 300_000);
    for len in [1, 10, 5000, 300_000] {
        let mut rope = Rope::new();
        rope.extend_from_slice(&payload[..len]);
        let address = rope.chunks().next().unwrap().as_ptr();
        let pieces = rope.num_segments();
        let vec = Vec::from(rope);
        assert!(vec == payload[..len]);
        assert_eq!((pieces, vec.as_ptr()), (1, address), "{len}");
        let mut rope = Rope::new();
        rope.extend_from_slice(&payload[..len]);
        let address = rope.chunks().next().unwrap().as_ptr();
        assert_eq!(BytesMut::from(rope).as_ptr(), address, "{len}");
    }
    // What is shared, or was cut, is copied and stays.
    let mut rope = Rope::new();
    rope.extend_from_slice(&payload);
    let shared = rope.clone();
    assert!(Vec::from(rope) == payload && shared == payload);
    let mut rope = Rope::new();
    rope.extend_from_slice(&payload);
    let front = rope.split_to(10);
    rope.extend_from_slice(b"!");
    assert!(Vec::from(rope) == [&payload[10..], b"!"].concat() && Vec::from(front) == payload[..10]);
    let pool = Pool::options().zero_on_release(true).capacity(4096).create().unwrap();
    let mut rope = Rope::in_pool(&pool);
    rope.extend_from_slice(&payload);
    assert!(Vec::from(rope) == payload && pool.stats().fallbacks > 0);
}

#[test]
fn a_rope_that_is_pushed_is_appended() {
    let pool = Pool::new().unwrap();
    let payload = pattern(6, 100_000);
    let pieces = || -> Rope { payload.chunks(1000).map(<[u8]>::to_vec).collect() };
    let addresses = |rope: &Rope| rope.chunks().map(<[u8]>::as_ptr).collect::<Vec<_>>();
    let twice = [&payload[..], &payload].concat();
    for mut rope in [pieces(), received(&pool, &payload)] {
        let (mut expected, other) = (addresses(&rope), pieces());
        expected.extend(addresses(&other));
        rope.push(other);
        assert!(rope == twice && addresses(&rope) == expected);
    }
    for mut rope in [pieces(), received(&pool, &payload)] {
        rope.extend_from_slice(b"tail");
        for other in [pieces(), received(&pool, &payload), Rope::new()] {
            let (length, copied) = (rope.len(), other.to_vec());
            let mut expected = addresses(&other);
            expected.extend(addresses(&rope));
            rope.push_front(other);
            assert!(rope.starts_with(&copied) && rope.len() == length + copied.len());
            assert_eq!(addresses(&rope), expected);
        }
        rope.extend_from_slice(b"!");
        assert_eq!(rope.slice(rope.len() - 5..), b"tail!");
    }
    let ropes = [pieces(), received(&pool, &payload)];
    let expected: Vec<_> = ropes.iter().flat_map(addresses).collect();
    let all: Rope = ropes.into_iter().collect();
    assert!(all == twice && addresses(&all) == expected);
}

#[test]
fn ropes_and_views_compare_with_whatever_is_bytes() {
    let rope: Rope = ["one ", "text"].into_iter().collect();
    let view = rope.clone().finalize().unwrap();
    let (vec, string) = (b"one text".to_vec(), String::from("one text"));
    assert!(rope == *"one text" && rope == "one text" && rope == string && "one text" == rope);
    assert!(rope == view && view == rope && view == view.clone());
    assert!(view == *"one text" && view == "one text" && view == string && "one text" == view);
    assert!(view == vec && vec == view && view == vec[..] && vec[..] == view && view == &vec[..]);
    assert!(view == b"one text" && view == *b"one text" && view == Bytes::from("one text"));
    for other in ["", "one", "one tex", "one texT", "one text "] {
        assert!(rope != *other && view != *other && view != Rope::from(other.to_owned()), "{other}");
    }
}

#[test]
fn starts_with_across_segments() {
    let flat = b"aabab";
    for size in 1..=5 {
        let rope: Rope = flat.chunks(size).map(<[u8]>::to_vec).collect();
        for prefix in [&b""[..], b"a", b"b", b"aa", b"ab", b"aab", b"aaba", b"aabab", b"aabaa", b"aababa"] {
            assert_eq!(rope.starts_with(prefix), flat.starts_with(prefix), "{size} {prefix:?}");
        }
    }
    assert!(Rope::new().starts_with(b"") && !Rope::new().starts_with(b"a"));
}
