//! A stranger's prompt, as the worker reads it: no input panics, and what is read is written again
//! as the same bytes, so that its commitment has one meaning.
#![no_main]

use libfuzzer_sys::fuzz_target;
use substrate_sandbox::wire::Input;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(input) = Input::from_cbor_bytes(bytes) {
        let again = input.to_cbor_bytes().expect("what was read can be written");
        assert_eq!(again, bytes);
    }
});
