//! Accepts connections, serves each in a task, and ends connections whose peer makes no progress.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use tower_http::add_extension::AddExtension;
use tracing::{info, warn};

use crate::Limits;
use crate::activity::Activity;
use crate::linger::LingeringStream;
use crate::metrics::Metrics;

/// Time until the next attempt when the system lets no connection be accepted, as for want of descriptors.
const RETRY: Duration = Duration::from_millis(100);

/// Largest request head, in bytes.
const HEAD_MAX: usize = 64 << 10;

/// Most requests at the same time on one HTTP/2 connection.
const STREAMS_MAX: u32 = 100;

/// Serves until `stop` resolves; then answers the requests in progress.
pub(crate) async fn serve(
    listener: TcpListener,
    app: Router,
    limits: &Limits,
    metrics: &Arc<Metrics>,
    stop: impl Future<Output = ()>,
) {
    let graceful = GracefulShutdown::new();
    tokio::select! {
        () = stop => {}
        () = accept(&listener, app, limits, metrics, &graceful) => {}
    }
    drop(listener);
    info!(connections = graceful.count(), "shutting down");
    if timeout(limits.grace, graceful.shutdown()).await.is_err() {
        warn!(grace = ?limits.grace, "requests in progress are cut off");
    }
}

async fn accept(
    listener: &TcpListener,
    app: Router,
    limits: &Limits,
    metrics: &Arc<Metrics>,
    graceful: &GracefulShutdown,
) {
    let slots = Arc::new(Semaphore::new(limits.max_connections.get().into()));
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, peer)) => start(stream, peer, slot, &app, limits, metrics, graceful),
            Err(error) if is_of_one_peer(&error) => {}
            Err(error) => {
                // Peers wait in the backlog; connections that end give descriptors back.
                metrics.accept_errors.inc();
                warn!(%error, "cannot accept now");
                sleep(RETRY).await;
            }
        }
    }
}

/// Whether a connection failed before it was accepted.
fn is_of_one_peer(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted)
}

fn start(
    stream: TcpStream,
    peer: SocketAddr,
    slot: OwnedSemaphorePermit,
    app: &Router,
    limits: &Limits,
    metrics: &Arc<Metrics>,
    graceful: &GracefulShutdown,
) {
    // Without it a small response may be late, and nothing else is lost.
    let _ = stream.set_nodelay(true);
    let activity = Arc::new(Activity::default());
    let service = TowerToHyperService::new(AddExtension::new(app.clone(), Arc::clone(&activity)));
    let sends = Arc::clone(&activity);
    let io = TokioIo::new(LingeringStream::new(stream, move || sends.note_sent()));
    let connection = graceful.watch(builder().serve_connection(io, service).into_owned());
    let (limits, metrics) = (limits.clone(), Arc::clone(metrics));
    tokio::spawn(async move {
        metrics.connections.inc();
        tokio::select! {
            ended = connection => if let Err(error) = ended {
                info!(%peer, error = &*error, "connection failed");
            },
            reason = activity.overdue(limits.idle, limits.stall) => {
                metrics.overdue.inc();
                info!(%peer, reason, "connection closed");
            }
        }
        metrics.connections.dec();
        drop(slot);
    });
}

fn builder() -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().half_close(true).max_buf_size(HEAD_MAX);
    builder.http2().max_concurrent_streams(STREAMS_MAX).max_header_list_size(HEAD_MAX as u32);
    builder
}
