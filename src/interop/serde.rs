//! serde: ropes and views as byte strings, or as sequences of numbers in formats without byte strings.

use std::borrow::Cow;

use bytes::Bytes;
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

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
        Bytes::deserialize(deserializer).map(Rope::from)
    }
}

/// Deserialises into a view on the heap.
impl<'de> Deserialize<'de> for View {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<View, D::Error> {
        Rope::deserialize(deserializer)?.finalize().map_err(D::Error::custom)
    }
}
