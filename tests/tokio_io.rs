//! tokio's I/O traits on ropes and cursors do what those of `std::io` do.
#![cfg(feature = "tokio")]
#![allow(clippy::unwrap_used)] // a test fails by panicking

use std::io::{ErrorKind, IoSlice, Seek, SeekFrom};

use ropewalk::{Pool, Rope};
use tokio::io::{
    AsyncBufReadExt, AsyncReadExt, AsyncSeekExt, AsyncWrite, AsyncWriteExt, copy, copy_bidirectional,
    copy_buf, duplex,
};

const MIB: usize = 1 << 20;

fn pattern(len: usize) -> Vec<u8> {
    (0..len as u64).map(|i| (i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8).collect()
}

fn pieces(bytes: &[u8], piece: usize) -> Rope {
    bytes.chunks(piece).map(<[u8]>::to_vec).collect()
}

#[tokio::test]
async fn copied_out_of_ropes_and_cursors() {
    let payload = pattern(300_000);
    for piece in [1, 777, 300_000] {
        let payload = &payload[..payload.len().min(piece * 1000)];
        let rope = pieces(payload, piece);
        let (mut by_copy, mut by_segment) = (Vec::new(), Vec::new());
        assert_eq!(copy(&mut rope.cursor(), &mut by_copy).await.unwrap(), payload.len() as u64);
        assert_eq!(copy_buf(&mut rope.cursor(), &mut by_segment).await.unwrap(), payload.len() as u64);
        assert!(by_copy == payload && by_segment == payload);
        let (mut one, mut other, mut back) = (rope.clone(), rope, Vec::new());
        copy(&mut one, &mut back).await.unwrap();
        copy_buf(&mut other, &mut back).await.unwrap();
        assert!(back == [payload, payload].concat() && one.is_empty() && other.is_empty());
    }
}

#[tokio::test]
async fn copied_into_a_rope_up_to_its_limit_and_the_capacity() {
    let payload = pattern(16 * MIB);
    let pool = Pool::options().capacity(MIB as u64).create().unwrap();
    for (limit, fits) in [(0, 0), (1, 1), (100_000, 100_000), (usize::MAX, MIB)] {
        let mut rope = Rope::in_pool(&pool);
        rope.set_limit(limit);
        let error = copy(&mut &payload[..], &mut rope).await.unwrap_err();
        let kind = if limit < MIB { ErrorKind::QuotaExceeded } else { ErrorKind::OutOfMemory };
        assert_eq!((error.kind(), rope.len()), (kind, fits));
        assert!(rope == payload[..fits]);
        drop(rope);
    }
    let stats = pool.stats();
    assert_eq!((stats.in_use, stats.fallbacks), (0, 0));
    let mut rope = Rope::in_pool(&pool);
    assert_eq!(copy(&mut &payload[..MIB], &mut rope).await.unwrap(), MIB as u64);
    rope.shutdown().await.unwrap();
    assert!(rope == payload[..MIB]);
}

#[tokio::test]
async fn a_rope_is_one_end_of_a_connection() {
    let (mut here, mut there) = duplex(1000);
    let mut rope = Rope::from("request");
    let peer = async {
        let mut request = [0; 7];
        there.read_exact(&mut request).await.unwrap();
        there.write_all(&request).await.unwrap();
        there.shutdown().await.unwrap();
        assert_eq!(there.read(&mut request).await.unwrap(), 0);
    };
    let (passed, ()) = tokio::join!(copy_bidirectional(&mut rope, &mut here), peer);
    assert_eq!((passed.unwrap(), rope), ((7, 7), Rope::from("request")));
}

#[tokio::test]
async fn slices_are_written_together() {
    let mut rope = Rope::new();
    assert!(rope.is_write_vectored());
    rope.set_limit(6);
    let slices = [IoSlice::new(b"ab"), IoSlice::new(b""), IoSlice::new(b"cde"), IoSlice::new(b"fgh")];
    assert_eq!(rope.write_vectored(&slices).await.unwrap(), 6);
    assert_eq!(rope, b"abcdef");
    assert_eq!(rope.write_vectored(&slices).await.unwrap_err().kind(), ErrorKind::QuotaExceeded);
    assert_eq!(rope.write_vectored(&[]).await.unwrap(), 0);
    rope.set_limit(8);
    assert_eq!(rope.write_vectored(&slices).await.unwrap(), 2);
    assert_eq!(rope, b"abcdefab");
}

#[tokio::test]
async fn lines_and_exact_reads() {
    let mut rope: Rope = ["a li", "ne\nthe", " rest"].into_iter().collect();
    let cursor = rope.clone().into_cursor();
    let mut lines = cursor.lines();
    assert_eq!(lines.next_line().await.unwrap().unwrap(), "a line");
    assert_eq!(lines.next_line().await.unwrap().unwrap(), "the rest");
    assert!(lines.next_line().await.unwrap().is_none());
    let mut line = String::new();
    rope.read_line(&mut line).await.unwrap();
    let mut rest = [0; 9];
    assert_eq!(rope.read_exact(&mut rest).await.unwrap_err().kind(), ErrorKind::UnexpectedEof);
    assert!(line == "a line\n" && rest.starts_with(b"the rest"));
    assert_eq!(rope.read(&mut []).await.unwrap(), 0);
}

#[tokio::test]
async fn seeks_as_std_does() {
    let rope: Rope = ["one", "two", "three"].into_iter().collect();
    let to = |at: i64| [SeekFrom::Start(at as u64), SeekFrom::Current(at), SeekFrom::End(at)];
    for seek in [-12, -11, -1, 0, 1, 5, 10, 11, 12, i64::MIN, i64::MAX].into_iter().flat_map(to) {
        let (mut cursor, mut oracle) = (rope.cursor(), rope.cursor());
        cursor.set_position(5);
        oracle.set_position(5);
        let kind = |error: std::io::Error| error.kind();
        assert_eq!(
            AsyncSeekExt::seek(&mut cursor, seek).await.map_err(kind),
            Seek::seek(&mut oracle, seek).map_err(kind),
            "{seek:?}"
        );
        assert_eq!(cursor.position(), oracle.position());
        let mut rest = Vec::new();
        cursor.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, &rope.to_vec()[oracle.position()..]);
        assert_eq!(AsyncSeekExt::stream_position(&mut cursor).await.unwrap(), 11);
        AsyncSeekExt::rewind(&mut cursor).await.unwrap();
        assert_eq!(cursor.position(), 0);
    }
}
