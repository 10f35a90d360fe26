//! Making a pool: how large an arena the limits of the process admit.

use std::io;
use std::sync::{Arc, Mutex};

use super::{CACHE_BYTES, Core, Counters, Pool, State, TICK, pages_of};
use crate::limits::Limits;
use crate::pool::arena::Arena;
use crate::pool::background::Background;
use crate::pool::cache::PageCache;
use crate::pool::capacity::Capacity;
use crate::pool::decay::Decay;
use crate::pool::options::PoolOptions;
use crate::pool::refs::Refs;
use crate::pool::refused::Size;
#[cfg(feature = "http-body")]
use crate::pool::room::BESIDE_PART;
use crate::pool::runs::{Placement, Runs};
use crate::pool::spill::{self, Spill};
use crate::sys::memory::{self, Table};
use crate::sys::{IS_LINUX, need_linux, pressure};

/// Bytes above what is in use in which new extents are placed with slack, at least.
const SPREAD_BYTES: usize = 64 << 20;

/// Shortest extent that is placed there without slack: views copy shorter runs.
const MIN_RUN_BYTES: usize = 16 << 10;

/// Smallest arena worth having; below it the kernel's refusal is reported.
const MIN_ARENA: u64 = 1 << 20;

/// Bytes of tables for each page: references, two bitmaps and the tree above them.
const TABLE_BYTES: u64 = 5;

impl Core {
    /// Makes the arena as large as asked for, or as the limits of this process admit.
    pub(in crate::pool) fn new(options: &PoolOptions) -> io::Result<Core> {
        let huge = if options.huge_pages { memory::huge_page_size() } else { None };
        let page = huge.unwrap_or_else(crate::sys::page_size);
        let arena = |len, private| match options.handover {
            true => Arena::for_handover(len, page),
            false => Arena::new(len, private, page, options.huge_pages),
        };
        let mut core = Self::with_arena(options, "capacity", options.capacity, page, arena)?;
        let overflow = options.spill.as_ref().map(|_| Self::on_disk(options, 0o600).and_then(Pool::over));
        core.overflow = overflow.transpose()?;
        Ok(core)
    }

    /// Makes the pool of the pages that go to a file of this `mode`.
    pub(in crate::pool) fn on_disk(options: &PoolOptions, mode: u32) -> io::Result<Core> {
        need_linux("PoolOptions::spill and Rope::for_file")?;
        if options.zero_on_release {
            let message = "bytes on a disk cannot be overwritten for good: PoolOptions::spill and zero_on_release \
                           exclude each other";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        let Some((directory, bytes)) = &options.spill else { return Err(io::ErrorKind::InvalidInput.into()) };
        let file = Spill::create(directory, options.capacity, mode)?;
        // No page is kept for later use, so that there is nothing to cache, to decay or to trim.
        let options = PoolOptions { retain: 0, background: false, ..options.clone() };
        let mut core = Self::with_arena(&options, "spill", *bytes, spill::PAGE, Arena::aligned)?;
        core.reduced = core.stats().capacity < *bytes;
        core.spill = Some(Arc::new(file));
        Ok(core)
    }

    pub(super) fn with_arena(
        options: &PoolOptions,
        option: &str,
        bytes: u64,
        size: usize,
        arena: impl Fn(u64, u64) -> io::Result<Arena>,
    ) -> io::Result<Core> {
        let page = size as u64;
        let asked = bytes.div_ceil(page);
        if asked == 0 || asked > u64::from(u32::MAX / 2) {
            let most = u64::from(u32::MAX / 2) * page;
            let message = format!("pool {option} is 1 to {most} bytes, not {bytes}");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        // Half of what the limits leave is left to the program. Address space of twice the capacity lets nearly every
        // request for one run succeed.
        let mappable = pressure::mappable(false).min(usize::MAX as u64 / 2) / 2;
        let private = pressure::mappable(true) / 2;
        let tables = private / TABLE_BYTES;
        let file = memory::file_size_limit();
        let file = if file < MIN_ARENA { u64::MAX } else { file };
        let least = MIN_ARENA.max(page);
        let mut pages = (2 * asked).min(mappable.min(file) / page).min(tables);
        if pages < (2 * asked).min(least / page) {
            let message = format!(
                "RLIMIT_AS, RLIMIT_DATA and RLIMIT_FSIZE leave {} for a pool, which needs {}; raise them",
                Size(mappable.min(file).min(tables.saturating_mul(page))),
                Size(least)
            );
            return Err(io::Error::new(io::ErrorKind::OutOfMemory, message));
        }
        loop {
            let made =
                arena(pages * page, private).and_then(|arena| Self::with_pages(options, arena, asked, pages));
            match made {
                Err(_) if pages / 2 * page >= least => pages /= 2,
                made => return made,
            }
        }
    }

    pub(super) fn with_pages(
        options: &PoolOptions,
        arena: Arena,
        asked: u64,
        pages: u64,
    ) -> io::Result<Core> {
        let page = arena.page_size() as u64;
        let capacity = asked.min(pages);
        let mut limits = options.limits;
        // What spills is never short of room, and a payload that is handed over has its pool to itself.
        let is_shared =
            options.spill.is_none() && !options.handover && page == crate::sys::page_size() as u64;
        if is_shared && limits.max_segment == Limits::SHIPPED.max_segment {
            limits = Limits::for_capacity(capacity * page);
        }
        let to_pages = |bytes: usize| pages_of(bytes as u64, page);
        let placement = Placement {
            slack: (to_pages(limits.min_slack), to_pages(limits.max_slack)),
            spread: to_pages(SPREAD_BYTES),
            min_run: to_pages(MIN_RUN_BYTES),
        };
        let total = u32::try_from(pages).unwrap_or(u32::MAX);
        // With these options every free has to be looked at.
        let caches = !options.zero_on_release && options.retain == u64::MAX;
        let cached = if caches { to_pages(CACHE_BYTES) } else { 0 };
        Ok(Core {
            name: options.name.clone(),
            refs: Refs::new(Table::new(total as usize)?),
            caches: std::array::from_fn(|_| PageCache::new(cached, placement.slack.0, TICK)),
            state: Mutex::new(State {
                runs: Runs::new(total, placement)?,
                capacity: Capacity::new(u32::try_from(capacity).unwrap_or(u32::MAX)),
                decay: Decay::new(
                    options.decay,
                    u32::try_from(options.retain / page).unwrap_or(u32::MAX),
                    memory::now(),
                ),
                decommitting: 0,
                committing: 0,
                extents: 0,
                peak: 0,
                peak_resident: 0,
            }),
            limits,
            zero_on_release: options.zero_on_release,
            background: options.background.then(Background::default),
            overflow: None,
            spill: None,
            reduced: capacity < asked || IS_LINUX && arena.file().is_none(),
            handover: options.handover,
            pipe: Mutex::default(),
            counters: Counters {
                #[cfg(feature = "http-body")]
                beside_left: (capacity * page / BESIDE_PART).into(),
                ..Counters::default()
            },
            arena,
        })
    }
}
