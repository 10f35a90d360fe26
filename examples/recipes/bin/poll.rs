//! An event loop under mio, whose poll is edge-triggered: it accepts, gives each connection turns, and closes those
//! that make no progress.

use std::collections::VecDeque;
use std::fmt::Arguments;
use std::io::{self, ErrorKind, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Registry, Token};
use recipes::proxy::Next;
use slab::Slab;

pub(crate) const BOTH: Interest = Interest::READABLE.add(Interest::WRITABLE);

const LISTENER: Token = Token(usize::MAX);

/// How often deadlines are checked, and connections accepted that the system refused before.
const TICK: Duration = Duration::from_millis(100);

pub(crate) trait Connection {
    /// Moves bytes until an event is needed for more, or until it has had its share.
    fn turn(&mut self) -> io::Result<Next>;

    /// When the peer last made progress.
    fn last(&self) -> Instant;
}

/// What a server allows.
#[derive(Clone, Copy)]
pub(crate) struct Limits {
    /// Further connections wait until one of them ends.
    pub(crate) connections: usize,
    /// A connection without progress is closed after this time.
    pub(crate) idle: Duration,
}

/// `C` is made of an accepted socket by `open`, which registers it with the token that it gets.
pub(crate) struct Server<C, F> {
    limits: Limits,
    open: F,
    poll: Poll,
    listener: TcpListener,
    connections: Slab<(C, bool)>,
    /// Those that have something to do, each once: the mark beside a connection.
    ready: VecDeque<usize>,
    next_tick: Instant,
}

impl<C: Connection, F: FnMut(TcpStream, &Registry, Token) -> io::Result<C>> Server<C, F> {
    pub(crate) fn bind(address: SocketAddr, limits: Limits, open: F) -> io::Result<Server<C, F>> {
        let poll = Poll::new()?;
        let mut listener = TcpListener::bind(address)?;
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        let (connections, ready, next_tick) = (Slab::new(), VecDeque::new(), Instant::now() + TICK);
        Ok(Server { limits, open, poll, listener, connections, ready, next_tick })
    }

    /// Writes the address to standard output, and serves until the poll fails.
    pub(crate) fn run(&mut self) -> io::Result<()> {
        writeln!(io::stdout(), "listening on {}", self.listener.local_addr()?)?;
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
                    Token(key) => self.queue(key),
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
        if let Some((_, queued)) = self.connections.get_mut(key).filter(|(_, queued)| !queued) {
            *queued = true;
            self.ready.push_back(key);
        }
    }

    /// Accepts what waits. Where the system refuses, as for want of descriptors, the next tick tries again.
    fn accept(&mut self) {
        while self.connections.len() < self.limits.connections {
            match self.listener.accept().and_then(|(socket, _peer)| self.add(socket)) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => return log(format_args!("cannot accept now: {error}")),
            }
        }
    }

    fn add(&mut self, socket: TcpStream) -> io::Result<()> {
        let entry = self.connections.vacant_entry();
        let connection = (self.open)(socket, self.poll.registry(), Token(entry.key()))?;
        entry.insert((connection, false));
        Ok(())
    }

    fn turn(&mut self) {
        let Some(key) = self.ready.pop_front() else { return };
        let Some((connection, queued)) = self.connections.get_mut(key) else { return };
        *queued = false;
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
        let idle = self.limits.idle;
        self.connections.retain(|_, (connection, _)| now.saturating_duration_since(connection.last()) < idle);
        self.accept();
    }
}

/// Writes one line to standard error; an error there is ignored, so that the server goes on.
fn log(line: Arguments<'_>) {
    let _ = writeln!(io::stderr(), "{line}");
}
