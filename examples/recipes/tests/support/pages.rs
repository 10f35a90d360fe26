//! Pages show the recipes of a package as they are in its modules.
#![allow(clippy::unwrap_used)] // a test may panic

use std::fs;
use std::path::Path;

/// Compares the recipes on `pages` of `docs/` with this package's modules, each of which is shown once.
pub(crate) fn check(pages: &[&str]) {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut seen = Vec::new();
    for page in pages {
        for (name, code) in shown(&fs::read_to_string(here.join("../../docs").join(page)).unwrap()) {
            let source = fs::read_to_string(here.join(format!("{name}.rs"))).unwrap();
            let source = normal(source.lines());
            let differs = source.lines().zip(code.lines()).find(|(here, there)| here != there);
            assert!(source == code, "{page} shows another recipe {name}: {differs:?}\n{source}");
            seen.push(name);
        }
    }
    seen.sort();
    let lib = fs::read_to_string(here.join("lib.rs")).unwrap();
    let modules: Vec<_> =
        lib.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';')).collect();
    assert_eq!(seen, modules, "each recipe is shown once");
}

/// The visible lines of the code block behind each `<!-- recipe: NAME -->`.
fn shown(page: &str) -> Vec<(String, String)> {
    page.split("<!-- recipe: ").skip(1).map(recipe).collect()
}

fn recipe(text: &str) -> (String, String) {
    let (name, rest) = text.split_once(" -->").unwrap();
    let block =
        rest.trim_start().strip_prefix("```rust\n").unwrap_or_else(|| panic!("no code behind {name}"));
    let code = block.split("```").next().unwrap();
    let lines = code.lines().filter(|line| *line != "#" && !line.starts_with("# "));
    (name.to_owned(), normal(lines))
}

/// Without what a module needs and a page does not.
fn normal<'a>(lines: impl Iterator<Item = &'a str>) -> String {
    let lines = lines.filter(|line| !line.starts_with("//!") && !line.starts_with("use crate::"));
    let mut code = lines.map(|line| line.replacen("pub ", "", 1)).collect::<Vec<_>>().join("\n");
    while code.contains("\n\n\n") {
        code = code.replace("\n\n\n", "\n\n");
    }
    code.trim().to_owned()
}
