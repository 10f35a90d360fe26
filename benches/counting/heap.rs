//! Counts what the program asks of the heap and what it copies, by standing in for the allocator and
//! for memcpy(3) and memmove(3). Copies of a few bytes that the compiler does in registers are not seen.

use std::alloc::{GlobalAlloc, Layout, System};
use std::ffi::c_void;
use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
static ALLOCATED: AtomicU64 = AtomicU64::new(0);
static COPIED: AtomicU64 = AtomicU64::new(0);

/// What was asked and copied so far.
#[derive(Clone, Copy)]
pub(super) struct Tally {
    pub(super) allocations: u64,
    pub(super) allocated: u64,
    pub(super) copied: u64,
}

pub(super) fn tally() -> Tally {
    Tally {
        allocations: ALLOCATIONS.load(Relaxed),
        allocated: ALLOCATED.load(Relaxed),
        copied: COPIED.load(Relaxed),
    }
}

struct Counting;

#[global_allocator]
static HEAP: Counting = Counting;

fn count(bytes: usize) {
    ALLOCATIONS.fetch_add(1, Relaxed);
    ALLOCATED.fetch_add(bytes as u64, Relaxed);
}

// SAFETY: every call goes on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(block, layout) }
    }

    /// Counts as an allocation of what is added. If the block moved it was copied, unless the kernel
    /// moved its pages, mremap(2).
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size.saturating_sub(layout.size()));
        // SAFETY: the block is allocated.
        let mapped = unsafe { is_mapped(block) };
        // SAFETY: the caller's promise.
        let moved = unsafe { System.realloc(block, layout, size) };
        if moved != block && !mapped {
            COPIED.fetch_add(layout.size().min(size) as u64, Relaxed);
        }
        moved
    }
}

/// Whether the block is a map of its own: glibc keeps that in the second bit of the word before it.
///
/// # Safety
///
/// `block` is from glibc's malloc.
unsafe fn is_mapped(block: *mut u8) -> bool {
    // SAFETY: that word belongs to the block.
    unsafe { *block.cast::<usize>().sub(1) & 2 != 0 }
}

type Copy = unsafe extern "C" fn(*mut c_void, *const c_void, usize, usize) -> *mut c_void;

unsafe extern "C" {
    /// glibc's memmove(3) by a name that this file does not take.
    fn __memmove_chk(to: *mut c_void, from: *const c_void, count: usize, room: usize) -> *mut c_void;
}

/// # Safety
///
/// As for memcpy(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut c_void, from: *const c_void, count: usize) -> *mut c_void {
    COPIED.fetch_add(count as u64, Relaxed);
    // The compiler must not see that this is a copy, or it would call memcpy.
    let copy: Copy = black_box(__memmove_chk);
    // SAFETY: the caller's promise.
    unsafe { copy(to, from, count, usize::MAX) }
}

/// # Safety
///
/// As for memmove(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut c_void, from: *const c_void, count: usize) -> *mut c_void {
    // SAFETY: the caller's promise.
    unsafe { memcpy(to, from, count) }
}
