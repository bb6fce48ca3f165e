//! Fixtures of the unit tests.

use substrate_record::{ContentHash, NodeId};
use substrate_record::{
    FileRole, ModelEntry, ModelFile, NetworkId, Place, Record, SigningKey, Stream,
};

pub(crate) fn network(i: u8) -> NetworkId {
    NetworkId::from_bytes([i; 32])
}

/// A small signed record.
pub(crate) fn signed_record(seed: u8, network: NetworkId, seq: u64) -> Vec<u8> {
    let key = SigningKey::from_bytes(&[seed; 32]);
    let body = ModelEntry {
        name: "smollm2:135m".into(),
        files: vec![ModelFile {
            role: FileRole::Weights,
            sha256: ContentHash::of(b"weights"),
            size: 7,
        }],
        arch: "llama".into(),
        quant: "Q4_1".into(),
        context: 2_048,
        licence: "Apache-2.0".into(),
        template_sha256: None,
        sources: vec![],
        reference_rates: None,
        base: None,
    };
    let record = Record {
        author: NodeId::from_bytes(key.verifying_key().to_bytes()),
        place: Some(Place {
            stream: Stream::Registry,
            seq,
            prev: None,
        }),
        epoch: 0,
        claimed_ms: 0,
        deps: vec![],
        body,
    };
    record.sign(&key, &network).unwrap().bytes().to_vec()
}
