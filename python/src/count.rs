//! Counts of bytes, and positions, as arguments.

use pyo3::exceptions::{PyOverflowError, PyValueError};
use pyo3::prelude::*;

/// An integer that is not negative.
#[derive(Clone, Copy)]
pub(crate) struct Count(pub(crate) usize);

impl<'py> FromPyObject<'_, 'py> for Count {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Count> {
        match object.extract::<usize>() {
            Err(error) if error.is_instance_of::<PyOverflowError>(object.py()) && object.lt(0)? => {
                let number = object.str()?;
                let message = format!("a number of bytes, or a position, is not negative: {number}");
                Err(PyValueError::new_err(message))
            }
            extracted => extracted.map(Count),
        }
    }
}
