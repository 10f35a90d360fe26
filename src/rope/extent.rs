//! Writable memory that is filled from its start, and the segments that are cut off its front.
//!
//! ```text
//!     ┌──────────────┬───────────────┬───────────────────┐
//!     │ filled       │ ready         │ not yet committed │
//!     └──────────────┴───────────────┴───────────────────┘
//!     base           + filled        + committed         + capacity
//!      read only,     this extent's alone
//!      may be shared
//! ```
//!
//! Pointers come from the mapping or the allocation, never from a slice of the filled part: that part may be borrowed
//! while the rest is written.
#![allow(unsafe_code)] // raw pointers into memory that is part shared, part writable

use std::fmt;
use std::io;
use std::mem::{ManuallyDrop, MaybeUninit};
use std::ops::Range;
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::Arc;

use bytes::Bytes;
use zeroize::{Zeroize, Zeroizing};

use crate::limits::Limits;
use crate::pool::{PageRef, Pool, Room};

/// Where a rope's bytes are allocated.
pub(crate) enum Memory {
    Heap(&'static Limits),
    Pool(Room),
}

impl Memory {
    #[inline]
    pub(crate) fn limits(&self) -> &'static Limits {
        match self {
            Memory::Heap(limits) => limits,
            Memory::Pool(room) => room.pool().limits(),
        }
    }

    #[inline]
    pub(crate) fn pool(&self) -> Option<&Pool> {
        match self {
            Memory::Heap(_) => None,
            Memory::Pool(room) => Some(room.pool()),
        }
    }

    /// The same memory for another rope; nothing of it is reserved.
    #[inline]
    pub(crate) fn share(&self) -> Memory {
        match self {
            Memory::Heap(limits) => Memory::Heap(limits),
            Memory::Pool(room) => Memory::Pool(Room::empty(room.pool())),
        }
    }

    /// Returns whether what was received must be overwritten when it is freed.
    #[inline]
    pub(crate) fn zeroes(&self) -> bool {
        self.pool().is_some_and(Pool::zeroes)
    }

    /// Allocates up to `want` bytes, at least one page or one byte, for a rope that holds `held`.
    ///
    /// # Errors
    ///
    /// `OutOfMemory` when the pool is at capacity or the heap has no memory.
    #[inline]
    pub(crate) fn allocate(&mut self, want: usize, held: usize) -> io::Result<Extent> {
        match self {
            Memory::Heap(limits) => Extent::on_heap(want.min(limits.max_segment), false),
            Memory::Pool(room) => room.allocate(want, held).map(Extent::over),
        }
    }

    /// Allocates up to `want` bytes for a rope that passes on what it receives; else as above.
    #[inline]
    pub(crate) fn allocate_packed(&mut self, want: usize) -> io::Result<Extent> {
        match self {
            Memory::Heap(_) => self.allocate(want, 0),
            Memory::Pool(room) => room.allocate_packed(want).map(Extent::over),
        }
    }

    /// Allocates at least `want` bytes in one run; else as above.
    pub(crate) fn allocate_exact(&mut self, want: usize) -> io::Result<Extent> {
        match self {
            Memory::Heap(_) => Extent::on_heap(want, false),
            Memory::Pool(room) => room.allocate_exact(want).map(Extent::over),
        }
    }

    /// Gives an empty extent memory for `want` bytes. Where the system has none, it is replaced by idle pages that are
    /// resident.
    ///
    /// # Errors
    ///
    /// When there are none either.
    pub(crate) fn commit(&mut self, mut fresh: Extent, want: usize) -> io::Result<Extent> {
        match fresh.commit(want) {
            Err(error) if fresh.ready() == 0 => {
                fresh.discard(self);
                match self {
                    Memory::Pool(room) => room.allocate_resident(want).map(Extent::over).map_err(|_| error),
                    Memory::Heap(_) => Err(error),
                }
            }
            _ => Ok(fresh),
        }
    }

    /// Bytes of the heap as a segment of this rope.
    #[inline]
    pub(crate) fn own(&self, bytes: Box<[u8]>) -> Bytes {
        if self.zeroes() { Bytes::from_owner(Zeroizing::new(bytes)) } else { bytes.into() }
    }
}

pub(crate) struct Extent {
    /// The first byte. Valid for `capacity` bytes for as long as `owner` lives.
    base: NonNull<u8>,
    /// Bytes from `base` on that were written, and are never written again.
    filled: usize,
    /// Bytes from `base` on that may be touched. `filled <= committed <= capacity`.
    committed: usize,
    /// Bytes from `base` on that `owner` owns. Whole pages at the end, if they are pages.
    capacity: usize,
    /// Bytes from `base` on that are kept although they are empty, because [`Rope::reserve`](crate::Rope::reserve)
    /// asked for them.
    reserved: usize,
    owner: Owner,
}

/// What keeps the memory of an extent or a segment alive.
enum Owner {
    Pages(PageRef),
    Heap(Arc<Block>),
}

// SAFETY: the bytes beyond `filled` are this extent's alone, and those before it are read only; the owner may be
// dropped by any thread.
unsafe impl Send for Extent {}
// SAFETY: through `&Extent` the filled bytes are only read, and the others not at all.
unsafe impl Sync for Extent {}

impl Extent {
    #[inline]
    fn over(pages: PageRef) -> Extent {
        let page = pages.page_size();
        Extent {
            base: pages.start(),
            filled: 0,
            committed: pages.resident() as usize * page,
            capacity: pages.len() as usize * page,
            reserved: 0,
            owner: Owner::Pages(pages),
        }
    }

    /// Allocates `capacity` bytes of the heap, not initialised; overwritten before they are freed, if `zero`.
    ///
    /// # Errors
    ///
    /// `OutOfMemory` when the allocator has none.
    pub(crate) fn on_heap(capacity: usize, zero: bool) -> io::Result<Extent> {
        let block = Block::new(capacity, zero)?;
        let (base, capacity) = (block.base, block.capacity);
        let owner = Owner::Heap(Arc::new(block));
        Ok(Extent { base, filled: 0, committed: capacity, capacity, reserved: 0, owner })
    }

    #[inline]
    pub(crate) fn filled(&self) -> &[u8] {
        // SAFETY: `filled` bytes from `base` on were written and never are again; the owner lives.
        unsafe { slice::from_raw_parts(self.base.as_ptr(), self.filled) }
    }

    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.filled
    }

    /// Bytes that can still be filled, once they are committed.
    #[inline]
    pub(crate) fn spare(&self) -> usize {
        self.capacity - self.filled
    }

    /// Bytes that can be filled now: none in a child of the process that made the pool, where no page is mapped.
    #[inline]
    pub(crate) fn ready(&self) -> usize {
        match &self.owner {
            Owner::Pages(pages) if pages.is_inherited() => 0,
            _ => self.committed - self.filled,
        }
    }

    /// The memory behind the filled bytes that may be written now.
    #[inline]
    pub(crate) fn spare_mut(&mut self) -> &mut [MaybeUninit<u8>] {
        let len = self.ready();
        // SAFETY: `filled` is at most the capacity.
        let first = unsafe { self.base.add(self.filled) };
        // SAFETY: within the owned and committed range, and nothing else refers to bytes beyond `filled`.
        unsafe { slice::from_raw_parts_mut(first.cast().as_ptr(), len) }
    }

    /// Makes at least `want` spare bytes, or all there are, ready to be written.
    ///
    /// # Errors
    ///
    /// When the system has no memory for them; nothing has changed then.
    #[inline]
    pub(crate) fn commit(&mut self, want: usize) -> io::Result<()> {
        let needed = self.filled.saturating_add(want).min(self.capacity);
        if self.committed < needed { self.commit_pages(needed, true) } else { Ok(()) }
    }

    /// The same for bytes that the kernel writes to the memfd: pages get no page table entries.
    pub(crate) fn commit_unmapped(&mut self, want: usize) -> io::Result<()> {
        let needed = self.filled.saturating_add(want).min(self.capacity);
        if self.committed < needed { self.commit_pages(needed, false) } else { Ok(()) }
    }

    #[inline(never)]
    fn commit_pages(&mut self, needed: usize, touched: bool) -> io::Result<()> {
        let Owner::Pages(pages) = &mut self.owner else { return Ok(()) };
        let page = pages.page_size();
        // `base` may lie inside a page; the end of the capacity never does.
        let beyond = |bytes: usize| pages.len() - to_pages((self.capacity - bytes) / page);
        let (first, end) = (beyond(self.committed), beyond(needed));
        let rest = (pages.len() - end) as usize * page;
        pages.commit(first, end, touched)?;
        self.committed = self.capacity - rest;
        Ok(())
    }

    /// Allocates up to `more` further bytes directly behind, for a rope that holds `held`, or (`exactly`) at least so
    /// many; returns whether it got any.
    pub(crate) fn grow(&mut self, memory: &mut Memory, more: usize, held: usize, exactly: bool) -> bool {
        let (Owner::Pages(pages), Memory::Pool(room)) = (&mut self.owner, memory) else { return false };
        let page = pages.page_size();
        let was_resident = pages.resident() == pages.len();
        let grown = room.grow(pages, more, held, exactly);
        if was_resident && self.committed == self.capacity {
            self.committed += (pages.resident() + grown - pages.len()) as usize * page;
        }
        self.capacity += grown as usize * page;
        grown > 0
    }

    /// Keeps `more` of the spare bytes until they are filled.
    pub(crate) fn reserve(&mut self, more: usize) {
        debug_assert!(more <= self.spare());
        self.reserved = self.reserved.max(self.filled + more);
    }

    /// Spare bytes that are kept.
    #[inline]
    pub(crate) fn reserved(&self) -> usize {
        self.reserved.saturating_sub(self.filled)
    }

    /// Frees whole pages that stayed empty, but for `keep` bytes and those that are reserved. Heap memory stays.
    #[inline]
    pub(crate) fn release_spare(&mut self, memory: &mut Memory, keep: usize) {
        let surplus = self.spare().saturating_sub(keep.max(self.reserved()));
        let Owner::Pages(pages) = &mut self.owner else { return };
        let page = pages.page_size();
        let surplus = surplus / page;
        if surplus > 0 {
            let len = pages.len() - to_pages(surplus);
            let again = pages.truncate(len);
            if let Memory::Pool(room) = memory {
                room.reserved_again(again);
            }
            self.capacity -= surplus * page;
            self.committed = self.committed.min(self.capacity);
        }
    }

    /// Notes that `count` bytes of [`spare_mut`](Extent::spare_mut) were written.
    ///
    /// # Safety
    ///
    /// They were: all of them are initialised.
    #[inline]
    pub(crate) unsafe fn fill(&mut self, count: usize) {
        debug_assert!(self.filled + count <= self.committed);
        self.filled += count;
    }

    /// The first `count` bytes of [`spare_mut`](Extent::spare_mut).
    ///
    /// # Safety
    ///
    /// They were written.
    #[cfg(feature = "compio")]
    pub(crate) unsafe fn written(&self, count: usize) -> &[u8] {
        debug_assert!(self.filled + count <= self.committed);
        // SAFETY: within the owned range; the caller says that they are initialised.
        let start = unsafe { self.base.as_ptr().add(self.filled) };
        // SAFETY: as above; writing them again takes `&mut self`.
        unsafe { slice::from_raw_parts(start, count) }
    }

    /// Copies as much of `bytes` as is ready; returns how much that was.
    #[inline]
    pub(crate) fn copy_from(&mut self, bytes: &[u8]) -> usize {
        let count = self.ready().min(bytes.len());
        if self.copy_all_from(&bytes[..count]) { count } else { 0 }
    }

    /// Copies `bytes` if memory for all of them is ready; returns whether it did.
    #[inline]
    pub(crate) fn copy_all_from(&mut self, bytes: &[u8]) -> bool {
        let Some(spare) = self.spare_mut().get_mut(..bytes.len()) else { return false };
        // SAFETY: both are valid for as many bytes; `spare` is borrowed mutably, so they do not overlap.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), spare.as_mut_ptr().cast(), bytes.len()) };
        // SAFETY: just written.
        unsafe { self.fill(bytes.len()) };
        true
    }

    /// Returns whether the memory goes on where `bytes` end.
    pub(crate) fn follows(&self, bytes: &[u8]) -> bool {
        bytes.as_ptr_range().end == self.base.as_ptr()
    }

    /// The address behind the filled bytes.
    #[inline]
    pub(crate) fn end_address(&self) -> usize {
        self.base.addr().get() + self.filled
    }

    /// Returns whether its segments own their pages, and not all of a heap block.
    #[inline]
    pub(crate) fn is_in_pages(&self) -> bool {
        matches!(self.owner, Owner::Pages(_))
    }

    /// How far into a page the filled bytes reach; 0 on the heap.
    pub(crate) fn end_in_page(&self) -> usize {
        let Owner::Pages(pages) = &self.owner else { return 0 };
        self.place(self.filled, pages) % pages.page_size()
    }

    /// Leaves the first `lead` bytes of an empty extent unused.
    ///
    /// # Errors
    ///
    /// When the system has no memory for the page that they are in.
    pub(crate) fn skip(&mut self, lead: usize) -> io::Result<()> {
        debug_assert!(self.filled == 0 && lead <= self.capacity);
        self.commit(lead)?;
        // SAFETY: `lead` is at most the capacity.
        self.base = unsafe { self.base.add(lead) };
        self.committed -= lead;
        self.capacity -= lead;
        self.reserved = self.reserved.saturating_sub(lead);
        Ok(())
    }

    /// Starts an empty extent with a copy of `bytes`.
    ///
    /// # Errors
    ///
    /// When the system has no memory for them.
    pub(crate) fn begin_with(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.commit(bytes.len())?;
        if self.copy_from(bytes) < bytes.len() {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        Ok(())
    }

    /// Cuts the first `len` filled bytes off, as a segment with an owner of its own. O(1), no copy.
    pub(crate) fn split_to(&mut self, len: usize) -> Bytes {
        assert!(len <= self.filled, "cannot cut {len} bytes off an extent of {}", self.filled);
        let owner = match &mut self.owner {
            Owner::Heap(block) => Owner::Heap(Arc::clone(block)),
            Owner::Pages(pages) => {
                Owner::Pages(pages.split_to(self.base.addr().get() - pages.start().addr().get() + len))
            }
        };
        let segment = Segment::new(self.base, len, owner);
        // SAFETY: `len` is at most the capacity.
        self.base = unsafe { self.base.add(len) };
        self.filled -= len;
        self.committed -= len;
        self.capacity -= len;
        self.reserved = self.reserved.saturating_sub(len);
        Bytes::from_owner(segment)
    }

    /// All filled bytes as a segment. No copy; whole pages behind them are freed.
    #[inline]
    pub(crate) fn into_bytes(mut self, memory: &mut Memory) -> Bytes {
        self.reserved = 0;
        self.release_spare(memory, 0);
        let (base, len) = (self.base, self.filled);
        Bytes::from_owner(Segment::new(base, len, self.into_owner()))
    }

    /// All filled bytes as a vector, without a copy, if this is heap memory with one owner. What must be overwritten
    /// before it is freed does not become one.
    pub(crate) fn into_vec(self) -> Result<Vec<u8>, Extent> {
        let is_vec = matches!(&self.owner, Owner::Heap(block) if block.base == self.base && !block.zero && Arc::strong_count(block) == 1);
        if !is_vec {
            return Err(self);
        }
        let filled = self.filled;
        let Owner::Heap(block) = self.into_owner() else { return Ok(Vec::new()) };
        // The only owner, since there is no other reference from which to make one.
        let Some(block) = Arc::into_inner(block) else { return Ok(Vec::new()) };
        let block = ManuallyDrop::new(block);
        // SAFETY: exactly the parts of the vector that `Block::new` took apart; `filled` bytes from its start on were
        // written, and the block, of which this was the only owner, does not free it.
        Ok(unsafe { Vec::from_raw_parts(block.base.as_ptr(), filled, block.capacity) })
    }

    /// What keeps the memory alive; nothing is filled any more.
    #[inline]
    fn into_owner(self) -> Owner {
        self.complete();
        let this = ManuallyDrop::new(self);
        // SAFETY: the extent is not used again, nor dropped.
        unsafe { ptr::read(&raw const this.owner) }
    }

    /// Frees an empty extent; pages of the room are reserved again.
    pub(crate) fn discard(mut self, memory: &mut Memory) {
        self.reserved = 0;
        self.release_spare(memory, 0);
    }

    /// Notes that the spare bytes are never filled: segments may share the page that they are in.
    #[inline]
    fn complete(&self) {
        if let Owner::Pages(pages) = &self.owner {
            pages.complete(self.place(self.filled, pages));
        }
    }

    /// Some of the filled bytes as a segment, while this extent goes on. O(pages of the range), no copy.
    pub(crate) fn share(&self, range: Range<usize>) -> Bytes {
        assert!(range.start <= range.end && range.end <= self.filled, "{range:?} of {} bytes", self.filled);
        let owner = match &self.owner {
            Owner::Heap(block) => Owner::Heap(Arc::clone(block)),
            Owner::Pages(pages) => {
                Owner::Pages(pages.share(self.place(range.start, pages)..self.place(range.end, pages)))
            }
        };
        // SAFETY: in the filled part, as just checked.
        let base = unsafe { self.base.add(range.start) };
        Bytes::from_owner(Segment::new(base, range.len(), owner))
    }

    /// Where byte `at` lies in the run of pages.
    fn place(&self, at: usize, pages: &PageRef) -> usize {
        self.base.addr().get() - pages.start().addr().get() + at
    }

    #[cfg(any(test, fuzzing))]
    pub(crate) fn assert_invariants(&self) {
        assert!(self.filled <= self.committed && self.committed <= self.capacity);
        assert!(self.reserved <= self.capacity);
        if let Owner::Pages(pages) = &self.owner {
            assert_eq!(self.place(self.capacity, pages), pages.len() as usize * pages.page_size());
        }
    }
}

impl Drop for Extent {
    #[inline]
    fn drop(&mut self) {
        self.complete();
    }
}

impl fmt::Debug for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Extent").field("len", &self.filled).field("capacity", &self.capacity).finish()
    }
}

/// Filled bytes and what keeps them alive: the owner behind a `Bytes`.
struct Segment {
    base: NonNull<u8>,
    len: usize,
    owner: Owner,
}

// SAFETY: the bytes are read only from the moment the segment is made until the last owner is dropped.
unsafe impl Send for Segment {}
// SAFETY: as above.
unsafe impl Sync for Segment {}

impl Segment {
    #[inline]
    fn new(base: NonNull<u8>, len: usize, owner: Owner) -> Segment {
        if let Owner::Pages(pages) = &owner {
            pages.count_pinned(len);
        }
        Segment { base, len, owner }
    }
}

impl Drop for Segment {
    #[inline]
    fn drop(&mut self) {
        if let Owner::Pages(pages) = &self.owner {
            pages.uncount_pinned(self.len);
        }
    }
}

impl AsRef<[u8]> for Segment {
    fn as_ref(&self) -> &[u8] {
        let _alive: &Owner = &self.owner;
        // SAFETY: the extent had filled these bytes when it cut them off; the owner lives.
        unsafe { slice::from_raw_parts(self.base.as_ptr(), self.len) }
    }
}

/// These bytes of the pool's arena, which the caller keeps alive, as a segment that keeps no other pages. O(pages).
pub(crate) fn narrow(pool: &Pool, bytes: &[u8]) -> Option<Bytes> {
    let (pages, base) = pool.pin(bytes)?;
    Some(Bytes::from_owner(Segment::new(base, bytes.len(), Owner::Pages(pages))))
}

/// Heap memory that is filled through raw pointers.
struct Block {
    base: NonNull<u8>,
    capacity: usize,
    /// Overwrite it before it is freed.
    zero: bool,
}

// SAFETY: a block is an allocation and nothing else; the extent decides who may write where.
unsafe impl Send for Block {}
// SAFETY: as above.
unsafe impl Sync for Block {}

impl Block {
    fn new(capacity: usize, zero: bool) -> io::Result<Block> {
        let mut memory = Vec::<u8>::new();
        memory.try_reserve_exact(capacity).map_err(|error| {
            io::Error::new(
                io::ErrorKind::OutOfMemory,
                format!("no heap memory for {capacity} bytes: {error}"),
            )
        })?;
        let mut memory = ManuallyDrop::new(memory);
        // SAFETY: a vector's pointer is never null.
        let base = unsafe { NonNull::new_unchecked(memory.as_mut_ptr()) };
        Ok(Block { base, capacity: memory.capacity(), zero })
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: exactly the parts of the vector that `new` took apart, none of whose bytes it counts.
        let mut memory = unsafe { Vec::<u8>::from_raw_parts(self.base.as_ptr(), 0, self.capacity) };
        if self.zero {
            memory.spare_capacity_mut().zeroize();
        }
    }
}

/// More pages than there can be is as good as too many.
#[inline]
fn to_pages(pages: usize) -> u32 {
    u32::try_from(pages).unwrap_or(u32::MAX)
}
