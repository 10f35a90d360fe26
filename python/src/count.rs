//! Counts of bytes, and positions, as arguments.

use pyo3::exceptions::{PyOverflowError, PyValueError};
use pyo3::ffi;
use pyo3::prelude::*;

/// An integer that is not negative.
#[derive(Clone, Copy)]
pub(crate) struct Count(pub(crate) usize);

impl<'py> FromPyObject<'_, 'py> for Count {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Count> {
        let number = integer(&object)?;
        match number.extract::<usize>() {
            Err(error) if error.is_instance_of::<PyOverflowError>(object.py()) && number.lt(0)? => {
                let message = format!("a number of bytes, or a position, is not negative: {}", text(&number));
                Err(PyValueError::new_err(message))
            }
            extracted => extracted.map(Count),
        }
    }
}

/// Returns the `int` that `object` is, or has by `__index__`, which is called once.
fn integer<'py>(object: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    // SAFETY: attached, and the object lives; the call returns a new reference, or null with an exception set.
    unsafe { Bound::from_owned_ptr_or_err(object.py(), ffi::PyNumber_Index(object.as_ptr())) }
}

/// Returns an argument as text for a message: CPython has no decimal text for an `int` of more than 4300 digits.
pub(crate) fn text(number: &Bound<'_, PyAny>) -> String {
    number.str().map_or_else(|_| "an int of too many digits to show".to_owned(), |text| text.to_string())
}
