//! Payloads that become files: received into a file of their own, which gets a name.
#![cfg(not(ropewalk_portable))] // which has no file for a pool

#[allow(dead_code)] // some of it is for other tests
mod support;

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;
use std::{env, thread};

use ropewalk::{Pool, Rope, View};
use support::{in_child, pattern, receive, receive_all};

const MIB: usize = 1 << 20;

/// A rope of a file in `directory` that has received `payload`.
fn received(directory: &Path, payload: &[u8]) -> Rope {
    let mut rope = Rope::for_file(directory, 1 << 30).unwrap();
    receive_all(&mut rope, payload);
    rope
}

/// Returns whether this process has the file at `path` open: it is the one that was received into, and no copy.
fn is_open(path: &Path) -> bool {
    let file = fs::metadata(path).unwrap();
    let is_it = |open: fs::Metadata| (open.dev(), open.ino()) == (file.dev(), file.ino());
    fs::read_dir("/proc/self/fd").unwrap().any(|fd| fs::metadata(fd.unwrap().path()).is_ok_and(is_it))
}

fn names(directory: &Path) -> Vec<String> {
    let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
    fs::read_dir(directory).unwrap().map(name).collect()
}

/// Makes `view` a file, which must (or must not) be the one that has no name before.
#[track_caller]
fn persist(view: &View, directory: &Path, linked: bool) {
    let path = directory.join("upload");
    view.persist(&path).unwrap();
    assert_eq!(is_open(&path), linked, "{view:?}");
    assert!(fs::read(&path).unwrap() == view[..], "{view:?}");
    assert_eq!(names(directory), ["upload"]);
    fs::remove_file(&path).unwrap();
}

#[test]
fn the_file_that_was_received_into_gets_the_name() {
    let sizes = [4097, 2 * MIB - 1, 2 * MIB, 2 * MIB + 1, 9 * MIB + 11, 40 * MIB];
    for (seed, size) in (0..).zip(sizes) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("upload");
        let payload = pattern(seed, size);
        let rope = received(directory.path(), &payload);
        assert!(names(directory.path()).is_empty());
        let view = rope.finalize().unwrap();
        assert_eq!((view.copied_bytes(), view.num_maps()), (0, 0));
        view.persist(&path).unwrap();
        assert!(is_open(&path), "{size}: it was copied");
        assert!(fs::read(&path).unwrap() == payload && view == payload, "{size}");
        // As `File::create` makes it.
        let ordinary = fs::File::create(directory.path().join("other")).unwrap();
        let mode = |file: fs::Metadata| file.permissions().mode();
        assert_eq!(mode(fs::metadata(&path).unwrap()), mode(ordinary.metadata().unwrap()));
        // It has all of its bytes when nothing here refers to them any more.
        drop(view);
        while is_open(&path) {
            thread::sleep(Duration::from_millis(1));
        }
        assert!(fs::read(&path).unwrap() == payload, "{size}: a hole was made");
    }
}

#[test]
fn what_is_not_all_of_the_file_is_copied() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let payload = pattern(7, 7 * MIB + 5);
    let view = || received(directory, &payload).finalize().unwrap();
    persist(&view(), directory, true);
    persist(&view().slice(..5 * MIB), directory, false);
    persist(&view().slice(4096..), directory, false);
    // A second name would be one for the same file.
    let twice = view();
    persist(&twice, directory, true);
    persist(&twice, directory, false);
    let mut behind_a_header = received(directory, &payload);
    behind_a_header.push_front("header");
    persist(&behind_a_header.finalize().unwrap(), directory, false);
    let mut with_a_trailer = received(directory, &payload);
    with_a_trailer.push("trailer");
    persist(&with_a_trailer.finalize().unwrap(), directory, false);
    // Parts, while the rest is being received.
    for at in [MIB, 2 * MIB, 3 * MIB, 7 * MIB] {
        let mut rope = received(directory, &payload);
        let front = rope.split_to(at).finalize().unwrap();
        persist(&front, directory, false);
        receive_all(&mut rope, &payload);
        assert!(rope == [&payload[at..], &payload].concat() && front == payload[..at]);
    }
    let mut cut = received(directory, &payload);
    cut.advance(3 * MIB);
    persist(&cut.finalize().unwrap(), directory, false);
    let mut grown = received(directory, &payload);
    receive(&mut grown, &payload);
    persist(&grown.finalize().unwrap(), directory, true);
    // Small ones lie on the heap.
    persist(&received(directory, &payload[..100]).finalize().unwrap(), directory, false);
    persist(&Rope::for_file(directory, 1).unwrap().finalize().unwrap(), directory, false);
}

#[test]
fn a_file_that_is_there_is_kept_and_can_be_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let (path, beside) = (directory.join("upload"), directory.join(".upload.part"));
    fs::write(&path, "the old one").unwrap();
    let payload = pattern(8, 3 * MIB);
    let view = received(directory, &payload).finalize().unwrap();
    assert_eq!(view.persist(&path).unwrap_err().kind(), ErrorKind::AlreadyExists);
    assert_eq!(view.persist(directory).unwrap_err().kind(), ErrorKind::AlreadyExists);
    let missing = view.persist(directory.join("no/such/directory")).unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::NotFound);
    assert_eq!(fs::read(&path).unwrap(), b"the old one");
    assert_eq!(names(directory), ["upload"]);
    // A failure has taken nothing away.
    view.persist(&beside).unwrap();
    fs::rename(&beside, &path).unwrap();
    assert!(is_open(&path));
    assert!(fs::read(&path).unwrap() == payload);
    assert_eq!(names(directory), ["upload"]);
}

#[test]
fn nothing_is_written_to_a_file_that_has_a_name() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("upload");
    let payload = pattern(9, 5 * MIB);
    let rope = received(directory.path(), &payload);
    let mut next = Rope::in_pool(rope.pool().unwrap());
    let view = rope.finalize().unwrap();
    view.persist(&path).unwrap();
    let (got, error) = receive(&mut next, &payload);
    let error = error.expect("there is no file for it");
    assert_eq!((got, error.kind()), (0, ErrorKind::InvalidInput), "{error}");
    assert!(error.to_string().contains("Rope::for_file"), "{error}");
    // Pages go one after the other: none of them leaves a hole in the file.
    let last = view.slice(4 * MIB..);
    drop((view, next));
    thread::sleep(Duration::from_millis(20));
    assert!(fs::read(&path).unwrap() == payload && last == payload[4 * MIB..]);
}

#[test]
fn on_another_file_system_it_is_copied() {
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir_in("/dev/shm"));
    let device = |path: &Path| fs::metadata(path).unwrap().dev();
    let Some(there) = there.ok().filter(|there| device(there.path()) != device(here.path())) else {
        println!("skipped: there is one file system only");
        return;
    };
    let payload = pattern(10, 5 * MIB);
    for (from, to) in [(here.path(), there.path()), (there.path(), here.path())] {
        let view = received(from, &payload).finalize().unwrap();
        let path = to.join("upload");
        view.persist(&path).unwrap();
        OpenOptions::new().write(true).open(&path).unwrap().write_all_at(b"changed", 0).unwrap();
        assert!(view == payload);
        assert!(names(from).is_empty());
        assert_eq!(names(to), ["upload"]);
        fs::remove_file(&path).unwrap();
    }
}

#[test]
fn more_than_was_asked_for_is_an_error_that_keeps_what_came() {
    let directory = tempfile::tempdir().unwrap();
    let payload = pattern(11, 8 * MIB);
    let mut rope = Rope::for_file(directory.path(), 4 << 20).unwrap();
    let (got, error) = receive(&mut rope, &payload);
    let error = error.expect("8 MiB are more than 4");
    assert_eq!(error.kind(), ErrorKind::OutOfMemory, "{error}");
    assert_eq!(got, 4 * MIB);
    assert!(rope == payload[..got]);
    let stats = rope.pool().unwrap().stats();
    assert_eq!((stats.capacity, stats.in_use), (4 << 20, 4 << 20), "{stats:?}");
    persist(&rope.finalize().unwrap(), directory.path(), true);
    let refused = |directory: &Path, bytes| Rope::for_file(directory, bytes).unwrap_err().kind();
    assert_eq!(refused(directory.path(), 0), ErrorKind::InvalidInput);
    assert_eq!(refused(directory.path(), u64::MAX), ErrorKind::InvalidInput);
    assert_eq!(refused(&directory.path().join("missing"), 1), ErrorKind::NotFound);
}

#[test]
fn a_limit_on_file_sizes_is_an_error_and_no_signal() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    in_child("a_limit_on_file_sizes_is_an_error_and_no_signal", || {
        let directory = tempfile::tempdir().unwrap();
        let payload = pattern(12, 64 * MIB);
        let mut rope = Rope::for_file(directory.path(), 1 << 30).unwrap();
        let (_, hard) = getrlimit(Resource::RLIMIT_FSIZE).unwrap();
        setrlimit(Resource::RLIMIT_FSIZE, 5 << 20, hard).unwrap();
        let (got, error) = receive(&mut rope, &payload);
        assert_eq!(error.expect("more than the limit").kind(), ErrorKind::FileTooLarge);
        assert!(rope == payload[..got]);
        let view = rope.finalize().unwrap();
        let refused = view.persist(directory.path().join("upload")).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::FileTooLarge, "{refused}");
        assert!(names(directory.path()).is_empty());
        assert!(view == payload[..got]);
    });
}

/// The file, and the same one past the page cache where the file system allows that.
#[test]
fn a_rope_of_a_file_takes_two_descriptors() {
    in_child("a_rope_of_a_file_takes_two_descriptors", || {
        let directory = tempfile::tempdir().unwrap();
        let descriptors = || fs::read_dir("/proc/self/fd").unwrap().count();
        drop(Pool::new().unwrap()); // opens the files of this process's control group
        let before = descriptors();
        let ropes = [(); 5].map(|()| received(directory.path(), &pattern(15, 3 * MIB)));
        let after = descriptors();
        assert!([5, 10].contains(&(after - before)), "{before} and {after} with {} ropes", ropes.len());
    });
}

/// A rope that is refused a page goes on in that page once there is room, so its file has no gap and can get a name.
#[test]
fn after_an_error_of_the_disk_the_file_gets_its_name() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    in_child("after_an_error_of_the_disk_the_file_gets_its_name", || {
        let directory = tempfile::tempdir().unwrap();
        let payload = pattern(14, 32 * MIB);
        let mut source = tempfile::tempfile().unwrap();
        source.write_all(&payload).unwrap();
        let (_, hard) = getrlimit(Resource::RLIMIT_FSIZE).unwrap();
        for round in 0..20 {
            let mut rope = Rope::for_file(directory.path(), 1 << 30).unwrap();
            let limit = (1 + round % 5) * 2 * MIB as u64 + round;
            setrlimit(Resource::RLIMIT_FSIZE, limit, hard).unwrap();
            let mut refused = 0;
            while refused < 5 {
                match rope.readv_at(&source, rope.len() as u64) {
                    Ok(count) => assert!(count > 0, "all of it within {limit} bytes"),
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::FileTooLarge, "{error}");
                        refused += 1;
                        thread::sleep(Duration::from_millis(2));
                    }
                }
            }
            setrlimit(Resource::RLIMIT_FSIZE, hard, hard).unwrap();
            while rope.len() < 16 * MIB {
                match rope.readv_at(&source, rope.len() as u64) {
                    Ok(_) => {}
                    // Of a write before the limit was raised.
                    Err(error) => assert_eq!(error.kind(), ErrorKind::FileTooLarge, "{error}"),
                }
            }
            persist(&rope.finalize().unwrap(), directory.path(), true);
        }
    });
}

/// The directory of a child process that is killed.
const DIRECTORY: &str = "ROPEWALK_TEST_DIRECTORY";

/// `ROPEWALK_KILLS` is the number of rounds.
#[test]
fn a_process_that_is_killed_leaves_the_file_or_nothing() {
    const NAME: &str = "a_process_that_is_killed_leaves_the_file_or_nothing";
    let payload = pattern(13, 3 * MIB);
    if let Ok(directory) = env::var(DIRECTORY) {
        let directory = Path::new(&directory);
        let spilling = Pool::options().capacity(1 << 20).spill(directory, 1 << 30).create().unwrap();
        println!("ready");
        for round in 0.. {
            let view = if round % 2 == 0 {
                received(directory, &payload).finalize()
            } else {
                support::received(&spilling, &payload).finalize()
            };
            view.unwrap().persist(directory.join(round.to_string())).unwrap();
        }
    }
    let rounds = env::var("ROPEWALK_KILLS").map_or(10, |rounds| rounds.parse().unwrap());
    let mut whole = 0;
    for round in 0..rounds {
        let directory = tempfile::tempdir().unwrap();
        let mut child = Command::new(env::current_exe().unwrap())
            .args([NAME, "--exact", "--nocapture"])
            .env(DIRECTORY, directory.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = std::io::BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        while !line.contains("ready") {
            line.clear();
            assert!(std::io::BufRead::read_line(&mut said, &mut line).unwrap() > 0, "the child has ended");
        }
        thread::sleep(Duration::from_micros(round * 7919 % 200_000));
        child.kill().unwrap();
        child.wait().unwrap();
        for name in names(directory.path()) {
            assert!(name.parse::<u32>().is_ok(), "{name}");
            assert!(fs::read(directory.path().join(&name)).unwrap() == payload, "{name} in round {round}");
            whole += 1;
        }
    }
    println!("{rounds} processes killed; {whole} files, all of them whole");
}

#[test]
fn it_is_sent_and_read_as_any_other() {
    let directory = tempfile::tempdir().unwrap();
    let payload = pattern(14, 9 * MIB + 3);
    let view = received(directory.path(), &payload).finalize().unwrap();
    let (here, there) = UnixStream::pair().unwrap();
    let reader = thread::spawn(move || {
        let mut rope = Rope::new();
        while rope.readv_from(&there).unwrap() > 0 {}
        rope
    });
    view.persist(directory.path().join("upload")).unwrap();
    view.cursor().write_all_to(&here).unwrap();
    (&here).flush().unwrap();
    drop(here);
    assert!(reader.join().unwrap() == payload);
    let mut part = vec![0; MIB];
    assert_eq!(view.read_at(&mut part, 4 * MIB as u64 + 1).unwrap(), MIB);
    assert!(part == payload[4 * MIB + 1..5 * MIB + 1]);
}

#[cfg(feature = "tokio")]
#[test]
fn a_task_awaits_what_is_written() {
    use ropewalk::ReadRope;
    let directory = tempfile::tempdir().unwrap();
    let payload = pattern(15, 48 * MIB);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let rope = runtime.block_on(async {
        let (mut here, there) = tokio::net::UnixStream::pair().unwrap();
        let sent = payload.clone();
        let sender = tokio::spawn(async move {
            tokio::io::AsyncWriteExt::write_all(&mut here, &sent).await.unwrap();
        });
        let mut rope = Rope::for_file(directory.path(), 1 << 30).unwrap();
        while there.when_room().read_rope(&mut rope).await.unwrap() > 0 {}
        sender.await.unwrap();
        rope
    });
    let view = rope.finalize().unwrap();
    assert!(view == payload);
    persist(&view, directory.path(), true);
}
