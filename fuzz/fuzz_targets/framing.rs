//! The framing of the echo server: any bytes, cut into any segments, against the same on a flat slice.
#![no_main]

#[path = "../../examples/event_loop/framing.rs"]
mod framing;

use arbitrary::Arbitrary;
use framing::{Front, HEADER, TooLong};
use libfuzzer_sys::fuzz_target;
use ropewalk::Rope;

#[derive(Arbitrary, Debug)]
enum Part {
    Message(u8),
    Length(u64),
    Bytes(Vec<u8>),
}

fuzz_target!(|input: (Vec<Part>, Vec<u8>, u16)| {
    let (parts, cuts, max) = input;
    let flat: Vec<u8> = parts.iter().flat_map(Part::bytes).collect();
    let mut left = &flat[..];
    let mut rope = Rope::new();
    for cut in cuts {
        let (segment, rest) = left.split_at(left.len().min(cut.into()));
        rope.push(segment.to_vec());
        left = rest;
    }
    rope.push(left.to_vec());
    let front = framing::front(&rope, max.into());
    assert_eq!(front, naive(&flat, max.into()));
    assert!(front.whole <= flat.len() && front.lacks != Ok(0));
});

impl Part {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Part::Message(len) => [&u64::from(*len).to_be_bytes()[..], &vec![*len; (*len).into()]].concat(),
            Part::Length(len) => len.to_be_bytes().to_vec(),
            Part::Bytes(bytes) => bytes.clone(),
        }
    }
}

fn naive(flat: &[u8], max: usize) -> Front {
    let (mut whole, mut messages) = (0, 0);
    let lacks = loop {
        let left = &flat[whole..];
        let Some((header, body)) = left.split_first_chunk::<HEADER>() else { break Ok(HEADER - left.len()) };
        let announced = u64::from_be_bytes(*header);
        if announced > max as u64 {
            break Err(TooLong { announced, max });
        }
        let len = announced as usize;
        if body.len() < len {
            break Ok(len - body.len());
        }
        (whole, messages) = (whole + HEADER + len, messages + 1);
    };
    Front { whole, messages, lacks }
}
