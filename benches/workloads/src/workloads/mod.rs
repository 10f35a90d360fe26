//! The workloads. Each file has the cases of one, the ways to do its work, and its traffic.

use std::sync::LazyLock;

use anyhow::Context;
use ropewalk::Pool;

use crate::case::{Case, Scale};
use crate::traffic::Traffic;
use crate::way::Way;

mod broadcast;
mod downloads;
mod frames;
mod idle;
mod proxy;
pub(crate) mod tls;
mod uploads;

/// The pool of the measured process.
static POOL: LazyLock<Pool> = LazyLock::new(|| Pool::new().expect("a pool can be made"));

/// A kind of traffic.
pub(crate) struct Workload {
    pub(crate) name: &'static str,
    /// What it is, for the heading of its tables.
    pub(crate) title: &'static str,
    cases: fn(&Scale) -> Vec<Case>,
    /// The first of them is ropewalk's, with which the others are compared.
    ways: fn(&Case) -> Vec<Way>,
    traffic: fn(&Traffic<'_>) -> anyhow::Result<()>,
}

pub(crate) const ALL: [Workload; 7] = [
    frames::WORKLOAD,
    uploads::WORKLOAD,
    downloads::WORKLOAD,
    proxy::WORKLOAD,
    broadcast::WORKLOAD,
    tls::WORKLOAD,
    idle::WORKLOAD,
];

/// The workload of that name.
pub(crate) fn named(name: &str) -> anyhow::Result<&'static Workload> {
    ALL.iter().find(|workload| workload.name == name).with_context(|| format!("no workload is named {name}"))
}

impl Workload {
    pub(crate) fn cases(&self, scale: &Scale) -> Vec<Case> {
        (self.cases)(scale)
    }

    pub(crate) fn ways(&self, case: &Case) -> Vec<Way> {
        (self.ways)(case)
    }

    pub(crate) fn traffic(&self, traffic: &Traffic<'_>) -> anyhow::Result<()> {
        (self.traffic)(traffic)
    }
}
