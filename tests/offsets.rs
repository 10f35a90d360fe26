//! Receiving from an offset of a file, and from files that are open with `O_DIRECT`.

#[allow(dead_code)] // some of it is for other tests
mod support;

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Seek, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use nix::libc;
use ropewalk::{Pool, Rope, RopeCodec};
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
    let len = bytes.len() as u64;
    for offset in [0, 1, 4096, 1_000_000, len - 1, len, len + 5, 1 << 40] {
        for mut rope in ropes() {
            let before = rope.to_vec();
            let mut at = offset;
            loop {
                match rope.readv_at(&file, at).unwrap() {
                    0 => break,
                    count => at += count as u64,
                }
            }
            assert!(rope == [&before, &bytes[offset.min(len) as usize..]].concat(), "{offset}");
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

/// Frames whose bodies are received alone, which begin and end anywhere in the file's blocks.
#[test]
fn frames_of_a_file_with_o_direct() {
    let lens = [5, 5000, 200_000, 0, MIB, 77];
    let payloads = lens.map(|len| pattern(len as u64, len));
    let frame = |payload: &Vec<u8>| [&(payload.len() as u32).to_be_bytes()[..], payload].concat();
    let bytes: Vec<u8> = payloads.iter().flat_map(frame).collect();
    for mut rope in [Rope::new(), Rope::in_pool(&Pool::new().unwrap())] {
        let Some(file) = file(&bytes, libc::O_DIRECT) else {
            return println!("skipped: this file system has no O_DIRECT");
        };
        let codec = RopeCodec::new(MIB);
        for payload in &payloads {
            assert!(rope.readv_frame(&file, &codec).unwrap().unwrap() == *payload);
        }
        assert!(rope.readv_frame(&file, &codec).unwrap().is_none());
    }
}

/// Numbers that look random and repeat.
fn random(seed: &mut u64, below: usize) -> usize {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*seed >> 33) as usize % below
}

/// The kernel refuses what would end behind 2^63 - 1, where the longest file ends.
#[test]
fn offsets_close_to_the_largest() {
    const MAX: u64 = i64::MAX as u64;
    let memfd = nix::sys::memfd::memfd_create(c"long", nix::sys::memfd::MFdFlags::empty()).unwrap();
    let long = File::from(memfd);
    long.write_all_at(b"the last bytes", MAX - 14).unwrap();
    let short = file(&[7; 10], 0).unwrap();
    for mut rope in ropes() {
        let held = rope.len();
        assert_eq!(rope.readv_at(&long, MAX - 14).unwrap(), 14);
        assert!(rope.slice(held..) == b"the last bytes");
        for limit in [usize::MAX, rope.len()] {
            rope.set_limit(limit);
            assert_eq!(rope.readv_at(&short, MAX - 1).unwrap(), 0);
            for at in [MAX, MAX + 1] {
                assert_eq!(rope.readv_at(&short, at).unwrap_err().kind(), ErrorKind::InvalidInput);
            }
        }
        assert_eq!(rope.readv_at(&long, MAX - 1).unwrap_err().kind(), ErrorKind::QuotaExceeded);
    }
}

/// Reserved room too is asked for as by `readv_from`.
#[test]
fn as_much_is_read_as_from_the_position() {
    let bytes = pattern(6, 2 * MIB);
    for (flags, reserved) in [(0, 0), (0, MIB), (libc::O_DIRECT, MIB)] {
        let Some(file) = file(&bytes, flags) else { continue };
        let [mut one, mut other] = [(); 2].map(|()| Rope::in_pool(&Pool::new().unwrap()));
        one.reserve(reserved).unwrap();
        other.reserve(reserved).unwrap();
        while other.len() < bytes.len() {
            let at = one.len() as u64;
            assert_eq!(one.readv_at(&file, at).unwrap(), other.readv_from(&file).unwrap(), "at {at}");
        }
        assert!(one == bytes && other == bytes);
    }
}

/// In a pool of a few pages, with a tail that ends anywhere. What is consumed makes room.
#[test]
fn a_full_pool_takes_what_fits_and_goes_on() {
    let mut seed = 7;
    for round in 0..60 {
        let bytes = pattern(round, random(&mut seed, 200_000));
        let pages = 1 + random(&mut seed, 12);
        let head = pattern(99, random(&mut seed, pages * 4096));
        for flags in [0, libc::O_DIRECT] {
            let Some(file) = file(&bytes, flags) else { continue };
            let pool = Pool::options().capacity(pages as u64 * 4096).create().unwrap();
            let mut rope = Rope::in_pool(&pool);
            rope.extend_from_slice(&head);
            let (mut got, mut empty) = (Vec::new(), false);
            loop {
                match rope.readv_at(&file, (got.len() + rope.len() - head.len()) as u64) {
                    Ok(0) => break,
                    Ok(_) => empty = false,
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::OutOfMemory, "{error}");
                        assert!(!empty, "no room in an empty rope");
                        let stats = pool.stats();
                        assert_eq!(stats.in_use, stats.capacity, "round {round}, flags {flags:#x}");
                        // While nothing is consumed, all of a page is used, or all but what is behind the head in its page.
                        let left = if pages == 1 { 0 } else { 4095 };
                        let held = rope.len() + left >= pages * 4096;
                        assert!(held || !got.is_empty(), "{} bytes in {pages} pages", rope.len());
                        let part = rope.split_to(random(&mut seed, rope.len() + 1).max(rope.len() / 2));
                        got.extend_from_slice(&part.to_vec());
                        empty = rope.is_empty();
                    }
                }
            }
            got.extend_from_slice(&rope.to_vec());
            assert!(got == [&head[..], &bytes].concat(), "round {round}, flags {flags:#x}");
        }
    }
}

/// A device with blocks of `block` bytes and these bytes, where this process may make one.
struct Device(PathBuf);

impl Device {
    fn new(block: usize, bytes: &[u8]) -> Option<Device> {
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let path = directory.path().join("device");
        fs::write(&path, bytes).unwrap();
        let block = block.to_string();
        let options = ["--find", "--show", "--sector-size", &block];
        let made = Command::new("losetup").args(options).arg(path).output().ok()?;
        let name = String::from_utf8(made.stdout).unwrap();
        made.status.success().then(|| Device(PathBuf::from(name.trim_end())))
    }

    fn open(&self) -> File {
        OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(&self.0).unwrap()
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.0).status();
    }
}

/// Since Linux 6.15 a device's blocks may be larger than a page.
#[test]
fn devices_with_blocks_of_any_size() {
    let bytes = pattern(8, 3 * MIB + 65_536);
    for block in [512, 4096, 16_384, 65_536] {
        let Some(device) = Device::new(block, &bytes) else {
            println!("skipped: no device with blocks of {block} bytes");
            continue;
        };
        for (case, rope) in ropes().into_iter().enumerate() {
            let expected = [&rope.to_vec()[..], &bytes].concat();
            let (mut all, mut from) = (rope.clone(), device.open());
            while all.readv_from(&from).unwrap() > 0 {}
            assert!(all == expected, "blocks of {block} in rope {case}");
            assert_eq!(from.stream_position().unwrap(), bytes.len() as u64);
            let (mut odd, from) = (rope, device.open());
            let skip = odd.len();
            for max in [1, 511, 5000, 70_000, usize::MAX] {
                odd.readv_up_to(&from, max).unwrap();
            }
            while odd.readv_at(&from, (odd.len() - skip) as u64).unwrap() > 0 {}
            assert!(odd == expected, "blocks of {block} in rope {case}");
        }
    }
}

/// What is read is what the file had at some time: zeros where it was made longer, and its bytes.
#[test]
fn a_file_that_shrinks_and_grows_meanwhile() {
    let len = 300_000;
    let bytes = pattern(9, len);
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = directory.path().join("file");
    fs::write(&path, &bytes).unwrap();
    let (writer, done) = (OpenOptions::new().write(true).open(&path).unwrap(), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut seed = 3;
            while !done.load(Ordering::Relaxed) {
                writer.set_len(random(&mut seed, len) as u64).unwrap();
                writer.write_all_at(&bytes, 0).unwrap();
            }
        });
        for flags in [0, libc::O_DIRECT] {
            let Ok(reader) = OpenOptions::new().read(true).custom_flags(flags).open(&path) else { continue };
            for round in 0..200 {
                let mut rope = Rope::in_pool(&Pool::new().unwrap());
                rope.extend_from_slice(&bytes[..round * 41]);
                while rope.readv_at(&reader, rope.len() as u64).unwrap() > 0 {}
                let same = |(got, expected): (u8, &u8)| got == *expected || got == 0;
                assert!(rope.len() <= len && rope.to_vec().into_iter().zip(&bytes).all(same));
            }
        }
        done.store(true, Ordering::Relaxed);
    });
}
