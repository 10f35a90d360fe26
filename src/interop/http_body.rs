//! `http-body`: a rope as a body, and a rope filled from one.

use std::convert::Infallible;
use std::error::Error;
use std::fmt;
use std::future::poll_fn;
use std::io::{self, Write};
use std::mem;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};

use crate::pool::{Beside, Receiving, SpillWait};
use crate::rope::Rope;

/// Shorter pieces are copied rather than kept as segments: making, sending and dropping a segment costs as much as
/// copying 1 to 2 KiB.
const COPY_MAX: usize = 1024;

/// Shorter pieces are copied into the pool's pages, although nothing else comes: they might keep a buffer that is much
/// larger. Where they wait, they are counted as this long.
const KEEP_MIN: usize = 16 << 10;

/// Longest body whose pieces wait for the last one.
const WAIT_MAX: usize = 1 << 20;

/// Most pieces that wait.
const WAIT_PIECES: usize = 64;

type NextFrame = Poll<Option<Result<Frame<Bytes>, Infallible>>>;

/// Yields one frame per segment, so that a server with vectored writes sends without a copy. The size is known. To send
/// a rope more than once, send a clone or a [`slice`](Rope::slice).
///
/// # Examples
///
/// ```
/// use http::Response;
/// use http_body::Body;
/// use ropewalk::Rope;
///
/// let stored = Rope::from("sent to all clients");
/// let response = Response::new(stored.clone()); // shares the memory
/// assert_eq!(response.body().size_hint().exact(), Some(19));
/// ```
impl Body for Rope {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> NextFrame {
        Poll::Ready(self.get_mut().pop_front().map(Frame::data).map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        self.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.len() as u64)
    }
}

/// A rope with trailers behind it, as a body; made by [`Rope::with_trailers`].
///
/// # Examples
///
/// A server's answer whose checksum goes behind its data:
///
/// ```
/// use http::{HeaderMap, HeaderValue, Response};
/// use http_body::Body;
/// use ropewalk::{Rope, RopeBody};
///
/// fn answer(data: Rope, checksum: u32) -> Response<RopeBody> {
///     let mut trailers = HeaderMap::new();
///     trailers.insert("checksum", HeaderValue::from(checksum));
///     Response::new(data.with_trailers(trailers))
/// }
///
/// let response = answer(Rope::new(), 7);
/// assert!(!response.body().is_end_stream()); // the trailers are still to come
/// ```
#[derive(Debug)]
pub struct RopeBody {
    rope: Rope,
    trailers: Option<HeaderMap>,
}

impl Body for RopeBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> NextFrame {
        let this = self.get_mut();
        let data = this.rope.pop_front().map(Frame::data);
        let frame = data.or_else(|| this.trailers.take().map(Frame::trailers));
        Poll::Ready(frame.map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        self.rope.is_empty() && self.trailers.is_none()
    }

    /// Exact unless trailers follow: HTTP/1.1 sends them behind a chunked body only, and servers send a body of known
    /// length otherwise.
    fn size_hint(&self) -> SizeHint {
        let mut hint = self.rope.size_hint();
        if self.trailers.is_some() {
            hint = SizeHint::new();
            hint.set_lower(self.rope.len() as u64);
        }
        hint
    }
}

impl Rope {
    /// Converts the rope into a body that ends with `trailers`.
    ///
    /// Over HTTP/1.1 hyper sends those that the field `Trailer` of the message names; a server sends them only if the
    /// request says `TE: trailers`.
    ///
    /// # Examples
    ///
    /// ```
    /// use http::HeaderMap;
    /// use http_body::Body;
    /// use ropewalk::Rope;
    ///
    /// let mut trailers = HeaderMap::new();
    /// trailers.insert("checksum", "7".parse()?);
    /// let body = Rope::from("the body").with_trailers(trailers);
    /// assert_eq!(body.size_hint().lower(), 8);
    /// # Ok::<(), http::header::InvalidHeaderValue>(())
    /// ```
    #[must_use]
    pub fn with_trailers(self, trailers: HeaderMap) -> RopeBody {
        RopeBody { rope: self, trailers: Some(trailers) }
    }

    /// Appends all data of `body`, up to the rope's [limit](Rope::set_limit); returns the trailers.
    ///
    /// A rope in a pool copies the data into its pages, so the pool's capacity bounds all bodies together, and the
    /// [view](Rope::finalize) is borrowed or mapped. A body that announces its length begins where the pool has so many
    /// free pages in one run, at most 32 MiB, if it has; they are allocated only as they are filled.
    ///
    /// A body that comes in one piece is not always copied into pages. Up to 4 KiB become a heap block of their own size.
    /// From 16 KiB on, the piece is kept as it came, without a copy, until all that are kept so are a 32nd of the pool's
    /// capacity; what comes then is copied. A piece may be a part of a larger buffer, which it keeps: of hyper's, with up
    /// to 408 KiB, they keep less than the capacity together. While other bodies are received into the pool, the pieces of a
    /// body of at most 1 MiB, at most 64, wait for the last one, within the same bound, and are copied then: to pages that
    /// were used a moment ago. A pool that [zeroes](crate::PoolOptions::zero_on_release) copies all as it comes, and so do
    /// [`for_handover`](Rope::for_handover) and [`for_file`](Rope::for_file).
    ///
    /// A rope on the heap keeps the data without a copy, except for pieces so short that a segment costs more.
    ///
    /// # Errors
    ///
    /// [`BodyError::Body`] if the body fails. [`BodyError::Rope`] with
    /// [`QuotaExceeded`](io::ErrorKind::QuotaExceeded) if the body is longer than the limit, before
    /// anything is read if it says so itself; with [`OutOfMemory`](io::ErrorKind::OutOfMemory) if the
    /// pool is at its capacity. The rope keeps what has arrived and fits, and holds back the rest of that piece, which it
    /// delivers first if it goes on with a body that was passed as `&mut`, with a higher limit or once there is room.
    ///
    /// To wait for room instead, wait for all of it before, with [`wait_for_room`](crate::Pool::wait_for_room) and
    /// [`in_room`](Rope::in_room).
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped before it is done, the rope keeps what has arrived. The body is dropped too, unless it
    /// was passed as `&mut`.
    ///
    /// # Examples
    ///
    /// ```
    /// use ropewalk::{Pool, Rope};
    ///
    /// # fn block_on<T>(future: impl Future<Output = T>) -> T {
    /// #     let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    /// #     loop {
    /// #         if let std::task::Poll::Ready(value) = std::pin::pin!(future).poll(&mut context) {
    /// #             break value;
    /// #         }
    /// #         unreachable!("a rope is always ready");
    /// #     }
    /// # }
    /// let request = Rope::from("the body of a request");
    /// let mut rope = Rope::in_pool(&Pool::new()?);
    /// rope.set_limit(1 << 20);
    /// let trailers = block_on(rope.receive_body(request))?;
    /// assert_eq!(rope, b"the body of a request");
    /// assert!(trailers.is_none());
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub async fn receive_body<B: Body>(&mut self, body: B) -> Result<Option<HeaderMap>, BodyError<B::Error>> {
        let mut body = pin!(body);
        self.check_announced(&*body)?;
        let mut pieces = Pieces::new(self);
        let mut trailers = None;
        while let Some(frame) = pieces.rope.next_of(body.as_mut()).await {
            match frame.map_err(BodyError::Body)?.into_data() {
                Ok(data) => pieces.take(data, more_of(&*body)).map_err(BodyError::Rope)?,
                Err(frame) => trailers = frame.into_trailers().ok(),
            }
        }
        pieces.finish().map_err(BodyError::Rope)?;
        Ok(trailers)
    }

    /// Appends the next data of `body`, as much as came at once; returns how many bytes. `Ok(0)` is the end, behind
    /// trailers that are discarded.
    ///
    /// For progress bars and deadlines between pieces. What it copies, and what it refuses before anything is read, is as
    /// for [`receive_body`](Rope::receive_body), which may also receive the rest.
    ///
    /// # Errors
    ///
    /// As for [`receive_body`](Rope::receive_body).
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped before it is done, nothing is lost.
    ///
    /// # Examples
    ///
    /// ```
    /// use http_body::Body;
    /// use ropewalk::{BodyError, Pool, Rope};
    ///
    /// /// Prints how much has come, of a response of reqwest or a request of axum.
    /// async fn download<B: Body + Unpin>(mut body: B, pool: &Pool) -> Result<Rope, BodyError<B::Error>> {
    ///     let mut rope = Rope::in_pool(pool);
    ///     rope.set_limit(1 << 30);
    ///     let whole = body.size_hint().exact();
    ///     while rope.receive_some(&mut body).await? > 0 {
    ///         println!("{} of {whole:?} bytes", rope.len());
    ///     }
    ///     Ok(rope)
    /// }
    /// # let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    /// # let pool = Pool::new()?;
    /// # let std::task::Poll::Ready(got) = std::pin::pin!(download(Rope::from("all"), &pool)).poll(&mut context) else {
    /// #     unreachable!("a rope is always ready");
    /// # };
    /// # assert_eq!(got?, b"all");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub async fn receive_some<B: Body + Unpin>(
        &mut self,
        body: &mut B,
    ) -> Result<usize, BodyError<B::Error>> {
        let before = self.len();
        self.check_announced(body)?;
        while self.len() == before {
            let Some(frame) = self.next_of(Pin::new(&mut *body)).await else { break };
            if let Ok(data) = frame.map_err(BodyError::Body)?.into_data() {
                let taken = if body.is_end_stream() {
                    let mut only = Pieces::new(self);
                    only.take(data, 0).and_then(|()| only.finish())
                } else {
                    self.take_data(data, more_of(body))
                };
                taken.map_err(BodyError::Rope)?;
            }
        }
        Ok(self.len() - before)
    }

    /// Returns the next frame of `body`. A rope that spills waits for the disk before it takes the frame, which would be
    /// lost if the future were dropped after that.
    async fn next_of<B: Body>(&mut self, mut body: Pin<&mut B>) -> Option<Result<Frame<B::Data>, B::Error>> {
        let mut wait = SpillWait::default();
        poll_fn(|context| {
            ready!(self.poll_spill(&mut wait, context));
            body.as_mut().poll_frame(context)
        })
        .await
    }

    /// Refuses a body that says that it has more than may come.
    fn check_announced<B: Body>(&mut self, body: &B) -> Result<(), BodyError<B::Error>> {
        let held_back = self.held_back.as_ref().map_or(0, Bytes::len) as u64;
        if body.size_hint().lower().saturating_add(held_back) > self.allowed() as u64 {
            return Err(BodyError::Rope(self.limit_reached()));
        }
        self.deliver_all().map_err(BodyError::Rope)
    }

    /// Appends `data`, behind which `more` bytes are announced. What does not fit is held back for the next receive.
    fn take_data(&mut self, mut data: impl Buf, more: usize) -> io::Result<()> {
        let taken = self.take_what_fits(&mut data, more);
        if taken.is_err() {
            self.hold_back(data.copy_to_bytes(data.remaining()));
        }
        taken
    }

    fn take_what_fits(&mut self, data: &mut impl Buf, more: usize) -> io::Result<()> {
        while data.has_remaining() {
            let len = data.remaining().min(self.allowed());
            if len == 0 {
                return Err(self.limit_reached());
            }
            if self.pool().is_none() {
                let piece = data.copy_to_bytes(len);
                if len < COPY_MAX { self.extend_from_slice(&piece) } else { self.push(piece) }
            } else {
                if self.has_nothing() {
                    self.begin_where_fits(len, len.saturating_add(more))?;
                }
                let copied = self.write(data.chunk())?;
                data.advance(copied);
            }
        }
        Ok(())
    }

    /// Returns whether there are neither bytes nor memory for them.
    fn has_nothing(&self) -> bool {
        self.is_empty() && !self.has_tail()
    }
}

/// How many more bytes a body announces.
fn more_of<B: Body>(body: &B) -> usize {
    usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX)
}

/// The pieces of a body that have not been copied yet, on their way to a rope. The rope has them too if the future is dropped.
///
/// The first piece waits if it may be the only one. While other bodies are received as well, those of a short body wait for
/// the last one: the body is then copied to pages that were used a moment ago, rather than to pages that all bodies
/// fill in turns.
struct Pieces<'a> {
    rope: &'a mut Rope,
    waiting: Rope,
    /// Counts what waits, unless that is one piece that may be all.
    beside: Option<Beside>,
    /// Of a body that is received into a pool.
    receiving: Option<Receiving>,
}

impl Pieces<'_> {
    fn new(rope: &mut Rope) -> Pieces<'_> {
        let receiving = rope.pool().map(Receiving::new);
        Pieces { rope, waiting: Rope::new(), beside: None, receiving }
    }

    /// Takes the next piece of the body, behind which `more` bytes are announced.
    fn take(&mut self, mut data: impl Buf, more: usize) -> io::Result<()> {
        let len = data.remaining();
        let whole = self.waiting.len().saturating_add(len).saturating_add(more);
        let may_wait = self.rope.has_nothing() && whole <= self.rope.allowed();
        if may_wait && (self.may_be_all(more) || self.is_better_copied_later(len, whole)) {
            self.waiting.push(data.copy_to_bytes(len));
            return Ok(());
        }
        self.beside = None;
        self.rope.take_data(mem::take(&mut self.waiting).chain(data), more)
    }

    /// Returns whether the next piece may be the only one.
    fn may_be_all(&self, more: usize) -> bool {
        self.receiving.is_some() && self.waiting.is_empty() && more == 0
    }

    /// Returns whether the next piece, of `len` bytes of `whole`, may wait for the others. If so, it is counted.
    fn is_better_copied_later(&mut self, len: usize, whole: usize) -> bool {
        let Some(receiving) = &self.receiving else { return false };
        if receiving.is_only() || whole > WAIT_MAX || self.waiting.num_segments() >= WAIT_PIECES {
            return false;
        }
        // A short piece may keep as large a buffer as a long one.
        let counted = |len: usize| len.max(KEEP_MIN);
        match &mut self.beside {
            Some(beside) => beside.add(counted(len)),
            None => {
                let first = if self.waiting.is_empty() { 0 } else { counted(self.waiting.len()) };
                self.beside = self.rope.pool().and_then(|pool| Beside::new(pool, counted(len) + first));
                self.beside.is_some()
            }
        }
    }

    /// Appends what waits: nothing follows it.
    fn finish(&mut self) -> io::Result<()> {
        let counted = self.beside.take();
        if self.waiting.num_segments() > 1 {
            return self.rope.take_data(mem::take(&mut self.waiting), 0);
        }
        let Some(piece) = self.waiting.pop_front() else { return Ok(()) };
        if piece.len() <= self.rope.inline_max() {
            self.rope.push(self.rope.own(piece[..].into()));
            return Ok(());
        }
        let pool = self.rope.pool().filter(|_| piece.len() >= KEEP_MIN);
        match pool.and_then(|pool| counted.or_else(|| Beside::new(pool, piece.len()))) {
            Some(beside) => self.rope.push(Bytes::from_owner(Kept { piece, _beside: beside })),
            None => self.rope.take_data(piece, 0)?,
        }
        Ok(())
    }
}

impl Drop for Pieces<'_> {
    fn drop(&mut self) {
        // What does not fit is held back.
        let _ = self.finish();
    }
}

/// A piece that is kept as it came.
struct Kept {
    piece: Bytes,
    _beside: Beside,
}

impl AsRef<[u8]> for Kept {
    fn as_ref(&self) -> &[u8] {
        &self.piece
    }
}

/// Reports why a body was not received completely; see [`Rope::receive_body`].
///
/// # Examples
///
/// A status for each reason:
///
/// ```
/// use std::io::{Error, ErrorKind};
///
/// use http::StatusCode;
/// use ropewalk::BodyError;
///
/// fn status<E>(error: &BodyError<E>) -> StatusCode {
///     match error {
///         BodyError::Rope(error) if error.kind() == ErrorKind::QuotaExceeded => StatusCode::PAYLOAD_TOO_LARGE,
///         BodyError::Rope(_) => StatusCode::SERVICE_UNAVAILABLE,
///         _ => StatusCode::BAD_REQUEST,
///     }
/// }
///
/// let too_long = BodyError::<Error>::Rope(ErrorKind::QuotaExceeded.into());
/// assert_eq!(status(&too_long), StatusCode::PAYLOAD_TOO_LARGE);
/// assert_eq!(Error::from(too_long).kind(), ErrorKind::QuotaExceeded); // as an `io::Error`
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub enum BodyError<E> {
    /// The body failed.
    Body(E),
    /// The rope is at its limit, or its pool at capacity.
    Rope(io::Error),
}

impl<E: fmt::Display> fmt::Display for BodyError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BodyError::Body(error) => write!(f, "the body failed: {error}"),
            BodyError::Rope(error) => write!(f, "the body does not fit: {error}"),
        }
    }
}

impl<E: Error + 'static> Error for BodyError<E> {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            BodyError::Body(error) => Some(error),
            BodyError::Rope(error) => Some(error),
        }
    }
}

impl<E: Into<Box<dyn Error + Send + Sync>>> From<BodyError<E>> for io::Error {
    fn from(error: BodyError<E>) -> io::Error {
        match error {
            BodyError::Body(error) => io::Error::other(error),
            BodyError::Rope(error) => error,
        }
    }
}
