//! Which addresses show pages of a file.
//!
//! A segment is a pointer and a length. Where it points to pages of a file, the file is a better source than the mapping:
//! sendfile(2) copies nothing, and pread(2) reports an error where touching the page would raise SIGBUS. Slices and
//! clones of a segment keep this, since it is told by the address.
//!
//! While no file is shown, asking costs one load.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock, RwLockReadGuard, TryLockError};
use std::thread;
use std::time::Duration;

use super::process::Process;

/// Where in a file bytes lie.
#[derive(Clone, Debug)]
pub(crate) struct InFile {
    pub(crate) file: Arc<File>,
    pub(crate) offset: u64,
    /// Pages with neighbouring addresses are neighbours in the file too, so that they can be mapped a second time as one.
    pub(crate) home: bool,
}

struct Shown {
    len: usize,
    at: InFile,
    /// In a child of it something else may be mapped there.
    owner: Process,
}

/// By address.
static SHOWN: RwLock<BTreeMap<usize, Shown>> = RwLock::new(BTreeMap::new());

/// Ranges in it.
static COUNT: AtomicUsize = AtomicUsize::new(0);

/// The process that showed the first file: in a child the lock may be held by a thread that is not there.
static FIRST: OnceLock<Process> = OnceLock::new();

/// The lock is held by a thread that does not exist.
static STUCK: AtomicBool = AtomicBool::new(false);

/// How long to wait for the lock in a child, in milliseconds. No thread holds it while it waits for anything.
const PATIENCE: u32 = 1000;

/// Notes that the bytes of a range of addresses are those of a file. Returns whether it did: only in a child of fork(2) may
/// the lock be held for good, and then the mapping is used.
pub(crate) fn show(addresses: Range<usize>, at: InFile) -> bool {
    let owner = Process::current();
    FIRST.get_or_init(|| owner);
    let Some(mut shown) = lock(|| SHOWN.write(), || SHOWN.try_write()) else { return false };
    shown.insert(addresses.start, Shown { len: addresses.len(), at, owner });
    COUNT.store(shown.len(), Ordering::Release);
    true
}

/// Forgets what begins within a range of addresses, before something else is mapped there.
pub(crate) fn hide(addresses: Range<usize>) {
    if is_empty() {
        return;
    }
    let mut shown = SHOWN.write().unwrap_or_else(PoisonError::into_inner);
    let starts: Vec<usize> = shown.range(addresses).map(|(&start, _)| start).collect();
    starts.iter().for_each(|start| drop(shown.remove(start)));
    COUNT.store(shown.len(), Ordering::Release);
}

/// Returns whether no file is shown.
pub(crate) fn is_empty() -> bool {
    COUNT.load(Ordering::Acquire) == 0
}

/// Returns where in a file the byte at this address lies.
pub(crate) fn at(address: usize) -> Option<InFile> {
    find(address, 1).1
}

/// Splits `bytes` where a file begins or ends: the parts in order, none of them empty.
pub(crate) fn parts(bytes: &[u8]) -> impl Iterator<Item = (&[u8], Option<InFile>)> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let (len, at) = first_part(rest);
        let (part, behind) = rest.split_at(len);
        rest = behind;
        Some((part, at))
    })
}

/// Copies `from` to `into`, which is as long: by pread(2) what lies in a file.
///
/// # Errors
///
/// Those of pread(2), and `UnexpectedEof` if the file has become shorter.
pub(crate) fn copy(from: &[u8], into: &mut [u8]) -> io::Result<()> {
    let mut rest = into;
    for (part, in_file) in parts(from) {
        let (to, behind) = rest.split_at_mut(part.len());
        match in_file {
            Some(at) => at.file.read_exact_at(to, at.offset)?,
            None => to.copy_from_slice(part),
        }
        rest = behind;
    }
    Ok(())
}

/// Appends `from` to `into`, as [`copy`] does.
///
/// # Errors
///
/// As for [`copy`]. A part may have been appended.
pub(crate) fn append(from: &[u8], into: &mut Vec<u8>) -> io::Result<()> {
    for (part, in_file) in parts(from) {
        let end = into.len();
        match in_file {
            Some(at) => {
                into.resize(end + part.len(), 0);
                at.file.read_exact_at(&mut into[end..], at.offset)?;
            }
            None => into.extend_from_slice(part),
        }
    }
    Ok(())
}

/// How many of the first bytes are in one place, and where, if that is a file.
#[inline]
pub(crate) fn first_part(bytes: &[u8]) -> (usize, Option<InFile>) {
    if is_empty() { (bytes.len(), None) } else { find(bytes.as_ptr().addr(), bytes.len()) }
}

#[inline(never)]
fn find(start: usize, len: usize) -> (usize, Option<InFile>) {
    let Some(shown) = read() else { return (len, None) };
    let Some((&first, found)) =
        shown.range(..=start).next_back().filter(|(at, found)| start - *at < found.len)
    else {
        let next = shown.range(start..).next().map_or(usize::MAX, |(&next, _)| next);
        return (len.min(next - start), None);
    };
    let mut end = first + found.len;
    if !found.owner.is_current() {
        return (len.min(end - start), None);
    }
    let in_file = |address: usize| found.at.offset + (address - first) as u64;
    // Pages that go on where these end, in the file too.
    while end - start < len {
        match shown.get(&end) {
            Some(next) if Arc::ptr_eq(&next.at.file, &found.at.file) && next.at.offset == in_file(end) => {
                end += next.len;
            }
            _ => break,
        }
    }
    (len.min(end - start), Some(InFile { offset: in_file(start), ..found.at.clone() }))
}

fn read() -> Option<RwLockReadGuard<'static, BTreeMap<usize, Shown>>> {
    lock(|| SHOWN.read(), || SHOWN.try_read())
}

/// Takes the lock. In a child it gives up after a while, and at once from then on.
fn lock<G>(
    wait: impl Fn() -> Result<G, PoisonError<G>>,
    attempt: impl Fn() -> Result<G, TryLockError<G>>,
) -> Option<G> {
    if FIRST.get().is_none_or(|first| first.is_current()) {
        return Some(wait().unwrap_or_else(PoisonError::into_inner));
    }
    for _ in 0..PATIENCE {
        match attempt() {
            Ok(guard) => return Some(guard),
            Err(TryLockError::Poisoned(guard)) => return Some(guard.into_inner()),
            Err(TryLockError::WouldBlock) if STUCK.load(Ordering::Relaxed) => return None,
            Err(TryLockError::WouldBlock) => thread::sleep(Duration::from_millis(1)),
        }
    }
    STUCK.store(true, Ordering::Relaxed);
    None
}
