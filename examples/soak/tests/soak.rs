//! The program `soak`, as it is run by hand.
#![allow(clippy::unwrap_used)] // a test may panic

#[path = "../../http_upload/tests/support/numbers.rs"]
mod numbers;

use std::path::PathBuf;
use std::process::Command;

/// The example, which `cargo test` builds beside the tests.
fn program() -> PathBuf {
    std::env::current_exe().unwrap().ancestors().nth(2).unwrap().join("examples/soak")
}

#[test]
fn a_short_run_leaves_nothing() {
    let output = Command::new(program()).args(["--minutes", "0.02", "--threads", "2"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && text.ends_with("nothing was lost, nothing is left\n"), "{text}");
}

#[test]
fn numbers_that_mean_nothing() {
    let options = ["--minutes", "--threads", "--capacity"];
    numbers::assert_refused(program().to_str().unwrap(), &[], &options, &[]);
}
