//! The program `spill`, as it is run by hand.
#![allow(clippy::unwrap_used)] // a test may panic

#[path = "../../http_upload/tests/support/numbers.rs"]
mod numbers;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn program() -> PathBuf {
    std::env::current_exe().unwrap().ancestors().nth(2).unwrap().join("examples/spill")
}

/// Runs the example, which `cargo test` builds beside the tests.
fn spill(args: &[&str], directory: &Path) -> Output {
    Command::new("timeout").arg("60").arg(program()).args(args).arg(directory).output().unwrap()
}

#[test]
fn a_payload_larger_than_memory_comes_back_and_leaves_no_file() {
    let directory = tempfile::tempdir().unwrap();
    for (way, last) in [(None, "sent back"), (Some("--memory"), "sent back"), (Some("--splice"), "spliced")] {
        let args: Vec<_> = ["--size=9MiB", "--capacity=1MiB"].into_iter().chain(way).collect();
        let output = spill(&args, directory.path());
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains(last), "{way:?}: {output:?}");
        assert!(fs::read_dir(directory.path()).unwrap().next().is_none(), "{way:?} left a file");
    }
}

#[test]
fn what_cannot_be_done_is_an_error_in_one_line() {
    for args in [&[][..], &["--splice"]] {
        let output = spill(args, Path::new("/nonexistent"));
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), text.lines().count()), (Some(1), 1), "{args:?}: {text}");
        assert!(text.starts_with("spill: "), "{text}");
    }
}

#[test]
fn numbers_that_mean_nothing() {
    numbers::assert_refused(program().to_str().unwrap(), &["/var/tmp"], &["--size", "--capacity"], &[]);
}
