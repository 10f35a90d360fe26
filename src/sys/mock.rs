//! Mock kernel: answers payload calls, and refuses other calls, as a test says. Exists under `cfg(test)` only.
//!
//! Each thread has its own. While one is set, no payload call of that thread reaches the real kernel.
#![allow(unsafe_code)] // writes into the iovecs, as the kernel would

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::IoSlice;
use std::ptr;

use nix::errno::Errno;

use super::iovec::{UninitIovec, offered};

/// The answer to one call.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Step {
    /// Moves at most this many bytes.
    Move(usize),
    /// Fails without having moved a byte.
    Fail(Errno),
    /// Moves nothing and reports more than was offered.
    Lie(usize),
}

/// A call behind the arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    /// memfd_create(2)
    Memfd,
    /// ftruncate(2)
    Resize,
    /// fcntl(2), `F_ADD_SEALS`
    Seal,
    /// madvise(2), `MADV_POPULATE_WRITE`
    Populate,
    /// fallocate(2)
    Allocate,
    /// pwrite(2) of a zero, to give a page memory
    WriteZero,
    /// fallocate(2), `FALLOC_FL_PUNCH_HOLE`
    Punch,
    /// mmap(2) of pages of a view
    Map,
    /// mremap(2) of pages to a view
    Move,
    /// mremap(2) of such pages to where they were
    MoveBack,
    /// mmap(2) of what they did not get back to
    MapBack,
    /// cachestat(2)
    CacheStat,
    /// open(2) with `O_TMPFILE`
    TmpFile,
    /// pwrite(2) to a file
    WriteFile,
    /// linkat(2) of a file without a name, or link(2) of one that has another
    Link,
    /// renameat2(2) of a file that has another name
    Rename,
    /// splice(2) from a socket
    Splice,
    /// splice(2) to a memfd
    SpliceOut,
    /// mmap(2) that finds a hole for a view, and of what is between its pages
    Zeros,
}

#[derive(Default)]
struct MockKernel {
    steps: VecDeque<Step>,
    /// What a read delivers, from the front.
    incoming: VecDeque<u8>,
    /// What writes took.
    delivered: Vec<u8>,
    /// Calls behind the arena, and the errors that they fail with, one a call; `None` lets one through.
    refusals: Vec<(Call, VecDeque<Option<Errno>>)>,
    huge_page_size: Option<usize>,
}

thread_local! {
    static KERNEL: RefCell<Option<MockKernel>> = const { RefCell::new(None) };
}

/// Runs `body` with a kernel that gives these answers, then moves everything offered;
/// returns what it was sent beside the body's own result.
pub(crate) fn run<T>(
    steps: impl IntoIterator<Item = Step>,
    incoming: &[u8],
    body: impl FnOnce() -> T,
) -> (T, Vec<u8>) {
    let kernel = MockKernel {
        steps: steps.into_iter().collect(),
        incoming: incoming.iter().copied().collect(),
        ..MockKernel::default()
    };
    KERNEL.set(Some(kernel));
    let result = body();
    let kernel = KERNEL.take().expect("set above");
    (result, kernel.delivered)
}

/// Lets the coming `call`s of this thread fail with these errors, or succeed, while `body` runs.
pub(crate) fn refusing<T>(
    call: Call,
    errors: impl IntoIterator<Item = Option<Errno>>,
    body: impl FnOnce() -> T,
) -> T {
    refusing_some([(call, errors.into_iter().collect())], body)
}

/// The same of several calls.
pub(crate) fn refusing_some<T>(
    refusals: impl Into<Vec<(Call, VecDeque<Option<Errno>>)>>,
    body: impl FnOnce() -> T,
) -> T {
    let refusals = refusals.into();
    KERNEL.set(Some(MockKernel { refusals, ..MockKernel::default() }));
    let result = body();
    KERNEL.set(None);
    result
}

/// Whether this thread has a mock kernel. Its descriptors are no message sockets.
pub(crate) fn is_set() -> bool {
    KERNEL.with_borrow(Option::is_some)
}

fn step(answer: impl FnOnce(&mut MockKernel, Step) -> nix::Result<usize>) -> Option<nix::Result<usize>> {
    KERNEL.with_borrow_mut(|kernel| {
        let kernel = kernel.as_mut()?;
        let step = kernel.steps.pop_front().unwrap_or(Step::Move(usize::MAX));
        Some(match step {
            Step::Fail(error) => Err(error),
            Step::Lie(beyond) => answer(kernel, Step::Lie(beyond)),
            Step::Move(_) => answer(kernel, step),
        })
    })
}

pub(crate) fn read(iovecs: &mut [UninitIovec<'_>]) -> Option<nix::Result<usize>> {
    step(|kernel, step| {
        let most = match step {
            Step::Move(most) => most,
            Step::Lie(beyond) => return Ok(offered(iovecs) + beyond),
            Step::Fail(error) => return Err(error),
        };
        let mut count = 0;
        for iovec in iovecs {
            for at in 0..iovec.len() {
                let Some(byte) = (count < most).then(|| kernel.incoming.pop_front()).flatten() else {
                    return Ok(count);
                };
                // SAFETY: `at` is below the iovec's length.
                let to = unsafe { iovec.as_mut_ptr().add(at) };
                // SAFETY: the iovec is memory to be written.
                unsafe { ptr::write(to, byte) };
                count += 1;
            }
        }
        Ok(count)
    })
}

pub(crate) fn write(slices: &[IoSlice<'_>]) -> Option<nix::Result<usize>> {
    step(|kernel, step| {
        let most = match step {
            Step::Move(most) => most,
            Step::Lie(beyond) => return Ok(slices.iter().map(|slice| slice.len()).sum::<usize>() + beyond),
            Step::Fail(error) => return Err(error),
        };
        let before = kernel.delivered.len();
        kernel.delivered.extend(slices.iter().flat_map(|slice| slice.iter()).take(most));
        Ok(kernel.delivered.len() - before)
    })
}

/// Lets shared memory have huge pages while `body` runs; what they are made of is the kernel's affair.
pub(crate) fn with_huge_pages<T>(size: usize, body: impl FnOnce() -> T) -> T {
    KERNEL.set(Some(MockKernel { huge_page_size: Some(size), ..MockKernel::default() }));
    let result = body();
    KERNEL.set(None);
    result
}

pub(crate) fn huge_page_size() -> Option<usize> {
    KERNEL.with_borrow(|kernel| kernel.as_ref()?.huge_page_size)
}

/// The error that the kernel has for this call, if it has one.
pub(crate) fn refuse(call: Call) -> nix::Result<()> {
    let error = KERNEL.with_borrow_mut(|kernel| {
        let refusals = &mut kernel.as_mut()?.refusals;
        refusals.iter_mut().find(|(refused, _)| *refused == call)?.1.pop_front()?
    });
    error.map_or(Ok(()), Err)
}
