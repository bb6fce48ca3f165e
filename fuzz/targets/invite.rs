//! An invite somebody pasted, with a checksum of the input's or of ours: no text panics, an invite
//! has one code, and a code with one wrong character is never read as an invite.
#![no_main]

use bech32::{Bech32m, Hrp};
use libfuzzer_sys::fuzz_target;
use substrate_fuzz::invite::{Invite, InviteError};

const PREFIX: &str = "substrate";

/// Looking for a slip takes a hundred times as long as reading, so it is not done for every input.
const SLIP_EVERY: usize = 16;

/// The symbols of bech32.
const ALPHABET: &[u8; 32] = b"qpzry9x8gf2tvdw0s3jn54khce6mua7l";

fuzz_target!(|bytes: &[u8]| {
    if let Ok(text) = std::str::from_utf8(bytes) {
        check(text);
    }
    let Ok(code) = bech32::encode_lower::<Bech32m>(Hrp::parse_unchecked(PREFIX), bytes) else {
        return;
    };
    check(&code);
    if bytes.len().is_multiple_of(SLIP_EVERY) {
        slip(code, bytes.len());
    }
});

fn check(text: &str) {
    if let Ok(invite) = Invite::decode(text) {
        let plain: String = text.split_whitespace().collect();
        assert_eq!(invite.encode(), plain.to_ascii_lowercase());
    }
}

/// Changes one character behind the prefix. Where it is must be found, whatever the code carries.
fn slip(code: String, seed: usize) {
    let mut code = code.into_bytes();
    let behind = PREFIX.len() + 1;
    let at = behind + seed * 7 % (code.len() - behind);
    let other = ALPHABET[seed % ALPHABET.len()];
    if code[at] == other {
        return;
    }
    code[at] = other;
    let code = String::from_utf8(code).expect("ASCII");
    match Invite::decode(&code).err() {
        Some(InviteError::Mistyped { position, .. }) => assert_eq!(position, at + 1),
        other => panic!("a slip at {at} gave {other:?}"),
    }
}
