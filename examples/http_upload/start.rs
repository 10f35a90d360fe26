//! How a server of the examples starts and is told to stop.

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::Context;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

/// Listens on `address`, and writes the URL to standard output. Returns also a future that is ready on SIGTERM or SIGINT.
pub(crate) async fn listen(address: &str) -> anyhow::Result<(TcpListener, impl Future<Output = ()> + use<>)> {
    let listener = TcpListener::bind(address).await.with_context(|| {
        format!("cannot listen on {address}; choose an address of this machine and a free port")
    })?;
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
