//! Floor 2: the rope. Segments in order, one tail that is being filled, and positions in them.
//!
//! ```text
//! segments.rs  the owned pieces and their positions
//! extent.rs    memory that is filled from its start, and the segments cut off it
//! tail.rs      the extent behind the segments
//! recv.rs      one system call into the tail
//! positioned.rs  the same at an offset of a file, and of one with O_DIRECT
//! splice.rs    the same into a memfd, past this process
//! body.rs      the same for a body of known length
//! file.rs      a file's range as a segment
//! gather.rs    the iovecs of one send
//! send.rs      one system call from segments
//! pace.rs      adaptive read and send sizes           (pure)
//! cursor.rs    a position outside the rope
//! search.rs    `find`, across segments
//! ```

mod body;
mod cursor;
mod extent;
mod file;
mod gather;
mod pace;
mod positioned;
mod recv;
mod search;
mod segments;
mod send;
mod splice;
mod tail;

use std::any::Any;
use std::fmt;
use std::io;
use std::iter;
use std::ops::{Bound, Range, RangeBounds};
use std::path::Path;

use bytes::Bytes;

use crate::limits::Limits;
use crate::pool::{Pool, Room};
use crate::sys::KnownFd;
pub(crate) use body::{Body, MIN_ALIGNED};
pub use cursor::Cursor;
use extent::Memory;
pub(crate) use extent::{Extent, narrow};
pub(crate) use pace::{MAX_READ, MAX_SEND, Pace, first_read};
use segments::{IntoSegments, Segments};
#[cfg(feature = "tokio")]
pub(crate) use send::Sent;

/// A sequence of bytes in segments, with a tail that is being filled.
///
/// A rope receives with `readv` directly into pages of its [`Pool`], sends by gather writes, is split and appended
/// without copying, and becomes one contiguous [`View`](crate::View).
///
/// ```text
/// Rope   [seg][seg][seg][tail····]        each segment is a `Bytes`: counted, sliceable,
///          0    1    2    being filled    from the pool or from elsewhere
/// ```
///
/// `len`, `is_empty` and `num_segments` are O(1). Finding a position is O(log n) in the number of segments. Consecutive
/// small reads and copies fill the same tail and are *one* segment.
///
/// # Examples
///
/// ```
/// use ropewalk::{Pool, Rope};
///
/// let pool = Pool::new()?;
/// let mut rope = Rope::in_pool(&pool);
/// rope.extend_from_slice(b"a header, ");
/// rope.push("a shared body"); // no copy
/// let view = rope.finalize()?;
/// assert_eq!(&*view, b"a header, a shared body");
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct Rope {
    segments: Segments,
    /// The extent behind the segments. `None`, or with at least one filled or spare byte.
    tail: Option<Box<Extent>>,
    /// The next byte of the tail, which is empty, begins something whose place matters: nothing is copied in front of it.
    tail_begins: bool,
    /// What arrives is taken off, frame by frame, so the tail needs no pages behind it to grow into.
    passes_on: bool,
    /// Where the tail is allocated.
    memory: Memory,
    /// The sizes of `memory`, copied here because small copies read them.
    limits: &'static Limits,
    /// Most bytes that the rope may hold by receiving.
    limit: usize,
    /// The read size; `None` before the first read.
    reads: Option<Pace>,
    sends: Pace,
    /// The descriptor of the last receive.
    source: KnownFd,
    /// The stream's next bytes, which no part of the rope has: one that was read to tell the end of the stream from the
    /// want of room, or the rest of a body's piece that did not fit. Whatever receives delivers them first. They stay with
    /// the rope that goes on receiving.
    pub(crate) held_back: Option<Bytes>,
}

impl Default for Rope {
    /// Creates a rope as [`Rope::new`] does.
    fn default() -> Rope {
        Rope::new()
    }
}

impl Rope {
    /// Creates an empty rope that receives into the heap. O(1), allocates nothing.
    ///
    /// For many or large payloads use [`in_pool`](Rope::in_pool).
    ///
    /// # Examples
    ///
    /// ```
    /// let mut rope = ropewalk::Rope::new();
    /// rope.push("one piece");
    /// assert!(rope.pool().is_none());
    /// ```
    #[must_use]
    #[inline]
    pub fn new() -> Rope {
        Rope::empty(Memory::Heap(Limits::SHIPPED))
    }

    /// Creates an empty rope that receives into `pool`. It holds no memory of it until bytes arrive. O(1), allocates
    /// nothing.
    ///
    /// # Examples
    ///
    /// ```
    /// use ropewalk::{Pool, Rope};
    ///
    /// let pool = Pool::new()?;
    /// let rope = Rope::in_pool(&pool);
    /// assert_eq!(pool.stats().in_use, 0);
    /// # drop(rope);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    #[inline]
    #[must_use]
    pub fn in_pool(pool: &Pool) -> Rope {
        Rope::empty(Memory::Pool(Room::empty(pool)))
    }

    /// Creates an empty rope for a payload that is handed to another process: its [view](Rope::finalize) is
    /// [sealed](crate::View::seal) without a copy.
    ///
    /// The rope has a [pool](Rope::pool) of its own, over a memfd that holds nothing else, with the default capacity: it
    /// takes a descriptor, address space of twice the capacity, about ten system calls, and no memory until bytes
    /// arrive. Idle pages stay resident until the rope is dropped. Receive a header that does not belong to the payload
    /// into another rope: a payload that does not start at the start of the memfd is copied when it is sealed.
    ///
    /// # Errors
    ///
    /// What memfd_create(2) reports, such as EMFILE at `RLIMIT_NOFILE`; and as for
    /// [`PoolOptions::create`](crate::PoolOptions::create). [`Unsupported`](std::io::ErrorKind::Unsupported) on other systems
    /// than Linux.
    ///
    /// # Examples
    ///
    /// ```
    /// # if cfg!(ropewalk_portable) { return Ok(()); }
    /// use ropewalk::Rope;
    ///
    /// let mut rope = Rope::for_handover()?;
    /// rope.extend_from_slice(&[7; 100_000]); // or received
    /// let sealed = rope.finalize()?.seal()?;
    /// assert_eq!(sealed.len(), 100_000);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn for_handover() -> io::Result<Rope> {
        Ok(Rope::in_pool(&Pool::for_handover()?))
    }

    /// open(2) with `O_TMPFILE`: creates an empty rope for a payload of at most `bytes` that becomes a file: its
    /// [view](Rope::finalize) gets a name without a copy, by [`View::persist`](crate::View::persist).
    ///
    /// The payload goes to a file of its own in `directory` as it is received, as what is
    /// [spilled](crate::PoolOptions::spill) does: received into memory, at most 16 MiB of which are not written yet, and
    /// written by a thread in units of 2 MiB. What is said there of full disks, of sending, and of devices that fail holds
    /// here too. If no name is given to it, the file is gone with the rope, its views and its segments, also after a
    /// crash.
    ///
    /// The rope has a [pool](Rope::pool) of its own: a thread, two descriptors (one where the file system knows no
    /// `O_DIRECT`), address space of twice `bytes`, and about twenty system calls. It holds units of 2 MiB, so small payloads
    /// cost less in an ordinary pool. A header that does not belong to the file is received into another rope, or split off
    /// before the first byte of the file comes.
    ///
    /// # Errors
    ///
    /// As for [`PoolOptions::create`](crate::PoolOptions::create) of a pool that spills.
    ///
    /// # Examples
    ///
    /// ```
    /// # if cfg!(ropewalk_portable) { return Ok(()); }
    /// use ropewalk::Rope;
    ///
    /// # let directory = tempfile::tempdir()?;
    /// # let directory = directory.path();
    /// let mut rope = Rope::for_file(directory, 1 << 30)?;
    /// rope.extend_from_slice(&[7; 3 << 20]); // or received
    /// rope.finalize()?.persist(directory.join("upload"))?;
    /// assert_eq!(std::fs::read(directory.join("upload"))?, [7; 3 << 20]);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn for_file(directory: impl AsRef<Path>, bytes: u64) -> io::Result<Rope> {
        Ok(Rope::in_pool(&Pool::for_file(directory.as_ref(), bytes)?))
    }

    /// Creates an empty rope that receives into the pool of `room`, from that room first. O(1).
    ///
    /// As many bytes are never refused because the pool is at capacity. Room that is not used is returned when the rope
    /// is dropped.
    ///
    /// # Examples
    ///
    /// ```
    /// use ropewalk::{Pool, Rope};
    ///
    /// let pool = Pool::options().capacity(1 << 20).create()?;
    /// let mut rope = Rope::in_room(pool.try_room(64 << 10)?);
    /// assert_eq!(pool.stats().reserved, 64 << 10);
    /// rope.extend_from_slice(&[7; 4096]);
    /// assert!(pool.stats().reserved < 64 << 10);
    /// drop(rope);
    /// assert_eq!(pool.stats().reserved, 0);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    #[must_use]
    pub fn in_room(room: Room) -> Rope {
        Rope::empty(Memory::Pool(room))
    }

    /// Adds reserved room to the rope, as for [`in_room`](Rope::in_room). O(1).
    ///
    /// # Errors
    ///
    /// Returns the room if this rope has no [pool](Rope::pool), or another one.
    ///
    /// # Examples
    ///
    /// ```
    /// use ropewalk::{Pool, Rope};
    ///
    /// let pool = Pool::new()?;
    /// let mut rope = Rope::in_pool(&pool);
    /// rope.add_room(pool.try_room(64 << 10)?).expect("it is of the same pool");
    /// assert!(Rope::new().add_room(pool.try_room(1)?).is_err());
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn add_room(&mut self, room: Room) -> Result<(), Room> {
        match &mut self.memory {
            Memory::Pool(held) => held.absorb(room),
            Memory::Heap(_) => Err(room),
        }
    }

    /// Returns an empty rope on the heap that uses small sizes, so that a test meets every seam within a few bytes.
    #[cfg(any(test, fuzzing))]
    #[must_use]
    pub fn with_small_limits() -> Rope {
        Rope::empty(Memory::Heap(Limits::SMALL))
    }

    #[inline]
    fn empty(memory: Memory) -> Rope {
        Rope {
            segments: Segments::default(),
            tail: None,
            tail_begins: false,
            passes_on: false,
            limits: memory.limits(),
            memory,
            limit: usize::MAX,
            reads: None,
            sends: Pace::SENDS,
            source: KnownFd::NONE,
            held_back: None,
        }
    }

    /// Returns the pool that this rope receives into. O(1).
    ///
    /// # Examples
    ///
    /// ```
    /// use ropewalk::{Pool, Rope};
    ///
    /// let rope = Rope::in_pool(&Pool::new()?);
    /// // Another rope in the same pool:
    /// let beside = rope.pool().map(Rope::in_pool).unwrap_or_default();
    /// # assert!(beside.pool().is_some());
    /// # Ok::<(), std::io::Error>(())
    /// ```
    #[inline]
    #[must_use]
    pub fn pool(&self) -> Option<&Pool> {
        self.memory.pool()
    }

    /// Returns the number of bytes in the rope. O(1).
    ///
    /// # Examples
    ///
    /// ```
    /// let rope: ropewalk::Rope = ["one ", "by ", "one"].into_iter().collect();
    /// assert_eq!(rope.len(), 10);
    /// ```
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        self.segments.len() + self.tail_len()
    }

    /// Returns `true` if the rope holds no bytes. O(1).
    ///
    /// # Examples
    ///
    /// ```
    /// assert!(ropewalk::Rope::new().is_empty());
    /// ```
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the number of segments, the tail included. O(1).
    ///
    /// # Examples
    ///
    /// ```
    /// let mut rope = ropewalk::Rope::from("pushed");
    /// rope.extend_from_slice(b"copied ");
    /// rope.extend_from_slice(b"behind each other");
    /// assert_eq!(rope.num_segments(), 2);
    /// ```
    #[inline]
    #[must_use]
    pub fn num_segments(&self) -> usize {
        self.segments.count() + usize::from(self.tail_len() > 0)
    }

    /// Returns the most bytes that this rope may hold by receiving; [`usize::MAX`] if there is no limit. O(1).
    ///
    /// Where [`BufMut`](bytes::BufMut) is in scope, whose method of that name takes a buffer by value, write
    /// `Rope::limit(&rope)`.
    ///
    /// # Examples
    ///
    /// ```
    /// let mut rope = ropewalk::Rope::new();
    /// assert_eq!(rope.limit(), usize::MAX);
    /// rope.set_limit(1 << 20);
    /// assert_eq!(rope.limit(), 1 << 20);
    /// ```
    #[inline]
    #[must_use]
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Sets the most bytes that the rope may hold by receiving or through [`BufMut`](bytes::BufMut). O(1).
    ///
    /// At the limit a receive fails with [`QuotaExceeded`](std::io::ErrorKind::QuotaExceeded) if there is more, and
    /// takes nothing from the kernel; the rope keeps its bytes. [Pushing](Rope::push) is not limited.
    ///
    /// # Examples
    ///
    /// ```
    /// use ropewalk::Rope;
    /// use std::io::{ErrorKind, Write};
    /// use std::os::unix::net::UnixStream;
    ///
    /// let (mut peer, socket) = UnixStream::pair()?;
    /// peer.write_all(b"far too much")?;
    /// let mut rope = Rope::new();
    /// rope.set_limit(3);
    /// assert_eq!(rope.readv_from(&socket)?, 3);
    /// assert_eq!(rope.readv_from(&socket).unwrap_err().kind(), ErrorKind::QuotaExceeded);
    /// assert_eq!(rope, b"far"[..]);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn set_limit(&mut self, bytes: usize) {
        self.limit = bytes;
    }

    /// Appends a segment without copying it. Amortised O(1).
    ///
    /// Bytes that are only borrowed are copied by [`extend_from_slice`](Rope::extend_from_slice). Another rope is
    /// [appended](Rope::append), without a copy.
    ///
    /// # Panics
    ///
    /// If the rope would have more than [`usize::MAX`] bytes, which takes segments that share memory.
    ///
    /// # Examples
    ///
    /// ```
    /// let mut rope = ropewalk::Rope::new();
    /// rope.push("static");
    /// rope.push(vec![b'!'; 3]);
    /// assert_eq!((rope.len(), rope.num_segments()), (9, 2));
    /// ```
    ///
    /// Any owner of bytes can be a segment, such as a memory-mapped file:
    ///
    /// ```
    /// use bytes::Bytes;
    /// use memmap2::Mmap;
    /// use ropewalk::Rope;
    ///
    /// let file = std::fs::File::open("/proc/self/exe")?;
    /// // SAFETY: the file of a running program does not change.
    /// let map = unsafe { Mmap::map(&file)? };
    /// let mut rope = Rope::from("a header, and then ");
    /// rope.push(Bytes::from_owner(map));
    /// assert_eq!(rope.len() as u64, 19 + file.metadata()?.len());
    /// # Ok::<(), std::io::Error>(())
    /// ```
    #[inline]
    pub fn push(&mut self, bytes: impl Into<Bytes> + 'static) {
        match segment(bytes) {
            Ok(bytes) => self.push_bytes(bytes),
            Err(rope) => self.append(rope),
        }
    }

    /// Makes room for `more` segments behind those that are there: until it is used, [`push`](Rope::push) does not
    /// allocate a larger table of segments. Amortised O(1) for one, else O(segments).
    ///
    /// For callers to which a failed allocation has to be an error. `push` aborts the process then, as
    /// [`Vec::push`](Vec::push) does.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`](io::ErrorKind::OutOfMemory) when the heap has no memory for the table. The rope is as it was.
    ///
    /// # Examples
    ///
    /// ```
    /// let mut rope = ropewalk::Rope::new();
    /// rope.reserve_segments(1)?;
    /// rope.push("a segment");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn reserve_segments(&mut self, more: usize) -> io::Result<()> {
        let with_tail = more.saturating_add(usize::from(self.has_tail()));
        self.segments.try_reserve(with_tail).map_err(|error| {
            let message =
                format!("no heap memory for a table of {} and {more} segments: {error}", self.num_segments());
            io::Error::new(io::ErrorKind::OutOfMemory, message)
        })
    }

    #[inline]
    fn push_bytes(&mut self, bytes: Bytes) {
        if self.tail.is_some() {
            return self.push_behind_tail(bytes);
        }
        self.segments.push(bytes);
    }

    #[inline(never)]
    fn push_behind_tail(&mut self, bytes: Bytes) {
        if !bytes.is_empty() {
            self.freeze();
        }
        self.segments.push(bytes);
    }

    /// Prepends a segment without copying it. Amortised O(1).
    ///
    /// Another rope is prepended segment by segment: amortised O(segments of the shorter rope).
    ///
    /// # Panics
    ///
    /// As [`push`](Rope::push).
    ///
    /// # Examples
    ///
    /// ```
    /// let mut rope = ropewalk::Rope::from("body");
    /// rope.push_front((rope.len() as u32).to_be_bytes().to_vec());
    /// assert_eq!(rope, b"\0\0\0\x04body");
    /// ```
    #[inline]
    pub fn push_front(&mut self, bytes: impl Into<Bytes> + 'static) {
        match segment(bytes) {
            Ok(bytes) => self.segments.push_front(bytes),
            Err(rope) if self.is_empty() => self.append(rope),
            Err(mut rope) => {
                rope.finish();
                rope.segments.append(std::mem::take(&mut self.segments));
                self.segments = rope.segments;
            }
        }
    }

    /// Appends all of `other` without copying. Amortised O(segments of the shorter rope).
    ///
    /// This rope keeps its own pool and limit.
    ///
    /// # Panics
    ///
    /// As [`push`](Rope::push).
    ///
    /// # Examples
    ///
    /// ```
    /// let mut rope = ropewalk::Rope::from("head, ");
    /// rope.append(ropewalk::Rope::from("and body"));
    /// assert_eq!(rope, b"head, and body");
    /// ```
    pub fn append(&mut self, mut other: Rope) {
        self.held_back = match (self.held_back.take(), other.held_back.take()) {
            (Some(first), Some(second)) => Some([first, second].concat().into()),
            (first, second) => first.or(second),
        };
        if !other.is_empty() {
            self.freeze();
            other.finish();
            self.segments.append(std::mem::take(&mut other.segments));
        }
    }

    /// Removes and returns the first `at` bytes without copying. O(log n + segments on the smaller side).
    ///
    /// The returned rope has this rope's pool and limit. This rope keeps the tail and its reserved memory.
    ///
    /// # Panics
    ///
    /// If `at > self.len()`.
    ///
    /// # Examples
    ///
    /// ```
    /// let mut rope = ropewalk::Rope::from("head and body");
    /// let head = rope.split_to(4);
    /// assert_eq!(head, b"head"[..]);
    /// assert_eq!(rope, b" and body"[..]);
    /// ```
    #[track_caller]
    #[must_use = "use `advance` to drop the bytes"]
    pub fn split_to(&mut self, at: usize) -> Rope {
        self.check("split_to", at);
        if at > self.segments.len() {
            self.freeze();
        }
        let segments = self.segments.split_to(at);
        self.beside(segments)
    }

    /// Removes and returns the bytes from position `at` on, without copying. O(log n + segments removed).
    ///
    /// The returned rope has this rope's pool and limit. This rope receives next behind the bytes that are left.
    ///
    /// # Panics
    ///
    /// If `at > self.len()`.
    ///
    /// # Examples
    ///
    /// ```
    /// let mut rope = ropewalk::Rope::from("body and trailer");
    /// let trailer = rope.split_off(4);
    /// assert_eq!(rope, b"body");
    /// assert_eq!(trailer, b" and trailer");
    /// ```
    #[track_caller]
    #[must_use = "use `truncate` to drop the bytes"]
    pub fn split_off(&mut self, at: usize) -> Rope {
        self.check("split_off", at);
        self.freeze();
        let segments = self.segments.split_off(at);
        self.beside(segments)
    }

    /// Drops the first `count` bytes. O(segments dropped).
    ///
    /// The pages of whole segments are freed at once, those of a segment that is cut with the rest of it. A received one
    /// has at most 2 MiB.
    ///
    /// # Panics
    ///
    /// If `count > self.len()`.
    ///
    /// # Examples
    ///
    /// ```
    /// let mut rope = ropewalk::Rope::from("head and body");
    /// rope.advance(9);
    /// assert_eq!(rope, b"body");
    /// ```
    #[track_caller]
    #[inline]
    pub fn advance(&mut self, count: usize) {
        if count > self.segments.len() {
            return self.advance_into_tail(count);
        }
        self.segments.advance(count);
    }

    #[track_caller]
    #[inline(never)]
    fn advance_into_tail(&mut self, count: usize) {
        self.check("advance", count);
        self.freeze();
        self.segments.advance(count);
    }

    /// Keeps the first `len` bytes and drops the rest; does nothing if there are fewer. O(log n + segments dropped).
    ///
    /// # Examples
    ///
    /// ```
    /// let mut rope = ropewalk::Rope::from("body and padding");
    /// rope.truncate(4);
    /// assert_eq!(rope, b"body");
    /// rope.truncate(100);
    /// assert_eq!(rope.len(), 4);
    /// ```
    pub fn truncate(&mut self, len: usize) {
        if len < self.len() {
            self.freeze();
            self.segments.truncate(len);
        }
    }

    /// Drops all bytes and gives the tail back. Pool and limit stay, and so do the bytes that a receive from a reader or
    /// of a body may have held back: they are the stream's next ones. For another stream make another rope. O(segments).
    ///
    /// # Examples
    ///
    /// ```
    /// let mut rope = ropewalk::Rope::from("done with");
    /// rope.clear();
    /// assert!(rope.is_empty());
    /// ```
    pub fn clear(&mut self) {
        self.segments = Segments::default();
        self.tail = None;
    }

    /// Returns the bytes of `range` as another rope that shares their memory. O(log n + segments in the range).
    ///
    /// # Panics
    ///
    /// If the range starts after its end or ends beyond the rope.
    ///
    /// # Examples
    ///
    /// ```
    /// let rope = ropewalk::Rope::from("0123456789");
    /// assert_eq!(rope.slice(2..=4), b"234"[..]);
    /// ```
    #[track_caller]
    #[must_use]
    pub fn slice(&self, range: impl RangeBounds<usize>) -> Rope {
        let Range { start: from, end: to } = resolve(range, self.len(), "the rope");
        let mut segments = self.segments.slice(from, to.min(self.segments.len()));
        let before = self.segments.len();
        if let Some(tail) = self.tail.as_ref().filter(|_| to > before && to > from) {
            segments.push(tail.share(from.saturating_sub(before)..to - before));
        }
        self.beside(segments)
    }

    /// Returns `true` if the rope begins with `prefix`, wherever segments begin and end. O(bytes of `prefix`).
    ///
    /// # Examples
    ///
    /// ```
    /// let rope: ropewalk::Rope = ["GI", "F89a", " and more"].into_iter().collect();
    /// assert!(rope.starts_with(b"GIF89a"));
    /// assert!(!rope.starts_with(b"\x89PNG"));
    /// ```
    #[must_use]
    pub fn starts_with(&self, prefix: &[u8]) -> bool {
        let mut left = prefix;
        for chunk in self.chunks() {
            let count = chunk.len().min(left.len());
            let (now, later) = left.split_at(count);
            if now != &chunk[..count] || later.is_empty() {
                return now == &chunk[..count];
            }
            left = later;
        }
        left.is_empty()
    }

    /// Returns the bytes as borrowed slices, in order, none of them empty. O(1), and O(1) for each.
    ///
    /// # Examples
    ///
    /// ```
    /// let rope: ropewalk::Rope = ["one", "two"].into_iter().collect();
    /// let sum: u32 = rope.chunks().flatten().map(|&byte| u32::from(byte)).sum();
    /// assert_eq!(rope.chunks().next_back(), Some(&b"two"[..]));
    /// # assert_eq!(sum, 668);
    /// ```
    #[must_use]
    pub fn chunks(&self) -> impl DoubleEndedIterator<Item = &[u8]> + Clone {
        self.segments.iter().map(|bytes| &**bytes).chain(self.filled_tail())
    }

    /// Returns the bytes as owned segments that share the memory, in order, none of them empty. O(pages of the tail),
    /// and O(1) for each.
    ///
    /// # Examples
    ///
    /// ```
    /// use bytes::Bytes;
    /// use ropewalk::Rope;
    ///
    /// let rope: Rope = ["one", "two"].into_iter().collect();
    /// let kept: Vec<Bytes> = rope.segments().collect(); // no copy
    /// drop(rope);
    /// assert_eq!(kept, ["one", "two"]);
    /// ```
    #[must_use]
    pub fn segments(&self) -> impl DoubleEndedIterator<Item = Bytes> {
        let tail = self.tail.as_ref().filter(|tail| tail.len() > 0).map(|tail| tail.share(0..tail.len()));
        self.segments.iter().cloned().chain(tail)
    }

    /// Returns a copy of all bytes. O(len). To have them contiguous without a copy, and an error where there is no memory,
    /// [finalise](Rope::finalize).
    ///
    /// # Examples
    ///
    /// ```
    /// let rope: ropewalk::Rope = ["one", "two"].into_iter().collect();
    /// assert_eq!(rope.to_vec(), b"onetwo");
    /// ```
    #[must_use]
    pub fn to_vec(&self) -> Vec<u8> {
        let mut vec = Vec::with_capacity(self.len());
        self.chunks().for_each(|chunk| vec.extend_from_slice(chunk));
        vec
    }

    /// Removes the first `dst.len()` bytes and copies them to `dst`, as
    /// [`Buf::copy_to_slice`](bytes::Buf::copy_to_slice) does. O(bytes copied).
    ///
    /// # Panics
    ///
    /// If `dst` is longer than the rope.
    ///
    /// # Examples
    ///
    /// ```
    /// let mut rope = ropewalk::Rope::from("GIF89a and more");
    /// let mut magic = [0; 6];
    /// rope.copy_to_slice(&mut magic);
    /// assert_eq!(&magic, b"GIF89a");
    /// assert_eq!(rope, b" and more");
    /// ```
    #[track_caller]
    pub fn copy_to_slice(&mut self, dst: &mut [u8]) {
        self.check("copy_to_slice", dst.len());
        self.copy_first(dst);
        self.advance(dst.len());
    }

    /// Copies the first bytes, of which there are enough.
    pub(crate) fn copy_first(&self, dst: &mut [u8]) {
        let mut done = 0;
        for chunk in self.chunks() {
            let count = chunk.len().min(dst.len() - done);
            dst[done..done + count].copy_from_slice(&chunk[..count]);
            done += count;
            if done == dst.len() {
                return;
            }
        }
    }

    /// Returns a cursor at the first byte. O(1).
    ///
    /// # Examples
    ///
    /// ```
    /// use bytes::Buf;
    /// use ropewalk::Rope;
    ///
    /// let rope = Rope::from(vec![0, 0, 1, 0, 7]);
    /// assert_eq!(rope.cursor().get_u32(), 256);
    /// assert_eq!(rope.len(), 5); // reading did not change the rope
    /// ```
    #[must_use]
    pub fn cursor(&self) -> Cursor<&Rope> {
        Cursor::new(self)
    }

    /// Returns a cursor at the first byte that owns the rope. O(1).
    ///
    /// # Examples
    ///
    /// ```
    /// use std::io::Read;
    ///
    /// let mut cursor = ropewalk::Rope::from("read it").into_cursor();
    /// let mut text = String::new();
    /// cursor.read_to_string(&mut text)?;
    /// assert_eq!(text, "read it");
    /// assert_eq!(cursor.into_inner(), b"read it");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    #[must_use]
    pub fn into_cursor(self) -> Cursor<Rope> {
        Cursor::new(self)
    }

    /// Removes and returns all bytes as segments.
    pub(crate) fn take_segments(&mut self) -> impl ExactSizeIterator<Item = Bytes> + use<> {
        self.finish();
        std::mem::take(&mut self.segments).into_iter()
    }

    /// Removes and returns all bytes if they are one segment or none.
    #[inline]
    pub(crate) fn take_single(&mut self) -> Option<Bytes> {
        self.finish();
        self.segments.take_single()
    }

    /// Removes and returns the first segment.
    #[inline]
    pub(crate) fn pop_front(&mut self) -> Option<Bytes> {
        if self.segments.count() == 0 {
            self.freeze();
        }
        self.segments.pop_front()
    }

    /// Removes and returns the first `len` bytes if they are one segment or part of one.
    #[inline]
    pub(crate) fn take_within_first(&mut self, len: usize) -> Option<Bytes> {
        if self.segments.count() == 0 {
            self.freeze();
        }
        self.segments.take_within_first(0, len)
    }

    /// Returns the read size: at first what the pool's last payload began with, on the heap `inline_max`.
    #[inline]
    pub(crate) fn reads(&mut self) -> &mut Pace {
        self.reads.get_or_insert_with(|| match self.memory.pool() {
            Some(pool) => Pace::reads(pool.first_read()),
            None => Pace::careful(self.limits.inline_max),
        })
    }

    /// Returns the descriptor of the last receive.
    #[inline]
    pub(crate) fn source(&mut self) -> &mut KnownFd {
        &mut self.source
    }

    /// Returns whether what was received must be overwritten when it is freed.
    #[inline]
    pub(crate) fn zeroes(&self) -> bool {
        self.memory.zeroes()
    }

    /// Returns heap bytes as a segment, which is zeroed on drop if the pool zeroes.
    #[inline]
    pub(crate) fn own(&self, bytes: Box<[u8]>) -> Bytes {
        self.memory.own(bytes)
    }

    /// Returns the longest run of bytes that is copied rather than given a page or an iovec of its own.
    #[inline]
    pub(crate) fn inline_max(&self) -> usize {
        self.limits.inline_max
    }

    #[inline]
    pub(crate) fn limits(&self) -> &'static Limits {
        self.limits
    }

    pub(crate) fn sends(&mut self) -> &mut Pace {
        &mut self.sends
    }

    /// Returns a rope of these segments with this rope's pool, limit and adaptive sizes.
    #[inline]
    fn beside(&self, segments: Segments) -> Rope {
        Rope {
            segments,
            tail: None,
            tail_begins: false,
            passes_on: false,
            memory: self.memory.share(),
            limits: self.limits,
            limit: self.limit,
            reads: self.reads,
            sends: self.sends,
            source: self.source,
            held_back: None,
        }
    }

    /// Returns piece `index`: a segment, the tail behind the segments, or an empty slice.
    #[inline]
    pub(crate) fn piece(&self, index: usize) -> &[u8] {
        match (self.segments.get(index), &self.tail) {
            (Some(bytes), _) => bytes,
            (None, Some(tail)) if index == self.segments.count() => tail.filled(),
            _ => &[],
        }
    }

    #[inline]
    #[track_caller]
    fn check(&self, operation: &str, at: usize) {
        if at > self.len() {
            self.beyond(operation, at);
        }
    }

    #[cold]
    #[track_caller]
    fn beyond(&self, operation: &str, at: usize) -> ! {
        panic!("{operation}: {at} is beyond the rope's {} bytes", self.len());
    }

    /// Panics if an invariant does not hold; for tests and fuzzers.
    #[cfg(any(test, fuzzing))]
    pub fn assert_invariants(&self) {
        self.segments.assert_invariants();
        if let Some(tail) = &self.tail {
            tail.assert_invariants();
            assert!(tail.len() + tail.spare() > 0);
        }
        assert_eq!(self.len(), self.chunks().map(<[u8]>::len).sum::<usize>());
        assert_eq!(self.num_segments(), self.chunks().count());
    }
}

/// The range in bytes of `what`, which has `len` of them.
#[track_caller]
pub(crate) fn resolve(range: impl RangeBounds<usize>, len: usize, what: &str) -> Range<usize> {
    let from = match range.start_bound() {
        Bound::Included(&at) => at,
        Bound::Excluded(&before) => before.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let to = match range.end_bound() {
        Bound::Included(&last) => last.saturating_add(1),
        Bound::Excluded(&at) => at,
        Bound::Unbounded => len,
    };
    assert!(from <= to, "the range starts at {from}, after its end at {to}");
    assert!(to <= len, "the range ends: {to} is beyond {what}'s {len} bytes");
    from..to
}

impl Clone for Rope {
    /// Shares the memory. O(segments + pages of the tail).
    fn clone(&self) -> Rope {
        let mut segments = self.segments.clone();
        segments
            .extend(self.tail.as_ref().filter(|tail| tail.len() > 0).map(|tail| tail.share(0..tail.len())));
        self.beside(segments)
    }
}

impl fmt::Debug for Rope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rope")
            .field("len", &self.len())
            .field("segments", &self.num_segments())
            .field("pooled", &self.pool().is_some())
            .finish_non_exhaustive()
    }
}

impl Extend<Bytes> for Rope {
    fn extend<I: IntoIterator<Item = Bytes>>(&mut self, segments: I) {
        let segments = segments.into_iter();
        self.segments.reserve(segments.size_hint().0);
        segments.for_each(|bytes| self.push_bytes(bytes));
    }
}

impl<'a> Extend<&'a [u8]> for Rope {
    /// Copies the slices into the tail.
    fn extend<I: IntoIterator<Item = &'a [u8]>>(&mut self, slices: I) {
        slices.into_iter().for_each(|slice| self.extend_from_slice(slice));
    }
}

impl<B: Into<Bytes> + 'static> FromIterator<B> for Rope {
    /// [Pushes](Rope::push) all of them, without a copy.
    fn from_iter<I: IntoIterator<Item = B>>(segments: I) -> Rope {
        let (mut rope, segments) = (Rope::new(), segments.into_iter());
        rope.segments.reserve(segments.size_hint().0);
        segments.for_each(|segment| rope.push(segment));
        rope
    }
}

/// Converts into a segment; returns a rope unchanged, since converting it would join it. Resolved at compile time.
#[inline]
#[allow(clippy::result_large_err)] // it is inlined, and known which of the two it is
fn segment<B: Into<Bytes> + 'static>(bytes: B) -> Result<Bytes, Rope> {
    let mut bytes = Some(bytes);
    if let Some(rope) = (&mut bytes as &mut dyn Any).downcast_mut::<Option<Rope>>().and_then(Option::take) {
        return Err(rope);
    }
    bytes.map(Into::into).ok_or_else(Rope::new)
}

/// Yields the segments of a [`Rope`] in order.
///
/// # Examples
///
/// ```
/// let rope: ropewalk::Rope = ["one", "two"].into_iter().collect();
/// for segment in rope {
///     assert_eq!(segment.len(), 3); // a `bytes::Bytes`
/// }
/// ```
pub struct IntoIter(IntoSegments);

impl fmt::Debug for IntoIter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IntoIter").field("segments", &self.0.len()).finish()
    }
}

impl Iterator for IntoIter {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        self.0.next()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.0.size_hint()
    }
}

impl DoubleEndedIterator for IntoIter {
    fn next_back(&mut self) -> Option<Bytes> {
        self.0.next_back()
    }
}

impl ExactSizeIterator for IntoIter {}
impl iter::FusedIterator for IntoIter {}

impl IntoIterator for Rope {
    type Item = Bytes;
    type IntoIter = IntoIter;

    fn into_iter(mut self) -> IntoIter {
        self.finish();
        IntoIter(self.segments.into_iter())
    }
}
