//! Many idle connections, and a few that carry frames.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit};
use tokio::net::TcpStream;
use tokio::time::sleep;

use super::{Workload, frames};
use crate::case::{Case, Scale, Sizes, Variant};
use crate::meter::Meter;
use crate::traffic::{Traffic, connect};
use crate::way::{Round, Way};

pub(super) const WORKLOAD: Workload =
    Workload { name: "idle", title: "Many idle connections, a few busy ones", cases, ways, traffic };

const BUSY: usize = 100;

/// A process that uses less than `REST` of CPU time in `LOOK` has polled each of its tasks once.
const LOOK: Duration = Duration::from_millis(20);
const REST: Duration = Duration::from_millis(1);

/// Descriptors that a process needs for other things.
const OTHERS: u64 = 100;

fn cases(scale: &Scale) -> Vec<Case> {
    let idle = idle_connections(if scale.quick { 1_000 } else { 10_000 });
    let sizes: &[usize] = if scale.quick { &[4 << 10] } else { &[1 << 10, 64 << 10] };
    let case = |&size| scale.case("idle", Sizes::Fixed(size), BUSY, Variant::Idle(idle));
    sizes.iter().map(case).collect()
}

/// As many as there may be descriptors for.
fn idle_connections(wanted: usize) -> usize {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((1024, 1024));
    let room = usize::try_from(hard.saturating_sub(OTHERS)).unwrap_or(usize::MAX).saturating_sub(BUSY);
    if room < wanted {
        eprintln!("idle: scaled down to {room} idle connections: RLIMIT_NOFILE is {hard}");
    }
    room.min(wanted)
}

/// The ways to receive frames; the clock starts when all connections wait for their first bytes.
fn ways(_: &Case) -> Vec<Way> {
    let settled = |way: Way| {
        Way::new(way.name, move |round: Arc<Round>| {
            let serving = way.run(Arc::clone(&round));
            async move {
                let mut serving = tokio::spawn(serving);
                settle(&round.meter).await?;
                TcpStream::connect(round.peer).await?; // the busy ones may start
                tokio::select! {
                    () = round.all_have_arrived() => {}
                    ended = &mut serving => return ended?, // with an error
                }
                TcpStream::connect(round.peer).await?; // the idle ones may end
                serving.await?
            }
        })
    };
    frames::for_many_connections().into_iter().map(settled).collect()
}

/// Waits until the process rests, and starts the clock.
async fn settle(meter: &Meter) -> anyhow::Result<()> {
    loop {
        meter.restart()?;
        sleep(LOOK).await;
        if meter.so_far()? < REST {
            return meter.restart();
        }
    }
}

fn traffic(traffic: &Traffic<'_>) -> anyhow::Result<()> {
    let Variant::Idle(idle) = traffic.case.variant else { unreachable!("the cases are made above") };
    let idle = (0..idle).map(|_| connect(traffic.target.address)).collect::<io::Result<Vec<_>>>()?;
    traffic.on_each_connection(
        || traffic.listener.accept().map(drop),
        |stream, connection| frames::send_frames(traffic.case, &stream, connection),
    )?;
    traffic.listener.accept()?; // the last message has arrived: the ends of these are not measured
    drop(idle);
    Ok(())
}
