//! Conversions and comparisons.

use bytes::{Buf, Bytes, BytesMut};

use crate::rope::Rope;
use crate::view::{Sealed, View};

macro_rules! from_owned {
    ($($from:ty),*) => {$(
        impl From<$from> for Rope {
            /// Converts into one segment without a copy. Copy borrowed bytes with
            /// [`extend_from_slice`](Rope::extend_from_slice).
            fn from(bytes: $from) -> Rope {
                let mut rope = Rope::new();
                rope.push(bytes);
                rope
            }
        }
    )*};
}

from_owned!(Bytes, BytesMut, Vec<u8>, Box<[u8]>, String, &'static [u8], &'static str, View, Sealed);

impl From<Rope> for Vec<u8> {
    /// Converts without a copy if the rope is one unshared piece on the heap: a vector that it was made from, or up to
    /// 2 MiB that were copied or received into a rope without a pool. Else copies: O(len).
    fn from(mut rope: Rope) -> Vec<u8> {
        match rope.take_vec() {
            Some(vec) => vec,
            None if rope.num_segments() > 1 => rope.to_vec(),
            None => rope.pop_front().unwrap_or_default().into(),
        }
    }
}

impl From<Rope> for BytesMut {
    /// Converts as into a vector.
    fn from(rope: Rope) -> BytesMut {
        Bytes::from(Vec::from(rope)).into()
    }
}

impl From<View> for Vec<u8> {
    /// Converts without a copy if the view is an unshared copy on the heap. Else copies: O(len).
    fn from(view: View) -> Vec<u8> {
        Bytes::from(view).into()
    }
}

impl From<Rope> for Bytes {
    /// Converts without a copy if the rope is one segment, else as [`Rope::finalize`] does.
    fn from(mut rope: Rope) -> Bytes {
        rope.copy_to_bytes(rope.len())
    }
}

impl PartialEq for Rope {
    fn eq(&self, other: &Rope) -> bool {
        self.len() == other.len() && equal(self.chunks(), other.chunks())
    }
}

impl Eq for Rope {}

/// Compares the bytes with those of any slice, array, vector, string, `Bytes` or view.
impl<T: AsRef<[u8]> + ?Sized> PartialEq<T> for Rope {
    fn eq(&self, other: &T) -> bool {
        let other = other.as_ref();
        self.len() == other.len() && equal(self.chunks(), std::iter::once(other))
    }
}

/// Compares the bytes with those of any slice, array, vector, string, `Bytes` or view.
impl<T: AsRef<[u8]> + ?Sized> PartialEq<T> for View {
    fn eq(&self, other: &T) -> bool {
        **self == *other.as_ref()
    }
}

impl Eq for View {}

/// The same with the slice, array and so on in front.
macro_rules! equal {
    ($this:ty: $($(const $N:ident)? $other:ty),*) => {$(
        impl$(<const $N: usize>)? PartialEq<$this> for $other {
            fn eq(&self, other: &$this) -> bool {
                other == self
            }
        }
    )*};
}

equal!(Rope: [u8], &[u8], const N [u8; N], const N &[u8; N], Vec<u8>, Bytes, str, &str, String, View);
equal!(View: [u8], &[u8], const N [u8; N], const N &[u8; N], Vec<u8>, Bytes, str, &str, String);

/// Compares two sequences of non-empty chunks of the same total length.
fn equal<'a>(one: impl Iterator<Item = &'a [u8]>, mut other: impl Iterator<Item = &'a [u8]>) -> bool {
    let mut theirs: &[u8] = &[];
    for mut ours in one {
        while !ours.is_empty() {
            if theirs.is_empty() {
                theirs = other.next().unwrap_or_default();
            }
            let count = ours.len().min(theirs.len());
            if count == 0 || ours[..count] != theirs[..count] {
                return false;
            }
            (ours, theirs) = (&ours[count..], &theirs[count..]);
        }
    }
    true
}
