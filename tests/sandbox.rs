//! A sandbox that allows no network calls: ropes go on over pipes and files, and say clearly what does not work.
#![allow(unsafe_code)] // the calls are forbidden by raw calls

#[allow(dead_code)] // it is for several test files
#[path = "support/seccomp.rs"]
mod seccomp;
#[allow(dead_code)]
mod support;

use std::fs::File;
use std::io::{ErrorKind, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::thread;

use nix::libc;
use ropewalk::{Pool, Rope};
use seccomp::forbid;
use support::{in_child, pattern};

const NETWORK_CALLS: [libc::c_long; 6] = [
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_getsockopt,
    libc::SYS_socket,
];

/// Runs `body` for each error that such a sandbox gives; a filter stays with its thread for good.
fn without_network_calls(name: &str, body: fn(errno: i32)) {
    in_child(name, || {
        for errno in [libc::EPERM, libc::ENOSYS, libc::EACCES] {
            thread::spawn(move || {
                NETWORK_CALLS.iter().for_each(|&call| forbid(call, None, errno));
                body(errno);
            })
            .join()
            .unwrap();
        }
    });
}

#[test]
fn pipes_and_files_work() {
    without_network_calls("pipes_and_files_work", |_| {
        let payload = pattern(1, 300_000);
        let pool = Pool::options().capacity(4 << 20).create().unwrap();
        let mut file = tempfile::tempfile().unwrap();
        Rope::from(payload.clone()).write_all_to(&file).unwrap();
        file.rewind().unwrap();
        let mut rope = Rope::in_pool(&pool);
        while rope.readv_from(&file).unwrap() > 0 {}
        assert!(rope == payload);
        let (read, write) = nix::unistd::pipe().unwrap();
        let half = thread::spawn(move || Rope::from(payload).write_all_to(write).unwrap());
        rope.clear();
        rope.set_limit(299_999);
        while rope.len() < 299_999 {
            assert!(rope.readv_from(&read).unwrap() > 0);
        }
        assert_eq!(rope.readv_from(&read).unwrap_err().kind(), ErrorKind::QuotaExceeded);
        rope.set_limit(300_000);
        assert_eq!(rope.readv_from(&read).unwrap(), 1);
        half.join().unwrap();
        assert_eq!(rope.readv_from(&read).unwrap(), 0);
    });
}

#[test]
#[cfg_attr(target_pointer_width = "32", ignore = "forbids a call by its number with 64 bits")]
fn a_socket_is_read_and_says_why_it_is_not_written() {
    let name = "a_socket_is_read_and_says_why_it_is_not_written";
    without_network_calls(name, |errno| {
        // Made by socketpair(2), as a descriptor that was inherited would be.
        let (here, there) = UnixStream::pair().unwrap();
        let here = File::from(OwnedFd::from(here));
        (&here).write_all(b"read").unwrap();
        let mut rope = Rope::new();
        rope.set_limit(3);
        assert_eq!(rope.readv_from(&there).unwrap(), 3);
        assert_eq!(rope.readv_from(&there).unwrap_err().kind(), ErrorKind::QuotaExceeded);
        rope.set_limit(4);
        assert_eq!(rope.readv_from(&there).unwrap(), 1);
        // writev(2) might raise SIGPIPE.
        assert_eq!(rope.writev_to(&there).unwrap_err().raw_os_error(), Some(errno));
        assert_eq!(rope, b"read");
        drop(here);
        assert_eq!(rope.readv_from(&there).unwrap(), 0);
    });
}

/// Calls behind what a rope does, any of which a sandbox may forbid.
const CALLS: [(&str, libc::c_long); 36] = [
    ("cachestat", 451),
    ("copy_file_range", libc::SYS_copy_file_range),
    ("fadvise64", libc::SYS_fadvise64),
    ("fallocate", libc::SYS_fallocate),
    ("fcntl", libc::SYS_fcntl),
    ("fstat", libc::SYS_fstat),
    ("fstatfs", libc::SYS_fstatfs),
    ("fsync", libc::SYS_fsync),
    ("ftruncate", libc::SYS_ftruncate),
    ("getsockopt", libc::SYS_getsockopt),
    ("ioctl", libc::SYS_ioctl),
    ("linkat", libc::SYS_linkat),
    ("lseek", libc::SYS_lseek),
    ("madvise", libc::SYS_madvise),
    ("memfd_create", libc::SYS_memfd_create),
    ("mprotect", libc::SYS_mprotect),
    ("mremap", libc::SYS_mremap),
    ("msync", libc::SYS_msync),
    ("munlock", libc::SYS_munlock),
    ("pipe2", libc::SYS_pipe2),
    ("poll", libc::SYS_poll),
    ("pread64", libc::SYS_pread64),
    ("prlimit64", libc::SYS_prlimit64),
    ("pwrite64", libc::SYS_pwrite64),
    ("readv", libc::SYS_readv),
    ("recvfrom", libc::SYS_recvfrom),
    ("recvmsg", libc::SYS_recvmsg),
    ("rt_sigpending", libc::SYS_rt_sigpending),
    ("rt_sigtimedwait", libc::SYS_rt_sigtimedwait),
    ("sendfile", libc::SYS_sendfile),
    ("sendmsg", libc::SYS_sendmsg),
    ("sendto", libc::SYS_sendto),
    ("statx", libc::SYS_statx),
    ("sync_file_range", libc::SYS_sync_file_range),
    ("sysinfo", libc::SYS_sysinfo),
    ("tee", libc::SYS_tee),
];

/// What is made before anything is forbidden.
struct Prepared {
    directory: tempfile::TempDir,
    file: File,
    streams: [UnixStream; 2],
    datagrams: [std::os::unix::net::UnixDatagram; 2],
    pipe: [OwnedFd; 2],
    sink: File,
}

impl Prepared {
    fn new() -> Prepared {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&pattern(1, 100_000)).unwrap();
        let (one, other) = support::pair();
        let (sender, receiver) = std::os::unix::net::UnixDatagram::pair().unwrap();
        receiver.set_nonblocking(true).unwrap();
        let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_NONBLOCK).unwrap();
        Prepared {
            directory: tempfile::tempdir().unwrap(),
            file,
            streams: [one, other],
            datagrams: [sender, receiver],
            pipe: [read, write],
            sink: tempfile::tempfile().unwrap(),
        }
    }

    /// Sends `payload` to itself through the stream, in parts.
    fn receive(&self, rope: &mut Rope, payload: &[u8]) -> std::io::Result<()> {
        let (mut sent, mut got) = (0, 0);
        while got < payload.len() {
            match (&self.streams[0]).write(&payload[sent..]) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                count => sent += count?,
            }
            match rope.readv_from(&self.streams[1]) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                count => got += count?,
            }
        }
        Ok(())
    }

    /// What is left in the stream of an attempt that failed.
    fn drain(&self) {
        let mut rest = vec![0; 1 << 20];
        while std::io::Read::read(&mut &self.streams[1], &mut rest).is_ok_and(|count| count > 0) {}
    }
}

type Step = fn(&Prepared) -> std::io::Result<()>;

/// Each is done, or is an error; in no case are there other bytes than those that were received.
const STEPS: [(&str, Step); 8] = [
    ("pool and view", |all| {
        let pool = Pool::options().capacity(16 << 20).create()?;
        let payload = pattern(2, 2 << 20);
        for _ in 0..2 {
            let (mut rope, mut between) = (Rope::in_pool(&pool), Rope::in_pool(&pool));
            for part in payload.chunks(512 << 10) {
                all.receive(&mut rope, part)?;
                all.receive(&mut between, &part[..5000])?;
            }
            assert!(rope == payload);
            assert!(*rope.finalize()? == payload[..]);
            drop(between);
            let _ = pool.trim();
        }
        assert_eq!(pool.stats().in_use, 0);
        Ok(())
    }),
    ("sending a file", |all| {
        let payload = pattern(1, 100_000);
        let mut rope = Rope::from("header ");
        rope.push_file(all.file.try_clone()?, 5..99_000)?;
        let mut sent = rope.len();
        rope.writev_to(&all.streams[0]).inspect(|count| sent = *count)?;
        let mut got = Rope::new();
        while got.len() < sent {
            got.readv_from(&all.streams[1])?;
        }
        assert!(got.len() == sent && got.starts_with(b"header "));
        got.advance(7);
        assert!(got == payload[5..5 + sent - 7]);
        let mut rope = Rope::new();
        rope.push_file(all.file.try_clone()?, 0..50_000)?;
        rope.cursor().write_all_to(&all.sink)?;
        let count = rope.writev_to(&all.pipe[1])?;
        let mut got = Rope::new();
        while got.len() < count {
            got.readv_from(&all.pipe[0])?;
        }
        assert!(got == payload[..count] && rope == payload[count..50_000]);
        Ok(())
    }),
    ("a view as a file", |all| {
        let mut rope = Rope::from(pattern(3, 70_000));
        rope.push_file(all.file.try_clone()?, 0..100_000)?;
        let view = rope.finalize()?;
        let path = all.directory.path().join("view");
        let persisted = view.persist(&path);
        let names = std::fs::read_dir(all.directory.path()).unwrap().count();
        assert_eq!(names, usize::from(persisted.is_ok()), "{persisted:?}");
        persisted?;
        assert!(std::fs::read(&path).unwrap() == *view);
        std::fs::remove_file(&path)
    }),
    ("handover", |all| {
        let payload = pattern(4, 300_000);
        let mut rope = Rope::for_handover()?;
        all.receive(&mut rope, &payload)?;
        let sealed = rope.finalize()?.seal().map_err(std::io::Error::from)?;
        assert!(*sealed == payload[..]);
        sealed.send(&all.streams[0])?;
        let received = ropewalk::Sealed::receive(&all.streams[1])?;
        assert!(*received == payload[..]);
        Ok(())
    }),
    ("spilling", |all| {
        let pool = Pool::options().capacity(1 << 20).spill(all.directory.path(), 32 << 20).create()?;
        let payload = pattern(5, 5 << 20);
        let mut rope = Rope::in_pool(&pool);
        let received = all.receive(&mut rope, &payload);
        assert!(rope == payload[..rope.len()]);
        received?;
        pool.trim()?;
        assert!(rope == payload);
        Ok(())
    }),
    ("limits", |all| {
        (&all.streams[0]).write_all(b"four")?;
        nix::unistd::write(&all.pipe[1], b"four").unwrap();
        let mut file = all.file.try_clone()?;
        file.seek(std::io::SeekFrom::Start(99_996))?;
        for from in [file.as_fd(), all.pipe[0].as_fd(), all.streams[1].as_fd()] {
            let mut rope = Rope::new();
            rope.set_limit(3);
            assert_eq!(rope.readv_from(from)?, 3);
            let error = rope.readv_from(from).expect_err("one byte is left");
            assert!(rope == pattern(1, 100_000)[99_996..99_999] || rope == b"fou");
            if error.kind() != ErrorKind::QuotaExceeded {
                return Err(error);
            }
            rope.set_limit(4);
            assert_eq!(rope.readv_from(from)?, 1);
        }
        let mut rope = Rope::new();
        rope.set_limit(0);
        assert_eq!(rope.readv_from(&file)?, 0, "the end of the file");
        Ok(())
    }),
    ("a datagram", |all| {
        let payload = pattern(6, 8000);
        all.datagrams[0].send(&payload)?;
        let mut rope = Rope::new();
        let received = rope.readv_from(&all.datagrams[1]);
        assert!(rope.is_empty() || rope == payload, "cut to {} bytes", rope.len());
        received.map(|count| assert_eq!(count, 8000))
    }),
    ("descriptors", |all| {
        let mut rope = Rope::from("two");
        rope.sendmsg_to(&all.streams[0], 0, &[all.file.as_fd(), all.sink.as_fd()])?;
        let received = rope.recvmsg_from(&all.streams[1], 0)?;
        assert_eq!((received.bytes, received.fds.len(), received.truncated), (3, 2, false));
        Ok(())
    }),
];

fn is_of_a_sandbox(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::Unsupported)
}

/// Each call in turn, with the errors that sandboxes give in turn.
#[test]
#[cfg_attr(ropewalk_portable, ignore = "sandboxes are Linux's")]
fn any_call_may_be_forbidden() {
    in_child("any_call_may_be_forbidden", || {
        let mut wrong = Vec::new();
        let mut errors = [libc::EPERM, libc::ENOSYS, libc::EACCES].into_iter().cycle();
        for ((call, number), (step, run)) in CALLS.into_iter().flat_map(|call| STEPS.map(|step| (call, step)))
        {
            let (all, errno) = (Prepared::new(), errors.next().unwrap());
            let done = thread::spawn(move || {
                forbid(number, None, errno);
                let done = run(&all);
                all.drain();
                done
            });
            let case = format!("{step} without {call} ({errno})");
            match done.join() {
                Ok(Ok(())) => {}
                // What is forbidden is told by its error.
                Ok(Err(error)) if is_of_a_sandbox(&error) => println!("{case}: {error}"),
                Ok(Err(error)) => wrong.push(format!("{case}: {error:?}")),
                Err(panic) => wrong.push(format!("{case}: {:?}", panic.downcast_ref::<String>())),
            }
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
    });
}

/// A pool with a file has a thread. Where there is none to be had, clone(2) says EAGAIN, which an event loop would take for
/// "later"; the thread of `background` is tried again.
#[test]
#[cfg_attr(ropewalk_portable, ignore = "sandboxes are Linux's")]
fn without_a_thread_there_is_a_pool_or_an_error_that_says_why() {
    in_child("without_a_thread_there_is_a_pool_or_an_error_that_says_why", || {
        let directory = tempfile::tempdir().unwrap();
        forbid(libc::SYS_clone3, None, libc::ENOSYS);
        forbid(libc::SYS_clone, None, libc::EAGAIN);
        let spills = Pool::options().capacity(1 << 20).spill(directory.path(), 1 << 30).create().map(drop);
        let a_file = Rope::for_file(directory.path(), 1 << 30).map(drop);
        for refused in [spills, a_file] {
            let error = refused.unwrap_err();
            assert!(
                error.kind() != ErrorKind::WouldBlock && error.to_string().contains("thread"),
                "{error:?}"
            );
        }
        let pool = Pool::options().background(true).create().unwrap();
        for _ in 0..3 {
            let mut rope = Rope::in_pool(&pool);
            rope.extend_from_slice(&[7; 1 << 20]);
            drop(rope);
            assert!(pool.stats().warm > 0);
        }
    });
}
