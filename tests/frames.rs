//! Where the bodies of frames land, and how many reads that takes.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)] // a test fails by panicking

use std::cell::Cell;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;

use nix::errno::Errno;
use nix::libc;
use ropewalk::{Pool, Rope, RopeCodec};

const HEADER: usize = 4;
const MAX: usize = 64 << 20;
const CODEC: RopeCodec = RopeCodec::new(MAX);

fn pattern(index: usize, len: usize) -> Vec<u8> {
    let mut block: Vec<u8> = (0..251).collect();
    block.rotate_left(index % 251);
    let mut pattern = block.repeat(len / block.len() + 1);
    pattern.truncate(len);
    pattern
}

/// A file of frames: each read of it brings all that was asked for, so that how many there are is certain.
fn file_of(lens: &[usize]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    for (index, &len) in lens.iter().enumerate() {
        file.write_all(&(len as u32).to_be_bytes()).unwrap();
        file.write_all(&pattern(index, len)).unwrap();
    }
    file.rewind().unwrap();
    file
}

/// A descriptor that counts how often it was used.
struct Counted<T>(T, Cell<usize>);

impl<T: AsFd> AsFd for &Counted<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.1.set(self.1.get() + 1);
        self.0.as_fd()
    }
}

/// Most bytes that were read ahead of the end of a frame that came alone, and the reads, of all frames of a file.
fn receive(lens: &[usize], codec: &RopeCodec, mut each: impl FnMut(usize, Rope)) -> (usize, usize) {
    let file = Counted(file_of(lens), Cell::new(0));
    let mut received = Rope::in_pool(&Pool::new().unwrap());
    let (mut end, mut most_ahead) = (0, 0);
    for (index, &len) in lens.iter().enumerate() {
        let frame = received.readv_frame(&file, codec).unwrap().unwrap();
        end += HEADER + len;
        most_ahead = most_ahead.max((&file.0).stream_position().unwrap() as usize - end);
        each(index, frame);
    }
    let reads = file.1.get();
    assert!(received.readv_frame(&file, codec).unwrap().is_none());
    (most_ahead, reads)
}

#[test]
fn a_long_body_lands_in_one_run_and_takes_one_read() {
    for len in [64 << 10, (64 << 10) + 1, 1 << 20, (5 << 20) + 3] {
        let lens = [len; 20];
        let (_, reads) = receive(&lens, &CODEC, |index, frame| {
            let view = frame.finalize().unwrap();
            assert!(*view == pattern(index, len));
            assert_eq!((view.num_maps(), view.copied_bytes()), (0, 0), "frame {index} of {len} bytes");
        });
        // Memory that is not resident is committed as the rope grows: the first bodies take a few reads more.
        assert!(reads <= lens.len() + 12, "{reads} reads for {} frames of {len} bytes", lens.len());
    }
}

#[test]
fn every_body_lands_in_one_run() {
    let lens: Vec<usize> = (0..400usize).map(|i| (i * i * 7919 % 150_000) >> (i % 7)).collect();
    for alignment in [1, 64, 4096] {
        receive(&lens, &CODEC.alignment(alignment), |index, frame| {
            let view = frame.finalize().unwrap();
            assert!(*view == pattern(index, lens[index]));
            assert_eq!(
                (view.num_maps(), view.copied_bytes()),
                (0, 0),
                "frame {index} of {} bytes",
                lens[index]
            );
        });
    }
}

#[test]
fn on_the_heap_what_was_reserved_stays_one_segment() {
    let file = file_of(&[5 << 20; 3]);
    let mut received = Rope::new();
    for index in 0..3 {
        let view = received.readv_frame(&file, &CODEC).unwrap().unwrap().finalize().unwrap();
        assert!(*view == pattern(index, 5 << 20));
        assert_eq!(view.copied_bytes(), 0, "frame {index}");
    }
    let mut rope = Rope::new();
    rope.reserve(5 << 20).unwrap();
    rope.extend_from_slice(&pattern(0, 5 << 20));
    let place = rope.chunks().next().unwrap().as_ptr();
    let vec = Vec::from(rope);
    assert_eq!(vec.as_ptr(), place);
    assert!(vec == pattern(0, 5 << 20));
}

#[test]
fn short_frames_are_read_ahead_many_at_a_time() {
    for alignment in [1, 4096] {
        let (mut before, mut apart) = (0, 0);
        let (_, reads) = receive(&[64; 100_000], &CODEC.alignment(alignment), |_, frame| {
            assert_eq!((frame.len(), frame.num_segments() <= 2), (64, true));
            let place = frame.chunks().next().unwrap().as_ptr().addr();
            apart += usize::from(place != before + HEADER + 64);
            before = place;
        });
        // Those of a read lie behind each other, in its memory.
        assert!(apart <= 2 * reads, "{apart} of 100 000 frames lie elsewhere, after {reads} reads");
        // 64 KiB a read, and a few shorter ones at first.
        assert!(reads < 115, "{reads} reads");
    }
}

/// Ropes that grow begin 512 KiB apart. One that passes on its frames does not grow, so a frame that is held does not keep
/// pages apart that others could use.
#[test]
fn what_is_read_ahead_on_many_connections_lies_close_together() {
    let pool = Pool::new().unwrap();
    let mut held = Vec::new();
    for index in 0..32 {
        let file = file_of(&[5000, 100_000]);
        let mut received = Rope::in_pool(&pool);
        let frame = received.readv_frame(&file, &CODEC).unwrap().unwrap();
        assert!(frame == pattern(0, 5000)[..], "{index}");
        held.push((frame, received));
    }
    let starts = held.iter().map(|(frame, _)| frame.chunks().next().unwrap().as_ptr().addr());
    let (first, last) = (starts.clone().min().unwrap(), starts.max().unwrap());
    assert!(last - first < 16 * (512 << 10), "{} KiB", (last - first) >> 10);
}

#[test]
fn aligned_bodies_are_read_where_they_have_to_be() {
    for (len, alignment) in [(64 << 10, 64), (64 << 10, 4096), ((1 << 20) + 17, 64), (4 << 20, 1 << 16)] {
        let lens = [len; 100];
        let mut held = Vec::new();
        let (ahead, reads) = receive(&lens, &CODEC.alignment(alignment), |index, frame| {
            let view = frame.finalize().unwrap();
            assert!(*view == pattern(index, len));
            assert_eq!((view.num_maps(), view.copied_bytes()), (0, 0));
            assert_eq!(view.as_ptr().addr() % alignment, 0);
            held.push(view);
            held.drain(..held.len().saturating_sub(4));
        });
        assert!(100 * ahead <= len, "{ahead} bytes were read ahead of each {len}");
        // The first bodies of each place take more: memory is committed as the rope grows.
        assert!(
            reads <= if len == 64 << 10 { 110 } else { 140 },
            "{reads} reads for 100 frames of {len} bytes"
        );
    }
}

#[test]
fn bodies_of_4_kib_and_more_are_aligned_among_shorter_ones() {
    let lens: Vec<usize> = (0..600).map(|i| [10, 4095, 4096, 70, 5000, 100_000, 0, 8192, 1][i % 9]).collect();
    for alignment in [2, 64, 512, 4096, 8192] {
        let codec = CODEC.alignment(alignment);
        receive(&lens, &codec, |index, frame| {
            let view = frame.finalize().unwrap();
            assert!(*view == pattern(index, lens[index]));
            if view.len() >= 4096 {
                assert_eq!(view.as_ptr().addr() % alignment, 0, "frame {index} of {} bytes", view.len());
            }
        });
    }
}

#[test]
fn a_frame_that_was_received_some_other_way_is_aligned_by_a_copy() {
    for in_pool in [false, true] {
        let mut received = if in_pool { Rope::in_pool(&Pool::new().unwrap()) } else { Rope::new() };
        let (len, codec) = (3 << 20, CODEC.alignment(4096));
        let mut wire = codec.wrap(Rope::from(pattern(0, len))).unwrap();
        wire.push("more");
        wire.chunks().for_each(|chunk| received.extend_from_slice(chunk));
        let view = codec.take(&mut received).unwrap().unwrap();
        let chunks: Vec<_> = view.chunks().map(|chunk| chunk.as_ptr().addr()).collect();
        assert_eq!(chunks[0] % 4096, 0);
        assert!(view == pattern(0, len));
        assert_eq!(received, b"more");
    }
}

#[test]
fn an_aligned_body_is_written_with_o_direct() {
    let dir = tempfile::tempdir().unwrap();
    let lens = [10, 8 << 10, 64 << 10, 3, 20 << 10, 4 << 10];
    let options = OpenOptions::new().write(true).create(true).custom_flags(libc::O_DIRECT).clone();
    receive(&lens, &CODEC.alignment(4096), |index, frame| {
        if frame.len() < 4096 {
            return; // too short for it
        }
        let path = dir.path().join(index.to_string());
        let view = frame.finalize().unwrap();
        let mut file = match options.open(&path) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                return eprintln!("{}: no O_DIRECT here", path.display());
            }
            opened => opened.unwrap(),
        };
        file.write_all(&view).unwrap();
        let mut written = Vec::new();
        File::open(&path).unwrap().read_to_end(&mut written).unwrap();
        assert!(written == *view);
    });
}

#[test]
fn what_is_announced_and_never_sent_commits_little() {
    for alignment in [1, 4096] {
        let pool = Pool::options().capacity(256 << 20).create().unwrap();
        let (mut peer, socket) = UnixStream::pair().unwrap();
        socket.set_nonblocking(true).unwrap();
        peer.write_all(&(MAX as u32).to_be_bytes()).unwrap();
        peer.write_all(b"a little of it").unwrap();
        let mut received = Rope::in_pool(&pool);
        let codec = CODEC.alignment(alignment);
        assert_eq!(received.readv_frame(&socket, &codec).unwrap_err().kind(), ErrorKind::WouldBlock);
        assert_eq!(received.len(), 18);
        let stats = pool.stats();
        assert!(stats.resident <= 128 << 10, "{stats:?}");
        assert!(stats.in_use <= MAX as u64 + (64 << 10), "{stats:?}");
    }
}

#[test]
fn in_a_full_pool_an_aligned_body_is_refused_before_it_is_read_and_another_when_no_more_fits() {
    for (alignment, least) in [(1, 50 << 10), (4096, 0)] {
        let pool = Pool::options().capacity(1 << 20).create().unwrap();
        let mut held = Rope::in_pool(&pool);
        held.reserve(900 << 10).unwrap();
        let (len, codec) = (200 << 10, CODEC.alignment(alignment));
        let file = file_of(&[len]);
        let mut received = Rope::in_pool(&pool);
        let error = received.readv_frame(&file, &codec).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OutOfMemory);
        let position = (&file).stream_position().unwrap() as usize;
        assert!(received.len() == position && position >= least, "{position} bytes");
        drop(held);
        assert!(received.readv_frame(&file, &codec).unwrap().unwrap() == pattern(0, len));
    }
}

#[test]
fn a_limit_below_the_frame_is_an_error_that_keeps_what_has_arrived() {
    let file = file_of(&[100_000]);
    let mut received = Rope::new();
    received.set_limit(99_999);
    let error = received.readv_frame(&file, &CODEC).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::QuotaExceeded);
    received.set_limit(HEADER + 100_000);
    assert!(received.readv_frame(&file, &CODEC).unwrap().unwrap() == pattern(0, 100_000));
}

#[test]
fn an_error_of_the_kernel_changes_nothing() {
    let file = file_of(&[100_000, 100_000]);
    let mut received = Rope::in_pool(&Pool::new().unwrap());
    assert!(received.readv_frame(&file, &CODEC).unwrap().is_some());
    let len = received.len();
    let directory = File::open("/").unwrap();
    let error = received.readv_frame(&directory, &CODEC).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(Errno::EISDIR as i32));
    assert_eq!(received.len(), len);
    assert!(received.readv_frame(&file, &CODEC).unwrap().unwrap() == pattern(1, 100_000));
}

/// The same over tokio's streams.
#[cfg(feature = "tokio")]
mod with_tokio {
    use std::future::Future;
    use std::io;
    use std::pin::{Pin, pin};
    use std::task::{Context, Poll, Waker};
    use std::time::Duration;

    use bytes::Bytes;
    use futures_util::SinkExt;
    use ropewalk::{ReadRope, WriteRope};
    use tokio::io::{AsyncRead, AsyncWriteExt, ReadBuf};
    use tokio::net::{TcpListener, TcpStream, UnixStream};
    use tokio_util::codec::{Framed, LengthDelimitedCodec};

    use super::*;

    const LENS: [usize; 9] = [0, 1, 511, 512, 2048, 4096, 100_000, 1 << 20, 7 << 20];

    /// Somebody else's reader, that brings few bytes at a time.
    struct Dripping<'a>(&'a UnixStream);

    impl ReadRope for Dripping<'_> {
        async fn read_rope_up_to(&self, rope: &mut Rope, max: usize) -> io::Result<usize> {
            self.0.read_rope_up_to(rope, max.min(9_999)).await
        }
    }

    async fn receive_all(from: impl ReadRope, codec: &RopeCodec, alignment: usize) {
        let mut received = Rope::in_pool(&Pool::new().unwrap());
        for (index, len) in LENS.into_iter().enumerate() {
            let view = from.read_frame(&mut received, codec).await.unwrap().unwrap().finalize().unwrap();
            assert!(*view == pattern(index, len), "frame {index}");
            assert_eq!((view.num_maps(), view.copied_bytes()), (0, 0), "frame {index}");
            assert!(len < 4096 || view.as_ptr().addr() % alignment == 0, "frame {index}");
        }
        assert!(from.read_frame(&mut received, codec).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn frames_go_straight_through_sockets() {
        for alignment in [1, 64, 4096] {
            let codec = CODEC.alignment(alignment);
            for way in 0..3 {
                let (here, there) = UnixStream::pair().unwrap();
                let send = async {
                    for (index, len) in LENS.into_iter().enumerate() {
                        let mut frame = codec.wrap(Rope::from(pattern(index, len))).unwrap();
                        here.write_all_rope(&mut frame).await.unwrap();
                    }
                    drop(here);
                };
                let receive = async {
                    match way {
                        0 => receive_all(there, &codec, alignment).await,
                        1 => receive_all(there.when_room(), &codec, alignment).await,
                        _ => receive_all(Dripping(&there), &codec, alignment).await,
                    }
                };
                tokio::join!(send, receive);
            }
        }
    }

    /// A stream that is no descriptor, as TLS: brings at most `piece` bytes at a time, and waits before each of them.
    struct Pieces<'a> {
        wire: &'a [u8],
        at: usize,
        piece: usize,
        waited: bool,
    }

    impl AsyncRead for Pieces<'_> {
        fn poll_read(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
            into: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            self.waited = !self.waited;
            if self.waited {
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            let rest = &self.wire[self.at..];
            let count = rest.len().min(self.piece).min(into.remaining());
            into.put_slice(&rest[..count]);
            self.at += count;
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn frames_of_any_reader_land_in_one_run() {
        let lens = [&LENS[..], &[64 << 10; 5], &[1 << 20, 1 << 20, 3]].concat();
        let mut wire = Vec::new();
        for (index, &len) in lens.iter().enumerate() {
            wire.extend_from_slice(&(len as u32).to_be_bytes());
            wire.extend_from_slice(&pattern(index, len));
        }
        for alignment in [1, 64, 4096] {
            for piece in [999, 16 << 10, usize::MAX] {
                let codec = CODEC.alignment(alignment);
                let mut reader = Pieces { wire: &wire, at: 0, piece, waited: false };
                let mut received = Rope::in_pool(&Pool::new().unwrap());
                let mut end = 0;
                for (index, &len) in lens.iter().enumerate() {
                    let frame = received.receive_frame_from(&mut reader, &codec).await.unwrap().unwrap();
                    let view = frame.finalize().unwrap();
                    assert!(*view == pattern(index, len), "frame {index}");
                    assert_eq!((view.num_maps(), view.copied_bytes()), (0, 0), "frame {index}");
                    assert!(len < 4096 || view.as_ptr().addr() % alignment == 0, "frame {index}");
                    end += HEADER + len;
                    // Nothing but bytes behind a short frame is read into the wrong place.
                    assert!(
                        len < 64 << 10 || reader.at == end,
                        "{} bytes behind frame {index}",
                        reader.at - end
                    );
                }
                assert!(received.receive_frame_from(&mut reader, &codec).await.unwrap().is_none());
            }
        }
    }

    #[tokio::test]
    async fn a_reader_that_ends_inside_a_long_frame_is_an_error_and_a_full_pool_loses_nothing() {
        let (len, codec) = (200 << 10, CODEC.alignment(4096));
        let wire = codec.wrap(Rope::from(pattern(0, len))).unwrap().to_vec();
        let mut cut = Pieces { wire: &wire[..wire.len() - 1], at: 0, piece: 9_999, waited: false };
        let mut received = Rope::in_pool(&Pool::new().unwrap());
        let error = received.receive_frame_from(&mut cut, &codec).await.unwrap_err();
        assert_eq!((error.kind(), received.len()), (ErrorKind::UnexpectedEof, wire.len() - 1));

        let pool = Pool::options().capacity(1 << 20).create().unwrap();
        let mut held = Rope::in_pool(&pool);
        held.reserve(900 << 10).unwrap();
        let mut reader = Pieces { wire: &wire, at: 0, piece: 9_999, waited: false };
        let mut received = Rope::in_pool(&pool);
        let error = received.receive_frame_from(&mut reader, &codec).await.unwrap_err();
        assert_eq!((error.kind(), received.len()), (ErrorKind::OutOfMemory, reader.at));
        drop(held);
        let frame = received.receive_frame_from(&mut reader, &codec).await.unwrap().unwrap();
        assert!(frame == pattern(0, len));
    }

    /// Returns whether a read would be tried at once.
    fn is_readable(ready: impl Future<Output = io::Result<()>>) -> bool {
        pin!(ready).poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    #[tokio::test]
    async fn behind_a_short_read_of_tcp_no_read_is_tried_until_more_has_come() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut peer = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (socket, _) = listener.accept().await.unwrap();
        for mut rope in [Rope::new(), Rope::in_pool(&Pool::new().unwrap())] {
            for len in [1, 5000, 100_000] {
                peer.write_all(&pattern(0, len)).await.unwrap();
                while rope.len() < len {
                    assert!(socket.read_rope(&mut rope).await.unwrap() > 0);
                }
                assert!(rope == pattern(0, len));
                peer.write_all(b"more").await.unwrap();
                assert_eq!(socket.read_rope(&mut rope).await.unwrap(), 4);
                assert!(!is_readable(socket.readable()));
                rope.clear();
            }
        }
        // The end comes with the last bytes, or behind them.
        peer.write_all(b"last").await.unwrap();
        peer.shutdown().await.unwrap();
        let mut rope = Rope::new();
        assert_eq!(socket.read_rope(&mut rope).await.unwrap(), 4);
        assert_eq!(socket.read_rope(&mut rope).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn behind_a_short_read_of_a_unix_socket_more_may_be_there() {
        let (here, there) = std::os::unix::net::UnixStream::pair().unwrap();
        there.set_nonblocking(true).unwrap();
        // A receive ends behind what came with descriptors.
        Rope::from("with a descriptor").sendmsg_to(&here, 0, &[here.as_fd()]).unwrap();
        Rope::from("plain").sendmsg_to(&here, 0, &[]).unwrap();
        let (there, mut rope) = (UnixStream::from_std(there).unwrap(), Rope::new());
        assert_eq!(there.read_rope(&mut rope).await.unwrap(), 17);
        let more = tokio::time::timeout(Duration::from_secs(60), there.read_rope(&mut rope)).await;
        assert_eq!(more.unwrap().unwrap(), 5);
        assert_eq!(rope, b"with a descriptorplain");
    }

    #[tokio::test]
    async fn tokio_utils_codec_writes_the_same_frames() {
        let (here, there) = UnixStream::pair().unwrap();
        let mut theirs = Framed::new(here, LengthDelimitedCodec::new());
        let send = async {
            for (index, len) in LENS.into_iter().take(8).enumerate() {
                theirs.send(Bytes::from(pattern(index, len))).await.unwrap();
            }
            drop(theirs);
        };
        let receive = async {
            let mut received = Rope::new();
            for (index, len) in LENS.into_iter().take(8).enumerate() {
                let frame = there.read_frame(&mut received, &CODEC).await.unwrap().unwrap();
                assert!(frame == pattern(index, len));
            }
        };
        tokio::join!(send, receive);
    }

    #[tokio::test]
    async fn a_stream_that_ends_inside_a_frame_is_an_error() {
        let wire = CODEC.wrap(Rope::from("payload")).unwrap().to_vec();
        for cut in 1..wire.len() {
            let (here, there) = UnixStream::pair().unwrap();
            here.try_write(&wire[..cut]).unwrap();
            drop(here);
            let error = there.read_frame(&mut Rope::new(), &CODEC).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::UnexpectedEof, "{cut}");
        }
    }

    #[tokio::test]
    async fn dropping_a_read_loses_nothing() {
        let (len, codec) = (300_000, CODEC.alignment(64));
        let wire = codec.wrap(Rope::from(pattern(0, len))).unwrap().to_vec();
        let (here, there) = UnixStream::pair().unwrap();
        let mut received = Rope::in_pool(&Pool::new().unwrap());
        for (index, piece) in wire.chunks(9_973).enumerate() {
            let done = {
                let mut next = pin!(there.read_frame(&mut received, &codec));
                assert!(next.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
                here.write_all_rope(&mut Rope::from(piece.to_vec())).await.unwrap();
                (index + 1) * 9_973 >= wire.len()
            };
            if !done {
                let wait = Duration::from_millis(5);
                assert!(tokio::time::timeout(wait, there.read_frame(&mut received, &codec)).await.is_err());
                assert_eq!(received.len(), (index + 1) * 9_973);
            }
        }
        let view = there.read_frame(&mut received, &codec).await.unwrap().unwrap().finalize().unwrap();
        assert!(*view == pattern(0, len));
        assert_eq!((view.as_ptr().addr() % 64, view.num_maps(), view.copied_bytes()), (0, 0, 0));
    }

    #[tokio::test]
    async fn an_aligned_body_waits_for_room() {
        let pool = Pool::options().capacity(1 << 20).create().unwrap();
        let mut held = Rope::in_pool(&pool);
        held.reserve(900 << 10).unwrap();
        let (len, codec) = (200 << 10, CODEC.alignment(4096));
        let (here, there) = UnixStream::pair().unwrap();
        let send = async {
            let mut frame = codec.wrap(Rope::from(pattern(0, len))).unwrap();
            here.write_all_rope(&mut frame).await.unwrap();
        };
        let receive = async {
            let mut received = Rope::in_pool(&pool);
            let frame = there.when_room().read_frame(&mut received, &codec).await.unwrap().unwrap();
            assert!(frame == pattern(0, len));
            assert_eq!(pool.stats().reserved, 0);
        };
        let free = async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            drop(held);
        };
        tokio::join!(send, receive, free);
    }
}
