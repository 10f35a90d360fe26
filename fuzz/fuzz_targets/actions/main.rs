//! Several ropes and pools against flat `Vec<u8>`s: any public operation, in any order, through real
//! sockets and pipes with tiny buffers.
#![no_main]

mod channel;
mod datagram;
mod pools;
mod rooms;
mod world;

use arbitrary::{Arbitrary, Unstructured};
use libfuzzer_sys::fuzz_target;
use world::World;

/// A length or a position; short ones, whole pages and whole pieces come up often.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub struct Size(u16);

impl Size {
    pub fn bytes(self) -> usize {
        let value = usize::from(self.0);
        match value >> 14 {
            0 => value & 0x1f,
            1 => value & 0xfff,
            2 => value & 0x7fff,
            _ => (value & 7) * 4096 + [0, 1, 40, 4095][value >> 3 & 3],
        }
    }

    /// At most `most`, which is met often.
    pub fn up_to(self, most: usize) -> usize {
        if self.0 % 8 == 0 { most } else { self.bytes() % (most + 1) }
    }
}

/// Which of several things of one kind.
pub type Which = u8;

#[derive(Arbitrary, Debug)]
pub enum Action {
    NewRope { rope: Which, pool: Which, limit: Option<Size> },
    Drop { rope: Which },
    Clear { rope: Which },
    Push { rope: Which, size: Size, front: bool },
    PushKept { rope: Which, kept: Which, front: bool },
    Copy { rope: Which, size: Size },
    Write { rope: Which, size: Size },
    Fill { rope: Which, size: Size },
    Reserve { rope: Which, size: Size },
    Append { rope: Which, other: Which },
    SplitTo { rope: Which, other: Which, at: Size },
    SplitOff { rope: Which, other: Which, at: Size },
    Slice { rope: Which, other: Which, from: Size, len: Size },
    Clone { rope: Which, other: Which },
    Advance { rope: Which, by: Size },
    Truncate { rope: Which, len: Size },
    Read { rope: Which, size: Size },
    ToBytes { rope: Which, size: Size },
    KeepSegments { rope: Which },
    Find { rope: Which, at: Size, len: u8 },
    FindFrom { rope: Which, from: Size, at: Size, len: u8 },
    Finalize { rope: Which },
    DropKept { kept: Which },
    Receive { rope: Which, channel: Which, max: Option<Size> },
    ReceiveMessage { rope: Which, channel: Which },
    Send { rope: Which, channel: Which },
    SendAll { rope: Which, channel: Which },
    SendMessage { rope: Which, channel: Which, fds: u8 },
    NewCursor { rope: Which, position: Size },
    SendByCursor { cursor: Which, channel: Which, fds: u8 },
    MoveCursor { cursor: Which, position: Size },
    ReadByCursor { cursor: Which, size: Size },
    DropCursor { cursor: Which },
    EndChannel { channel: Which, reset: bool },
    Trim { pool: Which },
    Decay { pool: Which },
    NewRoom { rope: Which, pool: Which, size: Size },
    AddRoom { rope: Which, pool: Which, size: Size },
    WaitForRoom { pool: Which, size: Size },
    PollRoom { rope: Which, request: Which },
    DropRequest { request: Which },
    Datagram { rope: Which, size: Size, way: datagram::Way },
    SendDatagram { rope: Which },
}

// All bytes behind the pools are actions. A `Vec` of them would end at every second byte that says whether one follows.
fuzz_target!(|bytes: &[u8]| {
    let mut input = Unstructured::new(bytes);
    let Ok(pools) = <[pools::Kind; 2]>::arbitrary(&mut input) else { return };
    let mut world = World::new(&pools);
    while !input.is_empty() {
        let Ok(action) = Action::arbitrary(&mut input) else { break };
        world.act(&action);
    }
    world.end();
});
