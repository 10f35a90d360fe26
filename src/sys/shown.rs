//! Which addresses show pages of a file.
//!
//! A segment is a pointer and a length. Where it points to pages of a file, the file is a better source than the mapping:
//! sendfile(2) copies nothing, and pread(2) reports an error where touching the page would raise SIGBUS. Slices and
//! clones of a segment keep this, since it is told by the address.
//!
//! While no file is shown, asking costs one load.
#![allow(unsafe_code)] // a table that is replaced after fork(2)

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use super::file::read_exact_at;
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
}

/// What one process shows.
struct Files {
    owner: Process,
    /// By address.
    shown: RwLock<BTreeMap<usize, Shown>>,
}

/// Null before the first file. A child of fork(2) makes a table of its own: something else may be mapped at its parent's
/// addresses, and a thread that does not exist in the child may hold the lock.
static FILES: AtomicPtr<Files> = AtomicPtr::new(ptr::null_mut());

/// Ranges in it.
static COUNT: AtomicUsize = AtomicUsize::new(0);

impl Files {
    /// Returns that of this process.
    fn get() -> Option<&'static Files> {
        // SAFETY: null, or leaked by `make`.
        let table = unsafe { FILES.load(Ordering::Acquire).as_ref() };
        table.filter(|table| table.owner.is_current())
    }

    #[cold]
    fn make() -> &'static Files {
        let before = FILES.load(Ordering::Acquire);
        // Leaked, because other threads may use the table at any time: one per process, and one for each thread that loses
        // the race below.
        let made = Box::leak(Box::new(Files { owner: Process::current(), shown: RwLock::default() }));
        if Files::get().is_none() {
            let _ = FILES.compare_exchange(before, made, Ordering::AcqRel, Ordering::Acquire);
        }
        Files::get().unwrap_or(made)
    }

    fn change(&self, change: impl FnOnce(&mut BTreeMap<usize, Shown>)) {
        let mut shown = self.shown.write().unwrap_or_else(PoisonError::into_inner);
        change(&mut shown);
        COUNT.store(shown.len(), Ordering::Release);
    }
}

/// Notes that the bytes of a range of addresses are those of a file.
pub(crate) fn show(addresses: Range<usize>, at: InFile) {
    let table = Files::get().unwrap_or_else(Files::make);
    table.change(|shown| drop(shown.insert(addresses.start, Shown { len: addresses.len(), at })));
}

/// Forgets what begins within a range of addresses, before something else is mapped there.
pub(crate) fn hide(addresses: Range<usize>) {
    if let Some(table) = Files::get().filter(|_| !is_empty()) {
        table.change(|shown| {
            let starts: Vec<usize> = shown.range(addresses).map(|(&start, _)| start).collect();
            starts.iter().for_each(|start| drop(shown.remove(start)));
        });
    }
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
            Some(at) => read_exact_at(&at.file, to, at.offset)?,
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
                read_exact_at(&at.file, &mut into[end..], at.offset)?;
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
    let Some(table) = Files::get() else { return (len, None) };
    let shown = table.shown.read().unwrap_or_else(PoisonError::into_inner);
    let Some((&first, found)) =
        shown.range(..=start).next_back().filter(|(at, found)| start - *at < found.len)
    else {
        let next = shown.range(start..).next().map_or(usize::MAX, |(&next, _)| next);
        return (len.min(next - start), None);
    };
    let mut end = first + found.len;
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
