//! How large an end-to-end test is: short in the gate, at an issue's full figure in `cargo xtask prove`.
//!
//! Invariant: both sizes assert the same things; only the number of jobs differs.

/// Set by `prove`.
pub const FULL: &str = "SUBSTRATE_TEST_FULL";

/// `full` if the full size is asked for, else `short`.
pub fn of(short: usize, full: usize) -> usize {
    if std::env::var_os(FULL).is_some() {
        full
    } else {
        short
    }
}
