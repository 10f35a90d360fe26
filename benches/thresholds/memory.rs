//! Pages of a memfd, as a pool has them.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::ptr;

use memmap2::{Advice, MmapMut, MmapOptions, MmapRaw};
use rustix::fs::{FallocateFlags, MemfdFlags, fallocate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// A memfd, mapped once.
pub(super) struct Memfd {
    file: File,
    map: MmapMut,
}

impl Memfd {
    /// Of `size` bytes, none of which has memory.
    pub(super) fn new(size: usize) -> io::Result<Memfd> {
        let file = File::from(memfd_create("thresholds", MemfdFlags::CLOEXEC)?);
        file.set_len(size as u64)?;
        // SAFETY: the file is this value's alone; it is written to, and mapped again, only while nothing
        // borrows the map.
        let map = unsafe { MmapMut::map_mut(&file)? };
        Ok(Memfd { file, map })
    }

    /// Whose pages all have memory and are mapped.
    pub(super) fn warm(size: usize) -> io::Result<Memfd> {
        let mut memfd = Memfd::new(size)?;
        memfd.bytes().fill(7);
        Ok(memfd)
    }

    pub(super) fn bytes(&mut self) -> &mut [u8] {
        &mut self.map
    }

    /// pwrite(2).
    pub(super) fn write(&mut self, at: usize, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, at as u64)
    }

    /// Gives pages memory and maps them.
    pub(super) fn populate(&mut self, at: usize, len: usize) -> io::Result<()> {
        self.map.advise_range(Advice::PopulateWrite, at, len)
    }

    /// Takes the memory of all pages away.
    pub(super) fn punch(&mut self) -> io::Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        Ok(fallocate(&self.file, flags, 0, self.map.len() as u64)?)
    }

    /// The runs of `len` bytes at `places`, a second time and side by side, as in a view: where nothing is.
    pub(super) fn side_by_side(&self, places: &[usize], len: usize) -> io::Result<Stitched> {
        let view = Stitched(reservation(places.len() * len)?);
        // SAFETY: nobody has a reference to it. What is mapped there next is unmapped when `view` goes.
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
            // SAFETY: whole pages of the view's range, to which nobody has a reference.
            unsafe { mmap(address.cast(), len, read, flags, &self.file, place as u64)? };
        }
        Ok(view)
    }

    /// The same runs copied to a reservation, as those are that a view does not map.
    pub(super) fn copied(&self, places: &[usize], len: usize) -> io::Result<Stitched> {
        let view = Stitched(reservation(places.len() * len)?);
        for (index, &place) in places.iter().enumerate() {
            let from = &self.map[place..place + len];
            // SAFETY: within the reservation.
            let to = unsafe { view.0.as_mut_ptr().add(index * len) };
            // SAFETY: `len` bytes of the reservation, which nobody has a reference to.
            unsafe { ptr::copy_nonoverlapping(from.as_ptr(), to, len) };
        }
        Ok(view)
    }
}

impl AsRef<[u8]> for Memfd {
    fn as_ref(&self) -> &[u8] {
        &self.map
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
