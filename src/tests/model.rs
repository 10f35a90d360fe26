//! Any sequence of operations on two ropes equals the same on flat vectors.

use bytes::{Buf, BufMut, Bytes};
use proptest::prelude::*;

use super::{any_fd, pattern};
use crate::pool::Pool;
use crate::rope::Rope;
use crate::sys::mock::{self, Step};

#[derive(Clone, Debug)]
enum Action {
    Push(usize),
    PushFront(usize),
    Extend(usize),
    Put(usize),
    Reserve(usize),
    Receive(usize),
    Send(usize),
    Advance(usize),
    Truncate(usize),
    SplitTo(usize),
    SplitOff(usize),
    Append,
    Slice(usize, usize),
    Clone,
    CopyToBytes(usize),
    CopyToSlice(usize),
    Finalize,
    Clear,
    Swap,
}

fn action(most: usize) -> impl Strategy<Value = Action> {
    let len = || 0..most;
    prop_oneof![
        3 => len().prop_map(Action::Push),
        1 => len().prop_map(Action::PushFront),
        3 => len().prop_map(Action::Extend),
        2 => len().prop_map(Action::Put),
        1 => len().prop_map(Action::Reserve),
        3 => len().prop_map(Action::Receive),
        2 => len().prop_map(Action::Send),
        2 => len().prop_map(Action::Advance),
        1 => len().prop_map(Action::Truncate),
        2 => len().prop_map(Action::SplitTo),
        1 => len().prop_map(Action::SplitOff),
        2 => Just(Action::Append),
        1 => (len(), len()).prop_map(|(from, to)| Action::Slice(from, to)),
        1 => Just(Action::Clone),
        1 => len().prop_map(Action::CopyToBytes),
        1 => len().prop_map(Action::CopyToSlice),
        1 => Just(Action::Finalize),
        1 => Just(Action::Clear),
        2 => Just(Action::Swap),
    ]
}

/// A rope and the vector that it has to equal.
struct Pair {
    rope: Rope,
    flat: Vec<u8>,
}

impl Pair {
    fn check(&self) {
        self.rope.assert_invariants();
        assert_eq!(self.rope, self.flat);
        assert_eq!(self.rope.len(), self.flat.len());
        assert_eq!(self.rope.segments().flatten().collect::<Vec<u8>>(), self.flat);
    }

    fn check_positions(&self) {
        let mut cursor = self.rope.cursor();
        for position in 0..=self.flat.len() {
            cursor.set_position(position);
            let first = self.flat.get(position..position + 1).unwrap_or_default();
            assert_eq!(cursor.chunk().get(..1).unwrap_or_default(), first);
        }
    }
}

/// Fills the memory that `BufMut` offers, piece by piece.
fn put(rope: &mut Rope, mut bytes: &[u8]) {
    while bytes.has_remaining() {
        let room = rope.chunk_mut();
        let count = room.len().min(bytes.len());
        room[..count].copy_from_slice(&bytes[..count]);
        // SAFETY: the line above has written them.
        #[allow(unsafe_code)]
        unsafe {
            rope.advance_mut(count);
        }
        bytes.advance(count);
    }
}

/// Applies `action` to the first pair; what is cut off goes to the second.
fn apply(action: &Action, one: &mut Pair, other: &mut Pair, fresh: &mut usize) {
    let mut bytes = |len: usize| {
        *fresh += len;
        pattern(*fresh)[*fresh - len..].to_vec()
    };
    let len = one.flat.len();
    match *action {
        Action::Push(count) => {
            let new = bytes(count);
            one.rope.push(new.clone());
            one.flat.extend(new);
        }
        Action::PushFront(count) => {
            let new = bytes(count);
            one.rope.push_front(new.clone());
            one.flat.splice(0..0, new);
        }
        Action::Extend(count) => {
            let new = bytes(count);
            one.rope.extend_from_slice(&new);
            one.flat.extend(new);
        }
        Action::Put(count) => {
            let new = bytes(count);
            put(&mut one.rope, &new);
            one.flat.extend(new);
        }
        Action::Reserve(count) => {
            let _ = one.rope.reserve(count);
        }
        Action::Receive(count) => {
            let new = bytes(count);
            let (result, _) = mock::run([Step::Move(count)], &new, || one.rope.readv_from(any_fd()));
            let got = result.unwrap_or(0);
            one.flat.extend(&new[..got]);
        }
        Action::Send(count) if len > 0 => {
            let (sent, delivered) =
                mock::run([Step::Move(count)], &[], || one.rope.writev_to(any_fd()).unwrap_or(0));
            assert_eq!(delivered, one.flat[..sent]);
            one.flat.drain(..sent);
        }
        Action::Send(_) => {}
        Action::Advance(count) => {
            one.rope.advance(count.min(len));
            one.flat.drain(..count.min(len));
        }
        Action::Truncate(to) => {
            one.rope.truncate(to);
            one.flat.truncate(to);
        }
        Action::SplitTo(at) => {
            other.rope = one.rope.split_to(at.min(len));
            other.flat = one.flat.drain(..at.min(len)).collect();
        }
        Action::SplitOff(at) => {
            other.rope = one.rope.split_off(at.min(len));
            other.flat = one.flat.split_off(at.min(len));
        }
        Action::Append => {
            one.rope.append(std::mem::take(&mut other.rope));
            one.flat.append(&mut other.flat);
        }
        Action::Slice(from, to) => {
            let (from, to) = (from.min(to).min(len), from.max(to).min(len));
            other.rope = one.rope.slice(from..to);
            other.flat = one.flat[from..to].to_vec();
        }
        Action::Clone => {
            other.rope = one.rope.clone();
            other.flat.clone_from(&one.flat);
        }
        Action::CopyToBytes(count) => {
            let count = count.min(len);
            assert_eq!(one.rope.copy_to_bytes(count), one.flat.drain(..count).collect::<Bytes>());
        }
        Action::CopyToSlice(count) => {
            let mut into = vec![0; count.min(len)];
            one.rope.copy_to_slice(&mut into);
            assert_eq!(into, one.flat.drain(..into.len()).collect::<Vec<u8>>());
        }
        Action::Finalize => {
            let view = one.rope.clone().finalize().unwrap();
            assert_eq!(*view, one.flat);
            assert!(view.copied_bytes() + view.mapped_bytes() <= view.len());
        }
        Action::Clear => {
            one.rope.clear();
            one.flat.clear();
        }
        Action::Swap => std::mem::swap(one, other),
    }
}

fn run(actions: &[Action], rope: impl Fn() -> Rope) {
    let mut one = Pair { rope: rope(), flat: Vec::new() };
    let mut other = Pair { rope: rope(), flat: Vec::new() };
    let mut fresh = 0;
    for action in actions {
        apply(action, &mut one, &mut other, &mut fresh);
        one.check();
        other.check();
    }
    one.check_positions();
}

fn config() -> ProptestConfig {
    ProptestConfig {
        failure_persistence: None,
        cases: if cfg!(miri) { 1 } else { 128 },
        ..Default::default()
    }
}

/// Most actions in a row.
const MOST: usize = if cfg!(miri) { 16 } else { 60 };

proptest! {
    #![proptest_config(config())]

    #[test]
    fn on_the_heap(actions in proptest::collection::vec(action(40), 1..MOST)) {
        run(&actions, Rope::new);
    }

    #[test]
    fn in_a_pool(actions in proptest::collection::vec(action(if cfg!(miri) { 300 } else { 9000 }), 1..MOST.min(40))) {
        let pool = Pool::options().small_limits().capacity(256 << 10).create().unwrap();
        run(&actions, || Rope::in_pool(&pool));
        prop_assert_eq!((pool.stats().in_use, pool.stats().pinned), (0, 0));
    }

    #[test]
    fn a_needle_is_found_where_it_is(
        segments in proptest::collection::vec(proptest::collection::vec(0..3u8, 1..6), 0..12),
        needle in proptest::collection::vec(0..3u8, 0..5),
    ) {
        let flat = segments.concat();
        let rope: Rope = segments.into_iter().collect();
        let naive = (0..=flat.len()).find(|&at| flat[at..].starts_with(&needle));
        prop_assert_eq!(rope.find(&needle), naive);
    }
}
