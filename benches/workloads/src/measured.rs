//! The process that is measured: it runs one way, a round whenever it is told to.

use std::io::{self, BufRead};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::runtime::{Builder, Runtime};

use crate::case::Case;
use crate::meter::{Meter, Used};
use crate::pattern::Check;
use crate::process::{self, Hello};
use crate::way::{Round, Way};
use crate::workloads::{self, tls};

/// A round that takes longer has stalled.
const LIMIT: Duration = Duration::from_secs(120);

/// The command line of a measured process.
#[derive(Args)]
pub(crate) struct Options {
    #[arg(long)]
    case: String,
    #[arg(long)]
    way: String,
    #[arg(long)]
    peer: SocketAddr,
    /// Threads of the runtime; with one it is tokio's current-thread runtime.
    #[arg(long, default_value_t = 1)]
    threads: usize,
}

/// What a round is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Purpose {
    /// Every byte is compared; nothing is reported.
    Verify,
    /// CPU time and page faults.
    Time,
    /// System calls.
    Calls,
    /// The driver samples the memory.
    Memory,
}

/// Serves rounds until standard input ends.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    process::raise_descriptor_limit()?;
    let case: Case = serde_json::from_str(&options.case)?;
    let ways = workloads::named(&case.workload)?.ways(&case);
    let way = ways.into_iter().find(|way| way.name == options.way).context("no such way")?;
    let runtime = runtime(options.threads)?;
    let listener = runtime.block_on(async { listen() })?;
    let certificate = (case.workload == "tls").then(|| tls::certificate().to_vec());
    process::say(&Hello { address: listener.local_addr()?, certificate })?;
    let listener = Arc::new(listener);
    for line in io::stdin().lock().lines() {
        let purpose: Purpose = serde_json::from_str(&line?)?;
        let round = round(&case, &way, &listener, options.peer, purpose);
        process::say(&runtime.block_on(round)?)?;
    }
    Ok(())
}

fn runtime(threads: usize) -> io::Result<Runtime> {
    let mut builder = if threads == 1 { Builder::new_current_thread() } else { Builder::new_multi_thread() };
    if threads > 1 {
        builder.worker_threads(threads);
    }
    builder.enable_all().build()
}

fn listen() -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
    socket.listen(4096)
}

async fn round(
    case: &Case,
    way: &Way,
    listener: &Arc<TcpListener>,
    peer: SocketAddr,
    purpose: Purpose,
) -> anyhow::Result<Used> {
    let streams = accept(listener, case.accepted_before()).await?;
    let check = if purpose == Purpose::Verify { Check::Full } else { Check::Sampled };
    let (messages, bytes) = (case.connections * case.messages, case.bytes());
    let meter = Meter::start(purpose == Purpose::Calls)?;
    let round = Arc::new(Round::new(case.clone(), check, Arc::clone(listener), peer, meter, streams));
    tokio::time::timeout(LIMIT, way.run(Arc::clone(&round))).await.context("the round stalled")??;
    let used = round.meter.stop()?;
    round.assert_complete(messages, bytes)?;
    Ok(used)
}

async fn accept(listener: &TcpListener, count: usize) -> io::Result<Vec<TcpStream>> {
    let mut streams = Vec::with_capacity(count);
    while streams.len() < count {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        streams.push(stream);
    }
    Ok(streams)
}
