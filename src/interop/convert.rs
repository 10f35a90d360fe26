//! Conversions and comparisons.

use bytes::{Buf, Bytes, BytesMut};

use crate::rope::Rope;

macro_rules! from_owned {
    ($($from:ty),*) => {$(
        impl From<$from> for Rope {
            /// Converts into one segment without a copy.
            fn from(bytes: $from) -> Rope {
                let mut rope = Rope::new();
                rope.push(bytes);
                rope
            }
        }
    )*};
}

from_owned!(Bytes, BytesMut, Vec<u8>, Box<[u8]>, String, &'static [u8], &'static str);

macro_rules! into_owned {
    ($($into:ty),*) => {$(
        impl From<Rope> for $into {
            /// Copies, unless the rope is one segment of the heap that nobody shares.
            fn from(mut rope: Rope) -> $into {
                if rope.num_segments() > 1 {
                    let mut all = <$into>::with_capacity(rope.len());
                    rope.chunks().for_each(|chunk| all.extend_from_slice(chunk));
                    return all;
                }
                rope.pop_front().unwrap_or_default().into()
            }
        }
    )*};
}

into_owned!(Vec<u8>, BytesMut);

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

impl PartialEq<[u8]> for Rope {
    fn eq(&self, other: &[u8]) -> bool {
        self.len() == other.len() && equal(self.chunks(), std::iter::once(other))
    }
}

impl PartialEq<Rope> for [u8] {
    fn eq(&self, other: &Rope) -> bool {
        other == self
    }
}

macro_rules! equal_as_slice {
    ($($other:ty),*) => {$(
        impl PartialEq<$other> for Rope {
            fn eq(&self, other: &$other) -> bool {
                *self == other[..]
            }
        }

        impl PartialEq<Rope> for $other {
            fn eq(&self, other: &Rope) -> bool {
                *other == self[..]
            }
        }
    )*};
}

equal_as_slice!(&[u8], Vec<u8>, Bytes);

impl<const N: usize> PartialEq<[u8; N]> for Rope {
    fn eq(&self, other: &[u8; N]) -> bool {
        *self == other[..]
    }
}

impl<const N: usize> PartialEq<&[u8; N]> for Rope {
    fn eq(&self, other: &&[u8; N]) -> bool {
        *self == other[..]
    }
}

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
