//! The bytes of an object into a body.

use std::fs::File;
use std::io::{self, ErrorKind, Seek, SeekFrom};
use std::iter;
use std::ops::Range;

use axum::body::Body;
use bytes::Bytes;
use futures_util::stream::{self, BoxStream, TryStream, TryStreamExt};
use object_store::{GetResult, GetResultPayload};
use ropewalk::{Pool, Rope};
use tokio::time::timeout;
use tracing::warn;

use crate::Limits;

/// Bytes of a file that are read at once.
const PIECE: usize = 1 << 20;

/// Most bytes in a frame: how much of a response must leave in each `--stall` in order to be progress.
const FRAME: usize = 64 << 10;

/// A body of the object's bytes. If the store fails meanwhile the connection is closed: the client sees that bytes are
/// missing.
pub(crate) fn body(object: GetResult, pool: &Pool, limits: Limits) -> io::Result<Body> {
    match object.payload {
        GetResultPayload::File(file, _path) => file_body(file, object.range, pool, limits),
        GetResultPayload::Stream(pieces) => {
            let next = move |mut pieces: Pieces| async move {
                let piece = timeout(limits.patience, pieces.try_next()).await.map_err(io::Error::from);
                let piece = piece.and_then(|piece| Ok(piece?));
                let piece = piece.inspect_err(|error| warn!(%error, "the store failed"))?;
                Ok::<_, io::Error>(piece.map(|piece| (piece, pieces)))
            };
            Ok(in_frames(stream::try_unfold(pieces, next)))
        }
    }
}

type Pieces = BoxStream<'static, object_store::Result<Bytes>>;

/// Cuts pieces into frames, without a copy.
fn in_frames(pieces: impl TryStream<Ok = Bytes, Error = io::Error> + Send + 'static) -> Body {
    let frames = |mut piece: Bytes| {
        stream::iter(iter::from_fn(move || {
            (!piece.is_empty()).then(|| Ok::<_, io::Error>(piece.split_to(piece.len().min(FRAME))))
        }))
    };
    Body::from_stream(pieces.map_ok(frames).try_flatten())
}

/// Pieces of a file, received by `readv` into the pool's pages.
fn file_body(mut file: File, range: Range<u64>, pool: &Pool, limits: Limits) -> io::Result<Body> {
    file.seek(SeekFrom::Start(range.start))?;
    let (pool, len) = (pool.clone(), range.end - range.start);
    let pieces = stream::try_unfold((file, len), move |(file, left)| {
        let pool = pool.clone();
        async move {
            let piece = PIECE.min(usize::try_from(left).unwrap_or(PIECE));
            if piece == 0 {
                return Ok::<_, io::Error>(None);
            }
            let room = timeout(limits.patience, pool.wait_for_room(piece)).await??;
            let read = move || {
                let mut rope = Rope::in_room(room);
                let count = rope.readv_up_to(&file, piece)?;
                Ok::<_, io::Error>((Bytes::from(rope), (file, left - count as u64)))
            };
            let (bytes, rest) = tokio::task::spawn_blocking(read).await??;
            if bytes.is_empty() {
                return Err(ErrorKind::UnexpectedEof.into()); // it has been cut meanwhile
            }
            Ok(Some((bytes, rest)))
        }
    });
    Ok(in_frames(pieces))
}
