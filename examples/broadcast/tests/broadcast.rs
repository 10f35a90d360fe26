//! The program `broadcast`, as it is run by hand.
#![allow(clippy::unwrap_used)] // a test may panic

#[path = "../../http_upload/tests/support/numbers.rs"]
mod numbers;

use std::process::{Command, Output};
use std::time::{Duration, Instant};

fn broadcast(args: &[&str]) -> Output {
    Command::new("timeout").args(["60", env!("CARGO_BIN_EXE_broadcast")]).args(args).output().unwrap()
}

#[track_caller]
fn shown(output: &Output) -> String {
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    assert!(output.status.success(), "{text} {}", String::from_utf8_lossy(&output.stderr));
    text
}

#[test]
fn fast_and_slow_readers_get_the_same_rope() {
    let text = shown(&broadcast(&["--size", "3000001", "--fast", "3", "--slow", "2", "--stuck", "0"]));
    assert_eq!(text.lines().filter(|line| line.contains("3000001") && line.ends_with("matches")).count(), 5);
    assert!(text.contains("all checksums match"));
}

#[test]
fn nothing_to_send_and_no_readers() {
    for size in ["0B", "1B"] {
        let text = shown(&broadcast(&["--size", size, "--fast", "2", "--slow", "1", "--stuck", "1"]));
        assert_eq!(text.lines().filter(|line| line.ends_with("matches")).count(), 3, "{text}");
        assert!(text.contains("not read"), "{text}");
    }
    shown(&broadcast(&["--size", "1MiB", "--fast", "0", "--slow", "0", "--stuck", "0"]));
}

#[test]
fn readers_that_never_read_are_given_up_and_delay_no_other() {
    let begin = Instant::now();
    let text =
        shown(&broadcast(&["--size", "32MiB", "--fast", "2", "--slow", "0", "--stuck", "3", "--idle", "1"]));
    assert_eq!(text.lines().filter(|line| line.ends_with("given up")).count(), 3, "{text}");
    assert_eq!(text.lines().filter(|line| line.ends_with("matches")).count(), 2, "{text}");
    assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
}

#[test]
fn errors_are_one_line() {
    assert!(broadcast(&["--help"]).status.success());
    let many = "ulimit -n 60; exec \"$0\" --size 1B --fast 100";
    let few_files = Command::new("sh").args(["-c", many, env!("CARGO_BIN_EXE_broadcast")]).output().unwrap();
    for (refused, why) in
        [(few_files, "raise `ulimit -n`"), (broadcast(&["--size", "16EiB"]), "smaller --size")]
    {
        let message = String::from_utf8(refused.stderr).unwrap();
        assert_eq!((refused.status.code(), message.lines().count()), (Some(1), 1), "{message}");
        assert!(message.starts_with("broadcast: ") && message.contains(why), "{message}");
    }
}

#[test]
fn numbers_that_mean_nothing() {
    let program = env!("CARGO_BIN_EXE_broadcast");
    numbers::assert_refused(program, &[], &["--idle"], &["--size"]);
}
