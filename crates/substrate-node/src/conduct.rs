//! How each node has treated this one lately: who vanished, who broke the protocol, who asked to be left alone.
//!
//! Invariant: nobody else's word counts here, and nothing here is ever sent to anyone.
//! Absent by design: reputation. That is a fold over verdicts (DESIGN.md 8) and belongs to the ledger;
//! until it exists, own experience is the only weight in routing.

use std::collections::BTreeMap;

use substrate_record::NodeId;

use crate::limits::{CONDUCTS, MAX_STRIKES, MISBEHAVED_MS, SUSPECT_MS};
use crate::terms::Timestamp;

#[derive(Debug, Default)]
pub(crate) struct Conducts {
    of: BTreeMap<NodeId, Conduct>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Conduct {
    /// Failures since the last whole answer.
    strikes: u32,
    /// Asked only if nobody else is left.
    suspect_until: Timestamp,
    /// Not asked at all: it said so, or it broke the protocol.
    closed_until: Timestamp,
}

impl Conducts {
    /// It vanished, stalled or gave up.
    pub fn strike(&mut self, now: Timestamp, node: NodeId) {
        let conduct = self.entry(now, node);
        conduct.suspect_until = now + (SUSPECT_MS << conduct.strikes);
        conduct.strikes = (conduct.strikes + 1).min(MAX_STRIKES);
    }

    /// It refused for a reason that holds for all jobs: leave it alone for so long. Counts a strike without
    /// suspicion, so that a node which always refuses sinks in the order.
    pub fn decline(&mut self, now: Timestamp, node: NodeId, ms: u64) {
        let conduct = self.entry(now, node);
        conduct.closed_until = conduct.closed_until.max(now + ms);
        conduct.strikes = (conduct.strikes + 1).min(MAX_STRIKES);
    }

    /// It broke the protocol.
    pub fn misbehave(&mut self, now: Timestamp, node: NodeId) {
        let conduct = self.entry(now, node);
        conduct.closed_until = now + MISBEHAVED_MS;
        conduct.strikes = MAX_STRIKES;
    }

    /// It gave a whole answer.
    pub fn forgive(&mut self, node: &NodeId) {
        self.of.remove(node);
    }

    pub fn strikes(&self, node: &NodeId) -> u32 {
        self.of.get(node).map_or(0, |conduct| conduct.strikes)
    }

    pub fn suspect(&self, now: Timestamp, node: &NodeId) -> bool {
        self.of
            .get(node)
            .is_some_and(|conduct| now < conduct.suspect_until)
    }

    /// Until when the node is not asked at all, if it is not.
    pub fn closed(&self, now: Timestamp, node: &NodeId) -> Option<Timestamp> {
        let until = self.of.get(node)?.closed_until;
        (now < until).then_some(until)
    }

    fn entry(&mut self, now: Timestamp, node: NodeId) -> &mut Conduct {
        if self.of.len() >= CONDUCTS && !self.of.contains_key(&node) {
            self.make_room(now);
        }
        self.of.entry(node).or_default()
    }

    /// Forgets what is over; if nothing is, the one that is over soonest.
    fn make_room(&mut self, now: Timestamp) {
        self.of.retain(|_, conduct| conduct.ends() > now);
        if self.of.len() >= CONDUCTS {
            let soonest = self.of.iter().min_by_key(|(_, conduct)| conduct.ends());
            if let Some(node) = soonest.map(|(node, _)| *node) {
                self.of.remove(&node);
            }
        }
    }
}

impl Conduct {
    fn ends(&self) -> Timestamp {
        self.suspect_until.max(self.closed_until)
    }
}
