//! What an operator would plot: the pool's statistics, every 200 ms, under load.
//!
//! Connections send messages of all sizes for some seconds; each is received, finalised, looked at and
//! dropped. `--events` prints the pool's and the views' events (the feature `tracing`) as well.
//!
//! ```sh
//! cargo run --release -p watch
//! cargo run --release -p watch -- --events
//! ```

use std::io;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Parser;
use ropewalk::{Pool, PoolStats, ReadRope, Rope, RopeCodec, WriteRope};
use tokio::net::UnixStream;
use tokio::task::JoinSet;

/// Most bytes in a message.
const LARGEST: usize = 4 << 20;

/// What a connection may hold at a time, and some more: none waits for room that no other gives back.
const ROOM: u64 = LARGEST as u64 + (2 << 20);

/// Prints the pool's statistics under load, every 200 ms.
#[derive(Parser)]
#[command(name = "watch")]
struct Options {
    /// How long messages are sent
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..1 << 32))]
    seconds: u64,
    /// Connections that send messages
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..))]
    connections: u16,
    /// Print the events of the pool and of views as well
    #[arg(long)]
    events: bool,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("watch: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn run(options: &Options) -> anyhow::Result<()> {
    if options.events {
        tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).init();
    }
    let capacity = ROOM * u64::from(options.connections);
    let pool = Pool::options().capacity(capacity).decay(Duration::from_millis(500)).create()?;
    let until = Instant::now() + Duration::from_secs(options.seconds);
    let mut load = JoinSet::new();
    for number in 0..options.connections.into() {
        let (here, there) =
            UnixStream::pair().context("cannot connect; choose fewer --connections, or raise `ulimit -n`")?;
        load.spawn(send(here, number, until));
        load.spawn(receive(there, pool.clone()));
    }
    println!("{HEADINGS}");
    while Instant::now() < until + Duration::from_secs(1) {
        tokio::time::sleep(Duration::from_millis(200)).await;
        print(&pool.stats());
    }
    load.join_all().await.into_iter().collect::<io::Result<()>>()?;
    println!("{} bytes trimmed", pool.trim()?);
    print(&pool.stats());
    Ok(())
}

const HEADINGS: &str =
    "in use KiB  warm KiB  peak KiB  waiting  extents  maps  mapped KiB  copied KiB  fallbacks";

fn print(stats: &PoolStats) {
    println!(
        "{:10}  {:8}  {:8}  {:7}  {:7}  {:4}  {:10}  {:10}  {:9}",
        stats.in_use >> 10,
        stats.warm >> 10,
        stats.peak >> 10,
        stats.waiting,
        stats.extents,
        stats.maps,
        stats.bytes_mapped >> 10,
        stats.bytes_copied >> 10,
        stats.fallbacks,
    );
}

/// Frames of sizes that look random, from a byte to a few MiB.
async fn send(to: UnixStream, number: usize, until: Instant) -> io::Result<()> {
    let codec = RopeCodec::new(LARGEST);
    let payload = vec![number as u8; LARGEST];
    let payload = Rope::from(payload);
    let mut size = number + 1;
    while Instant::now() < until {
        size = size * 7919 % LARGEST;
        to.write_all_rope(&mut codec.wrap(payload.slice(..size))?).await?;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

/// Receives frames until the stream ends, and looks at each.
async fn receive(from: UnixStream, pool: Pool) -> io::Result<()> {
    let codec = RopeCodec::new(LARGEST);
    let mut rope = Rope::in_pool(&pool);
    while let Some(frame) = from.when_room().read_frame(&mut rope, &codec).await? {
        let view = frame.finalize()?;
        std::hint::black_box(view.iter().fold(0, |sum: u8, byte| sum.wrapping_add(*byte)));
    }
    Ok(())
}
