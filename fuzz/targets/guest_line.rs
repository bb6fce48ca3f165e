//! What a guest's first process says, which a worker that has taken over its machine may say in its place: no input panics, and
//! what is understood is written as it was read.
#![no_main]

use libfuzzer_sys::fuzz_target;
use substrate_sandbox::guest::{BadLine, FromGuest, MAX_LINE, ToGuest, read_line};

fuzz_target!(|bytes: &[u8]| {
    check::<FromGuest>(bytes);
    check::<ToGuest>(bytes);
});

fn check<T: std::str::FromStr<Err = BadLine> + ToString>(bytes: &[u8]) {
    let mut rest = bytes;
    loop {
        let before = rest;
        let read = read_line::<T>(&mut rest);
        let taken = before.len() - rest.len();
        assert!(taken <= MAX_LINE + 1);
        let Ok(Some(said)) = read else { return };
        let again = said.to_string() + "\n";
        assert_eq!(again.as_bytes(), &before[..taken]);
    }
}
