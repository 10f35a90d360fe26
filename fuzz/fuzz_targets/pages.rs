//! Page runs, for any steps.
#![no_main]

#[path = "../../src/pool/check.rs"]
mod check;
#[path = "../../src/pool/pages.rs"]
#[allow(dead_code)] // not all of it is for the model
mod pages;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u8, Vec<check::Step>)| {
    let (total, steps) = input;
    check::check(1 + u32::from(total), &steps);
});
