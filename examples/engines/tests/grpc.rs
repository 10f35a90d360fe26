//! Ropes as tonic's messages, and as its bodies.
#![allow(clippy::unwrap_used)] // a test may panic

mod support;

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use engines::grpc::RopeMessages;
use http::uri::PathAndQuery;
use ropewalk::{Pool, Rope};
use support::{lie_in, pattern, received};
use tokio::net::TcpListener;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service};
use tonic::server::{Grpc, NamedService, UnaryService};
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Server};
use tonic::{Request, Response, Status};

/// Answers each message with itself; keeps the last.
#[derive(Clone, Default)]
struct Echo(Arc<Mutex<Rope>>);

impl NamedService for Echo {
    const NAME: &'static str = "test.Echo";
}

impl UnaryService<Rope> for Echo {
    type Response = Rope;
    type Future = BoxFuture<Response<Rope>, Status>;

    fn call(&mut self, request: Request<Rope>) -> Self::Future {
        let message = request.into_inner();
        *self.0.lock().unwrap() = message.clone();
        Box::pin(async { Ok(Response::new(message)) })
    }
}

impl Service<http::Request<Body>> for Echo {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let echo = self.clone();
        Box::pin(async move {
            let mut grpc = Grpc::new(RopeMessages).max_decoding_message_size(64 << 20);
            Ok(grpc.unary(echo, request).await)
        })
    }
}

async fn start(echo: Echo) -> Channel {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(Server::builder().add_service(echo).serve_with_incoming(TcpIncoming::from(listener)));
    Channel::from_shared(url).unwrap().connect().await.unwrap()
}

async fn ask(channel: Channel, message: Rope) -> Result<Rope, Status> {
    let mut client = tonic::client::Grpc::new(channel).max_decoding_message_size(64 << 20);
    client.ready().await.unwrap();
    let method = PathAndQuery::from_static("/test.Echo/Call");
    Ok(client.unary(Request::new(message), method, RopeMessages).await?.into_inner())
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_both_ways() {
    let pool = Pool::new().unwrap();
    let echo = Echo::default();
    let channel = start(echo.clone()).await;
    for len in [0, 1, 70_000, 9 << 20] {
        let bytes = pattern(len);
        let answer = ask(channel.clone(), received(&pool, &bytes)).await.unwrap();
        assert_eq!(answer, bytes);
        // The server's message is tonic's buffer, in one piece.
        assert!(echo.0.lock().unwrap().num_segments() <= 1);
    }
    assert_eq!(pool.stats().in_use, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_beyond_the_limit_is_refused() {
    let status = ask(start(Echo::default()).await, Rope::from(vec![0; (64 << 20) + 1])).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::OutOfRange);
}

/// A whole response body as a rope, for services that frame their messages themselves: no copy.
#[tokio::test]
async fn a_rope_is_a_body_of_tonic() {
    use http_body_util::BodyExt;
    let rope = received(&Pool::new().unwrap(), &pattern(1 << 20));
    let mut body = Body::new(rope.clone());
    while let Some(frame) = body.frame().await {
        assert!(lie_in(&rope, [frame.unwrap().into_data().unwrap()]));
    }
}
