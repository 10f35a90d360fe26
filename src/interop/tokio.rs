//! tokio: waits until the descriptor is ready, then calls `readv` or `sendmsg` on it directly.

use std::borrow::Borrow;
use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::BorrowedFd;

use tokio::io::Interest;
use tokio::net::unix::pipe;
use tokio::net::{TcpStream, UnixStream, tcp, unix};

use super::codec::RopeCodec;
use super::frames::{Fill, UpTo, next_frame};
use crate::pool::{SpillWait, is_at_capacity};
use crate::rope::{Body, Cursor, Rope, Sent};
use sealed::{Source, Watched};

/// Receives into ropes by readv(2) on the descriptor: tokio's TCP and Unix streams, receiving ends of pipes, and split
/// halves.
///
/// All methods are cancel safe: bytes that have arrived are in the rope, others are still in the kernel. While a read
/// waits, the rope holds its own bytes and a few spare pages behind them.
///
/// From any other [`AsyncRead`](tokio::io::AsyncRead), TLS for one, a rope receives by
/// [`receive_from`](Rope::receive_from).
///
/// # Examples
///
/// ```
/// use ropewalk::{Pool, ReadRope, Rope, WriteRope};
/// use tokio::net::UnixStream;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> std::io::Result<()> {
/// let (here, there) = UnixStream::pair()?;
/// here.write_all_rope(&mut Rope::from("all of it")).await?;
/// drop(here);
///
/// let mut rope = Rope::in_pool(&Pool::new()?);
/// while there.read_rope(&mut rope).await? > 0 {}
/// assert_eq!(rope, b"all of it"[..]);
/// # Ok(())
/// # }
/// ```
pub trait ReadRope: Sync {
    /// readv(2): waits until the descriptor is readable and appends what has arrived, as [`Rope::readv_up_to`] does.
    /// `Ok(0)` is the end of the stream, or `max` was 0.
    ///
    /// # Errors
    ///
    /// As for [`Rope::readv_from`], but never `WouldBlock`. The rope holds what it held before.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped before it is done, nothing was received.
    ///
    /// # Examples
    ///
    /// ```
    /// use ropewalk::{ReadRope, Rope};
    /// use tokio::net::UnixStream;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> std::io::Result<()> {
    /// let (here, there) = UnixStream::pair()?;
    /// here.try_write(b"one message, the next")?;
    /// let mut rope = Rope::new();
    /// assert_eq!(there.read_rope_up_to(&mut rope, 11).await?, 11);
    /// assert_eq!(rope, b"one message");
    /// # Ok(())
    /// # }
    /// ```
    fn read_rope_up_to(&self, rope: &mut Rope, max: usize) -> impl Future<Output = io::Result<usize>> + Send;

    /// readv(2): waits until the descriptor is readable and appends what has arrived, as [`Rope::readv_from`] does.
    /// `Ok(0)` is the end of the stream.
    ///
    /// # Errors
    ///
    /// As for [`read_rope_up_to`](ReadRope::read_rope_up_to).
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped before it is done, nothing was received.
    ///
    /// # Examples
    ///
    /// ```
    /// use ropewalk::{Pool, ReadRope, Rope};
    /// use tokio::net::UnixStream;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> std::io::Result<()> {
    /// let (here, there) = UnixStream::pair()?;
    /// here.try_write(b"some")?;
    /// let mut rope = Rope::in_pool(&Pool::new()?);
    /// assert_eq!(there.read_rope(&mut rope).await?, 4);
    /// # Ok(())
    /// # }
    /// ```
    fn read_rope(&self, rope: &mut Rope) -> impl Future<Output = io::Result<usize>> + Send {
        self.read_rope_up_to(rope, usize::MAX)
    }

    /// Appends exactly `count` bytes, and leaves those behind them in the kernel. With [`Rope::reserve`] before, they
    /// are contiguous.
    ///
    /// # Errors
    ///
    /// [`UnexpectedEof`](io::ErrorKind::UnexpectedEof) if the stream ends before; else as for
    /// [`read_rope_up_to`](ReadRope::read_rope_up_to). What has arrived stays in the rope.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped before it is done, the rope keeps the bytes that have arrived, and its length tells how
    /// many. Ask for the rest to continue.
    ///
    /// # Examples
    ///
    /// ```
    /// use ropewalk::{Pool, ReadRope, Rope};
    /// use tokio::net::UnixStream;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> std::io::Result<()> {
    /// let (here, there) = UnixStream::pair()?;
    /// here.try_write(b"one message, the next")?;
    /// let mut rope = Rope::in_pool(&Pool::new()?);
    /// rope.reserve(11)?;
    /// there.read_rope_exact(&mut rope, 11).await?;
    /// assert_eq!(rope, b"one message");
    /// # Ok(())
    /// # }
    /// ```
    fn read_rope_exact(&self, rope: &mut Rope, count: usize) -> impl Future<Output = io::Result<()>> + Send {
        async move {
            let mut missing = count;
            while missing > 0 {
                match self.read_rope_up_to(rope, missing).await? {
                    0 => return Err(ended(count - missing, count)),
                    more => missing -= more,
                }
            }
            Ok(())
        }
    }

    /// Receives the next frame; `None` if the stream ended before one began. `rope` holds bytes of incomplete frames,
    /// so always pass the same one.
    /// Frames are received as [`Rope::readv_frame`] does.
    ///
    /// # Errors
    ///
    /// As for [`Rope::readv_frame`], but never `WouldBlock`.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped before it is done, `rope` keeps the bytes that have arrived. Call again to continue.
    ///
    /// # Examples
    ///
    /// ```
    /// use ropewalk::{Pool, ReadRope, Rope, RopeCodec, WriteRope};
    /// use tokio::net::UnixStream;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> std::io::Result<()> {
    /// let (here, there) = UnixStream::pair()?;
    /// let codec = RopeCodec::new(1 << 20);
    /// here.write_all_rope(&mut codec.wrap(Rope::from("a frame"))?).await?;
    /// drop(here);
    ///
    /// let mut received = Rope::in_pool(&Pool::new()?);
    /// while let Some(frame) = there.read_frame(&mut received, &codec).await? {
    ///     assert_eq!(frame, b"a frame");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    fn read_frame(
        &self,
        rope: &mut Rope,
        codec: &RopeCodec,
    ) -> impl Future<Output = io::Result<Option<Rope>>> + Send {
        next_frame(UpTo(self), rope, codec)
    }

    /// Returns a reader of the same descriptor that waits for room instead of failing when the pool is at its capacity.
    /// Readers are served first come, first served.
    ///
    /// A reader queues only once bytes have arrived, so an idle connection delays no other, and only once the pages
    /// that its rope holds are full.
    ///
    /// Ropes that hold pages while they wait for more can wait for each other for ever. Choose the
    /// [limits](Rope::set_limit) so that all readers fit the pool together, reserve all that is needed before, with
    /// [`wait_for_room`](crate::Pool::wait_for_room), or set a deadline.
    ///
    /// # Examples
    ///
    /// ```
    /// use ropewalk::{Pool, ReadRope, Rope};
    /// use tokio::net::UnixStream;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> std::io::Result<()> {
    /// let (here, there) = UnixStream::pair()?;
    /// here.try_write(b"hello")?;
    /// let pool = Pool::options().capacity(4096).create()?;
    /// let mut held = Rope::in_pool(&pool);
    /// held.extend_from_slice(b"all there is");
    ///
    /// let mut rope = Rope::in_pool(&pool);
    /// assert!(there.read_rope(&mut rope).await.is_err());
    /// let patient = there.when_room();
    /// let (read, ()) = tokio::join!(patient.read_rope(&mut rope), async { drop(held) });
    /// assert_eq!(read?, 5);
    /// # Ok(())
    /// # }
    /// ```
    fn when_room(&self) -> WhenRoom<'_, Self> {
        WhenRoom(self)
    }
}

/// Waits for room in the pool before it reads; see [`ReadRope::when_room`].
///
/// It is a [`ReadRope`] itself, so a generic reader can wait or fail.
///
/// # Examples
///
/// ```
/// use ropewalk::{Pool, ReadRope, Rope};
/// use tokio::net::UnixStream;
///
/// async fn receive(from: &impl ReadRope, pool: &Pool) -> std::io::Result<Rope> {
///     let mut rope = Rope::in_pool(pool);
///     while from.read_rope(&mut rope).await? > 0 {}
///     Ok(rope)
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> std::io::Result<()> {
/// let (here, there) = UnixStream::pair()?;
/// here.try_write(b"all of it")?;
/// drop(here);
/// let rope = receive(&there.when_room(), &Pool::new()?).await?; // `&there` would fail in a full pool
/// assert_eq!(rope, b"all of it");
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct WhenRoom<'a, S: ?Sized>(&'a S);

impl<S: Watched> ReadRope for WhenRoom<'_, S> {
    async fn read_rope_up_to(&self, rope: &mut Rope, max: usize) -> io::Result<usize> {
        Direct { from: self.0.source(), waits: true }.read_up_to(rope, max).await
    }

    fn read_frame(
        &self,
        rope: &mut Rope,
        codec: &RopeCodec,
    ) -> impl Future<Output = io::Result<Option<Rope>>> + Send {
        next_frame(Direct { from: self.0.source(), waits: true }, rope, codec)
    }
}

/// Reads of a socket or a pipe, once it is readable.
struct Direct<'a> {
    from: Source<'a>,
    /// Whether they wait for room in a full pool.
    waits: bool,
}

impl Fill for Direct<'_> {
    async fn fill(&mut self, rope: &mut Rope, body: Option<Body>) -> io::Result<usize> {
        self.read(rope, usize::MAX, body, |rope, fd| rope.readv_body(fd, self.from.is_stream(), body)).await
    }
}

impl Direct<'_> {
    async fn read_up_to(&self, rope: &mut Rope, max: usize) -> io::Result<usize> {
        if max == 0 {
            return Ok(0);
        }
        self.read(rope, max, None, |rope, fd| rope.read_some(fd, self.from.is_stream(), max)).await
    }

    /// Delivers what was held back, or makes the call.
    async fn read(
        &self,
        rope: &mut Rope,
        max: usize,
        body: Option<Body>,
        mut receive: impl FnMut(&mut Rope, BorrowedFd<'_>) -> io::Result<usize>,
    ) -> io::Result<usize> {
        let mut attempt = |rope: &mut Rope| match rope.deliver_held_back(max) {
            Some(delivered) => delivered,
            None => try_read(self.from, rope, &mut receive),
        };
        let mut waits = self.waits;
        loop {
            if rope.held_back.is_none() {
                rope.restart_if_empty(); // before it waits
                self.from.ready(Interest::READABLE).await?;
                let mut wait = SpillWait::default();
                poll_fn(|context| rope.poll_spill(&mut wait, context)).await;
            }
            let mut received = attempt(rope);
            while waits && received.as_ref().is_err_and(is_at_capacity) {
                // Room does not have to be in one run: for a body that has to, it is waited for once.
                let one_run = body.filter(|body| body.align > 1);
                waits = one_run.is_none();
                // Boxed, so that the futures of reads that do not wait are small.
                Box::pin(rope.wait_for_room(one_run)).await?;
                received = attempt(rope);
                rope.release_room(); // what is left of it, for other waiters
            }
            match received {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return done,
            }
        }
    }
}

/// Sends ropes and cursors by sendmsg(2) or writev(2) on the descriptor: tokio's TCP and Unix streams, sending ends of
/// pipes, and split halves.
///
/// All methods are cancel safe: bytes that were sent have left the rope, or are before the cursor; others are still
/// there.
///
/// To any other [`AsyncWrite`](tokio::io::AsyncWrite), such as TLS, send with tokio's `write_buf` and `write_all_buf`,
/// since ropes and cursors are [`Buf`](bytes::Buf).
///
/// # Examples
///
/// ```
/// use ropewalk::{Rope, WriteRope};
/// use tokio::net::UnixStream;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> std::io::Result<()> {
/// let (one, _peer) = UnixStream::pair()?;
/// let (other, _peer) = UnixStream::pair()?;
/// let rope = Rope::from("to both");
/// let (mut here, mut there) = (rope.cursor(), rope.cursor());
/// tokio::try_join!(one.write_all_rope(&mut here), other.write_all_rope(&mut there))?;
/// # Ok(())
/// # }
/// ```
pub trait WriteRope: Sync {
    /// sendmsg(2) or writev(2): waits until the descriptor is writable and sends, as [`Rope::writev_to`] and
    /// [`Cursor::writev_to`] do. `Ok(0)` only if no bytes are left.
    ///
    /// # Errors
    ///
    /// As for [`Rope::writev_to`], but never `WouldBlock`.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped before it is done, nothing was sent.
    ///
    /// # Examples
    ///
    /// ```
    /// use ropewalk::{Rope, WriteRope};
    /// use tokio::net::UnixStream;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> std::io::Result<()> {
    /// let (socket, _peer) = UnixStream::pair()?;
    /// let mut rope: Rope = ["many ", "pieces"].into_iter().collect();
    /// let sent = socket.write_rope(&mut rope).await?;
    /// assert_eq!(sent + rope.len(), 11); // what was sent has left the rope
    /// # Ok(())
    /// # }
    /// ```
    fn write_rope(&self, from: &mut impl Outgoing) -> impl Future<Output = io::Result<usize>> + Send;

    /// Sends all bytes, by [`write_rope`](WriteRope::write_rope).
    ///
    /// # Errors
    ///
    /// As for [`write_rope`](WriteRope::write_rope).
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped before it is done, the bytes left in the rope, or from the cursor on, are exactly those
    /// that were not sent. Call again to continue.
    ///
    /// # Examples
    ///
    /// ```
    /// use ropewalk::{Rope, WriteRope};
    /// use tokio::net::UnixStream;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> std::io::Result<()> {
    /// let (socket, _peer) = UnixStream::pair()?;
    /// let mut rope: Rope = ["many ", "pieces"].into_iter().collect();
    /// socket.write_all_rope(&mut rope).await?;
    /// assert!(rope.is_empty());
    /// # Ok(())
    /// # }
    /// ```
    fn write_all_rope(&self, from: &mut impl Outgoing) -> impl Future<Output = io::Result<()>> + Send {
        async move {
            while self.write_rope(from).await? > 0 {}
            Ok(())
        }
    }
}

/// A source of bytes for [`WriteRope`]: a [`Rope`], whose bytes leave it, or a [`Cursor`], which advances. Sealed: it
/// cannot be implemented outside this crate.
///
/// # Examples
///
/// ```
/// use std::io;
/// use std::time::Duration;
///
/// use ropewalk::{Outgoing, Rope, WriteRope};
/// use tokio::net::UnixStream;
///
/// /// Sends a rope, or from a cursor on. Bytes that could not be sent in time are still there.
/// async fn send(to: &UnixStream, what: &mut impl Outgoing) -> io::Result<()> {
///     tokio::time::timeout(Duration::from_secs(5), to.write_all_rope(what)).await?
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> io::Result<()> {
/// let (socket, _peer) = UnixStream::pair()?;
/// let mut rope = Rope::from("twice");
/// send(&socket, &mut rope.cursor()).await?;
/// assert_eq!(rope.len(), 5);
/// send(&socket, &mut rope).await?;
/// assert!(rope.is_empty());
/// # Ok(())
/// # }
/// ```
pub trait Outgoing: sealed::Outgoing {}

impl<T: sealed::Outgoing> Outgoing for T {}

impl sealed::Outgoing for Rope {
    fn send_to(&mut self, fd: BorrowedFd<'_>, is_stream: bool) -> io::Result<Sent> {
        self.write_some(fd, is_stream)
    }
}

impl<R: Borrow<Rope> + Send> sealed::Outgoing for Cursor<R> {
    fn send_to(&mut self, fd: BorrowedFd<'_>, is_stream: bool) -> io::Result<Sent> {
        self.write_some(fd, is_stream)
    }
}

/// Receives, and clears the readiness if nothing is left.
fn try_read(
    from: Source<'_>,
    rope: &mut Rope,
    receive: impl FnOnce(&mut Rope, BorrowedFd<'_>) -> io::Result<usize>,
) -> io::Result<usize> {
    rope.source().was_short = false;
    try_io(from, Interest::READABLE, |fd| {
        let count = receive(rope, fd)?;
        Ok((count, from.is_tcp() && rope.source().was_short))
    })
}

async fn write(to: Source<'_>, from: &mut impl Outgoing) -> io::Result<usize> {
    if !from.has_remaining() {
        return Ok(0);
    }
    loop {
        to.ready(Interest::WRITABLE).await?;
        match try_write(to, from) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            done => return done,
        }
    }
}

/// Sends, and clears the readiness if the descriptor is full.
fn try_write(to: Source<'_>, from: &mut impl Outgoing) -> io::Result<usize> {
    try_io(to, Interest::WRITABLE, |fd| {
        let sent = from.send_to(fd, to.is_tcp())?;
        Ok((sent.bytes, sent.full))
    })
}

/// Makes a call that moves bytes, and clears the readiness if it says that the next one would fail.
fn try_io(
    source: Source<'_>,
    interest: Interest,
    call: impl FnOnce(BorrowedFd<'_>) -> io::Result<(usize, bool)>,
) -> io::Result<usize> {
    let mut last = None;
    let moved = source.try_io(interest, |fd| match call(fd)? {
        (count, false) => Ok(count),
        (count, true) => {
            last = Some(count);
            Err(io::ErrorKind::WouldBlock.into())
        }
    });
    last.map_or(moved, Ok)
}

macro_rules! read_rope {
    ($($type:ty),* $(,)?) => {$(
        impl ReadRope for $type {
            async fn read_rope_up_to(&self, rope: &mut Rope, max: usize) -> io::Result<usize> {
                Direct { from: self.source(), waits: false }.read_up_to(rope, max).await
            }

            #[inline]
            fn read_frame(
                &self,
                rope: &mut Rope,
                codec: &RopeCodec,
            ) -> impl Future<Output = io::Result<Option<Rope>>> + Send {
                next_frame(Direct { from: self.source(), waits: false }, rope, codec)
            }
        }
    )*};
}

macro_rules! write_rope {
    ($($type:ty),* $(,)?) => {$(
        impl WriteRope for $type {
            async fn write_rope(&self, from: &mut impl Outgoing) -> io::Result<usize> {
                write(self.source(), from).await
            }
        }
    )*};
}

read_rope!(TcpStream, tcp::ReadHalf<'_>, tcp::OwnedReadHalf);
read_rope!(UnixStream, unix::ReadHalf<'_>, unix::OwnedReadHalf, pipe::Receiver);
write_rope!(TcpStream, tcp::WriteHalf<'_>, tcp::OwnedWriteHalf);
write_rope!(UnixStream, unix::WriteHalf<'_>, unix::OwnedWriteHalf, pipe::Sender);

pub(super) fn ended(have: usize, count: usize) -> io::Error {
    let message = format!("the stream ended after {have} of {count} bytes");
    io::Error::new(io::ErrorKind::UnexpectedEof, message)
}

/// Traits that only this crate implements.
mod sealed {
    use std::borrow::Borrow;
    use std::io;
    use std::os::fd::{AsFd, BorrowedFd};

    use bytes::Buf;
    use tokio::io::Interest;
    use tokio::net::unix::pipe;
    use tokio::net::{TcpStream, UnixStream, tcp, unix};
    use tokio::task::coop;

    use crate::rope::Sent;

    pub trait Outgoing: Buf + Send {
        fn send_to(&mut self, fd: BorrowedFd<'_>, is_stream: bool) -> io::Result<Sent>;
    }

    /// A descriptor that tokio watches.
    #[derive(Clone, Copy, Debug)]
    pub enum Source<'a> {
        /// A stream that a receive empties if it brings less than it has memory for, as tokio's own `poll_read` supposes. A
        /// Unix socket may keep messages, and a receive ends behind descriptors.
        Tcp(&'a TcpStream),
        Unix(&'a UnixStream),
        Receiver(&'a pipe::Receiver),
        Sender(&'a pipe::Sender),
    }

    impl Source<'_> {
        #[inline]
        pub fn is_tcp(self) -> bool {
            matches!(self, Source::Tcp(_))
        }

        #[inline]
        pub fn is_stream(self) -> bool {
            matches!(self, Source::Tcp(_) | Source::Unix(_))
        }

        /// Waits until the descriptor is ready; yields to other tasks when the cooperative budget is used up.
        pub async fn ready(self, interest: Interest) -> io::Result<()> {
            coop::consume_budget().await;
            match self {
                Source::Tcp(socket) => socket.ready(interest).await,
                Source::Unix(socket) => socket.ready(interest).await,
                Source::Receiver(pipe) => pipe.ready(interest).await,
                Source::Sender(pipe) => pipe.ready(interest).await,
            }
            .map(drop)
        }

        /// Makes a call, and clears the readiness if it fails with `WouldBlock`.
        pub fn try_io<T>(
            self,
            interest: Interest,
            call: impl FnOnce(BorrowedFd<'_>) -> io::Result<T>,
        ) -> io::Result<T> {
            match self {
                Source::Tcp(socket) => socket.try_io(interest, || call(socket.as_fd())),
                Source::Unix(socket) => socket.try_io(interest, || call(socket.as_fd())),
                Source::Receiver(pipe) => pipe.try_io(|| call(pipe.as_fd())),
                Source::Sender(pipe) => pipe.try_io(|| call(pipe.as_fd())),
            }
        }
    }

    pub trait Watched: Sync {
        fn source(&self) -> Source<'_>;
    }

    macro_rules! watched {
        ($source:ident by $get:ident: $($type:ty),*) => {$(
            impl Watched for $type {
                fn source(&self) -> Source<'_> {
                    Source::$source(self.$get())
                }
            }
        )*};
    }

    watched!(Tcp by as_ref: TcpStream, tcp::ReadHalf<'_>, tcp::OwnedReadHalf, tcp::WriteHalf<'_>, tcp::OwnedWriteHalf);
    watched!(Unix by as_ref: UnixStream, unix::ReadHalf<'_>, unix::OwnedReadHalf);
    watched!(Unix by as_ref: unix::WriteHalf<'_>, unix::OwnedWriteHalf);
    watched!(Receiver by borrow: pipe::Receiver);
    watched!(Sender by borrow: pipe::Sender);
}
