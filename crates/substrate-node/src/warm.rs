//! Where this node's own clients left a warm prefix: remembered, never asked, never told.
//!
//! Invariant: bounded; knows only own jobs.
//! Absent by design: what the prefix was, and other people's prefixes (DESIGN.md 6).

use std::collections::BTreeMap;

use substrate_record::{NodeId, RecordId};

use crate::limits::{WARM_MS, WARM_PLACES};
use crate::terms::{ClientId, Timestamp};

#[derive(Debug, Default)]
pub(crate) struct Warm {
    places: BTreeMap<(ClientId, RecordId, NodeId), Timestamp>,
}

impl Warm {
    pub fn note(&mut self, now: Timestamp, client: ClientId, entry: RecordId, node: NodeId) {
        let place = (client, entry, node);
        if self.places.len() >= WARM_PLACES && !self.places.contains_key(&place) {
            let oldest = self
                .places
                .iter()
                .min_by_key(|(_, at)| **at)
                .map(|(place, _)| *place);
            if let Some(oldest) = oldest {
                self.places.remove(&oldest);
            }
        }
        self.places.insert(place, now);
    }

    pub fn is_warm(&self, now: Timestamp, client: ClientId, entry: RecordId, node: NodeId) -> bool {
        let at = self.places.get(&(client, entry, node));
        at.is_some_and(|at| now.since(*at) < WARM_MS)
    }

    pub fn forget_node(&mut self, node: &NodeId) {
        self.places.retain(|(_, _, at), _| at != node);
    }
}
