//! The next frame of anything that appends to a rope.

use std::future::Future;
use std::io;

use super::codec::RopeCodec;
use super::tokio::ReadRope;
use crate::rope::{Body, Rope};

/// Something that appends to a rope.
pub(super) trait Fill {
    /// Appends bytes, at least one unless the stream has ended: what is missing of `body`, and what may be read ahead.
    fn fill(&mut self, rope: &mut Rope, body: Option<Body>) -> impl Future<Output = io::Result<usize>>;
}

/// A reader that appends up to so many bytes.
pub(super) struct UpTo<'a, S: ?Sized>(pub(super) &'a S);

impl<S: ReadRope + ?Sized> Fill for UpTo<'_, S> {
    async fn fill(&mut self, rope: &mut Rope, body: Option<Body>) -> io::Result<usize> {
        let max = rope.prepare_body(body)?;
        self.0.read_rope_up_to(rope, max).await
    }
}

/// Returns the next frame, if one comes before the stream ends.
#[inline]
pub(super) async fn next_frame(
    mut from: impl Fill,
    rope: &mut Rope,
    codec: &RopeCodec,
) -> io::Result<Option<Rope>> {
    loop {
        // The result of a call, so that the frame is written where the caller wants it.
        if let Some(body) = codec.complete(rope)? {
            return codec.take_complete(rope, body);
        }
        let body = codec.incomplete(rope)?;
        if from.fill(rope, body).await? == 0 {
            return codec.ended(rope.len()).map(|()| None);
        }
    }
}
