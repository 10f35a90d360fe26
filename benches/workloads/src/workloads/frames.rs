//! Frames with their length in front, over tokio's TCP streams.

use std::io::{ErrorKind, Write};
use std::net::{Shutdown, TcpStream as StdStream};
use std::sync::Arc;

use bytes::{Buf, BytesMut};
use futures_util::StreamExt;
use ropewalk::{ReadRope, Rope, RopeCodec};
use tokio::io::{AsyncReadExt, BufReader};
use tokio::net::TcpStream;
use tokio_util::codec::{FramedRead, LengthDelimitedCodec};

use super::{POOL, Workload};
use crate::case::{Case, MAX_MIXED, Scale, Sizes, Variant};
use crate::traffic::{Traffic, batched, write_frame};
use crate::way::{Round, Way};

pub(super) const WORKLOAD: Workload =
    Workload { name: "frames", title: "Frames over tokio TCP", cases, ways, traffic };

const MAX: usize = MAX_MIXED;

/// What a good engineer gives a reader of frames as a buffer.
const READ: usize = 64 << 10;

/// What `FramedRead` takes if nothing is said.
const DEFAULT: usize = 8 << 10;

const HEADER: usize = 4;

const MIXED: Sizes = Sizes::LogNormal { median: 64 << 10, sigma: 1.5 };

fn cases(scale: &Scale) -> Vec<Case> {
    let case = |sizes, connections, variant| scale.case("frames", sizes, connections, variant);
    let fixed = |sizes: &[usize]| sizes.iter().map(|&size| Sizes::Fixed(size)).collect::<Vec<_>>();
    let (dropped, held) = (Variant::Dropped, Variant::Held(4));
    if scale.quick {
        let one = fixed(&[64, 64 << 10, 1 << 20]).into_iter().map(|sizes| case(sizes, 1, dropped));
        return one.chain([case(MIXED, 32, held)]).collect();
    }
    let sizes = [fixed(&[64, 1 << 10, 4 << 10, 64 << 10, 1 << 20, 16 << 20]), vec![MIXED]].concat();
    let mut cases = Vec::new();
    for connections in [1, 32, 256] {
        for variant in [dropped, held] {
            cases.extend(sizes.iter().map(|&sizes| case(sizes, connections, variant)));
        }
    }
    cases
}

fn ways(case: &Case) -> Vec<Way> {
    let mut ways = for_many_connections();
    ways.push(Way::per_connection("ropewalk, read_frame + finalize", read_frame_finalized));
    if case.variant.held() == 0 {
        ways.push(Way::per_connection("BufReader + read_exact, one buffer", read_exact_reused));
    }
    ways
}

pub(super) fn for_many_connections() -> Vec<Way> {
    vec![
        Way::per_connection("ropewalk, read_frame", read_frame),
        Way::per_connection("LengthDelimitedCodec", |stream, round| length_delimited(stream, round, DEFAULT)),
        Way::per_connection("LengthDelimitedCodec, 64 KiB", |stream, round| {
            length_delimited(stream, round, READ)
        }),
        Way::per_connection("BufReader + read_exact", read_exact),
        Way::per_connection("BytesMut by hand", by_hand),
    ]
}

async fn read_frame(stream: TcpStream, round: Arc<Round>) -> anyhow::Result<()> {
    let (codec, mut connection) = (RopeCodec::new(MAX), round.connection());
    let mut received = Rope::in_pool(&POOL);
    while let Some(frame) = stream.read_frame(&mut received, &codec).await? {
        connection.took(frame)?;
    }
    Ok(())
}

async fn read_frame_finalized(stream: TcpStream, round: Arc<Round>) -> anyhow::Result<()> {
    let (codec, mut connection) = (RopeCodec::new(MAX), round.connection());
    let mut received = Rope::in_pool(&POOL);
    while let Some(frame) = stream.read_frame(&mut received, &codec).await? {
        connection.took(frame.finalize()?)?;
    }
    Ok(())
}

async fn length_delimited(stream: TcpStream, round: Arc<Round>, capacity: usize) -> anyhow::Result<()> {
    let codec = LengthDelimitedCodec::builder().max_frame_length(MAX).new_codec();
    let mut frames = FramedRead::with_capacity(stream, codec, capacity);
    let mut connection = round.connection();
    while let Some(frame) = frames.next().await {
        connection.took(frame?)?;
    }
    Ok(())
}

async fn read_exact(stream: TcpStream, round: Arc<Round>) -> anyhow::Result<()> {
    let mut reader = BufReader::with_capacity(READ, stream);
    let mut connection = round.connection();
    while let Some(len) = length(&mut reader).await? {
        let mut frame = vec![0; len];
        reader.read_exact(&mut frame).await?;
        connection.took(frame)?;
    }
    Ok(())
}

/// The best there is if a frame is not needed any more when the next one comes.
async fn read_exact_reused(stream: TcpStream, round: Arc<Round>) -> anyhow::Result<()> {
    let mut reader = BufReader::with_capacity(READ, stream);
    let (mut connection, mut frame) = (round.connection(), Vec::new());
    while let Some(len) = length(&mut reader).await? {
        frame.resize(len, 0);
        reader.read_exact(&mut frame).await?;
        connection.saw(&frame)?;
    }
    Ok(())
}

async fn length(reader: &mut BufReader<TcpStream>) -> anyhow::Result<Option<usize>> {
    match reader.read_u32().await {
        Ok(len) => Ok(Some(checked(len)?)),
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(None), // missing bytes are found later
        Err(error) => Err(error.into()),
    }
}

fn checked(len: u32) -> anyhow::Result<usize> {
    anyhow::ensure!(len as usize <= MAX, "a frame of {len} bytes is longer than {MAX}");
    Ok(len as usize)
}

async fn by_hand(mut stream: TcpStream, round: Arc<Round>) -> anyhow::Result<()> {
    let (mut buffer, mut connection) = (BytesMut::with_capacity(READ), round.connection());
    loop {
        let missing = loop {
            let wanted = HEADER + if buffer.len() < HEADER { 0 } else { checked((&buffer[..]).get_u32())? };
            if buffer.len() < wanted || buffer.len() < HEADER {
                break wanted - buffer.len();
            }
            buffer.advance(HEADER);
            connection.took(buffer.split_to(wanted - HEADER).freeze())?;
        };
        if buffer.capacity() - buffer.len() < missing.max(4096) {
            buffer.reserve(missing.max(READ));
        }
        if stream.read_buf(&mut buffer).await? == 0 {
            return Ok(());
        }
    }
}

fn traffic(traffic: &Traffic<'_>) -> anyhow::Result<()> {
    traffic.on_each_connection(|| Ok(()), |stream, connection| send_frames(traffic.case, &stream, connection))
}

pub(super) fn send_frames(case: &Case, stream: &StdStream, connection: usize) -> anyhow::Result<()> {
    let mut out = batched(stream);
    for (index, len) in case.lengths(connection).enumerate() {
        write_frame(&mut out, index, len)?;
    }
    out.flush()?;
    Ok(stream.shutdown(Shutdown::Write)?)
}
