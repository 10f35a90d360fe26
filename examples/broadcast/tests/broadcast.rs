//! The example `broadcast`, as it is run by hand.
#![allow(clippy::unwrap_used)] // a test may panic

use std::process::Command;

#[test]
fn fast_and_slow_readers_get_the_same_rope() {
    let output = Command::new(env!("CARGO_BIN_EXE_broadcast"))
        .args(["--size", "3000001", "--fast", "3", "--slow", "2"])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text} {}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(text.lines().filter(|line| line.contains("3000001") && line.ends_with("matches")).count(), 5);
    assert!(text.contains("all checksums match"));
}
