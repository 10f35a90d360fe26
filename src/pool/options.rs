//! What a pool is asked for, and what it tells: data.

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::arena::{Backing, Commit};
use crate::limits::Limits;

/// Options of a [`Pool`](crate::Pool), in the manner of [`std::fs::OpenOptions`].
///
/// # Examples
///
/// ```
/// use ropewalk::Pool;
/// use std::time::Duration;
///
/// let pool = Pool::options()
///     .capacity(64 << 20)
///     .retain(16 << 20)
///     .decay(Duration::from_secs(1))
///     .create()?;
/// assert_eq!(pool.stats().capacity, 64 << 20);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct PoolOptions {
    pub(super) name: Cow<'static, str>,
    pub(super) capacity: u64,
    pub(super) retain: u64,
    pub(super) decay: Duration,
    pub(super) huge_pages: bool,
    pub(super) zero_on_release: bool,
    pub(super) background: bool,
    /// The pool is private to a rope whose memfd is sealed and handed to another process.
    pub(super) handover: bool,
    pub(super) spill: Option<(PathBuf, u64)>,
    pub(super) limits: &'static Limits,
}

impl Default for PoolOptions {
    fn default() -> PoolOptions {
        PoolOptions {
            name: Cow::Borrowed("default"),
            capacity: crate::sys::pressure::memory_limit(),
            retain: u64::MAX,
            decay: Duration::from_secs(10),
            huge_pages: false,
            zero_on_release: false,
            background: false,
            handover: false,
            spill: None,
            limits: Limits::SHIPPED,
        }
    }
}

impl PoolOptions {
    /// Names the pool in metrics, where a program has several. Default: `default`.
    ///
    /// # Examples
    ///
    /// ```
    /// let pool = ropewalk::Pool::options().name("uploads").create()?;
    /// assert_eq!(pool.name(), "uploads");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn name(mut self, name: impl Into<Cow<'static, str>>) -> PoolOptions {
        self.name = name.into();
        self
    }

    /// Most bytes that all ropes together may hold, in whole pages; at least 1, at most 2^31 - 1 pages. A receive beyond
    /// it is an error of kind [`OutOfMemory`](std::io::ErrorKind::OutOfMemory) and loses nothing. It bounds idle pages too:
    /// those that would exceed it are given back.
    ///
    /// One byte pins all of its segment, so in a pool of less than 32 MiB that does not spill, ropes are cut into segments
    /// of a sixteenth of it, at least 16 KiB, instead of 2 MiB.
    ///
    /// Default: the machine's physical memory, or less where a control group allows less. Address space of twice that
    /// is reserved, no memory.
    ///
    /// # Examples
    ///
    /// ```
    /// use ropewalk::{Pool, Rope};
    /// use std::io::ErrorKind;
    ///
    /// let pool = Pool::options().capacity(1 << 20).create()?;
    /// let mut rope = Rope::in_pool(&pool);
    /// assert_eq!(rope.reserve(2 << 20).unwrap_err().kind(), ErrorKind::OutOfMemory);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn capacity(mut self, bytes: u64) -> PoolOptions {
        self.capacity = bytes;
        self
    }

    /// Most idle bytes that stay resident; what is freed beyond that is given back to the system at once. Default: no
    /// limit but [`decay`](PoolOptions::decay).
    ///
    /// # Examples
    ///
    /// ```
    /// use ropewalk::{Pool, Rope};
    ///
    /// let pool = Pool::options().retain(0).create()?;
    /// Rope::in_pool(&pool).extend_from_slice(&[7; 100_000]);
    /// assert_eq!(pool.stats().warm, 0); // already given back
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn retain(mut self, bytes: u64) -> PoolOptions {
        self.retain = bytes;
        self
    }

    /// How long pages stay resident while they are idle, to within a sixteenth. Default: 10 seconds.
    ///
    /// Pages that were idle for so long are given back in slices of at most 2 MiB by the calls that free pages, by
    /// [`Pool::decay`](crate::Pool::decay) and [`Pool::stats`](crate::Pool::stats), or by a [thread](PoolOptions::background).
    ///
    /// # Examples
    ///
    /// ```
    /// use ropewalk::Pool;
    /// use std::time::Duration;
    ///
    /// // A burst every minute reuses the pages of the one before.
    /// let pool = Pool::options().decay(Duration::from_secs(90)).create()?;
    /// # drop(pool);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn decay(mut self, after: Duration) -> PoolOptions {
        self.decay = after;
        self
    }

    /// Runs a thread while pages are idle, which gives them back although the program makes no calls: after
    /// [`decay`](PoolOptions::decay), and at once under memory pressure. Default: no.
    ///
    /// Memory pressure is what the file named by `MEMORY_PRESSURE_WATCH` reports, else the control group's
    /// `memory.pressure` or `/proc/pressure/memory`, as for
    /// [systemd services](https://systemd.io/MEMORY_PRESSURE/). The thread ends when no page is idle.
    ///
    /// # Examples
    ///
    /// ```
    /// let pool = ropewalk::Pool::options().background(true).create()?;
    /// # drop(pool);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn background(mut self, run: bool) -> PoolOptions {
        self.background = run;
        self
    }

    /// Lets ropes go on growing in a file when the pool is at its [capacity](PoolOptions::capacity): up to `bytes`, 1 to
    /// 2^31 - 1 units of 2 MiB, in a file without a name in `directory`, `O_TMPFILE`. Default: no.
    ///
    /// Nothing else changes: a rope of memory and disk is received, sent, searched and [finalised](crate::Rope::finalize)
    /// as any other. What is spilled is sent by sendfile(2).
    ///
    /// * Bytes are received into memory; a thread writes each 2 MiB that are full to the file, past the page cache where
    ///   the file system knows `O_DIRECT`, and gives their memory back. Besides the capacity a pool has memory for what is
    ///   not written yet: a quarter of the capacity, at least 16 MiB, at most 256 MiB. If that is used up, a receive waits
    ///   until 2 MiB are written; event loops await [`wait_for_spill`](crate::Pool::wait_for_spill) before, as tokio's
    ///   `ReadRope` does.
    /// * The thread also gives the 2 MiB memory that a rope takes next. Up to 4 MiB of it stay when ropes are dropped, until
    ///   others need them or [`Pool::trim`](crate::Pool::trim).
    /// * A rope that spills holds whole units of 2 MiB.
    /// * A full disk is an error of the receive, of the kind that the kernel reports, such as
    ///   [`StorageFull`](std::io::ErrorKind::StorageFull), which a full quota (`EDQUOT`) is too. What has arrived is kept, in
    ///   memory if need be, and the call can be repeated: the disk is tried again then.
    /// * Dropping ropes returns disk space; the thread makes the holes. [`Pool::trim`](crate::Pool::trim) waits for it.
    /// * The bytes are as safe as the file: where the device fails to read them, touching them is SIGBUS, as for every
    ///   mapped file. [`View::read_at`](crate::View::read_at) and reading a [`Cursor`](crate::Cursor) report an error
    ///   instead.
    ///
    /// `directory` should not be a tmpfs, nor an overlay over one, which is memory. Its file system must support holes,
    /// fallocate(2), and write(2), or [`create`](PoolOptions::create) is an error of kind
    /// [`Unsupported`](std::io::ErrorKind::Unsupported). With [`zero_on_release`](PoolOptions::zero_on_release) it is
    /// `InvalidInput`, and on other systems than Linux `Unsupported`.
    ///
    /// # Examples
    ///
    /// ```
    /// # if cfg!(ropewalk_portable) { return Ok(()); }
    /// use ropewalk::{Pool, Rope};
    ///
    /// # let directory = std::env::temp_dir();
    /// let pool = Pool::options().capacity(1 << 20).spill(directory, 1 << 30).create()?;
    /// let mut rope = Rope::in_pool(&pool);
    /// rope.extend_from_slice(&[7; 6 << 20]);
    /// assert!(pool.stats().spilled >= 5 << 20);
    /// assert_eq!(rope.finalize()?, vec![7; 6 << 20]);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn spill(mut self, directory: impl AsRef<Path>, bytes: u64) -> PoolOptions {
        self.spill = Some((directory.as_ref().to_path_buf(), bytes));
        self
    }

    /// Uses small sizes, so that a test meets every seam within a few pages.
    #[cfg(any(test, fuzzing))]
    pub fn small_limits(mut self) -> PoolOptions {
        self.limits = Limits::SMALL;
        self
    }

    /// Asks for transparent huge pages (`MADV_HUGEPAGE`) and makes them the pool's pages: 2 MiB on x86-64. Default: no.
    ///
    /// The first payloads of a process, whose pages are not resident, cost less then. But a rope holds whole pages: this
    /// is for payloads of many MiB.
    ///
    /// Whether shared memory gets any is the system's setting, *never* by default: where
    /// `/sys/kernel/mm/transparent_hugepage/shmem_enabled` says so, this does nothing
    /// ([`PoolStats::page_size`] tells). The administrator can set it to `advise`.
    ///
    /// # Examples
    ///
    /// ```
    /// let pool = ropewalk::Pool::options().huge_pages(true).create()?;
    /// if pool.stats().page_size < 2 << 20 {
    ///     eprintln!("no huge pages: is shmem_enabled `advise`?");
    /// }
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn huge_pages(mut self, ask: bool) -> PoolOptions {
        self.huge_pages = ask;
        self
    }

    /// Overwrites with zeros what ropes of this pool received, in pages and on the heap, when it is freed. Default: no.
    ///
    /// Recycled pages are never readable through this crate before they are filled again; this is for programs that
    /// also want old bytes gone from memory. Bytes that the program [pushes](crate::Rope::push) are not overwritten.
    /// Costs one pass over all that was received.
    ///
    /// # Examples
    ///
    /// ```
    /// let pool = ropewalk::Pool::options().zero_on_release(true).create()?;
    /// # drop(pool);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn zero_on_release(mut self, zero: bool) -> PoolOptions {
        self.zero_on_release = zero;
        self
    }
}

/// What a [`Pool`](crate::Pool) holds and has done. Sizes are in bytes.
///
/// # Examples
///
/// ```
/// let stats = ropewalk::Pool::new()?.stats();
/// println!("{} of {} bytes in use", stats.in_use, stats.capacity);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PoolStats {
    /// Most bytes that ropes may hold; less than asked for where the kernel refused the mapping.
    pub capacity: u64,
    /// Held by ropes, views and `Bytes`, in whole pages.
    pub in_use: u64,
    /// Lowest value of [`in_use`](PoolStats::in_use) in the last [`PoolOptions::decay`], looked at 16 times: no more was
    /// held all that time. 0 until the pool is so old.
    pub low: u64,
    /// Of [`in_use`](PoolStats::in_use) and [`spilled`](PoolStats::spilled): held by segments and [slices of
    /// views](crate::View::slice) that use less than a tenth of their pages; a page that several share counts for each.
    /// Slices of `Bytes` and of ropes share a segment and are not told apart from it.
    pub pinned: u64,
    /// In the [spill file](PoolOptions::spill), or on the way there, in units of 2 MiB; not counted as in use.
    pub spilled: u64,
    /// Most bytes that the spill file may hold; 0 without one.
    pub spill_capacity: u64,
    /// Reserved by [`Room`](crate::Room), and not in use yet.
    pub reserved: u64,
    /// Idle: resident and free, reused first. Of it each thread caches up to 256 KiB.
    pub warm: u64,
    /// Resident: in use or idle.
    pub resident: u64,
    /// Highest value of [`in_use`](PoolStats::in_use), pages that threads had cached included.
    pub peak: u64,
    /// Highest value of [`resident`](PoolStats::resident).
    pub peak_resident: u64,
    /// Bytes per page; ropes hold whole pages.
    pub page_size: u64,
    /// What the pages are made of.
    pub backing: Backing,
    /// How pages are given memory.
    pub commit: Commit,
    /// Whether the kernel refused to take memory back, so that idle pages stay resident.
    pub keeps_memory: bool,
    /// Whether the kernel refused a memfd or a mapping of the size asked for.
    pub reduced: bool,
    /// Extents allocated so far.
    pub extents: u64,
    /// How often memory came from the heap because the pool had none.
    pub fallbacks: u64,
    /// Bytes that views copied.
    pub bytes_copied: u64,
    /// Bytes that views mapped.
    pub bytes_mapped: u64,
    /// Maps that views made.
    pub maps: u64,
    /// Requests that [wait for room](crate::Pool::wait_for_room).
    pub waiting: u64,
}
