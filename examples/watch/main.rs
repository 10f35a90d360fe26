//! What an operator would plot: the pool's statistics, every 200 ms, under load.
//!
//! Eight connections send messages of all sizes for three seconds; each is received, finalised, looked
//! at and dropped. With the feature `tracing` the pool's and the views' events are printed as well.
//!
//! ```sh
//! cargo run --release --features tokio --example watch
//! cargo run --release --features tokio,tracing --example watch
//! ```

use std::io;
use std::time::{Duration, Instant};

use ropewalk::{Pool, PoolStats, ReadRope, Rope, RopeCodec, WriteRope};
use tokio::net::UnixStream;
use tokio::task::JoinSet;

const CONNECTIONS: usize = 8;
const LARGEST: usize = 4 << 20;
/// What every connection may hold at a time, and some more: nobody waits for room that nobody gives.
const CAPACITY: u64 = (CONNECTIONS * (LARGEST + (2 << 20))) as u64;
const LOAD: Duration = Duration::from_secs(3);

#[tokio::main]
async fn main() -> io::Result<()> {
    tracing_subscriber::fmt().with_max_level(tracing::Level::DEBUG).init();

    let pool = Pool::options().capacity(CAPACITY).decay(Duration::from_millis(500)).create()?;
    let until = Instant::now() + LOAD;
    let mut load = JoinSet::new();
    for number in 0..CONNECTIONS {
        let (here, there) = UnixStream::pair()?;
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
