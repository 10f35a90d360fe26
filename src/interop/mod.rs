//! Floor 5: other people's traits, one file each.

mod buf;
mod buf_mut;
mod convert;
mod std_io;
