//! One thread that serves all connections, each in its turn.
//!
//! ```text
//!  mio ──► ready ──► turn ──► ready       more to do, after the other connections
//!            ▲         ├────► mio         the kernel, or the peer, has to do something
//!            │         ├────► closed      done, or refused
//!            └─ waiting ◄─┘               for memory
//! ```

use std::collections::VecDeque;
use std::fmt::Display;
use std::io::{self, ErrorKind, Write};
use std::net::SocketAddr;
use std::num::NonZero;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytesize::ByteSize;
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use ropewalk::Pool;
use slab::Slab;
use socket2::SockRef;

use crate::connection::{Connection, Next, Refusal};
use crate::memory::Memory;
use crate::numbers;

const LISTENER: Token = Token(usize::MAX);

/// Connections that may wait to be accepted; the system has a limit of its own.
const BACKLOG: i32 = 4096;

/// Most bytes that wait unsent in a socket; it takes more once half of them have left. Without this limit it takes some
/// MiB at once and no more until a third of them has left, so that a slow reader seems to read nothing for a long time.
const UNSENT_MAX: u32 = 128 << 10;

/// Most connections accepted before the open ones have their turns.
const ACCEPTS: usize = 256;

/// How often deadlines are checked and what the system refused is tried again.
const TICK: Duration = Duration::from_millis(100);

/// What is allowed.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Limits {
    /// Longest message, without its length.
    #[arg(long, value_name = "BYTES", default_value = "512MiB", value_parser = numbers::size)]
    pub(crate) max_message: ByteSize,
    /// Most connections; further ones are closed at once.
    #[arg(long, value_name = "N", default_value = "10000")]
    pub(crate) max_connections: NonZero<u16>,
    /// Most memory for messages and echoes; at least three times the longest message.
    #[arg(long, value_name = "BYTES", default_value = "2GiB", value_parser = numbers::memory)]
    pub(crate) capacity: ByteSize,
    /// A peer that neither finishes a message, nor moves 64 KiB of it, nor reads so much of its echo,
    /// in this time is closed.
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..1 << 32))]
    pub(crate) idle: u64,
    /// Print a line of figures on standard error so often.
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..1 << 32))]
    pub(crate) stats: Option<u64>,
}

pub(crate) struct Server {
    limits: Limits,
    poll: Poll,
    listener: TcpListener,
    /// Whether a connection may be waiting to be accepted.
    accepting: bool,
    connections: Slab<Connection>,
    /// Those that have something to do, each once.
    ready: VecDeque<usize>,
    /// Those that wait for memory, each once; the first one is served first, small messages before large ones.
    waiting: VecDeque<usize>,
    memory: Memory,
    /// When a connection last got memory, or began to wait for it as the only one.
    provided: Instant,
    next_tick: Instant,
    next_stats: Option<Instant>,
    refused: u64,
}

impl Server {
    pub(crate) fn bind(address: SocketAddr, limits: Limits) -> io::Result<Server> {
        let max_message = usize::try_from(limits.max_message.0).unwrap_or(usize::MAX);
        if limits.max_message.0 > limits.capacity.0 / 3 {
            let (capacity, message) = (limits.capacity, limits.max_message);
            let message = format!("a capacity of {capacity} is less than three messages of {message}");
            return Err(io::Error::new(ErrorKind::InvalidInput, message));
        }
        let mut listener = TcpListener::bind(address)?;
        SockRef::from(&listener).listen(BACKLOG)?;
        // Its connections inherit it. Where a sandbox forbids it, slow readers are cut off sooner.
        let _ = SockRef::from(&listener).set_tcp_notsent_lowat(UNSENT_MAX);
        let poll = Poll::new()?;
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        let now = Instant::now();
        Ok(Server {
            memory: Memory::new(limits.capacity.0, max_message)?,
            next_stats: limits.stats.map(|period| now + Duration::from_secs(period)),
            limits,
            poll,
            listener,
            accepting: true,
            connections: Slab::new(),
            ready: VecDeque::new(),
            waiting: VecDeque::new(),
            provided: now,
            next_tick: now + TICK,
            refused: 0,
        })
    }

    pub(crate) fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    pub(crate) fn pool(&self) -> &Pool {
        &self.memory.pool
    }

    /// Serves until `stop` is set. An error is one of the event loop itself, never of a connection.
    pub(crate) fn run(&mut self, stop: &AtomicBool) -> io::Result<()> {
        let mut events = Events::with_capacity(1024);
        while !stop.load(Ordering::Relaxed) {
            self.wait(&mut events)?;
            self.accept();
            self.take_turns();
            self.provide();
            if self.next_tick <= Instant::now() {
                self.tick();
            }
        }
        Ok(())
    }

    fn wait(&mut self, events: &mut Events) -> io::Result<()> {
        let busy = self.accepting || !self.ready.is_empty();
        let until = self.next_tick.saturating_duration_since(Instant::now());
        match self.poll.poll(events, Some(if busy { Duration::ZERO } else { until })) {
            Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error),
            _ => {}
        }
        for event in &*events {
            if event.token() == LISTENER {
                self.accepting = true;
            } else if let Some(connection) = self.connections.get_mut(event.token().0) {
                connection.wake(event.is_readable(), event.is_writable());
                self.make_ready(event.token().0);
            }
        }
        Ok(())
    }

    fn accept(&mut self) {
        for _ in 0..ACCEPTS {
            if !self.accepting {
                return;
            }
            match self.listener.accept() {
                Ok((socket, peer)) => self.admit(socket, peer),
                Err(error) if error.kind() == ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    // Connections stay in the backlog; the next tick tries again.
                    self.accepting = false;
                    if error.kind() != ErrorKind::WouldBlock {
                        log(format_args!("cannot accept now: {error}"));
                    }
                }
            }
        }
    }

    fn admit(&mut self, mut socket: TcpStream, peer: SocketAddr) {
        let most = self.limits.max_connections.get().into();
        if self.connections.len() >= most {
            return self.refuse(peer, &Refusal::TooMany(most));
        }
        let entry = self.connections.vacant_entry();
        let token = entry.key();
        let interest = Interest::READABLE | Interest::WRITABLE;
        if let Err(error) = self.poll.registry().register(&mut socket, Token(token), interest) {
            return self.refuse(peer, &error.into());
        }
        // Without it a small echo may be late, and nothing else is lost.
        let _ = socket.set_nodelay(true);
        entry.insert(Connection::new(socket, peer, &self.memory.pool));
        self.make_ready(token);
    }

    /// One turn for each connection that has something to do now.
    fn take_turns(&mut self) {
        for _ in 0..self.ready.len() {
            let Some(token) = self.ready.pop_front() else { return };
            let Some(connection) = self.connections.get_mut(token) else { continue };
            connection.ready = false;
            let waited = connection.waiting;
            let next = connection.turn(&mut self.memory);
            if connection.waiting && !waited {
                self.queue_for_memory(token);
            }
            match next {
                Ok(Next::Turn) => self.make_ready(token),
                Ok(Next::Event) => {}
                Ok(Next::End) => drop(self.connections.remove(token)),
                Err(refusal) => self.close(token, &refusal),
            }
        }
    }

    fn make_ready(&mut self, token: usize) {
        if let Some(connection) = self.connections.get_mut(token).filter(|connection| !connection.ready) {
            connection.ready = true;
            self.ready.push_back(token);
        }
    }

    fn queue_for_memory(&mut self, token: usize) {
        if self.waiting.is_empty() {
            self.provided = Instant::now();
        }
        if self.connections[token].is_small() {
            self.waiting.push_front(token);
        } else {
            self.waiting.push_back(token);
        }
    }

    /// Resumes connections for which there is memory now, first come, first served.
    fn provide(&mut self) {
        while let Some(&token) = self.waiting.front() {
            if let Some(connection) = self.connections.get_mut(token).filter(|connection| connection.waiting)
            {
                if !connection.provide(&self.memory) {
                    return;
                }
                self.provided = Instant::now();
            }
            self.waiting.pop_front();
            self.make_ready(token);
        }
    }

    fn tick(&mut self) {
        let now = Instant::now();
        self.next_tick = now + TICK;
        self.accepting = true;
        self.memory.refresh();
        self.close_overdue(now);
        self.close_starved(now);
        if self.next_stats.is_some_and(|next| next <= now) {
            self.next_stats = self.limits.stats.map(|period| now + Duration::from_secs(period));
            self.print_stats();
        }
    }

    fn close_overdue(&mut self, now: Instant) {
        let idle = Duration::from_secs(self.limits.idle);
        let check = |(token, connection): (usize, &mut Connection)| {
            connection.check(now, idle).err().map(|refusal| (token, refusal))
        };
        let overdue: Vec<_> = self.connections.iter_mut().filter_map(check).collect();
        for (token, refusal) in overdue {
            self.close(token, &refusal);
        }
    }

    /// If no connection has got memory for twice the idle time, closes the one whose message holds most. By
    /// then all that hold memory and make no progress are closed.
    fn close_starved(&mut self, now: Instant) {
        let patience = Duration::from_secs(self.limits.idle) * 2;
        if self.waiting.is_empty() || now.saturating_duration_since(self.provided) < patience {
            return;
        }
        self.provided = now;
        let waiting = self.connections.iter().filter(|(_, connection)| connection.waiting);
        if let Some((token, connection)) = waiting.max_by_key(|(_, connection)| connection.held()) {
            let refusal = connection.starved(patience);
            self.close(token, &refusal);
        }
    }

    fn close(&mut self, token: usize, refusal: &Refusal) {
        let peer = self.connections.remove(token).peer;
        self.refuse(peer, refusal);
    }

    fn refuse(&mut self, peer: SocketAddr, refusal: &Refusal) {
        self.refused += 1;
        log(format_args!("refused {peer}: {refusal}"));
    }

    fn print_stats(&mut self) {
        let pool = self.memory.refresh();
        log(format_args!(
            "stats connections={} waiting={} messages={} refused={} in_use={} warm={} peak={} copies={}",
            self.connections.len(),
            self.waiting.len(),
            self.memory.messages,
            self.refused,
            pool.in_use,
            pool.warm,
            pool.peak,
            self.memory.copies(),
        ));
    }
}

/// Writes one line to standard error; an error there is ignored, so that the server goes on.
fn log(line: impl Display) {
    let _ = writeln!(io::stderr(), "{line}");
}
