//! Receiving from an offset of a file, and from files that are open with `O_DIRECT`.

#[allow(dead_code)] // some of it is for other tests
mod support;

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::thread;

use nix::libc;
use ropewalk::{Pool, Rope};
use support::pattern;

const MIB: usize = 1 << 20;

/// A file with these bytes, which has no name any more, and another descriptor of it that is open with `flags`.
fn file(bytes: &[u8], flags: i32) -> Option<File> {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = directory.path().join("file");
    fs::write(&path, bytes).unwrap();
    OpenOptions::new().read(true).custom_flags(flags).open(&path).ok()
}

/// Ropes on the heap and in a pool, empty or behind bytes that end anywhere.
fn ropes() -> Vec<Rope> {
    let pool = Pool::new().unwrap();
    let mut ropes = vec![Rope::new(), Rope::in_pool(&pool)];
    for len in [1, 4095, 5000, 100_000] {
        for mut rope in [Rope::new(), Rope::in_pool(&pool)] {
            rope.extend_from_slice(&vec![b'#'; len]);
            ropes.push(rope);
        }
    }
    let mut pushed = Rope::in_pool(&pool);
    pushed.push("a header");
    ropes.push(pushed);
    ropes
}

#[test]
fn a_file_is_received_from_any_offset_and_its_position_stays() {
    let bytes = pattern(1, 3 * MIB + 77);
    let mut file = file(&bytes, 0).unwrap();
    file.seek(std::io::SeekFrom::Start(12_345)).unwrap();
    for offset in [0, 1, 4096, 1_000_000, bytes.len() - 1, bytes.len(), bytes.len() + 5, 1 << 40] {
        for mut rope in ropes() {
            let before = rope.to_vec();
            let mut at = offset as u64;
            loop {
                match rope.readv_at(&file, at).unwrap() {
                    0 => break,
                    count => at += count as u64,
                }
            }
            assert!(rope == [&before, &bytes[offset.min(bytes.len())..]].concat(), "{offset}");
        }
    }
    assert_eq!(file.stream_position().unwrap(), 12_345);
}

#[test]
fn many_ropes_receive_from_one_descriptor() {
    let bytes = pattern(2, 4 * MIB);
    let file = file(&bytes, 0).unwrap();
    let pool = Pool::new().unwrap();
    thread::scope(|scope| {
        for part in 0..4 {
            let (file, pool, bytes) = (&file, &pool, &bytes[part * MIB..(part + 1) * MIB]);
            scope.spawn(move || {
                let mut rope = Rope::in_pool(pool);
                rope.set_limit(MIB);
                while rope.len() < MIB {
                    rope.readv_at(file, (part * MIB + rope.len()) as u64).unwrap();
                }
                assert!(rope == bytes);
            });
        }
    });
}

#[test]
fn the_end_a_limit_and_a_full_pool_are_told_apart() {
    let bytes = pattern(3, 100_000);
    for flags in [0, libc::O_DIRECT] {
        let Some(file) = file(&bytes, flags) else { continue };
        for at in [0, 1, 4096, 99_999] {
            let mut rope = Rope::from("kept");
            rope.set_limit(4);
            let error = rope.readv_at(&file, at).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::QuotaExceeded, "{error}");
            assert_eq!(rope, b"kept");
        }
        let mut full = Rope::in_pool(&Pool::options().capacity(8192).create().unwrap());
        full.extend_from_slice(&bytes[..8192]);
        assert_eq!(full.readv_at(&file, 8192).unwrap_err().kind(), ErrorKind::OutOfMemory);
        assert!(full == bytes[..8192]);
        let mut limited = Rope::from("kept");
        limited.set_limit(4);
        for at in [100_000, 100_001, 1 << 50] {
            assert_eq!(limited.readv_at(&file, at).unwrap(), 0);
            assert_eq!(full.readv_at(&file, at).unwrap(), 0);
            assert_eq!(Rope::new().readv_at(&file, at).unwrap(), 0);
        }
        // Exactly as much as is allowed.
        let mut rope = Rope::new();
        rope.set_limit(10_001);
        while rope.len() < 10_001 {
            assert!(rope.readv_at(&file, 70_000 + rope.len() as u64).unwrap() > 0);
        }
        assert!(rope == bytes[70_000..80_001], "flags {flags:#x}");
    }
}

#[test]
fn what_has_no_offsets_is_an_error() {
    let kind = |fd: &dyn std::os::fd::AsFd, offset| {
        let kinds = [usize::MAX, 4].map(|limit| {
            let mut rope = Rope::from("kept");
            rope.set_limit(limit);
            let error = rope.readv_at(fd.as_fd(), offset).unwrap_err();
            assert_eq!(rope, b"kept");
            error.kind()
        });
        assert_eq!(kinds[0], kinds[1]);
        kinds[0]
    };
    let (pipe, _writer) = nix::unistd::pipe().unwrap();
    let (socket, _peer) = UnixStream::pair().unwrap();
    assert_eq!(kind(&pipe, 0), ErrorKind::NotSeekable);
    assert_eq!(kind(&socket, 0), ErrorKind::NotSeekable);
    assert_eq!(kind(&File::open("/").unwrap(), 0), ErrorKind::IsADirectory);
    let bytes = file(&[7; 10], 0).unwrap();
    assert_eq!(kind(&bytes, 1 << 63), ErrorKind::InvalidInput);
    assert_eq!(kind(&bytes, u64::MAX), ErrorKind::InvalidInput);
}

#[test]
fn a_file_with_o_direct_is_received_as_any_other() {
    let random = |seed: &mut usize, below: usize| {
        *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (*seed >> 33) % below
    };
    let mut seed = 1;
    for len in [0, 1, 511, 512, 4095, 4096, 4097, 8192, 65_536, MIB + 1234, 5 * MIB] {
        let bytes = pattern(4, len);
        if file(&bytes, libc::O_DIRECT).is_none() {
            return println!("skipped: this file system has no O_DIRECT");
        }
        for (case, rope) in ropes().into_iter().enumerate() {
            let before = rope.to_vec();
            let expected = [&before[..], &bytes].concat();
            let direct = || file(&bytes, libc::O_DIRECT).unwrap();
            // From the position, as much as is read at once.
            let (mut all, mut from) = (rope.clone(), direct());
            while all.readv_from(&from).unwrap() > 0 {}
            assert!(all == expected, "{len} in rope {case}");
            assert_eq!(from.stream_position().unwrap(), len as u64);
            // Parts of any length.
            let (mut parts, mut from) = (rope.clone(), direct());
            for max in (0..12).map(|_| 1 + random(&mut seed, 20_000)) {
                let (at, got) = (parts.len() - before.len(), parts.readv_up_to(&from, max).unwrap());
                assert!(got <= max && (got > 0 || at == len), "{got} of {max} at {at} of {len}");
                assert_eq!(from.stream_position().unwrap(), (at + got) as u64);
            }
            while parts.readv_from(&from).unwrap() > 0 {}
            assert!(parts == expected, "{len} in rope {case}");
            // From any offset.
            let from = direct();
            for start in (0..4).map(|_| random(&mut seed, len + 10)) {
                let mut rest = rope.clone();
                let mut at = start;
                loop {
                    match rest.readv_at(&from, at as u64).unwrap() {
                        0 => break,
                        count => at += count,
                    }
                }
                assert!(rest == [&before, &bytes[start.min(len)..]].concat(), "{start} of {len}");
            }
            // Up to a limit inside a page, which is raised then.
            let (mut limited, from) = (rope, direct());
            limited.set_limit(before.len() + len / 2 + 1);
            let error = loop {
                match limited.readv_from(&from) {
                    Ok(0) => break None,
                    Ok(_) => {}
                    Err(error) => break Some(error.kind()),
                }
            };
            let more = len > len / 2 + 1;
            assert_eq!(error, more.then_some(ErrorKind::QuotaExceeded), "{len} in rope {case}");
            limited.set_limit(usize::MAX);
            while limited.readv_from(&from).unwrap() > 0 {}
            assert!(limited == expected, "{len} in rope {case}");
        }
    }
}

#[test]
fn whole_blocks_go_to_pages_directly() {
    let bytes = pattern(5, 8 * MIB + 100);
    let Some(file) = file(&bytes, libc::O_DIRECT) else {
        return println!("skipped: this file system has no O_DIRECT");
    };
    for at_offset in [false, true] {
        let mut rope = Rope::in_pool(&Pool::new().unwrap());
        rope.extend_from_slice(b"a header that ends inside a page");
        let head = rope.len();
        let mut at = 0;
        loop {
            let got =
                if at_offset { rope.readv_at(&file, at).unwrap() } else { rope.readv_from(&file).unwrap() };
            at += got as u64;
            if got == 0 {
                break;
            }
        }
        assert!(rope.slice(head..) == bytes);
        let first = rope.chunks().nth(1).unwrap();
        assert_eq!(first.as_ptr() as usize % 4096, 0);
        assert!(rope.num_segments() < 12, "{rope:?}");
    }
}

#[test]
fn a_file_that_others_write_to_is_read_up_to_its_end() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    let mut writer = File::create(&path).unwrap();
    let reader = File::open(&path).unwrap();
    let mut rope = Rope::in_pool(&Pool::new().unwrap());
    for round in 0..100_u32 {
        writer.write_all(&round.to_le_bytes()).unwrap();
        let at = rope.len() as u64;
        assert_eq!(rope.readv_at(&reader, at).unwrap(), 4);
        assert_eq!(rope.readv_at(&reader, at + 4).unwrap(), 0);
    }
    assert!(rope == (0..100_u32).flat_map(u32::to_le_bytes).collect::<Vec<u8>>());
    assert_eq!(rope.num_segments(), 1);
}
