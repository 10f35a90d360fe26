//! A proxy's two directions, under a level-triggered or an edge-triggered poll.

use std::io::{self, ErrorKind};
use std::os::fd::AsFd;

use ropewalk::Rope;

/// Most bytes that wait in a direction: it stops reading until its other side has taken some.
const HELD_MAX: usize = 1 << 20;

/// Most bytes moved in one turn, so that other connections have theirs.
const TURN: usize = 4 << 20;

/// What a direction needs next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Another turn. There may be no event for it: queue it behind the other connections.
    Turn,
    /// An event of either side.
    Event,
    /// Nothing: its stream has ended and all bytes have left. Shut `to` for writing.
    End,
}

/// One direction: the bytes that have come from one side and not yet left for the other.
pub struct Direction {
    held: Rope,
    ended: bool,
    /// Bytes so far, for deadlines: of a peer that moves none.
    moved: u64,
}

impl Direction {
    pub fn new(held: Rope) -> Direction {
        Direction { held, ended: false, moved: 0 }
    }

    pub fn moved(&self) -> u64 {
        self.moved
    }

    /// Moves bytes until both sides would block. An edge-triggered poll reports readiness only once, so
    /// stopping any earlier without another turn would stall.
    pub fn turn(&mut self, from: impl AsFd, to: impl AsFd) -> io::Result<Next> {
        let mut moved = 0;
        while moved < TURN {
            let step = self.receive(&from)? + self.send(&to)?;
            self.moved += step as u64;
            if self.ended && self.held.is_empty() {
                return Ok(Next::End);
            }
            if step == 0 {
                return Ok(Next::Event);
            }
            moved += step;
        }
        Ok(Next::Turn)
    }

    fn receive(&mut self, from: impl AsFd) -> io::Result<usize> {
        let room = HELD_MAX.saturating_sub(self.held.len());
        if self.ended || room == 0 {
            return Ok(0);
        }
        let received = unless_blocked(self.held.readv_up_to(from, room))?;
        self.ended = received == Some(0); // `room` is not 0, so this is the end of the stream
        Ok(received.unwrap_or(0))
    }

    fn send(&mut self, to: impl AsFd) -> io::Result<usize> {
        if self.held.is_empty() {
            return Ok(0);
        }
        unless_blocked(self.held.writev_to(to)).map(|sent| sent.unwrap_or(0))
    }
}

fn unless_blocked(done: io::Result<usize>) -> io::Result<Option<usize>> {
    match done {
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
        done => done.map(Some),
    }
}
