//! The body of a request into a rope, with its deadlines.

use std::io::{self, ErrorKind, Write};
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, StatusCode};
use bytes::Buf;
use http_body_util::BodyExt;
use ropewalk::{Pool, Rope};
use tokio::time::{Instant, timeout_at};

use crate::Limits;
use crate::objects::Refusal;

/// Bytes of a body that must arrive in each period.
const PROGRESS: usize = 64 << 10;

/// Longest time for which the rest of a refused body is discarded.
const LINGER: Duration = Duration::from_secs(2);

/// An upload in progress. It holds the memory of what has arrived, whatever the peer has announced.
pub(crate) struct Upload<'a> {
    rope: Rope,
    pool: &'a Pool,
    limits: &'a Limits,
    /// Bytes that have arrived in this period, and its end.
    moved: usize,
    period_ends: Instant,
}

impl<'a> Upload<'a> {
    /// An upload of at most `most` bytes, of which `announced` are known to come. Waits until there is
    /// room for them, before the peer is asked to send.
    pub(crate) async fn begin(
        pool: &'a Pool,
        most: usize,
        limits: &'a Limits,
        announced: Option<u64>,
    ) -> Result<Upload<'a>, Refusal> {
        let mut rope = Rope::in_pool(pool);
        rope.set_limit(most);
        if let Some(announced) = announced {
            let announced = usize::try_from(announced).ok().filter(|&announced| announced <= most);
            let announced = announced.ok_or_else(|| too_large(most))?;
            chance(pool, announced, Instant::now() + limits.patience, limits).await?;
        }
        Ok(Upload { rope, pool, limits, moved: 0, period_ends: Instant::now() + limits.stall })
    }

    /// Receives the body; returns it and its trailers.
    pub(crate) async fn receive(mut self, body: &mut Body) -> Result<(Rope, Option<HeaderMap>), Refusal> {
        let mut trailers = None;
        while let Some(frame) = self.next(body).await? {
            match frame.into_data() {
                Ok(data) => self.take(data).await?,
                Err(frame) => trailers = frame.into_trailers().ok(),
            }
        }
        // A clone has no room to grow: what the rope kept for that is free once it is dropped.
        Ok((self.rope.clone(), trailers))
    }

    async fn next(&mut self, body: &mut Body) -> Result<Option<http_body::Frame<bytes::Bytes>>, Refusal> {
        let late = |_| {
            Refusal::new(StatusCode::REQUEST_TIMEOUT, format!("less than 64 KiB in {:?}", self.limits.stall))
        };
        let frame = timeout_at(self.period_ends, body.frame()).await.map_err(late)?;
        let frame =
            frame.transpose().map_err(|error| Refusal::new(StatusCode::BAD_REQUEST, error.to_string()))?;
        self.moved += frame.as_ref().and_then(|frame| frame.data_ref()).map_or(0, |data| data.len());
        if self.moved >= PROGRESS {
            self.begin_period();
        }
        Ok(frame)
    }

    fn begin_period(&mut self) {
        (self.moved, self.period_ends) = (0, Instant::now() + self.limits.stall);
    }

    async fn take(&mut self, mut data: bytes::Bytes) -> Result<(), Refusal> {
        while data.has_remaining() {
            // Other connections go on while the disk is busy.
            self.pool.wait_for_spill().await;
            match self.rope.write(&data) {
                Ok(count) => data.advance(count),
                Err(error) if error.kind() == ErrorKind::OutOfMemory => {
                    self.take_when_room(&mut data).await?
                }
                Err(error) => return Err(self.refusal(error)),
            }
        }
        Ok(())
    }

    /// Waits for room, in turn. The peer is not to blame for the time.
    async fn take_when_room(&mut self, data: &mut bytes::Bytes) -> Result<(), Refusal> {
        let until = Instant::now() + self.limits.patience;
        write_when_room(&mut self.rope, self.pool, data, until).await.map_err(|error| self.refusal(error))?;
        self.begin_period();
        Ok(())
    }

    fn refusal(&self, error: io::Error) -> Refusal {
        match error.kind() {
            ErrorKind::QuotaExceeded => too_large(self.rope.limit()),
            ErrorKind::OutOfMemory => no_room(self.limits.patience, self.limits),
            ErrorKind::StorageFull => Refusal::new(StatusCode::INSUFFICIENT_STORAGE, error.to_string()),
            _ => Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        }
    }
}

/// Discards what still comes of a body that was refused, for a while: over HTTP/2, dropping it resets the
/// stream, and some clients then miss the response.
pub(crate) fn linger(mut body: Body) {
    tokio::spawn(timeout_at(Instant::now() + LINGER, async move {
        while let Some(Ok(_discarded)) = body.frame().await {}
    }));
}

fn too_large(most: usize) -> Refusal {
    Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, format!("an upload may have {most} bytes"))
}

fn no_room(patience: Duration, limits: &Limits) -> Refusal {
    let why = format!("no room within {patience:?}; try again later or delete something");
    Refusal::new(StatusCode::SERVICE_UNAVAILABLE, why).retry_after(limits.patience)
}

/// Waits until the pool has room for so many bytes, and reserves none of it: a peer that then sends
/// nothing holds nothing. Does not queue where there is room already.
async fn chance(pool: &Pool, bytes: usize, until: Instant, limits: &Limits) -> Result<(), Refusal> {
    let stats = pool.stats();
    let held = stats.in_use.saturating_add(stats.spilled).saturating_add(bytes as u64);
    if held <= stats.capacity.saturating_add(stats.spill_capacity) {
        return Ok(());
    }
    // What is more than memory has to go to the disk.
    let bytes = bytes.min(usize::try_from(stats.capacity).unwrap_or(usize::MAX));
    match timeout_at(until, pool.wait_for_room(bytes)).await {
        Ok(Ok(_room)) => Ok(()),
        _ => Err(no_room(limits.patience, limits)),
    }
}

/// Writes some of `data` once the pool has room for it, in the order of arrival, or fails with `OutOfMemory`.
async fn write_when_room(
    rope: &mut Rope,
    pool: &Pool,
    data: &mut bytes::Bytes,
    until: Instant,
) -> io::Result<()> {
    let room =
        timeout_at(until, pool.wait_for_room(data.len())).await.map_err(|_late| ErrorKind::OutOfMemory)??;
    rope.add_room(room).map_err(|_other| ErrorKind::InvalidInput)?;
    rope.write(data).map(|count| data.advance(count))
}
