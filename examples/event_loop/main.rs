//! An echo server: one thread, thousands of connections, messages of 0 bytes to hundreds of megabytes.
//!
//! ```text
//! cargo run --release -p event_loop                     # a demonstration: server, load, hostile peers
//! cargo run --release -p event_loop -- serve --listen 127.0.0.1:7000 --stats 1
//! ```
//!
//! A message is its length, 8 bytes big-endian, and that many bytes; it comes back as it is. The state of
//! a connection is two ropes in one shared pool: what has arrived of the next message, and the views
//! that have not been sent back yet.
//!
//! ```text
//! framing.rs     where messages begin and end (pure)
//! watch.rs       whether a peer makes progress
//! memory.rs      the shared pool, and when it is scarce
//! connection.rs  one turn of one connection
//! server.rs      accepts connections and schedules their turns
//! demo.rs        clients
//! ```

mod connection;
mod demo;
mod framing;
mod memory;
#[path = "../http_upload/numbers.rs"]
mod numbers;
mod server;
mod watch;

use std::io::{self, Write};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;

use anyhow::Context;
use clap::{Parser, Subcommand};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use server::{Limits, Server};

/// An echo server for messages of any size on one thread. Without a command it demonstrates itself.
#[derive(Parser)]
#[command(name = "event_loop")]
struct Options {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Serve until killed. The first line on standard output is `listening on ADDRESS`; each refusal is
    /// a line on standard error.
    Serve {
        /// Address and port; port 0 takes a free one.
        #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0")]
        listen: SocketAddr,
        #[command(flatten)]
        limits: Limits,
    },
}

fn main() -> ExitCode {
    match run(Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("event_loop: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: Options) -> anyhow::Result<()> {
    let files = allow_many_files().context("cannot raise the limit of open files")?;
    match options.command {
        Some(Command::Serve { listen, limits }) => serve(listen, limits),
        None => demo::run(files),
    }
}

fn serve(listen: SocketAddr, limits: Limits) -> anyhow::Result<()> {
    let mut server = Server::bind(listen, limits)
        .with_context(|| format!("cannot serve on {listen}; choose a free port, or other limits"))?;
    writeln!(io::stdout(), "listening on {}", server.address()?)?;
    Ok(server.run(&AtomicBool::new(false))?)
}

/// Raises the limit of open files to the hard limit; returns it.
fn allow_many_files() -> io::Result<u64> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    Ok(hard)
}
