//! The program `transfer`; `main.rs` says what it is for and specifies its wire format.
//!
//! ```text
//! lib.rs       the command line
//! compare.rs   no command: sends one payload to every variant, round by round
//! variant.rs   the receiving side of it, in a child process per variant
//! meter.rs     what a piece of work costs this process
//! payload.rs   a rope of mixed segments, and the checksum
//! report.rs    figures as a table or as JSON
//! recv.rs      `transfer recv`: one payload from any peer, into a file
//! output.rs    that file: written whole or not at all
//! send.rs      `transfer send`: a file to any peer
//! wire.rs      what `send` and `recv` say to each other
//! socket.rs    a non-blocking socket that waits with poll(2)
//! progress.rs  a bar, on a terminal
//! ```

mod compare;
mod meter;
#[path = "../http_upload/numbers.rs"]
mod numbers;
mod output;
mod payload;
mod progress;
mod recv;
mod report;
mod send;
mod socket;
mod variant;
mod wire;

use std::fmt::Display;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Moves a payload of any size over TCP through ropes.
///
/// Without a command: builds a payload as a rope of mixed segments and sends it over non-blocking
/// loopback TCP to receivers that are not told its size, once per variant and round. Each receiver
/// makes what arrived contiguous; a checksum over it is compared with one over the sender's rope.
#[derive(Parser)]
#[command(name = "transfer", args_conflicts_with_subcommands = true, after_long_help = meter::HOW)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    compare: compare::Args,
}

#[derive(Subcommand)]
enum Command {
    Recv(recv::Args),
    Send(send::Args),
    /// The receiving side of a comparison.
    #[command(hide = true)]
    Receiver {
        variant: variant::Variant,
    },
}

/// An error in one line: what could not be done, why, and what to do about it.
fn advise(what: impl Display, why: impl Display, advice: &str) -> anyhow::Error {
    anyhow::anyhow!("{what}: {why}; {advice}")
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.command {
        None => compare::run(&cli.compare),
        Some(Command::Recv(args)) => recv::run(&args),
        Some(Command::Send(args)) => send::run(&args),
        Some(Command::Receiver { variant }) => variant::serve(variant),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("transfer: {error:#}");
            ExitCode::FAILURE
        }
    }
}
