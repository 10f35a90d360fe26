//! Uploads through rustls, each to one slice.

use std::future::Future;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream as StdStream};
use std::sync::{Arc, LazyLock};

use anyhow::{Context, ensure};
use bytes::{BufMut, BytesMut};
use rcgen::CertifiedKey;
use ropewalk::{Rope, View};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, StreamOwned};
use tokio_rustls::server::TlsStream;

use super::{POOL, Workload};
use crate::case::{Case, Scale, Sizes, Variant};
use crate::traffic::{Traffic, batched, connect, in_threads, write_body, write_frame};
use crate::way::{Payload, Round, Way, in_tasks};

pub(super) const WORKLOAD: Workload =
    Workload { name: "tls", title: "rustls uploads, each to one slice", cases, ways, traffic };

type Stream = TlsStream<TcpStream>;

/// Spare room before a read of an upload whose length is not known.
const READ: usize = 64 << 10;

const MAX: usize = 1 << 30;

fn cases(scale: &Scale) -> Vec<Case> {
    let case = |size, connections, variant| scale.case("tls", Sizes::Fixed(size), connections, variant);
    if scale.quick {
        return vec![case(1 << 20, 1, Variant::Announced), case(4 << 20, 1, Variant::UntilEnd)];
    }
    let mut cases = Vec::new();
    for variant in [Variant::Announced, Variant::UntilEnd] {
        cases.extend([64 << 10, 1 << 20, 16 << 20].map(|size| case(size, 1, variant)));
        cases.push(case(1 << 20, 32, variant));
    }
    cases
}

fn ways(case: &Case) -> Vec<Way> {
    vec![
        way("ropewalk", case, to_view),
        way("BytesMut, read_buf", case, to_bytes_mut),
        way("Vec, read_to_end", case, to_vec),
    ]
}

/// A way that reads one upload, of a length that may be known, and returns the stream.
fn way<F, T>(name: &'static str, case: &Case, take: fn(Stream, Option<usize>) -> F) -> Way
where
    F: Future<Output = io::Result<(Stream, T)>> + Send + 'static,
    T: Payload,
{
    if case.variant == Variant::Announced {
        return Way::per_connection(name, move |stream, round| many(stream, round, take));
    }
    Way::new(name, move |round| {
        let tasks = 0..round.case.connections;
        in_tasks(tasks.map(move |_| one_after_another(Arc::clone(&round), take)))
    })
}

/// Many uploads on one connection, each after its length.
async fn many<F, T>(
    stream: TcpStream,
    round: Arc<Round>,
    take: fn(Stream, Option<usize>) -> F,
) -> anyhow::Result<()>
where
    F: Future<Output = io::Result<(Stream, T)>> + Send,
    T: Payload,
{
    let mut connection = round.connection();
    let mut stream = ACCEPTOR.accept(stream).await?;
    loop {
        let len = match stream.read_u32().await {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(()),
            len => len? as usize,
        };
        ensure!(len <= MAX, "an upload of {len} bytes is longer than {MAX}");
        let (same, upload) = take(stream, Some(len)).await?;
        stream = same;
        connection.took(upload)?;
    }
}

/// A connection for each upload.
async fn one_after_another<F, T>(
    round: Arc<Round>,
    take: fn(Stream, Option<usize>) -> F,
) -> anyhow::Result<()>
where
    F: Future<Output = io::Result<(Stream, T)>> + Send,
    T: Payload,
{
    for _ in 0..round.case.messages {
        let (stream, _) = round.listener.accept().await?;
        stream.set_nodelay(true)?;
        let (_, upload) = take(ACCEPTOR.accept(stream).await?, None).await?;
        round.connection().took(upload)?;
    }
    Ok(())
}

async fn to_view(mut stream: Stream, len: Option<usize>) -> io::Result<(Stream, View)> {
    let mut rope = Rope::in_pool(&POOL);
    if let Some(len) = len {
        rope.reserve(len)?;
        while rope.len() < len {
            let missing = len - rope.len();
            received(stream.read_buf(&mut (&mut rope).limit(missing)).await?)?;
        }
    } else {
        while stream.read_buf(&mut rope).await? > 0 {}
    }
    Ok((stream, rope.finalize()?))
}

async fn to_bytes_mut(mut stream: Stream, len: Option<usize>) -> io::Result<(Stream, BytesMut)> {
    let mut bytes = BytesMut::with_capacity(len.unwrap_or(READ));
    if let Some(len) = len {
        while bytes.len() < len {
            let missing = len - bytes.len();
            received(stream.read_buf(&mut (&mut bytes).limit(missing)).await?)?;
        }
    } else {
        while stream.read_buf(&mut bytes).await? > 0 {
            bytes.reserve(READ);
        }
    }
    Ok((stream, bytes))
}

async fn to_vec(mut stream: Stream, len: Option<usize>) -> io::Result<(Stream, Vec<u8>)> {
    let mut bytes = Vec::with_capacity(len.unwrap_or(READ));
    (&mut stream).take(len.unwrap_or(MAX) as u64).read_to_end(&mut bytes).await?;
    Ok((stream, bytes))
}

fn received(count: usize) -> io::Result<()> {
    if count == 0 { Err(ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
}

static CERTIFIED: LazyLock<CertifiedKey<rcgen::KeyPair>> = LazyLock::new(|| {
    rcgen::generate_simple_self_signed(vec!["localhost".into()]).expect("localhost is a valid name")
});

static ACCEPTOR: LazyLock<TlsAcceptor> = LazyLock::new(|| {
    let key = PrivateKeyDer::try_from(CERTIFIED.signing_key.serialize_der()).expect("rcgen makes valid keys");
    let certificates = vec![CERTIFIED.cert.der().clone()];
    let config = ServerConfig::builder().with_no_client_auth().with_single_cert(certificates, key);
    TlsAcceptor::from(Arc::new(config.expect("the key is the certificate's")))
});

/// The certificate of this process.
pub(crate) fn certificate() -> &'static [u8] {
    CERTIFIED.cert.der()
}

fn traffic(traffic: &Traffic<'_>) -> anyhow::Result<()> {
    let certificate = traffic.target.certificate.clone().context("the server sent no certificate")?;
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(certificate))?;
    let config = Arc::new(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth());
    let connections = (0..traffic.case.connections).collect();
    in_threads(connections, |connection: usize, _| upload_all(traffic, connection, &config))
}

fn upload_all(traffic: &Traffic<'_>, connection: usize, config: &Arc<ClientConfig>) -> anyhow::Result<()> {
    let session = || anyhow::Ok(Session::new(connect(traffic.target.address)?, config)?);
    if traffic.case.variant == Variant::Announced {
        return session()?.send(|out| {
            let mut lengths = traffic.case.lengths(connection).enumerate();
            lengths.try_for_each(|(index, len)| write_frame(out, index, len))
        });
    }
    for len in traffic.case.lengths(connection) {
        session()?.send(|out| Ok(write_body(out, 0, len)?))?;
    }
    Ok(())
}

struct Session(StreamOwned<ClientConnection, StdStream>);

impl Session {
    fn new(stream: StdStream, config: &Arc<ClientConfig>) -> anyhow::Result<Session> {
        let name = ServerName::try_from("localhost")?;
        Ok(Session(StreamOwned::new(ClientConnection::new(Arc::clone(config), name)?, stream)))
    }

    /// Sends what `write` writes, then ends the stream in the way of TLS, and waits until the server has
    /// closed it.
    fn send(mut self, write: impl FnOnce(&mut dyn Write) -> anyhow::Result<()>) -> anyhow::Result<()> {
        let mut out = batched(&mut self.0);
        write(&mut out)?;
        out.flush()?;
        drop(out);
        self.0.conn.send_close_notify();
        self.0.flush()?;
        self.0.sock.shutdown(Shutdown::Write)?;
        // Session tickets that were not read would turn the close into a reset.
        self.0.sock.read_to_end(&mut Vec::new())?;
        Ok(())
    }
}
