//! The service on tokio when descriptors run out: a test by itself, since the limit is that of its process.
#![allow(clippy::unwrap_used)] // a test may panic

use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use recipes::echo::{Limits, echo, serve};
use ropewalk::Pool;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(20);

#[tokio::test]
async fn those_that_come_then_are_served_later() {
    let pool = Pool::new().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    // Each connection has both its ends here.
    setrlimit(Resource::RLIMIT_NOFILE, 60, hard).unwrap();
    let limits = Limits { body: 1 << 20, idle: Duration::from_millis(500), total: PATIENCE };
    tokio::spawn(async move {
        serve(listener, 1000, limits.total, |peer| echo(peer, pool.clone(), limits)).await;
    });

    let mut idle = Vec::new();
    let mut last = loop {
        match TcpStream::connect(address).await {
            Ok(client) => idle.push(client),
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(nix::libc::EMFILE));
                break idle.pop().unwrap();
            }
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    };
    last.write_all(b"in the end").await.unwrap();
    last.shutdown().await.unwrap();
    let mut back = String::new();
    timeout(PATIENCE, last.read_to_string(&mut back)).await.unwrap().unwrap();
    assert_eq!(back, "in the end");
    drop(idle);
}
