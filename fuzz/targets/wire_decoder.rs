//! What a worker that was taken over can send the daemon: no input panics, memory stays with what
//! was sent, and how the bytes were cut into reads changes nothing.
#![no_main]

use libfuzzer_sys::fuzz_target;
use substrate_sandbox::wire::{Decoder, FromWorker, ToWorker, Wire};

fuzz_target!(|bytes: &[u8]| {
    same_however_cut::<FromWorker>(bytes);
    same_however_cut::<ToWorker>(bytes);
});

fn same_however_cut<M: Wire + std::fmt::Debug>(bytes: &[u8]) {
    let whole = read::<M>(bytes.chunks(bytes.len().max(1)));
    let in_pieces = read::<M>(bytes.chunks(7));
    assert_eq!(whole, in_pieces);
}

/// The messages in the bytes, and whether they ended in an error.
fn read<'a, M: Wire + std::fmt::Debug>(pieces: impl Iterator<Item = &'a [u8]>) -> (Vec<String>, bool) {
    let mut decoder = Decoder::<M>::new();
    let mut messages = Vec::new();
    for piece in pieces {
        decoder.push(piece);
        loop {
            match decoder.pop() {
                Ok(Some(message)) => messages.push(format!("{message:?}")),
                Ok(None) => break,
                Err(_) => return (messages, true),
            }
        }
    }
    (messages, false)
}
