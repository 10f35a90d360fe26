//! Sealing: what happens when the kernel refuses a step.

use std::iter::repeat_n;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use nix::errno::Errno;

use super::{ERRORS, pattern};
use crate::rope::Rope;
use crate::sys::mock::{self, Call};
use crate::view::{Sealed, View};

const LEN: usize = 300_000;

fn view() -> View {
    let mut rope = Rope::for_handover().unwrap();
    rope.extend_from_slice(&pattern(LEN));
    rope.finalize().unwrap()
}

fn refusals() -> impl Iterator<Item = Errno> {
    ERRORS.iter().copied().chain([Errno::EBUSY, Errno::EACCES, Errno::EINVAL])
}

#[test]
#[cfg_attr(any(miri, ropewalk_portable), ignore = "needs memory maps")]
fn a_view_that_cannot_be_sealed_is_whole_and_can_be_later() {
    let bytes = pattern(LEN);
    for error in refusals() {
        for call in [Call::Map, Call::Resize, Call::Seal] {
            let view = view();
            let refused = mock::refusing(call, [Some(error)], || view.seal()).unwrap_err();
            assert!(
                call == Call::Map
                    || error != Errno::EBUSY
                    || refused.kind() == std::io::ErrorKind::ResourceBusy
            );
            let view = refused.into_view();
            assert!(*view == bytes && view.copied_bytes() == 0);
            // Its bytes are no longer the pool's if the memfd was refused the seals, and the view does not tell.
            let (clone, part) = (view.clone(), view.slice(10..));
            assert!(*clone == bytes && *part == bytes[10..]);
            drop((clone, part));
            let again = mock::refusing(Call::Seal, [Some(error)], || view.seal()).unwrap_err().into_view();
            let memfds = mock::refusing(Call::Memfd, [Some(error)], || again.seal());
            assert!(*memfds.expect("needs no other memfd") == bytes, "{call:?} {error}");
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "needs memory maps")]
fn a_copy_that_cannot_be_sealed_leaves_the_view() {
    let bytes = pattern(LEN);
    let view = || Rope::from(bytes.clone()).finalize().unwrap();
    for error in refusals() {
        for call in [Call::Memfd, Call::Resize, Call::Seal, Call::Map] {
            let refused = mock::refusing(call, [Some(error)], || view().seal()).unwrap_err();
            assert!(*refused.into_view() == bytes, "{call:?} {error}");
            assert!(mock::refusing(call, [Some(error)], || Sealed::copy_of(&bytes)).is_err());
        }
        // Without a memfd there is nothing to seal, so anonymous memory does not stand in for it.
        let refused = mock::refusing(Call::Memfd, repeat_n(Some(error), 100), Rope::for_handover);
        let expected = if cfg!(ropewalk_portable) { None } else { Some(error as i32) };
        assert_eq!(refused.unwrap_err().raw_os_error(), expected);
    }
}

#[test]
#[cfg_attr(any(miri, ropewalk_portable), ignore = "needs memory maps")]
fn without_cachestat_holes_are_looked_for() {
    for len in [0, 1, 8193, LEN] {
        let bytes = pattern(len);
        let received = |sealed: &Sealed| Sealed::from_fd(sealed.as_fd().try_clone_to_owned().unwrap());
        let sealed = Sealed::copy_of(&bytes).unwrap();
        let old = mock::refusing(Call::CacheStat, [Some(Errno::ENOSYS)], || received(&sealed));
        assert!(*old.unwrap() == bytes && *received(&sealed).unwrap() == bytes);
        let position = std::io::Seek::stream_position(&mut &std::fs::File::from(
            sealed.as_fd().try_clone_to_owned().unwrap(),
        ));
        assert_eq!(position.unwrap(), 0);
    }
}

#[test]
#[cfg_attr(ropewalk_portable, ignore = "needs memory maps")]
fn where_the_kernel_does_not_splice_a_payload_is_received_all_the_same() {
    let cases = [
        vec![(Call::Splice, [Some(Errno::EINVAL)].into())],
        vec![(Call::Splice, [Some(Errno::EINTR), Some(Errno::EPERM)].into())],
        vec![(Call::Splice, [Some(Errno::EAGAIN)].into())],
        // The bytes are in the pipe.
        vec![(Call::SpliceOut, [Some(Errno::ENOMEM)].into())],
        vec![(Call::SpliceOut, [Some(Errno::EINTR), Some(Errno::EPERM)].into())],
        vec![(Call::Allocate, [Some(Errno::EOPNOTSUPP)].into())],
    ];
    let payload = pattern(3 << 20);
    for (case, refusals) in cases.into_iter().enumerate() {
        let (mut here, there) = UnixStream::pair().unwrap();
        let rest = payload[1 << 20..].to_vec();
        let sender = std::thread::spawn(move || std::io::Write::write_all(&mut here, &rest));
        let mut rope = Rope::for_handover().unwrap();
        rope.extend_from_slice(&payload[..1 << 20]);
        // The mock kernel has no sockets, so the rope has to know this one.
        rope.readv_from(&there).unwrap();
        let before = rope.len();
        let taken = mock::refusing_some(refusals, || rope.splice_from(&there));
        assert_eq!(taken.is_err(), case == 2, "{taken:?}");
        assert_eq!(taken.is_ok_and(|taken| taken > 0), [3, 4].contains(&case), "case {case}");
        assert!(rope == payload[..rope.len()] && rope.len() >= before, "case {case}");
        rope.assert_invariants();
        while rope.splice_from(&there).unwrap() > 0 {}
        sender.join().unwrap().unwrap();
        assert!(rope == payload, "case {case}");
        assert!(*rope.finalize().unwrap().seal().unwrap() == payload, "case {case}");
    }
}
