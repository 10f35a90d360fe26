//! The program `spill`, as it is run by hand.
#![allow(clippy::unwrap_used)] // a test may panic

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

/// Runs the example, which `cargo test` builds beside the tests.
fn spill(args: &[&str], directory: &Path) -> Output {
    let test = std::env::current_exe().unwrap();
    let program = test.ancestors().nth(2).unwrap().join("examples/spill");
    Command::new("timeout").arg("60").arg(program).args(args).arg(directory).output().unwrap()
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
    let directory = tempfile::tempdir().unwrap();
    for (args, directory) in [
        (&[][..], Path::new("/nonexistent")),
        (&["--splice"], Path::new("/nonexistent")),
        (&["--capacity=0"], directory.path()),
        (&["--size=1"], directory.path()),
    ] {
        let output = spill(args, directory);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), text.lines().count()), (Some(1), 1), "{args:?}: {text}");
        assert!(text.starts_with("spill: "), "{text}");
    }
}
