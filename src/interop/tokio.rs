//! tokio: wait until the descriptor is ready, then `readv` and `sendmsg` straight on it.

use std::borrow::Borrow;
use std::future::Future;
use std::io;
use std::os::fd::BorrowedFd;

use tokio::io::Interest;
use tokio::net::unix::pipe;
use tokio::net::{TcpStream, UnixStream, tcp, unix};

use super::codec::RopeCodec;
use super::frames::{Fill, UpTo, next_frame};
use crate::pool::is_at_capacity;
use crate::rope::{Body, Cursor, Rope};
use sealed::Watched;

/// Receives into ropes, by readv(2) on the descriptor itself: for tokio's TCP and Unix streams, the
/// receiving end of pipes, and split halves.
///
/// Everything here is cancel safe: what has arrived is in the rope, what has not is still in the kernel.
/// While a read waits, the rope holds no memory but its own bytes and a few spare pages behind them, and inside a long
/// frame the room for the rest of it.
///
/// Whatever else is [`AsyncRead`](tokio::io::AsyncRead), TLS for one, reads into a rope through
/// [`BufMut`](bytes::BufMut) with tokio's own `read_buf`; there the rope's next page is held while the
/// read waits.
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
    /// readv(2), once there is something: appends it, as [`Rope::readv_up_to`] does. `Ok(0)` is the end
    /// of the stream, or `max` was 0.
    ///
    /// # Errors
    ///
    /// As for [`Rope::readv_from`], but never `WouldBlock`. The rope holds what it held before.
    ///
    /// # Cancel safety
    ///
    /// If this is dropped before it is done, nothing was received.
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

    /// readv(2), once there is something: appends it, as [`Rope::readv_from`] does. `Ok(0)` is the end
    /// of the stream.
    ///
    /// # Errors
    ///
    /// As for [`read_rope_up_to`](ReadRope::read_rope_up_to).
    ///
    /// # Cancel safety
    ///
    /// If this is dropped before it is done, nothing was received.
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

    /// Appends exactly `count` bytes, and leaves what follows them in the kernel. For many bytes,
    /// [`Rope::reserve`] first: then they lie side by side.
    ///
    /// # Errors
    ///
    /// [`UnexpectedEof`](io::ErrorKind::UnexpectedEof) if the stream ends before; else as for
    /// [`read_rope_up_to`](ReadRope::read_rope_up_to). What has arrived stays in the rope.
    ///
    /// # Cancel safety
    ///
    /// If this is dropped before it is done, what has arrived is in the rope: its length has grown by as
    /// much. Ask for the rest to go on.
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

    /// Returns the next frame, if one comes before the stream ends. `rope` holds what was read of frames that
    /// are not complete; always pass the same one. Frames are received as [`Rope::readv_frame`] does.
    ///
    /// # Errors
    ///
    /// As for [`Rope::readv_frame`], but never `WouldBlock`.
    ///
    /// # Cancel safety
    ///
    /// If this is dropped before it is done, what has arrived is in `rope`. Call again to go on.
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

    /// The same descriptor for a reader who, when the pool is at its capacity, would rather wait for
    /// room than fail. Those who wait get it in the order in which they came.
    ///
    /// Only a reader for whom bytes have arrived gets in line, so an idle connection never stands in the
    /// way. Whoever is not in line uses up the pages that its rope already holds, and gets in line then.
    ///
    /// Ropes that hold pages while they wait for more may wait for each other for ever. Either let the
    /// [limits](Rope::set_limit) of all readers fit the pool together, or take what is needed at once,
    /// as with [`wait_for_room`](crate::Pool::wait_for_room), or put a time limit on it.
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

/// Reads that wait for room in the pool; see [`ReadRope::when_room`].
///
/// It is a [`ReadRope`] itself, so whatever reads from one can be patient or not.
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
/// let rope = receive(&there.when_room(), &Pool::new()?).await?; // `&there` would rather fail
/// assert_eq!(rope, b"all of it");
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct WhenRoom<'a, S: ?Sized>(&'a S);

impl<S: Watched> ReadRope for WhenRoom<'_, S> {
    async fn read_rope_up_to(&self, rope: &mut Rope, max: usize) -> io::Result<usize> {
        if max == 0 {
            return Ok(0);
        }
        loop {
            self.0.ready(Interest::READABLE).await?;
            match self.0.try_io(Interest::READABLE, |fd| rope.readv_up_to(fd, max)) {
                // Another reader was first: what is reserved is of use to others.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => rope.release_room(),
                Err(error) if is_at_capacity(&error) => rope.wait_for_room().await?,
                done => {
                    rope.release_room();
                    return done;
                }
            }
        }
    }

    fn read_frame(
        &self,
        rope: &mut Rope,
        codec: &RopeCodec,
    ) -> impl Future<Output = io::Result<Option<Rope>>> + Send {
        next_frame(WhenRoom(self.0), rope, codec)
    }
}

impl<S: Watched> Fill for WhenRoom<'_, S> {
    async fn fill(&mut self, rope: &mut Rope, body: Option<Body>) -> io::Result<usize> {
        self.0.ready(Interest::READABLE).await?;
        if let (Some(body), Err(error)) = (body, rope.prepare_body(body)) {
            if !is_at_capacity(&error) {
                return Err(error);
            }
            // Room does not have to be in one run, so this is tried once.
            rope.wait_for_room_for(body.room()).await?;
            let prepared = rope.prepare_body(Some(body));
            rope.release_room();
            prepared?;
        }
        match self.0.try_io(Interest::READABLE, |fd| rope.readv_body(fd, body)) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock || is_at_capacity(&error) => {
                let max = rope.prepare_body(body)?;
                self.read_rope_up_to(rope, max).await
            }
            done => done,
        }
    }
}

/// Reads of a socket or a pipe.
struct Direct<'a, S>(&'a S);

impl<S: Watched> Fill for Direct<'_, S> {
    async fn fill(&mut self, rope: &mut Rope, body: Option<Body>) -> io::Result<usize> {
        read(self.0, |fd| rope.readv_body(fd, body)).await
    }
}

/// Sends ropes and cursors, by sendmsg(2) or writev(2) on the descriptor itself: for tokio's TCP and
/// Unix streams, the sending end of pipes, and split halves.
///
/// Everything here is cancel safe: what was sent has left the rope, or is behind the cursor; what was
/// not is still there.
///
/// Whatever else is [`AsyncWrite`](tokio::io::AsyncWrite), TLS for one, takes ropes and cursors through
/// [`Buf`](bytes::Buf) with tokio's own `write_buf` and `write_all_buf`.
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
    /// sendmsg(2) or writev(2), once the descriptor takes something: as [`Rope::writev_to`] and
    /// [`Cursor::writev_to`] do. `Ok(0)` only if there is nothing left to send.
    ///
    /// # Errors
    ///
    /// As for [`Rope::writev_to`], but never `WouldBlock`.
    ///
    /// # Cancel safety
    ///
    /// If this is dropped before it is done, nothing was sent.
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

    /// [`write_rope`](WriteRope::write_rope) until nothing is left to send.
    ///
    /// # Errors
    ///
    /// As for [`write_rope`](WriteRope::write_rope).
    ///
    /// # Cancel safety
    ///
    /// If this is dropped before it is done, what is left in the rope, or from the cursor on, is exactly
    /// what was not sent. Call again to go on.
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

/// What [`WriteRope`] sends: a [`Rope`], whose bytes leave it, or a [`Cursor`], which moves on. Cannot be
/// implemented outside of this crate.
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
/// /// Sends a rope, or from a cursor on. What could not be sent in time is still there.
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
    fn is_done(&self) -> bool {
        self.is_empty()
    }

    fn send_to(&mut self, fd: BorrowedFd<'_>) -> io::Result<usize> {
        self.writev_to(fd)
    }
}

impl<R: Borrow<Rope> + Send> sealed::Outgoing for Cursor<R> {
    fn is_done(&self) -> bool {
        self.remaining() == 0
    }

    fn send_to(&mut self, fd: BorrowedFd<'_>) -> io::Result<usize> {
        self.writev_to(fd)
    }
}

async fn read(
    from: &impl Watched,
    mut receive: impl FnMut(BorrowedFd<'_>) -> io::Result<usize>,
) -> io::Result<usize> {
    loop {
        from.ready(Interest::READABLE).await?;
        match from.try_io(Interest::READABLE, &mut receive) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            done => return done,
        }
    }
}

async fn write(to: &impl Watched, from: &mut impl Outgoing) -> io::Result<usize> {
    if from.is_done() {
        return Ok(0);
    }
    loop {
        to.ready(Interest::WRITABLE).await?;
        match to.try_io(Interest::WRITABLE, |fd| from.send_to(fd)) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            done => return done,
        }
    }
}

macro_rules! read_rope {
    ($($type:ty),* $(,)?) => {$(
        impl ReadRope for $type {
            async fn read_rope_up_to(&self, rope: &mut Rope, max: usize) -> io::Result<usize> {
                if max == 0 {
                    return Ok(0);
                }
                read(self, |fd| rope.readv_up_to(fd, max)).await
            }

            #[inline]
            fn read_frame(
                &self,
                rope: &mut Rope,
                codec: &RopeCodec,
            ) -> impl Future<Output = io::Result<Option<Rope>>> + Send {
                next_frame(Direct(self), rope, codec)
            }
        }
    )*};
}

macro_rules! write_rope {
    ($($type:ty),* $(,)?) => {$(
        impl WriteRope for $type {
            async fn write_rope(&self, from: &mut impl Outgoing) -> io::Result<usize> {
                write(self, from).await
            }
        }
    )*};
}

read_rope!(TcpStream, tcp::ReadHalf<'_>, tcp::OwnedReadHalf);
read_rope!(UnixStream, unix::ReadHalf<'_>, unix::OwnedReadHalf, pipe::Receiver);
write_rope!(TcpStream, tcp::WriteHalf<'_>, tcp::OwnedWriteHalf);
write_rope!(UnixStream, unix::WriteHalf<'_>, unix::OwnedWriteHalf, pipe::Sender);

fn ended(have: usize, count: usize) -> io::Error {
    let message = format!("the stream ended after {have} of {count} bytes");
    io::Error::new(io::ErrorKind::UnexpectedEof, message)
}

/// What can only be implemented here.
mod sealed {
    use std::future::Future;
    use std::io;
    use std::os::fd::{AsFd, BorrowedFd};

    use tokio::io::Interest;
    use tokio::net::unix::pipe;
    use tokio::net::{TcpStream, UnixStream, tcp, unix};
    use tokio::task::coop;

    pub trait Outgoing: Send {
        fn is_done(&self) -> bool;
        fn send_to(&mut self, fd: BorrowedFd<'_>) -> io::Result<usize>;
    }

    /// A descriptor that tokio watches.
    pub trait Watched: Sync {
        /// Waits until a call is worth trying; lets other tasks run when this one has had its share.
        fn ready(&self, interest: Interest) -> impl Future<Output = io::Result<()>> + Send;

        /// Makes a call that fails with `WouldBlock` only if the descriptor was not ready.
        fn try_io<T>(
            &self,
            interest: Interest,
            call: impl FnOnce(BorrowedFd<'_>) -> io::Result<T>,
        ) -> io::Result<T>;
    }

    macro_rules! watched_socket {
        ($($type:ty),* => $socket:ty) => {$(
            impl Watched for $type {
                async fn ready(&self, interest: Interest) -> io::Result<()> {
                    coop::consume_budget().await;
                    AsRef::<$socket>::as_ref(self).ready(interest).await.map(drop)
                }

                fn try_io<T>(
                    &self,
                    interest: Interest,
                    call: impl FnOnce(BorrowedFd<'_>) -> io::Result<T>,
                ) -> io::Result<T> {
                    let socket: &$socket = self.as_ref();
                    socket.try_io(interest, || call(socket.as_fd()))
                }
            }
        )*};
    }

    macro_rules! watched_pipe {
        ($($type:ty),*) => {$(
            impl Watched for $type {
                async fn ready(&self, interest: Interest) -> io::Result<()> {
                    coop::consume_budget().await;
                    self.ready(interest).await.map(drop)
                }

                fn try_io<T>(
                    &self,
                    _: Interest,
                    call: impl FnOnce(BorrowedFd<'_>) -> io::Result<T>,
                ) -> io::Result<T> {
                    self.try_io(|| call(self.as_fd()))
                }
            }
        )*};
    }

    watched_socket!(TcpStream, tcp::ReadHalf<'_>, tcp::OwnedReadHalf => TcpStream);
    watched_socket!(tcp::WriteHalf<'_>, tcp::OwnedWriteHalf => TcpStream);
    watched_socket!(UnixStream, unix::ReadHalf<'_>, unix::OwnedReadHalf => UnixStream);
    watched_socket!(unix::WriteHalf<'_>, unix::OwnedWriteHalf => UnixStream);
    watched_pipe!(pipe::Receiver, pipe::Sender);
}
