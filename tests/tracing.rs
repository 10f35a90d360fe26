//! Events of the pool and of views.
//!
//! This file has one test, because a callsite that another thread registers while a subscriber is installed may be
//! cached as disabled: `tracing-core` computes the interest of a callsite before it lists it.
#![cfg(feature = "tracing")]
#![allow(clippy::unwrap_used)] // a test fails by panicking

use std::fmt::{Debug, Write};
use std::sync::{Arc, Mutex};

use ropewalk::{Pool, Rope};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

/// Writes down what it is told, and may panic then.
#[derive(Clone, Default)]
struct Notes {
    told: Arc<Mutex<String>>,
    panics: bool,
}

impl Subscriber for Notes {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "ropewalk"
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = event.metadata().level().to_string();
        event.record(&mut Line(&mut line));
        writeln!(self.told.lock().unwrap(), "{line}").unwrap();
        assert!(!self.panics, "a subscriber panics");
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

struct Line<'a>(&'a mut String);

impl Visit for Line<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        write!(self.0, " {field}={value:?}").unwrap();
    }
}

#[test]
fn the_pool_tells_what_happens_and_a_subscriber_that_panics_harms_nothing() {
    for panics in [false, true] {
        let notes = Notes { panics, ..Notes::default() };
        tracing::subscriber::with_default(notes.clone(), || {
            let pool = Pool::options().capacity(1 << 20).create().unwrap();
            let mut rope = Rope::in_pool(&pool);
            rope.extend_from_slice(&[1; (1 << 20) + 10]);
            assert!(*rope.finalize().unwrap() == [1; (1 << 20) + 10]);
            pool.trim().unwrap();
        });
        assert_told(&notes.told.lock().unwrap());
    }
}

fn assert_told(notes: &str) {
    let created = if cfg!(ropewalk_portable) { "1048576 backing=Anonymous" } else { "1048576 backing=Memfd" };
    for expected in [
        &format!("DEBUG message=pool created capacity={created}"),
        "DEBUG message=no room in the pool, memory taken from the heap",
        "TRACE message=rope finalised",
        "DEBUG message=pool trimmed bytes=",
    ] {
        assert!(notes.contains(expected), "{expected} is not in\n{notes}");
    }
}
