//! Pages beyond a pool's memory: they are received into memory, and go to a file once they are full.
//!
//! ```text
//!            allocate, commit            full                  written back                 free
//!   free ───────────────────► staged ───────► queued ─────────────────────► in the file ─────────► punched, free
//!                             memory          memory    the same addresses      │
//!                                                       show the file           └─ sent by reference, dropped from memory
//! ```
//!
//! A thread does what waits for the disk, writing and punching holes, and gives pages memory before ropes take them. So no
//! receive touches a page of the file, which might have to wait for writing back, and a full disk loses nothing: what
//! cannot be written stays in memory.
//!
//! A page of this pool is as large as the largest folio of the page cache. The kernel sends pages by reference, and a hole
//! that takes a part of a folio changes what is still on its way. A page is never used again with its old memory.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use super::refused::{AtCapacity, Full};
use super::runs::PageRun;
use super::wake::wake_all;
use crate::sys::file::{self, Unnamed, link};
use crate::sys::is_unsupported;
use crate::sys::memory::{self, TABLE};
use crate::sys::process::Process;

/// Bytes per page.
pub(super) const PAGE: usize = TABLE;

/// Bytes of memory for pages that are not written yet: a quarter of the pool's capacity within this range.
const STAGED_BYTES: (u64, u64) = (16 << 20, 256 << 20);

/// Pages that a receive may need, so that it does not wait.
const MARGIN: u32 = 2;

/// The file, and what waits for its thread.
pub(super) struct Spill {
    pub(super) file: Arc<File>,
    /// The same file past the page cache, where that can be had.
    direct: Option<File>,
    directory: PathBuf,
    /// The thread is not in a child of fork(2), where the lock may be held for good.
    process: Process,
    max_staged: u32,
    queue: Mutex<Queue>,
    /// There is something to do.
    work: Condvar,
    /// Something is done.
    done: Condvar,
}

#[derive(Default)]
struct Queue {
    /// Pages without a reference.
    frees: VecDeque<PageRun>,
    /// Pages without a reference in which the file system made no hole, of disk space that it has not got, for instance.
    unpunched: Vec<PageRun>,
    /// The page that a rope takes next: it gets memory before.
    next: Option<u32>,
    /// Pages that are full, and how many bytes of each.
    writes: VecDeque<(u32, usize)>,
    /// What the thread is doing.
    doing: Option<Job>,
    /// Pages that have memory: their ropes are filling them, or they are queued.
    staged: u32,
    /// Why the first of `writes` could not be written.
    failed: Option<(io::ErrorKind, String)>,
    /// It is to be written again.
    retry: bool,
    closed: bool,
    /// The file has a name: nothing is written to it any more, and it gets no hole.
    named: bool,
    /// Wakers of those who wait until something is done, by their [`SpillWait`].
    waits: BTreeMap<u64, Waker>,
    /// The number of the next [`SpillWait`].
    next_wait: u64,
}

/// A place among those who wait for the thread of a spill file, which is left when this is dropped: the waker of a task may
/// be what keeps it alive, and a disk may hang for long.
#[derive(Default)]
pub(crate) struct SpillWait(Option<(Arc<Spill>, u64)>);

impl Drop for SpillWait {
    fn drop(&mut self) {
        if let Some((spill, number)) = self.0.take().filter(|(spill, _)| spill.process.is_current()) {
            // Dropped outside the lock: it may be the last reference to a task that has ropes of this pool.
            let _waker = spill.lock().waits.remove(&number);
        }
    }
}

/// What the thread does.
#[derive(Clone, Copy)]
pub(super) enum Job {
    /// Writes the first `len` bytes of a page to the file, and lets its addresses show the file.
    Write { page: u32, len: usize },
    /// Gives a page memory before a rope takes it.
    Prepare(u32),
    /// Takes disk space and memory of pages back and frees them.
    Free(PageRun),
}

impl Spill {
    /// open(2) with `O_TMPFILE`, and fallocate(2) to see whether there can be holes.
    ///
    /// # Errors
    ///
    /// What the kernel reports of the directory; `Unsupported` for a file system without holes, or without write(2).
    pub(super) fn create(directory: &Path, capacity: u64, mode: u32) -> io::Result<Spill> {
        let explain = |error: io::Error| {
            let message = format!("cannot spill to {}: {error}", directory.display());
            io::Error::new(kind_of(&error), message)
        };
        let file = Unnamed::create(directory, mode).and_then(Unnamed::into_file).map_err(explain)?;
        check_file_system(&file).map_err(explain)?;
        let (least, most) = STAGED_BYTES;
        let max_staged = (capacity / 4).clamp(least, most) / PAGE as u64;
        Ok(Spill {
            direct: file::open_direct(&file),
            file: Arc::new(file),
            directory: directory.to_path_buf(),
            process: Process::current(),
            max_staged: u32::try_from(max_staged).unwrap_or(u32::MAX),
            queue: Mutex::default(),
            work: Condvar::new(),
            done: Condvar::new(),
        })
    }

    /// Admits pages that get memory now. Waits while pages are written, if so many have memory.
    ///
    /// # Errors
    ///
    /// What the disk reports; `OutOfMemory` if all is staged that may be, and none of it will be written soon.
    pub(super) fn admit(&self, pages: u32) -> io::Result<()> {
        let mut queue = self.lock();
        loop {
            if queue.named {
                return Err(is_named());
            }
            if let Some((kind, failed)) = &queue.failed {
                let message = format!(
                    "cannot spill to {}: {failed}; what has arrived is kept in memory, and the next receive tries the \
                     disk again",
                    self.directory.display()
                );
                let error = io::Error::new(*kind, message);
                // For the next call.
                queue.retry = true;
                self.work.notify_one();
                return Err(error);
            }
            if queue.staged.saturating_add(pages) <= self.max_staged {
                queue.staged += pages;
                return Ok(());
            }
            if queue.is_idle() || pages > self.max_staged {
                let bytes = |pages| u64::from(pages) * PAGE as u64;
                let (in_use, capacity) = (bytes(self.max_staged), bytes(self.max_staged));
                let full = AtCapacity { in_use, capacity, requested: bytes(pages), what: Full::Staging };
                return Err(full.into());
            }
            queue = self.done.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// pwrite(2), and sync_file_range(2): writes bytes of pages to the file; none of them stays in the page cache.
    pub(super) fn store(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        match &self.direct {
            Some(direct) => file::write_direct_at(&self.file, direct, bytes, offset)?,
            None => file::write_all_at(&self.file, bytes, offset)?,
        }
        // Some file systems write through the page cache all the same.
        file::write_back(&self.file, offset, bytes.len() as u64)
    }

    /// Waits until a receive need not wait for the thread, which with `next` has also prepared the next page; unless `room`,
    /// also until it would be an error. Ready in a child of fork(2). O(log n) with n that wait.
    pub(super) fn poll_ready(
        self: &Arc<Self>,
        (room, next): (bool, bool),
        wait: &mut SpillWait,
        context: &mut Context<'_>,
    ) -> Poll<()> {
        let is_ready = |queue: &Queue| {
            let refuses = queue.failed.is_some() || queue.is_idle();
            let prepared = !next || queue.next.is_none();
            prepared && queue.staged + MARGIN <= self.max_staged || refuses && !room
        };
        if !self.process.is_current() || is_ready(&self.lock()) {
            return Poll::Ready(());
        }
        // Cloned and dropped outside the lock: wakers run foreign code.
        let waker = context.waker().clone();
        let _replaced = {
            let mut queue = self.lock();
            if is_ready(&queue) {
                return Poll::Ready(());
            }
            let (_, number) = wait.0.get_or_insert_with(|| {
                queue.next_wait += 1;
                (Arc::clone(self), queue.next_wait)
            });
            queue.waits.insert(*number, waker)
        };
        Poll::Pending
    }

    /// Lets the thread give a page memory that a rope takes next. Populating 2 MiB may take milliseconds, of which an event
    /// loop must not wait for many.
    pub(super) fn prepare(&self, page: u32) {
        let mut queue = self.lock();
        if !queue.named && queue.staged < self.max_staged {
            queue.next = Some(page);
            self.work.notify_one();
        }
    }

    /// Pages that were admitted got no memory.
    pub(super) fn withdraw(&self, pages: u32) {
        self.finish(|queue| queue.staged -= pages);
    }

    /// Queues pages whose first `len` bytes are full and never change again.
    pub(super) fn write(&self, run: PageRun, len: usize) {
        let pages = run.range().zip((0..len).step_by(PAGE));
        let mut queue = self.lock();
        // What goes on behind a file that has a name stays in memory.
        if !queue.named {
            queue.writes.extend(pages.map(|(page, start)| (page, PAGE.min(len - start))));
            self.work.notify_one();
        }
    }

    /// Returns whether the thread has something to do with a page.
    pub(super) fn has(&self, page: u32) -> bool {
        let queue = self.lock();
        let is_written = matches!(queue.doing, Some(Job::Write { page: written, .. }) if written == page);
        is_written || queue.writes.iter().any(|(queued, _)| *queued == page)
    }

    /// Queues pages without a reference.
    pub(super) fn free(&self, run: PageRun) {
        let mut queue = self.lock();
        queue.writes.retain(|(page, _)| !run.range().contains(page));
        if queue.writes.is_empty() {
            // What could not be written is not needed any more.
            queue.failed = None;
        }
        queue.frees.push_back(run);
        self.work.notify_one();
    }

    /// Waits until all that was freed can be allocated; returns whether that was anything.
    pub(super) fn wait_for_frees(&self) -> bool {
        let mut queue = self.lock();
        let mut any = false;
        while !queue.frees.is_empty() || matches!(queue.doing, Some(Job::Free(_))) {
            any = true;
            queue = self.done.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        any
    }

    /// Waits until nothing is left to do, or the disk is still full.
    pub(super) fn settle(&self) {
        let mut queue = self.lock();
        queue.retry = queue.failed.is_some();
        queue.try_holes_again();
        self.work.notify_one();
        while !(queue.is_idle() || queue.has_given_up()) {
            queue = self.done.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// fsync(2) and linkat(2): names the file if it has `len` bytes, nothing else to be written, and no name; returns
    /// whether it did.
    ///
    /// # Errors
    ///
    /// `AlreadyExists`: there is a file of that name; what fsync(2) reports. Where linkat(2) fails otherwise, it did not.
    pub(super) fn name(&self, len: usize, path: &Path) -> io::Result<bool> {
        // Not under the lock, where nearly all of it would wait for the disk.
        self.file.sync_all()?;
        let mut queue = self.lock();
        if queue.named || !queue.is_idle() || self.file.metadata()?.len() != len as u64 {
            return Ok(false);
        }
        match link(&self.file, path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(error),
            linked => {
                queue.named = linked.is_ok();
                Ok(queue.named)
            }
        }
    }

    /// Returns whether the file has a name, and is no longer only the pool's.
    pub(super) fn is_named(&self) -> bool {
        self.lock().named
    }

    /// Ends the thread.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.work.notify_one();
    }

    /// Waits for the next job; `None` to end.
    pub(super) fn next(&self) -> Option<Job> {
        let mut queue = self.lock();
        loop {
            if queue.closed {
                return None;
            }
            let prepare = queue.next.map(Job::Prepare);
            // A hole may be what the disk lacks.
            let free = || queue.frees.pop_front().map(Job::Free);
            let job = prepare.or_else(free).or_else(|| queue.next_write());
            if job.is_some() {
                queue.staged += u32::from(matches!(job, Some(Job::Prepare(_))));
                queue.doing = job;
                return job;
            }
            queue = self.work.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Notes the outcome of a [`Job::Prepare`]: whether the page has memory, and no rope.
    pub(super) fn prepared(&self, page: u32, kept: bool) {
        self.finish(|queue| {
            queue.doing = None;
            queue.next = queue.next.filter(|&next| next != page);
            queue.staged -= u32::from(!kept);
        });
    }

    /// Notes the outcome of a [`Job::Write`].
    pub(super) fn wrote(&self, page: u32, len: usize, result: io::Result<()>) {
        self.finish(|queue| {
            queue.doing = None;
            match result {
                Ok(()) => (queue.staged, queue.failed) = (queue.staged - 1, None),
                // What was freed meanwhile is not needed any more.
                Err(_) if queue.frees.iter().any(|run| run.range().contains(&page)) => {}
                Err(error) => {
                    queue.failed = Some((kind_of(&error), error.to_string()));
                    queue.writes.push_front((page, len));
                }
            }
        });
    }

    /// Notes that a [`Job::Free`] is done: `staged` of the freed pages had memory, and the others are `left`. Where a hole
    /// was made, those that were left before are tried again.
    pub(super) fn freed(&self, staged: u32, mut left: Vec<PageRun>) {
        self.finish(|queue| {
            (queue.doing, queue.retry) = (None, queue.failed.is_some());
            queue.staged -= staged;
            if left.is_empty() {
                queue.try_holes_again();
            }
            queue.unpunched.append(&mut left);
        });
    }

    fn finish(&self, change: impl FnOnce(&mut Queue)) {
        let wakers = {
            let mut queue = self.lock();
            change(&mut queue);
            std::mem::take(&mut queue.waits)
        };
        self.done.notify_all();
        wake_all(wakers.into_values());
    }

    /// Nothing panics while it holds this lock.
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    fn is_idle(&self) -> bool {
        self.next.is_none() && self.frees.is_empty() && self.writes.is_empty() && self.doing.is_none()
    }

    fn try_holes_again(&mut self) {
        self.frees.extend(self.unpunched.drain(..));
    }

    /// Returns whether nothing is done until the disk is to be tried again.
    fn has_given_up(&self) -> bool {
        self.failed.is_some() && !self.retry && self.frees.is_empty() && self.doing.is_none()
    }

    fn next_write(&mut self) -> Option<Job> {
        let again = std::mem::take(&mut self.retry);
        let (page, len) = if self.failed.is_none() || again { self.writes.pop_front() } else { None }?;
        Some(Job::Write { page, len })
    }
}

/// fstatfs(2) and fallocate(2).
fn check_file_system(file: &File) -> io::Result<()> {
    let unsupported = |message| Err(io::Error::new(io::ErrorKind::Unsupported, message));
    if file::is_hugetlbfs(file) {
        return unsupported("hugetlbfs has no write(2); name another directory".to_owned());
    }
    match memory::punch_hole(file, 0, PAGE as u64) {
        Err(error) if is_unsupported(error) => unsupported(format!(
            "its file system makes no holes, fallocate(2): {error}; name another directory"
        )),
        punched => Ok(punched?),
    }
}

/// A quota of the disk is full as the disk is: `QuotaExceeded` is the kind of a rope's limit.
fn kind_of(error: &io::Error) -> io::ErrorKind {
    match error.kind() {
        io::ErrorKind::QuotaExceeded => io::ErrorKind::StorageFull,
        kind => kind,
    }
}

fn is_named() -> io::Error {
    let message = "the payload is a file since View::persist; receive another one into a rope of its own, Rope::for_file";
    io::Error::new(io::ErrorKind::InvalidInput, message)
}

#[cfg(test)]
mod tests {
    use std::task::Wake;

    use super::*;

    /// A file whose thread, which does not run, would have to write a page before another one has room.
    fn hanging(directory: &Path) -> Arc<Spill> {
        let spill = Arc::new(Spill::create(directory, 1 << 20, 0o600).unwrap());
        spill.admit(spill.max_staged).unwrap();
        spill.write(PageRun::new(0, 1), PAGE);
        spill
    }

    #[test]
    #[cfg_attr(any(miri, ropewalk_portable), ignore = "does not spill")]
    fn who_no_longer_waits_for_the_disk_leaves_no_waker() {
        struct Task;
        impl Wake for Task {
            fn wake(self: Arc<Self>) {}
        }

        let directory = tempfile::tempdir().unwrap();
        let spill = hanging(directory.path());
        let mut waits = Vec::new();
        for _ in 0..100 {
            let task = Arc::new(Task);
            let (mut wait, waker) = (SpillWait::default(), Waker::from(Arc::clone(&task)));
            for _ in 0..2 {
                let mut context = Context::from_waker(&waker);
                assert!(spill.poll_ready((false, false), &mut wait, &mut context).is_pending());
            }
            drop(waker);
            assert_eq!(Arc::strong_count(&task), 2, "one waker for each that waits");
            waits.push((wait, task));
        }
        let tasks: Vec<_> = waits.into_iter().map(|(_left, task)| task).collect();
        assert!(tasks.iter().all(|task| Arc::strong_count(task) == 1));
        assert!(spill.lock().waits.is_empty());
    }

    #[test]
    #[cfg_attr(any(miri, ropewalk_portable), ignore = "does not spill")]
    fn a_waker_may_use_the_pool_when_it_is_dropped() {
        struct Task(Arc<Spill>);
        impl Wake for Task {
            fn wake(self: Arc<Self>) {}
        }
        impl Drop for Task {
            fn drop(&mut self) {
                assert!(self.0.queue.try_lock().is_ok(), "not under the lock");
            }
        }

        let directory = tempfile::tempdir().unwrap();
        let spill = hanging(directory.path());
        let mut wait = SpillWait::default();
        for _ in 0..2 {
            let waker = Waker::from(Arc::new(Task(Arc::clone(&spill))));
            let mut context = Context::from_waker(&waker);
            assert!(spill.poll_ready((false, false), &mut wait, &mut context).is_pending());
        }
        drop(wait);
        assert_eq!(Arc::strong_count(&spill), 1);
    }
}
