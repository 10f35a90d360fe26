//! Frames with their length in front, whose payload is a rope.
//!
//! ```text
//!   length_field_offset   length_field_length
//! ┌─────────────────────┬─────────────────────┬─────────┬──────────────────────────────────────────┐
//! │                     │ length              │         │ frame: length + length_adjustment bytes  │
//! └─────────────────────┴─────────────────────┴─────────┴──────────────────────────────────────────┘
//! └─────────────────────── num_skip ────────────────────┘
//! ```

#![allow(clippy::inline_always)] // the path of a short frame, which the compiler takes for too long

use std::io;
use std::os::fd::AsFd;

use bytes::Bytes;

use crate::pool::Pool;
use crate::rope::{Body, MIN_ALIGNED, Rope};
use crate::sys;

/// Longest length field: of a `u64`.
const MAX_FIELD: usize = 8;

/// Longest header.
const MAX_HEADER: usize = 256;

/// A format of frames: a header with a length, and a payload, which is a rope.
///
/// As it is made by [`new`](RopeCodec::new), the header is a length of 4 bytes, big-endian, that counts the payload. The
/// methods that change this have the names and the meaning that they have in `tokio_util`'s
/// `LengthDelimitedCodec::builder`.
///
/// Nothing is copied: [`wrap`](RopeCodec::wrap) a payload and send it by one gather write; receive with
/// [`Rope::readv_frame`], or under tokio with `ReadRope::read_frame`.
///
/// With tokio_util's `Framed`, use its own `LengthDelimitedCodec` and `Rope::from(frame)`: a codec there is given memory
/// that is filled already.
///
/// # Examples
///
/// ```
/// use ropewalk::{Rope, RopeCodec};
///
/// let codec = RopeCodec::new(1 << 20);
/// let mut wire = codec.wrap(Rope::from("first"))?;
/// wire.append(codec.wrap(Rope::from("second"))?);
///
/// assert_eq!(codec.take(&mut wire)?.unwrap(), b"first");
/// assert_eq!(codec.take(&mut wire)?.unwrap(), b"second");
/// assert!(codec.take(&mut wire)?.is_none());
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RopeCodec {
    /// Most bytes of a frame.
    max: usize,
    /// Where in the header the length is.
    offset: usize,
    /// Bytes of the length, `1..=MAX_FIELD`.
    field: usize,
    little_endian: bool,
    /// Bytes of a frame beyond the length.
    adjustment: isize,
    /// Bytes in front of a frame, unless they are those up to the end of the length.
    skip: Option<usize>,
    /// A power of two.
    alignment: usize,
}

impl RopeCodec {
    /// Frames of a length of 4 bytes, big-endian, and at most `max` bytes of payload.
    ///
    /// # Examples
    ///
    /// ```
    /// use ropewalk::{Rope, RopeCodec};
    ///
    /// let codec = RopeCodec::new(3);
    /// assert!(codec.wrap(Rope::from("four")).is_err());
    /// ```
    #[must_use]
    pub const fn new(max: usize) -> RopeCodec {
        RopeCodec { max, offset: 0, field: 4, little_endian: false, adjustment: 0, skip: None, alignment: 1 }
    }

    /// Sets the bytes of the length: 1 to 8.
    ///
    /// # Panics
    ///
    /// If it is none of these.
    ///
    /// # Examples
    ///
    /// ```
    /// use ropewalk::{Rope, RopeCodec};
    ///
    /// let codec = RopeCodec::new(1 << 20).length_field_length(2);
    /// assert_eq!(codec.wrap(Rope::from("four"))?, b"\0\x04four");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    #[must_use]
    pub const fn length_field_length(mut self, bytes: usize) -> RopeCodec {
        assert!(0 < bytes && bytes <= MAX_FIELD, "a length has 1 to 8 bytes");
        self.field = bytes;
        self
    }

    /// Sets the bytes of the header in front of the length, at most 248. [`wrap`](RopeCodec::wrap) makes them zero.
    ///
    /// # Panics
    ///
    /// If there are more.
    ///
    /// # Examples
    ///
    /// ```
    /// use ropewalk::{Rope, RopeCodec};
    ///
    /// let codec = RopeCodec::new(1 << 20).length_field_offset(2);
    /// let mut received = Rope::from("v1\0\0\0\x04four");
    /// assert_eq!(codec.take(&mut received)?.unwrap(), b"four");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    #[must_use]
    pub const fn length_field_offset(mut self, bytes: usize) -> RopeCodec {
        assert!(bytes <= MAX_HEADER - MAX_FIELD, "a length starts at byte 248 of a header at the latest");
        self.offset = bytes;
        self
    }

    /// Sets what is added to the length for the bytes of a frame. With a length that counts its own 4 bytes it is -4.
    ///
    /// # Examples
    ///
    /// ```
    /// use ropewalk::{Rope, RopeCodec};
    ///
    /// let codec = RopeCodec::new(1 << 20).length_adjustment(-4);
    /// let mut received = Rope::from("\0\0\0\x08four");
    /// assert_eq!(codec.take(&mut received)?.unwrap(), b"four");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    #[must_use]
    pub const fn length_adjustment(mut self, bytes: isize) -> RopeCodec {
        self.adjustment = bytes;
        self
    }

    /// Sets the bytes in front of a frame that are no part of it, at most 256: by itself the header up to the end of the
    /// length. With 0 the frame has its header, which the length must count then.
    ///
    /// # Panics
    ///
    /// If there are more.
    ///
    /// # Examples
    ///
    /// ```
    /// use ropewalk::{Rope, RopeCodec};
    ///
    /// let codec = RopeCodec::new(1 << 20).length_adjustment(4).num_skip(0);
    /// let mut received = Rope::from("\0\0\0\x04four");
    /// assert_eq!(codec.take(&mut received)?.unwrap(), b"\0\0\0\x04four");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    #[must_use]
    pub const fn num_skip(mut self, bytes: usize) -> RopeCodec {
        assert!(bytes <= MAX_HEADER, "at most 256 bytes are in front of a frame");
        self.skip = Some(bytes);
        self
    }

    /// Reads the length as big-endian, as by itself.
    ///
    /// # Examples
    ///
    /// ```
    /// use ropewalk::RopeCodec;
    ///
    /// assert_eq!(RopeCodec::new(9).little_endian().big_endian(), RopeCodec::new(9));
    /// ```
    #[must_use]
    pub const fn big_endian(mut self) -> RopeCodec {
        self.little_endian = false;
        self
    }

    /// Reads the length as little-endian.
    ///
    /// # Examples
    ///
    /// ```
    /// use ropewalk::{Rope, RopeCodec};
    ///
    /// let codec = RopeCodec::new(1 << 20).little_endian();
    /// assert_eq!(codec.wrap(Rope::from("four"))?, b"\x04\0\0\0four");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    #[must_use]
    pub const fn little_endian(mut self) -> RopeCodec {
        self.little_endian = true;
        self
    }

    /// Starts each frame of 4 KiB and more at an address that is a multiple of `bytes`, in one run: 64 for Arrow and for
    /// vector instructions, 4096 for `O_DIRECT`. A view of it starts there too.
    ///
    /// Frames that follow each other are received where they have to be: one readv(2) names the rest of a frame and a
    /// place for what comes behind it, the next header and at most 512 bytes, which are moved. A frame that comes behind
    /// short ones has been read ahead in part, and that part is moved. Received without
    /// [`readv_frame`](Rope::readv_frame) or `read_frame`, it is copied by [`take`](RopeCodec::take).
    ///
    /// # Panics
    ///
    /// If it is no power of two.
    ///
    /// # Examples
    ///
    /// ```
    /// use ropewalk::{Pool, Rope, RopeCodec};
    /// use std::io::Write;
    /// use std::os::unix::net::UnixStream;
    ///
    /// let (mut peer, socket) = UnixStream::pair()?;
    /// peer.write_all(b"\0\0\x20\0")?;
    /// peer.write_all(&[7; 8192])?;
    ///
    /// let mut received = Rope::in_pool(&Pool::new()?);
    /// let frame = received.readv_frame(&socket, &RopeCodec::new(1 << 20).alignment(4096))?;
    /// let view = frame.unwrap().finalize()?;
    /// assert_eq!(view.as_ptr().addr() % 4096, 0);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    #[must_use]
    pub const fn alignment(mut self, bytes: usize) -> RopeCodec {
        assert!(bytes.is_power_of_two(), "an alignment is a power of two");
        self.alignment = bytes;
        self
    }

    /// Puts the header in front of a payload, without a copy. What is in the header beside the length is zero.
    ///
    /// # Errors
    ///
    /// `InvalidInput` for a payload that is too long, or shorter than the [adjustment](RopeCodec::length_adjustment), and
    /// if a frame has a part of its header in it ([`num_skip`](RopeCodec::num_skip)): then send it as it is.
    ///
    /// # Examples
    ///
    /// ```
    /// use ropewalk::{Rope, RopeCodec};
    ///
    /// let frame = RopeCodec::new(1 << 20).wrap(Rope::from("four"))?;
    /// assert_eq!(frame, b"\0\0\0\x04four");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn wrap(&self, mut payload: Rope) -> io::Result<Rope> {
        let mut header = [0; MAX_HEADER];
        let end = self.end();
        if self.skip() < end {
            return Err(invalid_input("frames have their header in them: send the payload as it is".into()));
        }
        self.encode(payload.len(), &mut header[self.offset..end])?;
        payload.push_front(Bytes::copy_from_slice(&header[..self.skip()]));
        Ok(payload)
    }

    /// Takes the first frame off `received`, if all of it is there, and returns its payload without a
    /// copy; but see [`alignment`](RopeCodec::alignment).
    ///
    /// # Errors
    ///
    /// * `InvalidData` for a frame that is too long, or whose length is too small with the
    ///   [adjustment](RopeCodec::length_adjustment). No frame can be found behind that one: close the connection.
    /// * `OutOfMemory` if there is none for a copy that is aligned.
    /// * `Unsupported` in a child of fork(2), if the rope's pool is the parent's.
    ///
    /// `received` is as it was.
    ///
    /// # Examples
    ///
    /// ```
    /// use ropewalk::{Rope, RopeCodec};
    ///
    /// let codec = RopeCodec::new(1 << 20);
    /// let mut received = Rope::from("\0\0\0\x04fo");
    /// assert!(codec.take(&mut received)?.is_none());
    /// received.push("ur, and more");
    /// assert_eq!(codec.take(&mut received)?.unwrap(), b"four");
    /// assert_eq!(received, b", and more");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    #[inline]
    pub fn take(&self, received: &mut Rope) -> io::Result<Option<Rope>> {
        match self.complete(received)? {
            Some(body) => self.take_complete(received, body),
            None => Ok(None),
        }
    }

    /// Takes the first frame off, which [`complete`](RopeCodec::complete) has returned.
    #[inline(always)]
    pub(super) fn take_complete(&self, received: &mut Rope, body: Body) -> io::Result<Option<Rope>> {
        received.take_body(self.skip(), body)
    }

    /// Returns the first frame in `received`, if all of it is there.
    #[inline(always)]
    pub(super) fn complete(&self, received: &Rope) -> io::Result<Option<Body>> {
        let len = self.decode(received)?;
        Ok(len.filter(|len| received.len() - self.skip() >= *len).map(|len| self.body(len, len)))
    }

    /// Returns the first frame in `received`, of which not all is there; `None` before its header is.
    ///
    /// # Errors
    ///
    /// As for [`take`](RopeCodec::take).
    pub(super) fn incomplete(&self, received: &mut Rope) -> io::Result<Option<Body>> {
        if self.alignment > 1 {
            received.read_carefully();
        }
        Ok(self.decode(received)?.map(|len| self.body(len, received.len() - self.skip())))
    }

    #[inline]
    fn body(&self, len: usize, arrived: usize) -> Body {
        let align = if len < MIN_ALIGNED { 1 } else { self.alignment };
        Body { arrived, missing: len - arrived, align, header: self.header() }
    }

    /// Whether a stream may end with `left` bytes of a frame that is not complete.
    pub(super) fn ended(&self, left: usize) -> io::Result<()> {
        if left == 0 {
            return Ok(());
        }
        let message = format!("the stream ended inside a frame, of which {left} bytes have arrived");
        Err(io::Error::new(io::ErrorKind::UnexpectedEof, message))
    }

    /// Bytes up to the end of the length.
    #[inline]
    fn end(&self) -> usize {
        self.offset + self.field
    }

    /// Bytes in front of a frame.
    #[inline]
    fn skip(&self) -> usize {
        self.skip.unwrap_or(self.end())
    }

    /// Bytes that have to be there before the length is known and what is skipped is gone.
    #[inline]
    fn header(&self) -> usize {
        self.skip().max(self.end())
    }

    /// Returns the bytes of the first frame, once its header is there.
    #[inline(always)]
    fn decode(&self, received: &Rope) -> io::Result<Option<usize>> {
        if received.len() < self.header() {
            return Ok(None);
        }
        // In a child of fork(2) the header is not mapped.
        received.pool().map_or(Ok(()), Pool::check_process)?;
        let first = received.piece(0);
        let end = self.end();
        if first.len() >= end {
            return self.frame_len(&first[self.offset..end]).map(Some);
        }
        let mut header = [0; MAX_HEADER];
        received.copy_first(&mut header[..end]);
        self.frame_len(&header[self.offset..end]).map(Some)
    }

    /// Returns the bytes of a frame with this length in its header.
    #[inline]
    fn frame_len(&self, field: &[u8]) -> io::Result<usize> {
        let length = match (field, self.little_endian) {
            (&[a, b, c, d], false) => u64::from(u32::from_be_bytes([a, b, c, d])),
            (field, little_endian) => number(field, little_endian),
        };
        let len = i128::from(length) + self.adjustment as i128;
        let inside = self.end().saturating_sub(self.skip());
        match usize::try_from(len) {
            Ok(len) if len <= self.max && len >= inside => Ok(len),
            _ => Err(self.refused(length, len, inside)),
        }
    }

    #[cold]
    fn refused(&self, length: u64, len: i128, inside: usize) -> io::Error {
        let (adjustment, max) = (self.adjustment, self.max);
        let message = if len < inside as i128 {
            format!(
                "a length of {length} is too small: with an adjustment of {adjustment} the frame would have {len} \
                     bytes, fewer than the {inside} of its header"
            )
        } else {
            format!("a frame of {len} bytes is longer than the {max} that are allowed")
        };
        io::Error::new(io::ErrorKind::InvalidData, message)
    }

    /// Writes the length of a frame of `len` bytes.
    fn encode(&self, len: usize, field: &mut [u8]) -> io::Result<()> {
        let (max, bytes) = (self.max, self.field);
        if len > max {
            let message = format!("a frame of {len} bytes is longer than the {max} that are allowed");
            return Err(invalid_input(message));
        }
        let length = len as i128 - self.adjustment as i128;
        let largest = u64::MAX >> (8 * (MAX_FIELD - bytes));
        match u64::try_from(length) {
            Ok(length) if length <= largest => {
                field.copy_from_slice(&length.to_be_bytes()[MAX_FIELD - bytes..]);
                if self.little_endian {
                    field.reverse();
                }
                Ok(())
            }
            _ => Err(invalid_input(format!(
                "a frame of {len} bytes needs a length of {length}, which {bytes} bytes do not hold"
            ))),
        }
    }
}

fn number(field: &[u8], little_endian: bool) -> u64 {
    let shift = |sum: u64, &byte: &u8| sum << 8 | u64::from(byte);
    if little_endian { field.iter().rev().fold(0, shift) } else { field.iter().fold(0, shift) }
}

fn invalid_input(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, message)
}

impl Rope {
    /// readv(2) until the next frame is there: returns it, or `None` if the stream ends before one begins. This rope holds
    /// what was read of frames that are not complete; always use the same one.
    ///
    /// Frames of less than 64 KiB are read ahead, many with one call. A longer one is received on its own, in one run,
    /// with the next header: [finalised](Rope::finalize) it is borrowed. The run counts as in use once the header has
    /// arrived; its pages are given memory as bytes arrive.
    ///
    /// # Errors
    ///
    /// * As for [`RopeCodec::take`] and [`readv_from`](Rope::readv_from).
    /// * `UnexpectedEof` when the stream ends inside a frame.
    /// * `QuotaExceeded` for a frame that is longer than the rope's [limit](Rope::set_limit) allows.
    ///
    /// After `WouldBlock` or any other error of readv(2), what has arrived is in the rope: call again to go on.
    ///
    /// # Examples
    ///
    /// ```
    /// use ropewalk::{Rope, RopeCodec};
    /// use std::io::Write;
    /// use std::os::unix::net::UnixStream;
    ///
    /// let (mut peer, socket) = UnixStream::pair()?;
    /// peer.write_all(b"\0\0\0\x05first\0\0\0\x06second")?;
    /// drop(peer);
    ///
    /// let (mut received, codec) = (Rope::new(), RopeCodec::new(1 << 20));
    /// assert_eq!(received.readv_frame(&socket, &codec)?.unwrap(), b"first");
    /// assert_eq!(received.readv_frame(&socket, &codec)?.unwrap(), b"second");
    /// assert!(received.readv_frame(&socket, &codec)?.is_none());
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn readv_frame<F: AsFd>(&mut self, fd: F, codec: &RopeCodec) -> io::Result<Option<Rope>> {
        loop {
            if let Some(body) = codec.complete(self)? {
                return codec.take_complete(self, body);
            }
            let body = codec.incomplete(self)?;
            if self.readv_body(fd.as_fd(), sys::is_stream_type::<F>(), body)? == 0 {
                return codec.ended(self.len()).map(|()| None);
            }
        }
    }
}
