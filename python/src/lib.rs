//! The Python package: a thin skin over the public API of the crate `ropewalk`.
//!
//! ```text
//! pool.rs    Pool, PoolStats, and Room, which waits for it
//! rope.rs    Rope: one lock, one fork check and one way out of the GIL for all methods
//! cursor.rs  Cursor
//! view.rs    View, an object of the buffer protocol
//! lent.rs    the room behind a rope, exported writable
//! pushed.rs  other objects' buffers as segments
//! exports.rs which of them a rope refers to, for the garbage collector
//! send.rs    sending, which ropes and cursors have in common
//! count.rs   arguments that are not negative
//! heap.rs    memory for what cannot fail
//! attach.rs  leaving the interpreter, and coming back to it at shutdown
//! fd.rs      descriptors of Python objects, TLS sockets among them
//! fork.rs    what a forked child may touch: nothing
//! error.rs   `io::Error` as an exception with its numbers
//! ```

mod attach;
mod count;
mod cursor;
mod error;
mod exports;
mod fd;
mod fork;
mod heap;
mod lent;
mod pool;
mod pushed;
mod rope;
mod send;
mod view;

use pyo3::prelude::*;

#[pymodule(gil_used = false)]
mod _ropewalk {
    use pyo3::prelude::*;

    #[pymodule_export]
    use crate::cursor::Cursor;
    #[pymodule_export]
    use crate::error::{LimitExceeded, PoolFull};
    #[pymodule_export]
    use crate::pool::{Pool, Room, default_pool};
    #[pymodule_export]
    use crate::rope::Rope;
    #[pymodule_export]
    use crate::view::View;

    #[pymodule_init]
    fn init(_module: &Bound<'_, PyModule>) -> PyResult<()> {
        crate::fork::watch()
    }
}
