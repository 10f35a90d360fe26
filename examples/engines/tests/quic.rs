//! quinn between two endpoints on loopback.
#![allow(clippy::unwrap_used)] // a test may panic

mod support;

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use engines::quic::{receive, send};
use quinn::{ClientConfig, Connection, Endpoint, ServerConfig};
use ropewalk::{Pool, Rope};
use rustls::RootCertStore;
use rustls::pki_types::PrivateKeyDer;
use support::{pattern, received};

/// Both ends of a connection, and the endpoints, which must live as long.
async fn connect() -> (Connection, Connection, [Endpoint; 2]) {
    support::install_crypto();
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    let certificate = made.cert.der().clone();
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone()).unwrap();
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let server =
        Endpoint::server(ServerConfig::with_single_cert(vec![certificate], key).unwrap(), any).unwrap();
    let mut client = Endpoint::client(any).unwrap();
    client.set_default_client_config(ClientConfig::with_root_certificates(Arc::new(roots)).unwrap());
    let address = server.local_addr().unwrap();
    let (here, there) =
        tokio::join!(async { client.connect(address, "localhost").unwrap().await.unwrap() }, async {
            server.accept().await.unwrap().await.unwrap()
        });
    (here, there, [client, server])
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_both_ways() {
    let pool = Pool::new().unwrap();
    let (here, there, _endpoints) = connect().await;
    let echo = tokio::spawn({
        let pool = pool.clone();
        async move {
            let (mut out, mut inward) = there.accept_bi().await.unwrap();
            let rope = receive(&mut inward, &pool, usize::MAX).await.unwrap();
            send(&mut out, rope).await.unwrap();
            out.finish().unwrap();
            let _ = out.stopped().await;
        }
    });
    let bytes = pattern(9 << 20);
    let mut rope = received(&pool, &bytes);
    rope.push_front("in front");
    let (mut out, mut inward) = here.open_bi().await.unwrap();
    send(&mut out, rope).await.unwrap();
    out.finish().unwrap();
    let answer = receive(&mut inward, &pool, bytes.len() + 8).await.unwrap();
    assert!(answer.starts_with(b"in front") && answer.slice(8..) == bytes);
    let view = answer.finalize().unwrap();
    assert!(view[8..] == bytes[..]);
    echo.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_beyond_the_limit_is_an_error() {
    let pool = Pool::new().unwrap();
    let (here, there, _endpoints) = connect().await;
    let (mut out, _inward) = here.open_bi().await.unwrap();
    send(&mut out, Rope::from(pattern(2000))).await.unwrap();
    out.finish().unwrap();
    let (_out, mut inward) = there.accept_bi().await.unwrap();
    let error = receive(&mut inward, &pool, 1999).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::QuotaExceeded);
}
