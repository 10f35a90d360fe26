//! Frames whose payload is a rope: formats, hostile lengths, and any cut of the stream.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)] // a test fails by panicking

use std::io::{ErrorKind, Write};
use std::os::unix::net::UnixStream;

use bytes::BytesMut;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use ropewalk::{Pool, Rope, RopeCodec};
use tokio_util::codec::{Decoder, LengthDelimitedCodec};

const MAX: usize = 1 << 20;

/// A format as both this crate and tokio_util make it.
#[derive(Clone, Debug)]
struct Format {
    length: usize,
    offset: usize,
    adjustment: isize,
    skip: Option<usize>,
    little_endian: bool,
}

impl Format {
    fn ours(&self, max: usize) -> RopeCodec {
        let codec = RopeCodec::new(max)
            .length_field_length(self.length)
            .length_field_offset(self.offset)
            .length_adjustment(self.adjustment);
        let codec = if self.little_endian { codec.little_endian() } else { codec.big_endian() };
        self.skip.map_or(codec, |skip| codec.num_skip(skip))
    }

    fn theirs(&self) -> LengthDelimitedCodec {
        let mut builder = LengthDelimitedCodec::builder();
        builder.max_frame_length(usize::MAX).length_field_length(self.length);
        builder.length_field_offset(self.offset).length_adjustment(self.adjustment);
        self.skip.into_iter().for_each(|skip| {
            builder.num_skip(skip);
        });
        let builder = if self.little_endian { builder.little_endian() } else { builder.big_endian() };
        builder.new_codec()
    }

    fn header(&self) -> usize {
        self.offset + self.length
    }

    fn skip(&self) -> usize {
        self.skip.unwrap_or(self.header())
    }

    /// A frame with `body` bytes behind whatever of the header is in it, if the format has such a length; with the frame
    /// that a reader gets.
    fn write(&self, wire: &mut Vec<u8>, body: usize) -> Option<Vec<u8>> {
        let start = wire.len();
        let len = self.header().saturating_sub(self.skip()) + body;
        let length = u64::try_from(len as i128 - self.adjustment as i128).ok()?;
        if self.length < 8 && length >> (8 * self.length) > 0 {
            return None;
        }
        wire.extend((0..self.skip().max(self.header()) + body).map(|i| (i * 31 + start) as u8));
        let field = &mut wire[start + self.offset..][..self.length];
        if self.little_endian {
            field.copy_from_slice(&length.to_le_bytes()[..self.length]);
        } else {
            field.copy_from_slice(&length.to_be_bytes()[8 - self.length..]);
        }
        Some(wire[start + self.skip()..].to_vec())
    }
}

fn format() -> impl Strategy<Value = Format> {
    let skip = option::of(0..40usize);
    (1..=8usize, 0..20usize, -30..30isize, skip, any::<bool>()).prop_map(
        |(length, offset, adjustment, skip, little_endian)| Format {
            length,
            offset,
            adjustment,
            skip,
            little_endian,
        },
    )
}

/// Lengths of bodies about the sizes where something changes.
fn body() -> impl Strategy<Value = usize> {
    prop_oneof![0..200usize, 3000..5000usize, 4090..4100usize, 60_000..70_000usize, 65_500..65_600usize]
}

fn rope(in_pool: bool) -> Rope {
    if in_pool { Rope::in_pool(&Pool::new().unwrap()) } else { Rope::new() }
}

/// All frames that are there.
fn take_all(codec: &RopeCodec, received: &mut Rope, frames: &mut Vec<Rope>) {
    while let Some(frame) = codec.take(received).unwrap() {
        frames.push(frame);
    }
}

fn check(frames: Vec<Rope>, expected: &[Vec<u8>], alignment: usize, in_pool: bool) {
    assert_eq!(frames.len(), expected.len());
    for (frame, expected) in frames.into_iter().zip(expected) {
        assert_eq!(frame, expected[..]);
        let view = frame.finalize().unwrap();
        if in_pool && alignment > 1 && view.len() >= 4096 {
            assert_eq!((view.num_maps(), view.copied_bytes()), (0, 0));
        }
        if alignment > 1 && view.len() >= 4096 {
            assert_eq!(view.as_ptr().addr() % alignment, 0, "{} bytes", view.len());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn any_frames_in_any_format_cut_anywhere_are_what_was_sent(
        format in format(), bodies in vec(body(), 1..12), cuts in vec(1..100_000usize, 1..8),
        power in 0..14u32, in_pool: bool, on_socket: bool,
    ) {
        let (mut wire, mut expected) = (Vec::new(), Vec::new());
        for body in bodies {
            expected.extend(format.write(&mut wire, body));
        }
        let mut theirs = BytesMut::from(&wire[..]);
        let mut codec = format.theirs();
        for frame in &expected {
            // It compares a length with what its field can hold after the adjustment, and so refuses some.
            let Ok(decoded) = codec.decode(&mut theirs) else { break };
            prop_assert_eq!(&decoded.unwrap()[..], &frame[..]);
        }

        let alignment = 1 << power;
        let (codec, mut received) = (format.ours(MAX).alignment(alignment), rope(in_pool));
        let (mut frames, mut left) = (Vec::new(), &wire[..]);
        let (mut peer, socket) = UnixStream::pair().unwrap();
        socket.set_nonblocking(true).unwrap();
        for cut in cuts.iter().cycle() {
            let (piece, rest) = left.split_at(left.len().min(*cut));
            if on_socket {
                peer.write_all(piece).unwrap();
                loop {
                    match received.readv_frame(&socket, &codec) {
                        Ok(frame) => frames.extend(frame),
                        Err(error) => break assert_eq!(error.kind(), ErrorKind::WouldBlock),
                    }
                }
            } else {
                received.extend_from_slice(piece);
                take_all(&codec, &mut received, &mut frames);
            }
            left = rest;
            if left.is_empty() {
                break;
            }
        }
        prop_assert!(received.is_empty());
        check(frames, &expected, alignment, in_pool);
    }

    #[test]
    fn what_is_wrapped_is_taken(format in format(), len in 0..300usize) {
        let (codec, payload) = (format.ours(MAX), vec![7; len]);
        let fits = |length: i128| length >= 0 && length >> (8 * format.length) == 0;
        match codec.wrap(Rope::from(payload.clone())) {
            Ok(mut wire) => {
                let length = wire.len();
                prop_assert_eq!(length, format.skip() + len);
                prop_assert_eq!(codec.take(&mut wire).unwrap().unwrap(), payload);
                prop_assert!(wire.is_empty());
            }
            Err(error) => {
                prop_assert_eq!(error.kind(), ErrorKind::InvalidInput);
                let refused = !fits(len as i128 - format.adjustment as i128);
                prop_assert!(refused || format.skip() < format.header(), "{}", error);
            }
        }
    }

    #[test]
    fn no_header_makes_it_panic(
        format in format(), adjustment in any::<isize>(), header in vec(any::<u8>(), 0..40), max in any::<usize>(),
    ) {
        let codec = Format { adjustment, ..format }.ours(max);
        let mut received = Rope::from(header.clone());
        if codec.take(&mut received).is_err() {
            prop_assert_eq!(received, header);
        }
    }
}

/// The error for a header with this length, of 8 bytes.
fn refusal(codec: RopeCodec, length: u64) -> Option<String> {
    let codec = codec.length_field_length(8);
    let (mut peer, socket) = UnixStream::pair().unwrap();
    peer.write_all(&length.to_be_bytes()).unwrap();
    drop(peer);
    let pool = Pool::options().capacity(64 << 20).create().unwrap();
    let mut received = Rope::in_pool(&pool);
    let error =
        received.readv_frame(&socket, &codec).map(|frame| assert_eq!(frame.unwrap().len(), 0)).err()?;
    assert!(pool.stats().in_use < 2 << 20, "{:?}", pool.stats());
    match error.kind() {
        ErrorKind::UnexpectedEof => None,
        ErrorKind::InvalidData => Some(error.to_string()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn hostile_lengths_are_errors_that_say_so() {
    let codec = RopeCodec::new(MAX);
    for allowed in [0, 1, MAX as u64 - 1, MAX as u64] {
        assert_eq!(refusal(codec, allowed), None);
        assert_eq!(refusal(codec.alignment(4096), allowed), None);
    }
    for length in [MAX as u64 + 1, 1 << 31, 1 << 32, 1 << 63, u64::MAX] {
        for alignment in [1, 64, 4096, 1 << 30] {
            let message = format!("a frame of {length} bytes is longer than the 1048576 that are allowed");
            assert_eq!(refusal(codec.alignment(alignment), length), Some(message));
        }
    }
    let message = "a frame of 18446744073709551619 bytes is longer than the 1048576 that are allowed";
    assert_eq!(refusal(codec.length_adjustment(4), u64::MAX).unwrap(), message);
    let message = "a length of 3 is too small: with an adjustment of -4 the frame would have -1 bytes, fewer than the 0 \
                   of its header";
    assert_eq!(refusal(codec.length_adjustment(-4), 3).unwrap(), message);
    assert_eq!(refusal(codec.length_adjustment(-4), 4), None);
    for adjustment in [isize::MIN, isize::MAX] {
        assert!(refusal(codec.length_adjustment(adjustment), 1).is_some());
    }
    // Such a frame would be taken again and again.
    let message = "a length of 0 is too small: with an adjustment of 0 the frame would have 0 bytes, fewer than the 8 of \
                   its header";
    assert_eq!(refusal(codec.num_skip(0), 0).unwrap(), message);
}

#[test]
fn frames_that_are_too_long_are_refused_on_both_sides() {
    let codec = RopeCodec::new(4);
    assert_eq!(codec.wrap(Rope::from("12345")).unwrap_err().kind(), ErrorKind::InvalidInput);

    let wire = RopeCodec::new(5).wrap(Rope::from("12345")).unwrap();
    let mut received = wire.clone();
    let error = codec.take(&mut received).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidData);
    assert_eq!(error.to_string(), "a frame of 5 bytes is longer than the 4 that are allowed");
    assert_eq!(received, wire);
}

#[test]
fn a_payload_that_the_length_cannot_tell_is_refused() {
    let codec = RopeCodec::new(MAX).length_field_length(1);
    assert!(codec.wrap(Rope::from(vec![0; 255])).is_ok());
    let error = codec.wrap(Rope::from(vec![0; 256])).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert_eq!(error.to_string(), "a frame of 256 bytes needs a length of 256, which 1 bytes do not hold");
    assert!(codec.length_adjustment(1).wrap(Rope::new()).is_err());
    assert!(codec.num_skip(0).wrap(Rope::from("\0")).is_err());
}

#[test]
fn settings_that_make_no_header_panic() {
    let codec = RopeCodec::new(MAX);
    for bad in [0, 9, usize::MAX] {
        assert!(std::panic::catch_unwind(|| codec.length_field_length(bad)).is_err(), "{bad}");
    }
    for bad in [0, 3, usize::MAX] {
        assert!(std::panic::catch_unwind(|| codec.alignment(bad)).is_err(), "{bad}");
    }
    assert!(std::panic::catch_unwind(|| codec.length_field_offset(249)).is_err());
    assert!(std::panic::catch_unwind(|| codec.num_skip(257)).is_err());
}
