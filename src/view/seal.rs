//! A view is sealed: in place if it is alone in a memfd of its own, else as a copy.
//!
//! ```text
//!  pool of the rope   [payload····][idle][hole ………]    one memfd, mapped shared and writable
//!        │ mmap, munmap, ftruncate, F_ADD_SEALS
//!        ▼
//!  Sealed             [payload]                        the same memfd and pages, mapped private and read only
//! ```
//!
//! The new map comes first, because it may be refused. Nothing after it can lose the bytes: if the kernel refuses the
//! seals, the view shows the new map, and has the memfd for the next try.
#![allow(unsafe_code)] // a map of a memfd that is not sealed yet

use std::error::Error;
use std::fmt;
use std::fs::File;
use std::io;
use std::sync::Arc;

use bytes::Bytes;

use super::{Sealed, View};
use crate::pool::Pool;
use crate::rope::narrow;
use crate::sys::seal;

/// References to its pool while a view is sealed in place: its handle and its pages.
const OWN_HOLDERS: usize = 2;

impl View {
    /// fcntl(2) with `F_ADD_SEALS`: seals the bytes, so that they can be handed to another process.
    ///
    /// The view of a [`Rope::for_handover`](crate::Rope::for_handover) that is contiguous from the start of its memfd is
    /// sealed in place, without a copy: its memory is unmapped, the file cut to the view's length, sealed, and mapped
    /// again, read only. O(pages), in the kernel: `examples/handover` measures it. Any other view is copied into a
    /// memfd once: one in an ordinary pool, one with segments of the heap, one that begins behind other bytes of its
    /// rope, and one of up to 4 KiB.
    ///
    /// # Errors
    ///
    /// [`SealError::into_view`] returns the view, with the same bytes.
    ///
    /// * [`ResourceBusy`](io::ErrorKind::ResourceBusy): clones or slices of the view, [`Bytes`], segments or ropes refer
    ///   to the same pages; or the kernel works on the pages (EBUSY, after up to 0.2 s), as splice(2) and io_uring let
    ///   it; or another process has mapped the memfd through `/proc`.
    /// * [`Unsupported`](io::ErrorKind::Unsupported) in a child of the process that received the bytes.
    /// * As for [`Sealed::copy_of`] if the view is copied.
    ///
    /// # Examples
    ///
    /// ```
    /// # if cfg!(ropewalk_portable) { return Ok(()); }
    /// use ropewalk::{Rope, SealError};
    /// use std::io::ErrorKind;
    ///
    /// let mut rope = Rope::for_handover()?;
    /// rope.extend_from_slice(&[7; 100_000]);
    /// let view = rope.finalize()?;
    /// let reader = view.clone();
    /// let refused = view.seal().unwrap_err();
    /// assert_eq!(refused.kind(), ErrorKind::ResourceBusy);
    /// drop(reader);
    /// let sealed = refused.into_view().seal()?;
    /// assert_eq!(*sealed, [7; 100_000]);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn seal(self) -> Result<Sealed, SealError> {
        if let Err(source) = self.pool.as_ref().map_or(Ok(()), Pool::check_process) {
            return Err(SealError { view: self, source });
        }
        let view = self.leave_pool()?;
        let sealed = match &view.memfd {
            Some(memfd) => {
                seal::seal(memfd, view.len()).map(|()| Sealed::new(Arc::clone(memfd), view.bytes.clone()))
            }
            None => Sealed::copy_of(&view),
        };
        sealed.map_err(|source| SealError { view, source })
    }

    /// Drops the pool whose memfd begins with the view's bytes, if it is one for a handover, and has the view show a
    /// read-only map of that memfd. Other views stay as they are.
    fn leave_pool(mut self) -> Result<View, SealError> {
        let Some((pool, memfd)) = self.handover() else { return Ok(self) };
        let mapped = match map(&memfd, self.len()) {
            Ok(mapped) => mapped,
            Err(source) => return Err(SealError { view: self, source }),
        };
        // Its own reference to the pages, in the place of the segments', which are dropped.
        let Some(pages) = narrow(&pool, &self.bytes) else { return Ok(self) };
        self.pool = None;
        self.bytes = pages;
        let others = pool.holders() - OWN_HOLDERS;
        if others > 0 {
            self.pool = Some(pool);
            return Err(SealError { view: self, source: busy(others) });
        }
        // Neither dropping the pages nor the pool changes a byte: such a pool gives none back.
        self.bytes = mapped;
        self.memfd = Some(memfd);
        Ok(self)
    }

    /// A handle of the view's pool and its memfd, if that can be sealed and begins with the view.
    fn handover(&self) -> Option<(Pool, Arc<File>)> {
        let pool = self
            .pool
            .as_ref()
            .filter(|pool| pool.is_for_handover() && pool.offset_of(&self.bytes) == Some(0))?;
        Some((pool.share(), Arc::clone(pool.file()?)))
    }
}

fn map(memfd: &File, len: usize) -> io::Result<Bytes> {
    // SAFETY: these are bytes of a view, which stay unchanged while anything refers to its pages; afterwards nothing has
    // the pool, and the memfd is private to this process until it is sealed. It is never cut below `len`.
    unsafe { seal::map(memfd, len) }
}

fn busy(others: usize) -> io::Error {
    let message = format!(
        "{others} other references to the pages or their pool exist (clones and slices of the view, Bytes, segments, \
         ropes); drop them, or copy the view with Sealed::copy_of"
    );
    io::Error::new(io::ErrorKind::ResourceBusy, message)
}

/// Reports that a view could not be sealed. Contains the view, with the same bytes.
///
/// # Examples
///
/// ```
/// # if cfg!(ropewalk_portable) { return; }
/// use ropewalk::{SealError, Sealed, View};
///
/// /// Returns the sealed view, or the view if it cannot be sealed now.
/// fn sealed(view: View) -> Result<Sealed, View> {
///     view.seal().map_err(SealError::into_view)
/// }
/// # assert!(sealed(ropewalk::Rope::from("one").finalize().unwrap()).is_ok());
/// ```
#[derive(Debug)]
pub struct SealError {
    view: View,
    source: io::Error,
}

impl SealError {
    /// Returns the view.
    ///
    /// # Examples
    ///
    /// ```
    /// # if cfg!(ropewalk_portable) { return Ok(()); }
    /// let view = ropewalk::Rope::from("one").finalize()?;
    /// let sealed = view.seal().map_err(|error| format!("{} bytes are left", error.into_view().len()))?;
    /// # assert_eq!(*sealed, *b"one");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn into_view(self) -> View {
        self.view
    }

    /// Returns the kind of the error; `ResourceBusy` is over when others have dropped what they have of the view.
    ///
    /// # Examples
    ///
    /// ```
    /// # if cfg!(ropewalk_portable) { return Ok(()); }
    /// use std::io::ErrorKind;
    ///
    /// let view = ropewalk::Rope::from("one").finalize()?;
    /// match view.seal() {
    ///     Err(error) if error.kind() == ErrorKind::ResourceBusy => drop(error.into_view()), // and again later
    ///     sealed => drop(sealed?),
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn kind(&self) -> io::ErrorKind {
        self.source.kind()
    }
}

impl fmt::Display for SealError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot seal {} bytes: {}", self.view.len(), self.source)
    }
}

impl Error for SealError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.source)
    }
}

impl From<SealError> for io::Error {
    fn from(error: SealError) -> io::Error {
        io::Error::new(error.source.kind(), error)
    }
}
