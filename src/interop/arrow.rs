//! Arrow: a view as a buffer.

use arrow_buffer::Buffer;
use bytes::Bytes;

use crate::view::View;

/// Converts without a copy.
///
/// Arrow requires numbers to be aligned. A view that starts at a rope's first received byte is aligned to a page; one
/// that starts behind a header is not, unless the header's length is a multiple of the alignment. An empty view is an
/// empty buffer, aligned for all types.
///
/// Versions 59 and 60 of arrow-buffer are accepted, and Cargo chooses 60 beside a program's own 59, whose `Buffer` is a
/// different type. `Buffer::from(Bytes::from(view))` works with any version, and without this feature.
///
/// # Examples
///
/// ```
/// use arrow_buffer::Buffer;
/// use ropewalk::Rope;
///
/// let view = Rope::from(vec![7u8; 1000]).finalize()?;
/// let address = view.as_ptr();
/// let buffer = Buffer::from(view);
/// assert_eq!((buffer.as_ptr(), buffer.len()), (address, 1000));
/// # Ok::<(), std::io::Error>(())
/// ```
impl From<View> for Buffer {
    fn from(view: View) -> Buffer {
        if view.is_empty() { Buffer::default() } else { Buffer::from(Bytes::from(view)) }
    }
}
