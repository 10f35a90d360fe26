//! One payload, received from a publisher and sent to many readers.

use std::io::Write;
use std::net::TcpStream as StdStream;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use ropewalk::{Cursor, ReadRope, Rope, WriteRope};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{POOL, Workload};
use crate::case::{Case, Scale, Sizes, Variant};
use crate::traffic::{Traffic, batched, connect, expect_body, joined, write_body};
use crate::way::{Round, Way, in_tasks};

pub(super) const WORKLOAD: Workload =
    Workload { name: "broadcast", title: "One payload to many readers", cases, ways, traffic };

const READERS: usize = 32;

/// Bytes that a reader takes at a time.
const READ: usize = 64 << 10;

/// How long a slow reader pauses after each of them.
const PAUSE: Duration = Duration::from_micros(500);

fn cases(scale: &Scale) -> Vec<Case> {
    let size = Sizes::Fixed(if scale.quick { 4 << 20 } else { 16 << 20 });
    let case = |variant| Case { messages: 1, ..scale.case("broadcast", size, READERS, variant) };
    vec![case(Variant::Fast), case(Variant::HalfSlow)]
}

fn ways(_: &Case) -> Vec<Way> {
    vec![Way::new("ropewalk, cursors", by_cursors), Way::new("Bytes clones + write_all", by_clones)]
}

async fn by_cursors(round: Arc<Round>) -> anyhow::Result<()> {
    let (publisher, readers) = publisher_and_readers(&round);
    let len = round.case.lengths(0).sum();
    let mut rope = Rope::in_pool(&POOL);
    rope.reserve(len)?;
    publisher.read_rope_exact(&mut rope, len).await?;
    let rope = Arc::new(rope);
    let send = |reader: TcpStream| (reader, Cursor::new(Arc::clone(&rope)));
    in_tasks(readers.into_iter().map(send).map(async |(mut reader, mut cursor)| {
        reader.write_all_rope(&mut cursor).await?;
        Ok(reader.shutdown().await?)
    }))
    .await?;
    sent(&round, len);
    Ok(())
}

async fn by_clones(round: Arc<Round>) -> anyhow::Result<()> {
    let (publisher, readers) = publisher_and_readers(&round);
    let len = round.case.lengths(0).sum();
    let (mut payload, mut publisher) = (Vec::with_capacity(len), publisher.take(len as u64));
    while publisher.read_buf(&mut payload).await? > 0 {}
    let payload = Bytes::from(payload);
    let send = |reader: TcpStream| (reader, payload.clone());
    in_tasks(readers.into_iter().map(send).map(async |(mut reader, payload)| {
        reader.write_all(&payload).await?;
        Ok(reader.shutdown().await?)
    }))
    .await?;
    sent(&round, len);
    Ok(())
}

/// The publisher is the first to connect.
fn publisher_and_readers(round: &Round) -> (TcpStream, Vec<TcpStream>) {
    let mut streams = round.streams();
    (streams.remove(0), streams)
}

/// The readers have checked it.
fn sent(round: &Round, len: usize) {
    round.passed(READERS, READERS * len);
}

fn traffic(traffic: &Traffic<'_>) -> anyhow::Result<()> {
    let publisher = connect(traffic.target.address)?;
    let len = traffic.case.lengths(0).sum();
    thread::scope(|scope| {
        // It sends while the readers connect: more than the socket takes.
        let publisher = scope.spawn(|| publish(publisher, len));
        traffic.on_each_connection(|| Ok(()), |stream, reader| read(traffic, stream, reader, len))?;
        joined(publisher.join())
    })
}

fn publish(stream: StdStream, len: usize) -> anyhow::Result<()> {
    let mut out = batched(stream);
    write_body(&mut out, 0, len)?;
    Ok(out.flush()?)
}

fn read(traffic: &Traffic<'_>, stream: StdStream, reader: usize, len: usize) -> anyhow::Result<()> {
    let slow = traffic.case.variant == Variant::HalfSlow && reader % 2 == 1;
    let pause = || {
        if slow {
            thread::sleep(PAUSE);
        }
    };
    expect_body(stream, 0, len, READ, traffic.check, pause)
}
