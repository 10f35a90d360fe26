//! Finding bytes that may lie across segments.

use memchr::memmem::Finder;

use super::Rope;

impl Rope {
    /// Returns the position of the first occurrence of `needle`, wherever segments begin and end. An empty needle
    /// is at 0.
    ///
    /// Costs O(len + needle), however many segments there are. Bytes of segments shorter than the needle are copied
    /// once, of longer ones no more than the needle's length.
    ///
    /// # Examples
    ///
    /// ```
    /// let rope: ropewalk::Rope = ["GET / HTTP/1.1\r", "\n\r", "\nbody"].into_iter().collect();
    /// assert_eq!(rope.find(b"\r\n\r\n"), Some(14));
    /// assert_eq!(rope.find(b"\r\r"), None);
    /// ```
    #[must_use]
    pub fn find(&self, needle: &[u8]) -> Option<usize> {
        self.find_from(0, needle)
    }

    /// Returns the position of the first occurrence of `needle` that starts at `position` or behind it. An empty
    /// needle is at `position`.
    ///
    /// When more has arrived, a search goes on where the last one ended: at the length that the rope had then, less
    /// the needle's, plus 1. Costs O(log n + bytes from there on + needle) for n segments.
    ///
    /// # Panics
    ///
    /// If `position` is beyond the rope.
    ///
    /// # Examples
    ///
    /// ```
    /// let rope: ropewalk::Rope = ["one\n", "two\nthr", "ee\n"].into_iter().collect();
    /// assert_eq!(rope.find_from(4, b"\n"), Some(7));
    /// assert_eq!(rope.find_from(8, b"three"), Some(8));
    /// assert_eq!(rope.find_from(9, b"three"), None);
    /// ```
    #[must_use]
    #[track_caller]
    pub fn find_from(&self, position: usize, needle: &[u8]) -> Option<usize> {
        self.check("find_from", position);
        let Some(overlap) = needle.len().checked_sub(1) else { return Some(position) };
        let index = self.segments.index_of(position);
        let mut skip = position - self.segments.start_of(index);
        let chunks = self.chunks_from(index).map(|chunk| &chunk[std::mem::take(&mut skip)..]);
        let finder = Finder::new(needle);
        let mut window = Window { finder: &finder, overlap, start: position, bytes: Vec::new() };
        for chunk in chunks {
            let found = if chunk.len() > overlap { window.cross(chunk) } else { window.collect(chunk) };
            if found.is_some() {
                return found;
            }
        }
        window.search()
    }
}

/// The last bytes before a chunk, in which a match may have begun.
struct Window<'a> {
    finder: &'a Finder<'a>,
    /// Bytes of the needle less one.
    overlap: usize,
    /// Where the window starts in the rope.
    start: usize,
    /// Searched but for its first `overlap` bytes if it is no longer than that; else not searched as a whole yet.
    bytes: Vec<u8>,
}

impl Window<'_> {
    fn search(&self) -> Option<usize> {
        self.finder.find(&self.bytes).map(|at| self.start + at)
    }

    /// Searches across the seam to a chunk as long as the needle, and in the chunk.
    fn cross(&mut self, chunk: &[u8]) -> Option<usize> {
        let chunk_start = self.start + self.bytes.len();
        if !self.bytes.is_empty() {
            self.bytes.extend_from_slice(&chunk[..self.overlap]);
            let found = self.search();
            if found.is_some() {
                return found;
            }
        }
        if let Some(at) = self.finder.find(chunk) {
            return Some(chunk_start + at);
        }
        let keep = chunk.len() - self.overlap;
        self.start = chunk_start + keep;
        self.bytes.clear();
        self.bytes.extend_from_slice(&chunk[keep..]);
        None
    }

    /// Takes a chunk that is shorter than the needle, and searches whenever so many have come that each byte is
    /// searched twice at most.
    fn collect(&mut self, chunk: &[u8]) -> Option<usize> {
        self.bytes.extend_from_slice(chunk);
        let done = self.bytes.len().saturating_sub(self.overlap);
        if done < self.overlap.max(MIN_SEARCH) {
            return None;
        }
        let found = self.search();
        self.bytes.drain(..done);
        self.start += done;
        found
    }
}

/// Fewest bytes that are searched at a time: for short needles in shorter segments.
const MIN_SEARCH: usize = 64;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The position by the obvious way, in a flat copy.
    fn naive(flat: &[u8], from: usize, needle: &[u8]) -> Option<usize> {
        (from..=flat.len()).find(|&at| flat[at..].starts_with(needle))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 2 } else { 2000 }))]

        #[test]
        fn finds_what_a_flat_search_finds(
            pieces in prop::collection::vec(prop::collection::vec(0..2u8, 0..90), 0..12),
            needle in prop::collection::vec(0..2u8, 0..70),
            in_tail in prop::collection::vec(0..2u8, 0..20),
            from in any::<prop::sample::Index>(),
            cut in any::<(prop::sample::Index, prop::sample::Index)>(),
        ) {
            let mut rope: Rope = pieces.into_iter().collect();
            rope.extend_from_slice(&in_tail);
            let flat = rope.to_vec();
            let from = from.index(flat.len() + 1);
            prop_assert_eq!(rope.find(&needle), naive(&flat, 0, &needle));
            prop_assert_eq!(rope.find_from(from, &needle), naive(&flat, from, &needle));
            // A needle that is there.
            let (a, b) = (cut.0.index(flat.len() + 1), cut.1.index(flat.len() + 1));
            let there = &flat[a.min(b)..a.max(b)];
            prop_assert_eq!(rope.find_from(from, there), naive(&flat, from, there));
        }

        /// Segments of a few bytes, so that the window is filled and searched many times.
        #[test]
        fn finds_across_many_tiny_segments(
            flat in prop::collection::vec(0..2u8, 0..if cfg!(miri) { 300 } else { 2000 }),
            size in 1..5usize,
            at in any::<prop::sample::Index>(),
            len in 0..600usize,
        ) {
            let rope: Rope = flat.chunks(size).map(<[u8]>::to_vec).collect();
            let at = at.index(flat.len() + 1);
            let mut needle = flat[at..flat.len().min(at + len)].to_vec();
            prop_assert_eq!(rope.find(&needle), naive(&flat, 0, &needle));
            needle.push(2);
            prop_assert_eq!(rope.find(&needle), None);
        }
    }

    #[test]
    #[should_panic(expected = "find_from: 4 is beyond the rope's 3 bytes")]
    fn beyond_the_rope() {
        let _ = Rope::from("abc").find_from(4, b"");
    }
}
