//! Bodies of known length: each in one run, which starts where it has to.
//!
//! ```text
//!                 arrived      missing                     next
//! rope  … [header][######]                                             after a read ahead: moved once
//!                 [######│····································]        a run of its own
//!         readv ──►       [ the rest of the body              ][ stack: the next header, and a few bytes more ]
//! ```
//!
//! A long body is not read ahead into, so hardly any of its bytes arrive in the wrong place.
#![allow(clippy::inline_always)] // the path of a short frame, which the compiler takes for too long

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;

use smallvec::SmallVec;
use zeroize::Zeroize;

use super::extent::Extent;
use super::recv::filled;
use super::segments::Segments;
use super::tail::no_room;
use super::{Pace, Rope};
use crate::sys::iovec::UninitIovec;
use crate::sys::{self, FdKind};

/// Most bytes that are received behind a body: less than 1 % of [`LONG`].
const MAX_NEXT: usize = 512;

/// The part of a body that may be received behind it, as 1 of so many: what is copied of the next body stays below 1 %.
const NEXT_PART: usize = 128;

/// Shortest body that is received on its own, without reading ahead: as long as a usual read, which would bring only a
/// part of it, and that into the wrong place.
const LONG: usize = 64 << 10;

/// Shortest body that is aligned.
pub(crate) const MIN_ALIGNED: usize = 4 << 10;

/// A body of which not all has arrived: the last bytes of a rope.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Body {
    /// Bytes that are in the rope.
    pub(crate) arrived: usize,
    /// Bytes that are not.
    pub(crate) missing: usize,
    /// A power of two.
    pub(crate) align: usize,
    /// Bytes of a header.
    pub(crate) header: usize,
}

impl Body {
    fn len(&self) -> usize {
        self.arrived + self.missing
    }

    /// Bytes of the pool that suffice for it, wherever in a page it starts.
    #[cfg(feature = "tokio")]
    pub(crate) fn room(&self) -> usize {
        self.len().saturating_add(self.align)
    }

    /// Returns whether nothing is read ahead until this body has arrived, but for the next header.
    pub(crate) fn is_received_alone(&self) -> bool {
        self.len() >= if self.align > 1 { MIN_ALIGNED } else { LONG }
    }

    /// Bytes that are received behind it.
    fn next(&self) -> usize {
        (self.len() / NEXT_PART).max(self.header).min(MAX_NEXT)
    }
}

impl Rope {
    /// readv(2) of what is missing of `body`; of a short one, and if nothing is known yet, with as much as the adaptive
    /// read size allows behind it. `Ok(0)` is the end of the stream.
    ///
    /// # Errors
    ///
    /// As for [`readv_from`](Rope::readv_from) and [`reserve_body`](Rope::reserve_body).
    pub(crate) fn readv_body(
        &mut self,
        fd: BorrowedFd<'_>,
        is_stream: bool,
        body: Option<Body>,
    ) -> io::Result<usize> {
        self.prepare_body(body)?;
        let Some(body) = body else { return self.read_some(fd, is_stream, usize::MAX) };
        let mut kind = self.source().kind(fd, is_stream);
        if self.held_back.is_some() || !body.is_received_alone() || kind.keeps_messages() {
            return self.read_some(fd, is_stream, usize::MAX);
        }
        let received = self.fill_body(body, |iovecs| sys::readv(fd, iovecs, &mut kind));
        self.source().note(kind);
        if kind.was_asked_for_packets() {
            if kind == FdKind::Packets {
                return self.read_some(fd, is_stream, usize::MAX);
            }
            self.source().note_file(fd);
        }
        match received {
            Err(error) if sys::needs_alignment(fd, &error) => self.read_some(fd, is_stream, usize::MAX),
            received => self.received(received.map(Some)),
        }
    }

    /// Makes room for what is missing of `body`, as [`reserve_body`](Rope::reserve_body) does, and returns how much may be
    /// received next: no more than that of a long one.
    ///
    /// # Errors
    ///
    /// As for [`reserve_body`](Rope::reserve_body).
    pub(crate) fn prepare_body(&mut self, body: Option<Body>) -> io::Result<usize> {
        self.passes_on = true;
        let Some(body) = body else {
            self.restart_if_empty();
            return Ok(usize::MAX);
        };
        self.reserve_body(body)?;
        Ok(if body.is_received_alone() { body.missing } else { usize::MAX })
    }

    /// Makes the call with memory for what is missing of `body`, and with some on the stack for what follows it.
    #[allow(unsafe_code)] // that the bytes are there is known only here
    fn fill_body(
        &mut self,
        body: Body,
        call: impl FnOnce(&mut [UninitIovec<'_>]) -> io::Result<usize>,
    ) -> io::Result<usize> {
        let mut stack = [MaybeUninit::uninit(); MAX_NEXT];
        let allowed = self.allowed();
        let mut offer = self.offer(body.missing).inspect_err(|_| self.release_spare())?;
        let ready = offer.len();
        let next = if ready == body.missing { body.next().min(allowed - ready) } else { 0 };
        let [tail, beyond] = self.iovecs(&mut offer);
        let places = [tail, beyond, UninitIovec::new(&mut stack, next)];
        let mut iovecs: SmallVec<[_; 3]> = places.into_iter().filter(|iovec| iovec.len() > 0).collect();
        let result = call(&mut iovecs);
        drop(iovecs);
        let moved = *result.as_ref().unwrap_or(&0);
        // SAFETY: the kernel fills iovecs in order and wrote `moved` bytes, which `sys` has checked to be no more than
        // it was offered; the first `ready` of these are the offer's.
        unsafe { self.commit(&mut offer, moved.min(ready)) };
        self.source().was_short = 0 < moved && moved < ready + next;
        if moved > ready {
            self.push(self.own(filled(&stack, moved - ready).into()));
            if self.zeroes() {
                stack.zeroize();
            }
        }
        self.release_spare();
        result
    }

    /// Makes the first read as short as one behind a long body, so that little of the first body has to be moved.
    pub(crate) fn read_carefully(&mut self) {
        self.reads.get_or_insert(Pace::careful(MAX_NEXT));
    }

    /// Makes room for what is missing of `body`, in one run with what has arrived of it: that is moved if there is no room
    /// behind it, or if it does not start where it has to. The pages count as in use; they are given memory as bytes
    /// arrive.
    ///
    /// A body that may start anywhere is received in pieces if the pool has no such run.
    ///
    /// # Errors
    ///
    /// `QuotaExceeded` if the rope's limit does not allow so many bytes; `OutOfMemory` as for
    /// [`reserve`](Rope::reserve) if the body has to be aligned. The rope holds what it held.
    pub(crate) fn reserve_body(&mut self, body: Body) -> io::Result<()> {
        if body.missing > self.allowed() {
            return Err(self.limit_reached());
        }
        self.reads().at_least(body.missing);
        if self.is_better_moved(body) || !(self.is_in_place(body) && self.extend_tail(body.missing)) {
            match self.move_body(body) {
                Err(_) if body.align == 1 => return Ok(()),
                moved => moved?,
            }
        }
        self.tail_begins = self.tail_len() == 0;
        Ok(())
    }

    /// A rope that holds nothing keeps nothing, and goes on in pages that are resident.
    #[inline]
    pub(crate) fn restart_if_empty(&mut self) {
        if self.has_tail() && self.is_empty() {
            self.restart();
        }
    }

    /// Frees the spare memory behind the bytes, if the rope is in a pool and nothing of it is reserved: the pages of earlier
    /// frames are resident, those behind may not be.
    fn restart(&mut self) {
        self.tail_begins = false;
        if self.pool().is_some() {
            if let Some(tail) = self.tail.take_if(|tail| tail.reserved() == 0) {
                tail.discard(&mut self.memory);
            }
        }
    }

    /// Returns whether to go on in pages of earlier frames, which are resident, rather than behind this one, though what
    /// has arrived must be copied there: it costs less than to give as many pages memory as the next read asks for.
    fn is_better_moved(&mut self, body: Body) -> bool {
        let read = self.reads().bytes();
        let ready = self.tail.as_deref().map_or(0, Extent::ready);
        !body.is_received_alone() && self.pool().is_some() && ready < read && body.arrived <= read / 2
    }

    /// Returns whether what has arrived of `body` starts where it has to and ends where the spare bytes of the tail begin.
    fn is_in_place(&self, body: Body) -> bool {
        let Some(tail) = &self.tail else { return false };
        let start = tail.end_address().wrapping_sub(body.arrived);
        let in_one_run = || self.run_start(self.len() - body.arrived, body.arrived) == Some(start);
        start % body.align == 0 && (tail.len() >= body.arrived || self.pool().is_some() && in_one_run())
    }

    /// Moves what has arrived of `body` to a place with room for all of it: in the tail, or a fresh one.
    fn move_body(&mut self, body: Body) -> io::Result<()> {
        self.freeze();
        if self.is_better_moved(body) {
            self.restart();
        }
        let fits = |tail: &Extent| tail.spare() >= lead(tail, body.align).saturating_add(body.len());
        if !self.tail.as_deref().is_some_and(fits) {
            let ahead = if body.is_received_alone() { 0 } else { self.reads().bytes() + body.arrived };
            let fresh = self.allocate_body(body.len(), body.align, ahead)?;
            self.replace_tail(fresh);
        }
        let Some(tail) = &mut self.tail else { return Err(no_room()) };
        tail.skip(lead(tail, body.align))?;
        tail.commit(body.arrived)?;
        if tail.ready() < body.arrived {
            return Err(no_room());
        }
        let arrived = self.segments.split_off(self.segments.len() - body.arrived);
        arrived.iter().for_each(|bytes| {
            tail.copy_from(bytes);
        });
        tail.reserve(body.missing);
        self.cut_segments();
        Ok(())
    }

    /// An extent of at least `len` bytes from the first multiple of `align` on, or rather of `ahead`.
    fn allocate_body(&mut self, len: usize, align: usize, ahead: usize) -> io::Result<Extent> {
        let aligned = self.pool().is_some_and(|pool| pool.page_size() % align == 0);
        let want = len.saturating_add(if aligned { 0 } else { align - 1 });
        if ahead > want {
            let fresh = self.memory.allocate_packed(ahead)?;
            if fresh.spare() >= want {
                return Ok(fresh);
            }
            fresh.discard(&mut self.memory);
        }
        self.memory.allocate_exact(want)
    }

    /// Takes `body` off, all of which has arrived, and drops the first `skip` bytes, which are in front of it. If a body
    /// that has to be aligned is not, or is not in one run, it is copied.
    ///
    /// # Errors
    ///
    /// `OutOfMemory` if there is none for that copy. The rope is as it was.
    #[inline(always)]
    pub(crate) fn take_body(&mut self, skip: usize, body: Body) -> io::Result<Option<Rope>> {
        // The path of short frames: each result is written once, where the caller wants it.
        if !body.is_received_alone() {
            if let Some(bytes) = self.segments.take_within_first(skip, body.arrived) {
                return Ok(Some(self.beside(Segments::of(bytes))));
            }
        }
        self.take_any_body(skip, body).map(Some)
    }

    #[inline(never)]
    fn take_any_body(&mut self, skip: usize, body: Body) -> io::Result<Rope> {
        let (len, align) = (body.len(), body.align);
        if align > 1 && !self.is_aligned(skip, len, align) {
            self.take_copied(skip, len, align)
        } else {
            self.advance(skip);
            Ok(self.split_to(len))
        }
        .inspect(|_| {
            if body.is_received_alone() && self.len() <= MAX_NEXT {
                self.reads = Some(Pace::careful(body.next()));
            }
        })
    }

    /// Returns whether these bytes are in one run that starts at a multiple of `align`.
    fn is_aligned(&self, from: usize, len: usize, align: usize) -> bool {
        self.run_start(from, len).is_some_and(|start| start % align == 0)
    }

    /// Returns the address of the bytes `from..from + len` if they are in one run: in segments that follow each other in
    /// the pool, or in one on the heap.
    fn run_start(&self, from: usize, len: usize) -> Option<usize> {
        let first = self.segments.index_of(from);
        let inside = from - self.segments.start_of(first);
        let start = self.piece(first).as_ptr().addr() + inside;
        let mut end = self.piece(first).len() - inside;
        for index in first + 1..self.num_segments() {
            if end >= len {
                break;
            }
            let next = self.piece(index);
            if self.pool().is_none() || next.as_ptr().addr() != start + end {
                return None;
            }
            end += next.len();
        }
        Some(start)
    }

    /// As [`take_body`](Rope::take_body), with a copy.
    #[inline(never)]
    fn take_copied(&mut self, skip: usize, len: usize, align: usize) -> io::Result<Rope> {
        let mut copy = self.allocate_body(len, align, 0)?;
        if let Err(error) = copy.skip(lead(&copy, align)).and_then(|()| copy.commit(len)) {
            copy.discard(&mut self.memory);
            return Err(error);
        }
        self.advance(skip);
        let body = self.split_to(len);
        body.chunks().for_each(|chunk| {
            copy.copy_from(chunk);
        });
        let mut segments = Segments::default();
        while copy.len() > self.limits.max_segment && copy.is_in_pages() {
            segments.push(copy.split_to(self.limits.max_segment));
        }
        segments.push(copy.into_bytes(&mut self.memory));
        Ok(self.beside(segments))
    }
}

/// Bytes from the end of what is filled to the next multiple of `align`.
fn lead(extent: &Extent, align: usize) -> usize {
    extent.end_address().wrapping_neg() % align
}
