//! Frames of the job stream, padded by the input or else by us: no input panics, what is read is
//! written again as the same bytes, and only whole blocks are read.
#![no_main]

use libfuzzer_sys::fuzz_target;
use substrate_fuzz::cbor::PAD_TO;
use substrate_fuzz::frame::Frame;
use substrate_fuzz::job::JobFrame;
use substrate_fuzz::{one_form, padded};

/// Bytes of the length in front of a payload, which count as part of a block.
const PREFIX: usize = 4;

fuzz_target!(|payload: &[u8]| {
    check(payload);
    if let Some(payload) = padded(payload) {
        check(&payload);
    }
});

fn check(payload: &[u8]) {
    one_form::<JobFrame>(payload);
    if <JobFrame as Frame>::decode(payload).is_ok() {
        assert_eq!((PREFIX + payload.len()) % PAD_TO, 0);
    }
}
