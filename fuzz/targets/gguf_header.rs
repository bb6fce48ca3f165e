//! The header of a model file, which the worker reads before llama.cpp does: no input panics, an error is about a
//! place within the file, and more bytes behind a file change neither a sound header nor a lie in it.
#![no_main]

use std::io::Cursor;

use libfuzzer_sys::fuzz_target;
use substrate_fuzz::header::{Fault, read};

/// Bytes put behind an input, so that headers are sound that promise more data than an input carries.
const DATA: usize = 16 * 1024;

fuzz_target!(|bytes: &[u8]| {
    let alone = read(Cursor::new(bytes), tensor_type);
    let mut longer = bytes.to_vec();
    longer.resize(bytes.len() + DATA, 0);
    let followed = read(Cursor::new(&longer), tensor_type);
    match (alone, followed) {
        (Ok(header), followed) => assert_eq!(header, followed.expect("data follows")),
        (Err(error), followed) => {
            assert!(error.at <= bytes.len() as u64);
            if matches!(error.what, Fault::Bad(_) | Fault::Missing(_)) {
                let again = followed.expect_err("the lie is still there");
                assert_eq!(error.to_string(), again.to_string());
            }
        }
    }
});

/// Elements and bytes of a block: ggml's F32, F16, Q4_0, Q4_1 and Q6_K, and a gap in its numbers.
fn tensor_type(id: u32) -> Option<(u64, u64)> {
    match id {
        0 => Some((1, 4)),
        1 => Some((1, 2)),
        2 => Some((32, 18)),
        3 => Some((32, 20)),
        14 => Some((256, 210)),
        _ => None,
    }
}
