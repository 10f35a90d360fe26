//! Frames with their length in front, whose payload is a rope: by themselves, and as a codec of
//! tokio_util's.
//!
//! ```text
//! ┌─────────────────────┬──────────────┐
//! │ length, 4 bytes, BE │ payload      │      as `tokio_util::codec::LengthDelimitedCodec` has it
//! └─────────────────────┴──────────────┘
//! ```

use std::io;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio_util::codec::{Decoder, Encoder};

use super::keep_or_copy;
use crate::rope::Rope;

/// Bytes in front of each payload.
const HEADER: usize = 4;

/// Frames of a 4-byte length, big-endian, and a payload, which is a rope.
///
/// Straight on a socket nothing is copied: [`wrap`](RopeCodec::wrap) a payload and send it by one gather
/// write; receive with [`ReadRope::read_frame`](crate::ReadRope::read_frame), or without tokio with
/// [`take`](RopeCodec::take).
///
/// As a [`Decoder`] it keeps the pieces of a frame as they arrive, so a large frame never needs one large
/// buffer, nor a copy. As an [`Encoder`] it has to copy the payload into one buffer: that is the trait.
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
#[derive(Debug)]
pub struct RopeCodec {
    max: usize,
    /// What a decoder has of the frame that is arriving.
    arrived: Rope,
    /// Bytes of it that a decoder still waits for; `None` before its header is there.
    missing: Option<usize>,
}

impl RopeCodec {
    /// Frames with at most `max` bytes of payload.
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
    pub fn new(max: usize) -> RopeCodec {
        RopeCodec { max, arrived: Rope::new(), missing: None }
    }

    /// Puts the header in front of a payload, without a copy.
    ///
    /// # Errors
    ///
    /// `InvalidInput` for a payload that is too long.
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
        payload.push_front(Bytes::copy_from_slice(&self.header(payload.len())?));
        Ok(payload)
    }

    /// Takes the first frame off `received`, if all of it is there, and returns its payload without a
    /// copy.
    ///
    /// # Errors
    ///
    /// `InvalidData` for a frame that is too long. `received` is as it was, and no frame can be found
    /// behind that one: close the connection.
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
    pub fn take(&self, received: &mut Rope) -> io::Result<Option<Rope>> {
        if received.len() < HEADER {
            return Ok(None);
        }
        let len = self.checked(received.cursor().get_u32())?;
        if received.len() - HEADER < len {
            return Ok(None);
        }
        received.advance(HEADER);
        Ok(Some(received.split_to(len)))
    }

    /// Whether a stream may end with `left` bytes of a frame that is not complete.
    pub(super) fn end(&self, left: usize) -> io::Result<()> {
        if left == 0 {
            return Ok(());
        }
        let message = format!("the stream ended inside a frame, of which {left} bytes have arrived");
        Err(io::Error::new(io::ErrorKind::UnexpectedEof, message))
    }

    fn header(&self, len: usize) -> io::Result<[u8; HEADER]> {
        let most = self.max.min(u32::MAX as usize);
        match u32::try_from(len) {
            Ok(length) if len <= most => Ok(length.to_be_bytes()),
            _ => Err(too_long(io::ErrorKind::InvalidInput, len, most)),
        }
    }

    fn checked(&self, length: u32) -> io::Result<usize> {
        let len = length as usize;
        if len <= self.max { Ok(len) } else { Err(too_long(io::ErrorKind::InvalidData, len, self.max)) }
    }

    /// Reads a header, if it is there. Room for the payload is made as it comes.
    fn begin(&mut self, src: &mut BytesMut) -> io::Result<Option<usize>> {
        if self.missing.is_none() && src.len() >= HEADER {
            let len = self.checked((&src[..]).get_u32())?;
            src.advance(HEADER);
            self.missing = Some(len);
        }
        Ok(self.missing)
    }
}

/// For anything that is not a socket itself, TLS for one, with `tokio_util::codec::Framed` around it.
///
/// # Examples
///
/// ```
/// use futures_util::{SinkExt, StreamExt};
/// use ropewalk::{Rope, RopeCodec};
/// use tokio_util::codec::Framed;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> std::io::Result<()> {
/// let (here, there) = tokio::io::duplex(64);
/// let mut to = Framed::new(here, RopeCodec::new(1 << 20));
/// let mut from = Framed::new(there, RopeCodec::new(1 << 20));
/// to.send(Rope::from("a frame")).await?;
/// assert_eq!(from.next().await.unwrap()?, b"a frame");
/// # Ok(())
/// # }
/// ```
impl Decoder for RopeCodec {
    type Item = Rope;
    type Error = io::Error;

    fn decode(&mut self, src: &mut BytesMut) -> io::Result<Option<Rope>> {
        let Some(missing) = self.begin(src)? else { return Ok(None) };
        let here = src.split_to(missing.min(src.len()));
        self.missing = Some(missing - here.len());
        keep_or_copy(&mut self.arrived, here.freeze());
        if self.missing > Some(0) {
            return Ok(None);
        }
        self.missing = None;
        Ok(Some(std::mem::take(&mut self.arrived)))
    }

    fn decode_eof(&mut self, src: &mut BytesMut) -> io::Result<Option<Rope>> {
        match self.decode(src)? {
            None => {
                self.end(self.missing.map_or(0, |_| HEADER) + self.arrived.len() + src.len()).map(|()| None)
            }
            frame => Ok(frame),
        }
    }
}

impl Encoder<Rope> for RopeCodec {
    type Error = io::Error;

    fn encode(&mut self, payload: Rope, dst: &mut BytesMut) -> io::Result<()> {
        let header = self.header(payload.len())?;
        dst.reserve(HEADER + payload.len());
        dst.put_slice(&header);
        dst.put(payload);
        Ok(())
    }
}

fn too_long(kind: io::ErrorKind, len: usize, max: usize) -> io::Error {
    io::Error::new(kind, format!("a frame of {len} bytes is longer than the {max} that are allowed"))
}
