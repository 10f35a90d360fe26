//! How a server of the examples starts and is told to stop.

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::Context;
use socket2::SockRef;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

/// Most bytes that wait unsent in a socket; it takes more once half of them have left. Without this limit it takes some
/// MiB at once and no more until a third of them has left, so that a slow reader seems to read nothing for a long time.
const UNSENT_MAX: u32 = 128 << 10;

/// Listens on `address`, and writes the URL to standard output. Returns also a future that is ready on SIGTERM or SIGINT.
pub(crate) async fn listen(address: &str) -> anyhow::Result<(TcpListener, impl Future<Output = ()> + use<>)> {
    let listener = TcpListener::bind(address).await.with_context(|| {
        format!("cannot listen on {address}; choose an address of this machine and a free port")
    })?;
    // Its connections inherit it. Where a sandbox forbids it, slow readers are cut off sooner.
    let _ = SockRef::from(&listener).set_tcp_notsent_lowat(UNSENT_MAX);
    let (mut terminated, mut interrupted) =
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    writeln!(io::stdout(), "http://{}", listener.local_addr()?)?;
    let stop = async move {
        tokio::select! { _ = terminated.recv() => {} _ = interrupted.recv() => {} }
    };
    Ok((listener, stop))
}

/// Reports the error with which a program ends.
pub(crate) fn end(program: &str, result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{program}: {error:#}");
            ExitCode::FAILURE
        }
    }
}
