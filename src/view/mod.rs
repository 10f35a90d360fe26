//! Floor 3: the rope as one contiguous view.
//!
//! ```text
//! plan.rs     what to borrow, map and copy   (pure)
//! map.rs      does it
//! persist.rs  reads and copies without touching pages of files
//! seal.rs     a view is sealed, for another process
//! sealed.rs   a payload that no process can change
//! message.rs  how it is sent and received
//! ```

#[cfg(test)]
mod check;
mod map;
mod message;
mod persist;
mod plan;
mod seal;
mod sealed;

use std::error::Error;
use std::fmt;
use std::fs::File;
use std::io;
use std::ops::{Deref, RangeBounds};
use std::ptr::{self, NonNull};
use std::sync::Arc;

use bytes::Bytes;

use crate::event::event;
use crate::pool::Pool;
use crate::rope::{Cursor, Rope, narrow, resolve};
use crate::sys::process::Process;
use crate::sys::{page_size, pressure, shown};
use map::{Adjacent, Mapping};
use plan::{Bounds, Layout, Plan, Span};
pub use seal::SealError;
pub use sealed::Sealed;

/// Most maps in one view. The default of `vm.max_map_count` is 65 530 for the whole process.
const MAX_MAPS: usize = 4096;

/// Longest slice of a view that is copied if its pages cannot be kept without the view's.
const COPY_MAX: usize = 4 << 10;

/// A finalised rope: all its bytes, contiguous and read only.
///
/// A view keeps its pages allocated after the pool's handles and all ropes are dropped. Cloning it, or converting it
/// into [`Bytes`], shares them and is O(1). In a child of fork(2) the bytes are not mapped; see [`Pool`].
///
/// # Examples
///
/// ```
/// use ropewalk::Rope;
///
/// let mut rope = Rope::from("one ");
/// rope.push("slice");
/// let view = rope.finalize()?;
/// assert_eq!(view.len(), 9);
/// assert!(view.ends_with(b"slice"));
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Default)]
pub struct View {
    bytes: Bytes,
    copied: usize,
    mapped: usize,
    maps: usize,
    /// The pool whose pages it may show; `None` if it is short.
    pool: Option<Pool>,
    /// The memfd that the view maps, read only, and that holds its bytes from offset 0 on: what a pool for a handover
    /// left when its memfd could not be sealed.
    memfd: Option<Arc<File>>,
}

impl View {
    /// Returns the bytes of `range` as a view that does not pin the rest of this one.
    ///
    /// * The slice of a view that is borrowed from the pool keeps the pages of the range. O(pages of the range), no
    ///   copy.
    /// * Of a mapped view, and of heap memory, up to 4 KiB are copied. A longer slice shares all of this view: O(1). To
    ///   keep less, copy it with [`Vec::from`].
    ///
    /// A slice of a [`Bytes`] made of a view always shares all of the view: take the slice first.
    ///
    /// # Panics
    ///
    /// If the range starts after its end or ends beyond the view.
    ///
    /// # Examples
    ///
    /// ```
    /// use bytes::Bytes;
    /// use ropewalk::{Pool, Rope};
    ///
    /// let pool = Pool::new()?;
    /// let mut rope = Rope::in_pool(&pool);
    /// rope.extend_from_slice(&[7; 1 << 20]);
    /// let view = rope.finalize()?;
    /// let kept = Bytes::from(view.slice(..10));
    /// drop(view);
    /// assert_eq!(pool.stats().in_use, pool.stats().page_size);
    /// # drop(kept);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    #[track_caller]
    #[must_use]
    pub fn slice(&self, range: impl RangeBounds<usize>) -> View {
        let range = resolve(range, self.len(), "the view");
        let bytes = self.bytes.slice(range);
        if bytes.len() == self.len() {
            return self.clone();
        }
        let pages = self.pool.as_ref().and_then(|pool| narrow(pool, &bytes));
        let copies =
            pages.is_none() && bytes.len() <= COPY_MAX && self.len() > COPY_MAX && !Process::is_child();
        // In a pool that zeroes, the copy is zeroed when it is dropped.
        let rope = || self.pool.as_ref().map_or_else(Rope::new, Rope::in_pool);
        let copied = copies.then(|| rope().own((*bytes).into()));
        View {
            copied: copied.as_ref().map_or(0, Bytes::len),
            bytes: pages.or(copied).unwrap_or(bytes),
            pool: self.pool.clone(),
            ..View::default()
        }
    }

    /// Returns a cursor at the first byte that shares the view, for sending it. O(1), no copy.
    ///
    /// To send other bytes before or behind it, make a [`Rope::from`] the view.
    ///
    /// # Examples
    ///
    /// ```
    /// use ropewalk::Rope;
    /// use std::io::Read;
    /// use std::os::unix::net::UnixStream;
    ///
    /// let view = Rope::from("sent, and kept").finalize()?;
    /// let (here, mut there) = UnixStream::pair()?;
    /// view.cursor().write_all_to(&here)?;
    /// drop(here);
    /// let mut received = String::new();
    /// there.read_to_string(&mut received)?;
    /// assert_eq!(view, received);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    #[must_use]
    pub fn cursor(&self) -> Cursor<Rope> {
        Rope::from(self.clone()).into_cursor()
    }

    /// Returns the number of bytes that were copied.
    ///
    /// # Examples
    ///
    /// ```
    /// let apart: ropewalk::Rope = ["one", "two"].into_iter().collect(); // on the heap, not in a pool
    /// assert_eq!(apart.finalize()?.copied_bytes(), 6);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    #[must_use]
    pub fn copied_bytes(&self) -> usize {
        self.copied
    }

    /// Returns the number of bytes whose pages were mapped a second time. All bytes that were neither copied nor mapped
    /// are borrowed.
    ///
    /// # Examples
    ///
    /// ```
    /// use ropewalk::{Pool, Rope};
    ///
    /// let pool = Pool::new()?;
    /// let (mut one, mut other) = (Rope::in_pool(&pool), Rope::in_pool(&pool));
    /// one.extend_from_slice(&[1; 1 << 20]);
    /// other.extend_from_slice(&[2; 1 << 20]); // in the way of the first one's growth
    /// one.extend_from_slice(&[1; 1 << 20]);
    /// let view = one.finalize()?;
    /// assert_eq!(view.copied_bytes() + view.mapped_bytes(), 2 << 20);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    #[must_use]
    pub fn mapped_bytes(&self) -> usize {
        self.mapped
    }

    /// Returns the number of maps that the view made.
    ///
    /// # Examples
    ///
    /// ```
    /// use ropewalk::{Pool, Rope};
    ///
    /// let mut rope = Rope::in_pool(&Pool::new()?);
    /// rope.extend_from_slice(&[7; 100_000]);
    /// assert_eq!(rope.finalize()?.num_maps(), 0); // it was contiguous
    /// # Ok::<(), std::io::Error>(())
    /// ```
    #[must_use]
    pub fn num_maps(&self) -> usize {
        self.maps
    }
}

impl Deref for View {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl AsRef<[u8]> for View {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl fmt::Debug for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("View")
            .field("len", &self.bytes.len())
            .field("copied", &self.copied)
            .field("mapped", &self.mapped)
            .field("maps", &self.maps)
            .finish()
    }
}

impl From<View> for Bytes {
    /// Converts without a copy. A slice of the `Bytes` keeps all of the view; [`View::slice`] keeps less.
    fn from(view: View) -> Bytes {
        view.bytes
    }
}

/// Reports that there was no memory for a view, or that the pool was inherited by fork(2). Contains the rope,
/// unchanged.
///
/// # Examples
///
/// ```
/// use ropewalk::{FinalizeError, Rope, View};
///
/// /// Returns one slice if there is memory for it, else the pieces.
/// fn contiguous(rope: Rope) -> Result<View, Rope> {
///     rope.finalize().map_err(FinalizeError::into_rope)
/// }
/// # assert!(contiguous(Rope::from("one")).is_ok());
/// ```
#[derive(Debug)]
pub struct FinalizeError {
    rope: Box<Rope>,
    source: io::Error,
}

impl FinalizeError {
    /// Returns the rope.
    ///
    /// # Examples
    ///
    /// ```
    /// let rope = ropewalk::Rope::from("one");
    /// let view = rope.finalize().map_err(|error| {
    ///     let kept = error.into_rope();
    ///     format!("no memory for {} bytes; what now?", kept.len())
    /// })?;
    /// # assert_eq!(&*view, b"one");
    /// # Ok::<(), String>(())
    /// ```
    #[must_use]
    pub fn into_rope(self) -> Rope {
        *self.rope
    }
}

impl fmt::Display for FinalizeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot make {} bytes contiguous: {}", self.rope.len(), self.source)
    }
}

impl Error for FinalizeError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.source)
    }
}

impl From<FinalizeError> for io::Error {
    fn from(error: FinalizeError) -> io::Error {
        io::Error::new(error.source.kind(), error)
    }
}

impl Rope {
    /// Makes the rope one contiguous, immutable view.
    ///
    /// * Contiguous segments, as those of a rope that is alone in its pool or was [reserved](Rope::reserve), are
    ///   *borrowed*: no copy, no map.
    /// * Other runs of pages are *mapped* a second time, one behind the other. Runs of 256 KiB or more are moved by
    ///   mremap(2), with their page table entries, and move back when the view is dropped: neither reading the view nor
    ///   reusing the pages takes a page fault; reading clones of the segments meanwhile does. Shorter runs are mapped
    ///   by mmap(2): one page fault for sixteen pages that are read. Each run costs a system call, and another one when
    ///   the view is dropped.
    /// * Bytes that share a page with others, lie outside the pool or in a run of less than 16 KiB are *copied*, and so
    ///   is a view of less than 512 KiB that is not contiguous. Where the kernel refuses to map, and in an anonymous
    ///   pool, everything is copied.
    ///
    /// O(segments), and O(bytes copied).
    ///
    /// # Errors
    ///
    /// When there is no memory for the copies, when a file whose bytes are copied cannot be read, or in a child of the
    /// process that made the pool. [`FinalizeError::into_rope`] returns the rope.
    ///
    /// # Examples
    ///
    /// ```
    /// use ropewalk::{Pool, Rope};
    ///
    /// let mut rope = Rope::in_pool(&Pool::new()?);
    /// rope.extend_from_slice(&[7; 100_000]);
    /// let view = rope.finalize()?;
    /// assert_eq!((view.len(), view.copied_bytes()), (100_000, 0));
    /// # Ok::<(), std::io::Error>(())
    /// ```
    #[inline]
    pub fn finalize(mut self) -> Result<View, FinalizeError> {
        match self.take_single() {
            Some(bytes) if bytes.len() <= COPY_MAX => Ok(View { bytes, ..View::default() }),
            Some(bytes) => Ok(View { bytes, pool: self.pool().map(Pool::share), ..View::default() }),
            None => self.finalize_many(),
        }
    }

    /// Finalises a rope of two or more segments.
    #[inline(never)]
    fn finalize_many(self) -> Result<View, FinalizeError> {
        match self.pool().cloned() {
            None if shown::is_empty() => self.copy(),
            pool => self.finalize_in(pool.as_ref()),
        }
    }

    fn finalize_in(self, pool: Option<&Pool>) -> Result<View, FinalizeError> {
        if let Err(source) = pool.map_or(Ok(()), Pool::check_process) {
            return Err(FinalizeError { rope: Box::new(self), source });
        }
        let mut view = match pool.and_then(|pool| self.adjacent_in(pool)) {
            Some(base) => Ok(self.borrow_adjacent(base)),
            None => self.map_or_copy(pool),
        }?;
        if let Some(pool) = pool {
            pool.count_view(view.copied, view.mapped, view.maps);
            view.pool = Some(pool.share());
        }
        Ok(view)
    }

    /// Returns the first address if all segments are contiguous in an arena of the pool.
    fn adjacent_in(&self, pool: &Pool) -> Option<NonNull<u8>> {
        let mut offsets = self.chunks().map(|chunk| pool.offset_of(chunk).map(|at| (at, at + chunk.len())));
        let Some(Some((start, mut end))) = offsets.next() else {
            return pool.overflow().and_then(|overflow| self.adjacent_in(overflow));
        };
        let adjacent =
            offsets.all(|next| next.is_some_and(|next| next.0 == std::mem::replace(&mut end, next.1)));
        adjacent.then(|| pool.address_of(start))
    }

    fn map_or_copy(mut self, pool: Option<&Pool>) -> Result<View, FinalizeError> {
        let (page, limits) = (page_size(), self.limits());
        let max_maps = if self.len() >= limits.min_view { MAX_MAPS } else { 0 };
        let bounds = Bounds { page, min_map: limits.min_map, max_maps };
        let pool = pool.filter(|pool| pool.file().is_some() || pool.overflow().is_some());
        let plan = plan::plan(self.chunks().flat_map(|chunk| spans(chunk, pool)), bounds);
        match plan {
            // Of a file that was pushed in parts.
            Plan::Borrow { offset } => match NonNull::new(ptr::with_exposed_provenance_mut(offset)) {
                Some(base) => Ok(self.borrow_adjacent(base)),
                None => self.copy(),
            },
            Plan::Map(layout) => self.map(pool, &layout).or_else(|_refused| {
                event!(debug, error = %_refused, "the kernel refused to map a view, which is copied instead");
                self.copy()
            }),
            Plan::Copy => self.copy(),
        }
    }

    #[allow(unsafe_code)] // the caller knows where the bytes are
    fn borrow_adjacent(self, base: NonNull<u8>) -> View {
        // SAFETY: every segment was found where its predecessor ends, the first one at `base`.
        let bytes = unsafe { Adjacent::new(base, self) };
        View { bytes: Bytes::from_owner(bytes), ..View::default() }
    }

    #[allow(unsafe_code)] // the plan was made for this rope
    fn map(&mut self, pool: Option<&Pool>, layout: &Layout) -> io::Result<View> {
        let (len, mapped) = (self.len(), layout.mapped());
        // SAFETY: the plan was made from this rope's segments and their addresses.
        let mapping = unsafe { Mapping::new(self, layout, pool)? };
        let bytes = Bytes::from_owner(mapping);
        Ok(View { bytes, copied: len - mapped, mapped, maps: layout.maps.len(), ..View::default() })
    }

    fn copy(mut self) -> Result<View, FinalizeError> {
        let is_in_file = |chunk| shown::parts(chunk).any(|(_, at)| at.is_some());
        let has_file = self.chunks().any(is_in_file);
        let copied = if has_file { self.copy_with_files() } else { self.copy_consuming() };
        match copied {
            Ok(copy) => Ok(View { copied: copy.len(), bytes: self.own(copy.into()), ..View::default() }),
            Err(source) => Err(FinalizeError { rope: Box::new(self), source }),
        }
    }

    /// Copies and drops segment by segment, so that the peak stays near the payload's size.
    fn copy_consuming(&mut self) -> io::Result<Vec<u8>> {
        let mut copy = self.memory_for_copy()?;
        self.take_segments().for_each(|segment| copy.extend_from_slice(&segment));
        Ok(copy)
    }

    /// The same, where reading a file may fail: then the rope is as it was. What is in a file may be more than fits the
    /// memory.
    fn copy_with_files(&self) -> io::Result<Vec<u8>> {
        let _admission = pressure::admit(self.len() as u64)?;
        let mut copy = self.memory_for_copy()?;
        let read = self.chunks().try_for_each(|chunk| shown::append(chunk, &mut copy));
        match read {
            Ok(()) => Ok(copy),
            Err(error) => {
                // Erases it, if the pool does; as long as its memory, so that it does not move.
                copy.resize(copy.capacity(), 0);
                drop(self.own(copy.into()));
                Err(error)
            }
        }
    }

    fn memory_for_copy(&self) -> io::Result<Vec<u8>> {
        let mut copy = Vec::new();
        copy.try_reserve_exact(self.len())
            .map_err(|error| io::Error::new(io::ErrorKind::OutOfMemory, error))?;
        Ok(copy)
    }
}

/// A chunk for the plan: its address is the offset, if it can be mapped a second time. A spilled chunk may be in the file
/// in part.
fn spans(chunk: &[u8], pool: Option<&Pool>) -> impl Iterator<Item = Span> {
    let in_arena = pool.is_some_and(|pool| pool.behind(chunk.as_ptr().addr()).is_some());
    let span = |part: &[u8], mappable: bool| {
        let offset = mappable.then(|| part.as_ptr().expose_provenance());
        Span { offset, len: part.len() }
    };
    let whole = in_arena.then(|| span(chunk, true));
    let rest = if in_arena { &[] } else { chunk };
    let parts = shown::parts(rest).map(move |(part, at)| span(part, at.is_some_and(|at| at.home)));
    whole.into_iter().chain(parts)
}
