//! serde: ropes and views as byte strings, or as sequences of numbers in formats without byte strings.

use std::borrow::Cow;
use std::fmt;

use serde_core::de::{Error, SeqAccess, Visitor};
use serde_core::{Deserialize, Deserializer, Serialize, Serializer};

use crate::rope::Rope;
use crate::view::View;

/// Serialises the bytes. A format requires them contiguous, so a rope of several segments is copied.
///
/// # Examples
///
/// ```
/// use ropewalk::Rope;
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize)]
/// struct Record {
///     name: String,
///     content: Rope,
/// }
///
/// let record = Record { name: "a".into(), content: Rope::from(vec![1, 2]) };
/// let json = serde_json::to_string(&record)?; // JSON has no byte strings
/// assert_eq!(json, r#"{"name":"a","content":[1,2]}"#);
/// assert_eq!(serde_json::from_str::<Record>(&json)?.content, record.content);
/// # Ok::<(), serde_json::Error>(())
/// ```
impl Serialize for Rope {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut chunks = self.chunks();
        let bytes = match (chunks.next(), chunks.next()) {
            (Some(only), None) => Cow::Borrowed(only),
            _ => Cow::Owned(self.to_vec()),
        };
        serializer.serialize_bytes(&bytes)
    }
}

impl Serialize for View {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self)
    }
}

/// Deserialises into a rope on the heap.
impl<'de> Deserialize<'de> for Rope {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Rope, D::Error> {
        deserializer.deserialize_byte_buf(Bytes)
    }
}

/// Deserialises into a view on the heap.
impl<'de> Deserialize<'de> for View {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<View, D::Error> {
        Rope::deserialize(deserializer)?.finalize().map_err(D::Error::custom)
    }
}

struct Bytes;

impl<'de> Visitor<'de> for Bytes {
    type Value = Rope;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("bytes")
    }

    fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Rope, E> {
        Ok(Rope::from(bytes.to_vec()))
    }

    fn visit_byte_buf<E>(self, bytes: Vec<u8>) -> Result<Rope, E> {
        Ok(Rope::from(bytes))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Rope, E> {
        self.visit_bytes(text.as_bytes())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut numbers: A) -> Result<Rope, A::Error> {
        let mut rope = Rope::new();
        while let Some(byte) = numbers.next_element::<u8>()? {
            rope.extend_from_slice(&[byte]);
        }
        Ok(rope)
    }
}
