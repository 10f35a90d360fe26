//! Real traffic, received, forwarded and sent by ropewalk and by the best that could be used instead.
//!
//! Three kinds of process, all of the same binary:
//!
//! ```text
//! driver    starts the others, tells them when a round starts, gathers the figures
//! traffic   one for each case: the clients, or the servers, at the other end of the measured process
//! measured  one for each way and allocator: runs the way, and reports what it used in the round
//! ```
//!
//! | module | |
//! |---|---|
//! | `case` | what traffic a row of the tables stands for |
//! | `pattern` | the bytes of every message, and the check that they have arrived |
//! | `way` | a way to do a workload's work, and the round that it is given |
//! | `workloads` | for each workload its cases, its ways, its traffic |
//! | `measured`, `traffic`, `driver`, `process` | the processes |
//! | `meter` | CPU time, page faults, system calls, memory |
//! | `report`, `plots` | what is made of it |

use clap::Parser;

mod case;
mod driver;
mod measured;
mod meter;
mod pattern;
mod plots;
mod process;
mod report;
mod traffic;
mod way;
mod workloads;

/// Measures ropewalk with the traffic that it is made for, against the best that could be used instead.
#[derive(Parser)]
enum Role {
    /// Runs the benchmark.
    Run(driver::Options),
    /// The measured process; started by the driver.
    #[command(hide = true)]
    Measured(measured::Options),
    /// The other end; started by the driver.
    #[command(hide = true)]
    Traffic(traffic::Options),
}

/// What every binary does: their only difference is the global allocator.
///
/// # Errors
///
/// If the role that the command line names failed.
pub fn main() -> anyhow::Result<()> {
    match Role::parse() {
        Role::Run(options) => driver::run(&options),
        Role::Measured(options) => measured::run(&options),
        Role::Traffic(options) => traffic::run(&options),
    }
}
