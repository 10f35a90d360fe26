//! Command lines with numbers that mean nothing.

use std::process::Command;

/// Each of `options` takes a number above 0 that a program can mean: all others are an error that names the
/// option and `--help`. Of `sizes`,
/// 0 and any number of 64 bits are possible too.
pub(crate) fn assert_refused(program: &str, before: &[&str], options: &[&str], sizes: &[&str]) {
    let none = ["nan", "-1", "1e400", "inf", "", "18446744073709551616"];
    let nothing = ["0", "18446744073709551615"];
    let cases =
        options.iter().flat_map(|option| none.iter().chain(&nothing).map(move |number| (option, number)));
    for (option, number) in
        cases.chain(sizes.iter().flat_map(|size| none.iter().map(move |number| (size, number))))
    {
        let mut command = Command::new("timeout");
        let output =
            command.args(["20", program]).args(before).arg(format!("{option}={number}")).output().unwrap();
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{option} {number}: {message}");
        assert!(message.contains("--help") && message.contains(option), "{option} {number}: {message}");
        assert!(!message.contains("ByteSize"), "it names a type instead of what is needed: {message}");
    }
}
