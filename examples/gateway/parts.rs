//! A body into payloads of one part each.

use std::io::{ErrorKind, Write};

use axum::body::Body;
use axum::http::StatusCode;
use bytes::{Buf, Bytes};
use http_body_util::BodyExt;
use object_store::PutPayload;
use ropewalk::{Pool, Rope};
use tokio::time::{Instant, timeout, timeout_at};

use crate::Limits;
use crate::failure::Failure;

/// Bytes of a body that must arrive in each period.
const PROGRESS: usize = 64 << 10;

/// The parts of a body that is being received. Room for each is reserved when its first byte has arrived, so that a part
/// that has begun never waits for others, and a client that sends nothing holds nothing.
pub(crate) struct Parts {
    body: Body,
    /// Of the last frame.
    left: Bytes,
    pool: Pool,
    len: usize,
    limits: Limits,
    /// Bytes that have arrived in this period, and its end.
    moved: usize,
    period_ends: Instant,
}

impl Parts {
    pub(crate) fn new(body: Body, pool: &Pool, len: usize, limits: Limits) -> Parts {
        let period_ends = Instant::now() + limits.stall;
        Parts { body, left: Bytes::new(), pool: pool.clone(), len, limits, moved: 0, period_ends }
    }

    /// Returns the next part, and whether more bytes follow it. Only the last part is shorter than the others.
    pub(crate) async fn next(&mut self) -> Result<(PutPayload, bool), Failure> {
        if !self.arrived().await? {
            return Ok((PutPayload::default(), false));
        }
        let room = timeout(self.limits.patience, self.pool.wait_for_room(self.len)).await;
        let no_room = || Failure::no_room(self.limits.patience);
        let mut part = Rope::in_room(room.map_err(|_late| no_room())?.map_err(|_larger| no_room())?);
        part.set_limit(self.len);
        self.begin_period(); // the client is not to blame for the wait
        let more = loop {
            match part.write(&self.left) {
                Ok(count) => self.left.advance(count),
                Err(error) if error.kind() == ErrorKind::QuotaExceeded => break true,
                Err(error) => return Err(Failure::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string())),
            }
            if !self.arrived().await? {
                break false;
            }
        };
        Ok((part.into_iter().collect(), more)) // its segments: no copy
    }

    /// Waits until bytes have arrived; returns `false` at the end of the body.
    async fn arrived(&mut self) -> Result<bool, Failure> {
        while self.left.is_empty() {
            let late = |_| {
                let why = format!("less than 64 KiB in {:?}", self.limits.stall);
                Failure::new(StatusCode::REQUEST_TIMEOUT, why)
            };
            let broken = |error: axum::Error| Failure::new(StatusCode::BAD_REQUEST, error.to_string());
            let frame = timeout_at(self.period_ends, self.body.frame()).await.map_err(late)?;
            let Some(frame) = frame.transpose().map_err(broken)? else { return Ok(false) };
            self.left = frame.into_data().unwrap_or_default(); // trailers are not stored
            self.moved += self.left.len();
            if self.moved >= PROGRESS {
                self.begin_period();
            }
        }
        Ok(true)
    }

    fn begin_period(&mut self) {
        (self.moved, self.period_ends) = (0, Instant::now() + self.limits.stall);
    }
}
