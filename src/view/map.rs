//! The memory of a view: runs of pages mapped a second time, or contiguous segments of the arena.
#![allow(unsafe_code)] // copies to mapped pages, and slices over them

use std::io;
use std::ptr::NonNull;
use std::slice;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use bytes::Bytes;

use super::plan::Layout;
use crate::event::event;
use crate::limits::Limits;
use crate::pool::Pool;
use crate::rope::Rope;
use crate::sys::shown;
use crate::sys::space::Space;
use crate::sys::{is_short, page_size};

/// Leaked on purpose: the arena's mapping of these pages could not be restored, so no rope may get them again.
static LEAKED: Mutex<Vec<Bytes>> = Mutex::new(Vec::new());

/// Holes that are tried, since another thread may map something into one.
const MAX_ATTEMPTS: usize = 8;

/// Segments that are contiguous in the arena, as one slice.
pub(super) struct Adjacent {
    /// The first byte, with the arena's provenance: valid for all segments.
    base: NonNull<u8>,
    len: usize,
    /// Keeps the pages allocated.
    _rope: Rope,
}

// SAFETY: the bytes are not written while a segment lives, and `Rope` is Send and Sync.
unsafe impl Send for Adjacent {}
// SAFETY: as above.
unsafe impl Sync for Adjacent {}

impl Adjacent {
    /// Makes the bytes of `rope` one slice.
    ///
    /// # Safety
    ///
    /// The bytes of `rope` are the `rope.len()` bytes from `base` on, and `base` has provenance for all of them.
    pub(super) unsafe fn new(base: NonNull<u8>, rope: Rope) -> Adjacent {
        Adjacent { base, len: rope.len(), _rope: rope }
    }
}

impl AsRef<[u8]> for Adjacent {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: promised to `new`; the segments keep the pages allocated, and they are not written.
        unsafe { slice::from_raw_parts(self.base.as_ptr(), self.len) }
    }
}

/// Address space in which some pages are the arena's and the others hold copies. A view of them.
pub(super) struct Mapping {
    space: Space,
    /// Bytes of the space before the view.
    lead: usize,
    len: usize,
    /// Keep the mapped pages allocated.
    segments: Vec<Bytes>,
    _claim: Claim,
}

impl Mapping {
    /// Maps and copies `rope` as `layout` says; keeps its segments that lie in the arena and drops the others.
    ///
    /// # Errors
    ///
    /// When the kernel refuses a map, when views have as many maps as this process grants them, or when a file cannot be
    /// read. Nothing is mapped then, and the rope is as it was.
    ///
    /// # Safety
    ///
    /// `layout` was planned for this rope, with the addresses of bytes of `pool` and of files as offsets.
    pub(super) unsafe fn new(rope: &mut Rope, layout: &Layout, pool: Option<&Pool>) -> io::Result<Mapping> {
        let claim = Claim::new(layout.maps.len() + layout.copies.len() + 1)?;
        let (lead, len) = (layout.lead, rope.len());
        let space = fill(layout, lead + len, pool, rope.limits())?;
        let mut cursor = rope.cursor();
        for range in &layout.copies {
            cursor.set_position(range.start);
            while cursor.position() < range.end {
                let count = cursor.chunk().len().min(range.end - cursor.position());
                let to = space.at(lead + cursor.position());
                // SAFETY: the range that the plan copies has no map of the arena, so `count` private, writable zeros are
                // mapped there, and nothing refers to them yet.
                let to = unsafe { slice::from_raw_parts_mut(to.as_ptr(), count) };
                shown::copy(&cursor.chunk()[..count], to)?;
                cursor.advance(count);
            }
        }
        let segments = rope.take_segments().filter(|bytes| is_mappable(bytes, pool)).collect();
        Ok(Mapping { space, lead, len, segments, _claim: claim })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if let Err(_lost) = self.space.give_back() {
            // Before the event, since a subscriber may panic.
            LEAKED.lock().unwrap_or_else(PoisonError::into_inner).append(&mut self.segments);
            event!(warn, error = %_lost, "pages lost their map in the arena and are leaked");
        }
    }
}

/// Returns whether any of these bytes can be mapped a second time: they lie in the pool's arena, or show a file.
pub(super) fn is_mappable(bytes: &[u8], pool: Option<&Pool>) -> bool {
    let in_arena = pool.is_some_and(|pool| pool.offset_of(bytes).is_some());
    in_arena || shown::parts(bytes).any(|(_, at)| at.is_some_and(|at| at.home))
}

/// Maps the runs of `layout`, and zeros between them.
fn fill(layout: &Layout, len: usize, pool: Option<&Pool>, limits: &Limits) -> io::Result<Space> {
    // A huge page is one page table entry and one page fault: moving it gains nothing.
    let huge = pool.is_some_and(|pool| pool.page_size() > page_size());
    let fill = |mut space: Space| {
        let mut end = 0;
        for map in &layout.maps {
            space.push_zeros(map.at - end)?;
            match pool.and_then(|pool| pool.behind(map.offset)) {
                Some((arena, in_file, _)) if huge || map.len < limits.min_move => {
                    space.push_pages(arena, map.len, in_file)?;
                }
                Some((arena, in_file, home)) => {
                    // SAFETY: the arena stays mapped there while the segments, which the view keeps, refer to its pages.
                    unsafe { space.push_moved(arena, map.len, home, in_file)? };
                }
                None => {
                    space.push_shown(shown::at(map.offset).ok_or(io::ErrorKind::Unsupported)?, map.len)?
                }
            }
            end = map.at + map.len;
        }
        space.push_zeros(len.saturating_sub(end))?;
        space.keep_private()?;
        Ok(space)
    };
    let like = layout.maps.first().map_or(0, |first| first.offset.wrapping_sub(first.at));
    let is_done = |filled: &io::Result<Space>| {
        !filled.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::AlreadyExists)
    };
    // Pages that a failed attempt has moved take page faults in the arena from then on.
    let mut attempts = (0..MAX_ATTEMPTS).map(|_| Space::vacant(len, like).and_then(fill));
    attempts.find(is_done).unwrap_or(Err(io::ErrorKind::AlreadyExists.into()))
}

impl AsRef<[u8]> for Mapping {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: `new` has copied or mapped all `len` bytes behind the lead. They are not written: the copies are
        // private to this mapping, and the segments keep the pages allocated.
        unsafe { slice::from_raw_parts(self.space.at(self.lead).as_ptr(), self.len) }
    }
}

/// Maps of all views of this process, at most [`max_maps`].
static CLAIMED: AtomicUsize = AtomicUsize::new(0);

/// A share of the maps that the kernel grants this process (`vm.max_map_count`). Views use at most a quarter of them,
/// so that the program can still map memory.
struct Claim(usize);

impl Claim {
    fn new(maps: usize) -> io::Result<Claim> {
        let before = CLAIMED.fetch_add(maps, Ordering::Relaxed);
        let claim = Claim(maps);
        if before + maps > max_maps() {
            // `claim` is dropped here, which returns the share.
            let message =
                format!("views of this process have {before} of {} maps, {maps} requested", max_maps());
            return Err(io::Error::new(io::ErrorKind::QuotaExceeded, message));
        }
        Ok(claim)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        CLAIMED.fetch_sub(self.0, Ordering::Relaxed);
    }
}

/// Returns how many maps views may have: a quarter of `vm.max_map_count`.
fn max_maps() -> usize {
    const DEFAULT: usize = 65_530;
    static MAX: OnceLock<usize> = OnceLock::new();
    let read = || match std::fs::read_to_string("/proc/sys/vm/max_map_count") {
        Err(error) if is_short(&error) => None,
        setting => Some(setting.ok().and_then(|setting| setting.trim().parse().ok()).unwrap_or(DEFAULT) / 4),
    };
    // Where descriptors are short, it is read again the next time.
    MAX.get().copied().or_else(|| read().map(|max| *MAX.get_or_init(|| max))).unwrap_or(DEFAULT / 4)
}
