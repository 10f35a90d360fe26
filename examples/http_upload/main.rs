//! An HTTP server that keeps uploads in memory and gives them back.
//!
//! `PUT /name` receives a body of any size into a rope, makes it contiguous without a join, and answers
//! with its SHA-256. `GET /name` sends it by gather writes, whole or in ranges. `DELETE /name` frees it.
//! `GET /metrics` has figures for Prometheus. All uploads together take no more memory than the pool has; with
//! `--spill DIRECTORY` what is more goes to a file there.
//!
//! ```sh
//! cargo run --release -p http_upload
//! curl -T some.file http://127.0.0.1:8080/some.file
//! curl -r 100-199 http://127.0.0.1:8080/some.file
//! ```
//!
//! | peer | what bounds it |
//! |---|---|
//! | opens connections | `--max-connections`; more wait in the listen backlog, also when descriptors run out |
//! | sends no request, or half of a head | `--idle` |
//! | announces a body and sends none, or a byte now and then | 64 KiB in each `--stall`; it holds only what it has sent |
//! | uploads more than there is room for | waits for `--patience`, then 503 with `Retry-After` |
//! | does not read its response | 64 KiB in each `--stall`, then `--idle` for the rest |
//!
//! ```text
//! main.rs        the command line
//! start.rs       listening, and signals
//! server.rs      accepts connections, and ends them
//! activity.rs    whether a connection's peer makes progress
//! objects.rs     PUT, GET, HEAD, DELETE
//! upload.rs      a body into a rope, with its deadlines
//! conditions.rs  conditional requests
//! ranges.rs      which bytes a `Range` field asks for (pure)
//! rfc9112.rs     hosts and transfer codings
//! content.rs     response bodies
//! linger.rs      reads on after a refusal
//! store.rs       the objects
//! metrics.rs     `/metrics`
//! ```

mod activity;
mod conditions;
mod content;
mod linger;
mod metrics;
mod numbers;
mod objects;
mod ranges;
mod rfc9112;
mod server;
mod start;
mod store;
mod upload;

use std::io;
use std::num::NonZero;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use bytesize::ByteSize;
use clap::{Parser, ValueEnum};
use ropewalk::Pool;

use crate::metrics::Metrics;
use crate::objects::Objects;

/// An HTTP server that keeps uploads in memory and gives them back.
///
/// The first line on standard output is its URL; a line per request goes to standard error. SIGTERM and
/// SIGINT end it once the requests in progress are answered.
#[derive(Parser)]
#[command(name = "http_upload")]
struct Options {
    /// Address to listen on; with port 0 the system chooses one
    #[arg(default_value = "127.0.0.1:8080")]
    address: String,
    /// Most bytes in one upload
    #[arg(default_value = "2GiB", value_parser = numbers::size)]
    limit: ByteSize,
    /// Most bytes in all uploads together
    #[arg(default_value = "4GiB", value_parser = numbers::memory)]
    capacity: ByteSize,
    /// Keep what is more than the capacity in a file without a name in this directory
    #[arg(long, value_name = "DIRECTORY")]
    spill: Option<PathBuf>,
    /// Most bytes in that file
    #[arg(long, value_name = "BYTES", default_value = "64GiB", requires = "spill", value_parser = numbers::disk)]
    spill_capacity: ByteSize,
    #[command(flatten)]
    limits: Limits,
    /// How log lines are written
    #[arg(long, value_enum, default_value_t = Format::Text)]
    log: Format,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    Text,
    Json,
}

/// What peers may do.
#[derive(Clone, Debug, clap::Args)]
struct Limits {
    /// Most connections; further ones wait until one of them ends
    #[arg(long, value_name = "N", default_value = "1000")]
    max_connections: NonZero<u16>,
    /// Most objects
    #[arg(long, value_name = "N", default_value = "10000")]
    max_objects: NonZero<u32>,
    /// Longest time without a request, and for the head of one
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = numbers::seconds)]
    idle: Duration,
    /// A body or a response of which fewer than 64 KiB move in this time is cut off
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = numbers::seconds)]
    stall: Duration,
    /// Longest time that an upload waits for room
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = numbers::seconds)]
    patience: Duration,
    /// Longest time for the requests in progress after SIGTERM or SIGINT
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = numbers::seconds)]
    grace: Duration,
}

fn main() -> ExitCode {
    start::end("http_upload", run(Options::parse()))
}

#[tokio::main]
async fn run(options: Options) -> anyhow::Result<()> {
    let Options { address, limit, capacity, spill, spill_capacity, limits, log } = options;
    log_to_stderr(log);
    let (mut pool, mut most) = (Pool::options().capacity(capacity.0), capacity.0);
    if let Some(directory) = spill {
        pool = pool.spill(directory, spill_capacity.0);
        most = most.saturating_add(spill_capacity.0);
    }
    let pool = pool.create().context("cannot set memory aside")?;
    let metrics = Arc::new(Metrics::new(pool.clone()));
    let most = usize::try_from(limit.0.min(most)).unwrap_or(usize::MAX);
    let objects = Objects::new(pool, most, limits.clone(), Arc::clone(&metrics));
    let (listener, stop) = start::listen(&address).await?;
    server::serve(listener, objects.router(), &limits, &metrics, stop).await;
    Ok(())
}

fn log_to_stderr(format: Format) {
    let lines = tracing_subscriber::fmt().with_writer(io::stderr).with_ansi(false);
    match format {
        Format::Text => lines.init(),
        Format::Json => lines.json().init(),
    }
}
