//! Many bodies at a time, in any pieces, some of which fail, are given up, or do not fit at first: no byte is lost.
#![cfg(feature = "http-body")]
#![allow(clippy::unwrap_used)] // a test fails by panicking

#[allow(dead_code)] // it is for several test files
mod support;

use std::cell::Cell;
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::io::ErrorKind;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::LazyLock;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use proptest::collection::vec;
use proptest::prelude::*;
use ropewalk::{BodyError, Pool, Rope};
use support::pattern;

const LONGEST: usize = 2 << 20;

/// What all bodies begin with.
static CONTENT: LazyLock<Bytes> = LazyLock::new(|| pattern(3, LONGEST).into());

/// What happens when a body is asked for its next frame.
#[derive(Clone, Copy, Debug)]
enum Event {
    Piece(usize),
    /// It is asked in vain.
    Wait,
    /// It is asked in vain, and the future that asks is dropped.
    GiveUp,
    Fail,
}

/// What a body says of its length.
#[derive(Clone, Copy, Debug)]
enum Announces {
    Nothing,
    Half,
    All,
}

struct Script {
    events: VecDeque<Event>,
    announces: Announces,
    sent: Rc<Cell<usize>>,
    given_up: Rc<Cell<bool>>,
}

impl Script {
    fn left(&self) -> usize {
        self.events.iter().map(|event| if let Event::Piece(len) = event { *len } else { 0 }).sum()
    }
}

impl Body for Script {
    type Data = Bytes;
    type Error = &'static str;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, &'static str>>> {
        match self.events.pop_front() {
            None => Poll::Ready(None),
            Some(Event::Fail) => Poll::Ready(Some(Err("it fails"))),
            Some(Event::Wait) => Poll::Pending,
            Some(Event::GiveUp) => {
                self.given_up.set(true);
                Poll::Pending
            }
            Some(Event::Piece(len)) => {
                let start = self.sent.get();
                self.sent.set(start + len);
                Poll::Ready(Some(Ok(Frame::data(CONTENT.slice(start..start + len)))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.events.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        let mut hint = SizeHint::new();
        match self.announces {
            Announces::Nothing => {}
            Announces::Half => hint.set_lower(self.left() as u64 / 2),
            Announces::All => hint = SizeHint::with_exact(self.left() as u64),
        }
        hint
    }
}

/// Receives a body and checks after each interruption that the rope has what was sent, or in a pool that may be full a
/// beginning of it. Where bodies are waiting for each other's memory it gives up.
async fn receive(pool: Pool, events: Vec<Event>, announces: Announces, may_be_full: bool) {
    let (sent, given_up) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(false)));
    let mut body =
        Script { events: events.into(), announces, sent: Rc::clone(&sent), given_up: Rc::clone(&given_up) };
    let mut rope = Rope::in_pool(&pool);
    for _ in 0..100 {
        let outcome = {
            let mut receiving = pin!(rope.receive_body(&mut body));
            poll_fn(|context| match receiving.as_mut().poll(context) {
                Poll::Pending if given_up.take() => Poll::Ready(None),
                polled => polled.map(Some),
            })
            .await
        };
        let (sent, has_all) = (&CONTENT[..sent.get()], rope.len() == sent.get());
        assert!(rope == sent[..rope.len()], "{} of {} bytes: {outcome:?}", rope.len(), sent.len());
        match outcome {
            Some(Ok(_)) => {
                assert!(has_all && body.events.is_empty());
                assert!(&*rope.finalize().unwrap() == sent);
                return;
            }
            Some(Err(BodyError::Rope(error))) => {
                assert!(may_be_full && error.kind() == ErrorKind::OutOfMemory, "{error}");
                let mut waits = true;
                poll_fn(|_| if std::mem::take(&mut waits) { Poll::Pending } else { Poll::Ready(()) }).await;
            }
            _ => assert!(has_all || may_be_full, "{} of {} bytes: {outcome:?}", rope.len(), sent.len()),
        }
    }
    assert!(may_be_full);
}

fn event() -> impl Strategy<Value = Event> {
    let len = prop_oneof![0..2usize, 2..5000usize, 16_383..16_386usize, 5000..300_000usize];
    prop_oneof![
        12 => len.prop_map(Event::Piece),
        6 => Just(Event::Wait),
        1 => Just(Event::GiveUp),
        1 => Just(Event::Fail),
    ]
}

fn one_body() -> impl Strategy<Value = (Vec<Event>, Announces)> {
    let announces = prop_oneof![Just(Announces::Nothing), Just(Announces::Half), Just(Announces::All)];
    let events = vec(event(), 0..12).prop_filter("too long", |events| {
        events.iter().map(|event| if let Event::Piece(len) = event { *len } else { 0 }).sum::<usize>()
            < LONGEST
    });
    (events, announces)
}

proptest! {
    #[test]
    fn no_byte_of_many_bodies_is_lost(
        bodies in vec(one_body(), 1..8),
        order in vec(any::<prop::sample::Index>(), 1..40),
        capacity in prop_oneof![Just(256 << 10), Just(2 << 20), Just(64 << 20)],
        zeroes in any::<bool>(),
    ) {
        let pool = Pool::options().capacity(capacity).zero_on_release(zeroes).create().unwrap();
        let may_be_full = capacity < (8 * LONGEST) as u64;
        let mut receiving: Vec<Pin<Box<dyn Future<Output = ()>>>> = Vec::new();
        for (events, announces) in bodies {
            receiving.push(Box::pin(receive(pool.clone(), events, announces, may_be_full)));
        }
        let mut order = order.iter().cycle();
        while !receiving.is_empty() {
            let index = order.next().unwrap().index(receiving.len());
            let polled = receiving[index].as_mut().poll(&mut Context::from_waker(Waker::noop()));
            if polled.is_ready() {
                drop(receiving.swap_remove(index));
            }
        }
        let stats = pool.stats();
        prop_assert_eq!((stats.in_use, stats.reserved), (0, 0));
    }
}
