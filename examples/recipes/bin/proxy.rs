//! A TCP proxy on one thread: the recipe's [`Direction`] twice for each connection, under mio, whose poll is
//! edge-triggered.
//!
//! ```sh
//! cargo run --release -p recipes --bin proxy -- --listen 127.0.0.1:7000 --to 127.0.0.1:8080
//! ```

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Write};
use std::net::{Shutdown, SocketAddr};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Parser;
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use recipes::proxy::{Direction, Next};
use ropewalk::Rope;
use slab::Slab;

const LISTENER: Token = Token(usize::MAX);

/// How often deadlines are checked, and connections accepted that the system refused before.
const TICK: Duration = Duration::from_millis(100);

/// Forwards each connection to another address, both ways.
#[derive(Parser)]
#[command(name = "proxy")]
struct Options {
    /// Address and port to listen on; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Where connections go
    #[arg(long, value_name = "ADDRESS")]
    to: SocketAddr,
    /// Most connections; further ones wait until one of them ends
    #[arg(long, value_name = "N", default_value_t = 1000)]
    max_connections: usize,
    /// A connection on which neither way a byte moves is closed after this time
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    idle: u64,
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
    let mut proxy = Proxy::bind(options).with_context(|| {
        format!("cannot listen on {}; choose an address of this machine and a free port", options.listen)
    })?;
    writeln!(io::stdout(), "listening on {}", proxy.listener.local_addr()?)?;
    Ok(proxy.run()?)
}

struct Proxy<'a> {
    options: &'a Options,
    poll: Poll,
    listener: TcpListener,
    connections: Slab<Connection>,
    /// Those that have something to do, each once.
    ready: VecDeque<usize>,
    next_tick: Instant,
}

struct Connection {
    client: TcpStream,
    server: TcpStream,
    /// From client to server and back, until they have ended.
    ways: [Option<Direction>; 2],
    queued: bool,
    last: Instant,
}

impl Proxy<'_> {
    fn bind(options: &Options) -> io::Result<Proxy<'_>> {
        let poll = Poll::new()?;
        let mut listener = TcpListener::bind(options.listen)?;
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        let next_tick = Instant::now() + TICK;
        Ok(Proxy { options, poll, listener, connections: Slab::new(), ready: VecDeque::new(), next_tick })
    }

    fn run(&mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(1024);
        loop {
            let until = self.next_tick.saturating_duration_since(Instant::now());
            let wait = if self.ready.is_empty() { until } else { Duration::ZERO };
            match self.poll.poll(&mut events, Some(wait)) {
                Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
            for event in &events {
                match event.token() {
                    LISTENER => self.accept(),
                    Token(token) => self.queue(token / 2),
                }
            }
            for _ in 0..self.ready.len() {
                self.turn();
            }
            if self.next_tick <= Instant::now() {
                self.tick();
            }
        }
    }

    fn queue(&mut self, key: usize) {
        if let Some(connection) = self.connections.get_mut(key).filter(|connection| !connection.queued) {
            connection.queued = true;
            self.ready.push_back(key);
        }
    }

    /// Accepts what waits. Where the system refuses, as for want of descriptors, the next tick tries again.
    fn accept(&mut self) {
        while self.connections.len() < self.options.max_connections {
            match self.listener.accept().and_then(|(client, _peer)| self.connect(client)) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => return log(format_args!("cannot accept now: {error}")),
            }
        }
    }

    fn connect(&mut self, mut client: TcpStream) -> io::Result<()> {
        let mut server = TcpStream::connect(self.options.to)?;
        let entry = self.connections.vacant_entry();
        let key = entry.key();
        let both = Interest::READABLE | Interest::WRITABLE;
        self.poll.registry().register(&mut client, Token(2 * key), both)?;
        self.poll.registry().register(&mut server, Token(2 * key + 1), both)?;
        let ways = [(); 2].map(|()| Some(Direction::new(Rope::new())));
        entry.insert(Connection { client, server, ways, queued: false, last: Instant::now() });
        Ok(())
    }

    fn turn(&mut self) {
        let Some(key) = self.ready.pop_front() else { return };
        let Some(connection) = self.connections.get_mut(key) else { return };
        connection.queued = false;
        match connection.turn() {
            Ok(Next::Turn) => self.queue(key),
            Ok(Next::Event) => {}
            Ok(Next::End) => drop(self.connections.remove(key)),
            Err(error) => {
                log(format_args!("connection failed: {error}"));
                self.connections.remove(key);
            }
        }
    }

    fn tick(&mut self) {
        let now = Instant::now();
        self.next_tick = now + TICK;
        let idle = Duration::from_secs(self.options.idle);
        self.connections.retain(|_, connection| now.saturating_duration_since(connection.last) < idle);
        self.accept();
    }
}

impl Connection {
    fn turn(&mut self) -> io::Result<Next> {
        let [there, back] = &mut self.ways;
        let moves = [go(there, &self.client, &self.server)?, go(back, &self.server, &self.client)?];
        if moves.iter().any(|&(moved, _)| moved) {
            self.last = Instant::now();
        }
        Ok(match moves.map(|(_, next)| next) {
            [Next::End, Next::End] => Next::End,
            [Next::Turn, _] | [_, Next::Turn] => Next::Turn,
            _ => Next::Event,
        })
    }
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

/// Writes one line to standard error; an error there is ignored, so that the proxy goes on.
fn log(line: std::fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "{line}");
}
