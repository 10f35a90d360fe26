//! Files without a name, and what becomes of them when a call fails.

use std::fs;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::task::{Context, Waker};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;

use crate::pool::SpillWait;
use crate::sys::file::{self, Unnamed};
use crate::sys::mock::{self, Call};
use crate::{Pool, Rope, View};

fn view(len: usize) -> View {
    Rope::from(vec![7; len]).finalize().unwrap()
}

fn names(directory: &Path) -> Vec<String> {
    let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
    fs::read_dir(directory).unwrap().map(name).collect()
}

#[test]
fn without_o_tmpfile_a_view_becomes_a_file_of_its_name_or_none() {
    for error in [Errno::EOPNOTSUPP, Errno::EISDIR, Errno::EINVAL] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("name");
        let refusing = || mock::refusing(Call::TmpFile, [Some(error)], || view(10_000).persist(&path));
        refusing().unwrap();
        assert_eq!(names(directory.path()), ["name"]);
        assert_eq!(fs::read(&path).unwrap(), [7; 10_000]);
        assert_eq!(refusing().unwrap_err().kind(), ErrorKind::AlreadyExists);
        assert_eq!(names(directory.path()), ["name"]);
    }
}

#[test]
#[cfg_attr(ropewalk_portable, ignore = "links, since a rename might replace a file")]
fn without_hard_links_a_view_becomes_a_file_of_its_name_or_none() {
    for error in [Errno::EPERM, Errno::EOPNOTSUPP, Errno::ENOSYS] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("name");
        let persist = || {
            let refusals =
                [(Call::TmpFile, [Some(Errno::EOPNOTSUPP)].into()), (Call::Link, [Some(error)].into())];
            mock::refusing_some(refusals, || view(10_000).persist(&path))
        };
        persist().unwrap();
        assert_eq!(names(directory.path()), ["name"]);
        assert_eq!(fs::read(&path).unwrap(), [7; 10_000]);
        fs::write(&path, b"another").unwrap();
        assert_eq!(persist().unwrap_err().kind(), ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).unwrap(), b"another");
        assert_eq!(names(directory.path()), ["name"]);
    }
}

#[test]
fn where_a_file_cannot_be_renamed_it_is_linked() {
    for error in [Errno::EINVAL, Errno::ENOSYS, Errno::EPERM] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("name");
        let persist = |links: Option<Errno>| {
            let calls =
                [(Call::TmpFile, Some(Errno::EOPNOTSUPP)), (Call::Rename, Some(error)), (Call::Link, links)];
            let refusals = calls.map(|(call, refused)| (call, [refused].into()));
            mock::refusing_some(refusals, || view(10_000).persist(&path))
        };
        assert_eq!(persist(Some(Errno::EPERM)).unwrap_err().raw_os_error(), Some(Errno::EPERM as i32));
        assert!(names(directory.path()).is_empty());
        persist(None).unwrap();
        assert_eq!(fs::read(&path).unwrap(), [7; 10_000]);
        assert_eq!(persist(None).unwrap_err().kind(), ErrorKind::AlreadyExists);
        assert_eq!(names(directory.path()), ["name"]);
    }
}

#[test]
fn a_full_disk_leaves_no_file() {
    let full = [(Errno::ENOSPC, ErrorKind::StorageFull), (Errno::EDQUOT, ErrorKind::QuotaExceeded)];
    for (error, kind) in full {
        for tmpfile in [None, Some(Errno::EOPNOTSUPP)] {
            let directory = tempfile::tempdir().unwrap();
            let refusals = [(Call::TmpFile, [tmpfile].into()), (Call::WriteFile, [Some(error)].into())];
            let persisted =
                mock::refusing_some(refusals, || view(10_000).persist(directory.path().join("name")));
            assert_eq!(persisted.unwrap_err().kind(), kind);
            assert!(names(directory.path()).is_empty());
        }
    }
}

#[test]
#[cfg_attr(ropewalk_portable, ignore = "does not spill")]
fn a_spill_file_has_no_name_without_o_tmpfile_either() {
    let directory = tempfile::tempdir().unwrap();
    let options = Pool::options().capacity(1 << 20).spill(directory.path(), 8 << 20);
    let pool = mock::refusing(Call::TmpFile, [Some(Errno::EOPNOTSUPP)], || options.create().unwrap());
    assert!(names(directory.path()).is_empty());
    let mut rope = Rope::in_pool(&pool);
    rope.extend_from_slice(&[7; 6 << 20]);
    pool.trim().unwrap();
    assert!(rope == [7; 6 << 20][..]);
    assert_eq!(pool.stats().fallbacks, 0);
    pool.assert_invariants();
}

#[test]
#[cfg_attr(ropewalk_portable, ignore = "does not spill")]
fn what_is_written_past_the_page_cache_is_in_the_file() {
    let directory = tempfile::tempdir().unwrap();
    // Page-aligned, as a pool's pages are.
    let mut rope = Rope::in_pool(&Pool::new().unwrap());
    rope.extend_from_slice(&(0..100_000u32).flat_map(u32::to_le_bytes).collect::<Vec<u8>>());
    let aligned = rope.finalize().unwrap();
    for len in [0, 1, 4095, 4096, 4097, 3 * 4096, 100_001] {
        // Memory that is not aligned is EINVAL, as are blocks that are larger than the ones that were tried.
        for (start, refused) in [(0, None), (0, Some(Errno::EINVAL)), (1, None)] {
            let file = Unnamed::create(directory.path(), 0o600).unwrap().into_file().unwrap();
            let Some(direct) = file::open_direct(&file) else {
                eprintln!("skipped: no O_DIRECT in {}", directory.path().display());
                return;
            };
            let bytes = &aligned[start..start + len];
            let mut got = vec![0; len];
            for offset in [8192, 0] {
                let write = || file::write_direct_at(&file, &direct, bytes, offset).unwrap();
                mock::refusing(Call::WriteFile, [refused], write);
                file.read_exact_at(&mut got, offset).unwrap();
                assert!(got == bytes, "{len} bytes from {start} on at {offset}");
            }
            assert_eq!(file.metadata().unwrap().len(), if len > 0 { 8192 + len as u64 } else { 0 });
        }
    }
}

/// Waits until the thread has prepared the page that a rope takes next.
fn wait_until_prepared(pool: &Pool) {
    let (mut wait, mut context) = (SpillWait::default(), Context::from_waker(Waker::noop()));
    while pool.poll_spill(true, &mut wait, &mut context).is_pending() {
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
#[cfg_attr(ropewalk_portable, ignore = "does not spill")]
fn pages_that_are_spilled_get_memory_by_the_thread() {
    let directory = tempfile::tempdir().unwrap();
    let part: Vec<u8> = (0..250).cycle().take(1 << 20).collect();
    let mut rope = Rope::for_file(directory.path(), 64 << 20).unwrap();
    let pool = rope.pool().unwrap().clone();
    rope.write_all(&part).unwrap();
    for _ in 1..24 {
        wait_until_prepared(&pool);
        mock::refusing(Call::Populate, [Some(Errno::ENOMEM); 8], || rope.write_all(&part)).unwrap();
    }
    assert!(rope == part.repeat(24));
    assert_eq!(rope.finalize().unwrap().copied_bytes(), 0);
    pool.assert_invariants();
}

#[test]
#[cfg_attr(ropewalk_portable, ignore = "does not spill")]
fn pages_that_are_prepared_make_room_for_others() {
    let directory = tempfile::tempdir().unwrap();
    let pool = Pool::options().capacity(1 << 20).spill(directory.path(), 128 << 20).create().unwrap();
    let mut memory = Rope::in_pool(&pool);
    memory.reserve(1 << 20).unwrap();
    // 16 MiB may be staged: a page of each of six ropes, and two behind what they have reserved.
    let mut ropes: Vec<Rope> = (0..6).map(|_| Rope::in_pool(&pool)).collect();
    for rope in &mut ropes {
        rope.reserve(6 << 20).unwrap();
        wait_until_prepared(&pool);
        rope.write_all(b"the first bytes").unwrap();
    }
    ropes.remove(0);
    while pool.stats().spilled > 30 << 20 {
        thread::sleep(Duration::from_millis(1));
    }
    // The lowest pages are free, and are not those that are prepared.
    for _ in 0..3 {
        let mut rope = Rope::in_pool(&pool);
        rope.write_all(b"the first bytes").unwrap();
        ropes.push(rope);
    }
    assert!(ropes.iter().all(|rope| rope == b"the first bytes"));
    pool.assert_invariants();
}

#[test]
#[cfg_attr(ropewalk_portable, ignore = "does not spill")]
fn a_file_system_without_holes_is_refused_when_the_pool_is_made() {
    let directory = tempfile::tempdir().unwrap();
    let options = Pool::options().spill(directory.path(), 8 << 20);
    let refused = mock::refusing(Call::Punch, [Some(Errno::EOPNOTSUPP)], || options.create().unwrap_err());
    assert_eq!(refused.kind(), ErrorKind::Unsupported);
    assert!(refused.to_string().contains("makes no holes"), "{refused}");
    assert!(names(directory.path()).is_empty());
}

#[test]
#[cfg_attr(ropewalk_portable, ignore = "has no file for a pool")]
fn where_a_file_cannot_get_a_name_it_is_copied() {
    let payload = vec![7; 3 << 20];
    let received = |directory: &Path| {
        let mut rope = Rope::for_file(directory, 8 << 20).unwrap();
        rope.extend_from_slice(&payload);
        rope.finalize().unwrap()
    };
    for error in [Errno::EXDEV, Errno::ENOENT, Errno::EPERM, Errno::EMLINK] {
        let directory = tempfile::tempdir().unwrap();
        let (view, path) = (received(directory.path()), directory.path().join("name"));
        // Without the path in `/proc` the descriptor is tried.
        let calls = if error == Errno::ENOENT { 2 } else { 1 };
        mock::refusing(Call::Link, vec![Some(error); calls], || view.persist(&path).unwrap());
        assert!(fs::read(&path).unwrap() == payload);
        // The copy cannot get one either.
        let beside = directory.path().join("beside");
        let refused = mock::refusing(Call::Link, vec![Some(error); 2 * calls], || view.persist(&beside));
        assert_eq!(refused.unwrap_err().raw_os_error(), Some(error as i32));
        assert_eq!(names(directory.path()), ["name"]);
    }
    // A file that had a name first.
    let directory = tempfile::tempdir().unwrap();
    let view = mock::refusing(Call::TmpFile, [Some(Errno::EOPNOTSUPP)], || received(directory.path()));
    assert!(names(directory.path()).is_empty());
    view.persist(directory.path().join("name")).unwrap();
    assert_eq!(names(directory.path()), ["name"]);
    assert!(fs::read(directory.path().join("name")).unwrap() == payload);
}
