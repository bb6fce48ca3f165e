//! The Genesis of a network made on this machine: the silent network of one, and one made by hand.
//!
//! Invariant: the network of one names its device key as the single registry key, so a machine alone
//! needs no passphrase; a network for others names a key that the daemon cannot open.

use std::collections::BTreeMap;

use substrate_record::{Genesis, NodeId, Verified, rules_hash};

use super::{DeviceKey, RegistryKey};

/// The version of the fold rules until a ledger exists (PROTOCOL.md 2).
const FOLD_VERSION: u64 = 0;

/// The longest name a Genesis can carry, in bytes. Callers refuse longer ones; here they are cut.
pub const MAX_NETWORK_NAME: usize = 64;

/// The network of one that a machine alone makes silently.
pub fn genesis_of_one(device: &DeviceKey, name: &str) -> Verified<Genesis> {
    found(device, device.node(), name)
}

/// A network that others can join; its registry key is a person's.
pub fn genesis_of_network(
    device: &DeviceKey,
    registry: &RegistryKey,
    name: &str,
) -> Verified<Genesis> {
    found(device, registry.node(), name)
}

fn found(device: &DeviceKey, registry_key: NodeId, name: &str) -> Verified<Genesis> {
    let end = (0..=MAX_NETWORK_NAME.min(name.len()))
        .rev()
        .find(|at| name.is_char_boundary(*at))
        .unwrap_or(0);
    let constants = BTreeMap::new();
    let body = Genesis {
        name: name[..end].to_owned(),
        nonce: rand::random(),
        rules_hash: rules_hash(FOLD_VERSION, &constants),
        constants,
        members: vec![device.node()],
        witnesses: Vec::new(),
        registry_keys: vec![registry_key],
        registry_k: 1,
    };
    // The time of founding is nobody's business; no rule reads it.
    Verified::<Genesis>::found(body, 0, device.signing())
        .expect("one member, one registry key and a name within its bound are a Genesis")
}
