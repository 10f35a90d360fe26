//! Bodies of responses.

use std::convert::Infallible;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Bytes;
use axum::http::HeaderMap;
use bytes::Buf;
use http_body::{Body, Frame, SizeHint};
use ropewalk::Rope;

/// Most bytes in a frame: how much of a response must leave in each period in order to be progress.
const PIECE: usize = 64 << 10;

/// A rope in pieces of at most 64 KiB, none of them copied, with trailers if there are some.
pub(crate) struct Content {
    rope: Rope,
    trailers: Option<HeaderMap>,
}

impl Content {
    pub(crate) fn new(rope: Rope) -> Content {
        Content { rope, trailers: None }
    }

    /// Of unknown length to HTTP/1.1, which sends trailers only behind a chunked body.
    pub(crate) fn with_trailers(rope: Rope, trailers: HeaderMap) -> Content {
        Content { rope, trailers: Some(trailers) }
    }
}

impl Body for Content {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let piece = self.rope.chunk().len().min(PIECE);
        let frame = match piece {
            0 => self.trailers.take().map(Frame::trailers),
            _ => Some(Frame::data(self.rope.copy_to_bytes(piece))),
        };
        Poll::Ready(frame.map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        self.rope.is_empty() && self.trailers.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        match self.trailers {
            None => SizeHint::with_exact(self.rope.len() as u64),
            Some(_) => SizeHint::default(),
        }
    }
}

/// The value of `Content-Range`.
pub(crate) fn content_range(part: &Range<u64>, len: u64) -> String {
    format!("bytes {}-{}/{len}", part.start, part.end - 1)
}

/// A `multipart/byteranges` body (RFC 9110, section 14.6): heads that are pushed between slices of the content.
pub(crate) fn multipart(content: &Rope, content_type: &str, parts: &[Range<u64>], boundary: &str) -> Rope {
    let len = content.len() as u64;
    let mut body = Rope::new();
    for part in parts {
        let range = content_range(part, len);
        body.push(format!(
            "\r\n--{boundary}\r\nContent-Type: {content_type}\r\nContent-Range: {range}\r\n\r\n"
        ));
        body.append(slice(content, part));
    }
    body.push(format!("\r\n--{boundary}--\r\n"));
    body
}

/// The bytes of a part that lies within the content; they are shared.
pub(crate) fn slice(content: &Rope, part: &Range<u64>) -> Rope {
    let at = |position| usize::try_from(position).expect("within the content");
    content.slice(at(part.start)..at(part.end))
}
