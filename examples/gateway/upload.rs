//! Parts into the store: one request if there is one part, else a multipart upload that is completed or aborted.

use std::pin::pin;
use std::sync::Arc;

use object_store::path::Path;
use object_store::{MultipartUpload, ObjectStore, ObjectStoreExt, PutResult};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::Limits;
use crate::failure::Failure;
use crate::parts::Parts;

/// Stores what `parts` receives. Up to `Limits::parallel` parts are being stored while the next one is received; with
/// so many, nothing is received, and TCP slows the client down.
pub(crate) async fn upload(
    store: &Arc<dyn ObjectStore>,
    path: &Path,
    mut parts: Parts,
    limits: Limits,
) -> Result<PutResult, Failure> {
    let (mut part, mut more) = parts.next().await?;
    if !more {
        return Ok(timeout(limits.patience, store.put(path, part)).await??);
    }
    let mut upload = Upload::begin(store, path, limits).await?;
    loop {
        upload.put(part).await?;
        if !more {
            return upload.complete().await;
        }
        // A part that cannot be stored ends the upload at once, not when the client has sent another one.
        let mut next = pin!(parts.next());
        (part, more) = loop {
            tokio::select! {
                part = &mut next => break part?,
                Some(stored) = upload.running.join_next() => flatten(stored)?,
            }
        };
    }
}

/// A multipart upload. It is aborted when it is dropped before it is complete, as when its client disconnects.
struct Upload {
    inner: Option<Box<dyn MultipartUpload>>,
    running: JoinSet<Result<(), Failure>>,
    limits: Limits,
}

impl Upload {
    async fn begin(store: &Arc<dyn ObjectStore>, path: &Path, limits: Limits) -> Result<Upload, Failure> {
        let inner = timeout(limits.patience, store.put_multipart(path)).await??;
        Ok(Upload { inner: Some(inner), running: JoinSet::new(), limits })
    }

    /// Begins to store a part, once fewer than `parallel` others are being stored.
    async fn put(&mut self, part: object_store::PutPayload) -> Result<(), Failure> {
        while self.running.len() >= self.limits.parallel.get() {
            self.one_is_stored().await?;
        }
        if let Some(inner) = &mut self.inner {
            let (stored, patience) = (inner.put_part(part), self.limits.patience);
            self.running.spawn(async move { Ok(timeout(patience, stored).await??) });
        }
        Ok(())
    }

    async fn one_is_stored(&mut self) -> Result<(), Failure> {
        self.running.join_next().await.map_or(Ok(()), flatten)
    }

    async fn complete(mut self) -> Result<PutResult, Failure> {
        while !self.running.is_empty() {
            self.one_is_stored().await?;
        }
        let mut inner = self.inner.take().expect("it is taken here and when it is dropped");
        match timeout(self.limits.patience, inner.complete()).await {
            Ok(Ok(stored)) => Ok(stored),
            failed => {
                self.inner = Some(inner); // to be aborted
                Ok(failed??)
            }
        }
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        let Some(mut inner) = self.inner.take() else { return };
        let (mut running, patience) = (std::mem::take(&mut self.running), self.limits.patience);
        tokio::spawn(async move {
            running.shutdown().await;
            // A store that is gone keeps the parts; its own rules remove uploads that are never completed.
            let _ = timeout(patience, inner.abort()).await;
        });
    }
}

fn flatten(stored: Result<Result<(), Failure>, tokio::task::JoinError>) -> Result<(), Failure> {
    stored.unwrap_or_else(|panicked| Err(object_store::Error::from(panicked).into()))
}
