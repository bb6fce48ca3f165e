//! Lies told in COSE: headers, and the structure around the payload.

use super::signatures::honest_signature;
use super::{Vector, draft, vector};
use crate::support::forge::{self, array, bytes, fields, head, map, text, uint};
use crate::support::{node, provider};

pub fn headers() -> Vec<Vector> {
    let kid = node(&provider());
    let kid = kid.as_bytes();
    let with = |protected: Vec<u8>| {
        let mut forgery = draft().forge();
        forgery.protected = protected;
        forgery.signed_by(&provider())
    };
    let alg = || (1, head(1, 18));
    let content = || (3, text(forge::CONTENT_TYPE));
    let unprotected = |unprotected: Vec<u8>| {
        let mut forgery = draft().forge();
        forgery.unprotected = unprotected;
        forgery.signed_by(&provider())
    };
    let out_of_order = map(&[
        (uint(4), bytes(kid)),
        (uint(3), text(forge::CONTENT_TYPE)),
        (uint(1), head(1, 18)),
    ]);
    vec![
        vector(
            "wrong-alg",
            "-8, the deprecated EdDSA",
            with(fields(&[(1, head(1, 7)), content(), (4, bytes(kid))])),
        ),
        vector(
            "missing-alg",
            "no algorithm",
            with(fields(&[content(), (4, bytes(kid))])),
        ),
        vector(
            "wrong-content-type",
            "application/cbor",
            with(fields(&[
                alg(),
                (3, text("application/cbor")),
                (4, bytes(kid)),
            ])),
        ),
        vector(
            "content-type-number",
            "60, which is application/cbor",
            with(fields(&[alg(), (3, uint(60)), (4, bytes(kid))])),
        ),
        vector(
            "missing-content-type",
            "no content type",
            with(fields(&[alg(), (4, bytes(kid))])),
        ),
        vector(
            "missing-kid",
            "no key id",
            with(fields(&[alg(), content()])),
        ),
        vector(
            "short-kid",
            "a key id of 31 bytes",
            with(fields(&[alg(), content(), (4, bytes(&kid[..31]))])),
        ),
        vector(
            "extra-header",
            "an initialisation vector in the header",
            with(fields(&[
                alg(),
                content(),
                (4, bytes(kid)),
                (5, bytes(b"iv")),
            ])),
        ),
        vector(
            "critical-header",
            "a header that must be understood",
            with(fields(&[
                alg(),
                (2, array(&[uint(4)])),
                content(),
                (4, bytes(kid)),
            ])),
        ),
        vector(
            "header-out-of-order",
            "header labels descending",
            with(out_of_order),
        ),
        vector(
            "header-empty",
            "a protected header of no bytes",
            with(Vec::new()),
        ),
        vector(
            "header-trailing-bytes",
            "a byte after the header",
            with([forge::header(kid), vec![0]].concat()),
        ),
        vector(
            "unprotected-header",
            "a key id that nobody signed",
            unprotected(fields(&[(4, bytes(kid))])),
        ),
        vector(
            "unprotected-header-unknown",
            "an unknown unprotected label",
            unprotected(fields(&[(99, uint(1))])),
        ),
        vector(
            "unprotected-header-array",
            "an array for a header",
            unprotected(array(&[])),
        ),
    ]
}

pub fn envelopes() -> Vec<Vector> {
    let honest = draft().signed();
    let forgery = draft().forge();
    let signature = honest_signature(&forgery);
    let five = [&[0x85][..], &honest[1..], &[0x00]].concat();
    let detached = array(&[
        bytes(&forgery.protected),
        fields(&[]),
        vec![0xf6],
        bytes(&signature),
    ]);
    let swapped = {
        let other = draft().say(5, uint(38)).forge();
        other.with_signature(&signature)
    };
    vec![
        vector("empty", "no bytes", Vec::new()),
        vector(
            "truncated",
            "the last byte is gone",
            honest[..honest.len() - 1].to_vec(),
        ),
        vector(
            "trailing-bytes",
            "a byte after the record",
            [&honest[..], &[0]].concat(),
        ),
        vector(
            "trailing-bytes-in-payload",
            "a byte after the payload's map",
            {
                let mut payload = draft().payload();
                payload.push(0);
                super::forgery(payload).signed_by(&provider())
            },
        ),
        vector(
            "tagged",
            "COSE tag 18 in front",
            [&[0xd2][..], &honest].concat(),
        ),
        vector("five-items", "a fifth item", five),
        vector("detached-payload", "nil for a payload", detached),
        vector(
            "payload-not-a-map",
            "a number for a payload",
            super::forgery(uint(5)).signed_by(&provider()),
        ),
        vector(
            "swapped-payload",
            "another payload under an honest signature",
            swapped,
        ),
        vector(
            "signature-short",
            "63 bytes",
            forgery.with_signature(&signature[..63]),
        ),
        vector(
            "signature-long",
            "65 bytes",
            forgery.with_signature(&[&signature[..], &[0]].concat()),
        ),
        vector(
            "signature-missing",
            "an empty signature",
            forgery.with_signature(&[]),
        ),
    ]
}
