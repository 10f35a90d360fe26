//! Pages of a memfd, as a pool has them.

use std::fs::File;
use std::io;
use std::ptr;

use memmap2::{Advice, MmapMut, MmapOptions, MmapRaw};
use rustix::fs::{FallocateFlags, MemfdFlags, fallocate, memfd_create};
use rustix::mm::{MapFlags, MremapFlags, ProtFlags, mmap, mremap_fixed, munmap};

/// Bytes whose page table entries are one page.
const TABLE: usize = 2 << 20;

/// A memfd, mapped once, from a multiple of 2 MiB on.
pub(super) struct Memfd {
    file: File,
    map: MmapMut,
    /// Bytes of both before the first page.
    skip: usize,
    len: usize,
}

impl Memfd {
    /// Of `size` bytes, none of which has memory.
    pub(super) fn new(size: usize) -> io::Result<Memfd> {
        let file = File::from(memfd_create("thresholds", MemfdFlags::CLOEXEC)?);
        file.set_len((size + TABLE) as u64)?;
        // SAFETY: the file is this value's alone; it is written to, and mapped again, only while nothing
        // borrows the map.
        let map = unsafe { MmapMut::map_mut(&file)? };
        let skip = map.as_ptr().align_offset(TABLE);
        Ok(Memfd { file, map, skip, len: size })
    }

    /// Whose pages all have memory and are mapped.
    pub(super) fn warm(size: usize) -> io::Result<Memfd> {
        let mut memfd = Memfd::new(size)?;
        memfd.bytes().fill(7);
        Ok(memfd)
    }

    pub(super) fn bytes(&mut self) -> &mut [u8] {
        &mut self.map[self.skip..][..self.len]
    }

    /// Gives pages memory and maps them.
    pub(super) fn populate(&mut self, at: usize, len: usize) -> io::Result<()> {
        self.map.advise_range(Advice::PopulateWrite, self.skip + at, len)
    }

    /// Takes the memory of all pages away.
    pub(super) fn punch(&mut self) -> io::Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        Ok(fallocate(&self.file, flags, 0, self.map.len() as u64)?)
    }

    /// The runs of `len` bytes at `places`, a second time, adjacent, as in a view: where nothing is.
    pub(super) fn side_by_side(&self, places: &[usize], len: usize) -> io::Result<Stitched> {
        let view = Stitched(reservation(places.len() * len)?);
        // SAFETY: there is no reference to it. What is mapped there next is unmapped when `view` goes.
        unsafe { munmap(view.0.as_mut_ptr().cast(), view.0.len())? };
        self.fill(view, places, len, MapFlags::FIXED_NOREPLACE)
    }

    /// The same, in place of a reservation.
    pub(super) fn over_a_reservation(&self, places: &[usize], len: usize) -> io::Result<Stitched> {
        self.fill(Stitched(reservation(places.len() * len)?), places, len, MapFlags::FIXED)
    }

    fn fill(&self, view: Stitched, places: &[usize], len: usize, fixed: MapFlags) -> io::Result<Stitched> {
        for (index, &place) in places.iter().enumerate() {
            // SAFETY: within the view's range.
            let address = unsafe { view.0.as_mut_ptr().add(index * len) };
            let (flags, read) = (MapFlags::SHARED | fixed, ProtFlags::READ);
            // SAFETY: whole pages of the view's range, to which there is no reference.
            unsafe { mmap(address.cast(), len, read, flags, &self.file, (self.skip + place) as u64)? };
        }
        Ok(view)
    }

    /// The same runs with their entries in the page tables, which go back in the end.
    pub(super) fn moved(&self, places: &[usize], len: usize) -> io::Result<Moved> {
        let reserved = reservation(places.len() * len + TABLE)?;
        let start = reserved.as_mut_ptr().map_addr(|address| address.next_multiple_of(TABLE));
        drop(reserved);
        let mut view = Moved { start, len, homes: Vec::with_capacity(places.len()) };
        for &place in places {
            let home = self.as_ref()[place..].as_ptr().cast_mut();
            // SAFETY: whole pages, which stay mapped at `home` too; where they go nothing is.
            let got = unsafe {
                mremap_fixed(
                    home.cast(),
                    len,
                    len,
                    MremapFlags::MAYMOVE | MremapFlags::DONTUNMAP,
                    view.end().cast(),
                )?
            };
            assert_eq!(got.cast(), view.end(), "moved to where it was to go");
            view.homes.push(home);
        }
        Ok(view)
    }

    /// The same runs copied to a reservation, as those are that a view does not map.
    pub(super) fn copied(&self, places: &[usize], len: usize) -> io::Result<Stitched> {
        let view = Stitched(reservation(places.len() * len)?);
        for (index, &place) in places.iter().enumerate() {
            let from = &self.as_ref()[place..place + len];
            // SAFETY: within the reservation.
            let to = unsafe { view.0.as_mut_ptr().add(index * len) };
            // SAFETY: `len` bytes of the reservation, to which there is no reference.
            unsafe { ptr::copy_nonoverlapping(from.as_ptr(), to, len) };
        }
        Ok(view)
    }
}

impl AsRef<[u8]> for Memfd {
    fn as_ref(&self) -> &[u8] {
        &self.map[self.skip..][..self.len]
    }
}

/// Runs of `len` bytes that were moved here, and where they go back to.
pub(super) struct Moved {
    start: *mut u8,
    len: usize,
    homes: Vec<*mut u8>,
}

impl Moved {
    fn end(&self) -> *mut u8 {
        self.start.wrapping_add(self.homes.len() * self.len)
    }
}

impl AsRef<[u8]> for Moved {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: all of it is mapped, and nothing writes to it, or to the memfd, while it is there.
        unsafe { std::slice::from_raw_parts(self.start, self.homes.len() * self.len) }
    }
}

impl Drop for Moved {
    fn drop(&mut self) {
        while let Some(home) = self.homes.pop() {
            let (here, flags) = (self.end().cast(), MremapFlags::MAYMOVE);
            // SAFETY: the same pages are at both places, and there is no reference to them here any more.
            unsafe { mremap_fixed(here, self.len, self.len, flags, home.cast()) }
                .expect("to where they were");
        }
    }
}

fn reservation(len: usize) -> io::Result<MmapRaw> {
    Ok(MmapOptions::new().len(len).no_reserve_swap().map_anon()?.into())
}

/// A view's memory.
pub(super) struct Stitched(MmapRaw);

impl Stitched {
    /// Maps all pages at once, rather than sixteen a fault.
    pub(super) fn populate(&self) -> io::Result<()> {
        self.0.advise(Advice::PopulateRead)
    }
}

impl AsRef<[u8]> for Stitched {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: all of it is mapped, and nothing writes to it, or to the memfd, while it is there.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr(), self.0.len()) }
    }
}
