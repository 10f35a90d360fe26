//! Many idle connections, and a few that carry frames.

use std::io;

use nix::sys::resource::{Resource, getrlimit};
use nix::sys::socket::{setsockopt, sockopt};

use super::{Workload, frames};
use crate::case::{Case, Scale, Sizes, Variant};
use crate::traffic::{Traffic, connect};
use crate::way::Way;

pub(super) const WORKLOAD: Workload =
    Workload { name: "idle", title: "Many idle connections, a few busy ones", cases, ways, traffic };

const BUSY: usize = 100;
const IDLE: usize = 10_000;

/// Descriptors that a process needs for other things.
const OTHERS: u64 = 100;

fn cases(scale: &Scale) -> Vec<Case> {
    let idle = idle_connections();
    let sizes: &[usize] = if scale.quick { &[4 << 10] } else { &[1 << 10, 4 << 10, 64 << 10] };
    let case = |&size| scale.case("idle", Sizes::Fixed(size), BUSY, Variant::Idle(idle));
    sizes.iter().map(case).collect()
}

/// As many as there may be descriptors for.
fn idle_connections() -> usize {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((1024, 1024));
    let room = usize::try_from(hard.saturating_sub(OTHERS)).unwrap_or(usize::MAX).saturating_sub(BUSY);
    if room < IDLE {
        eprintln!("idle: scaled down to {room} idle connections: RLIMIT_NOFILE is {hard}");
    }
    room.min(IDLE)
}

fn ways(_: &Case) -> Vec<Way> {
    frames::for_many_connections()
}

fn traffic(traffic: &Traffic<'_>) -> anyhow::Result<()> {
    let Variant::Idle(idle) = traffic.case.variant else { unreachable!("the cases are made above") };
    let idle = (0..idle).map(|_| connect(traffic.target.address)).collect::<io::Result<Vec<_>>>()?;
    traffic
        .on_each_connection(|stream, connection| frames::send_frames(traffic.case, &stream, connection))?;
    // A reset leaves no port in TIME_WAIT: rounds would run out of ports.
    let now = nix::libc::linger { l_onoff: 1, l_linger: 0 };
    idle.iter().try_for_each(|stream| setsockopt(stream, sockopt::Linger, &now))?;
    Ok(())
}
