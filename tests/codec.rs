//! Frames whose payload is a rope.
#![cfg(feature = "tokio")]
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)] // a test fails by panicking

use std::io::ErrorKind;

use bytes::{Bytes, BytesMut};
use futures_util::{SinkExt, StreamExt};
use ropewalk::{Pool, ReadRope, Rope, RopeCodec, WriteRope};
use tokio::net::UnixStream;
use tokio_util::codec::{Decoder, Encoder, Framed, FramedRead, LengthDelimitedCodec};

const MAX: usize = 1 << 20;

fn pattern(len: usize) -> Vec<u8> {
    (0..len as u64).map(|i| (i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8).collect()
}

fn payloads() -> Vec<Vec<u8>> {
    [0, 1, 511, 512, 2048, 100_000, MAX].map(pattern).to_vec()
}

#[tokio::test]
async fn frames_pass_between_this_codec_and_tokio_utils() {
    let (here, there) = tokio::io::duplex(3000);
    let mut ours = Framed::new(here, RopeCodec::new(MAX));
    let mut theirs = Framed::new(there, LengthDelimitedCodec::new());
    let echo = async {
        while let Some(frame) = theirs.next().await {
            theirs.send(frame.unwrap().freeze()).await.unwrap();
        }
    };
    let talk = async {
        for payload in payloads() {
            let rope: Rope = payload.chunks(1000).map(<[u8]>::to_vec).collect();
            ours.send(rope).await.unwrap();
            assert!(ours.next().await.unwrap().unwrap() == payload);
        }
        drop(ours);
    };
    tokio::join!(echo, talk);
}

#[tokio::test]
async fn frames_go_straight_through_sockets() {
    let pool = Pool::new().unwrap();
    let (here, there) = UnixStream::pair().unwrap();
    let codec = RopeCodec::new(MAX);
    let send = async {
        for payload in payloads() {
            let mut frame = codec.wrap(Rope::from(payload)).unwrap();
            here.write_all_rope(&mut frame).await.unwrap();
        }
        drop(here);
    };
    let receive = async {
        let mut received = Rope::in_pool(&pool);
        for payload in payloads() {
            assert!(there.read_frame(&mut received, &codec).await.unwrap().unwrap() == payload);
        }
        assert!(there.read_frame(&mut received, &codec).await.unwrap().is_none());
    };
    tokio::join!(send, receive);
}

#[test]
fn every_split_of_the_wire_gives_the_same_frames() {
    let mut wire = BytesMut::new();
    let mut codec = RopeCodec::new(MAX);
    for payload in ["one", "", "three"] {
        codec.encode(Rope::from(payload), &mut wire).unwrap();
    }
    for step in 1..=wire.len() {
        let (mut src, mut frames) = (BytesMut::new(), Vec::new());
        for piece in wire.chunks(step) {
            src.extend_from_slice(piece);
            while let Some(frame) = codec.decode(&mut src).unwrap() {
                frames.push(frame.to_vec());
            }
        }
        assert_eq!(codec.decode_eof(&mut src).unwrap(), None);
        assert_eq!(frames, [b"one".to_vec(), b"".to_vec(), b"three".to_vec()]);
    }
}

#[test]
fn a_large_frame_is_neither_gathered_nor_copied() {
    let mut codec = RopeCodec::new(MAX);
    let mut src = BytesMut::from(&(MAX as u32).to_be_bytes()[..]);
    assert_eq!(codec.decode(&mut src).unwrap(), None);
    let mut addresses = Vec::new();
    let frame = loop {
        let mut src = BytesMut::from(&pattern(MAX / 16)[..]);
        addresses.push(src.as_ptr());
        if let Some(frame) = codec.decode(&mut src).unwrap() {
            break frame;
        }
        assert!(src.is_empty(), "what is there is taken");
    };
    let segments: Vec<Bytes> = frame.segments().collect();
    assert_eq!(segments.iter().map(|segment| segment.as_ptr()).collect::<Vec<_>>(), addresses);
}

#[test]
fn frames_that_are_too_long_are_refused_on_both_sides() {
    let mut codec = RopeCodec::new(4);
    let error = codec.encode(Rope::from("12345"), &mut BytesMut::new()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert_eq!(codec.wrap(Rope::from("12345")).unwrap_err().kind(), ErrorKind::InvalidInput);

    let wire = RopeCodec::new(5).wrap(Rope::from("12345")).unwrap();
    let error = codec.decode(&mut BytesMut::from(&wire.to_vec()[..])).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidData);
    assert_eq!(error.to_string(), "a frame of 5 bytes is longer than the 4 that are allowed");
    let mut received = wire.clone();
    assert_eq!(codec.take(&mut received).unwrap_err().kind(), ErrorKind::InvalidData);
    assert_eq!(received, wire);
}

#[tokio::test]
async fn a_stream_that_ends_inside_a_frame_is_an_error() {
    let wire = RopeCodec::new(MAX).wrap(Rope::from("payload")).unwrap().to_vec();
    for cut in 1..wire.len() {
        let mut frames = FramedRead::new(&wire[..cut], RopeCodec::new(MAX));
        assert_eq!(frames.next().await.unwrap().unwrap_err().kind(), ErrorKind::UnexpectedEof, "{cut}");

        let (here, there) = UnixStream::pair().unwrap();
        here.try_write(&wire[..cut]).unwrap();
        drop(here);
        let error = there.read_frame(&mut Rope::new(), &RopeCodec::new(MAX)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnexpectedEof, "{cut}");
    }
}
