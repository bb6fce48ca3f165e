//! What a worker that was taken over can send the daemon, and the way back: no input panics, how
//! the bytes were cut into reads changes nothing, and a message survives being sent on.
//!
//! Not a law here: one spelling per message. Both ends come from one build, and nothing is signed.
#![no_main]

use libfuzzer_sys::fuzz_target;
use substrate_sandbox::wire::{Decoder, FromWorker, ToWorker, Wire, encode};

/// Reads in the second pass, about: short inputs come byte by byte, long ones are not read all day.
const READS: usize = 64;

fuzz_target!(|bytes: &[u8]| {
    check::<FromWorker>(bytes);
    check::<ToWorker>(bytes);
});

fn check<M: Wire + PartialEq>(bytes: &[u8]) {
    let (messages, sound) = read::<M>(bytes, usize::MAX);
    let in_pieces = read(bytes, bytes.len() / READS + 1);
    assert!(messages == in_pieces.0 && sound == in_pieces.1);
    for message in messages {
        let frame = encode(&message).expect("what was read can be written");
        assert!(read(&frame, usize::MAX) == (vec![message], true));
    }
}

/// The messages in the bytes, and whether none of them was damaged.
fn read<M: Wire>(bytes: &[u8], piece: usize) -> (Vec<M>, bool) {
    let mut decoder = Decoder::new();
    let mut messages = Vec::new();
    for piece in bytes.chunks(piece) {
        decoder.push(piece);
        loop {
            match decoder.pop() {
                Ok(Some(message)) => messages.push(message),
                Ok(None) => break,
                Err(_) => return (messages, false),
            }
        }
    }
    (messages, true)
}
