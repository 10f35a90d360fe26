//! Operations in memory, each written once for criterion and for counting instructions.

use std::collections::VecDeque;
use std::hint::black_box;
use std::io::{self, Seek, SeekFrom};

use buf_list::BufList;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use bytes_utils::SegmentedBuf;
use ropewalk::{Pool, Rope};

/// Something that can be done again and again.
pub struct Operation {
    /// What is done.
    pub what: &'static str,
    /// By whom.
    pub variant: &'static str,
    /// Does it so many times.
    pub run: Box<dyn FnMut(u64)>,
}

fn operation(what: &'static str, variant: &'static str, mut once: impl FnMut() + 'static) -> Operation {
    Operation { what, variant, run: Box::new(move |times| (0..times).for_each(|_| once())) }
}

/// Bytes of a segment.
const SEGMENT: usize = 1000;

/// Segments of what is cut, cloned and searched.
const SEGMENTS: usize = 256;

fn segment() -> Bytes {
    Bytes::from(vec![7; SEGMENT])
}

fn filled<C: FromIterator<Bytes>>() -> C {
    (0..SEGMENTS).map(|_| segment()).collect()
}

/// Bytes in the middle half of what is filled, beside the segments' borders.
const MIDDLE: std::ops::Range<usize> = SEGMENTS / 4 * SEGMENT + 5..SEGMENTS * 3 / 4 * SEGMENT - 5;

/// Appending, prepending, advancing, cutting, cloning and seeking.
#[must_use]
pub fn push() -> Vec<Operation> {
    let mut all = append();
    all.extend(prepend());
    all.extend(cut());
    all.extend(clone());
    all.extend(seek());
    all
}

/// A queue of 16 segments: one in at the back, one out at the front.
fn append() -> Vec<Operation> {
    fn queue<C: 'static>(
        name: &'static str,
        mut held: C,
        push: fn(&mut C, Bytes),
        advance: fn(&mut C),
    ) -> Operation {
        let bytes = segment();
        (0..16).for_each(|_| push(&mut held, bytes.clone()));
        operation("append, advance", name, move || {
            push(&mut held, bytes.clone());
            advance(&mut held);
        })
    }
    vec![
        queue("ropewalk", Rope::new(), Rope::push, |rope| rope.advance(SEGMENT)),
        queue(
            "buf-list",
            BufList::new(),
            |list, bytes| drop(list.push_chunk(bytes)),
            |list| list.advance(SEGMENT),
        ),
        queue("SegmentedBuf", SegmentedBuf::new(), SegmentedBuf::push, |list| list.advance(SEGMENT)),
        queue("VecDeque<Bytes>", VecDeque::new(), VecDeque::push_back, |list| drop(list.pop_front())),
        queue(
            "BytesMut",
            BytesMut::new(),
            |all, bytes| all.extend_from_slice(&bytes),
            |all| all.advance(SEGMENT),
        ),
    ]
}

/// A header in front, and off again.
fn prepend() -> Vec<Operation> {
    let (mut rope, mut deque, mut vec): (Rope, VecDeque<Bytes>, Vec<u8>) =
        (filled(), filled(), vec![7; SEGMENT]);
    let header = Bytes::from_static(b"header");
    let same = header.clone();
    vec![
        operation("prepend", "ropewalk", move || {
            rope.push_front(header.clone());
            rope.advance(header.len());
        }),
        operation("prepend", "VecDeque<Bytes>", move || {
            deque.push_front(same.clone());
            drop(deque.pop_front());
        }),
        operation("prepend", "Vec, 1000 B", move || {
            vec.splice(..0, *b"header");
            vec.drain(..6);
        }),
    ]
}

/// Split in the middle and put together again; the middle half on its own.
fn cut() -> Vec<Operation> {
    let (mut rope, mut whole): (Rope, BytesMut) = (filled(), BytesMut::zeroed(SEGMENTS * SEGMENT));
    let (same, frozen): (Rope, Bytes) = (filled(), BytesMut::zeroed(SEGMENTS * SEGMENT).freeze());
    let deque: VecDeque<Bytes> = filled();
    vec![
        operation("split, append", "ropewalk", move || {
            let rest = rope.split_off(SEGMENTS / 2 * SEGMENT);
            rope.append(rest);
        }),
        operation("split, append", "BytesMut, contiguous", move || {
            let rest = whole.split_off(SEGMENTS / 2 * SEGMENT);
            whole.unsplit(rest);
        }),
        operation("slice", "ropewalk", move || drop(black_box(same.slice(MIDDLE)))),
        operation("slice", "VecDeque<Bytes>", move || {
            let middle = deque.range(SEGMENTS / 4..SEGMENTS * 3 / 4).cloned().collect::<VecDeque<Bytes>>();
            drop(black_box(middle));
        }),
        operation("slice", "Bytes, contiguous", move || drop(black_box(frozen.slice(MIDDLE)))),
    ]
}

fn clone() -> Vec<Operation> {
    let (rope, list, deque, vec): (Rope, BufList, VecDeque<Bytes>, _) =
        (filled(), filled(), filled(), vec![7_u8; SEGMENTS * SEGMENT]);
    vec![
        operation("clone", "ropewalk", move || drop(black_box(rope.clone()))),
        operation("clone", "buf-list", move || drop(black_box(list.clone()))),
        operation("clone", "VecDeque<Bytes>", move || drop(black_box(deque.clone()))),
        operation("clone", "Vec", move || drop(black_box(vec.clone()))),
    ]
}

/// To a place far from the last one.
fn seek() -> Vec<Operation> {
    let (rope, list): (Rope, BufList) = (filled(), filled());
    let far = |last: u64| (last + 0x9E3_7799) % (SEGMENTS * SEGMENT) as u64;
    let (mut rope, mut list) = (rope.into_cursor(), buf_list::Cursor::new(list));
    let mut vec = io::Cursor::new(vec![7; SEGMENTS * SEGMENT]);
    let go = move |cursor: &mut dyn Seek, at: &mut u64| {
        *at = far(*at);
        black_box(cursor.seek(SeekFrom::Start(*at)).expect("inside"));
    };
    let (mut first, mut second, mut third) = (0, 0, 0);
    vec![
        operation("seek", "ropewalk", move || go(&mut rope, &mut first)),
        operation("seek", "buf-list", move || go(&mut list, &mut second)),
        operation("seek", "Vec, contiguous", move || go(&mut vec, &mut third)),
    ]
}

/// Messages of a length and so many bytes, built in batches of 100 and parsed again.
#[must_use]
pub fn codec() -> Vec<Operation> {
    let pool = Pool::new().expect("a pool");
    let (mut pooled, mut own) = (Rope::in_pool(&pool), Rope::new());
    let (mut mutable, mut list) = (BytesMut::new(), SegmentedBuf::new());
    let mut vec = Vec::new();
    vec![
        operation("codec, 64 B", "ropewalk", move || turn(&mut pooled, parse)),
        operation("codec, 64 B", "ropewalk, heap", move || turn(&mut own, parse)),
        operation("codec, 64 B", "BytesMut", move || turn(&mut mutable, parse)),
        operation("codec, 64 B", "Vec", move || {
            turn(&mut vec, |vec| parse(&mut &vec[..]));
            vec.clear();
        }),
        operation("codec, 64 B", "SegmentedBuf", move || {
            let mut bytes = BytesMut::new();
            turn(&mut bytes, |bytes| list.push(bytes.split().freeze()));
            parse(&mut list);
        }),
    ]
}

/// Messages in one turn of [`codec`].
pub const MESSAGES: usize = 100;

fn turn<B: BufMut>(into: &mut B, then: impl FnOnce(&mut B)) {
    for _ in 0..MESSAGES {
        into.put_u32(64);
        into.put_slice(&[7; 64]);
    }
    then(into);
}

fn parse(from: &mut impl Buf) {
    for _ in 0..MESSAGES {
        let length = from.get_u32() as usize;
        drop(black_box(from.copy_to_bytes(length)));
    }
}
