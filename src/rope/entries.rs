//! A double-ended queue that keeps its first few elements inside itself.
//!
//! Both ends cost amortised O(1), so a small rope is put in front of a huge one for what the small one costs. A queue
//! that was long once is not large for ever: its memory is given back when it becomes empty, or when elements come again
//! and a quarter of it or less is used. While it is only emptied nothing is allocated.

use std::collections::VecDeque;
use std::iter::Chain;
use std::slice;

use smallvec::SmallVec;

/// Elements kept inside.
const INLINE: usize = 2;

/// Most elements whose memory is kept in any case.
const KEPT: usize = 64;

#[derive(Clone)]
pub(super) enum Entries<T> {
    /// Never spilled.
    Inline(SmallVec<[T; INLINE]>),
    Heap {
        many: VecDeque<T>,
        /// Whether elements were taken since memory was allocated.
        taken: bool,
    },
}

use self::Entries::{Heap, Inline};

impl<T> Default for Entries<T> {
    fn default() -> Entries<T> {
        Inline(SmallVec::new())
    }
}

impl<T> Entries<T> {
    #[inline]
    pub(super) fn len(&self) -> usize {
        match self {
            Inline(few) => few.len(),
            Heap { many, .. } => many.len(),
        }
    }

    #[inline]
    pub(super) fn get(&self, index: usize) -> Option<&T> {
        match self {
            Inline(few) => few.get(index),
            Heap { many, .. } => many.get(index),
        }
    }

    #[inline]
    pub(super) fn first_mut(&mut self) -> Option<&mut T> {
        match self {
            Inline(few) => few.first_mut(),
            Heap { many, .. } => many.front_mut(),
        }
    }

    #[inline]
    pub(super) fn last(&self) -> Option<&T> {
        match self {
            Inline(few) => few.last(),
            Heap { many, .. } => many.back(),
        }
    }

    #[inline]
    pub(super) fn last_mut(&mut self) -> Option<&mut T> {
        match self {
            Inline(few) => few.last_mut(),
            Heap { many, .. } => many.back_mut(),
        }
    }

    /// All elements in two slices, the second of which may be empty.
    #[inline]
    fn slices(&self) -> (&[T], &[T]) {
        match self {
            Inline(few) => (few, &[]),
            Heap { many, .. } => many.as_slices(),
        }
    }

    /// The elements from `index` on, none if there are fewer. O(1).
    #[inline]
    pub(super) fn iter_from(&self, index: usize) -> Chain<slice::Iter<'_, T>, slice::Iter<'_, T>> {
        let (front, back) = self.slices();
        let behind = index.saturating_sub(front.len());
        front.get(index..).unwrap_or_default().iter().chain(back.get(behind..).unwrap_or_default())
    }

    /// How many of the elements `from..to` meet a condition that those behind one that does not do not meet either.
    /// O(log n).
    #[inline]
    pub(super) fn partition_point(&self, from: usize, to: usize, meets: impl Fn(&T) -> bool) -> usize {
        let (front, back) = self.slices();
        let within = |slice: &[T], start: usize| {
            let from = from.saturating_sub(start).min(slice.len());
            let to = to.saturating_sub(start).min(slice.len()).max(from);
            slice[from..to].partition_point(&meets)
        };
        let in_front = within(front, 0);
        if back.is_empty() || from + in_front < to.min(front.len()) {
            return in_front;
        }
        in_front + within(back, front.len())
    }

    #[inline]
    pub(super) fn push(&mut self, element: T) {
        match self {
            Inline(few) if few.len() < INLINE => few.push(element),
            Heap { many, taken: false } => many.push_back(element),
            _ => self.make_room().push_back(element),
        }
    }

    #[inline]
    pub(super) fn push_front(&mut self, element: T) {
        match self {
            Inline(few) if few.len() < INLINE => few.insert(0, element),
            Heap { many, taken: false } => many.push_front(element),
            _ => self.make_room().push_front(element),
        }
    }

    #[inline]
    pub(super) fn pop(&mut self) -> Option<T> {
        match self {
            Inline(few) => few.pop(),
            Heap { many, .. } => {
                let last = many.pop_back();
                self.note_taken();
                last
            }
        }
    }

    #[inline]
    pub(super) fn pop_front(&mut self) -> Option<T> {
        match self {
            Inline(few) if few.is_empty() => None,
            Inline(few) => Some(few.remove(0)),
            Heap { many, .. } => {
                let first = many.pop_front();
                self.note_taken();
                first
            }
        }
    }

    /// Makes room for so many more.
    pub(super) fn reserve(&mut self, more: usize) {
        match self {
            Inline(few) if few.len() + more <= INLINE => {}
            Inline(_) => drop(self.spill(more)),
            Heap { many, taken } => {
                many.reserve(more);
                *taken = false;
            }
        }
    }

    /// Takes the first `count` elements. O(count).
    #[inline]
    pub(super) fn split_to(&mut self, count: usize) -> Entries<T> {
        if count == 0 { Entries::default() } else { self.drain_to(count) }
    }

    fn drain_to(&mut self, count: usize) -> Entries<T> {
        let front = match self {
            Inline(few) => Inline(few.drain(..count).collect()),
            Heap { many, .. } => many.drain(..count).collect(),
        };
        self.note_taken();
        front
    }

    /// Takes the elements from `index` on. O(of these).
    pub(super) fn split_off(&mut self, index: usize) -> Entries<T> {
        let rest = match self {
            Inline(few) => Inline(few.drain(index..).collect()),
            Heap { many, .. } => many.drain(index..).collect(),
        };
        self.note_taken();
        rest
    }

    /// Gives the memory back if nothing is left.
    #[inline]
    fn note_taken(&mut self) {
        if let Heap { many, taken } = self {
            *taken = true;
            if many.is_empty() && many.capacity() > KEPT {
                *self = Entries::default();
            }
        }
    }

    /// Gives memory back if most is not used, so rarely that each element taken pays for one that is moved at most;
    /// moves what is inside to the heap.
    #[inline(never)]
    fn make_room(&mut self) -> &mut VecDeque<T> {
        if let Heap { many, taken } = self {
            if many.capacity() > KEPT && many.len() <= many.capacity() / 4 {
                many.shrink_to((many.len() * 2).max(KEPT / 2));
            }
            *taken = false;
        }
        self.spill(INLINE)
    }

    /// Moves what is inside to the heap, with room for `more`.
    fn spill(&mut self, more: usize) -> &mut VecDeque<T> {
        if let Inline(few) = self {
            let mut many = VecDeque::with_capacity(few.len() + more);
            many.extend(few.drain(..));
            *self = Heap { many, taken: false };
        }
        match self {
            Heap { many, .. } => many,
            Inline(_) => unreachable!("it was moved just now"),
        }
    }
}

impl<T> FromIterator<T> for Entries<T> {
    fn from_iter<I: IntoIterator<Item = T>>(elements: I) -> Entries<T> {
        let elements = elements.into_iter();
        let mut entries = Entries::default();
        entries.reserve(elements.size_hint().0);
        elements.for_each(|element| entries.push(element));
        entries
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn assert_same(entries: &Entries<u32>, model: &VecDeque<u32>, at: usize) {
        assert_eq!(entries.len(), model.len());
        assert!(entries.iter_from(0).eq(model));
        assert!(entries.iter_from(at).rev().eq(model.iter().skip(at).rev()));
        assert_eq!(entries.get(at), model.get(at));
        assert_eq!(entries.last(), model.back());
        if let Heap { many, taken: false } = entries {
            assert!(many.capacity() <= KEPT.max(many.len() * 4 + 4), "{} of {}", many.len(), many.capacity());
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 4 } else { 300 }))]

        #[test]
        fn behaves_as_a_queue(steps in prop::collection::vec((0..8u8, 0..300usize), 0..60)) {
            let (mut entries, mut model) = (Entries::default(), VecDeque::new());
            let mut next = 0;
            for (kind, count) in steps {
                let at = count.min(model.len());
                for _ in 0..if kind < 4 { count } else { 0 } {
                    next += 1;
                    match kind {
                        0 => (entries.push(next), model.push_back(next)),
                        1 => (entries.push_front(next), model.push_front(next)),
                        2 => (assert_eq!(entries.pop(), model.pop_back()), ()),
                        _ => (assert_eq!(entries.pop_front(), model.pop_front()), ()),
                    };
                    assert_eq!(entries.len(), model.len());
                }
                match kind {
                    4 => assert!(entries.split_to(at).iter_from(0).eq(&model.drain(..at).collect::<Vec<_>>())),
                    5 => assert!(entries.split_off(at).iter_from(0).eq(&model.split_off(at))),
                    6 => entries = entries.clone(),
                    _ => {}
                }
                if kind == 4 || kind == 5 || kind == 2 || kind == 3 {
                    assert_same(&entries, &model, at);
                }
                assert!(entries.iter_from(at).eq(model.iter().skip(at)));
            }
        }

        #[test]
        fn partitions(front in 0..40u32, back in 0..40u32, at in 0..90u32, from in 0..80usize, count in 0..80usize) {
            let mut entries: Entries<u32> = (front..front + back).collect();
            (0..front).rev().for_each(|element| entries.push_front(element));
            let to = from.saturating_add(count);
            let expected = (0..front + back).skip(from).take(count).filter(|&element| element < at).count();
            prop_assert_eq!(entries.partition_point(from, to, |&element| element < at), expected);
        }
    }
}
