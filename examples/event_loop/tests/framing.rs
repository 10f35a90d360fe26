//! The framing of the example `event_loop`, cut at every byte and compared with what was put together.
#![allow(clippy::unwrap_used)] // a test may panic

#[path = "../framing.rs"]
mod framing;

use framing::{Front, HEADER, TooLong, front};
use ropewalk::Rope;

const MAX: usize = 300;

/// Messages of these lengths, as they go over the wire.
fn stream(lengths: &[usize]) -> Vec<u8> {
    let message = |&len: &usize| [&(len as u64).to_be_bytes()[..], &vec![len.to_le_bytes()[0]; len]].concat();
    lengths.iter().flat_map(message).collect()
}

/// What the first `received` bytes of such a stream begin with.
fn expected(lengths: &[usize], received: usize) -> Front {
    let (mut whole, mut messages) = (0, 0);
    for len in lengths {
        let left = received - whole;
        if left < HEADER {
            break;
        }
        if left < HEADER + len {
            return Front { whole, messages, lacks: Ok(HEADER + len - left) };
        }
        (whole, messages) = (whole + HEADER + len, messages + 1);
    }
    Front { whole, messages, lacks: Ok(HEADER - (received - whole)) }
}

#[test]
fn every_cut_of_a_stream_is_understood() {
    let lengths = [0, 1, 0, 0, 255, 256, MAX, 7, 8, 9, 0];
    let stream = stream(&lengths);
    for received in 0..=stream.len() {
        for piece in [1, 3, 8, 1000] {
            let rope: Rope = stream[..received].chunks(piece).map(<[u8]>::to_vec).collect();
            assert_eq!(front(&rope, MAX), expected(&lengths, received), "{received} in pieces of {piece}");
        }
    }
}

#[test]
fn what_comes_before_a_bad_length_counts() {
    for announced in [MAX as u64 + 1, 1 << 32, 1 << 63, u64::MAX] {
        let stream = [&stream(&[5, 0])[..], &announced.to_be_bytes(), b"whatever"].concat();
        let expected = Front { whole: 21, messages: 2, lacks: Err(TooLong { announced, max: MAX }) };
        assert_eq!(front(&Rope::from(stream), MAX), expected);
    }
}
