//! OpenDAL's buffers, with its memory service.
#![allow(clippy::unwrap_used)] // a test may panic

mod support;

use engines::opendal::{from_buffer, to_buffer};
use opendal::Operator;
use opendal::services::Memory;
use ropewalk::Pool;
use support::{lie_in, pattern, received};

const LEN: usize = 5 << 20;

#[test]
fn a_buffer_and_back_copies_nothing() {
    let pool = Pool::new().unwrap();
    let bytes = pattern(LEN);
    let rope = received(&pool, &bytes);
    let kept = rope.clone();
    let buffer = to_buffer(rope);
    assert!(lie_in(&kept, buffer.clone()));
    let rope = from_buffer(buffer.clone(), &pool);
    assert!(lie_in(&kept, rope.chunks()));
    // What `to_bytes` copies as a whole is borrowed, since the pieces are neighbours in the pool.
    let view = rope.finalize().unwrap();
    assert!(view == bytes && lie_in(&kept, buffer.clone()));
    assert_eq!((view.copied_bytes(), pool.stats().bytes_copied), (0, 0));
    let joined = buffer.to_bytes();
    assert!(!joined.as_ptr_range().contains(&view.as_ptr()) && view == joined);
}

#[tokio::test]
async fn an_operator_takes_and_gives_ropes() {
    let pool = Pool::new().unwrap();
    let bytes = pattern(LEN);
    let operator = Operator::new(Memory::default()).unwrap();
    operator.write("object", to_buffer(received(&pool, &bytes))).await.unwrap();
    let rope = from_buffer(operator.read("object").await.unwrap(), &pool);
    assert_eq!(rope, bytes);
    let part = operator.read_with("object").range(1000..3_000_000).await.unwrap();
    assert!(from_buffer(part, &pool).finalize().unwrap() == bytes[1000..3_000_000]);
}
