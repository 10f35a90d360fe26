//! object_store.

use std::io::{self, ErrorKind, Seek, SeekFrom, Write};

use futures_util::TryStreamExt;
use object_store::path::Path;
use object_store::{GetResultPayload, ObjectStore, ObjectStoreExt, PutResult, WriteMultipart};
use ropewalk::{Pool, Rope, View};

/// Stores a rope as one object. The payload is the rope's segments: no copy.
pub async fn put(store: &dyn ObjectStore, path: &Path, rope: &Rope) -> object_store::Result<PutResult> {
    store.put(path, rope.segments().collect()).await
}

/// Stores a rope in parts of `part` bytes, at most `parallel` at a time. Parts are cut out of segments: no copy, and
/// the pages of a part are free once it is stored.
pub async fn put_in_parts(
    store: &dyn ObjectStore,
    path: &Path,
    rope: Rope,
    part: usize,
    parallel: usize,
) -> object_store::Result<PutResult> {
    let upload = store.put_multipart(path).await?;
    let mut writer = WriteMultipart::new_with_chunk_size(upload, part);
    for segment in rope {
        if let Err(error) = writer.wait_for_capacity(parallel).await {
            writer.abort().await?;
            return Err(error);
        }
        writer.put(segment);
    }
    writer.finish().await // which aborts if a part fails
}

/// Gets an object as one slice, or refuses one of more than `max` bytes.
pub async fn get(store: &dyn ObjectStore, path: &Path, pool: &Pool, max: u64) -> io::Result<View> {
    let object = store.get(path).await?;
    let len = object.range.end - object.range.start;
    let len = usize::try_from(len).ok().filter(|_| len <= max).ok_or(ErrorKind::QuotaExceeded)?;
    let mut rope = Rope::in_pool(pool);
    match object.payload {
        // A file of this machine: `readv` into the pool's pages, no copy.
        GetResultPayload::File(mut file, _path) => {
            let read = move || {
                file.seek(SeekFrom::Start(object.range.start))?;
                while rope.len() < len && rope.readv_up_to(&file, len - rope.len())? > 0 {}
                Ok::<_, io::Error>(rope)
            };
            rope = tokio::task::spawn_blocking(read).await??;
        }
        // From the network: each piece is copied into the pool's pages and freed.
        GetResultPayload::Stream(mut pieces) => {
            rope.set_limit(len);
            while let Some(piece) = pieces.try_next().await? {
                rope.write_all(&piece)?;
            }
        }
    }
    if rope.len() < len {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    Ok(rope.finalize()?)
}
