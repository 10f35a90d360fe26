//! Ropes through TLS, both ways: rustls over tokio, with a certificate made at run time.
//!
//! TLS has no descriptor to `readv` from, so ropes go through `Buf` and `BufMut`: tokio's `read_buf`
//! decrypts straight into the pool's pages, `write_all_buf` encrypts straight out of the segments.
//!
//! ```sh
//! cargo run --features tokio --example tls
//! ```

use std::error::Error;
use std::sync::Arc;

use ropewalk::{Pool, Rope};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector};

const SIZE: usize = 16 << 20;

type Failure = Box<dyn Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let (server, client) = configurations()?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let pool = Pool::new()?;
    let echo = tokio::spawn(echo(listener, TlsAcceptor::from(Arc::new(server)), pool.clone()));

    let stream = TcpStream::connect(address).await?;
    let connector = TlsConnector::from(Arc::new(client));
    let mut stream = connector.connect(ServerName::try_from("localhost")?, stream).await?;

    let payload: Rope = (0..SIZE / 4096).map(|i| vec![i as u8; 4096]).collect();
    stream.write_all_buf(&mut payload.cursor()).await?;
    stream.shutdown().await?;
    let mut back = Rope::in_pool(&pool);
    while stream.read_buf(&mut back).await? > 0 {}
    echo.await??;

    if back != payload {
        return Err("what came back is not what was sent".into());
    }
    let view = back.finalize()?;
    println!(
        "{} bytes there and back; to make them one slice {} were copied",
        view.len(),
        view.copied_bytes()
    );
    Ok(())
}

/// Sends back what one client sends, once all of it is there.
async fn echo(listener: TcpListener, acceptor: TlsAcceptor, pool: Pool) -> Result<(), Failure> {
    let mut stream = acceptor.accept(listener.accept().await?.0).await?;
    let mut rope = Rope::in_pool(&pool);
    while stream.read_buf(&mut rope).await? > 0 {}
    stream.write_all_buf(&mut rope).await?;
    stream.shutdown().await?;
    Ok(())
}

/// For a server with a self-signed certificate, and for a client who trusts it.
fn configurations() -> Result<(ServerConfig, ClientConfig), Failure> {
    let signed = rcgen::generate_simple_self_signed(vec!["localhost".into()])?;
    let certificate = signed.cert.der().clone();
    let key = PrivateKeyDer::try_from(signed.signing_key.serialize_der())?;
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone())?;
    let server = ServerConfig::builder().with_no_client_auth().with_single_cert(vec![certificate], key)?;
    let client = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    Ok((server, client))
}
