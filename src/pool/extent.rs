//! A run of memory that is being filled from its start, and the pieces cut off its front.
//!
//! ```text
//!     ┌──────────────┬───────────────┬───────────────────┐
//!     │ filled       │ writable      │ not yet committed │
//!     └──────────────┴───────────────┴───────────────────┘
//!     base           + filled        + committed         + capacity
//!      read only,     this extent's alone
//!      may be shared
//! ```
//!
//! Pointers come from the mapping or the allocation, never from a slice of the filled part: that part
//! may be borrowed by others while the rest is being written.
#![allow(unsafe_code)] // raw pointers into memory that is part shared, part writable

use std::fmt;
use std::io;
use std::mem::{ManuallyDrop, MaybeUninit};
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::Arc;

use bytes::Bytes;
use zeroize::Zeroize;

use super::Pool;
use super::lease::Lease;
use super::pages::Taken;

/// Most bytes that share one owner, so that a small slice pins no more than that.
pub(crate) const PIECE: usize = if cfg!(any(test, fuzzing)) { 4 * 4096 } else { 2 << 20 };

pub(crate) struct Extent {
    /// The first byte. Valid for `capacity` bytes for as long as `owner` lives.
    base: NonNull<u8>,
    /// Bytes from `base` on that were written, and are never written again.
    filled: usize,
    /// Bytes from `base` on that may be touched. `filled <= committed <= capacity`.
    committed: usize,
    /// Bytes from `base` on that `owner` owns; whole pages at the end, if they are pages.
    capacity: usize,
    /// Bytes from `base` on that are kept though they are empty, because somebody asked for them.
    reserved: usize,
    owner: Owner,
}

/// What keeps the memory of an extent or a piece alive.
enum Owner {
    Pages(Lease),
    Heap(Arc<Block>),
}

// SAFETY: the bytes beyond `filled` are this extent's alone, and those before it are read only; the
// owner, a lease or an `Arc`, may be dropped by any thread.
unsafe impl Send for Extent {}
// SAFETY: through `&Extent` the filled bytes are only read, and the others not at all.
unsafe impl Sync for Extent {}

impl Extent {
    /// Up to `want` bytes of a pool, at least one page, for a rope that holds `held` already.
    ///
    /// # Errors
    ///
    /// `OutOfMemory` when the pool is at its capacity.
    #[inline]
    pub(crate) fn in_pool(pool: &Pool, want: usize, held: usize) -> io::Result<Extent> {
        Lease::take(pool, pages_for(want, pool), pages_for(held, pool)).map(Self::over)
    }

    /// At least `want` bytes of a pool, side by side.
    ///
    /// # Errors
    ///
    /// `OutOfMemory` when there is no such run.
    pub(crate) fn in_pool_exact(pool: &Pool, want: usize) -> io::Result<Extent> {
        Lease::take_exact(pool, pages_for(want, pool)).map(Self::over)
    }

    #[inline]
    fn over(lease: Lease) -> Extent {
        let (page, run) = (lease.pool().page_size(), lease.run());
        Extent {
            base: lease.pool().address_of(run.start as usize * page),
            filled: 0,
            committed: lease.mapped() as usize * page,
            capacity: run.len as usize * page,
            reserved: 0,
            owner: Owner::Pages(lease),
        }
    }

    /// `capacity` bytes of the heap, not initialised; overwritten before they are freed, if `zero`.
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

    /// Bytes that can be filled now.
    #[inline]
    pub(crate) fn ready(&self) -> usize {
        self.committed - self.filled
    }

    /// The memory behind the filled bytes that may be written now.
    #[inline]
    pub(crate) fn spare_mut(&mut self) -> &mut [MaybeUninit<u8>] {
        let len = self.committed - self.filled;
        // SAFETY: `filled` is at most the capacity.
        let first = unsafe { self.base.add(self.filled) };
        // SAFETY: within the owned and committed range, and nobody else refers to bytes beyond `filled`.
        unsafe { slice::from_raw_parts_mut(first.cast().as_ptr(), len) }
    }

    /// Makes at least `want` spare bytes, or all there are, ready to be written.
    ///
    /// # Errors
    ///
    /// When the system has no memory for them; nothing has changed then.
    pub(crate) fn commit(&mut self, want: usize) -> io::Result<()> {
        let needed = self.filled.saturating_add(want).min(self.capacity);
        if let (true, Owner::Pages(lease)) = (self.committed < needed, &mut self.owner) {
            let page = lease.pool().page_size();
            let end = lease.run().end();
            // `base` may lie inside a page; the end of the capacity never does.
            let beyond = |bytes: usize| end - to_pages((self.capacity - bytes) / page);
            let upto = beyond(needed);
            lease.commit(beyond(self.committed), upto)?;
            self.committed = self.capacity - (end - upto) as usize * page;
        }
        Ok(())
    }

    /// Takes up to `more` further bytes directly behind; returns whether it got any.
    pub(crate) fn grow(&mut self, more: usize) -> bool {
        self.extend(more, false)
    }

    /// Takes at least `more` further bytes directly behind, or nothing.
    pub(crate) fn grow_exact(&mut self, more: usize) -> bool {
        self.extend(more, true)
    }

    fn extend(&mut self, more: usize, exactly: bool) -> bool {
        let Owner::Pages(lease) = &mut self.owner else { return false };
        let page = lease.pool().page_size();
        let Some(Taken { run, mapped }) = lease.grow(to_pages(more.div_ceil(page)), exactly) else {
            return false;
        };
        if self.committed == self.capacity {
            self.committed += mapped as usize * page;
        }
        self.capacity += run.len as usize * page;
        true
    }

    /// Keeps `more` of the spare bytes until they are filled.
    pub(crate) fn reserve(&mut self, more: usize) {
        debug_assert!(more <= self.spare());
        self.reserved = self.reserved.max(self.filled + more);
    }

    /// Spare bytes that are kept.
    pub(crate) fn reserved(&self) -> usize {
        self.reserved.saturating_sub(self.filled)
    }

    /// Gives pages that are not committed back, unless some are reserved; returns whether it did.
    pub(crate) fn give_back_cold(&mut self) -> bool {
        let cold = self.capacity > self.committed && self.reserved() == 0;
        if cold {
            self.give_back(self.ready());
        }
        cold
    }

    /// Gives whole pages that stayed empty back, but for `keep` bytes and what is reserved. Heap memory
    /// stays.
    #[inline]
    pub(crate) fn give_back(&mut self, keep: usize) {
        let surplus = self.spare().saturating_sub(keep.max(self.reserved()));
        let Owner::Pages(lease) = &mut self.owner else { return };
        let page = lease.pool().page_size();
        let surplus = surplus / page;
        if surplus > 0 {
            lease.truncate(lease.run().end() - to_pages(surplus));
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

    /// Copies as much of `bytes` as there is committed room for; returns how much that was.
    #[inline]
    pub(crate) fn copy_from(&mut self, bytes: &[u8]) -> usize {
        let spare = self.spare_mut();
        let count = spare.len().min(bytes.len());
        // SAFETY: both are valid for `count` bytes; `spare` is borrowed mutably, so they do not overlap.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), spare.as_mut_ptr().cast(), count) };
        // SAFETY: just written.
        unsafe { self.fill(count) };
        count
    }

    /// A buffer to read into instead, if what follows the committed bytes is a page without memory.
    pub(crate) fn bounce(&self) -> Option<Extent> {
        let Owner::Pages(lease) = &self.owner else { return None };
        lease.is_cold(self.committed_end(lease)).then(|| lease.pool().take_bounce()).flatten()
    }

    /// The page behind the committed bytes.
    fn committed_end(&self, lease: &Lease) -> u32 {
        lease.run().end() - to_pages((self.capacity - self.committed) / lease.pool().page_size())
    }

    /// Whether the memory goes on where `bytes` end.
    pub(crate) fn follows(&self, bytes: &[u8]) -> bool {
        bytes.as_ptr_range().end == self.base.as_ptr()
    }

    /// How far into a page the filled bytes reach; 0 on the heap.
    pub(crate) fn end_in_page(&self) -> usize {
        let Owner::Pages(lease) = &self.owner else { return 0 };
        cut(self.base, self.filled, lease) % lease.pool().page_size()
    }

    /// Leaves the first `lead` bytes of an empty extent unused.
    ///
    /// # Errors
    ///
    /// When the system has no memory for the page that they are in.
    pub(crate) fn skip(&mut self, lead: usize) -> io::Result<()> {
        debug_assert!(self.filled == 0 && lead < self.capacity);
        self.commit(lead)?;
        // SAFETY: `lead` is less than the capacity.
        self.base = unsafe { self.base.add(lead) };
        self.committed -= lead;
        self.capacity -= lead;
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

    /// Writes to pages that are not committed yet, once all that are have been filled. Cheaper than to
    /// commit them first: no fault, and no zeroing of what is overwritten. Returns how many bytes were
    /// written, fewer than there are only if the kernel has no memory for them.
    pub(crate) fn write_cold(&mut self, bytes: &[u8]) -> usize {
        let Owner::Pages(lease) = &self.owner else { return 0 };
        let page = lease.pool().page_size();
        debug_assert_eq!(self.filled, self.committed, "the committed bytes come first");
        debug_assert!(bytes.len() <= self.spare());
        let written = lease.write(self.committed_end(lease), bytes);
        self.filled += written;
        // The rest of the last page has memory now.
        self.committed = self.capacity - self.spare() / page * page;
        written
    }

    /// Makes a heap extent of which nothing was cut off empty again.
    pub(crate) fn clear(&mut self) {
        if let Owner::Heap(block) = &self.owner {
            if Arc::strong_count(block) == 1 {
                // SAFETY: `filled` bytes of the block, of which this is the only owner.
                unsafe { ptr::write_bytes(self.base.as_ptr(), 0, if block.zero { self.filled } else { 0 }) };
                self.filled = 0;
            }
        }
    }

    /// Cuts the first `len` filled bytes off, as a segment with an owner of its own. O(1), no copy.
    pub(crate) fn split_to(&mut self, len: usize) -> Bytes {
        assert!(len <= self.filled, "cannot cut {len} bytes off an extent of {}", self.filled);
        let owner = match &mut self.owner {
            Owner::Heap(block) => Owner::Heap(Arc::clone(block)),
            Owner::Pages(lease) => Owner::Pages(lease.split_to(cut(self.base, len, lease))),
        };
        let piece = Piece { base: self.base, len, owner };
        // SAFETY: `len` is at most the capacity.
        self.base = unsafe { self.base.add(len) };
        self.filled -= len;
        self.committed -= len;
        self.capacity -= len;
        self.reserved = self.reserved.saturating_sub(len);
        Bytes::from_owner(piece)
    }

    /// All filled bytes as a segment. No copy; whole pages behind them are given back.
    #[inline]
    pub(crate) fn into_bytes(mut self) -> Bytes {
        self.reserved = 0;
        self.give_back(0);
        Bytes::from_owner(Piece { base: self.base, len: self.filled, owner: self.owner })
    }

    /// All filled bytes as a segment, while this extent goes on. O(pages), no copy.
    pub(crate) fn share(&self) -> Bytes {
        let owner = match &self.owner {
            Owner::Heap(block) => Owner::Heap(Arc::clone(block)),
            Owner::Pages(lease) => Owner::Pages(lease.share_to(cut(self.base, self.filled, lease))),
        };
        Bytes::from_owner(Piece { base: self.base, len: self.filled, owner })
    }

    #[cfg(any(test, fuzzing))]
    pub(crate) fn assert_invariants(&self) {
        assert!(self.filled <= self.committed && self.committed <= self.capacity);
        assert!(self.reserved <= self.capacity);
        if let Owner::Pages(lease) = &self.owner {
            let page = lease.pool().page_size();
            let end = lease.pool().address_of(lease.run().end() as usize * page);
            assert_eq!(self.base.as_ptr().addr() + self.capacity, end.as_ptr().addr());
        }
    }
}

impl fmt::Debug for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Extent").field("len", &self.filled).field("capacity", &self.capacity).finish()
    }
}

/// Filled bytes and what keeps them alive: the owner behind a `Bytes`.
struct Piece {
    base: NonNull<u8>,
    len: usize,
    owner: Owner,
}

// SAFETY: the bytes are read only from the moment the piece is made until the last owner is gone.
unsafe impl Send for Piece {}
// SAFETY: as above.
unsafe impl Sync for Piece {}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        let _alive: &Owner = &self.owner;
        // SAFETY: the extent had filled these bytes when it cut them off; the owner lives.
        unsafe { slice::from_raw_parts(self.base.as_ptr(), self.len) }
    }
}

/// Heap memory that is filled through raw pointers.
struct Block {
    base: NonNull<u8>,
    capacity: usize,
    /// Whether nothing that was in it may stay in memory.
    zero: bool,
}

// SAFETY: a block is an allocation and nothing else; who may write where is the extent's business.
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

/// Where `base + len` lies in the arena, in bytes.
fn cut(base: NonNull<u8>, len: usize, lease: &Lease) -> usize {
    base.as_ptr().addr() - lease.pool().address_of(0).as_ptr().addr() + len
}

#[inline]
fn pages_for(bytes: usize, pool: &Pool) -> u32 {
    to_pages(bytes.div_ceil(pool.page_size())).max(1)
}

/// More pages than there can be is as good as too many.
#[inline]
fn to_pages(pages: usize) -> u32 {
    u32::try_from(pages).unwrap_or(u32::MAX)
}
