//! Page runs, for any steps.
#![no_main]

#[path = "../../src/pool/check.rs"]
mod check;
#[path = "../../src/pool/runs.rs"]
#[allow(dead_code)] // not all of it is for the model
mod runs;

/// What the allocator's tables are made of.
mod sys {
    pub(crate) mod memory {
        pub(crate) struct Table<T>(Vec<T>);

        impl<T: Clone + Default> Table<T> {
            pub(crate) fn new(len: usize) -> std::io::Result<Table<T>> {
                Ok(Table(vec![T::default(); len]))
            }
        }

        impl<T> std::ops::Deref for Table<T> {
            type Target = [T];

            fn deref(&self) -> &[T] {
                &self.0
            }
        }

        impl<T> std::ops::DerefMut for Table<T> {
            fn deref_mut(&mut self) -> &mut [T] {
                &mut self.0
            }
        }
    }
}

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u16, Vec<check::Step>)| {
    let (total, steps) = input;
    check::check(1 + u32::from(total % 1024), &steps);
});
