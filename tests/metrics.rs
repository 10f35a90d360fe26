//! The names, kinds and units of metrics are those that `docs/operating.md` promises.
#![cfg(feature = "metrics")]
#![allow(clippy::unwrap_used)] // a test may panic

use std::collections::BTreeMap;

use metrics::with_local_recorder;
use metrics_util::MetricKind;
use metrics_util::debugging::{DebugValue, DebuggingRecorder};
use ropewalk::{Pool, Rope};

/// What a pool reports: kind, unit and value of each metric, by name and pool.
fn reported(pools: &[&Pool]) -> BTreeMap<(String, String), (&'static str, &'static str, f64)> {
    let recorder = DebuggingRecorder::new();
    with_local_recorder(&recorder, || pools.iter().for_each(|pool| pool.report_metrics()));
    let mut metrics = BTreeMap::new();
    for (key, unit, description, value) in recorder.snapshotter().snapshot().into_vec() {
        let labels: Vec<_> = key.key().labels().map(|label| (label.key(), label.value())).collect();
        let [("ropewalk.pool.name", pool)] = labels[..] else { panic!("{labels:?}") };
        let kind = match key.kind() {
            MetricKind::Gauge => "gauge",
            MetricKind::Counter => "counter",
            MetricKind::Histogram => "histogram",
        };
        let value = match value {
            DebugValue::Gauge(value) => value.into_inner(),
            DebugValue::Counter(value) => value as f64,
            other => panic!("{other:?}"),
        };
        assert!(!description.unwrap().is_empty());
        // As OpenTelemetry writes them: UCUM.
        let unit = match unit.unwrap() {
            metrics::Unit::Bytes => "By",
            metrics::Unit::Count => "1",
            other => panic!("{other:?}"),
        };
        metrics.insert((key.key().name().to_owned(), pool.to_owned()), (kind, unit, value));
    }
    metrics
}

/// Name, kind and unit of the rows of the page's table.
fn documented() -> Vec<[String; 3]> {
    let page = include_str!("../docs/operating.md");
    let rows = page.lines().filter(|line| line.starts_with("| `ropewalk."));
    let cells =
        |row: &str| row.split('|').skip(1).map(|cell| cell.trim().replace('`', "")).collect::<Vec<_>>();
    rows.map(|row| cells(row)[..3].to_vec().try_into().unwrap()).collect()
}

#[test]
fn names_kinds_and_units_are_those_of_the_table() {
    let mut documented = documented();
    documented.sort();
    let pool = Pool::new().unwrap();
    let reported: Vec<_> = reported(&[&pool])
        .into_iter()
        .map(|((name, pool), (kind, unit, _))| {
            assert_eq!(pool, "default");
            [name, kind.to_owned(), unit.to_owned()]
        })
        .collect();
    assert_eq!(reported, documented);
    assert_eq!(reported.len(), 19);
}

#[test]
fn values_are_the_statistics_of_each_pool() {
    let [uploads, replies] =
        ["uploads", "replies"].map(|name| Pool::options().name(name).capacity(1 << 20).create().unwrap());
    let mut rope = Rope::in_pool(&uploads);
    rope.extend_from_slice(&[7; 100_000]);
    let _room = replies.try_room(8192).unwrap();
    let reported = reported(&[&uploads, &replies]);
    let value = |pool: &str, name: &str| reported[&(format!("ropewalk.{name}"), pool.to_owned())].2 as u64;
    assert_eq!(value("uploads", "pool.memory.in_use"), uploads.stats().in_use);
    assert_eq!(value("uploads", "pool.memory.capacity"), 1 << 20);
    assert_eq!(
        (value("uploads", "pool.extents"), value("replies", "pool.extents")),
        (uploads.stats().extents, 0)
    );
    assert_eq!(
        (value("uploads", "pool.memory.reserved"), value("replies", "pool.memory.reserved")),
        (0, 8192)
    );
    assert_eq!((value("replies", "pool.reduced"), value("replies", "pool.memory.in_use")), (0, 0));
}
