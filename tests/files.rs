//! Bytes of files in ropes: pushed, sent, read; and views that become files.

#[allow(dead_code)] // some of it is for other tests
mod support;

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt, symlink};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;
use std::thread;

use nix::fcntl::OFlag;
use nix::libc;
use nix::sys::stat::Mode;
use ropewalk::{Cursor, Pool, Rope};
use support::{in_child, pattern, receive_all, received};

const MIB: usize = 1 << 20;

/// A file with these bytes.
fn file(directory: &Path, bytes: &[u8]) -> File {
    let path = directory.join("file");
    fs::write(&path, bytes).unwrap();
    OpenOptions::new().read(true).write(true).open(path).unwrap()
}

/// Everything that comes out of `from`.
fn drain(mut from: impl Read + Send + 'static) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut all = Vec::new();
        from.read_to_end(&mut all).unwrap();
        all
    })
}

fn threads_own(file: &File) -> File {
    file.try_clone().unwrap()
}

#[test]
fn a_range_of_a_file_is_a_segment() {
    let directory = tempfile::tempdir().unwrap();
    let bytes = pattern(1, 3 * MIB);
    let file = file(directory.path(), &bytes);
    for range in [0..10, 0..3 * MIB, 4095..4097, 4096..8192, 1_000_000..2_000_001, 3 * MIB - 1..3 * MIB] {
        let mut rope = Rope::from("front ");
        rope.push_file(threads_own(&file), range.start as u64..range.end as u64).unwrap();
        rope.push(" back");
        let expected = [b"front ", &bytes[range.clone()], b" back"].concat();
        assert!(rope == expected, "{range:?}");
        assert_eq!(rope.num_segments(), 3);
        let (here, there) = UnixStream::pair().unwrap();
        let all = drain(there);
        rope.cursor().write_all_to(&here).unwrap();
        rope.clone().write_all_to(&here).unwrap();
        drop(here);
        assert!(all.join().unwrap() == [&expected[..], &expected].concat(), "{range:?}");
        let mut read = Vec::new();
        rope.cursor().read_to_end(&mut read).unwrap();
        assert!(read == expected);
        let view = rope.finalize().unwrap();
        assert!(view == expected);
        let mut part = vec![0; expected.len() + 1];
        assert_eq!(view.read_at(&mut part, 3).unwrap(), expected.len() - 3);
        assert!(part[..expected.len() - 3] == expected[3..]);
        assert_eq!(view.read_at(&mut part, u64::MAX).unwrap(), 0);
    }
}

#[test]
#[cfg_attr(ropewalk_portable, ignore = "maps no views")]
fn a_file_is_mapped_in_a_view_and_sent_from_there() {
    let directory = tempfile::tempdir().unwrap();
    let bytes = pattern(2, 4 * MIB);
    let file = file(directory.path(), &bytes);
    for pool in [None, Some(Pool::new().unwrap())] {
        let mut rope = pool.as_ref().map_or_else(Rope::new, Rope::in_pool);
        rope.extend_from_slice(&bytes[..4096]);
        rope.push_file(threads_own(&file), 4096..4 * MIB as u64 - 5).unwrap();
        rope.extend_from_slice(&bytes[4 * MIB - 5..]);
        let view = rope.finalize().unwrap();
        assert!(view == bytes);
        assert!(view.mapped_bytes() >= 3 * MIB, "{view:?}");
        let (here, there) = UnixStream::pair().unwrap();
        let all = drain(there);
        view.cursor().write_all_to(&here).unwrap();
        drop(here);
        assert!(all.join().unwrap() == bytes);
        let again = Rope::from(view.clone());
        drop(view);
        assert!(again.finalize().unwrap() == bytes);
    }
    // Two parts that belong together are one again.
    let mut rope = Rope::new();
    rope.push_file(file, 0..4 * MIB as u64).unwrap();
    let rest = rope.split_off(MIB + 1);
    rope.append(rest);
    let view = rope.finalize().unwrap();
    assert_eq!(view.copied_bytes(), 0);
    assert!(view == bytes);
}

#[test]
#[cfg_attr(ropewalk_portable, ignore = "O_DIRECT is of Linux")]
fn a_file_that_is_open_with_o_direct_is_read_from_any_byte_on() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("file");
    let bytes = pattern(3, MIB + 10);
    fs::write(&path, &bytes).unwrap();
    let Ok(file) = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(&path) else {
        return println!("skipped: this file system has no O_DIRECT");
    };
    for range in [0..4096, 3..4, 4095..4097, 5..MIB + 10, MIB..MIB + 10] {
        let mut rope = Rope::from("ab");
        rope.push_file(threads_own(&file), range.start as u64..range.end as u64).unwrap();
        let expected = [b"ab", &bytes[range.clone()]].concat();
        let mut read = Vec::new();
        rope.cursor().read_to_end(&mut read).unwrap();
        assert!(read == expected, "{range:?}");
        let view = rope.finalize().unwrap();
        assert!(view == expected, "{range:?}");
        view.persist(directory.path().join(format!("{range:?}"))).unwrap();
        assert!(fs::read(directory.path().join(format!("{range:?}"))).unwrap() == expected, "{range:?}");
    }
    let mut rope = Rope::new();
    rope.push_file(threads_own(&file), 7..MIB as u64).unwrap();
    OpenOptions::new().write(true).open(&path).unwrap().set_len(5000).unwrap();
    let error = rope.cursor().read_exact(&mut vec![0; MIB - 7]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
}

#[test]
fn a_pipe_and_a_file_take_it_too() {
    let directory = tempfile::tempdir().unwrap();
    let bytes = pattern(3, MIB);
    let source = file(directory.path(), &bytes);
    let mut rope = Rope::from("to a pipe: ");
    rope.push_file(threads_own(&source), 0..MIB as u64).unwrap();
    let expected = rope.to_vec();
    let (reader, writer) = nix::unistd::pipe().unwrap();
    let all = drain(File::from(reader));
    rope.cursor().write_all_to(&writer).unwrap();
    drop(writer);
    assert!(all.join().unwrap() == expected);
    for append in [false, true] {
        let path = directory.path().join("copy");
        let _ = fs::remove_file(&path);
        let copy = OpenOptions::new().write(!append).append(append).create(true).open(&path).unwrap();
        rope.cursor().write_all_to(&copy).unwrap();
        assert!(fs::read(&path).unwrap() == expected, "append: {append}");
    }
}

#[test]
fn a_message_is_not_cut_where_a_file_begins() {
    use std::os::unix::net::UnixDatagram;
    let directory = tempfile::tempdir().unwrap();
    let file = file(directory.path(), b"body");
    let (here, there) = UnixDatagram::pair().unwrap();
    let mut rope = Rope::from("head ");
    rope.push_file(file, 0..4).unwrap();
    rope.push(" trailer");
    assert_eq!(rope.writev_to(&here).unwrap(), 17);
    let mut got = [0; 100];
    let len = there.recv(&mut got).unwrap();
    assert_eq!(&got[..len], b"head body trailer");
}

#[test]
fn what_is_no_range_of_a_file_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let file = file(directory.path(), b"0123456789");
    let mut rope = Rope::from("kept");
    let mut kind = |file: &dyn AsFd, range| {
        let file = File::from(file.as_fd().try_clone_to_owned().unwrap());
        let error = rope.push_file(file, range).unwrap_err();
        assert_eq!(rope, b"kept");
        error.kind()
    };
    assert_eq!(kind(&file, 0..11), ErrorKind::InvalidInput);
    assert_eq!(kind(&file, 11..11), ErrorKind::InvalidInput);
    assert_eq!(kind(&file, 0..u64::MAX), ErrorKind::InvalidInput);
    assert_eq!(kind(&file, u64::MAX..u64::MAX), ErrorKind::InvalidInput);
    #[allow(clippy::reversed_empty_ranges)]
    let reversed = 5..4;
    assert_eq!(kind(&file, reversed), ErrorKind::InvalidInput);
    let (pipe, _writer) = nix::unistd::pipe().unwrap();
    assert_eq!(kind(&pipe, 0..0), ErrorKind::InvalidInput);
    assert_eq!(kind(&File::open("/dev/null").unwrap(), 0..0), ErrorKind::InvalidInput);
    assert_eq!(kind(&File::open("/").unwrap(), 0..1), ErrorKind::InvalidInput);
    assert_eq!(kind(&UnixStream::pair().unwrap().0, 0..1), ErrorKind::InvalidInput);
    let write_only = OpenOptions::new().write(true).open(directory.path().join("file")).unwrap();
    assert_eq!(kind(&write_only, 0..10), ErrorKind::PermissionDenied);
    rope.push_file(file, 10..10).unwrap();
    assert_eq!(rope.num_segments(), 1);
}

/// Files that a caller may have been given by somebody else.
#[test]
fn a_path_and_files_of_proc_are_no_files_with_bytes() {
    let directory = tempfile::tempdir().unwrap();
    let bytes = pattern(1, 3 * 4096 + 5);
    let file = file(directory.path(), &bytes);
    let mut rope = Rope::from("kept");
    // Not by `OpenOptions`: under musl `O_PATH` is a part of `O_ACCMODE`, which it removes.
    let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
    let as_path = nix::fcntl::open(&directory.path().join("file"), flags, Mode::empty()).unwrap();
    assert_eq!(rope.push_file(as_path.into(), 0..10).unwrap_err().raw_os_error(), Some(libc::EBADF));
    // A length of 0, whatever can be read.
    let of_proc = || File::open("/proc/self/status").unwrap();
    assert_eq!(rope.push_file(of_proc(), 0..1).unwrap_err().kind(), ErrorKind::InvalidInput);
    rope.push_file(of_proc(), 0..0).unwrap();
    // A length of a page, and a map of none.
    if let Ok(of_sys) = File::open("/sys/kernel/mm/transparent_hugepage/enabled") {
        assert!(rope.push_file(of_sys, 0..1).is_err());
    }
    assert!(rope == b"kept" && rope.num_segments() == 1);
    // A sparse file as long as there can be: no more than the addresses that there are.
    let sparse = tempfile::tempfile_in(directory.path()).unwrap();
    if sparse.set_len(1 << 43).is_ok() {
        rope.push_file(threads_own(&sparse), (1 << 43) - 3..1 << 43).unwrap();
        assert!(rope == b"kept\0\0\0");
        for _ in 0..40 {
            let _ = rope.push_file(threads_own(&sparse), 0..1 << 43);
        }
        assert!(rope.num_segments() < 42 && rope.len() as u64 % (1 << 43) == 7, "{} bytes", rope.len());
    }
    // A file that grows: the range stays as it was.
    let mut grown = Rope::new();
    grown.push_file(threads_own(&file), 1..bytes.len() as u64).unwrap();
    file.write_all_at(b"and more", bytes.len() as u64).unwrap();
    assert!(grown == bytes[1..]);
    let (mut reader, writer) = UnixStream::pair().unwrap();
    grown.cursor().write_all_to(&writer).unwrap();
    drop(writer);
    let mut sent = Vec::new();
    reader.read_to_end(&mut sent).unwrap();
    assert!(sent == bytes[1..]);
}

#[test]
fn a_file_that_becomes_shorter_is_an_error_and_no_endless_loop() {
    let directory = tempfile::tempdir().unwrap();
    let bytes = pattern(4, 64 << 10);
    let source = file(directory.path(), &bytes);
    let mut rope = Rope::new();
    rope.push_file(threads_own(&source), 0..bytes.len() as u64).unwrap();
    source.set_len(10_000).unwrap();
    let (here, mut there) = UnixStream::pair().unwrap();
    let mut cursor = rope.cursor();
    let error = cursor.write_all_to(&here).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnexpectedEof, "{error}");
    assert_eq!(cursor.position(), 10_000);
    let with_descriptors = rope.cursor().sendmsg_to(&here, 0, &[source.as_fd()]).unwrap_err();
    assert_eq!(with_descriptors.kind(), ErrorKind::UnexpectedEof);
    drop(here);
    let mut sent = Vec::new();
    there.read_to_end(&mut sent).unwrap();
    assert!(sent == bytes[..10_000]);
    let says_so = |error: io::Error, byte: usize| {
        assert_eq!(error.kind(), ErrorKind::UnexpectedEof, "{error}");
        let said = format!("the file ends before byte {byte}, which the rope holds: it was made shorter");
        assert!(error.to_string().contains(&said), "{error}");
    };
    let mut all = Vec::new();
    says_so(rope.cursor().read_to_end(&mut all).unwrap_err(), (64 << 10) - 1);
    assert!(all.is_empty());
    let mut part = [0; 10];
    let view = rope.clone().finalize().unwrap();
    assert_eq!(view.read_at(&mut part, 5).unwrap(), 10);
    says_so(view.read_at(&mut part, 30_000).unwrap_err(), 30_009);
    // One of several segments, which is copied.
    let mut several = Rope::from(&b"a header"[..]);
    several.append(rope.clone());
    says_so(several.finalize().unwrap_err().into(), (64 << 10) - 1);
    // Appending is no sendfile(2): the kernel reads the mapped pages then, the last of which goes on with zeros.
    let path = directory.path().join("copy");
    let copy = OpenOptions::new().append(true).create(true).open(&path).unwrap();
    assert_eq!(view.cursor().write_all_to(&copy).unwrap_err().kind(), ErrorKind::UnexpectedEof);
    assert!(fs::read(&path).unwrap() == bytes[..10_000]);
    // A message is sent whole or not at all.
    let (here, there) = UnixDatagram::pair().unwrap();
    there.set_nonblocking(true).unwrap();
    for part in [0..10_001, 9_999..12_000, 20_000..20_001] {
        let mut cursor = Cursor::new(rope.slice(part));
        assert_eq!(cursor.writev_to(&here).unwrap_err().kind(), ErrorKind::UnexpectedEof);
        assert_eq!(there.recv(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
    }
    assert_eq!(Cursor::new(rope.slice(9_000..10_000)).writev_to(&here).unwrap(), 1_000);
    let error = view.persist(directory.path().join("other")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnexpectedEof, "{error}");
    assert!(error.to_string().contains("it was made shorter"), "{error}");
    assert!(!directory.path().join("other").exists());
}

#[test]
fn a_socket_that_is_broken_is_an_error_and_no_signal() {
    in_child("a_socket_that_is_broken_is_an_error_and_no_signal", || {
        use nix::sys::signal::{SigHandler, Signal, signal};
        // Rust ignores it, which other programs do not.
        #[allow(unsafe_code)]
        // SAFETY: the default handler.
        unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) }.unwrap();
        let directory = tempfile::tempdir().unwrap();
        let source = file(directory.path(), &pattern(5, MIB));
        let mut rope = Rope::new();
        rope.push_file(source, 0..MIB as u64).unwrap();
        for _ in 0..2 {
            let (here, there) = UnixStream::pair().unwrap();
            drop(there);
            assert_eq!(rope.writev_to(&here).unwrap_err().kind(), ErrorKind::BrokenPipe);
        }
        assert_eq!(rope.len(), MIB);
    });
}

#[test]
#[cfg_attr(ropewalk_portable, ignore = "needs sendfile")]
fn no_byte_of_a_file_is_read_into_this_process_to_be_sent() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("sparse");
    let sparse = OpenOptions::new().read(true).write(true).create_new(true).open(&path).unwrap();
    sparse.set_len(64 << 20).unwrap();
    let faults = || {
        nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_THREAD)
            .unwrap()
            .minor_page_faults()
    };
    let mut rope = Rope::new();
    rope.push_file(sparse, 0..64 << 20).unwrap();
    let (here, there) = UnixStream::pair().unwrap();
    let all = drain(there);
    let before = faults();
    rope.write_all_to(&here).unwrap();
    assert!(faults() - before < 100, "{} page faults", faults() - before);
    drop(here);
    assert_eq!(all.join().unwrap().len(), 64 << 20);
}

#[test]
fn a_view_becomes_a_file_of_its_name_or_none() {
    let directory = tempfile::tempdir().unwrap();
    let names = || fs::read_dir(directory.path()).unwrap().count();
    let spilled = || Pool::options().capacity(1 << 20).spill(directory.path(), 64 << 20).create().unwrap();
    let payload = pattern(6, 9 * MIB + 11);
    let mut pools = vec![Pool::new().unwrap()];
    if cfg!(not(ropewalk_portable)) {
        pools.push(spilled());
    }
    for (case, pool) in pools.iter().enumerate() {
        let rope = received(pool, &payload);
        pool.trim().unwrap();
        let view = rope.finalize().unwrap();
        let path = directory.path().join("upload");
        view.persist(&path).unwrap();
        assert!(fs::read(&path).unwrap() == payload, "case {case}");
        assert_eq!(names(), 1);
        // What is there is never replaced.
        let small = Rope::from("another").finalize().unwrap();
        assert_eq!(small.persist(&path).unwrap_err().kind(), ErrorKind::AlreadyExists);
        assert!(fs::read(&path).unwrap() == payload);
        assert_eq!(names(), 1);
        fs::remove_file(&path).unwrap();
        assert_eq!(
            view.persist(directory.path().join("no/such/directory")).unwrap_err().kind(),
            ErrorKind::NotFound
        );
        // The view and the file are apart.
        view.persist(&path).unwrap();
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all_at(b"changed", 5 << 20).unwrap();
        assert!(view == payload);
        fs::remove_file(&path).unwrap();
    }
    let empty = directory.path().join("empty");
    Rope::new().finalize().unwrap().persist(&empty).unwrap();
    assert_eq!(fs::metadata(&empty).unwrap().len(), 0);
}

#[test]
fn a_name_that_cannot_be_had_is_an_error_and_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::write(at("file"), b"there").unwrap();
    fs::create_dir(at("directory")).unwrap();
    symlink(at("nowhere"), at("dangling")).unwrap();
    symlink(at("file"), at("to file")).unwrap();
    symlink(at("directory"), at("to directory")).unwrap();
    symlink(at("loop"), at("loop")).unwrap();
    let names = || {
        let entries = fs::read_dir(directory.path()).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let before = names();
    let (longest, too_long) = ("x".repeat(255), "x".repeat(256));
    let expected = [
        ("file", libc::EEXIST),
        ("directory", libc::EEXIST),
        ("dangling", libc::EEXIST),
        ("to file", libc::EEXIST),
        ("to directory", libc::EEXIST),
        ("loop", libc::EEXIST),
        ("loop/name", libc::ELOOP),
        ("file/name", libc::ENOTDIR),
        ("missing/name", libc::ENOENT),
        ("directory/", libc::EEXIST),
        ("name/", libc::ENOENT),
        (".", libc::EEXIST),
        ("..", libc::EEXIST),
        (&too_long, libc::ENAMETOOLONG),
    ];
    let payload = pattern(8, 100_000);
    let mut views = vec![Rope::from(payload.clone()).finalize().unwrap()];
    if cfg!(not(ropewalk_portable)) {
        let mut rope = Rope::for_file(directory.path(), 1 << 20).unwrap();
        rope.extend_from_slice(&payload);
        views.push(rope.finalize().unwrap());
    }
    for (case, view) in views.into_iter().enumerate() {
        for (name, errno) in expected {
            let error = view.persist(at(name)).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(errno), "{case}, {name}: {error}");
            assert_eq!(names(), before, "{case}, {name}");
        }
        assert_eq!(view.persist("").unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(view.persist(at("nul\0")).unwrap_err().kind(), ErrorKind::InvalidInput);
        assert!(view.persist("/proc/name").is_err() && view.persist("/").is_err());
        assert!(fs::read(at("file")).unwrap() == b"there");
        // Nothing of that has spoilt it: it gets a name that can be had.
        view.persist(at(&longest)).unwrap();
        assert!(fs::read(at(&longest)).unwrap() == payload && view == payload);
        fs::remove_file(at(&longest)).unwrap();
    }
}

#[test]
fn a_file_beyond_the_limit_is_an_error_and_no_signal() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    in_child("a_file_beyond_the_limit_is_an_error_and_no_signal", || {
        let directory = tempfile::tempdir().unwrap();
        let (_, hard) = getrlimit(Resource::RLIMIT_FSIZE).unwrap();
        let view = received(&Pool::new().unwrap(), &pattern(7, 3 * MIB)).finalize().unwrap();
        setrlimit(Resource::RLIMIT_FSIZE, 2 << 20, hard).unwrap();
        let error = view.persist(directory.path().join("large")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::FileTooLarge);
        assert!(fs::read_dir(directory.path()).unwrap().next().is_none());
    });
}

#[test]
fn a_cursor_reads_and_seeks_across_files() {
    let directory = tempfile::tempdir().unwrap();
    let bytes = pattern(8, 100_000);
    let source = file(directory.path(), &bytes);
    let mut rope = Rope::from(bytes[..1000].to_vec());
    rope.push_file(source, 1000..99_000).unwrap();
    rope.push(bytes[99_000..].to_vec());
    let mut cursor = rope.cursor();
    for (at, len) in [(0, 100_000), (999, 2), (50_000, 49_500), (98_999, 2), (99_999, 1)] {
        cursor.seek(SeekFrom::Start(at)).unwrap();
        let mut part = vec![0; len];
        cursor.read_exact(&mut part).unwrap();
        assert!(part == bytes[at as usize..at as usize + len]);
        assert_eq!(cursor.position(), at as usize + len);
    }
    assert_eq!(cursor.read(&mut [0; 10]).unwrap(), 0);
    let mut sink = Vec::new();
    sink.write_all(b"before").unwrap();
    cursor.set_position(99_998);
    assert_eq!(cursor.read_to_end(&mut sink).unwrap(), 2);
    assert_eq!(sink.len(), 8);
}

/// Numbers that look random and repeat.
struct Random(u64);

impl Random {
    fn below(&mut self, below: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % below
    }

    fn range(&mut self, len: usize) -> std::ops::Range<usize> {
        let (one, other) = (self.below(len + 1), self.below(len + 1));
        one.min(other)..one.max(other)
    }
}

/// Compared with a flat vector, each in every way.
#[cfg(not(ropewalk_portable))]
#[test]
fn memory_files_spilled_and_sealed_bytes_in_one_rope() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mut random = Random(11);
    let bytes = pattern(20, 4 * MIB);
    let source = file(directory.path(), &bytes);
    let pool = Pool::options().capacity(MIB as u64).spill(directory.path(), 256 << 20).create().unwrap();
    for round in 0..24 {
        let (mut rope, mut flat) = (Rope::in_pool(&pool), Vec::new());
        for _ in 0..1 + random.below(6) {
            let len = [10, 5000, 300_000, 2 * MIB][random.below(4)];
            let part = random.range(len);
            match random.below(5) {
                0 => receive_all(&mut rope, &bytes[part.clone()]),
                1 => rope.push(bytes[part.clone()].to_vec()),
                2 => {
                    let range = part.start as u64..part.end as u64;
                    rope.push_file(source.try_clone().unwrap(), range).unwrap();
                }
                3 => rope.push(ropewalk::Sealed::copy_of(&bytes[part.clone()]).unwrap()),
                _ => rope.append(received(&pool, &bytes[part.clone()])),
            }
            flat.extend_from_slice(&bytes[part]);
        }
        if round % 3 == 0 {
            pool.trim().unwrap(); // all of it is written
        }
        let kept = rope.clone();
        let at = random.below(flat.len() + 1);
        let rest = flat.split_off(at);
        let mut front = rope.split_to(at);
        assert!(front == flat && rope == rest, "round {round}");
        front.append(rope);
        flat.extend_from_slice(&rest);
        assert!(front == flat && kept == flat, "round {round}");
        let part = random.range(flat.len());
        assert!(kept.slice(part.clone()) == flat[part.clone()], "round {round}");
        if !flat.is_empty() {
            let needle = &flat[part.start.min(flat.len() - 1)..][..(flat.len() - part.start).clamp(1, 40)];
            let found = flat.windows(needle.len()).position(|window| window == needle);
            assert_eq!(kept.find(needle), found, "round {round}");
        }
        let mut read = Vec::new();
        let mut cursor = kept.cursor();
        cursor.seek(SeekFrom::Start(part.start as u64)).unwrap();
        cursor.read_to_end(&mut read).unwrap();
        assert!(read == flat[part.start..], "round {round}");
        let (socket, peer) = UnixStream::pair().unwrap();
        let peer = drain(peer);
        front.write_all_to(&socket).unwrap();
        drop(socket);
        assert!(front.is_empty() && peer.join().unwrap() == flat, "round {round}");
        let view = kept.finalize().unwrap();
        let mut copy = vec![0; part.len()];
        assert_eq!(view.read_at(&mut copy, part.start as u64).unwrap(), part.len());
        assert!(view == flat && copy == flat[part.clone()], "round {round}: {view:?}");
        for view in [view.clone(), view.slice(part.clone())] {
            let path = directory.path().join("name");
            view.persist(&path).unwrap();
            assert!(fs::read(&path).unwrap() == view[..], "round {round}");
            fs::remove_file(&path).unwrap();
        }
        let sealed = view.seal().unwrap();
        assert!(*sealed == flat[..], "round {round}");
    }
    pool.trim().unwrap();
    assert_eq!((pool.stats().in_use, pool.stats().spilled), (0, 0));
}
