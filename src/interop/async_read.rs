//! Receiving from any [`AsyncRead`], such as TLS or decompression, which have no descriptor of their own.
//!
//! ```text
//!   poll_read ──► spare bytes of the tail              only while it is polled: a read that waits holds no memory
//!        │
//!        └─ no room ──► one byte, held back in the rope: proves that there is more, and is delivered first
//! ```

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::io::{AsyncRead, ReadBuf};

use super::codec::RopeCodec;
use super::frames::{Fill, next_frame};
use super::tokio::ended;
use crate::pool::{Pool, SpillWait, is_at_capacity};
use crate::rope::{Body, Rope};
use crate::sys::iovec::UninitIovec;

impl Rope {
    /// Appends the bytes of one read of `reader`, such as a TLS stream; returns their number. `Ok(0)` is the end of the
    /// stream.
    ///
    /// The reader writes directly into the rope's memory, with the adaptive read size of
    /// [`readv_from`](Rope::readv_from). While the read waits, the rope holds its own bytes and a few spare pages
    /// behind them. For tokio's sockets and pipes, [`ReadRope`](crate::ReadRope) is faster, because it reads from the
    /// descriptor.
    ///
    /// # Errors
    ///
    /// * [`QuotaExceeded`](io::ErrorKind::QuotaExceeded): the rope is at its [limit](Rope::set_limit) and there is
    ///   more.
    /// * [`OutOfMemory`](io::ErrorKind::OutOfMemory): the pool is at its capacity and there is more, or the system has
    ///   no memory. [`receive_from_when_room`](Rope::receive_from_when_room) waits instead.
    /// * [`Unsupported`](io::ErrorKind::Unsupported) in a child of the process that made the pool; nothing was read.
    /// * Any error that `reader` returns.
    ///
    /// After any error the rope holds what it held before, and the call can be repeated.
    ///
    /// Only a read can tell whether there is more. The one byte that it takes is held back: it is not part of the rope
    /// yet, since that would exceed the limit, and the next receive of any kind that has room delivers it first. So
    /// continue with the same rope after these two errors; what it holds is taken off by
    /// [`split_to(rope.len())`](Rope::split_to), not by `mem::take`, `finalize` or another replacement of the rope.
    /// [`clear`](Rope::clear), `split_to` and [`split_off`](Rope::split_off) leave the byte with this rope, a clone has
    /// none, and [`append`](Rope::append) moves that of the other rope here. An empty rope holds
    /// nothing back for want of room in the pool: it receives the byte, `Ok(1)`, and fails the next time.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped before it is done, nothing was received.
    ///
    /// # Examples
    ///
    /// ```
    /// use ropewalk::{Pool, Rope};
    /// use std::io::ErrorKind;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> std::io::Result<()> {
    /// let mut upload = &b"an upload of 23 bytes.."[..]; // usually a TLS stream
    /// let mut rope = Rope::in_pool(&Pool::new()?);
    /// rope.set_limit(9);
    /// assert_eq!(rope.receive_from(&mut upload).await?, 9);
    /// let error = rope.receive_from(&mut upload).await.unwrap_err();
    /// assert_eq!(error.kind(), ErrorKind::QuotaExceeded);
    ///
    /// rope.set_limit(1 << 20);
    /// while rope.receive_from(&mut upload).await? > 0 {}
    /// assert_eq!(rope, b"an upload of 23 bytes..");
    /// # Ok(())
    /// # }
    /// ```
    pub async fn receive_from<R: AsyncRead + Unpin + ?Sized>(&mut self, reader: &mut R) -> io::Result<usize> {
        self.receive_up_to_from(reader, usize::MAX).await
    }

    /// Like [`receive_from`](Rope::receive_from), but waits for room while the pool is at its capacity.
    ///
    /// As with [`when_room`](crate::ReadRope::when_room), a rope queues only once bytes have arrived, and waiters are
    /// served first come, first served. Ropes that hold pages while they wait for more can wait for each other for
    /// ever: choose limits that fit the pool together, or set a deadline.
    ///
    /// # Errors
    ///
    /// As for [`receive_from`](Rope::receive_from), but `OutOfMemory` only if the system has no memory.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped before it is done, nothing was received, and the rope leaves the queue.
    ///
    /// # Examples
    ///
    /// ```
    /// use ropewalk::{Pool, Rope};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> std::io::Result<()> {
    /// let pool = Pool::options().capacity(4096).create()?;
    /// let mut held = Rope::in_pool(&pool);
    /// held.extend_from_slice(b"all there is");
    ///
    /// let mut upload = &[7; 10][..];
    /// let mut rope = Rope::in_pool(&pool);
    /// rope.reserve(1).unwrap_err();
    /// let receive = async { while rope.receive_from_when_room(&mut upload).await? > 0 {} std::io::Result::Ok(()) };
    /// let (received, ()) = tokio::join!(receive, async { drop(held) });
    /// received?;
    /// assert_eq!(rope, [7; 10]);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn receive_from_when_room<R: AsyncRead + Unpin + ?Sized>(
        &mut self,
        reader: &mut R,
    ) -> io::Result<usize> {
        let mut received = self.receive_from(reader).await;
        while received.as_ref().is_err_and(is_at_capacity) {
            self.wait_for_room(None).await?;
            received = self.receive_from(reader).await;
            self.release_room(); // what is left of it, for other waiters
        }
        received
    }

    /// Appends exactly `count` bytes of `reader`, and leaves those behind them there.
    ///
    /// # Errors
    ///
    /// [`UnexpectedEof`](io::ErrorKind::UnexpectedEof) if the stream ends before; else as for
    /// [`receive_from`](Rope::receive_from). The rope keeps the bytes that have arrived.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped before it is done, the rope keeps the bytes that have arrived, and its length tells how
    /// many. Ask for the rest to continue.
    ///
    /// # Examples
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> std::io::Result<()> {
    /// let mut stream = &b"one message, the next"[..];
    /// let mut rope = ropewalk::Rope::new();
    /// rope.receive_exact_from(&mut stream, 11).await?;
    /// assert_eq!((&rope, stream), (&"one message".into(), &b", the next"[..]));
    /// # Ok(())
    /// # }
    /// ```
    pub async fn receive_exact_from<R: AsyncRead + Unpin + ?Sized>(
        &mut self,
        reader: &mut R,
        count: usize,
    ) -> io::Result<()> {
        let mut missing = count;
        while missing > 0 {
            match self.receive_up_to_from(reader, missing).await? {
                0 => return Err(ended(count - missing, count)),
                more => missing -= more,
            }
        }
        Ok(())
    }

    /// Returns the next frame of `reader`, such as a TLS stream; `None` if the stream ended before one began. This rope
    /// holds bytes of incomplete frames, so always use the same one.
    ///
    /// Frames of less than 64 KiB are read ahead. A longer one is received on its own, in one run:
    /// [finalised](Rope::finalize) it is borrowed. What has come with its header is moved, behind a long frame at most 512
    /// bytes. The run counts as in use once the header has arrived; its pages are given memory as bytes arrive.
    ///
    /// # Errors
    ///
    /// * As for [`RopeCodec::take`] and [`receive_from`](Rope::receive_from).
    /// * `UnexpectedEof` when the stream ends inside a frame.
    /// * `QuotaExceeded` for a frame that is longer than the rope's [limit](Rope::set_limit) allows.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped before it is done, the rope keeps the bytes that have arrived. Call again to continue.
    ///
    /// # Examples
    ///
    /// ```
    /// use ropewalk::{Rope, RopeCodec};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> std::io::Result<()> {
    /// let mut stream = &b"\0\0\0\x05first\0\0\0\x06second"[..];
    /// let (mut received, codec) = (Rope::new(), RopeCodec::new(1 << 20));
    /// assert_eq!(received.receive_frame_from(&mut stream, &codec).await?.unwrap(), b"first");
    /// assert_eq!(received.receive_frame_from(&mut stream, &codec).await?.unwrap(), b"second");
    /// assert!(received.receive_frame_from(&mut stream, &codec).await?.is_none());
    /// # Ok(())
    /// # }
    /// ```
    pub async fn receive_frame_from<R: AsyncRead + Unpin + ?Sized>(
        &mut self,
        reader: &mut R,
        codec: &RopeCodec,
    ) -> io::Result<Option<Rope>> {
        next_frame(Reader(reader), self, codec).await
    }

    async fn receive_up_to_from<R: AsyncRead + Unpin + ?Sized>(
        &mut self,
        reader: &mut R,
        max: usize,
    ) -> io::Result<usize> {
        let mut wait = SpillWait::default();
        poll_fn(|context| {
            ready!(self.poll_spill(&mut wait, context));
            self.poll_receive(context, Pin::new(reader), max)
        })
        .await
    }

    fn poll_receive(
        &mut self,
        context: &mut Context<'_>,
        mut reader: Pin<&mut (impl AsyncRead + ?Sized)>,
        max: usize,
    ) -> Poll<io::Result<usize>> {
        self.pool().map_or(Ok(()), Pool::check_process)?;
        if let Some(delivered) = self.deliver_held_back(max) {
            return Poll::Ready(delivered);
        }
        let pace = *self.reads();
        let mut want = pace.bytes().min(max).min(self.allowed());
        if want == 0 {
            return self.poll_hold_back(context, reader, self.limit_reached());
        }
        let count =
            |read: &Poll<io::Result<usize>>| if let Poll::Ready(Ok(count)) = read { *count } else { 0 };
        loop {
            let read = |iovecs: &mut [UninitIovec<'_>]| {
                Ok(poll_read(reader.as_mut(), context, ReadBuf::uninit(iovecs[0].as_uninit())))
            };
            match self.receive_ready(want, want == max, read, count) {
                // A rope that looks empty may be dropped, so it holds nothing back. One byte needs no page.
                Err(error) if is_at_capacity(&error) && self.is_empty() && want > 1 => want = 1,
                Err(error) if is_at_capacity(&error) => return self.poll_hold_back(context, reader, error),
                Err(error) => return Poll::Ready(Err(error)),
                Ok(read) => {
                    if read.is_pending() {
                        *self.reads() = pace; // it says nothing of how much will come
                    }
                    return read;
                }
            }
        }
    }

    /// Reads one byte where there is no room: returns `error` and holds the byte back, unless the stream is at its end.
    fn poll_hold_back(
        &mut self,
        context: &mut Context<'_>,
        reader: Pin<&mut (impl AsyncRead + ?Sized)>,
        error: io::Error,
    ) -> Poll<io::Result<usize>> {
        let mut byte = [0];
        if ready!(poll_read(reader, context, ReadBuf::new(&mut byte)))? == 0 {
            return Poll::Ready(Ok(0));
        }
        self.hold_back(Bytes::copy_from_slice(&byte));
        Poll::Ready(Err(error))
    }
}

/// Reads what is missing of a body, and not beyond a long one: a reader has no second place for what follows.
struct Reader<'a, R: ?Sized>(&'a mut R);

impl<R: AsyncRead + Unpin + ?Sized> Fill for Reader<'_, R> {
    async fn fill(&mut self, rope: &mut Rope, body: Option<Body>) -> io::Result<usize> {
        let max = rope.prepare_body(body)?;
        rope.receive_up_to_from(self.0, max).await
    }
}

/// Returns the number of bytes of one read.
///
/// # Panics
///
/// If `reader` replaced the buffer of `into`: then it read nothing into this one.
fn poll_read(
    reader: Pin<&mut (impl AsyncRead + ?Sized)>,
    context: &mut Context<'_>,
    mut into: ReadBuf<'_>,
) -> Poll<io::Result<usize>> {
    let place = into.filled().as_ptr();
    ready!(reader.poll_read(context, &mut into))?;
    assert_eq!(into.filled().as_ptr(), place, "the reader has exchanged the buffer");
    Poll::Ready(Ok(into.filled().len()))
}
