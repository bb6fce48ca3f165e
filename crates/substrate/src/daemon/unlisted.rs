//! Entries of connected peers that the owner does not list: held in memory until the peer goes or is listed.
//!
//! Two owners list each other one after the other, and each sends its entries when it lists the other. Whoever
//! is second has got them already and would not be sent them again.
//!
//! Invariant: bounded in peers, entries and bytes; nothing in here is used, stored or passed on.

use std::collections::BTreeMap;

use substrate_record::{ModelEntry, NodeId, Verified};

/// Peers whose entries are held: as many as connections are kept.
const MAX_PEERS: usize = 128;

/// Entries held of one peer. More would be sent again after the next hello.
const MAX_ENTRIES: usize = 64;

/// Bytes held of one peer: 8 MiB over all.
const MAX_BYTES: usize = 64 * 1024;

/// What is held.
#[derive(Default)]
pub struct Unlisted {
    peers: BTreeMap<NodeId, Vec<Verified<ModelEntry>>>,
}

impl Unlisted {
    /// Holds an entry of a peer's own, if there is room.
    pub fn hold(&mut self, from: NodeId, entry: Verified<ModelEntry>) {
        if self.peers.len() >= MAX_PEERS && !self.peers.contains_key(&from) {
            return;
        }
        let held = self.peers.entry(from).or_default();
        let bytes: usize = held.iter().map(|entry| entry.bytes().len()).sum();
        let known = held.iter().any(|other| other.id() == entry.id());
        if !known && held.len() < MAX_ENTRIES && bytes + entry.bytes().len() <= MAX_BYTES {
            held.push(entry);
        }
    }

    /// Lets go of a peer's entries.
    pub fn take(&mut self, node: &NodeId) -> Vec<Verified<ModelEntry>> {
        self.peers.remove(node).unwrap_or_default()
    }
}
