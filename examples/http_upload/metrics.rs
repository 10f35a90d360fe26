//! `/metrics`, in the text format of OpenMetrics.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use ropewalk::Pool;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    method: &'static str,
    status: u16,
}

pub(crate) struct Metrics {
    registry: Registry,
    pool: Pool,
    requests: Family<Labels, Counter>,
    durations: Histogram,
    pub(crate) received_bytes: Counter,
    pub(crate) connections: Gauge,
    pub(crate) accept_errors: Counter,
    pub(crate) overdue: Counter,
    in_use: Gauge,
    capacity: Gauge,
    spilled: Gauge,
    pub(crate) waiting: Gauge,
}

impl Metrics {
    pub(crate) fn new(pool: Pool) -> Metrics {
        let mut metrics = Metrics {
            registry: Registry::with_prefix("http_upload"),
            pool,
            requests: Family::default(),
            durations: Histogram::new(exponential_buckets(0.001, 4.0, 9)),
            received_bytes: Counter::default(),
            connections: Gauge::default(),
            accept_errors: Counter::default(),
            overdue: Counter::default(),
            in_use: Gauge::default(),
            capacity: Gauge::default(),
            spilled: Gauge::default(),
            waiting: Gauge::default(),
        };
        metrics.register();
        metrics
    }

    fn register(&mut self) {
        let r = &mut self.registry;
        r.register("requests", "Requests answered", self.requests.clone());
        r.register_with_unit(
            "request_duration",
            "Time until the response began",
            Unit::Seconds,
            self.durations.clone(),
        );
        r.register_with_unit(
            "received",
            "Content of whole uploads",
            Unit::Bytes,
            self.received_bytes.clone(),
        );
        r.register("connections", "Connections that are open", self.connections.clone());
        r.register("accept_errors", "Times that no connection could be accepted", self.accept_errors.clone());
        r.register("overdue_connections", "Connections closed for want of progress", self.overdue.clone());
        r.register_with_unit(
            "pool_in_use",
            "Memory of stored and arriving objects",
            Unit::Bytes,
            self.in_use.clone(),
        );
        r.register_with_unit(
            "pool_capacity",
            "Most memory of all objects",
            Unit::Bytes,
            self.capacity.clone(),
        );
        r.register_with_unit(
            "pool_spilled",
            "Disk space of stored and arriving objects",
            Unit::Bytes,
            self.spilled.clone(),
        );
        r.register("uploads_waiting", "Uploads that wait for room", self.waiting.clone());
    }

    fn text(&self) -> Result<String, std::fmt::Error> {
        let stats = self.pool.stats();
        let gauge = |value| i64::try_from(value).unwrap_or(i64::MAX);
        self.in_use.set(gauge(stats.in_use));
        self.capacity.set(gauge(stats.capacity));
        self.spilled.set(gauge(stats.spilled));
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

pub(crate) async fn show(State(metrics): State<Arc<Metrics>>) -> Response {
    let kind = (header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8");
    metrics
        .text()
        .map_or(StatusCode::INTERNAL_SERVER_ERROR.into_response(), |text| ([kind], text).into_response())
}

/// Middleware that counts requests. Methods that are not known share one label, so that peers cannot make
/// as many series as they like.
pub(crate) async fn count(State(metrics): State<Arc<Metrics>>, request: Request, next: Next) -> Response {
    let known = ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "POST"];
    let method = known.into_iter().find(|&known| request.method() == known).unwrap_or("other");
    let begin = Instant::now();
    let response = next.run(request).await;
    metrics.durations.observe(begin.elapsed().as_secs_f64());
    metrics.requests.get_or_create(&Labels { method, status: response.status().as_u16() }).inc();
    response
}
