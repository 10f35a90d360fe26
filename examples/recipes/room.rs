//! Waits for room in a pool.

use std::io::{self, ErrorKind};
use std::time::Duration;

use ropewalk::{Pool, Rope};

/// Returns an empty rope with `bytes` reserved, as soon as the pool has room; `TimedOut` after `time`.
pub async fn rope_with_room(pool: &Pool, bytes: usize, time: Duration) -> io::Result<Rope> {
    if bytes as u64 > pool.stats().capacity {
        return Err(ErrorKind::OutOfMemory.into()); // no wait would help
    }
    let mut rope = Rope::in_pool(pool);
    tokio::time::timeout(time, reserve(pool, &mut rope, bytes)).await?;
    Ok(rope)
}

/// Waits in turn. That is a chance, not a reservation: keep the place until the attempt has worked.
async fn reserve(pool: &Pool, rope: &mut Rope, bytes: usize) {
    let mut turn = pool.wait_for_room(bytes);
    loop {
        (&mut turn).await;
        if rope.reserve(bytes).is_ok() {
            return;
        }
    }
}
