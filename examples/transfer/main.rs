//! Moves a payload of any size over TCP through ropes, and shows what that costs beside the usual ways.
//!
//! # Wire format of `send` and `recv`
//!
//! The length need not be known in advance, and a stream that is cut anywhere is detected: only the end
//! marker completes a payload. Integers are big-endian.
//!
//! ```text
//!  sender ─► ┌──────────┬─────────────┬────────────┬─── ··· ───┬─────────┐
//!            │ ropewalk │ length: u32 │ that many  │ more of   │ 0: u32  │
//!            │ 8 bytes  │ at least 1  │ bytes      │ these     │ the end │
//!            └──────────┴─────────────┴────────────┴───────────┴─────────┘
//!                                    ┌────────────────────────────┐
//!                                    │ bytes of the payload: u64  │ ◄─ receiver
//!                                    └────────────────────────────┘
//! ```
//!
//! The receiver answers once the payload is stored, and both close. It resets the connection instead
//! if anything fails. A sender without that answer has failed, whatever it has sent. An empty payload is
//! the magic and the end marker. Bytes after the end marker are an error. With `--raw`, for peers such as
//! `nc`, the stream is the payload alone: no magic, no lengths, no answer.
//!
//! ```text
//! main.rs      the command line
//! compare.rs   no command: sends one payload to every variant, round by round
//! variant.rs   the receiving side of it, in a child process per variant
//! meter.rs     what a piece of work costs this process
//! payload.rs   a rope of mixed segments, and the checksum
//! report.rs    figures as a table or as JSON
//! recv.rs      `transfer recv`: one payload from any peer, into a file
//! output.rs    that file: written whole or not at all
//! send.rs      `transfer send`: a file to any peer
//! socket.rs    a non-blocking socket that waits with poll(2)
//! progress.rs  a bar, on a terminal
//! ```

mod compare;
mod meter;
mod output;
mod payload;
mod progress;
mod recv;
mod report;
mod send;
mod socket;
mod variant;

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

fn main() -> ExitCode {
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
