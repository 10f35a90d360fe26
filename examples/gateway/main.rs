//! An HTTP gateway in front of an object store: a directory, or a bucket of a server with the S3 protocol.
//!
//! `PUT /name` receives a body of any size into ropes of one part each and stores them while the rest arrives. No part
//! is joined or copied: its payload is the rope's segments. `GET /name` sends an object, or a range of it; `HEAD` and
//! `DELETE` do what they say.
//!
//! ```sh
//! cargo run --release -p gateway -- file:///tmp/objects
//! curl -T big.file http://127.0.0.1:8080/big.file && curl -r 100-199 http://127.0.0.1:8080/big.file
//! ```
//!
//! `s3://bucket` takes its keys and its endpoint from the environment: `AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT` and so on.
//!
//! | what | happens |
//! |---|---|
//! | the store is slow | its gateway reads no more of a body than the parts in progress, so TCP slows the client down |
//! | a request to the store takes longer than `--patience` | 504; the upload is aborted in the store |
//! | the store is full | 507; the same |
//! | the store is gone, or refuses the gateway | 502; the same. Requests after it has come back succeed |
//! | a name is that of a directory, or below an object | 409, where the store is a directory |
//! | a name ends with `#` and digits | 400, where the store is a directory: it keeps them for uploads in progress |
//! | the pool has no room for a part within `--patience` | 503 with `Retry-After` |
//! | a client sends less than 64 KiB in `--stall` | 408, and its upload is aborted |
//! | a client disconnects | its upload is aborted |
//! | a client sends no request for `--stall`, or half of one, or reads less than 64 KiB of a response | the connection is closed |
//!
//! ```text
//! main.rs      the command line, and the store
//! server.rs    accepts connections, and ends them
//! gateway.rs   PUT, GET, HEAD, DELETE
//! parts.rs     a body into payloads of one part each
//! upload.rs    parts into the store
//! download.rs  the bytes of an object into a body
//! failure.rs   the status for each error
//! ```

#[path = "../http_upload/activity.rs"]
mod activity;
#[path = "../http_upload/conditions.rs"]
mod conditions;
mod download;
mod failure;
mod gateway;
#[path = "../http_upload/linger.rs"]
mod linger;
#[path = "../http_upload/numbers.rs"]
mod numbers;
mod parts;
#[path = "../http_upload/ranges.rs"]
mod ranges;
#[path = "../http_upload/rfc9112.rs"]
mod rfc9112;
mod server;
#[path = "../http_upload/start.rs"]
mod start;
mod upload;

use std::fs;
use std::io;
use std::num::NonZero;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use bytesize::ByteSize;
use clap::Parser;
use object_store::aws::AmazonS3Builder;
use object_store::local::LocalFileSystem;
use object_store::{BackoffConfig, ClientOptions, ObjectStore, RetryConfig};
use ropewalk::Pool;
use tokio::runtime::Runtime;
use url::Url;

use crate::gateway::Gateway;

/// An HTTP gateway in front of an object store.
///
/// The first line on standard output is its URL; a line per failure goes to standard error. SIGTERM and SIGINT end it
/// once the requests in progress are answered.
#[derive(Parser)]
#[command(name = "gateway")]
struct Options {
    /// Where objects are stored: file:///directory, or s3://bucket with the AWS_ variables of the environment
    #[arg(value_parser = url)]
    store: Url,
    /// Address to listen on; with port 0 the system chooses one
    #[arg(default_value = "127.0.0.1:8080")]
    address: String,
    /// Most bytes of all uploads and downloads together that are in memory
    #[arg(long, default_value = "512MiB", value_parser = numbers::memory)]
    capacity: ByteSize,
    /// Bytes of a part; parts of a body whose announced length needs more than 10 000 of them are larger
    #[arg(long, default_value = "16MiB", value_parser = numbers::memory)]
    part: ByteSize,
    #[command(flatten)]
    limits: Limits,
}

/// What peers and the store may do.
#[derive(Clone, Copy, Debug, clap::Args)]
struct Limits {
    /// Parts of one upload that are being stored at the same time
    #[arg(long, value_name = "N", default_value = "4")]
    parallel: NonZero<usize>,
    /// Most connections; further ones wait until one of them ends
    #[arg(long, value_name = "N", default_value = "1000")]
    max_connections: NonZero<u16>,
    /// Longest time for one request to the store, and for a part to wait for room
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = numbers::seconds)]
    patience: Duration,
    /// A body of which fewer than 64 KiB arrive in this time is refused; a connection without a request for so long, or
    /// with a response of which fewer than 64 KiB are read, is closed
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = numbers::seconds)]
    stall: Duration,
    /// Longest time for the requests in progress after SIGTERM or SIGINT
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = numbers::seconds)]
    grace: Duration,
}

fn main() -> ExitCode {
    start::end("gateway", begin(Options::parse()))
}

/// Runs, and ends without waiting for threads that wait for a file of the store, as on a file server that is gone.
fn begin(options: Options) -> anyhow::Result<()> {
    let runtime = Runtime::new()?;
    let ended = runtime.block_on(run(options));
    runtime.shutdown_background();
    ended
}

async fn run(options: Options) -> anyhow::Result<()> {
    let Options { store, address, capacity, part, limits } = options;
    tracing_subscriber::fmt().with_writer(io::stderr).with_ansi(false).init();
    // There is one already if this fails.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let store = open(&store, &limits).with_context(|| format!("cannot use {store} as a store"))?;
    let pool = Pool::options().capacity(capacity.0).create().context("cannot set memory aside")?;
    let app = Gateway::new(store, pool, part.0, limits)?.router();
    let (listener, stop) = start::listen(&address).await?;
    server::serve(listener, app, &limits, stop).await;
    Ok(())
}

/// Parses the URL of a store.
fn url(text: &str) -> Result<Url, String> {
    text.parse().map_err(|error| format!("{error}; write it as file:///directory or s3://bucket"))
}

fn open(url: &Url, limits: &Limits) -> anyhow::Result<Arc<dyn ObjectStore>> {
    match url.scheme() {
        "file" => {
            let Ok(directory) = url.to_file_path() else { bail!("write it as file:///directory") };
            fs::create_dir_all(&directory)?;
            fs::read_dir(&directory)?; // whether it may be read
            Ok(Arc::new(LocalFileSystem::new_with_prefix(directory)?))
        }
        "s3" => Ok(Arc::new(
            AmazonS3Builder::from_env()
                .with_url(url.as_str())
                .with_client_options(
                    ClientOptions::new()
                        .with_timeout(limits.patience)
                        .with_connect_timeout(limits.patience)
                        .with_allow_http(true),
                )
                .with_retry(RetryConfig {
                    max_retries: 2,
                    retry_timeout: limits.patience,
                    backoff: BackoffConfig::default(),
                })
                .build()
                .map_err(|error| anyhow!("{error}"))?, // its text includes its source's
        )),
        other => bail!("there are file: and s3: stores, not {other}:"),
    }
}
