//! Whether the peer of a connection makes progress, over HTTP/1 and HTTP/2 alike.
//!
//! ```text
//!  no request in progress    its bytes must leave, or a request must come, within `idle`
//!  a handler runs            it has deadlines of its own
//!  a response is sent        64 KiB of it must leave within each `stall`
//! ```

use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use http_body::{Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};

/// Longest time for which bytes are discarded that a peer sends after its connection's last response.
const LINGER: Duration = Duration::from_secs(2);

/// What goes on on one connection.
#[derive(Debug, Default)]
pub(crate) struct Activity(Mutex<State>);

#[derive(Debug)]
struct State {
    next_id: u64,
    /// The requests in progress: when a piece of the response was last taken, if there is one already.
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
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A socket that notes when bytes leave, and that lingers: a peer that is still sending when the last
/// response leaves would get a reset instead of it.
pub(crate) struct Watched {
    stream: TcpStream,
    activity: Arc<Activity>,
    /// Set once the last byte has been sent.
    lingering: Option<Pin<Box<Sleep>>>,
}

impl Watched {
    pub(crate) fn new(stream: TcpStream, activity: Arc<Activity>) -> Watched {
        Watched { stream, activity, lingering: None }
    }

    fn note(&self, sent: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if matches!(sent, Poll::Ready(Ok(1..))) {
            self.activity.state().last = Instant::now();
        }
        sent
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, into)
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let sent = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.note(sent)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let sent = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.note(sent)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// Shuts the sending side, and discards what comes until the peer has shut its own.
    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.lingering.is_none() {
            ready!(Pin::new(&mut self.stream).poll_shutdown(context))?;
            self.lingering = Some(Box::pin(sleep(LINGER)));
        }
        let Watched { stream, lingering: Some(lingering), .. } = &mut *self else {
            return Poll::Ready(Ok(()));
        };
        let mut discarded = [0; 16 << 10];
        loop {
            if lingering.as_mut().poll(context).is_ready() {
                return Poll::Ready(Ok(()));
            }
            let mut into = ReadBuf::new(&mut discarded);
            match ready!(Pin::new(&mut *stream).poll_read(context, &mut into)) {
                Ok(()) if !into.filled().is_empty() => {}
                _ => return Poll::Ready(Ok(())),
            }
        }
    }
}
