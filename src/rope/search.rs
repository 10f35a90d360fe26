//! Finding bytes that may lie across segments.

use memchr::memmem::Finder;

use super::Rope;

impl Rope {
    /// The position of the first occurrence of `needle`, wherever segments begin and end.
    ///
    /// O(len + needle); copies no more than twice the needle per segment. An empty needle is at 0.
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
        let Some(overlap) = needle.len().checked_sub(1) else { return Some(0) };
        let finder = Finder::new(needle);
        let mut position = 0;
        // The last bytes before `position`, in which a match may have begun: at most `overlap`.
        let mut before = Vec::with_capacity(2 * overlap);
        for chunk in self.chunks() {
            let carried = before.len();
            before.extend_from_slice(&chunk[..chunk.len().min(overlap)]);
            if let Some(at) = finder.find(&before) {
                return Some(position - carried + at);
            }
            if let Some(at) = finder.find(chunk) {
                return Some(position + at);
            }
            if chunk.len() > overlap {
                before.clear();
                before.extend_from_slice(&chunk[chunk.len() - overlap..]);
            } else {
                before.drain(..before.len().saturating_sub(overlap));
            }
            position += chunk.len();
        }
        None
    }
}
