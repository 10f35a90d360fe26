//! A progress bar on standard error; none where that is not a terminal.

use indicatif::{ProgressBar, ProgressStyle};

const KNOWN: &str = "{msg:18} {bar:30} {bytes} of {total_bytes}, {bytes_per_sec}";
const UNKNOWN: &str = "{msg:18} {spinner} {bytes}, {bytes_per_sec}";

/// Returns a bar for so many bytes, or for an unknown number.
pub(crate) fn bar(bytes: Option<u64>) -> ProgressBar {
    let (bar, template) = match bytes {
        Some(bytes) => (ProgressBar::new(bytes), KNOWN),
        None => (ProgressBar::no_length(), UNKNOWN),
    };
    bar.with_style(ProgressStyle::with_template(template).expect("both templates are well formed"))
}
