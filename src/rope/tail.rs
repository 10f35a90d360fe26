//! The tail: one extent behind the segments that is being filled.
//!
//! ```text
//!  … [segment][segment] [filled | spare]   [next: fresh]
//!                        └── tail ──┘       only while a call is under way, if the spare bytes are too few
//! ```
//!
//! Whatever fills a rope does it in two steps: [`offer`](Rope::offer) makes memory for `want` bytes ready, of which
//! [`iovecs`](Rope::iovecs) tells the place, and [`commit`](Rope::commit) counts `n` of them as filled. Copies that need
//! one place only use [`make_room`](Rope::make_room) for the first step.

use std::io;

use super::extent::Extent;
use super::segments::Segments;
#[cfg(feature = "tokio")]
use super::{Body, extent::Memory};
use super::{Pace, Rope};
use crate::pool::Pool;
use crate::sys::iovec::UninitIovec;
use crate::sys::page_size;
use crate::sys::process::Process;

/// A rope keeps spare pages for this part of what it holds, so that ropes growing beside each other in one pool do not
/// interleave page by page. A rope that holds little keeps none.
const SPARE_PART: usize = 16;

/// Most spare bytes a rope keeps.
const MAX_SPARE: usize = 256 << 10;

/// Fewest bytes that are committed ahead of a read.
const MIN_COMMIT: usize = 16 << 10;

/// Most bytes that are committed ahead of a copy.
const MAX_COMMIT: usize = 2 << 20;

/// Most bytes that are committed ahead of a read in a pool that spills, so that no event loop waits for long: on a virtual
/// machine, a page that the host has to find first takes ten times as long as others.
const MAX_SPILL_COMMIT: usize = 256 << 10;

/// Smallest tail on the heap.
const MIN_HEAP: usize = 64;

/// Memory that is ready to be filled: in the tail first, then in a fresh extent.
pub(crate) struct Offer {
    in_tail: usize,
    next: Option<Extent>,
    /// Bytes of the last segment, a short one, that `next` begins with a copy of.
    copied: usize,
    in_next: usize,
}

impl Offer {
    /// Bytes that are ready, at least 1.
    pub(crate) fn len(&self) -> usize {
        self.in_tail + self.in_next
    }
}

impl Rope {
    /// Makes room for at least `more` bytes behind those that are there, in one run.
    ///
    /// In a pool this allocates one run of pages: a payload of known length that is received into an empty rope is
    /// contiguous from the start and [finalised](Rope::finalize) at no cost. The pages count as in use at once and stay
    /// this rope's until they are filled or the rope is [cleared](Rope::clear); they are given memory as bytes arrive.
    /// O(log n) in the pages of the pool.
    ///
    /// # Errors
    ///
    /// The rope is as it was.
    ///
    /// * [`QuotaExceeded`](io::ErrorKind::QuotaExceeded): the rope's [limit](Rope::set_limit) does not allow so many.
    /// * [`OutOfMemory`](io::ErrorKind::OutOfMemory): the pool has no such run, or the heap no such memory. A pool that
    ///   is nearly full may have as many bytes in shorter runs: receive without a reservation then, and reserve
    ///   capacity by [`Pool::wait_for_room`].
    /// * [`Unsupported`](io::ErrorKind::Unsupported): this process was forked from the one that made the pool.
    ///
    /// # Examples
    ///
    /// ```
    /// use ropewalk::{Pool, Rope};
    ///
    /// let pool = Pool::new()?;
    /// let mut rope = Rope::in_pool(&pool);
    /// rope.reserve(10 << 20)?;
    /// rope.extend_from_slice(&[7; 10 << 20]);
    /// assert_eq!(rope.finalize()?.copied_bytes(), 0);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn reserve(&mut self, more: usize) -> io::Result<()> {
        if self.limit() < usize::MAX && more > self.allowed() {
            return Err(self.limit_reached());
        }
        if more == 0 {
            return Ok(());
        }
        self.pool().map_or(Ok(()), Pool::check_process)?;
        self.absorb_short();
        if self.extend_tail(more) {
            return Ok(());
        }
        // Pages can be mapped behind each other only if the bytes go on where in a page they left off.
        let lead = self.tail.as_deref().map_or(0, Extent::end_in_page);
        let short =
            if self.has_tail() { &[] } else { short_segment(&self.segments, &self.tail, self.short_max()) };
        let mut fresh = self.memory.allocate_exact(more.saturating_add(lead + short.len()))?;
        if let Err(error) = fresh.skip(lead).and_then(|()| fresh.begin_with(short)) {
            fresh.discard(&mut self.memory);
            return Err(error);
        }
        fresh.reserve(more);
        // Dropped at the end, when its copy is in the tail: an owner's drop may panic.
        let _copied = if short.is_empty() { None } else { self.segments.pop() };
        self.replace_tail(fresh);
        Ok(())
    }

    /// Keeps room for `more` bytes in the tail; returns whether it has it.
    pub(crate) fn extend_tail(&mut self, more: usize) -> bool {
        let held = self.len();
        let Some(tail) = &mut self.tail else { return false };
        let missing = more.saturating_sub(tail.spare());
        let extended = missing == 0 || tail.grow(&mut self.memory, missing, held, true);
        if extended {
            tail.reserve(more);
        }
        extended
    }

    /// Appends a copy of `bytes` to the tail. Consecutive small ones are one segment. O(bytes).
    ///
    /// When the pool has no memory the copy lies on the heap, and [`PoolStats`](crate::PoolStats) counts a fallback.
    ///
    /// # Panics
    ///
    /// When the heap has no memory either, or the rope would have more than [`usize::MAX`] bytes;
    /// [`try_extend_from_slice`](Rope::try_extend_from_slice) returns an error.
    ///
    /// # Examples
    ///
    /// ```
    /// let mut rope = ropewalk::Rope::new();
    /// for byte in b"one segment" {
    ///     rope.extend_from_slice(&[*byte]);
    /// }
    /// assert_eq!((rope.len(), rope.num_segments()), (11, 1));
    /// ```
    #[inline]
    #[track_caller]
    pub fn extend_from_slice(&mut self, bytes: &[u8]) {
        if let Err(error) = self.try_extend_from_slice(bytes) {
            panic!("{error}");
        }
    }

    /// Appends a copy of `bytes` as [`extend_from_slice`](Rope::extend_from_slice) does, whatever the rope's limit is.
    /// O(bytes).
    ///
    /// # Errors
    ///
    /// `OutOfMemory` when neither the pool nor the heap has memory; `InvalidInput` if the rope would have more than
    /// [`usize::MAX`] bytes. The rope then holds the bytes that it held.
    ///
    /// # Examples
    ///
    /// ```
    /// let mut rope = ropewalk::Rope::from("head, ");
    /// rope.try_extend_from_slice(b"body")?;
    /// assert_eq!(rope, b"head, body");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    #[inline]
    pub fn try_extend_from_slice(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.copy_in_place(bytes) { Ok(()) } else { self.copy_in_or_to_heap(bytes) }
    }

    /// Copies into ready memory, if nothing else has to be done; returns whether it did.
    #[inline]
    pub(crate) fn copy_in_place(&mut self, bytes: &[u8]) -> bool {
        let max_segment = self.limits.max_segment.min(self.segments.left());
        let Some(tail) = &mut self.tail else { return false };
        // An empty tail may have to begin with a short segment, and a full one has to be cut.
        let simple = tail.len() > 0 && tail.len() + bytes.len() <= max_segment;
        simple && tail.copy_all_from(bytes)
    }

    fn copy_in_or_to_heap(&mut self, bytes: &[u8]) -> io::Result<()> {
        let (before, mut left) = (self.len(), bytes);
        if before.checked_add(left.len()).is_none() {
            let message = format!("{before} and {} bytes are more than a rope can hold", left.len());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        while let Err(not_copied) = self.copy_in(left) {
            left = &left[left.len() - not_copied.bytes..];
            if let Err(error) = self.make_room_on_heap(left.len()) {
                if self.segments.len() >= before {
                    self.tail = None; // which would need room in the table
                }
                self.truncate(before);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Copies into the tail; on an error, what came before it is in the rope.
    pub(crate) fn copy_in(&mut self, bytes: &[u8]) -> Result<(), NotCopied> {
        let mut left = bytes;
        self.absorb_short();
        while !left.is_empty() {
            let room = self.make_room(left.len());
            let copied = room.map_err(|error| NotCopied { bytes: left.len(), error })?.copy_from(left);
            left = &left[copied..];
            self.cut_segments();
        }
        Ok(())
    }

    /// Makes up to `want` bytes ready, at least one: in the tail, grown in place if it can, and beyond it in a fresh
    /// extent.
    ///
    /// # Errors
    ///
    /// When the pool is at capacity, or there is no memory. The rope is as it was.
    #[inline]
    pub(crate) fn offer(&mut self, want: usize) -> io::Result<Offer> {
        self.absorb_short();
        if self.tail.is_none() && short_segment(&self.segments, &None, self.short_max()).is_empty() {
            self.tail = Some(Box::new(self.fresh(want)?));
            self.tail_begins = false;
        }
        let held = self.len();
        let mut in_tail = 0;
        if let Some(tail) = &mut self.tail {
            if tail.spare() < want {
                tail.grow(&mut self.memory, want - tail.spare(), held, false);
            }
            if tail.ready() < want {
                self.commit_tail(want.min(self.commit_ahead()))?;
            }
        }
        if let Some(tail) = &self.tail {
            in_tail = tail.ready().min(want);
            if in_tail > 0 && tail.spare() >= want {
                return Ok(Offer { in_tail, in_next: 0, copied: 0, next: None });
            }
        }
        self.offer_beyond(want, in_tail)
    }

    /// Makes up to `want` bytes ready, of which `in_tail` are already.
    #[inline(never)]
    fn offer_beyond(&mut self, want: usize, in_tail: usize) -> io::Result<Offer> {
        let mut offer = Offer { in_tail, in_next: 0, copied: 0, next: None };
        match self.next_extent(want - in_tail) {
            Ok((next, copied)) => {
                offer.in_next = next.ready().min(want - in_tail);
                (offer.next, offer.copied) = (Some(next), copied);
            }
            Err(_) if in_tail > 0 => {}
            Err(error) => return Err(error),
        }
        if offer.len() > 0 { Ok(offer) } else { Err(no_room()) }
    }

    /// Makes up to `want` bytes ready in the tail, or what there is memory for: another extent may have some.
    ///
    /// # Errors
    ///
    /// When there is none and the rope is a file's, which would have a gap in the place of these pages.
    fn commit_tail(&mut self, want: usize) -> io::Result<()> {
        let Some(tail) = &mut self.tail else { return Ok(()) };
        match tail.commit(want) {
            Err(error) if tail.ready() == 0 && self.memory.pool().is_some_and(Pool::is_for_file) => {
                Err(error)
            }
            _ => Ok(()),
        }
    }

    /// Makes up to `want` further bytes ready in the tail, if that goes on at the start of a page; returns whether there are
    /// `least`.
    pub(super) fn grow_aligned(&mut self, want: usize, least: usize) -> bool {
        let (held, page) = (self.len(), page_size());
        let Some(tail) = self.tail.as_mut().filter(|tail| tail.end_address() % page == 0) else {
            return false;
        };
        if tail.spare() < want {
            tail.grow(&mut self.memory, want - tail.spare(), held, false);
        }
        // What is ready already is enough if there is no memory for more.
        let _ = tail.commit(want);
        tail.ready() >= least
    }

    /// Replaces the tail by one of up to `want` bytes that begins at the start of a page.
    pub(super) fn begin_aligned(&mut self, want: usize) -> io::Result<()> {
        let (held, page) = (self.len(), page_size());
        let room = if self.memory.pool().is_some() { want } else { want + page };
        let mut fresh = self.memory.allocate(room, held)?;
        let lead = fresh.end_address().wrapping_neg() % page;
        fresh.skip(lead)?;
        let fresh = self.memory.commit(fresh, want)?;
        self.replace_tail(fresh);
        self.tail_begins = true;
        Ok(())
    }

    /// Gives an empty rope a tail for `want` bytes, where `whole` bytes would fit in one run. The rest is not allocated: a
    /// peer that announces much and sends little takes no more of the pool's capacity.
    #[cfg(feature = "http-body")]
    pub(crate) fn begin_where_fits(&mut self, want: usize, whole: usize) -> io::Result<()> {
        let fresh = self.memory.allocate(self.generous(want), whole)?;
        let fresh = self.memory.commit(fresh, want.min(MAX_COMMIT))?;
        self.replace_tail(fresh);
        Ok(())
    }

    /// Gives up to `want` bytes behind the tail's memory in the memfd, without touching it; returns how many.
    pub(super) fn commit_unmapped(&mut self, want: usize) -> Option<usize> {
        let held = self.len();
        let tail = self.tail.as_mut().filter(|tail| tail.is_in_pages())?;
        if tail.spare() < want {
            tail.grow(&mut self.memory, want - tail.spare(), held, false);
        }
        tail.commit_unmapped(want).ok()?;
        Some(tail.ready().min(want))
    }

    /// A fresh extent with up to `want` bytes ready.
    #[inline]
    fn fresh(&mut self, want: usize) -> io::Result<Extent> {
        let held = self.len();
        let fresh = if self.passes_on {
            self.memory.allocate_packed(want)
        } else {
            self.memory.allocate(want, held)
        }?;
        if fresh.ready() >= want {
            return Ok(fresh);
        }
        let ahead = want.min(self.commit_ahead());
        self.memory.commit(fresh, ahead)
    }

    /// The places of an offer, in order; the second one is empty as a rule.
    #[inline]
    pub(crate) fn iovecs<'a>(&'a mut self, offer: &'a mut Offer) -> [UninitIovec<'a>; 2] {
        let tail = self.tail.as_deref_mut().map_or(&mut [][..], Extent::spare_mut);
        let next = offer.next.as_mut().map_or(&mut [][..], Extent::spare_mut);
        [UninitIovec::new(tail, offer.in_tail), UninitIovec::new(next, offer.in_next)]
    }

    /// Counts the first `count` bytes of an offer as filled.
    ///
    /// # Safety
    ///
    /// They were written, to the places that [`iovecs`](Rope::iovecs) named, in order.
    #[allow(unsafe_code)] // that the bytes are there is known to the caller only
    #[inline]
    pub(crate) unsafe fn commit(&mut self, offer: &mut Offer, count: usize) {
        let in_tail = count.min(offer.in_tail);
        if let Some(tail) = &mut self.tail {
            // SAFETY: promised by the caller.
            unsafe { tail.fill(in_tail) };
        }
        if count > in_tail {
            // SAFETY: promised by the caller; the rest went to the second place.
            unsafe { self.commit_next(offer, count - in_tail) };
        }
        self.cut_segments();
    }

    /// Makes the second place of an offer the tail, with its first `count` bytes filled.
    ///
    /// # Safety
    ///
    /// They were written.
    #[allow(unsafe_code)] // as above
    #[inline(never)]
    unsafe fn commit_next(&mut self, offer: &mut Offer, count: usize) {
        let Some(mut next) = offer.next.take() else { return };
        // SAFETY: promised by the caller.
        unsafe { next.fill(count) };
        // Dropped at the end, when its copy is in the tail: an owner's drop may panic.
        let _copied = if offer.copied > 0 { self.segments.pop() } else { None };
        self.replace_tail(next);
    }

    /// A fresh extent with up to `want` bytes ready, and how many bytes of a short last segment it begins with.
    #[inline(never)]
    fn next_extent(&mut self, want: usize) -> io::Result<(Extent, usize)> {
        let short = if self.has_tail() {
            0
        } else {
            short_segment(&self.segments, &self.tail, self.short_max()).len()
        };
        let mut fresh = self.fresh(want.saturating_add(short))?;
        let last = self.segments.last().map_or(&[][..], |last| last);
        // The copy must leave room: this is about what follows it.
        let copied = if short < fresh.ready() { short } else { 0 };
        if copied > 0 && fresh.begin_with(&last[..copied]).is_ok() {
            return Ok((fresh, copied));
        }
        Ok((fresh, 0))
    }

    /// Returns the tail with ready memory for `want` bytes, or for fewer but at least one.
    pub(crate) fn make_room(&mut self, want: usize) -> io::Result<&mut Extent> {
        let (held, generous) = (self.len(), self.generous(want));
        if self.tail.as_deref().is_some_and(|tail| tail.spare() < want.min(MIN_HEAP)) {
            self.restart_if_empty();
        }
        if let Some(tail) = &mut self.tail {
            if tail.spare() < want.min(MIN_HEAP) {
                tail.grow(&mut self.memory, generous, held, false);
            }
        }
        self.commit_tail(want.min(MAX_COMMIT))?;
        if self.tail.as_deref().is_none_or(|tail| tail.ready() == 0) {
            let fresh = self.memory.allocate(generous, held)?;
            let fresh = self.memory.commit(fresh, want.min(MAX_COMMIT))?;
            self.replace_tail(fresh);
        }
        self.tail.as_deref_mut().filter(|tail| tail.ready() > 0).ok_or_else(no_room)
    }

    /// Begins a tail on the heap, because the pool has no memory.
    pub(crate) fn make_room_on_heap(&mut self, want: usize) -> io::Result<()> {
        self.reserve_segments(1)?;
        let most = self.limits.max_segment;
        let fresh = Extent::on_heap(self.generous(want).min(most), self.memory.zeroes())?;
        self.memory.pool().into_iter().for_each(Pool::count_fallback);
        self.replace_tail(fresh);
        Ok(())
    }

    /// Bytes that are committed ahead of a read into pages that are not resident: as many as the rope holds, or as the
    /// pool's payloads begin with. So what a peer announces and never sends commits little.
    fn commit_ahead(&self) -> usize {
        let usual = self.memory.pool().map_or(0, |pool| Pace::reads(pool.first_read()).bytes());
        let ahead = self.len().max(usual).max(MIN_COMMIT);
        if self.memory.pool().is_some_and(|pool| pool.spilling().is_some()) {
            ahead.min(MAX_SPILL_COMMIT)
        } else {
            ahead
        }
    }

    /// Copied pieces come one by one and tell nothing of the whole, so the tail grows with the rope.
    fn generous(&self, want: usize) -> usize {
        want.max(self.len().clamp(MIN_HEAP, MAX_SPARE))
    }

    /// The tail as it is.
    #[inline]
    pub(crate) fn tail_mut(&mut self) -> Option<&mut Extent> {
        self.tail.as_deref_mut()
    }

    /// Waits until the pool has reserved room for `body`, which has to be in one run, or for the next read: at least a page,
    /// at most an eighth of its capacity. Or until its spill file has some.
    #[cfg(feature = "tokio")]
    pub(crate) async fn wait_for_room(&mut self, body: Option<Body>) -> io::Result<()> {
        let read = self.reads().bytes();
        let Memory::Pool(held) = &mut self.memory else { return Ok(()) };
        let page = held.pool().page_size();
        let eighth = usize::try_from(held.pool().stats().capacity / 8).unwrap_or(usize::MAX);
        let want = body.map_or(read.min(eighth).max(page), |body| body.room());
        match held.pool().wait_for_room_or_spill(want).await? {
            Some(room) => held.absorb(room).map_err(|_| no_room()),
            None => Ok(()),
        }
    }

    /// Returns `Ready` once a receive that spills need not wait for the disk.
    #[cfg(any(feature = "tokio", feature = "http-body"))]
    pub(crate) fn poll_spill(
        &mut self,
        wait: &mut crate::pool::SpillWait,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<()> {
        use std::task::Poll;
        let (want, ready) = (self.reads().bytes(), self.tail.as_deref().map_or(0, Extent::ready));
        self.memory.pool().map_or(Poll::Ready(()), |pool| pool.poll_spill(ready < want, wait, context))
    }

    /// Returns reserved room that was not used.
    #[cfg(feature = "tokio")]
    pub(crate) fn release_room(&mut self) {
        if let Memory::Pool(room) = &mut self.memory {
            room.release();
        }
    }

    /// Takes the memory behind the bytes away, ready for `want` bytes or for fewer, but for fewer than `least` only
    /// where memory is short: a tail that cannot grow that far is replaced.
    #[cfg(feature = "compio")]
    pub(crate) fn take_tail(&mut self, want: usize, least: usize) -> io::Result<Extent> {
        let (held, least) = (self.len(), want.min(least));
        if let Some(tail) = self.tail.as_mut().filter(|tail| tail.spare() < least) {
            tail.grow(&mut self.memory, want, held, false);
            if tail.spare() < least {
                if let Ok(fresh) = self.memory.allocate(self.generous(want), held) {
                    self.replace_tail(fresh);
                }
            }
        }
        self.make_room(want)?;
        self.freeze();
        self.tail.take().map(|tail| *tail).ok_or_else(no_room)
    }

    #[inline]
    pub(crate) fn tail_len(&self) -> usize {
        self.tail.as_deref().map_or(0, Extent::len)
    }

    /// The bytes of the tail, if it has any.
    #[inline]
    pub(crate) fn filled_tail(&self) -> Option<&[u8]> {
        self.tail.as_deref().map(Extent::filled).filter(|tail| !tail.is_empty())
    }

    /// Lets `fresh` be filled next. What the tail held becomes segments; its spare pages are freed.
    #[inline]
    pub(crate) fn replace_tail(&mut self, fresh: Extent) {
        if self.tail.is_some() {
            self.finish();
        }
        self.tail = Some(Box::new(fresh));
        self.tail_begins = false;
    }

    /// Returns whether there is memory to be filled next.
    #[inline]
    pub(crate) fn has_tail(&self) -> bool {
        self.tail.is_some()
    }

    /// Copies a short last segment into the tail, if that is empty and has room for more beside what is reserved: a tail
    /// that this would fill has to be followed by another, and the segment would be last again.
    #[inline]
    fn absorb_short(&mut self) {
        if !self.tail_begins && self.tail.as_ref().is_some_and(|tail| tail.len() == 0) {
            self.absorb_short_into_tail();
        }
    }

    /// Longest segment that the next tail begins with a copy of: none in a child of fork(2), where it may not be mapped.
    fn short_max(&self) -> usize {
        if Process::is_child() { 0 } else { self.inline_max() }
    }

    #[inline(never)]
    fn absorb_short_into_tail(&mut self) {
        let short = short_segment(&self.segments, &self.tail, self.short_max());
        let fits =
            |tail: &Extent| tail.ready() > short.len() && tail.spare() - short.len() >= tail.reserved();
        let Some(tail) = self.tail.as_deref_mut().filter(|tail| !short.is_empty() && fits(tail)) else {
            return;
        };
        tail.copy_from(short);
        self.segments.pop();
    }

    /// Turns the tail's bytes into segments. The spare bytes behind them stay the tail.
    pub(crate) fn freeze(&mut self) {
        self.cut_segments();
        let Some(tail) = &mut self.tail else { return };
        if tail.len() > 0 {
            self.segments.push(tail.split_to(tail.len()));
            self.tail_begins = false;
        }
        if tail.spare() == 0 {
            self.tail = None;
        }
    }

    /// Turns the tail's bytes into segments. The spare bytes behind them are freed.
    #[inline]
    pub(crate) fn finish(&mut self) {
        if self.tail.is_some() {
            self.cut_segments();
            self.finish_last();
        }
    }

    #[inline]
    fn finish_last(&mut self) {
        if let Some(tail) = self.tail.take() {
            if tail.len() > 0 {
                self.segments.push(tail.into_bytes(&mut self.memory));
            } else {
                tail.discard(&mut self.memory);
            }
        }
    }

    /// Takes all bytes as a vector without a copy, if they are a tail on the heap with one owner.
    pub(crate) fn take_vec(&mut self) -> Option<Vec<u8>> {
        let tail = if self.segments.count() == 0 { self.tail.take() } else { None }?;
        tail.into_vec().map_err(|tail| self.tail = Some(Box::new(tail))).ok()
    }

    /// Cuts full segments off the tail, so that none pins more than `max_segment` bytes. Each part of a heap block pins all
    /// of it, so that stays whole, and contiguous.
    #[inline]
    pub(crate) fn cut_segments(&mut self) {
        let most = self.limits.max_segment;
        let Some(tail) = &mut self.tail else { return };
        // A tail that is full can still grow, so the last segment stays in it.
        while tail.len() > most && tail.is_in_pages() {
            self.segments.push(tail.split_to(most));
        }
    }

    /// Frees spare pages, all of them if the rope is empty, but none that are reserved.
    #[inline]
    pub(crate) fn release_spare(&mut self) {
        let keep = (self.len() / SPARE_PART).min(MAX_SPARE);
        let Some(tail) = &mut self.tail else { return };
        tail.release_spare(&mut self.memory, keep);
        if tail.len() == 0 && keep.max(tail.reserved()) == 0 {
            self.finish_last();
        }
    }
}

/// The last segment, if it is short and the next tail should begin with a copy of it, so that they are contiguous: a
/// small first read, or a header that was pushed in front of a body. Else nothing.
#[inline]
fn short_segment<'a>(segments: &'a Segments, tail: &Option<Box<Extent>>, inline_max: usize) -> &'a [u8] {
    let apart = |last: &[u8]| tail.as_ref().is_none_or(|tail| tail.len() == 0 && !tail.follows(last));
    segments.last().map_or(&[], |last| if last.len() <= inline_max && apart(last) { last } else { &[] })
}

pub(super) fn no_room() -> io::Error {
    io::Error::new(
        io::ErrorKind::OutOfMemory,
        "no room for even one byte; drop ropes or raise PoolOptions::capacity",
    )
}

/// Why the last bytes of a copy are not in the rope.
pub(crate) struct NotCopied {
    /// How many are missing.
    pub(crate) bytes: usize,
    pub(crate) error: io::Error,
}
