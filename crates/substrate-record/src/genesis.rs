//! The Genesis: a network is whatever this record says it is, and its id is the network's name.
//!
//! Invariant: the constants are entrenched; their hash, with the version of the folds, is what
//! nodes compare before they talk. Absent by design: a way to change a Genesis.

use std::collections::BTreeMap;

use ciborium::Value;
use sha2::{Digest, Sha256};

use crate::error::{FieldError, FieldFault};
use crate::fields::{Cbor, Codec, List, Plain, Text, body, cbor_map};
use crate::{NodeId, cbor};

/// A network's name is shown in one line of a terminal.
const MAX_NAME: usize = 64;
/// Entrenched constants are few by intent; each is at most 18 bytes.
const MAX_CONSTANTS: usize = 128;
/// Founding members: 128 keys are 4.3 KiB of the 16; everyone else joins later.
const MAX_MEMBERS: usize = 128;
/// Witnesses at the start: past some dozens a quorum is slow and the draw takes over anyway.
const MAX_WITNESSES: usize = 64;
/// Registry keys: k-of-n among stewards; more than 32 people do not sign one entry.
const MAX_REGISTRY_KEYS: usize = 32;

/// What founds a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Genesis {
    /// For people; two networks may share it.
    pub name: String,
    /// 16 random bytes, so that equal settings still found different networks.
    pub nonce: [u8; 16],
    /// The entrenched constants by number.
    pub constants: BTreeMap<u64, u64>,
    /// The founding members.
    pub members: Vec<NodeId>,
    /// The first witnesses.
    pub witnesses: Vec<NodeId>,
    /// The keys whose signatures admit a model to the commons.
    pub registry_keys: Vec<NodeId>,
    /// How many of them it takes.
    pub registry_k: u32,
    /// The first [`rules_hash`].
    pub rules_hash: [u8; 32],
}

cbor_map!(Genesis {
    1 => name: Text(MAX_NAME),
    2 => nonce: Plain,
    3 => constants: Constants,
    4 => members: List(MAX_MEMBERS, Plain),
    5 => witnesses: List(MAX_WITNESSES, Plain),
    6 => registry_keys: List(MAX_REGISTRY_KEYS, Plain),
    7 => registry_k: Plain,
    8 => rules_hash: Plain,
});
body!(Genesis, None);

impl Genesis {
    fn consistent(&self) -> Result<(), FieldError> {
        let mut keys = self.registry_keys.clone();
        keys.sort_unstable();
        keys.dedup();
        let distinct = u32::try_from(keys.len()).unwrap_or(u32::MAX);
        if keys.len() != self.registry_keys.len() {
            return Err(FieldFault::Inconsistent("a registry key is listed twice").into());
        }
        if self.registry_k == 0 || self.registry_k > distinct {
            let fault = FieldFault::Inconsistent("registry_k is not between 1 and the keys");
            return Err(fault.into());
        }
        Ok(())
    }
}

/// What two nodes must agree on to merge state: SHA-256(CBOR [fold version, constants]).
pub fn rules_hash(fold_version: u64, constants: &BTreeMap<u64, u64>) -> [u8; 32] {
    let rules = Value::Array(vec![fold_version.put(), constants_map(constants)]);
    Sha256::digest(cbor::encode(&rules)).into()
}

struct Constants;

impl Codec<BTreeMap<u64, u64>> for Constants {
    fn put(&self, field: &BTreeMap<u64, u64>) -> Option<Value> {
        Some(constants_map(field))
    }

    fn get(&self, value: Option<Value>) -> Result<BTreeMap<u64, u64>, FieldError> {
        match value.ok_or(FieldFault::Missing)? {
            Value::Map(pairs) if pairs.len() <= MAX_CONSTANTS => pairs
                .into_iter()
                .map(|(number, value)| Ok((u64::get(number)?, u64::get(value)?)))
                .collect(),
            Value::Map(_) => Err(FieldFault::TooMany {
                limit: MAX_CONSTANTS,
            }
            .into()),
            _ => Err(FieldFault::WrongType("a map").into()),
        }
    }
}

/// Ascending numbers are ascending encodings, so the tree's order is the canonical one.
fn constants_map(constants: &BTreeMap<u64, u64>) -> Value {
    let pairs = constants
        .iter()
        .map(|(number, value)| (number.put(), value.put()));
    Value::Map(pairs.collect())
}
