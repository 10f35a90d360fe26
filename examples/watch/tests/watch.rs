//! The program `watch`, as it is run by hand.
#![allow(clippy::unwrap_used)] // a test may panic

#[path = "../../http_upload/tests/support/numbers.rs"]
mod numbers;

use std::process::{Command, Output};

fn watch(args: &[&str]) -> Output {
    Command::new("timeout").args(["60", env!("CARGO_BIN_EXE_watch")]).args(args).output().unwrap()
}

#[test]
fn it_shows_figures_and_events() {
    for args in [&["--seconds", "1"][..], &["--seconds", "1", "--connections", "2", "--events"]] {
        let shown = watch(args);
        let text = String::from_utf8(shown.stdout).unwrap();
        assert!(
            shown.status.success() && text.contains("in use KiB") && text.contains("bytes trimmed"),
            "{text}"
        );
        for event in ["pool created", "rope finalised"] {
            assert_eq!(text.contains(event), args.contains(&"--events"), "{event}: {text}");
        }
    }
}

#[test]
fn errors_are_one_line() {
    assert!(watch(&["--help"]).status.success());
    assert_eq!(watch(&["--connections", "0"]).status.code(), Some(2));
    let script = "ulimit -n 60; exec \"$0\" --connections 100";
    let refused = Command::new("sh").args(["-c", script, env!("CARGO_BIN_EXE_watch")]).output().unwrap();
    let message = String::from_utf8(refused.stderr).unwrap();
    assert_eq!((refused.status.code(), message.lines().count()), (Some(1), 1), "{message}");
    assert!(message.starts_with("watch: ") && message.contains("raise `ulimit -n`"), "{message}");
}

#[test]
fn numbers_that_mean_nothing() {
    let program = env!("CARGO_BIN_EXE_watch");
    numbers::assert_refused(program, &[], &["--seconds", "--connections"], &[]);
}
