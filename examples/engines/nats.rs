//! NATS.

use std::io::{self, ErrorKind};

use async_nats::{Client, HeaderMap, Subscriber};
use bytes::Bytes;
use futures_util::StreamExt;
use ropewalk::Rope;

/// Bytes that the header of a message may have; the server's limit includes it.
const HEADER: usize = 64;

/// Publishes a rope in messages of at most the server's limit, each of which says how many bytes follow. A part that is
/// contiguous is not copied, others are once.
pub async fn publish(client: &Client, subject: &str, mut rope: Rope) -> io::Result<()> {
    let max = client.server_info().max_payload - HEADER;
    loop {
        let part = rope.split_to(max.min(rope.len()));
        let mut headers = HeaderMap::new();
        headers.insert("Left", rope.len().to_string());
        client
            .publish_with_headers(subject.to_owned(), headers, Bytes::from(part))
            .await
            .map_err(io::Error::other)?;
        if rope.is_empty() {
            return client.flush().await.map_err(io::Error::other);
        }
    }
}

/// Receives such messages, at most `max` bytes. Keeps what the client has received: no copy.
pub async fn receive(messages: &mut Subscriber, max: usize) -> io::Result<Rope> {
    let mut rope = Rope::new();
    while let Some(message) = messages.next().await {
        if message.payload.len() > max - rope.len() {
            return Err(ErrorKind::QuotaExceeded.into());
        }
        rope.push(message.payload);
        let left = message.headers.as_ref().and_then(|headers| headers.get("Left"));
        match left.map(|left| left.as_str()) {
            Some("0") => return Ok(rope),
            Some(_) => {}
            None => return Err(ErrorKind::InvalidData.into()),
        }
    }
    Err(ErrorKind::UnexpectedEof.into())
}
