//! What the actions act on, each thing beside a flat oracle.

use std::collections::VecDeque;
use std::io::{self, BufRead, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;

use bytes::{Buf, BufMut, Bytes};
use ropewalk::{Cursor, Pool, Rope};

use crate::channel::Channel;
use crate::{Action, Size, Which, datagram, pools, rooms};

const ROPES: usize = 4;
const CHANNELS: usize = 3;

/// Most bytes in a rope, and most things kept of one kind, so that a run stays short.
pub const MOST_BYTES: usize = 1 << 17;
pub const MOST_KEPT: usize = 8;

#[derive(Default)]
pub struct Model {
    pub rope: Rope,
    pub flat: Vec<u8>,
}

impl Model {
    fn check(&self) {
        self.rope.assert_invariants();
        assert_eq!(self.rope.len(), self.flat.len());
        assert!(self.rope == self.flat, "{:?} holds the wrong bytes", self.rope);
    }

    /// Whether nothing is left that is not reserved, or that a waiter may collect first.
    pub fn pool_is_full(&self) -> bool {
        let stats = self.rope.pool().map(Pool::stats).unwrap_or_default();
        stats.in_use + stats.reserved == stats.capacity || stats.waiting > 0
    }
}

pub struct World {
    pools: Vec<Pool>,
    /// Most bytes that each pool keeps warm.
    retained: Vec<u64>,
    ropes: [Model; ROPES],
    kept: VecDeque<(Bytes, Vec<u8>)>,
    cursors: VecDeque<(Cursor<Rope>, Vec<u8>)>,
    channels: [Option<Channel>; CHANNELS],
    /// What waits for room, of which pool, and for how many bytes.
    pub requests: VecDeque<rooms::Request>,
    /// Bytes made so far; each differs from those around it and from earlier ones.
    made: u64,
}

impl World {
    pub fn new(pools: &[pools::Kind]) -> World {
        // The fuzzer's `main` is not Rust's, which would have done this.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
        datagram::Pair::get();
        World {
            pools: pools.iter().enumerate().map(|(place, kind)| kind.pool(place)).collect(),
            retained: pools.iter().map(pools::Kind::retained).collect(),
            ropes: Default::default(),
            kept: VecDeque::new(),
            cursors: VecDeque::new(),
            channels: Default::default(),
            requests: VecDeque::new(),
            made: 0,
        }
    }

    pub fn act(&mut self, action: &Action) {
        match *action {
            Action::NewRope { rope, pool, limit } => self.new_rope(rope, pool, limit),
            Action::Drop { rope } => *self.model(rope) = Model::default(),
            Action::Clear { rope } => self.clear(rope),
            Action::Push { rope, size, front } => {
                let bytes = self.make(size.bytes());
                self.push(rope, Bytes::from(bytes.clone()), &bytes, front);
            }
            Action::PushKept { rope, kept, front } => self.push_kept(rope, kept, front),
            Action::Copy { rope, size } => self.copy(rope, size),
            Action::Write { rope, size } => self.write(rope, size),
            Action::Fill { rope, size } => self.fill(rope, size),
            Action::Reserve { rope, size } => self.reserve(rope, size),
            Action::Append { rope, other } => self.append(rope, other),
            Action::SplitTo { rope, other, at } => self.split(rope, other, at, true),
            Action::SplitOff { rope, other, at } => self.split(rope, other, at, false),
            Action::Slice { rope, other, from, len } => self.slice(rope, other, from, len),
            Action::Clone { rope, other } => self.clone_rope(rope, other),
            Action::Advance { rope, by } => self.advance(rope, by),
            Action::Truncate { rope, len } => self.truncate(rope, len),
            Action::Read { rope, size } => self.read(rope, size),
            Action::ToBytes { rope, size } => self.to_bytes(rope, size),
            Action::KeepSegments { rope } => self.keep_segments(rope),
            Action::Find { rope, at, len } => self.find(rope, None, at, len),
            Action::FindFrom { rope, from, at, len } => self.find(rope, Some(from), at, len),
            Action::Finalize { rope } => self.finalize(rope),
            Action::DropKept { kept } => drop(remove(&mut self.kept, kept)),
            Action::Receive { rope, channel, max } => self.receive(rope, channel, max),
            Action::ReceiveMessage { rope, channel } => self.receive_message(rope, channel),
            Action::Send { rope, channel } => self.send(rope, channel),
            Action::SendAll { rope, channel } => self.send_all(rope, channel),
            Action::SendMessage { rope, channel, fds } => self.send_message(rope, channel, fds),
            Action::NewCursor { rope, position } => self.new_cursor(rope, position),
            Action::SendByCursor { cursor, channel, fds } => self.send_by_cursor(cursor, channel, fds),
            Action::MoveCursor { cursor, position } => self.move_cursor(cursor, position),
            Action::ReadByCursor { cursor, size } => self.read_by_cursor(cursor, size),
            Action::DropCursor { cursor } => drop(remove(&mut self.cursors, cursor)),
            Action::EndChannel { channel, reset } => self.end_channel(channel, reset),
            Action::Trim { pool } => self.trim(pool),
            Action::Decay { pool } => self.decay(pool),
            Action::NewRoom { rope, pool, size } => self.new_room(rope, pool, size),
            Action::AddRoom { rope, pool, size } => self.add_room(rope, pool, size),
            Action::WaitForRoom { pool, size } => self.wait_for_room(pool, size),
            Action::PollRoom { rope, request } => self.poll_room(rope, request),
            Action::DropRequest { request } => drop(remove(&mut self.requests, request)),
            Action::Datagram { rope, size, way } => self.receive_datagram(rope, size, way),
            Action::SendDatagram { rope } => self.send_datagram(rope),
        }
        self.ropes.iter().for_each(Model::check);
    }

    /// Everything that was kept is unharmed, and all memory comes back.
    pub fn end(self) {
        assert!(self.kept.iter().all(|(bytes, flat)| bytes == flat));
        assert!(self.cursors.iter().all(|(cursor, flat)| *cursor.get_ref() == *flat));
        let World { pools, ropes, kept, cursors, channels, requests, .. } = self;
        pools.iter().for_each(Pool::assert_invariants);
        drop((ropes, kept, cursors, channels));
        rooms::serve(requests);
        for pool in &pools {
            pool.assert_invariants();
            let stats = pools::stats(pool);
            assert_eq!((stats.in_use, stats.reserved, stats.waiting), (0, 0, 0));
            pool.trim().unwrap();
            assert_eq!(pool.stats().warm, 0);
        }
    }

    pub fn make(&mut self, size: usize) -> Vec<u8> {
        let from = self.made;
        self.made += size as u64;
        (from..self.made).map(|at| (at.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8).collect()
    }

    pub fn model(&mut self, rope: Which) -> &mut Model {
        &mut self.ropes[usize::from(rope) % ROPES]
    }

    pub fn pool(&self, pool: Which) -> &Pool {
        &self.pools[usize::from(pool) % self.pools.len()]
    }

    fn channel(&mut self, channel: Which) -> &mut Channel {
        let at = usize::from(channel) % CHANNELS;
        self.channels[at].get_or_insert_with(|| Channel::new(at))
    }

    fn rope_and_channel(&mut self, rope: Which, channel: Which) -> (&mut Model, &mut Channel) {
        self.channel(channel);
        let channel = self.channels[usize::from(channel) % CHANNELS].as_mut().expect("made just now");
        (&mut self.ropes[usize::from(rope) % ROPES], channel)
    }

    fn keep(&mut self, bytes: Bytes, flat: Vec<u8>) {
        assert!(bytes == flat);
        self.kept.push_back((bytes, flat));
        if self.kept.len() > MOST_KEPT {
            let (bytes, flat) = self.kept.pop_front().expect("more than none");
            assert!(bytes == flat);
        }
    }

    fn new_rope(&mut self, rope: Which, pool: Which, limit: Option<Size>) {
        let mut fresh = match self.pools.get(usize::from(pool) % (self.pools.len() + 1)) {
            Some(pool) => Rope::in_pool(pool),
            None => Rope::with_small_limits(),
        };
        if let Some(limit) = limit {
            fresh.set_limit(limit.bytes());
        }
        *self.model(rope) = Model { rope: fresh, flat: Vec::new() };
    }

    fn clear(&mut self, rope: Which) {
        let model = self.model(rope);
        model.rope.clear();
        model.flat.clear();
    }

    fn push(&mut self, rope: Which, bytes: Bytes, flat: &[u8], front: bool) {
        let model = self.model(rope);
        if model.flat.len() + flat.len() > MOST_BYTES {
            return;
        }
        if front {
            model.rope.push_front(bytes);
            model.flat.splice(..0, flat.iter().copied());
        } else {
            model.rope.push(bytes);
            model.flat.extend_from_slice(flat);
        }
    }

    fn push_kept(&mut self, rope: Which, kept: Which, front: bool) {
        if let Some(at) = usize::from(kept).checked_rem(self.kept.len()) {
            let (bytes, flat) = self.kept[at].clone();
            self.push(rope, bytes, &flat, front);
        }
    }

    fn copy(&mut self, rope: Which, size: Size) {
        let bytes = self.make(size.bytes());
        let model = self.model(rope);
        if model.flat.len() + bytes.len() <= MOST_BYTES {
            model.rope.extend_from_slice(&bytes);
            model.flat.extend(bytes);
        }
    }

    fn write(&mut self, rope: Which, size: Size) {
        let bytes = self.make(size.bytes());
        let model = self.model(rope);
        let (full, room) = (model.pool_is_full(), Rope::limit(&model.rope).saturating_sub(model.flat.len()));
        match model.rope.write(&bytes) {
            Ok(count) => {
                assert!(count <= room && (count > 0 || bytes.is_empty()));
                model.flat.extend_from_slice(&bytes[..count]);
            }
            Err(error) if error.kind() == ErrorKind::QuotaExceeded => assert_eq!(room, 0),
            Err(error) => assert!(error.kind() == ErrorKind::OutOfMemory && full, "{error}"),
        }
    }

    /// As a decoder would, by [`BufMut`].
    fn fill(&mut self, rope: Which, size: Size) {
        let bytes = self.make(size.bytes());
        let model = self.model(rope);
        let most = model.rope.remaining_mut().min(MOST_BYTES.saturating_sub(model.flat.len()));
        let mut left = &bytes[..bytes.len().min(most)];
        model.flat.extend_from_slice(left);
        while !left.is_empty() {
            let chunk = model.rope.chunk_mut();
            let count = chunk.len().min(left.len());
            assert!(count > 0, "an empty chunk, though there is room");
            chunk[..count].copy_from_slice(&left[..count]);
            unsafe { model.rope.advance_mut(count) };
            left = &left[count..];
        }
    }

    fn reserve(&mut self, rope: Which, size: Size) {
        let model = self.model(rope);
        let allowed = Rope::limit(&model.rope).saturating_sub(model.flat.len());
        match model.rope.reserve(size.bytes()) {
            Ok(()) => assert!(size.bytes() <= allowed),
            Err(error) if error.kind() == ErrorKind::QuotaExceeded => assert!(size.bytes() > allowed),
            Err(error) => {
                assert!(error.kind() == ErrorKind::OutOfMemory && model.rope.pool().is_some(), "{error}");
            }
        }
    }

    fn append(&mut self, rope: Which, other: Which) {
        let Model { rope: moved, flat } = std::mem::take(self.model(other));
        let model = self.model(rope);
        if model.flat.len() + flat.len() <= MOST_BYTES {
            model.rope.append(moved);
            model.flat.extend(flat);
        }
    }

    fn split(&mut self, rope: Which, other: Which, at: Size, front: bool) {
        let model = self.model(rope);
        let at = at.up_to(model.flat.len());
        let mut flat = model.flat.split_off(at);
        let rope = if front {
            std::mem::swap(&mut flat, &mut model.flat);
            model.rope.split_to(at)
        } else {
            model.rope.split_off(at)
        };
        model.check();
        *self.model(other) = Model { rope, flat };
    }

    fn slice(&mut self, rope: Which, other: Which, from: Size, len: Size) {
        let model = self.model(rope);
        let from = from.up_to(model.flat.len());
        let to = from + len.up_to(model.flat.len() - from);
        let slice = Model { rope: model.rope.slice(from..to), flat: model.flat[from..to].to_vec() };
        *self.model(other) = slice;
    }

    fn clone_rope(&mut self, rope: Which, other: Which) {
        let model = self.model(rope);
        let clone = Model { rope: model.rope.clone(), flat: model.flat.clone() };
        assert!(clone.rope == model.rope);
        *self.model(other) = clone;
    }

    fn advance(&mut self, rope: Which, by: Size) {
        let model = self.model(rope);
        let by = by.up_to(model.flat.len());
        model.rope.advance(by);
        model.flat.drain(..by);
    }

    fn truncate(&mut self, rope: Which, len: Size) {
        let model = self.model(rope);
        model.rope.truncate(len.bytes());
        model.flat.truncate(len.bytes());
    }

    fn read(&mut self, rope: Which, size: Size) {
        let model = self.model(rope);
        let mut into = vec![0; size.bytes()];
        let first = model.rope.fill_buf().unwrap();
        assert!(model.flat.starts_with(first) && first.is_empty() == model.flat.is_empty());
        let count = model.rope.read(&mut into).unwrap();
        assert_eq!(count, into.len().min(model.flat.len()));
        assert!(model.flat.drain(..count).eq(into.drain(..count)));
    }

    fn to_bytes(&mut self, rope: Which, size: Size) {
        let model = self.model(rope);
        let count = size.up_to(model.flat.len());
        let flat: Vec<u8> = model.flat.drain(..count).collect();
        let bytes = model.rope.copy_to_bytes(count);
        self.keep(bytes, flat);
    }

    fn keep_segments(&mut self, rope: Which) {
        let model = self.model(rope);
        let mut flat = &model.flat[..];
        let mut segments = Vec::new();
        for segment in model.rope.segments() {
            let (bytes, rest) = flat.split_at(segment.len());
            segments.push((segment, bytes.to_vec()));
            flat = rest;
        }
        segments.into_iter().for_each(|(segment, bytes)| self.keep(segment, bytes));
    }

    fn find(&mut self, rope: Which, from: Option<Size>, at: Size, len: u8) {
        let model = self.model(rope);
        let at = at.up_to(model.flat.len());
        let needle = &model.flat[at..][..usize::from(len).min(model.flat.len() - at)];
        let from = from.map_or(0, |from| from.up_to(model.flat.len()));
        let expected = match needle.len() {
            0 => Some(from),
            len => {
                // The first byte decides as a rule: the fuzzer looks at each call of memcmp, and that takes longer.
                let is_found = |window: &[u8]| window[0] == needle[0] && window == needle;
                model.flat[from..].windows(len).position(is_found).map(|found| from + found)
            }
        };
        assert_eq!(model.rope.find_from(from, needle), expected);
        assert!(from > 0 || model.rope.find(needle) == expected);
    }

    fn finalize(&mut self, rope: Which) {
        let Model { rope, flat } = std::mem::take(self.model(rope));
        let segments = rope.num_segments();
        let view = rope.finalize().unwrap();
        assert!(*view == flat[..], "{view:?} holds the wrong bytes");
        assert!(view.copied_bytes() + view.mapped_bytes() <= flat.len());
        assert!(segments > 1 || view.copied_bytes() == 0);
        self.keep(view.into(), flat);
    }

    fn receive(&mut self, rope: Which, channel: Which, max: Option<Size>) {
        let (model, channel) = self.rope_and_channel(rope, channel);
        let Some(fd) = channel.reader.as_ref() else { return };
        let (full, max) = (model.pool_is_full(), max.map_or(usize::MAX, Size::bytes));
        let result = model.rope.readv_up_to(fd, max);
        match result {
            Ok(0) => assert!(max == 0 || (channel.is_empty() && channel.writer.is_none())),
            Ok(count) => {
                assert!(count <= max);
                model.flat.extend(channel.note_received(count).0);
                assert!(model.flat.len() <= Rope::limit(&model.rope));
            }
            Err(error) => check_refusal(&error, model, channel, full),
        }
    }

    fn receive_message(&mut self, rope: Which, channel: Which) {
        let (model, channel) = self.rope_and_channel(rope, channel);
        let Some(fd) = channel.reader.as_ref().filter(|_| channel.is_socket) else { return };
        let full = model.pool_is_full();
        match model.rope.recvmsg_from(fd, 0) {
            Ok(received) => {
                let (bytes, fds) = channel.note_received(received.bytes);
                assert_eq!((received.fds.len(), received.truncated), (fds, false));
                assert!(received.bytes > 0 || (channel.is_empty() && channel.writer.is_none()));
                model.flat.extend(bytes);
            }
            Err(error) => check_refusal(&error, model, channel, full),
        }
    }

    fn send(&mut self, rope: Which, channel: Which) {
        let (model, channel) = self.rope_and_channel(rope, channel);
        let Some(fd) = channel.writer.as_ref() else { return };
        match model.rope.writev_to(fd) {
            Ok(sent) => {
                assert!(sent > 0 || model.flat.is_empty());
                channel.note_sent(model.flat.drain(..sent), 0);
            }
            Err(error) => check_not_sent(&error, channel),
        }
    }

    fn send_all(&mut self, rope: Which, channel: Which) {
        let (model, channel) = self.rope_and_channel(rope, channel);
        let Some(fd) = channel.writer.as_ref() else { return };
        let result = model.rope.write_all_to(fd);
        let sent = model.flat.len() - model.rope.len();
        channel.note_sent(model.flat.drain(..sent), 0);
        match result {
            Ok(()) => assert!(model.flat.is_empty()),
            Err(error) => check_not_sent(&error, channel),
        }
    }

    fn send_message(&mut self, rope: Which, channel: Which, fds: u8) {
        let (model, channel) = self.rope_and_channel(rope, channel);
        let Some(fd) = channel.writer.as_ref().filter(|_| channel.is_socket) else { return };
        let fds = channel.descriptors(fds);
        match model.rope.sendmsg_to(fd, 0, &vec![io::stderr().as_fd(); fds]) {
            Ok(sent) => channel.note_sent(model.flat.drain(..sent), fds),
            Err(error) if model.flat.is_empty() => {
                assert!(error.kind() == ErrorKind::InvalidInput && fds > 0, "{error}");
            }
            Err(error) => check_not_sent(&error, channel),
        }
    }

    fn new_cursor(&mut self, rope: Which, position: Size) {
        let model = self.model(rope);
        let flat = model.flat.clone();
        let mut cursor = model.rope.clone().into_cursor();
        cursor.set_position(position.up_to(flat.len()));
        self.cursors.push_back((cursor, flat));
        if self.cursors.len() > MOST_KEPT {
            self.cursors.pop_front();
        }
    }

    fn send_by_cursor(&mut self, cursor: Which, channel: Which, fds: u8) {
        self.channel(channel);
        let channel = self.channels[usize::from(channel) % CHANNELS].as_mut().expect("made just now");
        let Some((cursor, flat)) = pick(&mut self.cursors, cursor) else { return };
        let Some(fd) = channel.writer.as_ref() else { return };
        let before = cursor.position();
        let fds = if before < flat.len() { channel.descriptors(fds) } else { 0 };
        let result = match fds {
            0 => cursor.writev_to(fd),
            _ => cursor.sendmsg_to(fd, 0, &vec![io::stderr().as_fd(); fds]),
        };
        match result {
            Ok(sent) => {
                assert!(sent > 0 || before == flat.len());
                channel.note_sent(flat[before..before + sent].iter().copied(), fds);
                assert_eq!(cursor.position(), before + sent);
            }
            Err(error) => {
                check_not_sent(&error, channel);
                assert_eq!(cursor.position(), before);
            }
        }
    }

    fn move_cursor(&mut self, cursor: Which, position: Size) {
        let Some((cursor, flat)) = pick(&mut self.cursors, cursor) else { return };
        let (before, to) = (cursor.position(), position.up_to(flat.len()));
        if to >= before {
            cursor.advance(to - before);
        } else {
            cursor.seek(SeekFrom::End(to as i64 - flat.len() as i64)).unwrap();
        }
        assert!(cursor.chunks().flatten().eq(&flat[to..]));
        assert_eq!((cursor.position(), cursor.remaining()), (to, flat.len() - to));
        assert!(cursor.seek(SeekFrom::Current(flat.len() as i64 - to as i64 + 1)).is_err());
    }

    fn read_by_cursor(&mut self, cursor: Which, size: Size) {
        let Some((cursor, flat)) = pick(&mut self.cursors, cursor) else { return };
        let from = cursor.position();
        let count = size.up_to(flat.len() - from);
        let bytes = if size.bytes() % 2 == 0 {
            cursor.copy_to_bytes(count)
        } else {
            let mut into = vec![0; count];
            cursor.read_exact(&mut into).unwrap();
            into.into()
        };
        let expected = flat[from..from + count].to_vec();
        self.keep(bytes, expected);
    }

    fn end_channel(&mut self, channel: Which, reset: bool) {
        let at = usize::from(channel) % CHANNELS;
        match &mut self.channels[at] {
            Some(channel) if channel.reader.is_some() && channel.writer.is_some() => {
                *(if reset { &mut channel.reader } else { &mut channel.writer }) = None;
            }
            ended => *ended = None,
        }
    }

    /// Gives back what is due, and at last what is not retained.
    fn decay(&mut self, which: Which) {
        let at = usize::from(which) % self.pools.len();
        let (pool, retained) = (&self.pools[at], self.retained[at]);
        let before = pools::stats(pool);
        let given_back = pool.decay().unwrap();
        let after = pools::stats(pool);
        assert!(after.warm <= before.warm - given_back && after.in_use == before.in_use);
        assert!(pools::stats(pool).warm > 0 || pool.decay_timeout().is_none());
        while pools::stats(pool).warm > retained {
            assert!(pool.decay().unwrap() > 0);
        }
        pool.assert_invariants();
    }

    fn trim(&mut self, pool: Which) {
        let pool = self.pool(pool);
        let before = pool.stats();
        let trimmed = pool.trim().unwrap();
        let after = pool.stats();
        assert_eq!((after.warm, trimmed, after.in_use), (0, before.warm, before.in_use));
        pool.assert_invariants();
    }
}

/// Nothing was received: nothing was there, or the rope may hold no more, or its pool cannot.
fn check_refusal(error: &io::Error, model: &Model, channel: &Channel, pool_was_full: bool) {
    match error.kind() {
        ErrorKind::WouldBlock => assert!(channel.is_empty() && channel.writer.is_some()),
        ErrorKind::QuotaExceeded => {
            assert!(model.flat.len() >= Rope::limit(&model.rope) && !channel.is_empty())
        }
        ErrorKind::OutOfMemory => assert!(pool_was_full, "{error}"),
        _ => panic!("{error}"),
    }
}

/// Nothing was sent: the channel is full, or has no reader.
fn check_not_sent(error: &io::Error, channel: &Channel) {
    match error.kind() {
        ErrorKind::WouldBlock => assert!(channel.reader.is_some() && !channel.is_empty()),
        ErrorKind::BrokenPipe => assert!(channel.reader.is_none()),
        _ => panic!("{error}"),
    }
}

fn pick<T>(from: &mut VecDeque<T>, which: Which) -> Option<&mut T> {
    let at = usize::from(which).checked_rem(from.len())?;
    from.get_mut(at)
}

pub fn remove<T>(from: &mut VecDeque<T>, which: Which) -> Option<T> {
    let at = usize::from(which).checked_rem(from.len())?;
    from.remove(at)
}
