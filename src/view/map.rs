//! The memory of a view: pages with a second address, or segments that lie side by side.
#![allow(unsafe_code)] // copies to mapped pages, and makes slices of what lies there

use std::io;
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use bytes::Bytes;

use super::plan::Layout;
use crate::event::event;
use crate::pool::Pool;
use crate::rope::Rope;
use crate::sys::memory;
use crate::sys::space::Space;

/// Of pages that are not mapped any more where ropes would use them, so that none does: there was no memory for the
/// kernel to put them back.
static LOST: Mutex<Vec<Bytes>> = Mutex::new(Vec::new());

/// Segments that lie side by side in the arena, as one slice.
pub(super) struct Adjacent {
    /// From the arena, so that it is good for all of them.
    base: NonNull<u8>,
    len: usize,
    /// Keeps the pages.
    _rope: Rope,
}

// SAFETY: the bytes are read only for as long as any segment lives, and `Rope` is Send and Sync.
unsafe impl Send for Adjacent {}
// SAFETY: as above.
unsafe impl Sync for Adjacent {}

impl Adjacent {
    /// # Safety
    ///
    /// The bytes of `rope` are the `rope.len()` bytes from `base` on, and `base` is good for all of them.
    pub(super) unsafe fn new(base: NonNull<u8>, rope: Rope) -> Adjacent {
        Adjacent { base, len: rope.len(), _rope: rope }
    }
}

impl AsRef<[u8]> for Adjacent {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: promised to `new`; the segments keep the bytes alive and unchanged.
        unsafe { slice::from_raw_parts(self.base.as_ptr(), self.len) }
    }
}

/// Address space in which some pages are the arena's and the others hold copies.
pub(super) struct Mapping {
    space: Space,
    lead: usize,
    len: usize,
    /// Keep the mapped pages from being recycled.
    segments: Vec<Bytes>,
    _claim: Claim,
}

impl Mapping {
    /// Lays `rope` out and takes its segments; those that lie in the arena are kept.
    ///
    /// # Errors
    ///
    /// When the kernel refuses a map, or when so many maps exist that this process might run out of them.
    /// Nothing is left behind then, and the rope is as it was.
    ///
    /// # Safety
    ///
    /// `layout` is the plan for this very rope, and its places are those of `pool`.
    pub(super) unsafe fn new(rope: &mut Rope, layout: &Layout, pool: &Pool) -> io::Result<Mapping> {
        let claim = Claim::new(layout.maps.len() + layout.copies.len() + 1)?;
        let (lead, len) = (layout.lead, rope.len());
        let space = fill(layout, lead + len, pool)?;
        let mut cursor = rope.cursor();
        for range in &layout.copies {
            cursor.set_position(range.start);
            while cursor.position() < range.end {
                let count = cursor.chunk().len().min(range.end - cursor.position());
                let to = space.at(lead + cursor.position());
                // SAFETY: `count` bytes of the rope go where the plan has no map, so that there are zeros to
                // be written to, as many as the plan has bytes.
                unsafe { ptr::copy_nonoverlapping(cursor.chunk().as_ptr(), to.as_ptr(), count) };
                cursor.advance(count);
            }
        }
        let segments = rope.take_segments().filter(|bytes| pool.offset_of(bytes).is_some()).collect();
        Ok(Mapping { space, lead, len, segments, _claim: claim })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if let Err(_lost) = self.space.give_back() {
            event!(warn, error = %_lost, "pages lost their map, and are not used again");
            LOST.lock().unwrap_or_else(PoisonError::into_inner).append(&mut self.segments);
        }
    }
}

/// Maps what `layout` says, and zeros between.
fn fill(layout: &Layout, len: usize, pool: &Pool) -> io::Result<Space> {
    let arena = pool.file().ok_or(io::ErrorKind::Unsupported)?;
    // A huge page is one entry and one fault: there is nothing to be gained.
    let huge = pool.page_size() > memory::page_size();
    let fill = |mut space: Space| {
        let mut end = 0;
        for map in &layout.maps {
            space.push_zeros(map.at - end)?;
            let (home, offset) = (pool.address_of(map.place), pool.in_file(map.place));
            if huge || map.len < pool.limits().min_move {
                space.push_pages(map.len, offset)?;
            } else {
                // SAFETY: the arena is mapped there for as long as there is any lease, as the segments have.
                unsafe { space.push_moved(map.len, home, offset)? };
            }
            end = map.at + map.len;
        }
        space.push_zeros(len.saturating_sub(end))?;
        space.keep_private()?;
        Ok(space)
    };
    let like = layout
        .maps
        .first()
        .map_or(0, |first| pool.address_of(first.place).addr().get().wrapping_sub(first.at));
    match Space::vacant(arena, len, like).and_then(fill) {
        // Another thread was faster. What is reserved is safe from others.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            Space::reserve(arena, len.next_multiple_of(memory::page_size())).and_then(fill)
        }
        filled => filled,
    }
}

impl AsRef<[u8]> for Mapping {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: `new` has copied or mapped all `len` bytes behind the lead, and nobody writes to them
        // any more: the copies are this mapping's own, the segments keep the pages.
        unsafe { slice::from_raw_parts(self.space.at(self.lead).as_ptr(), self.len) }
    }
}

/// Maps of all views of this process.
static CLAIMED: AtomicUsize = AtomicUsize::new(0);

/// Some of the maps that the kernel admits to this process (`vm.max_map_count`), of which views leave
/// three quarters to others.
struct Claim(usize);

impl Claim {
    fn new(maps: usize) -> io::Result<Claim> {
        let before = CLAIMED.fetch_add(maps, Ordering::Relaxed);
        let claim = Claim(maps);
        if before + maps > most_maps() {
            // Dropped here, which undoes it.
            return Err(io::Error::new(io::ErrorKind::QuotaExceeded, "too many maps in this process"));
        }
        Ok(claim)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        CLAIMED.fetch_sub(self.0, Ordering::Relaxed);
    }
}

fn most_maps() -> usize {
    static MOST: OnceLock<usize> = OnceLock::new();
    *MOST.get_or_init(|| {
        let setting = std::fs::read_to_string("/proc/sys/vm/max_map_count").unwrap_or_default();
        setting.trim().parse().unwrap_or(65_530) / 4
    })
}
