//! The recipes on tokio, with peers that do less or more than they should.
#![allow(clippy::unwrap_used)] // a test may panic

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body::{Body, Frame, SizeHint};
use recipes::echo::{Limits, echo, serve};
use recipes::http::upload;
use recipes::room::rope_with_room;
use ropewalk::Pool;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

const MIB: usize = 1 << 20;
const TIME: Duration = Duration::from_millis(300);
const PATIENCE: Duration = Duration::from_secs(20);

fn pool(capacity: usize) -> Pool {
    Pool::options().capacity(capacity as u64).create().unwrap()
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len as u64).map(|i| (i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8).collect()
}

async fn start(pool: &Pool, connections: usize, limits: Limits) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let pool = pool.clone();
    tokio::spawn(async move {
        serve(listener, connections, limits.total, |peer| echo(peer, pool.clone(), limits)).await;
    });
    address
}

async fn assert_echo(address: SocketAddr, content: Vec<u8>) {
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(&content).await.unwrap();
    client.shutdown().await.unwrap();
    let mut back = Vec::new();
    timeout(PATIENCE, client.read_to_end(&mut back)).await.unwrap().unwrap();
    assert!(back == content, "{} of {} bytes came back", back.len(), content.len());
}

/// Reads until the connection is closed; returns how much came.
async fn closed(client: &mut TcpStream) -> usize {
    let mut rest = Vec::new();
    let _ = timeout(PATIENCE, client.read_to_end(&mut rest)).await.expect("it is still open");
    rest.len()
}

#[tokio::test]
async fn echo_for_two_hundred_at_a_time() {
    let pool = pool(256 * MIB);
    let limits = Limits { body: MIB, idle: PATIENCE, total: PATIENCE };
    let address = start(&pool, 50, limits).await;
    let mut clients = JoinSet::new();
    for number in 0..200 {
        clients.spawn(assert_echo(address, pattern(300_000 + number)));
    }
    clients.join_all().await;
    assert_eq!((pool.stats().in_use, pool.stats().fallbacks), (0, 0));
}

/// The end of the stream would say that the echo is whole.
#[tokio::test]
async fn echo_resets_who_is_given_up() {
    for (idle, total) in [(TIME, PATIENCE), (PATIENCE, TIME)] {
        let address = start(&pool(MIB), 1, Limits { body: MIB, idle, total }).await;
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(b"half of").await.unwrap();
        let read = timeout(PATIENCE, client.read(&mut [0])).await.expect("it is still open");
        assert_eq!(read.map_err(|error| error.kind()), Err(ErrorKind::ConnectionReset));
    }
}

#[tokio::test]
async fn echo_survives_hostile_peers() {
    let pool = pool(16 * MIB);
    let limits = Limits { body: MIB, idle: TIME, total: 4 * TIME };
    let address = start(&pool, 8, limits).await;

    let mut silent = TcpStream::connect(address).await.unwrap();
    let mut half = TcpStream::connect(address).await.unwrap();
    half.write_all(b"half of it").await.unwrap();
    let mut large = TcpStream::connect(address).await.unwrap();
    let _ = large.write_all(&pattern(2 * MIB)).await;
    let trickling = TcpStream::connect(address).await.unwrap();
    let (mut trickling, mut tap) = trickling.into_split();
    let tapping = tokio::spawn(async move {
        while tap.write_all(b".").await.is_ok() {
            tokio::time::sleep(TIME / 20).await;
        }
    });
    let mut no_reader = TcpStream::connect(address).await.unwrap();
    no_reader.write_all(&pattern(MIB)).await.unwrap();
    no_reader.shutdown().await.unwrap();

    assert_echo(address, pattern(MIB)).await;
    for peer in [&mut silent, &mut half, &mut large] {
        assert_eq!(closed(peer).await, 0);
    }
    let begin = Instant::now();
    timeout(PATIENCE, tapping).await.expect("a byte now and then keeps a connection").unwrap();
    let _ = trickling.read(&mut [0]).await;
    assert!(begin.elapsed() < 20 * TIME);
    // What was not read is no longer held either.
    timeout(PATIENCE, async {
        while pool.stats().in_use > 0 {
            tokio::time::sleep(TIME / 10).await;
        }
    })
    .await
    .expect("memory is still held");
    assert_echo(address, pattern(MIB)).await;
}

#[tokio::test]
async fn more_connections_than_allowed_wait() {
    let limits = Limits { body: MIB, idle: TIME, total: PATIENCE };
    let address = start(&pool(MIB), 2, limits).await;
    let _first = TcpStream::connect(address).await.unwrap();
    let _second = TcpStream::connect(address).await.unwrap();
    tokio::time::sleep(TIME / 10).await;
    let begin = Instant::now();
    assert_echo(address, b"in the end".to_vec()).await;
    assert!(begin.elapsed() > TIME / 2, "{:?}", begin.elapsed());
}

#[tokio::test]
async fn room_is_waited_for_and_not_for_ever() {
    let pool = pool(MIB);
    for never in [MIB + 1, usize::MAX] {
        let refused = timeout(TIME, rope_with_room(&pool, never, PATIENCE)).await.expect("at once");
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::OutOfMemory);
    }
    let mut held = rope_with_room(&pool, MIB, TIME).await.unwrap();
    held.extend_from_slice(&pattern(MIB));
    let begin = Instant::now();
    assert_eq!(rope_with_room(&pool, 1000, TIME).await.unwrap_err().kind(), ErrorKind::TimedOut);
    assert!((TIME..PATIENCE).contains(&begin.elapsed()));
    let (rope, ()) = tokio::join!(rope_with_room(&pool, MIB, PATIENCE), async {
        tokio::time::sleep(TIME).await;
        drop(held);
    });
    rope.unwrap();
    assert_eq!(pool.stats().waiting, 0, "those that gave up are not in the queue");
    rope_with_room(&pool, 0, TIME).await.unwrap();
}

/// A body that announces some bytes, sends some, and then ends, fails, or does nothing.
struct Hostile {
    announced: Option<u64>,
    sends: usize,
    then: Poll<Option<&'static str>>,
}

impl Body for Hostile {
    type Data = Bytes;
    type Error = &'static str;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, &'static str>>> {
        if self.sends == 0 {
            return self.then.map(|error| error.map(Err));
        }
        let piece = self.sends.min(10_000);
        self.sends -= piece;
        Poll::Ready(Some(Ok(Frame::data(vec![7; piece].into()))))
    }

    fn size_hint(&self) -> SizeHint {
        self.announced.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

#[tokio::test]
async fn upload_answers_each_body() {
    let pool = pool(4 * MIB);
    let (end, error) = (Poll::Ready(None), Poll::Ready(Some("broken")));
    for (announced, sends, then, status) in [
        (None, 0, end, StatusCode::OK),
        (Some(MIB as u64), MIB, end, StatusCode::OK),
        (None, MIB, end, StatusCode::OK),
        (Some(MIB as u64 + 1), 0, Poll::Pending, StatusCode::PAYLOAD_TOO_LARGE),
        (Some(u64::MAX), 0, Poll::Pending, StatusCode::PAYLOAD_TOO_LARGE),
        (None, MIB + 1, Poll::Pending, StatusCode::PAYLOAD_TOO_LARGE),
        (Some(MIB as u64), 1000, Poll::Pending, StatusCode::REQUEST_TIMEOUT),
        (None, 0, Poll::Pending, StatusCode::REQUEST_TIMEOUT),
        (Some(MIB as u64), 1000, error, StatusCode::BAD_REQUEST),
    ] {
        let request = Request::new(Hostile { announced, sends, then });
        let response = upload(request, &pool, MIB, TIME).await;
        assert_eq!(response.status(), status, "{announced:?} {sends} {then:?}");
        assert_eq!(response.body().len(), if status == StatusCode::OK { sends } else { 0 });
    }
    assert_eq!(pool.stats().in_use, 0);
}

#[tokio::test]
async fn uploads_that_are_announced_and_do_not_come_hold_nothing() {
    let pool = pool(4 * MIB);
    let mut silent = JoinSet::new();
    for _ in 0..100 {
        let pool = pool.clone();
        silent.spawn(async move {
            let body = Hostile { announced: Some(MIB as u64), sends: 0, then: Poll::Pending };
            upload(Request::new(body), &pool, MIB, TIME).await.status()
        });
    }
    tokio::task::yield_now().await;
    let honest = || Hostile { announced: Some(MIB as u64), sends: MIB, then: Poll::Ready(None) };
    let mut stored = Vec::new();
    let refused = loop {
        let response = upload(Request::new(honest()), &pool, MIB, PATIENCE).await;
        if response.status() != StatusCode::OK {
            break response.status();
        }
        stored.push(response.into_body());
    };
    assert_eq!(refused, StatusCode::SERVICE_UNAVAILABLE);
    assert!((2..=4).contains(&stored.len()), "{} of 4 fit", stored.len());
    assert!(silent.join_all().await.iter().all(|&status| status == StatusCode::REQUEST_TIMEOUT));
    assert!(stored.iter().all(|body| *body == vec![7; MIB]));
}
