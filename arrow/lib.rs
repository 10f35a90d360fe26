//! Tests only; see `tests`.
