//! The driver, end to end: every workload runs, verifies what came, and fills every figure.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

fn run(name: &str) -> Vec<Value> {
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let options = ["run", "--quick", "--allocators", "glibc", "--rounds", "1", "--only", name, "--out"];
    let run = Command::new(env!("CARGO_BIN_EXE_glibc")).args(options).arg(&out).output().unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let report = std::fs::read_to_string(out.join("workloads.json")).unwrap();
    let report: Value = serde_json::from_str(&report).unwrap();
    report["rows"].as_array().unwrap().clone()
}

fn runs(name: &str) {
    let rows = run(name);
    assert!(!rows.is_empty(), "no rows");
    for row in &rows {
        let figure = |path: &str| row.pointer(path).and_then(Value::as_f64).unwrap_or(f64::NAN);
        assert!(figure("/cpu_us_per_message/median") > 0.0, "{row}");
        assert!(figure("/peak") >= figure("/base") && figure("/base") > 0.0, "{row}");
        assert!(row["calls_per_message"].is_null() || figure("/calls_per_message") > 0.0, "{row}");
    }
    let reference = &rows[0];
    assert!(reference["way"].as_str().unwrap().starts_with("ropewalk"));
    assert_eq!(reference["times_ropewalk"]["median"], 1.0);
}

macro_rules! workloads {
    ($($name:ident)*) => {$(
        #[test]
        fn $name() {
            runs(stringify!($name));
        }
    )*};
}

workloads!(frames uploads downloads proxy broadcast tls idle);
