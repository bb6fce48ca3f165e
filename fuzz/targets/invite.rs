//! An invite somebody pasted: no text panics, and an invite that is read is written again as a
//! code that means the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use substrate::invite::Invite;

fuzz_target!(|text: &str| {
    if let Ok(invite) = Invite::decode(text) {
        let again = Invite::decode(&invite.encode()).expect("reads back");
        assert_eq!(again.encode(), invite.encode());
    }
});
