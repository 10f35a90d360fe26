//! A proxy between two TCP connections: the client's, and one that it opens to the server.

use std::future::Future;
use std::io::{self, Write};
use std::net::{Shutdown, TcpStream as StdStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread;

use anyhow::Context;
use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use nix::unistd::pipe2;
use ropewalk::{ReadRope, Rope, WriteRope};
use tokio::io::{AsyncWriteExt, Interest, copy_bidirectional, copy_bidirectional_with_sizes};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};

use super::{POOL, Workload};
use crate::case::{Case, Scale, Sizes, Variant};
use crate::traffic::{Traffic, batched, connect, expect_body, in_threads, joined, write_body};
use crate::way::{Round, Way};

pub(super) const WORKLOAD: Workload =
    Workload { name: "proxy", title: "A proxy between two TCP connections", cases, ways, traffic };

/// What a large buffer is, for those that take one.
const LARGE: usize = 256 << 10;

/// Bytes that one direction of a connection may pile up in a rope.
const PILE: usize = 1 << 20;

/// Bytes that an end reads at a time.
const READ: usize = 256 << 10;

fn cases(scale: &Scale) -> Vec<Case> {
    let (connections, variants) = if scale.quick {
        (&[1][..], &[Variant::OneWay][..])
    } else {
        (&[1, 32][..], &[Variant::OneWay, Variant::BothWays][..])
    };
    let mut cases = Vec::new();
    for &connections in connections {
        for &variant in variants {
            // One message is all that goes one way through a connection.
            let size = Sizes::Fixed(4 * scale.bytes / connections);
            cases.push(Case { messages: 1, ..scale.case("proxy", size, connections, variant) });
        }
    }
    cases
}

fn ways(_: &Case) -> Vec<Way> {
    vec![
        proxy("ropewalk", by_ropes),
        proxy("copy_bidirectional", |mut client, mut server| async move {
            copy_bidirectional(&mut client, &mut server).await.map(drop)
        }),
        proxy("copy_bidirectional, 256 KiB", |mut client, mut server| async move {
            copy_bidirectional_with_sizes(&mut client, &mut server, LARGE, LARGE).await.map(drop)
        }),
        proxy("splice, the limit", by_splice),
    ]
}

/// A way that is given the client's connection and the one to the server.
fn proxy<F>(
    name: &'static str,
    forward: impl Fn(TcpStream, TcpStream) -> F + Send + Sync + Copy + 'static,
) -> Way
where
    F: Future<Output = io::Result<()>> + Send + 'static,
{
    Way::per_connection(name, move |client, round: Arc<Round>| async move {
        let server = TcpStream::connect(round.peer).await?;
        server.set_nodelay(true)?;
        forward(client, server).await?;
        // The ends have checked what came through.
        round.passed(round.case.messages, round.case.lengths(0).sum());
        Ok(())
    })
}

async fn by_ropes(mut client: TcpStream, mut server: TcpStream) -> io::Result<()> {
    let ((from_client, to_client), (from_server, to_server)) = (client.split(), server.split());
    tokio::try_join!(forward_rope(from_client, to_server), forward_rope(from_server, to_client)).map(drop)
}

async fn forward_rope(from: ReadHalf<'_>, mut to: WriteHalf<'_>) -> io::Result<()> {
    let mut rope = Rope::in_pool(&POOL);
    while from.read_rope_up_to(&mut rope, PILE).await? > 0 {
        to.write_all_rope(&mut rope).await?;
    }
    to.shutdown().await
}

async fn by_splice(mut client: TcpStream, mut server: TcpStream) -> io::Result<()> {
    let ((from_client, to_client), (from_server, to_server)) = (client.split(), server.split());
    tokio::try_join!(forward_spliced(from_client, to_server), forward_spliced(from_server, to_client))
        .map(drop)
}

/// Through a pipe that is empty before each read, so that `EAGAIN` always speaks of a socket.
async fn forward_spliced(from: ReadHalf<'_>, mut to: WriteHalf<'_>) -> io::Result<()> {
    let (pipe, into_pipe) = pipe2(OFlag::O_NONBLOCK | OFlag::O_CLOEXEC)?;
    fcntl(&into_pipe, FcntlArg::F_SETPIPE_SZ(PILE as i32))?;
    let (source, sink): (&TcpStream, &TcpStream) = (from.as_ref(), to.as_ref());
    loop {
        let mut held = source.async_io(Interest::READABLE, || spliced(source, &into_pipe)).await?;
        if held == 0 {
            return to.shutdown().await;
        }
        while held > 0 {
            held -= sink.async_io(Interest::WRITABLE, || spliced(&pipe, sink)).await?;
        }
    }
}

fn spliced(from: impl AsFd, to: impl AsFd) -> io::Result<usize> {
    let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK;
    Ok(splice(from, None, to, None, PILE, flags)?)
}

/// The client's ends in a thread for each, and the server's.
fn traffic(traffic: &Traffic<'_>) -> anyhow::Result<()> {
    let connections = traffic.case.connections;
    let ends =
        |stream: StdStream, sends: usize, receives: usize| both_ends(traffic, &stream, sends, receives);
    let there = traffic.case.lengths(0).sum();
    let back = if traffic.case.variant == Variant::BothWays { there } else { 0 };
    let clients =
        (0..connections).map(|_| connect(traffic.target.address)).collect::<io::Result<Vec<_>>>()?;
    let servers = (0..connections).map(|_| Ok(traffic.listener.accept()?.0));
    thread::scope(|scope| {
        let clients = scope.spawn(|| in_threads(clients, |stream, _| ends(stream, there, back)));
        let servers = servers.collect::<io::Result<Vec<_>>>()?;
        in_threads(servers, |stream, _| ends(stream, back, there))?;
        joined(clients.join())
    })
}

fn both_ends(traffic: &Traffic<'_>, stream: &StdStream, sends: usize, receives: usize) -> anyhow::Result<()> {
    thread::scope(|scope| {
        let sender = scope.spawn(|| {
            let mut out = batched(stream);
            write_body(&mut out, 0, sends)?;
            out.flush()?;
            stream.shutdown(Shutdown::Write).context("the other end is gone")
        });
        expect_body(stream, 0, receives, READ, traffic.check, || {})?;
        joined(sender.join())
    })
}
