//! Ropes through TLS, both ways: rustls over tokio, with a certificate made at run time.
//!
//! ```text
//! cargo run --release -p tls                     # a demonstration: server, client, hostile peers
//! cargo run --release -p tls -- serve --listen 127.0.0.1:8443 --certificate localhost.pem
//! ```
//!
//! TLS has no descriptor to `readv` from: `receive_from` decrypts straight into the pool's pages, and tokio's `write_buf`
//! encrypts straight out of the segments.
//!
//! ```text
//! main.rs    the command line, and the client that shows it
//! server.rs  an echo server with limits and deadlines
//! ```

#[path = "../http_upload/numbers.rs"]
mod numbers;
mod server;

use std::io::{self, ErrorKind, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::{fs, iter};

use anyhow::{Context, ensure};
use bytesize::ByteSize;
use clap::{Parser, Subcommand};
use ropewalk::{Pool, Rope};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::server::{Limits, Server};

/// An echo server over TLS. Without a command it demonstrates itself.
#[derive(Parser)]
#[command(name = "tls", args_conflicts_with_subcommands = true)]
struct Options {
    #[command(subcommand)]
    command: Option<Command>,
    /// Bytes that are sent and come back
    #[arg(long, value_name = "BYTES", default_value = "16MiB", value_parser = numbers::size)]
    size: ByteSize,
    #[command(flatten)]
    limits: Limits,
}

#[derive(Subcommand)]
enum Command {
    /// Serve until killed. The first line on standard output is `listening on ADDRESS`; each refusal is a
    /// line on standard error.
    Serve {
        /// Address and port; port 0 takes a free one
        #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0")]
        listen: SocketAddr,
        /// Write the certificate, for `localhost`, to this file
        #[arg(long, value_name = "FILE")]
        certificate: Option<PathBuf>,
        #[command(flatten)]
        limits: Limits,
    },
}

fn main() -> ExitCode {
    match run(Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tls: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn run(options: Options) -> anyhow::Result<()> {
    match options.command {
        Some(Command::Serve { listen, certificate, limits }) => {
            serve(listen, certificate.as_deref(), limits).await
        }
        None => demo(options.size, options.limits).await,
    }
}

async fn serve(listen: SocketAddr, file: Option<&Path>, limits: Limits) -> anyhow::Result<()> {
    let identity = Identity::new()?;
    if let Some(file) = file {
        fs::write(file, &identity.pem).with_context(|| format!("cannot write {}", file.display()))?;
    }
    let listener = bind(listen).await?;
    writeln!(io::stdout(), "listening on {}", listener.local_addr()?)?;
    Server::new(TlsAcceptor::from(Arc::new(identity.server()?)), limits)?.run(listener).await;
    Ok(())
}

async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    let listener = TcpListener::bind(address).await;
    listener.with_context(|| {
        format!("cannot listen on {address}; choose an address of this machine and a free port")
    })
}

/// A self-signed certificate for `localhost`.
struct Identity {
    certificate: CertificateDer<'static>,
    pem: String,
    key: Vec<u8>,
}

impl Identity {
    fn new() -> anyhow::Result<Identity> {
        let signed = rcgen::generate_simple_self_signed(vec!["localhost".into()])
            .context("cannot make a certificate")?;
        let key = signed.signing_key.serialize_der();
        Ok(Identity { certificate: signed.cert.der().clone(), pem: signed.cert.pem(), key })
    }

    fn server(&self) -> anyhow::Result<ServerConfig> {
        let key = PrivateKeyDer::try_from(self.key.clone()).map_err(anyhow::Error::msg)?;
        let config = ServerConfig::builder().with_no_client_auth();
        Ok(config.with_single_cert(vec![self.certificate.clone()], key)?)
    }

    /// For a client that trusts it.
    fn client(&self) -> anyhow::Result<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone())?;
        Ok(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth())
    }
}

/// Sends bytes there and back while hostile peers hang on to the same server.
async fn demo(size: ByteSize, limits: Limits) -> anyhow::Result<()> {
    ensure!(
        size <= limits.max_message && size.0 <= limits.capacity.0 / 2,
        "{size} are more than a message may have, or than half of the capacity; choose a smaller --size"
    );
    let identity = Identity::new()?;
    let listener = bind(SocketAddr::from(([127, 0, 0, 1], 0))).await?;
    let address = listener.local_addr()?;
    let server = Server::new(TlsAcceptor::from(Arc::new(identity.server()?)), limits)?;
    let pool = server.pool().clone();
    tokio::spawn(server.run(listener));
    let connector = TlsConnector::from(Arc::new(identity.client()?));

    let _silent = TcpStream::connect(address).await?;
    let mut no_tls = TcpStream::connect(address).await?;
    no_tls.write_all(b"GET / HTTP/1.1\r\n\r\n").await?;
    let mut half = connect(&connector, address).await?;
    half.write_all(b"and then nothing").await?;
    println!("three hostile peers: one sends nothing, one speaks no TLS, one stops in the middle");

    let back = echo(connect(&connector, address).await?, &payload(usize::try_from(size.0)?), &pool).await?;
    let view = back.finalize()?;
    println!(
        "{} bytes there and back; to make them one slice {} were copied",
        view.len(),
        view.copied_bytes()
    );
    Ok(())
}

async fn connect(connector: &TlsConnector, address: SocketAddr) -> anyhow::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(address).await?;
    Ok(connector.connect(ServerName::try_from("localhost")?, stream).await?)
}

fn payload(size: usize) -> Rope {
    let mut payload: Rope = iter::repeat_with(|| [7; 4096].to_vec()).take(size.div_ceil(4096)).collect();
    payload.truncate(size);
    payload
}

async fn echo(mut stream: TlsStream<TcpStream>, payload: &Rope, pool: &Pool) -> anyhow::Result<Rope> {
    stream.write_all_buf(&mut payload.cursor()).await?;
    stream.shutdown().await?;
    let mut back = Rope::in_pool(pool);
    while back.receive_from(&mut stream).await.or_else(end_of_stream)? > 0 {}
    ensure!(back == *payload, "what came back is not what was sent");
    Ok(back)
}

/// A stream that ends without `close_notify` was cut off.
fn end_of_stream(error: io::Error) -> anyhow::Result<usize> {
    let cut_off = error.kind() == ErrorKind::UnexpectedEof;
    Err(anyhow::Error::from(error).context(if cut_off {
        "the echo was cut off"
    } else {
        "cannot read the echo"
    }))
}
