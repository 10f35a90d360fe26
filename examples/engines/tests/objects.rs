//! object_store against a directory, and against a server with the S3 protocol.
#![allow(clippy::unwrap_used)] // a test may panic

#[path = "support/s3.rs"]
mod s3;
mod support;

use std::io::ErrorKind;

use engines::objects::{get, put, put_in_parts};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload};
use ropewalk::{Pool, Rope};
use support::{lie_in, pattern, received};

const MIB: usize = 1 << 20;

/// Several segments, one of which is not in the pool.
fn rope(pool: &Pool) -> (Rope, Vec<u8>) {
    let bytes = pattern(12 * MIB + 4321);
    let mut rope = received(pool, &bytes[1000..]);
    rope.push_front(bytes[..1000].to_vec());
    (rope, bytes)
}

async fn all_ways(store: &dyn ObjectStore) {
    let pool = Pool::new().unwrap();
    let (rope, bytes) = rope(&pool);
    assert!(rope.num_segments() > 1);
    let (whole, parts) = (Path::from("whole"), Path::from("in/parts"));
    put(store, &whole, &rope).await.unwrap();
    assert_eq!(rope, bytes); // it is still there
    put_in_parts(store, &parts, rope, 5 * MIB, 2).await.unwrap();
    let before = pool.stats();
    assert_eq!(before.bytes_copied, 0);
    for path in [whole, parts] {
        let view = get(store, &path, &pool, bytes.len() as u64).await.unwrap();
        assert!(view == bytes);
        // Received into one run of the pool, or mapped: finalising it has copied nothing.
        assert_eq!(view.copied_bytes(), 0);
    }
    let small = get(store, &Path::from("whole"), &pool, bytes.len() as u64 - 1).await.unwrap_err();
    assert_eq!(small.kind(), ErrorKind::QuotaExceeded);
    let missing = get(store, &Path::from("missing"), &pool, 1).await.unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::NotFound);
    // An empty object, too.
    let empty = Path::from("empty");
    put(store, &empty, &Rope::new()).await.unwrap();
    assert!(get(store, &empty, &pool, 0).await.unwrap().is_empty());
    assert_eq!(pool.stats().in_use, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory() {
    let root = tempfile::tempdir().unwrap();
    all_ways(&LocalFileSystem::new_with_prefix(root.path()).unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_with_the_s3_protocol() {
    let root = tempfile::tempdir().unwrap();
    all_ways(&s3::start(root.path()).await).await;
}

#[test]
fn a_payload_is_the_segments() {
    let pool = Pool::new().unwrap();
    let (rope, bytes) = rope(&pool);
    let payload: PutPayload = rope.segments().collect();
    assert_eq!(payload.content_length(), bytes.len());
    assert!(lie_in(&rope, &payload));
    assert!(!lie_in(&rope, [bytes.as_slice()])); // the check tells a copy
}

/// The pages of stored parts are free while later ones are still being stored.
#[tokio::test(flavor = "multi_thread")]
async fn parts_free_their_pages() {
    let root = tempfile::tempdir().unwrap();
    let store = LocalFileSystem::new_with_prefix(root.path()).unwrap();
    let pool = Pool::new().unwrap();
    let rope = received(&pool, &pattern(8 * MIB));
    let mut upload = store.put_multipart(&Path::from("parts")).await.unwrap();
    let mut rope = rope;
    let before = pool.stats().in_use;
    while !rope.is_empty() {
        upload.put_part(rope.split_to(2 * MIB).into_iter().collect()).await.unwrap();
        assert!(pool.stats().in_use <= before.min(rope.len() as u64 + MIB as u64));
    }
    upload.complete().await.unwrap();
}
