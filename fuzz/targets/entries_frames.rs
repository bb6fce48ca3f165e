//! Frames that carry the registry: no input panics, and what is read is written again as the same bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use substrate_fuzz::entries::EntriesFrame;
use substrate_fuzz::one_form;

fuzz_target!(|payload: &[u8]| one_form::<EntriesFrame>(payload));
