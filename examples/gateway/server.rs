//! Accepts connections, serves each in a task, and ends connections whose peer makes no progress.

use std::sync::Arc;
use std::time::Duration;

use axum::{Extension, Router};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use crate::Limits;
use crate::activity::Activity;
use crate::linger::LingeringStream;

/// Time until the next attempt when the system lets no connection be accepted, as for want of descriptors.
const RETRY: Duration = Duration::from_millis(100);

/// Serves until `stop` resolves; then answers the requests in progress.
pub(crate) async fn serve(
    listener: TcpListener,
    app: Router,
    limits: &Limits,
    stop: impl Future<Output = ()>,
) {
    let graceful = GracefulShutdown::new();
    tokio::select! {
        () = stop => {}
        () = accept(&listener, &app, limits, &graceful) => {}
    }
    drop(listener);
    info!(connections = graceful.count(), "shutting down");
    if timeout(limits.grace, graceful.shutdown()).await.is_err() {
        warn!(grace = ?limits.grace, "requests in progress are cut off");
    }
}

async fn accept(listener: &TcpListener, app: &Router, limits: &Limits, graceful: &GracefulShutdown) {
    let slots = Arc::new(Semaphore::new(limits.max_connections.get().into()));
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _peer)) => start(stream, slot, app, limits, graceful),
            Err(error) => {
                warn!(%error, "cannot accept now");
                sleep(RETRY).await;
            }
        }
    }
}

fn start(
    stream: TcpStream,
    slot: OwnedSemaphorePermit,
    app: &Router,
    limits: &Limits,
    graceful: &GracefulShutdown,
) {
    let activity = Arc::new(Activity::default());
    let service = TowerToHyperService::new(app.clone().layer(Extension(Arc::clone(&activity))));
    let sends = Arc::clone(&activity);
    let io = TokioIo::new(LingeringStream::new(stream, move || sends.note_sent()));
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().half_close(true);
    let connection = graceful.watch(builder.serve_connection(io, service).into_owned());
    let stall = limits.stall;
    tokio::spawn(async move {
        tokio::select! {
            ended = connection => if let Err(error) = ended {
                info!(error = &*error, "connection failed");
            },
            reason = activity.overdue(stall, stall) => info!(reason, "connection closed"),
        }
        drop(slot);
    });
}
