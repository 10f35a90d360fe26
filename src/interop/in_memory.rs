//! What the I/O traits of tokio and of `futures-io` have in common, by the traits of [`std::io`].

/// The methods of `AsyncBufRead`.
macro_rules! buf_read_methods {
    () => {
        fn poll_fill_buf(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
            Poll::Ready(self.get_mut().fill_buf())
        }

        fn consume(mut self: Pin<&mut Self>, count: usize) {
            BufRead::consume(&mut *self, count);
        }
    };
}
pub(super) use buf_read_methods;

/// The methods of `AsyncWrite` that have the same name in both.
macro_rules! write_methods {
    () => {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            Poll::Ready(self.write(bytes))
        }

        fn poll_write_vectored(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            slices: &[io::IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            Poll::Ready(self.write_vectored(slices))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    };
}
pub(super) use write_methods;
