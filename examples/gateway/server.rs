//! Accepts connections, serves each in a task, and ends connections whose peer makes no progress.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use tokio_io_timeout::TimeoutStream;
use tracing::{info, warn};

use crate::Limits;
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
    let mut stream = TimeoutStream::new(LingeringStream::new(stream, || {}));
    stream.set_write_timeout(Some(limits.stall));
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(limits.stall);
    builder.http2().timer(TokioTimer::new()).keep_alive_interval(limits.stall);
    let service = TowerToHyperService::new(app.clone());
    let connection = builder.serve_connection(TokioIo::new(Box::pin(stream)), service).into_owned();
    let connection = graceful.watch(connection);
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            info!(error = &*error, "connection failed");
        }
        drop(slot);
    });
}
