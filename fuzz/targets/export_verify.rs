//! Verifying an export: no input panics, and a decoded export is exactly the file it came from.
#![no_main]

use libfuzzer_sys::fuzz_target;
use substrate_record::export::{Export, verify};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(export) = Export::decode(bytes) {
        assert_eq!(export.encode(), bytes);
    }
    drop(verify(bytes));
});
