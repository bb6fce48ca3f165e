//! Lies told in CBOR: the right content in the wrong form, wrong values, wrong maps, bombs.

use substrate_record::MAX_RECORD_BYTES;

use super::{Vector, draft, vector};
use crate::support::forge::{self, array, bytes, fields, head, map, text, uint};
use crate::support::{node, provider};

/// CBOR that says the right thing in a form that is not the only one.
pub fn forms() -> Vec<Vector> {
    let longer_int = draft().say(5, vec![0x18, 0x05]);
    let much_longer_int = draft().say(5, [&[0x1b][..], &[0; 7], &[0x25]].concat());
    let longer_text = draft().say(2, [&[0x79, 0x00, 0x03][..], b"any"].concat());
    let longer_key = fields(&draft().body).replacen_byte(0x05, &[0x18, 0x05]);
    let open_text = draft().say(2, [&[0x7f, 0x63][..], b"any", &[0xff]].concat());
    let open_bytes = draft().say(3, [&[0x5f, 0x58, 0x20][..], &[7; 32], &[0xff]].concat());
    let open_map = [&[0xbf][..], &fields(&draft().body)[1..], &[0xff]].concat();
    let honest = draft().signed();
    let longer_outer = [&[0x98, 0x04][..], &honest[1..]].concat();
    let open_outer = [&[0x9f][..], &honest[1..], &[0xff]].concat();
    vec![
        vector(
            "integer-not-shortest",
            "5 in two bytes",
            longer_int.signed(),
        ),
        vector(
            "integer-in-eight-bytes",
            "37 in nine bytes",
            much_longer_int.signed(),
        ),
        vector(
            "length-not-shortest",
            "a text's length in two bytes too many",
            longer_text.signed(),
        ),
        vector(
            "key-not-shortest",
            "a map key in two bytes",
            draft().claim(10, longer_key).signed(),
        ),
        vector("indefinite-text", "text in chunks", open_text.signed()),
        vector("indefinite-bytes", "bytes in chunks", open_bytes.signed()),
        vector(
            "indefinite-array",
            "an open array",
            draft().claim(9, vec![0x9f, 0xff]).signed(),
        ),
        vector(
            "indefinite-map",
            "an open map",
            draft().claim(10, open_map).signed(),
        ),
        vector(
            "envelope-not-shortest",
            "the outer array's length in two bytes",
            longer_outer,
        ),
        vector(
            "envelope-indefinite",
            "the outer array left open",
            open_outer,
        ),
    ]
}

/// CBOR values that no record may hold.
pub fn values() -> Vec<Vector> {
    let not_utf8 = draft().say(2, vec![0x63, 0xff, 0xfe, 0xfd]);
    let bignum = draft().say(5, vec![0xc2, 0x41, 0x25]);
    let single = draft().say(5, vec![0xfa, 0x42, 0x14, 0, 0]);
    let double = draft().say(5, vec![0xfb, 0x40, 0x42, 0x80, 0, 0, 0, 0, 0]);
    vec![
        vector(
            "float-half",
            "37.0 in two bytes",
            draft().say(5, vec![0xf9, 0x50, 0xa0]).signed(),
        ),
        vector("float-single", "37.0 in four bytes", single.signed()),
        vector("float-double", "37.0 in eight bytes", double.signed()),
        vector("tag-bignum", "37 as a tagged bignum", bignum.signed()),
        vector(
            "null",
            "null for a number",
            draft().say(5, vec![0xf6]).signed(),
        ),
        vector(
            "undefined",
            "undefined for a number",
            draft().say(5, vec![0xf7]).signed(),
        ),
        vector(
            "simple-value",
            "simple value 16",
            draft().say(5, vec![0xf0]).signed(),
        ),
        vector(
            "simple-value-long",
            "simple value 255",
            draft().say(5, vec![0xf8, 0xff]).signed(),
        ),
        vector(
            "reserved-head",
            "a head with reserved bits",
            draft().say(5, vec![0x1c]).signed(),
        ),
        vector(
            "stray-break",
            "a break outside any open item",
            draft().say(5, vec![0xff]).signed(),
        ),
        vector("text-not-utf8", "text that is not UTF-8", not_utf8.signed()),
    ]
}

pub fn maps() -> Vec<Vector> {
    let mut twice = draft();
    twice.body.push((5, uint(37)));
    let mut swapped = draft();
    swapped.body.swap(0, 1);
    let mut envelope_twice = draft().claim(10, fields(&draft().body));
    envelope_twice
        .envelope
        .insert(3, envelope_twice.envelope[2].clone());
    let mut pairs: Vec<_> = draft()
        .body
        .iter()
        .map(|(label, raw)| (uint(*label), raw.clone()))
        .collect();
    pairs.push((text("n"), uint(1)));
    let text_key = draft().claim(10, map(&pairs));
    let mut kid_twice = forge::header(node(&provider()).as_bytes());
    kid_twice[0] = 0xa4;
    kid_twice.extend([uint(4), bytes(node(&provider()).as_bytes())].concat());
    let mut header_twice = draft().forge();
    header_twice.protected = kid_twice;
    let array_body: Vec<_> = draft().body.into_iter().map(|(_, raw)| raw).collect();
    vec![
        vector("duplicate-map-key", "n_in twice", twice.signed()),
        vector(
            "duplicate-map-key-in-envelope",
            "the author twice",
            envelope_twice.signed(),
        ),
        vector(
            "duplicate-map-key-in-header",
            "the key id twice",
            header_twice.signed_by(&provider()),
        ),
        vector(
            "map-keys-out-of-order",
            "label 2 before label 1",
            swapped.signed(),
        ),
        vector("map-key-text", "a label that is text", text_key.signed()),
        vector("map-key-negative", "a label below 0", {
            let mut pairs = pairs.clone();
            pairs.pop();
            pairs.push((head(1, 0), uint(1)));
            draft().claim(10, map(&pairs)).signed()
        }),
        vector(
            "unknown-label",
            "a body label nobody defined",
            draft().say(6, uint(0)).signed(),
        ),
        vector(
            "unknown-label-in-envelope",
            "an envelope label nobody defined",
            draft().claim(11, uint(0)).signed(),
        ),
        vector("missing-label", "no n_in", draft().without(5).signed()),
        vector("missing-label-in-envelope", "no deps", {
            let mut draft = draft();
            draft.envelope.retain(|(label, _)| *label != 9);
            draft.signed()
        }),
        vector(
            "body-is-array",
            "the body's values without labels",
            draft().claim(10, array(&array_body)).signed(),
        ),
        vector(
            "wrong-type-of-value",
            "text for a number",
            draft().say(5, text("37")).signed(),
        ),
    ]
}

/// Small bytes that ask a careless decoder for much memory or stack.
pub fn bombs() -> Vec<Vector> {
    let nested = [vec![0x81; 8000], vec![0x00]].concat();
    let long_bytes = [vec![0x5b], u64::MAX.to_be_bytes().to_vec()].concat();
    let long_array = [vec![0x9b], (1u64 << 62).to_be_bytes().to_vec()].concat();
    let long_map = [vec![0xbb], (1u64 << 63).to_be_bytes().to_vec()].concat();
    let mut too_long = draft().signed();
    too_long.extend(vec![0; MAX_RECORD_BYTES + 1 - too_long.len()]);
    let wide = draft().say(2, text(&"x".repeat(MAX_RECORD_BYTES)));
    vec![
        vector("nesting-bomb", "8,000 arrays in each other", nested.clone()),
        vector(
            "nesting-bomb-in-payload",
            "8,000 arrays for a number",
            draft().say(5, nested.clone()).signed(),
        ),
        vector(
            "nesting-bomb-in-header",
            "8,000 arrays for the unprotected header",
            {
                let mut forgery = draft().forge();
                forgery.unprotected = nested;
                forgery.signed_by(&provider())
            },
        ),
        vector(
            "length-bomb-bytes",
            "a byte string of 2^64 - 1 bytes",
            draft().say(3, long_bytes).signed(),
        ),
        vector(
            "length-bomb-array",
            "an array of 2^62 items",
            draft().claim(9, long_array.clone()).signed(),
        ),
        vector(
            "length-bomb-map",
            "a map of 2^63 pairs",
            draft().claim(10, long_map).signed(),
        ),
        vector(
            "length-bomb-envelope",
            "2^62 items where four belong",
            long_array,
        ),
        vector("oversize", "one byte more than a record may have", too_long),
        vector(
            "oversize-honest-form",
            "a well-formed record of more than 16 KiB",
            wide.signed(),
        ),
    ]
}

trait ReplaceByte {
    fn replacen_byte(self, last: u8, with: &[u8]) -> Vec<u8>;
}

impl ReplaceByte for Vec<u8> {
    /// Replaces the last occurrence of a byte.
    fn replacen_byte(mut self, last: u8, with: &[u8]) -> Vec<u8> {
        let at = self
            .iter()
            .rposition(|byte| *byte == last)
            .expect("it is there");
        self.splice(at..=at, with.iter().copied());
        self
    }
}
