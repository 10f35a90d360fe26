//! `metrics`: a pool's statistics under the names that dashboards use.

use metrics::{Unit, counter, describe_counter, describe_gauge, gauge};

use crate::pool::{Pool, PoolStats};

/// Name, unit, description, and where the value is.
type Metric = (&'static str, Unit, &'static str, fn(&PoolStats) -> u64);

const GAUGES: [Metric; 14] = [
    ("ropewalk.pool.memory.capacity", Unit::Bytes, "Most bytes that ropes may hold", |stats| stats.capacity),
    ("ropewalk.pool.memory.in_use", Unit::Bytes, "Held by ropes, views and Bytes", |stats| stats.in_use),
    ("ropewalk.pool.memory.in_use_peak", Unit::Bytes, "Highest value of in_use", |stats| stats.peak),
    ("ropewalk.pool.memory.in_use_low", Unit::Bytes, "Lowest recent value of in_use", |stats| stats.low),
    (
        "ropewalk.pool.memory.pinned",
        Unit::Bytes,
        "Held by segments that use less than a tenth of their pages",
        |stats| stats.pinned,
    ),
    ("ropewalk.pool.memory.reserved", Unit::Bytes, "Reserved by rooms and not in use", |stats| {
        stats.reserved
    }),
    ("ropewalk.pool.memory.idle", Unit::Bytes, "Resident and free", |stats| stats.warm),
    ("ropewalk.pool.memory.resident", Unit::Bytes, "Resident: in use or idle", |stats| stats.resident),
    ("ropewalk.pool.memory.resident_peak", Unit::Bytes, "Highest value of resident", |stats| {
        stats.peak_resident
    }),
    ("ropewalk.pool.spill.in_use", Unit::Bytes, "In the spill file, or on the way there", |stats| {
        stats.spilled
    }),
    ("ropewalk.pool.spill.capacity", Unit::Bytes, "Most bytes that the spill file may hold", |stats| {
        stats.spill_capacity
    }),
    ("ropewalk.pool.waiters", Unit::Count, "Requests that wait for room", |stats| stats.waiting),
    (
        "ropewalk.pool.reduced",
        Unit::Count,
        "1 if the kernel refused a memfd or a mapping of the size asked for",
        |stats| u64::from(stats.reduced),
    ),
    ("ropewalk.pool.keeps_memory", Unit::Count, "1 if the kernel does not take idle pages back", |stats| {
        u64::from(stats.keeps_memory)
    }),
];

const COUNTERS: [Metric; 5] = [
    ("ropewalk.pool.extents", Unit::Count, "Extents allocated", |stats| stats.extents),
    (
        "ropewalk.pool.fallbacks",
        Unit::Count,
        "Allocations from the heap because the pool had no room",
        |stats| stats.fallbacks,
    ),
    ("ropewalk.view.copied", Unit::Bytes, "Copied to make views contiguous", |stats| stats.bytes_copied),
    ("ropewalk.view.mapped", Unit::Bytes, "Mapped to make views contiguous", |stats| stats.bytes_mapped),
    ("ropewalk.view.maps", Unit::Count, "Maps that views made", |stats| stats.maps),
];

impl Pool {
    /// Reports [`stats`](Pool::stats) to the recorder of the crate `metrics`: gauges and counters with the label
    /// `ropewalk.pool.name`. [Operating](crate::operating) has the table of their names and units.
    ///
    /// Call it before each scrape, or every few seconds: nothing else in this crate reports metrics, so that receiving
    /// and sending cost what they cost without. Reports nothing in a child of the process that made the pool.
    ///
    /// # Examples
    ///
    /// ```
    /// use ropewalk::Pool;
    /// use std::time::Duration;
    ///
    /// let pool = Pool::options().name("uploads").create()?;
    /// let reported = pool.clone();
    /// std::thread::spawn(move || loop {
    ///     reported.report_metrics();
    ///     std::thread::sleep(Duration::from_secs(10));
    /// });
    /// # Ok::<(), std::io::Error>(())
    /// ```
    #[allow(clippy::cast_precision_loss)] // gauges are floating-point numbers
    pub fn report_metrics(&self) {
        if self.check_process().is_err() {
            return;
        }
        let (stats, label) = (self.stats(), [("ropewalk.pool.name", self.name().to_owned())]);
        for (name, unit, description, value) in GAUGES {
            describe_gauge!(name, unit, description);
            gauge!(name, &label).set(value(&stats) as f64);
        }
        for (name, unit, description, value) in COUNTERS {
            describe_counter!(name, unit, description);
            counter!(name, &label).absolute(value(&stats));
        }
    }
}
