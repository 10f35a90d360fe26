//! The status for each error: what a client can do about it.

use std::error::Error;
use std::io;
use std::time::Duration;

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use tokio::time::error::Elapsed;
use tracing::warn;

/// Why a request is not served: the status, and a line for a human.
#[derive(Debug)]
pub(crate) struct Failure {
    status: StatusCode,
    why: String,
    retry_after: Option<Duration>,
}

impl Failure {
    pub(crate) fn new(status: StatusCode, why: impl Into<String>) -> Failure {
        Failure { status, why: why.into(), retry_after: None }
    }

    /// The pool has no room: others are using it.
    pub(crate) fn no_room(patience: Duration) -> Failure {
        let why = format!("no room for a part within {patience:?}; try again later");
        Failure { retry_after: Some(patience), ..Failure::new(StatusCode::SERVICE_UNAVAILABLE, why) }
    }
}

impl From<Elapsed> for Failure {
    fn from(_: Elapsed) -> Failure {
        Failure::new(StatusCode::GATEWAY_TIMEOUT, "the store did not answer in time; try again later")
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        warn!(%error, "the store failed");
        Failure::new(StatusCode::BAD_GATEWAY, "the store failed; try again later")
    }
}

impl From<object_store::Error> for Failure {
    fn from(error: object_store::Error) -> Failure {
        use object_store::Error as E;
        let status = match &error {
            E::NotFound { .. } => StatusCode::NOT_FOUND,
            E::InvalidPath { .. } => StatusCode::BAD_REQUEST,
            E::AlreadyExists { .. } | E::Precondition { .. } => StatusCode::PRECONDITION_FAILED,
            E::NotModified { .. } => StatusCode::NOT_MODIFIED,
            error if is_reserved(error) => StatusCode::BAD_REQUEST,
            error if is_full(error) => StatusCode::INSUFFICIENT_STORAGE,
            error if is_in_the_way(error) => StatusCode::CONFLICT,
            error if is_late(error) => StatusCode::GATEWAY_TIMEOUT,
            _ => StatusCode::BAD_GATEWAY,
        };
        if status.is_server_error() {
            warn!(%error, "the store failed");
        }
        // The error may name paths and hosts behind the gateway.
        let why = match status {
            StatusCode::NOT_FOUND => "no such object",
            StatusCode::BAD_REQUEST if is_reserved(&error) => "in this store no name ends with # and digits",
            StatusCode::BAD_REQUEST => {
                "a name is UTF-8 without control characters, of segments other than . and .., none of them empty"
            }
            StatusCode::PRECONDITION_FAILED => "a precondition does not hold",
            StatusCode::CONFLICT => {
                "in this store no object has the name of a directory, or lies below an object"
            }
            StatusCode::INSUFFICIENT_STORAGE => "the store is full; delete something",
            StatusCode::GATEWAY_TIMEOUT => "the store did not answer in time; try again later",
            _ => "the store failed; try again later",
        };
        Failure::new(status, why)
    }
}

/// Whether `LocalFileSystem` keeps the name for files that are not complete. Its error has that in its text alone.
fn is_reserved(error: &object_store::Error) -> bool {
    causes(error).any(|cause| cause.to_string().starts_with("Filenames containing trailing '/#"))
}

/// Whether the store has no space left: an error of the file system, or status 507, which object_store has in its text
/// alone.
fn is_full(error: &object_store::Error) -> bool {
    use io::ErrorKind::{QuotaExceeded, StorageFull};
    causes(error).any(|cause| match cause.downcast_ref::<io::Error>() {
        Some(error) => matches!(error.kind(), StorageFull | QuotaExceeded),
        None => cause.to_string().contains("status code: 507"),
    })
}

/// Whether a directory has the name that was asked for, or an object that of a directory: names are paths of files there.
fn is_in_the_way(error: &object_store::Error) -> bool {
    use io::ErrorKind::{IsADirectory, NotADirectory};
    causes(error).any(|cause| {
        let error = cause.downcast_ref::<io::Error>();
        error.is_some_and(|error| matches!(error.kind(), IsADirectory | NotADirectory))
    })
}

/// Whether the store's client has given up waiting.
fn is_late(error: &object_store::Error) -> bool {
    causes(error).any(|cause| {
        let io =
            cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::TimedOut);
        io || cause.to_string().contains("operation timed out")
    })
}

fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        if self.status == StatusCode::NOT_MODIFIED {
            return self.status.into_response();
        }
        let mut response = (self.status, self.why + "\n").into_response();
        if let Some(time) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, time.as_secs().max(1).into());
        }
        response
    }
}
