//! Numbers on the command lines of the examples. One that means nothing is an error of the command line, before anything begins.
#![allow(dead_code)] // each program uses a part

use std::time::Duration;

use bytesize::ByteSize;

/// Parses a time: above 0, at most 2^32 seconds, so that no sum of times overflows.
pub(crate) fn seconds(text: &str) -> Result<Duration, String> {
    time(text, 1.0).ok_or_else(|| "a number of seconds above 0 is needed, at most 4294967296".into())
}

/// Parses a time in minutes, as above.
pub(crate) fn minutes(text: &str) -> Result<Duration, String> {
    time(text, 60.0).ok_or_else(|| "a number of minutes above 0 is needed, at most 71582788".into())
}

fn time(text: &str, unit: f64) -> Option<Duration> {
    let time = Duration::try_from_secs_f64(text.parse::<f64>().ok()? * unit).ok()?;
    (!time.is_zero() && time <= Duration::from_secs(1 << 32)).then_some(time)
}

/// Parses the bytes of a pool in memory, 1 to 4 TiB.
pub(crate) fn memory(text: &str) -> Result<ByteSize, String> {
    bytes(text, 1, ByteSize::tib(4))
}

/// Parses the bytes of a file, 1 to 1 PiB.
pub(crate) fn disk(text: &str) -> Result<ByteSize, String> {
    bytes(text, 1, ByteSize::pib(1))
}

/// Parses a number of bytes, 0 included.
pub(crate) fn size(text: &str) -> Result<ByteSize, String> {
    text.parse().map_err(|_| "a number of bytes such as 1000000, 64MiB or 1GiB is needed".into())
}

/// Parses `least` to `most` bytes.
pub(crate) fn bytes(text: &str, least: u64, most: ByteSize) -> Result<ByteSize, String> {
    let size = size(text)?;
    if (least..=most.0).contains(&size.0) {
        return Ok(size);
    }
    Err(format!("{least} B to {} are possible", most.display().iec()))
}
