//! [`bytes::BufMut`]: writes go directly into the rope's tail.
#![allow(unsafe_code)] // the trait is unsafe to implement

use std::mem::MaybeUninit;

use bytes::BufMut;
use bytes::buf::UninitSlice;

use crate::rope::{Extent, Rope};

/// Writes to the end of the rope, into its pool.
///
/// The trait cannot report errors: beyond the [limit](Rope::set_limit) it panics, and in a full pool it uses the heap.
/// Do not receive through it, as tokio's `read_buf` does, which takes the limit for the end of the stream:
/// `Rope::receive_from` reports both.
///
/// # Examples
///
/// ```
/// use bytes::BufMut;
/// use ropewalk::{Pool, Rope};
///
/// let mut rope = Rope::in_pool(&Pool::new()?);
/// rope.put_u32(4);
/// rope.put_slice(b"four");
/// assert_eq!(rope, b"\0\0\0\x04four");
/// # Ok::<(), std::io::Error>(())
/// ```
// SAFETY: `chunk_mut` returns memory that only the tail refers to, and `advance_mut` counts the same memory as filled;
// nothing between the two calls changes the tail.
unsafe impl BufMut for Rope {
    /// Returns the number of bytes up to the [limit](Rope::set_limit).
    #[inline]
    fn remaining_mut(&self) -> usize {
        let held_back = self.held_back.as_ref().map_or(0, bytes::Bytes::len);
        self.limit().min(isize::MAX as usize).saturating_sub(self.len()).saturating_sub(held_back)
    }

    unsafe fn advance_mut(&mut self, count: usize) {
        let most = self.remaining_mut();
        let offered = self.tail_mut().map_or(0, |tail| tail.ready()).min(most);
        assert!(
            count <= offered,
            "advance_mut: {count} is beyond the {offered} bytes that chunk_mut offered"
        );
        if let Some(tail) = self.tail_mut() {
            // SAFETY: the caller promises that it has initialised them, and the assertion that they were offered.
            unsafe { tail.fill(count) };
        }
        self.cut_segments();
    }

    /// Returns pool memory behind the rope, and behind what a receive held back. When the pool has none, it is
    /// heap memory, and [`PoolStats`](crate::PoolStats) counts a fallback.
    fn chunk_mut(&mut self) -> &mut UninitSlice {
        let most = self.remaining_mut();
        if most > 0 {
            self.held_back.take().into_iter().for_each(|held| self.extend_from_slice(&held));
        }
        let spare = if most == 0 { &mut [] } else { self.writable(self.limits().min_chunk.min(most)) };
        let most = most.min(spare.len());
        UninitSlice::uninit(&mut spare[..most])
    }

    fn put<T: bytes::Buf>(&mut self, mut src: T)
    where
        Self: Sized,
    {
        check(self, src.remaining());
        while src.has_remaining() {
            let chunk = src.chunk();
            let count = chunk.len();
            self.extend_from_slice(chunk);
            src.advance(count);
        }
    }

    #[inline]
    fn put_slice(&mut self, src: &[u8]) {
        check(self, src.len());
        self.extend_from_slice(src);
    }
}

#[inline]
#[track_caller]
fn check(rope: &Rope, more: usize) {
    let most = rope.remaining_mut();
    assert!(more <= most, "{more} bytes are beyond the {most} that the rope's limit leaves");
}

impl Rope {
    fn writable(&mut self, want: usize) -> &mut [MaybeUninit<u8>] {
        if self.make_room(want).is_err() {
            self.make_room_on_heap(want).unwrap_or_else(|error| panic!("{error}"));
        }
        self.tail_mut().map_or(&mut [], Extent::spare_mut)
    }
}
