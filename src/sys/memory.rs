//! The calls behind the arena: a memfd and its holes.

use std::fs::{self, File};
use std::io;

use nix::fcntl::{FallocateFlags, FcntlArg, SealFlag, fallocate, fcntl};
use nix::libc::off_t;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
use nix::sys::uio::pwrite;
use nix::unistd::{SysconfVar, sysconf};

use super::io::retry;
#[cfg(test)]
use super::mock::{self, Call};

/// Bytes whose entries in the page tables are one table, and of a huge page, where a page is 4 KiB.
pub(crate) const TABLE: usize = 2 << 20;

/// memfd_create(2): close-on-exec, `len` bytes of hole, sealed against shrinking and growing.
///
/// The file is cut to `RLIMIT_FSIZE` first, because ftruncate(2) beyond that limit raises SIGXFSZ.
pub(crate) fn memfd(len: u64) -> io::Result<(File, u64)> {
    let len = len.min(file_size_limit());
    #[cfg(test)]
    mock::refuse(Call::Memfd)?;
    let file = File::from(memfd_create(c"ropewalk", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?);
    #[cfg(test)]
    mock::refuse(Call::Resize)?;
    file.set_len(len)?;
    let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
    #[cfg(test)]
    mock::refuse(Call::Seal)?;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
    Ok((file, len))
}

/// fallocate(2): backs a range of the file with memory, or says that there is none.
pub(crate) fn allocate(file: &File, offset: u64, len: u64) -> io::Result<()> {
    let (offset, len) = (to_off(offset)?, to_off(len)?);
    retry(|| {
        #[cfg(test)]
        mock::refuse(Call::Allocate)?;
        fallocate(file, FallocateFlags::FALLOC_FL_KEEP_SIZE, offset, len)
    })
}

/// fallocate(2) with `FALLOC_FL_PUNCH_HOLE`: gives the memory of a range back to the system.
pub(crate) fn punch_hole(file: &File, offset: u64, len: u64) -> io::Result<()> {
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let (offset, len) = (to_off(offset)?, to_off(len)?);
    retry(|| {
        #[cfg(test)]
        mock::refuse(Call::Punch)?;
        fallocate(file, flags, offset, len)
    })
}

/// pwrite(2). Beyond `RLIMIT_FSIZE`, where the kernel would raise SIGXFSZ, it is an error instead.
pub(crate) fn write_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<usize> {
    if offset + bytes.len() as u64 > file_size_limit() {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    let offset = to_off(offset)?;
    retry(|| {
        #[cfg(test)]
        let bytes = mock::write_at(bytes)?;
        pwrite(file, bytes, offset)
    })
}

/// sysconf(3), `_SC_PAGESIZE`.
pub(crate) fn page_size() -> usize {
    system_value(SysconfVar::PAGE_SIZE).unwrap_or(4096)
}

/// Bytes of a huge page, where the system has any for shared memory that asks for them.
pub(crate) fn huge_page_size() -> Option<usize> {
    #[cfg(test)]
    if let Some(size) = mock::huge_page_size() {
        return Some(size);
    }
    let setting = |name| fs::read_to_string(format!("/sys/kernel/mm/transparent_hugepage/{name}")).ok();
    // The choice is in brackets.
    let shared = setting("shmem_enabled")?;
    let refused = ["[never]", "[deny]"].iter().any(|choice| shared.contains(choice));
    if refused { None } else { setting("hpage_pmd_size")?.trim().parse().ok() }
}

/// sysconf(3), `_SC_PHYS_PAGES`: bytes of physical memory.
pub(crate) fn physical_memory() -> u64 {
    let pages = system_value(SysconfVar::_PHYS_PAGES).unwrap_or(1 << 18);
    pages as u64 * page_size() as u64
}

fn system_value(name: SysconfVar) -> Option<usize> {
    sysconf(name).ok().flatten().and_then(|value| usize::try_from(value).ok())
}

/// getrlimit(2), `RLIMIT_FSIZE`.
#[allow(clippy::useless_conversion)] // a limit has 32 bits on some targets
fn file_size_limit() -> u64 {
    match getrlimit(Resource::RLIMIT_FSIZE) {
        Ok((RLIM_INFINITY, _)) | Err(_) => u64::MAX,
        Ok((soft, _)) => soft.into(),
    }
}

pub(super) fn to_off(value: u64) -> io::Result<off_t> {
    off_t::try_from(value).map_err(|_| {
        io::Error::new(io::ErrorKind::FileTooLarge, format!("offset {value} does not fit off_t"))
    })
}
