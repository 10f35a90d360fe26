//! Containers of received pieces that are joined by a copy in the end.

use std::collections::VecDeque;
use std::io;
use std::net::TcpStream;

use buf_list::BufList;
use bytes::{Buf, Bytes, BytesMut};
use bytes_utils::SegmentedBuf;
use linkedbytes::LinkedBytes;

use crate::accumulate::{Accumulate, Message, Whole, recv};

/// Where pieces are kept in order.
pub trait Gather: Default {
    fn add(&mut self, piece: Bytes);

    /// Makes all that was added contiguous.
    fn join(self) -> impl AsRef<[u8]>;
}

impl Gather for Vec<Bytes> {
    fn add(&mut self, piece: Bytes) {
        self.push(piece);
    }

    fn join(self) -> impl AsRef<[u8]> {
        self.concat()
    }
}

impl Gather for VecDeque<Bytes> {
    fn add(&mut self, piece: Bytes) {
        self.push_back(piece);
    }

    fn join(self) -> impl AsRef<[u8]> {
        let mut whole = Vec::with_capacity(self.iter().map(Bytes::len).sum());
        self.into_iter().for_each(|piece| whole.extend_from_slice(&piece));
        whole
    }
}

impl Gather for BufList {
    fn add(&mut self, piece: Bytes) {
        self.push_chunk(piece);
    }

    fn join(mut self) -> impl AsRef<[u8]> {
        self.copy_to_bytes(self.remaining())
    }
}

/// `SegmentedBuf` has no `Default` that does not ask for one of its pieces.
impl Gather for SegmentedBuf<Bytes> {
    fn add(&mut self, piece: Bytes) {
        self.push(piece);
    }

    fn join(mut self) -> impl AsRef<[u8]> {
        self.copy_to_bytes(self.remaining())
    }
}

impl Gather for LinkedBytes {
    fn add(&mut self, piece: Bytes) {
        self.insert(piece);
    }

    fn join(self) -> impl AsRef<[u8]> {
        self.concat()
    }
}

/// Fewest bytes that a block for pieces has, as in hyper.
const FIRST: usize = 8 << 10;

/// Most bytes of a block.
const MOST: usize = 256 << 10;

/// Reads into blocks of growing size and keeps what each read brought, as HTTP libraries do.
pub(crate) struct Pieces<G> {
    block: BytesMut,
    ask: usize,
    kind: std::marker::PhantomData<G>,
}

impl<G> Default for Pieces<G> {
    fn default() -> Pieces<G> {
        Pieces { block: BytesMut::new(), ask: FIRST, kind: std::marker::PhantomData }
    }
}

impl<G: Gather> Accumulate for Pieces<G> {
    fn receive(&mut self, socket: &TcpStream, message: Message, whole: Whole<'_>) -> io::Result<()> {
        let mut pieces = G::default();
        let mut left = message.most();
        while left > 0 {
            if self.block.capacity() == self.block.len() {
                self.block.reserve(self.ask.min(left));
            }
            let room = self.block.capacity() - self.block.len();
            let count = recv(socket, &mut self.block, left)?;
            if count == 0 {
                break;
            }
            if count == room {
                self.ask = (self.ask * 2).min(MOST);
            }
            pieces.add(self.block.split().freeze());
            left -= count;
        }
        whole(pieces.join().as_ref());
        Ok(())
    }
}
