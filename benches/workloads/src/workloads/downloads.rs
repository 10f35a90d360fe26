//! HTTP/1.1 downloads by reqwest, each to one slice.

use std::future::Future;
use std::io::{BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Once};
use std::thread;

use anyhow::Context;
use bytes::Bytes;
use reqwest::{Client, Response};
use ropewalk::View;

use super::{Workload, uploads};
use crate::case::{Case, Scale, Sizes, Variant};
use crate::traffic::{Traffic, batched, number, read_head, write_body, write_chunked};
use crate::way::{Payload, Round, Way, in_tasks};

pub(super) const WORKLOAD: Workload =
    Workload { name: "downloads", title: "reqwest downloads, each to one slice", cases, ways, traffic };

fn cases(scale: &Scale) -> Vec<Case> {
    let scale = &scale.answered();
    let sizes: &[usize] = if scale.quick {
        &[64 << 10, 16 << 20]
    } else {
        &[1 << 10, 16 << 10, 64 << 10, 1 << 20, 16 << 20, 256 << 20]
    };
    let variants =
        if scale.quick { &[Variant::ContentLength][..] } else { &[Variant::ContentLength, Variant::Chunked] };
    let of_variant =
        |&variant| sizes.iter().map(move |&size| scale.case("downloads", Sizes::Fixed(size), 1, variant));
    variants.iter().flat_map(of_variant).collect()
}

fn ways(_: &Case) -> Vec<Way> {
    vec![
        Way::new("ropewalk", |round| fetch_all(round, to_view)),
        Way::new("bytes()", |round| fetch_all(round, to_bytes)),
        Way::new("chunk() into Vec", |round| fetch_all(round, to_vec)),
    ]
}

async fn to_view(response: Response) -> anyhow::Result<View> {
    uploads::to_view(reqwest::Body::from(response)).await
}

async fn to_bytes(response: Response) -> anyhow::Result<Bytes> {
    Ok(response.bytes().await?)
}

async fn to_vec(mut response: Response) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(usize::try_from(response.content_length().unwrap_or(0))?);
    while let Some(chunk) = response.chunk().await? {
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

/// A client of its own for each round, with connections that are kept for the round.
async fn fetch_all<F, T>(round: Arc<Round>, take: fn(Response) -> F) -> anyhow::Result<()>
where
    F: Future<Output = anyhow::Result<T>> + Send + 'static,
    T: Payload,
{
    let client = Client::builder().no_proxy().build()?;
    in_tasks((0..round.case.connections).map(|task| fetch(Arc::clone(&round), client.clone(), task, take)))
        .await
}

async fn fetch<F, T>(
    round: Arc<Round>,
    client: Client,
    task: usize,
    take: fn(Response) -> F,
) -> anyhow::Result<()>
where
    F: Future<Output = anyhow::Result<T>> + Send + 'static,
    T: Payload,
{
    let mut connection = round.connection();
    for (index, len) in round.case.lengths(task).enumerate() {
        let url = format!("http://{}/{len}/{index}", round.peer);
        let response = client.get(url).send().await?.error_for_status()?;
        connection.took(take(response).await?)?;
    }
    Ok(())
}

/// The first round starts the server; it serves all of them.
fn traffic(traffic: &Traffic<'_>) -> anyhow::Result<()> {
    static STARTED: Once = Once::new();
    let (listener, case) = (traffic.listener.try_clone()?, traffic.case.clone());
    STARTED.call_once(|| drop(thread::spawn(move || serve_all(&listener, &case))));
    Ok(())
}

fn serve_all(listener: &TcpListener, case: &Case) {
    for stream in listener.incoming().flatten() {
        let variant = case.variant;
        thread::spawn(move || {
            if let Err(error) = serve(&stream, variant) {
                eprintln!("downloads, the server: {error:#}");
            }
        });
    }
}

fn serve(stream: &TcpStream, variant: Variant) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    let (mut requests, mut out) = (BufReader::new(stream), batched(stream));
    while let Some(head) = read_head(&mut requests)? {
        let path = head.split(' ').nth(1).context("a request without a path")?;
        let mut parts = path.split('/').skip(1);
        let (len, index) = (number(&mut parts)?, number(&mut parts)?);
        if variant == Variant::ContentLength {
            write!(out, "HTTP/1.1 200 OK\r\nContent-Length: {len}\r\n\r\n")?;
            write_body(&mut out, index, len)?;
        } else {
            write!(out, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
            write_chunked(&mut out, index, len)?;
        }
        out.flush()?;
    }
    Ok(())
}
