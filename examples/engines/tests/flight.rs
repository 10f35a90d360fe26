//! Arrow Flight between a client and a server on loopback.
#![allow(clippy::unwrap_used)] // a test may panic

mod support;

use std::pin::Pin;
use std::sync::Arc;

use arrow_array::{Int64Array, RecordBatch};
use arrow_flight::decode::FlightRecordBatchStream;
use arrow_flight::flight_service_client::FlightServiceClient;
use arrow_flight::flight_service_server::{FlightService, FlightServiceServer};
use arrow_flight::utils::batches_to_flight_data;
use arrow_flight::{
    Action, ActionType, Criteria, Empty, FlightData, FlightDescriptor, FlightInfo, HandshakeRequest,
    HandshakeResponse, PollInfo, PutResult, SchemaResult, Ticket,
};
use engines::flight::{align, to_message};
use futures_util::stream::{self, Stream, StreamExt, TryStreamExt};
use ropewalk::{Pool, Rope};
use tokio::net::TcpListener;
use tonic::transport::Endpoint;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};

type Messages<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;
type Answer<T> = Result<Response<T>, Status>;

/// Answers each `do_get` with these messages.
struct Server(Vec<FlightData>);

fn unused<T>() -> Answer<T> {
    Err(Status::unimplemented("the test needs `do_get` alone"))
}

#[tonic::async_trait]
impl FlightService for Server {
    type HandshakeStream = Messages<HandshakeResponse>;
    type ListFlightsStream = Messages<FlightInfo>;
    type DoGetStream = Messages<FlightData>;
    type DoPutStream = Messages<PutResult>;
    type DoExchangeStream = Messages<FlightData>;
    type DoActionStream = Messages<arrow_flight::Result>;
    type ListActionsStream = Messages<ActionType>;

    async fn do_get(&self, _: Request<Ticket>) -> Answer<Self::DoGetStream> {
        Ok(Response::new(stream::iter(self.0.clone().into_iter().map(Ok)).boxed()))
    }

    async fn handshake(&self, _: Request<Streaming<HandshakeRequest>>) -> Answer<Self::HandshakeStream> {
        unused()
    }

    async fn list_flights(&self, _: Request<Criteria>) -> Answer<Self::ListFlightsStream> {
        unused()
    }

    async fn get_flight_info(&self, _: Request<FlightDescriptor>) -> Answer<FlightInfo> {
        unused()
    }

    async fn poll_flight_info(&self, _: Request<FlightDescriptor>) -> Answer<PollInfo> {
        unused()
    }

    async fn get_schema(&self, _: Request<FlightDescriptor>) -> Answer<SchemaResult> {
        unused()
    }

    async fn do_put(&self, _: Request<Streaming<FlightData>>) -> Answer<Self::DoPutStream> {
        unused()
    }

    async fn do_exchange(&self, _: Request<Streaming<FlightData>>) -> Answer<Self::DoExchangeStream> {
        unused()
    }

    async fn do_action(&self, _: Request<Action>) -> Answer<Self::DoActionStream> {
        unused()
    }

    async fn list_actions(&self, _: Request<Empty>) -> Answer<Self::ListActionsStream> {
        unused()
    }
}

fn batch() -> RecordBatch {
    RecordBatch::try_from_iter([("id", Arc::new(Int64Array::from_iter_values(0..100_000)) as _)]).unwrap()
}

/// As Arrow encodes the batch, but with each body in a view.
fn messages(pool: &Pool) -> Vec<FlightData> {
    let encoded = batches_to_flight_data(&batch().schema(), [&batch()]).unwrap();
    let in_views = encoded.into_iter().map(|message| {
        let body = support::received(pool, &message.data_body).finalize().unwrap();
        let address = body.as_ptr();
        let made = to_message(message.data_header, body);
        assert!(made.data_body.is_empty() || made.data_body.as_ptr() == address); // no copy
        made
    });
    in_views.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_go_through_tonic_and_are_decoded_without_a_copy_once_aligned() {
    let pool = Pool::new().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let service = FlightServiceServer::new(Server(messages(&pool)));
    tokio::spawn(
        tonic::transport::Server::builder()
            .add_service(service)
            .serve_with_incoming(TcpIncoming::from(listener)),
    );
    let channel = Endpoint::from_shared(url).unwrap().connect().await.unwrap();
    let mut client = FlightServiceClient::new(channel);
    let answer = client.do_get(Ticket::default()).await.unwrap().into_inner();
    let received: Vec<FlightData> = answer.try_collect().await.unwrap();
    let aligned: Vec<_> = received.into_iter().map(|message| align(message, &pool).unwrap()).collect();
    assert_eq!(pool.stats().bytes_copied, 0);
    let body = aligned.last().unwrap().data_body.clone();
    assert_eq!(body.as_ptr().addr() % 4096, 0);
    let aligned = stream::iter(aligned.into_iter().map(Ok));
    let batches: Vec<_> = FlightRecordBatchStream::new_from_flight_data(aligned).try_collect().await.unwrap();
    assert_eq!(batches, [batch()]);
    let values = batches[0].column(0).to_data().buffers()[0].as_ptr();
    assert!(body.as_ptr_range().contains(&values), "decoded without a copy");
}

#[test]
fn a_body_without_bytes_is_aligned_too() {
    let message = to_message(Default::default(), Rope::new().finalize().unwrap());
    assert!(align(message, &Pool::new().unwrap()).unwrap().data_body.is_empty());
}
