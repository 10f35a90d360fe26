//! Ropes and the standard library: conversions, and copies to and from readers and writers.
#![allow(clippy::unwrap_used)] // a test fails by panicking

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, ErrorKind, Read, Write};

use bytes::{Bytes, BytesMut};
use ropewalk::{Pool, Rope};

fn pattern(len: usize) -> Vec<u8> {
    (0..len as u64).map(|i| (i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8).collect()
}

#[test]
fn everything_that_owns_bytes_becomes_a_rope_without_a_copy_and_back() {
    let vec = b"some bytes".to_vec();
    let address = vec.as_ptr();
    let same = |rope: &Rope| rope.segments().next().unwrap().as_ptr() == address;
    let rope = Rope::from(vec);
    assert!(same(&rope));
    let rope = Rope::from(Vec::from(rope).into_boxed_slice());
    assert!(same(&rope));
    let rope = Rope::from(String::from_utf8(Vec::from(rope)).unwrap());
    assert!(same(&rope));
    let rope = Rope::from(Bytes::from(rope));
    assert!(same(&rope));
    let rope = Rope::from(BytesMut::from(rope));
    assert!(same(&rope));
    assert_eq!(Rope::from(&b"some bytes"[..]), rope);
    assert_eq!(Rope::from("some bytes"), rope);
}

#[test]
fn many_segments_become_one_piece() {
    let pool = Pool::new().unwrap();
    let payload = pattern(1 << 20);
    for rope in [Rope::new(), Rope::in_pool(&pool)] {
        let mut rope = rope;
        rope.extend(payload.chunks(70_000));
        rope.push("!");
        let whole = [&payload[..], b"!"].concat();
        let vec = Vec::from(rope.clone());
        assert!(vec == whole);
        let bytes_mut = BytesMut::from(rope.clone());
        assert!(bytes_mut == whole);
        let bytes = Bytes::from(rope);
        assert!(bytes == whole);
    }
    assert!(Vec::from(Rope::new()).is_empty());
    assert!(Bytes::from(Rope::new()).is_empty());
    assert!(BytesMut::from(Rope::new()).is_empty());
}

#[test]
fn copies_go_both_ways_between_ropes_readers_and_writers() {
    let payload = pattern(3_000_001);
    let mut rope = Rope::in_pool(&Pool::new().unwrap());
    assert_eq!(io::copy(&mut &payload[..], &mut rope).unwrap(), 3_000_001);
    assert!(rope == payload);
    let mut back = Vec::new();
    io::copy(&mut rope.cursor(), &mut back).unwrap();
    assert!(back == payload);

    let mut file = tempfile::tempfile().unwrap();
    let mut writer = BufWriter::with_capacity(64 << 10, file.try_clone().unwrap());
    io::copy(&mut rope, &mut writer).unwrap();
    writer.flush().unwrap();
    assert!(rope.is_empty());
    io::Seek::rewind(&mut file).unwrap();
    io::copy(&mut BufReader::with_capacity(64 << 10, file), &mut rope).unwrap();
    assert!(rope == payload);
}

#[test]
fn lines_are_found_across_segments() {
    let rope: Rope = ["one\ntw", "o\n", "thr", "ee"].into_iter().collect();
    let lines: Vec<String> = rope.cursor().lines().map(Result::unwrap).collect();
    assert_eq!(lines, ["one", "two", "three"]);
    let mut text = String::new();
    rope.clone().read_to_string(&mut text).unwrap();
    assert_eq!(text, "one\ntwo\nthree");
}

#[test]
fn a_copy_beyond_the_limit_fails_and_keeps_what_fits() {
    let mut rope = Rope::new();
    rope.set_limit(10_000);
    let error = io::copy(&mut File::open("/dev/zero").unwrap(), &mut rope).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::QuotaExceeded);
    assert_eq!(rope.len(), 10_000);
}
