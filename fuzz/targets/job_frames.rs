//! Frames of the streams between nodes: no input panics, and what is read is written again as the
//! same bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use substrate_mesh::entries::EntriesFrame;
use substrate_mesh::hello::HelloFrame;
use substrate_mesh::job::JobFrame;
use substrate_mesh::join::JoinFrame;

macro_rules! one_form {
    ($bytes:ident, $($frame:ident),+) => {$(
        if let Ok(frame) = $frame::decode($bytes) {
            assert_eq!(frame.encode().expect("what was read can be written"), $bytes);
        }
    )+};
}

fuzz_target!(|bytes: &[u8]| {
    one_form!(bytes, JobFrame, JoinFrame, EntriesFrame, HelloFrame);
});
