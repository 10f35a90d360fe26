//! One peer: what has arrived of its next message, and what it has not read of the echo.

use std::fmt;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use ropewalk::{Pool, Rope};

use crate::framing::{self, HEADER, TooLong};
use crate::memory::{Level, Memory, Promise};
use crate::watch::Watch;

/// Most bytes received in one turn, so that others have theirs. This bounds the messages, too.
const TURN: usize = 256 << 10;

/// When memory is scarce, a message that lacks more than this queues for it.
const SMALL: usize = 64 << 10;

/// A peer is not read from while so many bytes of its echo wait for it ...
const QUEUE_BYTES: usize = 1 << 20;

/// ... or so many segments, each of which costs some memory of its own.
const QUEUE_SEGMENTS: usize = 256;

pub(crate) struct Connection {
    socket: TcpStream,
    pub(crate) peer: SocketAddr,
    incoming: Rope,
    outgoing: Rope,
    /// Bytes that the next message lacks, as far as is known.
    lacks: usize,
    /// Room for them, when memory is scarce.
    provided: Option<Promise>,
    /// Why nothing more is received; the connection ends when the echo is sent.
    ending: Option<Result<(), Refusal>>,
    /// Whether the kernel may have something to receive.
    readable: bool,
    /// Whether the kernel may have room to send.
    writable: bool,
    /// Whether it is in the server's queue for a turn.
    pub(crate) ready: bool,
    /// Whether it is in the server's queue for memory.
    pub(crate) waiting: bool,
    received: Watch,
    sent: Watch,
}

/// What comes after a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Another turn, after those of the other connections.
    Turn,
    /// A turn when the kernel, or the memory, has something new.
    Event,
    /// Nothing: each message is echoed, and the peer has ended its stream.
    End,
}

impl Connection {
    pub(crate) fn new(socket: TcpStream, peer: SocketAddr, pool: &Pool) -> Connection {
        Connection {
            socket,
            peer,
            incoming: Rope::in_pool(pool),
            outgoing: Rope::in_pool(pool),
            lacks: HEADER,
            provided: None,
            ending: None,
            readable: true,
            writable: true,
            ready: false,
            waiting: false,
            received: Watch::default(),
            sent: Watch::default(),
        }
    }

    /// Notes what the kernel has told.
    pub(crate) fn wake(&mut self, readable: bool, writable: bool) {
        self.readable |= readable;
        self.writable |= writable;
    }

    /// Sends once, receives once, and echoes the messages that are complete.
    pub(crate) fn turn(&mut self, memory: &mut Memory) -> Result<Next, Refusal> {
        if self.may_send() {
            self.send()?;
        }
        if self.may_receive() {
            match self.room(memory) {
                Some(most) => self.receive(most, memory)?,
                None => self.waiting = true,
            }
        }
        self.next()
    }

    /// Ends the wait for memory, if there is enough now.
    pub(crate) fn provide(&mut self, memory: &Memory) -> bool {
        let provided = match memory.level() {
            Level::Plenty => true,
            Level::Scarce => {
                self.provided = memory.promise(self.lacks);
                self.provided.is_some()
            }
            Level::None => false,
        };
        self.waiting = !provided;
        provided
    }

    /// Whether the peer has done what it owes within `idle`: to send the rest of a message and to read
    /// the echo.
    pub(crate) fn check(&mut self, now: Instant, idle: Duration) -> Result<(), Refusal> {
        let owes_bytes = !self.incoming.is_empty() && !self.waiting && !self.is_queue_full();
        if self.received.is_overdue(owes_bytes, now, idle) {
            return Err(Refusal::SlowToSend { idle, received: self.incoming.len(), lacks: self.lacks });
        }
        if self.sent.is_overdue(!self.outgoing.is_empty(), now, idle) {
            return Err(Refusal::SlowToRead { idle, unread: self.outgoing.len() });
        }
        Ok(())
    }

    /// The message found no room for so long.
    pub(crate) fn starved(&self, patience: Duration) -> Refusal {
        Refusal::NoRoom { patience, received: self.incoming.len(), lacks: self.lacks }
    }

    /// Whether the message that is waited for lacks so little that it goes before large ones.
    pub(crate) fn is_small(&self) -> bool {
        self.lacks <= SMALL
    }

    /// Bytes of a message that is not complete.
    pub(crate) fn held(&self) -> usize {
        self.incoming.len()
    }

    fn may_send(&self) -> bool {
        self.writable && !self.outgoing.is_empty()
    }

    fn may_receive(&self) -> bool {
        self.readable && !self.waiting && self.ending.is_none() && !self.is_queue_full()
    }

    fn is_queue_full(&self) -> bool {
        self.outgoing.len() >= QUEUE_BYTES || self.outgoing.num_segments() >= QUEUE_SEGMENTS
    }

    fn send(&mut self) -> io::Result<()> {
        match self.outgoing.writev_to(&self.socket) {
            Ok(sent) => self.sent.note(sent),
            Err(error) if error.kind() == ErrorKind::WouldBlock => self.writable = false,
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// How many bytes may be received now. When memory is scarce, only what a message lacks, and only
    /// once there is room for all of that: else many halves of messages could hold all memory. Large
    /// ones queue for it; small ones do not wait behind them.
    fn room(&mut self, memory: &Memory) -> Option<usize> {
        if self.provided.is_none() && memory.level() == Level::Plenty {
            return Some(TURN);
        }
        if self.provided.is_none() && self.is_small() {
            self.provide(memory);
        }
        self.provided.as_ref().map(|promise| promise.bytes().min(TURN))
    }

    fn receive(&mut self, most: usize, memory: &mut Memory) -> io::Result<()> {
        match self.incoming.readv_up_to(&self.socket, most) {
            Ok(0) => self.ending = Some(Ok(())),
            Ok(received) => {
                self.received.note(received);
                if let Some(promise) = &mut self.provided {
                    promise.take(received);
                }
                self.provided.take_if(|promise| promise.bytes() == 0);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => self.readable = false,
            Err(error) if error.kind() == ErrorKind::OutOfMemory => {
                memory.ran_out();
                self.provided = None;
                self.waiting = true;
            }
            Err(error) => return Err(error),
        }
        self.answer(memory);
        Ok(())
    }

    /// Moves whole messages to the echo, and sees what can never become one.
    fn answer(&mut self, memory: &mut Memory) {
        let front = framing::front(&self.incoming, memory.max_message);
        if front.whole > 0 {
            memory.echo(self.incoming.split_to(front.whole), front.messages, &mut self.outgoing);
            self.received.restart();
        }
        match front.lacks {
            Ok(lacks) => self.lacks = lacks,
            Err(error) => self.ending = Some(Err(Refusal::TooLong(error))),
        }
        if matches!(self.ending, Some(Ok(()))) && !self.incoming.is_empty() {
            let truncated = Refusal::Truncated { received: self.incoming.len(), lacks: self.lacks };
            self.ending = Some(Err(truncated));
        }
        if self.incoming.is_empty() || self.ending.is_some() {
            // An idle connection holds no room.
            self.incoming.clear();
            self.provided = None;
        }
    }

    fn next(&mut self) -> Result<Next, Refusal> {
        if self.may_send() || self.may_receive() {
            return Ok(Next::Turn);
        }
        if !self.outgoing.is_empty() {
            return Ok(Next::Event);
        }
        self.sent.restart();
        self.ending.take().map_or(Ok(Next::Event), |ending| ending.map(|()| Next::End))
    }
}

/// Why a peer is no longer served.
#[derive(Debug)]
pub(crate) enum Refusal {
    TooLong(TooLong),
    Truncated { received: usize, lacks: usize },
    SlowToSend { idle: Duration, received: usize, lacks: usize },
    SlowToRead { idle: Duration, unread: usize },
    NoRoom { patience: Duration, received: usize, lacks: usize },
    TooMany(usize),
    Io(io::Error),
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Refusal {
        Refusal::Io(error)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::TooLong(error) => error.fmt(f),
            Refusal::Truncated { received, lacks } => {
                write!(f, "the stream ended inside a message: {received} bytes arrived, {lacks} are missing")
            }
            Refusal::SlowToSend { idle, received, lacks } => {
                write!(
                    f,
                    "too slow: after {idle:?} {received} bytes of a message arrived, {lacks} are missing"
                )
            }
            Refusal::SlowToRead { idle, unread } => {
                write!(f, "too slow: after {idle:?} {unread} bytes of its echo are not read")
            }
            Refusal::NoRoom { patience, received, lacks } => {
                write!(
                    f,
                    "no room within {patience:?}: {received} bytes of a message arrived, {lacks} are missing"
                )
            }
            Refusal::TooMany(limit) => write!(f, "{limit} connections are being served"),
            Refusal::Io(error) => error.fmt(f),
        }
    }
}
