//! Views: what is borrowed, mapped and copied, and what happens when the kernel refuses.

use bytes::Bytes;
use nix::errno::Errno;

use super::{ERRORS, pattern};
use crate::pool::Pool;
use crate::rope::Rope;
use crate::sys::script::{self, Call};

const MIB: usize = 1 << 20;

fn filled(pool: &Pool, bytes: &[u8]) -> Rope {
    let mut rope = Rope::in_pool(pool);
    rope.extend_from_slice(bytes);
    rope
}

/// Two ropes' worth of `bytes` in one, from places that do not touch.
fn in_two_places(pool: &Pool, bytes: &[u8]) -> (Rope, Rope) {
    let (one, other) = bytes.split_at(bytes.len() / 2);
    let mut rope = filled(pool, one);
    let between = filled(pool, b"something between them");
    rope.append(filled(pool, other));
    (rope, between)
}

#[test]
#[cfg_attr(miri, ignore = "needs memory maps")]
fn pages_in_two_places_are_mapped() {
    let pool = Pool::new().unwrap();
    let bytes = pattern(2 * MIB);
    let (rope, _between) = in_two_places(&pool, &bytes);
    let view = rope.finalize().unwrap();
    assert_eq!((view.copied_bytes(), view.mapped_bytes(), view.num_maps()), (0, 2 * MIB, 2));
    assert!(*view == bytes);
}

#[test]
#[cfg_attr(miri, ignore = "needs memory maps")]
fn a_header_in_front_costs_no_more_than_two_pages() {
    let pool = Pool::new().unwrap();
    let bytes = pattern(8 * MIB + 123);
    for header in [1, 40, 4095, 4096, 4097] {
        let mut rope = filled(&pool, &bytes);
        rope.push_front(vec![b'h'; header]);
        let view = rope.finalize().unwrap();
        assert!(view.copied_bytes() <= 2 * pool.page_size(), "{header}: {view:?}");
        assert!(view[..header].iter().all(|&byte| byte == b'h'));
        assert!(view[header..] == bytes);
    }
}

#[test]
#[cfg_attr(miri, ignore = "needs memory maps")]
fn what_is_reserved_elsewhere_goes_on_where_in_a_page_the_rope_ended() {
    let pool = Pool::new().unwrap();
    let bytes = pattern(2 * MIB + 100);
    let (first, rest) = bytes.split_at(MIB + 100);
    // While the pool is in use, those that follow are in one lane, one behind the other.
    let _before = filled(&pool, b"something");
    let mut rope = filled(&pool, first);
    let _in_the_way = filled(&pool, &[0xff; MIB]);
    rope.reserve(rest.len()).unwrap();
    rope.extend_from_slice(rest);
    let view = rope.finalize().unwrap();
    assert!(*view == bytes);
    assert!(view.num_maps() == 2 && view.copied_bytes() <= pool.page_size(), "{view:?}");
}

#[test]
#[cfg_attr(miri, ignore = "needs memory maps")]
fn a_refused_map_is_a_copy() {
    let pool = Pool::new().unwrap();
    let bytes = pattern(2 * MIB);
    for refused in ERRORS.iter().copied().chain([Errno::EACCES, Errno::ENFILE, Errno::EINVAL]) {
        for before in [vec![], vec![None]] {
            let (rope, _between) = in_two_places(&pool, &bytes);
            let answers = before.into_iter().chain([Some(refused)]);
            let view = script::refusing(Call::Map, answers, || rope.finalize().unwrap());
            assert_eq!((view.copied_bytes(), view.num_maps()), (2 * MIB, 0));
            assert!(*view == bytes);
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "needs memory maps")]
fn without_room_for_a_view_it_is_a_copy() {
    let pool = Pool::new().unwrap();
    let bytes = pattern(2 * MIB);
    for &refused in ERRORS {
        for before in [vec![], vec![None]] {
            let (mut rope, _between) = in_two_places(&pool, &bytes);
            rope.push_front("a header from elsewhere");
            let answers = before.into_iter().chain([Some(refused)]);
            let view = script::refusing(Call::Zeros, answers, || rope.finalize().unwrap());
            assert_eq!((view.copied_bytes(), view.num_maps()), (view.len(), 0));
            assert!(view[23..] == bytes);
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "needs memory maps")]
fn where_somebody_else_has_mapped_something_the_view_is_reserved_first() {
    let pool = Pool::new().unwrap();
    let bytes = pattern(2 * MIB);
    for before in [vec![], vec![None]] {
        let (mut rope, _between) = in_two_places(&pool, &bytes);
        rope.push_front("a header from elsewhere");
        let answers = before.into_iter().chain([Some(Errno::EEXIST)]);
        let view = script::refusing(Call::Map, answers, || rope.finalize().unwrap());
        assert_eq!(view.num_maps(), 2);
        assert!(view[23..] == bytes);
    }
}

#[test]
#[cfg_attr(miri, ignore = "needs memory maps")]
fn threads_do_not_map_over_each_other() {
    std::thread::scope(|scope| {
        for thread in 0..8 {
            scope.spawn(move || {
                let pool = Pool::new().unwrap();
                let bytes = vec![thread; MIB];
                for _ in 0..50 {
                    let (rope, _between) = in_two_places(&pool, &bytes);
                    let view = rope.finalize().unwrap();
                    assert_eq!((view.copied_bytes(), view.num_maps()), (0, 2));
                    assert!(*view == bytes);
                }
            });
        }
    });
}

#[test]
#[cfg_attr(miri, ignore = "needs memory maps")]
fn mapped_pages_lie_in_2_mib_as_they_do_in_the_arena() {
    let pool = Pool::new().unwrap();
    let (rope, _between) = in_two_places(&pool, &pattern(6 * MIB));
    let mut tail = rope.slice(3 * MIB..);
    tail.append(rope.slice(..3 * MIB));
    let place = pool.offset_of(tail.chunks().next().unwrap()).unwrap();
    let view = tail.finalize().unwrap();
    assert_eq!((view.num_maps(), view.as_ptr().addr() % (2 * MIB)), (2, place % (2 * MIB)));
}

#[test]
#[cfg_attr(miri, ignore = "needs memory maps")]
fn a_view_outlives_everything_else() {
    let pool = Pool::new().unwrap();
    let bytes = pattern(2 * MIB);
    let (rope, between) = in_two_places(&pool, &bytes);
    let kept = rope.slice(10..20);
    let view = rope.finalize().unwrap();
    drop(between);
    let other = filled(&pool, &vec![0xff; 4 * MIB]);
    assert!(pool.trim().is_ok());
    drop(pool);
    assert!(*view == bytes);
    assert_eq!(kept, bytes[10..20]);
    let shared = Bytes::from(view.clone());
    drop(view);
    drop(other);
    assert!(shared == bytes);
}

#[test]
fn one_segment_is_the_view() {
    let bytes = Bytes::from(pattern(100));
    let view = Rope::from(bytes.clone()).finalize().unwrap();
    assert_eq!(view.as_ptr(), bytes.as_ptr());
    assert_eq!(view.copied_bytes(), 0);
    assert!(Rope::new().finalize().unwrap().is_empty());
}

#[test]
fn segments_from_elsewhere_are_copied() {
    let rope: Rope = ["one", " and ", "another"].into_iter().collect();
    let view = rope.finalize().unwrap();
    assert_eq!(&*view, b"one and another");
    assert_eq!(view.copied_bytes(), view.len());
}
