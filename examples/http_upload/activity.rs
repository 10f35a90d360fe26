//! Whether the peer of a connection makes progress, over HTTP/1 and HTTP/2 alike.
//!
//! ```text
//!  no request in progress    its bytes must leave, or a request must come, within `idle`
//!  a handler runs            it has deadlines of its own
//!  a response is sent        64 KiB of it must leave within each `stall`, unless the body has none yet
//! ```
//!
//! `gateway` uses this file too.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use http_body::{Frame, SizeHint};
use tokio::time::sleep;

/// What goes on on one connection.
#[derive(Debug, Default)]
pub(crate) struct Activity(Mutex<State>);

#[derive(Debug)]
struct State {
    next_id: u64,
    /// The requests in progress: when a piece of the response was last taken, if there is one.
    requests: HashMap<u64, Option<Instant>>,
    /// When a byte was last sent or a request ended.
    last: Instant,
}

impl Default for State {
    fn default() -> State {
        State { next_id: 0, requests: HashMap::new(), last: Instant::now() }
    }
}

impl Activity {
    /// Resolves, to a line for the log, when the peer has made no progress for too long.
    pub(crate) async fn overdue(&self, idle: Duration, stall: Duration) -> &'static str {
        loop {
            sleep(idle.min(stall) / 4).await;
            let state = self.state();
            if state.requests.is_empty() && state.last.elapsed() > idle {
                return "no request within the idle time";
            }
            if state.requests.values().flatten().any(|last| last.elapsed() > stall) {
                return "a response is not read";
            }
        }
    }

    /// Bytes have left.
    pub(crate) fn note_sent(&self) {
        self.state().last = Instant::now();
    }

    fn begin(self: Arc<Activity>) -> InProgress {
        let id = {
            let mut state = self.state();
            state.next_id += 1;
            let id = state.next_id;
            state.requests.insert(id, None);
            id
        };
        InProgress { activity: self, id }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request, until its response has been taken or is given up.
struct InProgress {
    activity: Arc<Activity>,
    id: u64,
}

impl InProgress {
    fn note_progress(&self) {
        self.activity.state().requests.insert(self.id, Some(Instant::now()));
    }

    /// The peer is not to blame: there is nothing to send.
    fn note_waiting(&self) {
        self.activity.state().requests.insert(self.id, None);
    }
}

impl Drop for InProgress {
    fn drop(&mut self) {
        let mut state = self.activity.state();
        state.requests.remove(&self.id);
        state.last = Instant::now();
    }
}

/// Middleware that follows each request until its response is sent.
pub(crate) async fn follow(
    Extension(activity): Extension<Arc<Activity>>,
    request: Request,
    next: Next,
) -> Response {
    let in_progress = activity.begin();
    let response = next.run(request).await;
    in_progress.note_progress();
    response.map(|body| Body::new(Followed { body, in_progress }))
}

struct Followed {
    body: Body,
    in_progress: InProgress,
}

impl http_body::Body for Followed {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        self.in_progress.note_progress();
        let frame = Pin::new(&mut self.body).poll_frame(context);
        if frame.is_pending() {
            self.in_progress.note_waiting();
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
