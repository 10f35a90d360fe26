//! Other people's traits, each behind its feature.
#![allow(clippy::unwrap_used)] // a test fails by panicking

#[allow(unused_imports)] // by some features
use ropewalk::{Pool, Rope};

/// A rope of three segments.
#[allow(dead_code)] // without features
fn three_pieces() -> Rope {
    ["one, ", "two, ", "three"].into_iter().collect()
}

#[allow(dead_code)] // without features
const WHOLE: &[u8] = b"one, two, three";

#[cfg(feature = "arrow")]
mod arrow {
    use arrow_buffer::{Buffer, ScalarBuffer};

    use super::*;

    #[test]
    fn a_view_is_a_buffer_of_numbers_without_a_copy() {
        let pool = Pool::new().unwrap();
        let mut rope = Rope::in_pool(&pool);
        (0..10_000i64).for_each(|number| rope.extend_from_slice(&number.to_ne_bytes()));
        let view = rope.finalize().unwrap();
        let address = view.as_ptr();
        let buffer = Buffer::from(view);
        assert_eq!(buffer.as_ptr(), address);
        let numbers = ScalarBuffer::<i64>::from(buffer);
        assert!(numbers.iter().copied().eq(0..10_000));
        assert!(pool.stats().in_use > 0, "the buffer keeps the pages");
        drop(numbers);
        assert_eq!(pool.stats().in_use, 0);
    }

    #[test]
    fn an_empty_view_is_an_empty_buffer_of_any_type() {
        let pool = Pool::new().unwrap();
        let full = Rope::from(vec![7; 1001]).finalize().unwrap();
        for view in [
            Rope::new().finalize().unwrap(),
            Rope::in_pool(&pool).finalize().unwrap(),
            Rope::from("").finalize().unwrap(),
            full.slice(1..1),
            full.slice(1001..),
            ropewalk::View::default(),
        ] {
            let buffer = Buffer::from(view);
            assert_eq!(ScalarBuffer::<i64>::from(buffer.clone()).len(), 0);
            assert_eq!(ScalarBuffer::<i128>::from(buffer).len(), 0);
        }
    }
}

#[cfg(feature = "compio")]
mod compio {
    use std::io::ErrorKind;

    use compio_buf::{IntoInner, IoBuf, IoBufMut, IoVectoredBuf, IoVectoredBufMut, SetLen};

    use super::*;

    #[test]
    fn ropes_cursors_and_views_are_written() {
        let rope = three_pieces();
        assert_eq!(rope.iter_slice().flatten().copied().collect::<Vec<_>>(), WHOLE);
        assert_eq!(rope.total_len(), WHOLE.len());
        let mut cursor = rope.clone().into_cursor();
        cursor.advance(7);
        assert_eq!(cursor.total_len(), WHOLE.len() - 7);
        assert_eq!(cursor.iter_slice().flatten().copied().collect::<Vec<_>>(), &WHOLE[7..]);
        let rest = IoVectoredBuf::slice(rope.clone(), 7);
        assert_eq!(rest.iter_slice().flatten().copied().collect::<Vec<_>>(), &WHOLE[7..]);
        assert_eq!(rest.into_inner(), rope);
        assert_eq!(rope.finalize().unwrap().as_init(), WHOLE);
    }

    /// What a runtime does: fills some of what it was lent, and says how much.
    fn fill(buf: &mut impl IoVectoredBufMut, with: &[u8]) {
        for (slot, byte) in buf.iter_uninit_slice().flatten().zip(with) {
            slot.write(*byte);
        }
        // SAFETY: just written.
        #[allow(unsafe_code)]
        unsafe {
            buf.advance_vec_to(with.len())
        };
    }

    #[test]
    fn consecutive_reads_lie_side_by_side() {
        let pool = Pool::new().unwrap();
        let mut rope = Rope::in_pool(&pool);
        for expected in 1..=1000 {
            let mut lent = rope.lend(10_000).unwrap();
            assert_eq!((lent.buf_len(), lent.total_len()), (0, 0), "it is empty");
            assert!((7..=10_000).contains(&lent.buf_capacity()));
            assert_eq!(lent.total_capacity(), lent.buf_capacity());
            fill(&mut lent, b"seven b");
            assert_eq!(lent.as_init(), b"seven b");
            assert_eq!(rope.len(), 7 * (expected - 1), "not before it is back");
            rope.take_back(lent);
            assert_eq!(rope.len(), 7 * expected);
        }
        assert_eq!(rope, b"seven b".repeat(1000));
        assert_eq!(rope.finalize().unwrap().copied_bytes(), 0);
    }

    #[test]
    fn no_read_is_left_with_scraps() {
        let mut rope = Rope::new();
        for _ in 0..50 {
            let mut lent = rope.lend(100).unwrap();
            assert!(lent.buf_capacity() == 100);
            fill(&mut lent, &[7; 99]);
            rope.take_back(lent);
        }
        assert_eq!(rope, [7; 50 * 99]);
    }

    #[test]
    fn a_cancelled_read_takes_nothing_with_it() {
        let pool = Pool::new().unwrap();
        let mut rope = Rope::in_pool(&pool);
        rope.extend_from_slice(b"before");
        let mut lent = rope.lend(1 << 20).unwrap();
        fill(&mut lent, b"lost");
        assert!(pool.stats().in_use > 1 << 20);
        drop(lent);
        assert_eq!(rope, b"before");
        assert_eq!(pool.stats().in_use, 4096);
        rope.extend_from_slice(b", after");
        assert_eq!(rope, b"before, after");
    }

    #[test]
    fn what_was_written_meanwhile_comes_first() {
        let mut rope = Rope::from("one, ");
        let mut lent = rope.lend(100).unwrap();
        fill(&mut lent, b"three");
        rope.extend_from_slice(b"two, ");
        rope.take_back(lent);
        assert_eq!(rope, WHOLE);
    }

    #[test]
    fn shared_bytes_are_never_lent() {
        let mut rope = Rope::in_pool(&Pool::new().unwrap());
        rope.extend_from_slice(b"shared");
        let clone = rope.clone();
        let mut lent = rope.lend(6).unwrap();
        lent.as_uninit().fill(std::mem::MaybeUninit::new(b'!'));
        // SAFETY: just written.
        #[allow(unsafe_code)]
        unsafe {
            lent.set_len(6)
        };
        rope.take_back(lent);
        assert_eq!(rope, b"shared!!!!!!");
        assert_eq!(clone, b"shared");
    }

    #[test]
    fn what_was_not_filled_goes_back() {
        let pool = Pool::new().unwrap();
        let mut rope = Rope::in_pool(&pool);
        let lent = rope.lend(1 << 20).unwrap();
        assert!(pool.stats().in_use > 0);
        rope.take_back(lent);
        assert!(rope.is_empty());
        assert_eq!(pool.stats().in_use, 0);
    }

    #[test]
    fn without_room_nothing_is_lent() {
        let pool = Pool::options().capacity(4096).create().unwrap();
        let mut rope = Rope::in_pool(&pool);
        rope.extend_from_slice(&[1; 4090]);
        let mut lent = rope.lend(100).unwrap();
        assert_eq!(lent.buf_capacity(), 6, "better than nothing");
        rope.take_back(lent);
        rope.extend_from_slice(&[1; 6]);
        assert_eq!(rope.lend(1).unwrap_err().kind(), ErrorKind::OutOfMemory);
        rope.set_limit(4096);
        assert_eq!(rope.lend(1).unwrap_err().kind(), ErrorKind::QuotaExceeded);
        assert_eq!(rope, [1; 4096]);
    }
}

#[cfg(feature = "futures-io")]
mod futures_io {
    use std::io::SeekFrom;
    use std::pin::Pin;
    use std::task::{Context, Poll, Waker};

    use ::futures_io::{AsyncBufRead, AsyncRead, AsyncSeek, AsyncWrite};

    use super::*;

    fn ready<T>(poll: Poll<std::io::Result<T>>) -> T {
        match poll {
            Poll::Ready(result) => result.unwrap(),
            Poll::Pending => panic!("bytes in memory are always ready"),
        }
    }

    #[test]
    fn a_rope_is_read_from_its_front_and_written_at_its_end() {
        let context = &mut Context::from_waker(Waker::noop());
        let mut rope = three_pieces();
        let mut into = [0; 8];
        assert_eq!(ready(Pin::new(&mut rope).poll_read(context, &mut into)), 8);
        assert_eq!(ready(Pin::new(&mut rope).poll_fill_buf(context)), b", ");
        AsyncBufRead::consume(Pin::new(&mut rope), 2);
        assert_eq!(ready(Pin::new(&mut rope).poll_write(context, b"!")), 1);
        ready(Pin::new(&mut rope).poll_flush(context));
        ready(Pin::new(&mut rope).poll_close(context));
        assert_eq!(rope, b"three!");
    }

    #[test]
    fn a_cursor_is_read_and_sought_in() {
        let context = &mut Context::from_waker(Waker::noop());
        let rope = three_pieces();
        let mut cursor = rope.cursor();
        assert_eq!(ready(Pin::new(&mut cursor).poll_seek(context, SeekFrom::End(-5))), 10);
        assert_eq!(ready(Pin::new(&mut cursor).poll_fill_buf(context)), b"three");
        AsyncBufRead::consume(Pin::new(&mut cursor), 3);
        let mut into = [0; 8];
        assert_eq!(ready(Pin::new(&mut cursor).poll_read(context, &mut into)), 2);
        assert_eq!(ready(Pin::new(&mut cursor).poll_read(context, &mut into)), 0);
        assert_eq!(rope, WHOLE);
    }
}

#[cfg(feature = "http-body")]
mod http_body {
    use std::collections::VecDeque;
    use std::convert::Infallible;
    use std::future::Future;
    use std::io::ErrorKind;
    use std::pin::{Pin, pin};
    use std::task::{Context, Poll, Waker};

    use ::http_body::{Body, Frame, SizeHint};
    use bytes::Bytes;
    use http::HeaderMap;
    use ropewalk::BodyError;

    use super::*;

    fn now<T>(future: impl Future<Output = T>) -> T {
        match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(value) => value,
            Poll::Pending => panic!("these bodies are always ready"),
        }
    }

    fn next<B: Body<Error = Infallible> + Unpin>(body: &mut B) -> Option<Frame<B::Data>> {
        match Pin::new(body).poll_frame(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(frame) => frame.map(Result::unwrap),
            Poll::Pending => panic!("a rope is always ready"),
        }
    }

    fn trailers() -> HeaderMap {
        HeaderMap::from_iter([(http::header::ETAG, http::HeaderValue::from_static("x"))])
    }

    /// Frames of the caller's choice, of no known length.
    struct Frames(VecDeque<Result<Frame<Bytes>, &'static str>>);

    impl Frames {
        fn of(data: &[&'static [u8]]) -> Frames {
            Frames(data.iter().map(|piece| Ok(Frame::data(Bytes::from_static(piece)))).collect())
        }
    }

    impl Body for Frames {
        type Data = Bytes;
        type Error = &'static str;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, &'static str>>> {
            Poll::Ready(self.0.pop_front())
        }
    }

    #[test]
    fn a_rope_is_a_body_of_its_segments() {
        let mut body = three_pieces();
        for (piece, left) in [("one, ", 15), ("two, ", 10), ("three", 5)] {
            assert!(!body.is_end_stream());
            assert_eq!(body.size_hint().exact(), Some(left));
            assert_eq!(next(&mut body).unwrap().into_data().unwrap(), piece);
        }
        assert!(body.is_end_stream() && next(&mut body).is_none());
        assert_eq!(body.size_hint().exact(), Some(0));
    }

    #[test]
    fn trailers_come_last() {
        let mut body = Rope::from("data").with_trailers(trailers());
        // Of a body of known length a server sends the length, and over HTTP/1.1 no trailers.
        assert_eq!((body.size_hint().lower(), body.size_hint().exact()), (4, None));
        assert_eq!(next(&mut body).unwrap().into_data().unwrap(), "data");
        assert!(!body.is_end_stream());
        assert_eq!(next(&mut body).unwrap().into_trailers().unwrap(), trailers());
        assert!(body.is_end_stream() && next(&mut body).is_none());
    }

    #[test]
    fn what_one_rope_sends_the_other_receives() {
        let pool = Pool::new().unwrap();
        for mut rope in [Rope::new(), Rope::in_pool(&pool)] {
            let got = now(rope.receive_body(three_pieces().with_trailers(trailers()))).unwrap();
            assert_eq!((got, &rope), (Some(trailers()), &three_pieces()));
        }
        assert_eq!(now(Rope::new().receive_body(Rope::new())).unwrap(), None);
    }

    #[test]
    fn a_body_is_received_piece_by_piece() {
        let pool = Pool::new().unwrap();
        for mut rope in [Rope::new(), Rope::in_pool(&pool)] {
            let mut body = three_pieces().with_trailers(trailers());
            for (more, all) in [(5, 5), (5, 10), (5, 15), (0, 15), (0, 15)] {
                assert_eq!(now(rope.receive_some(&mut body)).unwrap(), more);
                assert_eq!(rope.len(), all);
            }
            assert_eq!(rope, three_pieces());
        }
        let mut rope = Rope::new();
        let mut body = Frames::of(&[b"", b"one, ", b"", b"two"]);
        assert_eq!(now(rope.receive_some(&mut body)).unwrap(), 5); // 0 is the end and nothing else
        assert_eq!(now(rope.receive_body(&mut body)).unwrap(), None); // the rest
        assert_eq!(rope, b"one, two");
        rope.set_limit(8 + 14);
        let error = std::io::Error::from(now(rope.receive_some(&mut three_pieces())).unwrap_err());
        assert_eq!((error.kind(), rope.len()), (ErrorKind::QuotaExceeded, 8)); // before anything is read
    }

    static LONG: [u8; 100_000] = [7; 100_000];

    #[test]
    fn a_short_body_takes_no_page() {
        let pool = Pool::new().unwrap();
        let mut rope = Rope::in_pool(&pool);
        now(rope.receive_body(Rope::from("short"))).unwrap();
        assert_eq!((rope.to_vec(), rope.num_segments(), pool.stats().in_use), (b"short".to_vec(), 1, 0));
    }

    #[test]
    fn long_pieces_are_kept_as_they_are_unless_there_is_a_pool() {
        let mut rope = Rope::new();
        now(rope.receive_body(Frames::of(&[&LONG, b"short", b"short"]))).unwrap();
        assert_eq!(rope.segments().next().unwrap().as_ptr(), LONG.as_ptr());
        assert_eq!(rope.num_segments(), 2);
        let pool = Pool::new().unwrap();
        let mut rope = Rope::in_pool(&pool);
        now(rope.receive_body(Frames::of(&[&LONG, b"short"]))).unwrap();
        assert!(pool.stats().in_use >= 100_005);
        assert_eq!(rope.finalize().unwrap().copied_bytes(), 0);
    }

    #[test]
    fn a_body_in_one_piece_is_kept_as_it_came() {
        let pool = Pool::new().unwrap();
        let mut ropes = [(); 2].map(|()| Rope::in_pool(&pool));
        now(ropes[0].receive_body(Frames::of(&[&LONG]))).unwrap();
        now(ropes[1].receive_some(&mut Rope::from(Bytes::from_static(&LONG)))).unwrap();
        assert_eq!(pool.stats().in_use, 0);
        for rope in ropes {
            let view = rope.finalize().unwrap();
            assert_eq!((view.as_ptr(), view.len()), (LONG.as_ptr(), LONG.len()));
        }
    }

    #[test]
    fn a_body_of_unknown_length_is_contiguous_piece_by_piece_too() {
        let pool = Pool::new().unwrap();
        let (mut rope, mut body) = (Rope::in_pool(&pool), Frames::of(&[&LONG, &LONG]));
        while now(rope.receive_some(&mut body)).unwrap() > 0 {}
        let view = rope.finalize().unwrap();
        assert_eq!((view.len(), view.copied_bytes(), view.num_maps()), (2 * LONG.len(), 0, 0));
    }

    /// A piece may keep a buffer that is much larger.
    #[test]
    fn what_is_kept_as_it_came_is_bounded() {
        let pool = Pool::options().capacity(8 << 20).create().unwrap();
        let receive = |piece| {
            let mut rope = Rope::in_pool(&pool);
            now(rope.receive_body(Frames::of(&[piece]))).unwrap();
            assert!(rope == *piece);
            rope
        };
        let is_kept = |rope: &Rope| LONG.as_ptr_range().contains(&rope.segments().next().unwrap().as_ptr());
        for round in 0..3 {
            let mut ropes: Vec<Rope> = (0..10).map(|_| receive(&LONG)).collect();
            assert_eq!(
                ropes.iter().filter(|rope| is_kept(rope)).count(),
                2,
                "a 32nd of the capacity, {round}"
            );
            assert!(ropes[..2].iter().all(is_kept));
            ropes.push(receive(&LONG[..62_000]));
            assert!(is_kept(&ropes[10]));
        }
        assert!(is_kept(&receive(&LONG[..16 << 10])));
        assert!(!is_kept(&receive(&LONG[..(16 << 10) - 1])));
    }

    /// A body of which these pieces have come, and no more comes.
    struct Begun(Frames);

    impl Body for Begun {
        type Data = Bytes;
        type Error = &'static str;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, &'static str>>> {
            self.0.0.pop_front().map_or(Poll::Pending, |piece| Poll::Ready(Some(piece)))
        }
    }

    #[test]
    fn what_waits_for_the_next_piece_is_in_the_rope() {
        let pool = Pool::new().unwrap();
        for piece in [&b"short"[..], &LONG] {
            let mut rope = Rope::in_pool(&pool);
            let mut begun = Box::pin(rope.receive_body(Begun(Frames::of(&[piece]))));
            assert!(begun.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
            drop(begun);
            assert!(rope == *piece, "dropped");
            let mut rope = Rope::in_pool(&pool);
            let mut fails = Frames::of(&[piece]);
            fails.0.push_back(Err("cut"));
            assert!(matches!(now(rope.receive_body(&mut fails)), Err(BodyError::Body("cut"))));
            assert!(rope == *piece, "failed");
        }
    }

    /// A body that is being received into a pool until this is dropped.
    fn another(pool: &Pool) -> Pin<Box<dyn Future<Output = ()>>> {
        let mut rope = Rope::in_pool(pool);
        let mut receiving: Pin<Box<dyn Future<Output = ()>>> = Box::pin(async move {
            let _ = rope.receive_body(Begun(Frames::of(&[]))).await;
        });
        assert!(receiving.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        receiving
    }

    /// Remembers what the pool had in use when it was polled last.
    struct Watching<'a>(Frames, &'a Pool, u64);

    impl Body for Watching<'_> {
        type Data = Bytes;
        type Error = &'static str;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, &'static str>>> {
            self.2 = self.1.stats().in_use;
            Pin::new(&mut self.0).poll_frame(context)
        }
    }

    /// Returns a rope of these pieces, and what the pool had in use when all of them had come and their end had not.
    fn receive_pieces(pool: &Pool, pieces: &[&'static [u8]]) -> (Rope, u64) {
        let (mut rope, mut body) = (Rope::in_pool(pool), Watching(Frames::of(pieces), pool, 0));
        now(rope.receive_body(&mut body)).unwrap();
        assert!(rope == pieces.concat());
        (rope, body.2)
    }

    static PART: [u8; 256 << 10] = [8; 256 << 10];

    #[test]
    fn while_others_are_received_a_short_body_waits_for_its_last_piece() {
        let pool = Pool::options().capacity(256 << 20).create().unwrap();
        let two: &[&[u8]] = &[&LONG, &LONG];
        let whole = [&PART[..]; 4];
        assert!(receive_pieces(&pool, two).1 > 0, "it is the only one");
        for _ in 0..100 {
            let _another = another(&pool);
            for pieces in [two, &whole] {
                let (rope, in_use) = receive_pieces(&pool, pieces);
                assert_eq!(in_use, 0, "{}", pieces.len());
                let view = rope.finalize().unwrap();
                assert_eq!((view.copied_bytes(), view.num_maps()), (0, 0), "{}", pieces.len());
            }
            assert_eq!(pool.stats().in_use, 0);
        }
        assert!(receive_pieces(&pool, two).1 > 0, "the other has ended");
    }

    #[test]
    fn a_long_body_does_not_wait_and_neither_does_one_of_many_pieces() {
        let pool = Pool::options().capacity(256 << 20).create().unwrap();
        let _another = another(&pool);
        let long = [&PART[..], &PART, &PART, &PART, &LONG[..1]];
        assert_eq!(receive_pieces(&pool, &long[..4]).1, 0);
        assert!(receive_pieces(&pool, &long).1 > 0);
        assert_eq!(receive_pieces(&pool, &[&LONG[..5000]; 64]).1, 0);
        assert!(receive_pieces(&pool, &[&LONG[..5000]; 65]).1 > 0);
    }

    #[test]
    fn what_waits_is_bounded() {
        // A 32nd of it is 64 KiB: four short pieces, each of which may keep as much as one of 16 KiB.
        let pool = Pool::options().capacity(2 << 20).create().unwrap();
        let _another = another(&pool);
        for _ in 0..3 {
            assert_eq!(receive_pieces(&pool, &[&LONG[..6000]; 4]).1, 0);
            assert!(receive_pieces(&pool, &[&LONG[..6000]; 5]).1 > 0);
            assert!(receive_pieces(&pool, &[&LONG[..40_000]; 3]).1 > 0);
        }
        let zeroing = Pool::options().zero_on_release(true).create().unwrap();
        let _another = another(&zeroing);
        assert!(receive_pieces(&zeroing, &[&LONG, &LONG]).1 > 0, "a pool that overwrites has all of it");
    }

    /// Pieces that wait are in the rope when the future is dropped, when the body fails, and as far as the pool has room.
    #[test]
    fn pieces_that_wait_are_not_lost() {
        let pool = Pool::options().capacity(16 << 20).create().unwrap();
        let _another = another(&pool);
        let mut rope = Rope::in_pool(&pool);
        let mut body = Frames::of(&[&LONG, &LONG]);
        body.0.push_back(Err("cut"));
        assert!(matches!(now(rope.receive_body(&mut body)), Err(BodyError::Body("cut"))));
        assert!(rope == [LONG, LONG].concat(), "failed");
        drop(rope);

        let mut rope = Rope::in_pool(&pool);
        let mut begun = Box::pin(rope.receive_body(Begun(Frames::of(&[&LONG, &LONG]))));
        assert!(begun.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        assert_eq!(pool.stats().in_use, 0);
        drop(begun);
        assert!(rope == [LONG, LONG].concat(), "dropped");
        drop(rope);

        let mut others = Rope::in_pool(&pool);
        others.extend_from_slice(&vec![1; (16 << 20) - (120 << 10)]);
        let (mut rope, mut body) = (Rope::in_pool(&pool), Frames::of(&[&LONG, &LONG]));
        let error = std::io::Error::from(now(rope.receive_body(&mut body)).unwrap_err());
        assert_eq!(error.kind(), ErrorKind::OutOfMemory);
        assert!((1..2 * LONG.len()).contains(&rope.len()), "{}", rope.len());
        drop(others);
        now(rope.receive_body(&mut body)).unwrap();
        assert!(rope == [LONG, LONG].concat(), "full");
    }

    #[test]
    fn a_piece_is_copied_where_the_memory_matters() {
        let pool = Pool::options().zero_on_release(true).create().unwrap();
        let mut ropes = vec![Rope::in_pool(&pool)];
        if cfg!(all(target_os = "linux", not(ropewalk_portable))) {
            ropes.push(Rope::for_handover().unwrap());
            ropes.push(Rope::for_file(std::env::temp_dir(), 1 << 20).unwrap());
        }
        for mut rope in ropes {
            now(rope.receive_body(Frames::of(&[&LONG]))).unwrap();
            assert_ne!(rope.segments().next().unwrap().as_ptr(), LONG.as_ptr());
            assert!(rope.finalize().unwrap()[..] == LONG);
        }
    }

    /// A body that says it has at least so many bytes.
    struct Announces(u64, Frames);

    impl Body for Announces {
        type Data = Bytes;
        type Error = &'static str;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, &'static str>>> {
            Pin::new(&mut self.1).poll_frame(context)
        }

        fn size_hint(&self) -> SizeHint {
            let mut hint = SizeHint::new();
            hint.set_lower(self.0);
            hint
        }
    }

    #[test]
    fn a_body_may_announce_anything_and_takes_what_it_sends() {
        let lengths = [0, 1, 4097, 1 << 20, (32 << 20) + 1, 1 << 32, u64::MAX - 1, u64::MAX];
        // A rope has room for no more.
        for announced in lengths.into_iter().filter(|&len| usize::try_from(len).is_ok()) {
            let pool = Pool::options().capacity(128 << 10).create().unwrap();
            let mut rope = Rope::in_pool(&pool);
            now(rope.receive_body(Announces(announced, Frames::of(&[&LONG, b"short"])))).unwrap();
            assert_eq!(rope.len(), LONG.len() + 5, "{announced}");
            let (stats, sent) = (pool.stats(), LONG.len() as u64 + 5);
            assert_eq!(stats.in_use, sent.next_multiple_of(stats.page_size), "{announced}");
            assert_eq!(rope.finalize().unwrap().copied_bytes(), 0, "{announced}");
        }
    }

    /// Ropes that do not know how long they will be begin 512 KiB apart, and meet.
    #[test]
    fn bodies_of_announced_length_that_come_in_turns_are_contiguous() {
        let pool = Pool::new().unwrap();
        let mut bodies: Vec<Rope> = (0..4)
            .map(|_| {
                let mut body = Rope::new();
                (0..40).for_each(|_| body.push(Bytes::from_static(&LONG)));
                body
            })
            .collect();
        let mut ropes: Vec<Rope> = bodies.iter().map(|_| Rope::in_pool(&pool)).collect();
        for round in 0..40 {
            for (rope, body) in ropes.iter_mut().zip(&mut bodies) {
                assert_eq!(now(rope.receive_some(body)).unwrap(), LONG.len());
            }
            if round == 0 {
                assert!(pool.stats().in_use < 2 << 20, "what is announced only is not allocated");
            }
        }
        for rope in ropes {
            let view = rope.finalize().unwrap();
            assert_eq!((view.len(), view.copied_bytes(), view.num_maps()), (40 * LONG.len(), 0, 0));
        }
    }

    #[test]
    fn a_body_beyond_the_limit_is_an_error_that_keeps_what_fits() {
        let pool = Pool::new().unwrap();
        for mut rope in [Rope::new(), Rope::in_pool(&pool)] {
            rope.set_limit(7);
            match now(rope.receive_body(Frames::of(&[b"four", b"five!"]))).unwrap_err() {
                BodyError::Rope(error) => assert_eq!(error.kind(), ErrorKind::QuotaExceeded),
                other => panic!("{other}"),
            }
            assert_eq!(rope, b"fourfiv");
        }
    }

    /// The piece that did not fit is the body's no more.
    #[test]
    fn a_body_goes_on_where_it_did_not_fit() {
        let pool = Pool::options().capacity(64 << 10).create().unwrap();
        for piecewise in [false, true] {
            for (mut rope, limits) in [
                (Rope::new(), &[7, 8, 15_000, usize::MAX][..]),
                (Rope::in_pool(&Pool::new().unwrap()), &[0, 7, 15_000, usize::MAX]),
                (Rope::in_pool(&pool), &[usize::MAX, usize::MAX, 1 << 20]),
            ] {
                let mut other = Some(Rope::in_pool(&pool));
                other.iter_mut().for_each(|other| other.extend_from_slice(&LONG[..32 << 10]));
                let mut body = Frames::of(&[b"four", &LONG[..40_000], b"five!"]);
                for (round, &limit) in limits.iter().enumerate() {
                    rope.set_limit(limit);
                    let received = if piecewise {
                        std::iter::from_fn(|| Some(now(rope.receive_some(&mut body))))
                            .find(|got| !matches!(got, Ok(1..)))
                            .unwrap()
                            .map(drop)
                    } else {
                        now(rope.receive_body(&mut body)).map(drop)
                    };
                    let is_last = round + 1 == limits.len();
                    assert_eq!(received.is_ok(), is_last, "{limit} {received:?}");
                    drop(other.take_if(|_| round + 2 == limits.len()));
                }
                assert!(rope == [b"four", &LONG[..40_000], b"five!"].concat(), "{}", rope.len());
            }
        }
    }

    #[test]
    fn a_body_that_says_it_is_too_long_is_not_even_begun() {
        struct Huge;

        impl Body for Huge {
            type Data = Bytes;
            type Error = Infallible;

            fn poll_frame(
                self: Pin<&mut Self>,
                _: &mut Context<'_>,
            ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
                panic!("polled")
            }

            fn size_hint(&self) -> SizeHint {
                SizeHint::with_exact(u64::MAX)
            }
        }

        let mut rope = Rope::new();
        rope.set_limit(1 << 30);
        let error = std::io::Error::from(now(rope.receive_body(Huge)).unwrap_err());
        assert_eq!(error.kind(), ErrorKind::QuotaExceeded);
    }

    #[test]
    fn a_body_that_fails_leaves_what_came_before() {
        let mut body = Frames::of(&[b"before"]);
        body.0.push_back(Err("broken"));
        let mut rope = Rope::new();
        let error = now(rope.receive_body(body)).unwrap_err();
        assert_eq!(error.to_string(), "the body failed: broken");
        assert_eq!(rope, b"before");
    }

    #[test]
    fn a_full_pool_is_an_error() {
        let pool = Pool::options().capacity(4096).create().unwrap();
        let mut rope = Rope::in_pool(&pool);
        let error = now(rope.receive_body(Frames::of(&[&[1; 4096], &[2; 10]]))).unwrap_err();
        assert_eq!(std::io::Error::from(error).kind(), ErrorKind::OutOfMemory);
        assert_eq!(rope, [1; 4096]);
        assert_eq!(pool.stats().fallbacks, 0);
    }
}

#[cfg(feature = "serde")]
mod serde {
    use ropewalk::View;

    use super::*;

    #[test]
    fn ropes_and_views_pass_through_a_format_without_byte_strings() {
        let json = serde_json::to_string(&Rope::from("\u{1}\u{2}")).unwrap();
        assert_eq!(json, "[1,2]");
        let rope: Rope = serde_json::from_str(&serde_json::to_string(&three_pieces()).unwrap()).unwrap();
        assert_eq!(rope, WHOLE);
        let view = three_pieces().finalize().unwrap();
        let view: View = serde_json::from_str(&serde_json::to_string(&view).unwrap()).unwrap();
        assert_eq!(&*view, WHOLE);
        assert_eq!(serde_json::from_str::<Rope>("\"text\"").unwrap(), b"text");
        assert!(serde_json::from_str::<Rope>("[256]").is_err());
        assert!(serde_json::from_str::<Rope>("{}").is_err());
    }
}
