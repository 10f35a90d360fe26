//! OpenDAL.

use opendal::Buffer;
use ropewalk::{Pool, Rope};

/// Converts without a copy: the buffer has the rope's segments.
pub fn to_buffer(rope: Rope) -> Buffer {
    rope.into_iter().collect()
}

/// Converts without a copy. `finalize` of it is `to_bytes`, but borrows or maps what came from this pool.
pub fn from_buffer(buffer: Buffer, pool: &Pool) -> Rope {
    let mut rope = Rope::in_pool(pool);
    rope.extend(buffer);
    rope
}
