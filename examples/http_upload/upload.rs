//! The body of a request into a rope, with its deadlines.

use std::io::{self, ErrorKind, Write};
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, StatusCode};
use bytes::Buf;
use http_body_util::BodyExt;
use prometheus_client::metrics::gauge::Gauge;
use ropewalk::{Pool, Rope};
use tokio::time::{Instant, sleep, timeout_at};

use crate::Limits;
use crate::objects::Refusal;

/// Bytes of a body that must arrive in each period.
const PROGRESS: usize = 64 << 10;

/// How often an announced upload that waits looks for room.
const LOOK: Duration = Duration::from_millis(50);

/// An upload in progress. It holds the memory of what has arrived, whatever the peer has announced.
pub(crate) struct Upload<'a> {
    rope: Rope,
    pool: &'a Pool,
    limits: &'a Limits,
    /// Uploads that wait for room.
    waiting: &'a Gauge,
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
        waiting: &'a Gauge,
        announced: Option<u64>,
    ) -> Result<Upload<'a>, Refusal> {
        let mut rope = Rope::in_pool(pool);
        rope.set_limit(most);
        if let Some(announced) = announced {
            let announced = usize::try_from(announced).ok().filter(|&announced| announced <= most);
            let announced = announced.ok_or_else(|| too_large(most))?;
            let _waiting = (!fits(pool, announced)).then(|| Waiting::new(waiting));
            let until = Instant::now() + limits.patience;
            while !fits(pool, announced) {
                if Instant::now() >= until {
                    return Err(no_room(limits));
                }
                sleep(LOOK).await;
            }
        }
        Ok(Upload { rope, pool, limits, waiting, moved: 0, period_ends: Instant::now() + limits.stall })
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
        let _waiting = Waiting::new(self.waiting);
        let until = Instant::now() + self.limits.patience;
        write_when_room(&mut self.rope, self.pool, data, until).await.map_err(|error| self.refusal(error))?;
        self.begin_period();
        Ok(())
    }

    fn refusal(&self, error: io::Error) -> Refusal {
        match error.kind() {
            ErrorKind::QuotaExceeded => too_large(self.rope.limit()),
            ErrorKind::OutOfMemory => no_room(self.limits),
            ErrorKind::StorageFull => Refusal::new(StatusCode::INSUFFICIENT_STORAGE, error.to_string()),
            _ => Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        }
    }
}

fn too_large(most: usize) -> Refusal {
    Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, format!("an upload may have {most} bytes"))
}

fn no_room(limits: &Limits) -> Refusal {
    let why = format!("no room within {:?}; try again later or delete something", limits.patience);
    Refusal::new(StatusCode::SERVICE_UNAVAILABLE, why).retry_after(limits.patience)
}

/// Returns whether the pool has room for so many bytes now. An upload that was announced looks again and again rather
/// than queueing in the pool: what it would collect there, others could not use, and its peer may never send it.
fn fits(pool: &Pool, bytes: usize) -> bool {
    let stats = pool.stats();
    let held = stats.in_use.saturating_add(stats.spilled).saturating_add(bytes as u64);
    held <= stats.capacity.saturating_add(stats.spill_capacity)
}

/// Counts an upload as one that waits, until it is dropped.
struct Waiting<'a>(&'a Gauge);

impl Waiting<'_> {
    fn new(waiting: &Gauge) -> Waiting<'_> {
        waiting.inc();
        Waiting(waiting)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.dec();
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
