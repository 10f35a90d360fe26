//! The objects, by name.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::http::{HeaderMap, HeaderValue, StatusCode};
use ropewalk::Rope;

use crate::conditions::Version;
use crate::objects::Refusal;

/// One version of an object.
#[derive(Debug)]
pub(crate) struct Object {
    pub(crate) content: Rope,
    /// From the SHA-256 of the content: a strong validator.
    pub(crate) etag: HeaderValue,
    /// In whole seconds, as HTTP dates are.
    pub(crate) modified: SystemTime,
    /// Whether no version before this one can have the same `modified`.
    pub(crate) alone_in_its_second: bool,
    /// What the client said of the content, such as its type.
    pub(crate) metadata: HeaderMap,
    pub(crate) trailers: Option<HeaderMap>,
}

impl Object {
    /// One that gets its date when it is stored.
    pub(crate) fn new(
        content: Rope,
        etag: HeaderValue,
        metadata: HeaderMap,
        trailers: Option<HeaderMap>,
    ) -> Object {
        Object { content, etag, modified: UNIX_EPOCH, alone_in_its_second: false, metadata, trailers }
    }

    /// Its validators.
    pub(crate) fn version(&self) -> Version {
        let is_past = SystemTime::now() >= self.modified + Duration::from_secs(1);
        Version {
            etag: Some(self.etag.clone()),
            modified: self.modified,
            date_is_strong: self.alone_in_its_second && is_past,
        }
    }
}

#[derive(Debug)]
pub(crate) struct Store {
    inner: Mutex<Inner>,
    max_objects: usize,
}

#[derive(Debug)]
struct Inner {
    objects: HashMap<String, Arc<Object>>,
    /// The last second in which an object was stored, replaced or removed.
    changed: SystemTime,
}

impl Store {
    pub(crate) fn new(max_objects: usize) -> Store {
        let inner = Inner { objects: HashMap::new(), changed: UNIX_EPOCH };
        Store { inner: Mutex::new(inner), max_objects }
    }

    pub(crate) fn get(&self, name: &str) -> Option<Arc<Object>> {
        self.inner().objects.get(name).cloned()
    }

    /// Stores an object, if `check` lets it replace the current one. Returns whether there was one.
    pub(crate) fn put(
        &self,
        name: &str,
        mut object: Object,
        check: impl FnOnce(Option<&Object>) -> Result<(), Refusal>,
    ) -> Result<bool, Refusal> {
        let mut inner = self.inner();
        check(inner.objects.get(name).map(|object| &**object))?;
        let is_full = inner.objects.len() >= self.max_objects;
        object.modified = this_second();
        object.alone_in_its_second = inner.changed < object.modified;
        inner.changed = object.modified;
        let object = Arc::new(object);
        // What is replaced is freed when the lock is no longer held.
        let replaced = match inner.objects.entry(name.to_owned()) {
            Entry::Occupied(mut entry) => Some(entry.insert(object)),
            Entry::Vacant(_) if is_full => return Err(self.full()),
            Entry::Vacant(entry) => {
                entry.insert(object);
                None
            }
        };
        drop(inner);
        Ok(replaced.is_some())
    }

    /// Removes an object, if `check` allows it. Returns whether there was one.
    pub(crate) fn remove(
        &self,
        name: &str,
        check: impl FnOnce(&Object) -> Result<(), Refusal>,
    ) -> Result<bool, Refusal> {
        let mut inner = self.inner();
        let Some(object) = inner.objects.get(name) else { return Ok(false) };
        check(object)?;
        inner.changed = this_second();
        let removed = inner.objects.remove(name);
        drop(inner);
        Ok(removed.is_some())
    }

    fn full(&self) -> Refusal {
        let why = format!("{} objects are stored; delete some", self.max_objects);
        Refusal::new(StatusCode::INSUFFICIENT_STORAGE, why)
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn this_second() -> SystemTime {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UNIX_EPOCH + Duration::from_secs(since.as_secs())
}
