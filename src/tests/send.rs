//! Short writes, errors and lies at every point, for both ways of sending.

use std::io::ErrorKind;

use nix::errno::Errno;
use proptest::prelude::*;

use super::{ERRORS, any_fd, pattern, rope_of};
use crate::rope::Rope;
use crate::sys::mock::{self, Step};

/// The two ways to send, behind one face.
trait Send {
    fn of(rope: Rope) -> Self;
    fn send(&mut self) -> std::io::Result<usize>;
    fn send_message(&mut self) -> std::io::Result<usize>;
    fn send_all(&mut self) -> std::io::Result<()>;
    /// What is still to be sent.
    fn left(&self) -> Vec<u8>;
}

impl Send for Rope {
    fn of(rope: Rope) -> Rope {
        rope
    }
    fn send(&mut self) -> std::io::Result<usize> {
        self.writev_to(any_fd())
    }
    fn send_message(&mut self) -> std::io::Result<usize> {
        self.sendmsg_to(any_fd(), 0, &[])
    }
    fn send_all(&mut self) -> std::io::Result<()> {
        self.write_all_to(any_fd())
    }
    fn left(&self) -> Vec<u8> {
        self.assert_invariants();
        self.to_vec()
    }
}

impl Send for crate::Cursor<Rope> {
    fn of(rope: Rope) -> Self {
        rope.into_cursor()
    }
    fn send(&mut self) -> std::io::Result<usize> {
        self.writev_to(any_fd())
    }
    fn send_message(&mut self) -> std::io::Result<usize> {
        self.sendmsg_to(any_fd(), 0, &[])
    }
    fn send_all(&mut self) -> std::io::Result<()> {
        self.write_all_to(any_fd())
    }
    fn left(&self) -> Vec<u8> {
        let all = self.get_ref().to_vec();
        assert_eq!(self.remaining(), all.len() - self.position());
        assert_eq!(self.chunks().flatten().copied().collect::<Vec<u8>>(), all[self.position()..]);
        all[self.position()..].to_vec()
    }
}

/// Segment lengths that put a boundary, or none, at every place of five bytes; what is left is the tail.
fn shapes() -> impl Iterator<Item = Vec<usize>> {
    (0..16u32).map(|cuts| {
        let mut lengths = vec![1];
        for bit in 0..4 {
            match cuts >> bit & 1 {
                1 => lengths.push(1),
                _ => *lengths.last_mut().unwrap() += 1,
            }
        }
        lengths
    })
}

fn every_split_and_error<S: Send>() {
    let bytes = pattern(7);
    for shape in shapes() {
        for first in 1..=7 {
            for &error in ERRORS {
                for send in [S::send, S::send_message] {
                    let sender = S::of(rope_of(&bytes, &shape));
                    let delivered = one_split_and_error(sender, &bytes, first, error, send);
                    assert_eq!(delivered, bytes, "{shape:?}, {first} first, then {error}");
                }
            }
        }
    }
}

/// A signal, a short write of `first` bytes, an `error`, then the rest; returns what was delivered.
fn one_split_and_error<S: Send>(
    mut sender: S,
    bytes: &[u8],
    first: usize,
    error: Errno,
    send: fn(&mut S) -> std::io::Result<usize>,
) -> Vec<u8> {
    let steps = [Step::Fail(Errno::EINTR), Step::Move(first), Step::Fail(error)];
    let (_, delivered) = mock::run(steps, &[], || {
        let sent = send(&mut sender).unwrap();
        assert!(sent >= 1 && sent <= first);
        assert_eq!(sender.left(), bytes[sent..]);
        if sent < bytes.len() {
            assert_eq!(send(&mut sender).unwrap_err().raw_os_error(), Some(error as i32));
            assert_eq!(sender.left(), bytes[sent..]);
        }
        let rest = sender.send_all();
        assert!(rest.is_ok() || sent == bytes.len());
        assert_eq!(sender.left(), b"");
    });
    delivered
}

#[test]
fn every_split_and_error_consuming() {
    every_split_and_error::<Rope>();
}

#[test]
fn every_split_and_error_by_cursor() {
    every_split_and_error::<crate::Cursor<Rope>>();
}

fn nothing_taken_and_too_much<S: Send>() {
    let bytes = pattern(7);
    for shape in shapes() {
        let mut sender = S::of(rope_of(&bytes, &shape));
        let (_, delivered) = mock::run([Step::Move(0), Step::Lie(1)], &[], || {
            assert_eq!(sender.send().unwrap_err().kind(), ErrorKind::WriteZero);
            assert_eq!(sender.left(), bytes);
            let lie = sender.send().unwrap_err().to_string();
            assert!(lie.contains("offered"), "{lie}");
            assert_eq!(sender.left(), bytes);
        });
        assert_eq!(delivered, b"");
    }
}

#[test]
fn nothing_taken_and_too_much_consuming() {
    nothing_taken_and_too_much::<Rope>();
}

#[test]
fn nothing_taken_and_too_much_by_cursor() {
    nothing_taken_and_too_much::<crate::Cursor<Rope>>();
}

#[test]
fn an_empty_rope_makes_no_call() {
    let (sent, _) =
        mock::run([Step::Fail(Errno::EIO)], &[], || Rope::with_small_limits().writev_to(any_fd()));
    assert_eq!(sent.unwrap(), 0);
}

fn answer() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1..40usize).prop_map(Step::Move),
        1 => (0..ERRORS.len()).prop_map(|at| Step::Fail(ERRORS[at])),
        1 => Just(Step::Fail(Errno::EINTR)),
        1 => Just(Step::Move(0)),
        1 => (1..9usize).prop_map(Step::Lie),
    ]
}

fn until_it_is_through<S: Send>(lengths: &[usize], tail: usize, steps: &[Step]) {
    let bytes = pattern(lengths.iter().sum::<usize>() + tail);
    let mut sender = S::of(rope_of(&bytes, lengths));
    let mut sent = 0;
    let (_, delivered) = mock::run(steps.iter().copied(), &[], || {
        while sent < bytes.len() {
            sent += if sent % 2 == 0 { sender.send() } else { sender.send_message() }.unwrap_or(0);
            assert_eq!(sender.left(), bytes[sent..]);
        }
    });
    assert_eq!(delivered, bytes);
}

/// Most segments.
const MOST: usize = if cfg!(miri) { 8 } else { 40 };

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: if cfg!(miri) { 2 } else { 256 }, ..Default::default() })]

    #[test]
    fn any_answers_in_any_order(
        lengths in proptest::collection::vec(1..60usize, 0..MOST),
        tail in 0..60usize,
        steps in proptest::collection::vec(answer(), 0..60),
    ) {
        until_it_is_through::<Rope>(&lengths, tail, &steps);
        until_it_is_through::<crate::Cursor<Rope>>(&lengths, tail, &steps);
    }
}

#[test]
#[cfg_attr(miri, ignore = "long")]
fn three_hundred_thousand_segments_a_few_bytes_at_a_time() {
    let bytes = pattern(600_000);
    let rope: Rope = bytes.chunks(2).map(<[u8]>::to_vec).collect();
    assert_eq!(rope.num_segments(), 300_000);
    let few = (0..).map(|call| Step::Move(1 + call * 31 % 7)).take(bytes.len());
    let mut cursor = rope.clone().into_cursor();
    let (_, delivered) = mock::run(few.clone(), &[], || cursor.send_all().unwrap());
    assert!(delivered == bytes);
    let mut rope = rope;
    let (_, delivered) = mock::run(few, &[], || rope.send_all().unwrap());
    assert!(delivered == bytes && rope.is_empty());
}

/// All of a few large segments is offered to the first call, so that a socket takes as much as it has room for.
#[test]
#[cfg_attr(miri, ignore = "moves megabytes")]
fn few_segments_are_offered_whole() {
    let len = 3 << 20;
    let few = || -> Rope { (0..16).map(|_| vec![7; len / 16]).collect() };
    let many = || -> Rope { (0..len / 1024).map(|_| vec![7; 1024]).collect() };
    let first = |mut rope: Rope| mock::run([], &[], || rope.writev_to(any_fd()).unwrap()).0;
    let first_of_cursor = |rope: Rope| mock::run([], &[], || rope.cursor().writev_to(any_fd()).unwrap()).0;
    assert_eq!((first(few()), first_of_cursor(few())), (len, len));
    assert!(first(many()) < len && first_of_cursor(many()) < len);
}

/// After a short send a task waits until the descriptor is writable again, instead of a send that fails.
#[cfg(feature = "tokio")]
#[test]
fn a_short_send_clears_the_readiness() {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use crate::{Outgoing, WriteRope};

    fn second_send(sender: &mut impl Outgoing, first: Step) -> Option<usize> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
        let (_, second) = runtime.block_on(async {
            let (socket, _peer) = tokio::net::UnixStream::pair().unwrap();
            socket.writable().await.unwrap();
            mock::run([first], &[], || {
                let poll = |sender: &mut _| {
                    let send = pin!(socket.write_rope(sender));
                    match send.poll(&mut Context::from_waker(Waker::noop())) {
                        Poll::Ready(sent) => Some(sent.unwrap()),
                        Poll::Pending => None,
                    }
                };
                (poll(sender).unwrap(), poll(sender))
            })
            .0
        });
        second
    }
    let rope = || -> Rope { (0..2000).map(|_| "ab").collect() };
    assert_eq!(second_send(&mut rope(), Step::Move(100)), None);
    assert_eq!(second_send(&mut rope().cursor(), Step::Move(100)), None);
    // All that one call may name was taken, so the socket may have room for more.
    assert_eq!(second_send(&mut rope(), Step::Move(usize::MAX)), Some(4000 - 2048));
    assert_eq!(second_send(&mut rope().cursor(), Step::Move(usize::MAX)), Some(4000 - 2048));
}
