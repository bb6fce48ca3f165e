//! The golden vectors: every honest record, and one record for every lie.
//!
//! Invariant: a forged record tells one lie and is otherwise honest; in particular its signature
//! fits the forged bytes unless the signature is the lie.

mod encodings;
mod envelopes;
mod signatures;

use substrate_record::*;

use crate::support::forge::{self, Forgery, array, bytes, fields, head, text, uint};
use crate::support::{
    self, accept, founder, genesis, network, node, other_genesis, provider, requester,
};

pub struct Vector {
    pub name: &'static str,
    /// What the vector is for, in a sentence.
    pub what: &'static str,
    pub bytes: Vec<u8>,
}

fn vector(name: &'static str, what: &'static str, bytes: Vec<u8>) -> Vector {
    Vector { name, what, bytes }
}

pub fn all() -> Vec<Vector> {
    let encodings = [
        encodings::forms(),
        encodings::values(),
        encodings::maps(),
        encodings::bombs(),
    ];
    let envelopes = [envelopes::headers(), envelopes::envelopes()];
    let meanings = [places(), bounds(), identities(), signatures::signatures()];
    let lies = encodings.into_iter().chain(envelopes).chain(meanings);
    honest().into_iter().chain(lies.flatten()).collect()
}

/// An Accept as raw fields, to lie in one of them.
#[derive(Clone)]
pub struct Draft {
    envelope: Vec<(u64, Vec<u8>)>,
    body: Vec<(u64, Vec<u8>)>,
}

impl Draft {
    pub fn honest() -> Self {
        let accept = accept();
        let body = accept.body();
        Self {
            envelope: vec![
                (1, uint(1)),
                (2, uint(5)),
                (3, bytes(accept.author().as_bytes())),
                (7, uint(0)),
                (8, uint(1_700_000_001_000)),
                (9, array(&[])),
            ],
            body: vec![
                (1, bytes(body.manifest.as_bytes())),
                (2, text(&body.engine_class)),
                (3, bytes(body.worker_sha256.as_bytes())),
                (4, uint(1)),
                (5, uint(37)),
            ],
        }
    }

    /// Replaces or adds a field of the body, keeping labels ascending.
    fn say(mut self, label: u64, value: Vec<u8>) -> Self {
        put(&mut self.body, label, value);
        self
    }

    /// Replaces or adds a field of the envelope, keeping labels ascending.
    fn claim(mut self, label: u64, value: Vec<u8>) -> Self {
        put(&mut self.envelope, label, value);
        self
    }

    fn without(mut self, label: u64) -> Self {
        self.body.retain(|(known, _)| *known != label);
        self
    }

    fn payload(&self) -> Vec<u8> {
        let mut envelope = self.envelope.clone();
        if envelope.iter().all(|(label, _)| *label != 10) {
            put(&mut envelope, 10, fields(&self.body));
        }
        fields(&envelope)
    }

    pub fn forge(&self) -> Forgery {
        forgery(self.payload())
    }

    fn signed(&self) -> Vec<u8> {
        self.forge().signed_by(&provider())
    }
}

fn put(fields: &mut Vec<(u64, Vec<u8>)>, label: u64, value: Vec<u8>) {
    fields.retain(|(known, _)| *known != label);
    fields.push((label, value));
    fields.sort_by_key(|(label, _)| *label);
}

fn draft() -> Draft {
    Draft::honest()
}

fn forgery(payload: Vec<u8>) -> Forgery {
    Forgery::new(node(&provider()).as_bytes(), payload, &network())
}

fn honest() -> Vec<Vector> {
    let entry = support::signed(&founder(), support::model_entry());
    let capability = support::signed(&provider(), support::capability());
    vec![
        vector(
            "good-genesis",
            "the network of all other vectors",
            genesis().bytes().to_vec(),
        ),
        vector(
            "good-capability",
            "a node's offer",
            capability.bytes().to_vec(),
        ),
        vector("good-model-entry", "a model", entry.bytes().to_vec()),
        vector(
            "good-job-manifest",
            "a job",
            support::manifest().bytes().to_vec(),
        ),
        vector(
            "good-accept",
            "the job is taken on",
            accept().bytes().to_vec(),
        ),
        vector(
            "good-ack",
            "part of the answer came",
            support::ack().bytes().to_vec(),
        ),
        vector(
            "good-receipt-w",
            "the worker's half",
            support::receipt_w().bytes().to_vec(),
        ),
        vector(
            "good-receipt-r",
            "the requester's half",
            support::receipt_r().bytes().to_vec(),
        ),
    ]
}

fn places() -> Vec<Vector> {
    let prev = || bytes(&[9; 32]);
    let place = |stream: u64, seq: u64| draft().claim(4, uint(stream)).claim(5, uint(seq));
    let half = |fields: &[(u64, Vec<u8>)]| {
        let body = support::receipt_r();
        let mut draft = draft().claim(2, uint(8));
        for (label, value) in fields {
            draft = draft.claim(*label, value.clone());
        }
        draft.body = vec![
            (1, bytes(body.body().manifest.as_bytes())),
            (2, forge::fields(&[])),
            (3, uint(1)),
            (4, uint(0)),
            (5, text("")),
        ];
        draft.signed()
    };
    vec![
        vector(
            "place-where-none",
            "an Accept in the work stream",
            place(3, 1).signed(),
        ),
        vector(
            "seq-without-stream",
            "an Accept with a sequence number",
            draft().claim(5, uint(1)).signed(),
        ),
        vector(
            "prev-without-stream",
            "an Accept with a predecessor",
            draft().claim(6, prev()).signed(),
        ),
        vector(
            "place-missing",
            "a requester half outside any stream",
            half(&[]),
        ),
        vector(
            "place-other-stream",
            "a requester half in the cap stream",
            half(&[(4, uint(2)), (5, uint(1))]),
        ),
        vector(
            "place-unknown-stream",
            "stream 10",
            half(&[(4, uint(10)), (5, uint(1))]),
        ),
        vector(
            "stream-without-seq",
            "a stream and no sequence number",
            half(&[(4, uint(3))]),
        ),
        vector(
            "seq-zero",
            "sequence number 0",
            half(&[(4, uint(3)), (5, uint(0))]),
        ),
        vector(
            "first-with-predecessor",
            "sequence number 1 after another record",
            half(&[(4, uint(3)), (5, uint(1)), (6, prev())]),
        ),
        vector(
            "second-without-predecessor",
            "sequence number 2 after nothing",
            half(&[(4, uint(3)), (5, uint(2))]),
        ),
        vector(
            "good-second-in-stream",
            "sequence number 2 after the first",
            half(&[(4, uint(3)), (5, uint(2)), (6, prev())]),
        ),
    ]
}

fn bounds() -> Vec<Vector> {
    let long = |length: usize| text(&"x".repeat(length));
    let deps = array(&vec![bytes(&[1; 32]); 33]);
    vec![
        vector(
            "text-too-long",
            "an engine class of 129 bytes",
            draft().say(2, long(129)).signed(),
        ),
        vector(
            "good-text-at-its-bound",
            "an engine class of 128 bytes",
            draft().say(2, long(128)).signed(),
        ),
        vector("list-too-long", "33 deps", draft().claim(9, deps).signed()),
        vector(
            "digest-too-short",
            "a digest of 31 bytes",
            draft().say(3, bytes(&[1; 31])).signed(),
        ),
        vector(
            "code-out-of-range",
            "wall tier 7",
            draft().say(4, uint(7)).signed(),
        ),
        vector("code-zero", "wall tier 0", draft().say(4, uint(0)).signed()),
        vector(
            "integer-too-large",
            "2^32 in a 32-bit field",
            draft().say(5, uint(1 << 32)).signed(),
        ),
        vector(
            "integer-negative",
            "-1 tokens",
            draft().say(5, head(1, 0)).signed(),
        ),
        vector(
            "unknown-version",
            "payload version 2",
            draft().claim(1, uint(2)).signed(),
        ),
        vector(
            "unknown-type",
            "record type 9",
            draft().claim(2, uint(9)).signed(),
        ),
        vector(
            "type-of-another-body",
            "an Accept's body called an Ack",
            draft().claim(2, uint(6)).signed(),
        ),
        vector(
            "resume-without-commitment",
            "5 resumed tokens and no commitment",
            {
                let mut body = support::manifest().body().clone();
                body.resume_tokens = 5;
                manifest_unchecked(&body)
            },
        ),
        vector(
            "registry-k-beyond-keys",
            "two signatures needed of one key",
            {
                let mut body = support::genesis_body("orchard");
                body.registry_k = 2;
                genesis_unchecked(&body)
            },
        ),
        vector(
            "half-names-two",
            "a requester half over a receipt and an accept",
            {
                let both = fields(&[(1, bytes(&[1; 32])), (2, bytes(&[2; 32]))]);
                let mut draft = draft()
                    .claim(2, uint(8))
                    .claim(4, uint(3))
                    .claim(5, uint(1));
                draft.body = vec![
                    (1, bytes(&[3; 32])),
                    (2, both),
                    (3, uint(1)),
                    (4, uint(0)),
                    (5, text("")),
                ];
                draft.signed()
            },
        ),
    ]
}

/// Whose record it is, and of which network.
fn identities() -> Vec<Vector> {
    let under = |context: String| {
        let mut forgery = draft().forge();
        forgery.context = context;
        forgery.signed_by(&provider())
    };
    let other_kid = Forgery::new(node(&requester()).as_bytes(), draft().payload(), &network());
    vec![
        vector(
            "kid-is-not-author",
            "signed and named by one key, authored by another",
            other_kid.signed_by(&requester()),
        ),
        vector(
            "wrong-key",
            "signed by another key than it names",
            draft().forge().signed_by(&requester()),
        ),
        vector(
            "other-network",
            "signed for a network of the same name",
            under(format!("substrate/{}/v1", other_genesis().network())),
        ),
        vector(
            "genesis-context",
            "an Accept signed as if it founded a network",
            under("substrate/genesis/v1".to_owned()),
        ),
        vector("no-context", "signed under no name", under(String::new())),
        vector(
            "other-genesis",
            "the Genesis of a network of the same name",
            other_genesis().bytes().to_vec(),
        ),
        vector(
            "genesis-in-network-context",
            "a Genesis signed as a record of itself",
            {
                let mut forgery = Forgery::new(
                    node(&founder()).as_bytes(),
                    payload_of(genesis().bytes()),
                    &network(),
                );
                forgery.unprotected = fields(&[]);
                forgery.signed_by(&founder())
            },
        ),
    ]
}

/// The payload of an honest record's bytes.
fn payload_of(record: &[u8]) -> Vec<u8> {
    use coset::CborSerializable;
    let sign1 = coset::CoseSign1::from_slice(record).expect("honest");
    sign1.payload.expect("embedded")
}

/// A manifest signed as it is, though its author's own library would not.
fn manifest_unchecked(body: &JobManifest) -> Vec<u8> {
    let author = node(&requester());
    let payload = raw_payload(4, &author, cbor::encode(&body.to_cbor()));
    Forgery::new(author.as_bytes(), payload, &network()).signed_by(&requester())
}

fn genesis_unchecked(body: &Genesis) -> Vec<u8> {
    let author = node(&founder());
    let payload = raw_payload(1, &author, cbor::encode(&body.to_cbor()));
    let mut forgery = Forgery::new(author.as_bytes(), payload, &network());
    forgery.context = "substrate/genesis/v1".to_owned();
    forgery.signed_by(&founder())
}

fn raw_payload(record_type: u64, author: &NodeId, body: Vec<u8>) -> Vec<u8> {
    fields(&[
        (1, uint(1)),
        (2, uint(record_type)),
        (3, bytes(author.as_bytes())),
        (7, uint(0)),
        (8, uint(0)),
        (9, array(&[])),
        (10, body),
    ])
}
