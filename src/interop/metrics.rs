//! `metrics`: a pool's statistics under the names that dashboards use.

use metrics::{Unit, counter, describe_counter, describe_gauge, gauge};

use crate::pool::Pool;

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
        let gauge = |name, unit, value: u64, description| {
            describe_gauge!(name, unit, description);
            gauge!(name, &label).set(value as f64);
        };
        let bytes = |name, value, description| gauge(name, Unit::Bytes, value, description);
        bytes("ropewalk.pool.memory.capacity", stats.capacity, "Most bytes that ropes may hold");
        bytes("ropewalk.pool.memory.in_use", stats.in_use, "Held by ropes, views and Bytes");
        bytes("ropewalk.pool.memory.in_use_peak", stats.peak, "Highest value of in_use");
        bytes("ropewalk.pool.memory.in_use_low", stats.low, "Lowest recent value of in_use");
        let pinned = "Held by segments that use less than a tenth of their pages";
        bytes("ropewalk.pool.memory.pinned", stats.pinned, pinned);
        bytes("ropewalk.pool.memory.reserved", stats.reserved, "Reserved by rooms and not in use");
        bytes("ropewalk.pool.memory.idle", stats.warm, "Resident and free");
        bytes("ropewalk.pool.memory.resident", stats.resident, "Resident: in use or idle");
        bytes("ropewalk.pool.memory.resident_peak", stats.peak_resident, "Highest value of resident");
        bytes("ropewalk.pool.spill.in_use", stats.spilled, "In the spill file, or on the way there");
        bytes(
            "ropewalk.pool.spill.capacity",
            stats.spill_capacity,
            "Most bytes that the spill file may hold",
        );
        let number = |name, value, description| gauge(name, Unit::Count, value, description);
        number("ropewalk.pool.waiters", stats.waiting, "Requests that wait for room");
        let reduced = "1 if the kernel refused a memfd or a mapping of the size asked for";
        number("ropewalk.pool.reduced", stats.reduced.into(), reduced);
        let keeps = "1 if the kernel does not take idle pages back";
        number("ropewalk.pool.keeps_memory", stats.keeps_memory.into(), keeps);

        let count = |name, unit, value, description| {
            describe_counter!(name, unit, description);
            counter!(name, &label).absolute(value);
        };
        count("ropewalk.pool.extents", Unit::Count, stats.extents, "Extents allocated");
        let fallbacks = "Allocations from the heap because the pool had no room";
        count("ropewalk.pool.fallbacks", Unit::Count, stats.fallbacks, fallbacks);
        count("ropewalk.view.copied", Unit::Bytes, stats.bytes_copied, "Copied to make views contiguous");
        count("ropewalk.view.mapped", Unit::Bytes, stats.bytes_mapped, "Mapped to make views contiguous");
        count("ropewalk.view.maps", Unit::Count, stats.maps, "Maps that views made");
    }
}
