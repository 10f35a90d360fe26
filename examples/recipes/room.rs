//! Waits for room in a pool.

use std::io;
use std::time::Duration;

use ropewalk::{Pool, Rope};

/// Returns an empty rope with room for `bytes` reserved, as soon as the pool has it; `TimedOut` after `time`.
pub async fn rope_with_room(pool: &Pool, bytes: usize, time: Duration) -> io::Result<Rope> {
    let room = tokio::time::timeout(time, pool.wait_for_room(bytes)).await??;
    Ok(Rope::in_room(room))
}
