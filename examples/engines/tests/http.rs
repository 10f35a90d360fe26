//! axum and reqwest, both ways.
#![allow(clippy::unwrap_used)] // a test may panic

mod support;

use std::io::ErrorKind;

use axum::Router;
use axum::routing::put;
use engines::http::{download, echo, upload};
use http::{HeaderMap, HeaderValue, StatusCode};
use http_body_util::BodyExt;
use reqwest::{Body, Client};
use ropewalk::{Pool, Rope};
use support::{lie_in, pattern, received};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

async fn start(pool: Pool) -> String {
    support::install_crypto();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/object", listener.local_addr().unwrap());
    let app = Router::new().route("/object", put(echo)).with_state(pool);
    tokio::spawn(async move { axum::serve(listener, app).await });
    url
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_both_ways() {
    let (pool, other) = (Pool::new().unwrap(), Pool::new().unwrap());
    let url = start(other.clone()).await;
    let client = Client::new();
    for len in [0, 1, 100_000, 9 << 20] {
        let bytes = pattern(len);
        let rope = received(&pool, &bytes);
        let response = upload(&client, &url, &rope).await.unwrap();
        assert_eq!(response.content_length(), Some(len as u64)); // a rope's length is known
        let (answer, trailers) = download(response, &pool, len).await.unwrap();
        assert!(answer == rope && trailers.is_none());
        let view = answer.finalize().unwrap();
        assert!(view == bytes);
    }
    assert_eq!(other.stats().bytes_copied, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_hold_both_ways() {
    let pool = Pool::new().unwrap();
    let url = start(pool.clone()).await;
    let client = Client::new();
    let long = Rope::from(vec![0; (64 << 20) + 1]);
    // The server refuses it by its length; the client may still be sending, and then sees the connection end.
    if let Ok(response) = upload(&client, &url, &long).await {
        assert_eq!(response.status(), StatusCode::PAYLOAD_TOO_LARGE);
    }
    let response = upload(&client, &url, &Rope::from(vec![0; 1000])).await.unwrap();
    assert_eq!(download(response, &pool, 999).await.unwrap_err().kind(), ErrorKind::QuotaExceeded);
}

#[tokio::test(flavor = "multi_thread")]
async fn trailers_both_ways() {
    let pool = Pool::new().unwrap();
    let url = start(pool.clone()).await;
    let trailers = HeaderMap::from_iter([("checksum".parse().unwrap(), HeaderValue::from_static("7"))]);
    let body = Body::wrap(received(&pool, &pattern(100_000)).with_trailers(trailers.clone()));
    // HTTP/2, where trailers need no announcement.
    let client = Client::builder().http2_prior_knowledge().build().unwrap();
    let response = client.put(&url).body(body).send().await.unwrap();
    let (rope, received) = download(response, &pool, usize::MAX).await.unwrap();
    assert_eq!((rope, received), (Rope::from(pattern(100_000)), Some(trailers)));
}

/// On a raw socket, where no client hides them.
#[tokio::test(flavor = "multi_thread")]
async fn trailers_leave_over_http_1_too() {
    let url = start(Pool::new().unwrap()).await;
    let address = url.strip_prefix("http://").unwrap().strip_suffix("/object").unwrap();
    for (te, expected) in [
        ("TE: trailers\r\n", "A\r\n0123456789\r\n0\r\nchecksum: 7\r\n\r\n"),
        ("", "A\r\n0123456789\r\n0\r\n\r\n"),
    ] {
        let mut peer = TcpStream::connect(address).await.unwrap();
        let request = format!(
            "PUT /object HTTP/1.1\r\nHost: here\r\nConnection: close\r\n{te}Transfer-Encoding: chunked\r\n\
             Trailer: checksum\r\n\r\na\r\n0123456789\r\n0\r\nchecksum: 7\r\n\r\n"
        );
        peer.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        peer.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.to_lowercase().contains("trailer: checksum"), "{head}");
        assert_eq!(body, expected);
    }
}

/// Each frame of these bodies is a part of the rope.
#[tokio::test]
async fn bodies_are_the_segments() {
    let rope = received(&Pool::new().unwrap(), &pattern(5 << 20));
    let bodies: [BoxBody; 2] = [
        axum::body::Body::new(rope.clone()).map_err(|error| error.to_string()).boxed_unsync(),
        Body::wrap(rope.clone()).map_err(|error| error.to_string()).boxed_unsync(),
    ];
    for mut body in bodies {
        let mut len = 0;
        while let Some(frame) = body.frame().await {
            let data = frame.unwrap().into_data().unwrap();
            assert!(lie_in(&rope, [&data]));
            len += data.len();
        }
        assert_eq!(len, rope.len());
    }
}

type BoxBody = http_body_util::combinators::UnsyncBoxBody<bytes::Bytes, String>;
