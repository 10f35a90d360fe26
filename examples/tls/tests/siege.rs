//! The server besieged by 190 hostile peers while ten others are served.
#![allow(clippy::unwrap_used)] // a test may panic

#[path = "../../recipes/tests/support/siege.rs"]
mod siege;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use siege::{Server, pattern};
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

const MAX: usize = 1 << 20;

/// Sends `content` through TLS, and expects it back.
fn echo(address: SocketAddr, certificate: &Path, content: &[u8]) -> std::io::Result<()> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(certificate).unwrap()).unwrap();
    let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let name = ServerName::try_from("localhost").unwrap();
    let stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(siege::PATIENCE))?;
    let mut client = StreamOwned::new(ClientConnection::new(Arc::new(config), name).unwrap(), stream);
    client.write_all(content)?;
    client.conn.send_close_notify();
    client.flush()?;
    let mut back = Vec::new();
    client.read_to_end(&mut back)?;
    assert!(back == content, "{} of {} bytes came back", back.len(), content.len());
    Ok(())
}

#[test]
fn others_are_served() {
    let files = tempfile::tempdir().unwrap();
    let certificate = files.path().join("certificate.pem");
    let options = format!(
        "serve --certificate {} --max-message {MAX} --capacity 64MiB --max-connections 20 --idle 1",
        certificate.display()
    );
    let server = Server::start(env!("CARGO_BIN_EXE_tls"), 80, &options);
    let openings = [
        vec![],
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        vec![0x16, 3],
        vec![0x16, 3, 1, 0x40, 0],
        [&[0x16, 3, 1, 0x40, 0], &pattern(9, 10_000)[..]].concat(),
        [&[0x16, 3, 1, 0xFF, 0xFF], &pattern(9, 100_000)[..]].concat(),
        vec![0x15, 3, 3, 0, 2, 2, 40],
        vec![0; 100_000],
    ];
    server.besiege(&openings, |address, seed| {
        echo(address, &certificate, &pattern(seed, 300_000 + seed as usize))
    });
    assert!(server.peak() <= 200 << 10, "{} KiB", server.peak());
}
