//! What a server reads after it has refused: a client that is still sending would get a reset instead of the response.

use std::io::{self, IoSlice};
use std::mem;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::Version;
use axum::middleware::Next;
use axum::response::Response;
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep, timeout};

/// Longest time for which bytes are discarded that a client sends after its response.
const LINGER: Duration = Duration::from_secs(2);

/// Middleware for HTTP/2, where a body that is dropped before its end resets its stream.
pub(crate) async fn linger(request: Request, next: Next) -> Response {
    let request = match request.version() {
        Version::HTTP_2 => request.map(|body| Body::new(Lingering(body))),
        _ => request,
    };
    next.run(request).await
}

/// A body whose rest is discarded for a while after it is dropped.
struct Lingering(Body);

impl http_body::Body for Lingering {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.0).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}

impl Drop for Lingering {
    fn drop(&mut self) {
        let mut body = mem::take(&mut self.0);
        if !body.is_end_stream() {
            tokio::spawn(timeout(
                LINGER,
                async move { while let Some(Ok(_discarded)) = body.frame().await {} },
            ));
        }
    }
}

/// A socket that discards what comes after its last byte was sent, for a while: for HTTP/1.1, which closes the connection
/// behind a body that it has not read. It calls `sent` whenever bytes have left.
pub(crate) struct LingeringStream<F> {
    stream: TcpStream,
    sent: F,
    /// Set once the last byte has been sent.
    lingering: Option<Pin<Box<Sleep>>>,
}

impl<F: Fn()> LingeringStream<F> {
    pub(crate) fn new(stream: TcpStream, sent: F) -> LingeringStream<F> {
        LingeringStream { stream, sent, lingering: None }
    }

    fn note(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if matches!(written, Poll::Ready(Ok(1..))) {
            (self.sent)();
        }
        written
    }
}

impl<F: Unpin> AsyncRead for LingeringStream<F> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, into)
    }
}

impl<F: Fn() + Unpin> AsyncWrite for LingeringStream<F> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.note(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.note(written)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// Shuts the sending side, and discards what comes until the peer has shut its own.
    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.lingering.is_none() {
            ready!(Pin::new(&mut self.stream).poll_shutdown(context))?;
            self.lingering = Some(Box::pin(sleep(LINGER)));
        }
        let LingeringStream { stream, lingering: Some(lingering), .. } = &mut *self else {
            return Poll::Ready(Ok(()));
        };
        let mut discarded = [0; 16 << 10];
        loop {
            if lingering.as_mut().poll(context).is_ready() {
                return Poll::Ready(Ok(()));
            }
            let mut into = ReadBuf::new(&mut discarded);
            match ready!(Pin::new(&mut *stream).poll_read(context, &mut into)) {
                Ok(()) if !into.filled().is_empty() => {}
                _ => return Poll::Ready(Ok(())),
            }
        }
    }
}
