//! A TCP proxy on one thread: the recipe's [`Direction`] twice for each connection, under an edge-triggered poll.
//!
//! ```sh
//! cargo run --release -p recipes --bin proxy -- --listen 127.0.0.1:7000 --to 127.0.0.1:8080
//! ```

mod poll;

use std::io::{self, ErrorKind};
use std::net::{Shutdown, SocketAddr};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Parser;
use mio::net::TcpStream;
use mio::{Registry, Token};
use poll::{BOTH, Connection, Limits, Server};
use recipes::proxy::{Direction, Next};
use ropewalk::Rope;
use socket2::SockRef;

/// Forwards each connection to another address, both ways.
#[derive(Parser)]
#[command(name = "proxy")]
struct Options {
    /// Address and port to listen on; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Where connections go: an IP address and a port, such as 127.0.0.1:8080
    #[arg(long, value_name = "ADDRESS")]
    to: SocketAddr,
    /// Most connections, each of which may hold 1 MiB each way; further ones wait until one of them ends
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u16).range(1..))]
    max_connections: u16,
    /// A connection on which neither way a byte moves is closed after this time
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..))]
    idle: u32,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("proxy: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> anyhow::Result<()> {
    let limits = Limits {
        connections: options.max_connections.into(),
        idle: Duration::from_secs(options.idle.into()),
    };
    let open = |client, registry: &_, token| Forward::new(client, options.to, registry, token);
    let mut proxy = Server::bind(options.listen, limits, open).with_context(|| {
        format!("cannot listen on {}; choose an address of this machine and a free port", options.listen)
    })?;
    Ok(proxy.run()?)
}

struct Forward {
    client: TcpStream,
    server: TcpStream,
    /// From client to server and back, until they have ended.
    ways: [Option<Direction>; 2],
    last: Instant,
}

impl Forward {
    fn new(mut client: TcpStream, to: SocketAddr, registry: &Registry, token: Token) -> io::Result<Forward> {
        let mut server = TcpStream::connect(to)?;
        registry.register(&mut client, token, BOTH)?;
        registry.register(&mut server, token, BOTH)?;
        // Closing them is a reset until both ways have ended: the end of a stream would tell the other side that all of
        // it has come.
        set_linger(&[&client, &server], Some(Duration::ZERO))?;
        let ways = [(); 2].map(|()| Some(Direction::new(Rope::new())));
        Ok(Forward { client, server, ways, last: Instant::now() })
    }
}

impl Connection for Forward {
    fn turn(&mut self) -> io::Result<Next> {
        let [there, back] = &mut self.ways;
        let moves = [go(there, &self.client, &self.server)?, go(back, &self.server, &self.client)?];
        if moves.iter().any(|&(moved, _)| moved) {
            self.last = Instant::now();
        }
        Ok(match moves.map(|(_, next)| next) {
            [Next::End, Next::End] => {
                set_linger(&[&self.client, &self.server], None)?;
                Next::End
            }
            [Next::Turn, _] | [_, Next::Turn] => Next::Turn,
            _ => Next::Event,
        })
    }

    fn last(&self) -> Instant {
        self.last
    }
}

fn set_linger(sockets: &[&TcpStream], time: Option<Duration>) -> io::Result<()> {
    sockets.iter().try_for_each(|&socket| SockRef::from(socket).set_linger(time))
}

/// One way's turn, and whether a byte moved.
fn go(way: &mut Option<Direction>, from: &TcpStream, to: &TcpStream) -> io::Result<(bool, Next)> {
    let Some(direction) = way else { return Ok((false, Next::End)) };
    let before = direction.moved();
    let next = match direction.turn(from, to) {
        Err(error) if error.kind() == ErrorKind::NotConnected => Next::Event, // not yet
        next => next?,
    };
    let moved = direction.moved() != before;
    if next == Next::End {
        *way = None;
        to.shutdown(Shutdown::Write)?;
    }
    Ok((moved, next))
}
