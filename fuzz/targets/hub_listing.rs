//! A hub's list of files: no input panics, what is chosen was listed and is a model, and nothing listed can leave
//! its place in a URL.
#![no_main]

use libfuzzer_sys::fuzz_target;
use substrate_fuzz::listing::{Listing, escape, is_gguf};

/// What a person may ask for: nothing in particular, what is preferred, and what is not.
const ASKED: [Option<&str>; 4] = [None, Some("Q4_K_M"), Some("q8_0"), Some("F16")];

fuzz_target!(|body: &[u8]| {
    let Ok(listing) = Listing::parse(body) else {
        return;
    };
    for file in ASKED.into_iter().filter_map(|quant| listing.choose(quant)) {
        assert!(listing.files().any(|listed| listed == file));
        assert!(is_gguf(file));
    }
    for file in listing.files() {
        check_escaped(file, &escape(file));
    }
    if let Some(commit) = listing.commit() {
        assert!(!commit.is_empty() && commit.len() <= 64);
        assert_eq!(escape(commit), commit);
    }
});

/// Nothing but the letters of a path, and the file's name again when it is read back.
fn check_escaped(file: &str, escaped: &str) {
    assert!(
        escaped
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.~/%".contains(&byte))
    );
    let mut read = Vec::new();
    let mut rest = escaped.as_bytes();
    while let [first, after @ ..] = rest {
        rest = after;
        if *first == b'%' {
            let digits = std::str::from_utf8(&after[..2]).expect("ASCII");
            read.push(u8::from_str_radix(digits, 16).expect("two digits"));
            rest = &after[2..];
        } else {
            read.push(*first);
        }
    }
    assert_eq!(read, file.as_bytes());
}
