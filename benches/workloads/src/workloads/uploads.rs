//! HTTP/1.1 uploads to hyper, each to one slice.

use std::future::Future;
use std::io::{BufReader, Write};
use std::net::TcpStream as StdStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, ensure};
use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing::put;
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::body::{Body, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use ropewalk::{Rope, View};
use tokio::net::TcpStream;

use super::{POOL, Workload};
use crate::case::{Case, Scale, Sizes, Variant};
use crate::traffic::{Traffic, batched, read_head, write_body, write_chunked};
use crate::way::{Connection, Payload, Round, Way};

pub(super) const WORKLOAD: Workload =
    Workload { name: "uploads", title: "hyper uploads, each to one slice", cases, ways, traffic };

const MAX: usize = 1 << 30;

fn cases(scale: &Scale) -> Vec<Case> {
    let scale = &scale.answered();
    let sizes: &[usize] = if scale.quick {
        &[1 << 10, 64 << 10, 16 << 20]
    } else {
        &[1 << 10, 4 << 10, 16 << 10, 64 << 10, 1 << 20, 16 << 20, 256 << 20]
    };
    let mut cases = Vec::new();
    for variant in [Variant::ContentLength, Variant::Chunked] {
        for connections in [1, 32] {
            let case = |&size| scale.case("uploads", Sizes::Fixed(size), connections, variant);
            cases.extend(sizes.iter().map(case));
        }
    }
    if scale.quick {
        // Each size with its length on one connection; one of them chunked, on many.
        let alone = |case: &Case| case.connections == 1 && case.variant == Variant::ContentLength;
        let many = |case: &Case| case.connections > 1 && case.variant == Variant::Chunked;
        cases.retain(|case| alone(case) || many(case) && case.sizes == Sizes::Fixed(64 << 10));
    }
    cases
}

fn ways(_: &Case) -> Vec<Way> {
    vec![
        Way::per_connection("ropewalk", |stream, round| serve(stream, round, to_view)),
        Way::per_connection("collect().to_bytes()", |stream, round| serve(stream, round, to_bytes)),
        Way::per_connection("Vec::with_capacity", |stream, round| serve(stream, round, to_vec)),
        Way::per_connection("axum Bytes", axum),
    ]
}

pub(super) async fn to_view<B>(body: B) -> anyhow::Result<View>
where
    B: Body<Error: std::error::Error + Send + Sync + 'static>,
{
    let mut rope = Rope::in_pool(&POOL);
    rope.set_limit(MAX);
    rope.receive_body(body).await?;
    Ok(rope.finalize()?)
}

async fn to_bytes(body: Incoming) -> anyhow::Result<Bytes> {
    Ok(body.collect().await?.to_bytes())
}

async fn to_vec(mut body: Incoming) -> anyhow::Result<Vec<u8>> {
    let len = usize::try_from(body.size_hint().exact().unwrap_or(0))?;
    let mut bytes = Vec::with_capacity(len.min(MAX));
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data() {
            bytes.extend_from_slice(&data);
        }
    }
    Ok(bytes)
}

async fn serve<F, T>(stream: TcpStream, round: Arc<Round>, take: fn(Incoming) -> F) -> anyhow::Result<()>
where
    F: Future<Output = anyhow::Result<T>> + Send,
    T: Payload,
{
    let connection = Mutex::new(round.connection());
    let service = service_fn(async |request: Request<Incoming>| {
        let body = take(request.into_body()).await?;
        locked(&connection).took(body)?;
        anyhow::Ok(Response::new(Empty::<Bytes>::new()))
    });
    http1::Builder::new().serve_connection(TokioIo::new(stream), service).await.context("a connection failed")
}

/// As `axum::serve` does, without its accept loop.
async fn axum(stream: TcpStream, round: Arc<Round>) -> anyhow::Result<()> {
    let connection = Arc::new(Mutex::new(round.connection()));
    let handler = async move |body: Bytes| match locked(&connection).took(body) {
        Ok(()) => StatusCode::OK,
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR,
    };
    let router = Router::<()>::new().route("/", put(handler)).layer(DefaultBodyLimit::disable());
    let service = TowerToHyperService::new(router);
    http1::Builder::new().serve_connection(TokioIo::new(stream), service).await.context("a connection failed")
}

/// Each connection has one request at a time, so this lock is never contended.
fn locked<T>(connection: &Mutex<Connection<T>>) -> MutexGuard<'_, Connection<T>> {
    connection.lock().unwrap_or_else(PoisonError::into_inner)
}

fn traffic(traffic: &Traffic<'_>) -> anyhow::Result<()> {
    traffic.on_each_connection(|| Ok(()), |stream, connection| upload(traffic.case, &stream, connection))
}

fn upload(case: &Case, stream: &StdStream, connection: usize) -> anyhow::Result<()> {
    let (mut out, mut answers) = (batched(stream), BufReader::new(stream));
    for (index, len) in case.lengths(connection).enumerate() {
        write!(out, "PUT / HTTP/1.1\r\nHost: localhost\r\n")?;
        if case.variant == Variant::ContentLength {
            write!(out, "Content-Length: {len}\r\n\r\n")?;
            write_body(&mut out, index, len)?;
        } else {
            write!(out, "Transfer-Encoding: chunked\r\n\r\n")?;
            write_chunked(&mut out, index, len)?;
        }
        out.flush()?;
        let answer = read_head(&mut answers)?.context("no answer")?;
        ensure!(answer.starts_with("HTTP/1.1 200"), "the answer is {answer:?}");
    }
    Ok(())
}
