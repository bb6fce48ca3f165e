//! The capacity view: what each node last said it offers.
//!
//! Invariant: per author the highest sequence wins, so merging commutes; at most
//! [`MAX_IN_VIEW`] authors are held, pinned ones first, the rest chosen by a seeded hash so that
//! different nodes keep different strangers. A capability counts for [`TTL_MS`] from the first
//! sight of its (author, sequence) on the receiver's own monotonic clock, and a sequence that has
//! expired does not come back by being sent again.
//!
//! Absent by design: the author's clock, and any judgement of whether the claim is true.

use std::collections::{BTreeMap, BTreeSet};

use substrate_record::{Capability, ContentHash, NodeId, Verified};

/// How long a capability counts. It is re-sent every minute; ten losses in a row are a death.
pub const TTL_MS: u64 = 10 * 60 * 1000;

/// How many authors a node keeps in view, so that its cost does not grow with the network.
pub const MAX_IN_VIEW: usize = 128;

/// How many expired authors are remembered by their last sequence, 40 bytes each. Beyond that an
/// old capability, sent again, counts once more for one TTL: a stale route, no worse.
pub const MAX_EXPIRED: usize = 4096;

/// What a capability's arrival meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sighting {
    /// A node that was not in view.
    New,
    /// A later word of a node in view.
    Newer,
    /// The very record that is in view.
    Known,
    /// An earlier word than the one in view, or one that had expired.
    Stale,
    /// The view is full of nodes that come first.
    Crowded,
}

/// What each node last said it offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CapacityView {
    seed: u64,
    pinned: BTreeSet<NodeId>,
    live: BTreeMap<NodeId, Seen>,
    expired: BTreeMap<NodeId, Expired>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    record: Verified<Capability>,
    first_seen_ms: u64,
    lot: ContentHash,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Expired {
    seq: u64,
    lot: ContentHash,
}

impl CapacityView {
    /// An empty view; the seed chooses which strangers this node prefers to keep.
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            pinned: BTreeSet::new(),
            live: BTreeMap::new(),
            expired: BTreeMap::new(),
        }
    }

    /// Keeps a node in view before all unpinned ones: static peers, the circle, holders of models
    /// that were asked for.
    pub fn pin(&mut self, node: NodeId) {
        self.pinned.insert(node);
    }

    /// Takes back a pin.
    pub fn unpin(&mut self, node: &NodeId) {
        self.pinned.remove(node);
    }

    /// Adds a capability seen at `now_ms` on the receiver's monotonic clock.
    pub fn insert(&mut self, record: Verified<Capability>, now_ms: u64) -> Sighting {
        let author = record.author();
        let sighting = self.take(record, now_ms);
        self.drop_crowd();
        match self.live.contains_key(&author) || sighting == Sighting::Stale {
            true => sighting,
            false => Sighting::Crowded,
        }
    }

    /// Adds everything another view of the same node holds, first sights included.
    pub fn merge(&mut self, other: &CapacityView) {
        for (author, theirs) in &other.expired {
            let lot = self.lot(author);
            let ours = self.expired.entry(*author);
            let ours = ours.or_insert(Expired { seq: 0, lot });
            ours.seq = ours.seq.max(theirs.seq);
        }
        for seen in other.live.values() {
            self.take(seen.record.clone(), seen.first_seen_ms);
        }
        let expired = &self.expired;
        self.live.retain(|author, seen| {
            expired
                .get(author)
                .is_none_or(|last| seq_of(&seen.record) > last.seq)
        });
        self.drop_crowd();
    }

    /// Drops what has outlived its TTL and names whose it was.
    pub fn expire(&mut self, now_ms: u64) -> Vec<NodeId> {
        let over = |seen: &Seen| now_ms.saturating_sub(seen.first_seen_ms) >= TTL_MS;
        let dead: Vec<NodeId> = self
            .live
            .iter()
            .filter(|(_, seen)| over(seen))
            .map(|(author, _)| *author)
            .collect();
        for author in &dead {
            if let Some(seen) = self.live.remove(author) {
                let seq = seq_of(&seen.record);
                self.expired.insert(*author, Expired { seq, lot: seen.lot });
            }
        }
        self.drop_crowd();
        dead
    }

    /// What a node last said.
    pub fn get(&self, node: &NodeId) -> Option<&Verified<Capability>> {
        self.live.get(node).map(|seen| &seen.record)
    }

    /// Everything in view, by node.
    pub fn iter(&self) -> impl Iterator<Item = &Verified<Capability>> {
        self.live.values().map(|seen| &seen.record)
    }

    /// How many nodes are in view.
    pub fn len(&self) -> usize {
        self.live.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.live.is_empty()
    }

    /// Takes in a record without regard to how many there are.
    fn take(&mut self, record: Verified<Capability>, first_seen_ms: u64) -> Sighting {
        let author = record.author();
        let expired = self.expired.get(&author);
        if expired.is_some_and(|last| seq_of(&record) <= last.seq) {
            return Sighting::Stale;
        }
        let Some(known) = self.live.get_mut(&author) else {
            let lot = self.lot(&author);
            let seen = Seen {
                record,
                first_seen_ms,
                lot,
            };
            self.live.insert(author, seen);
            return Sighting::New;
        };
        if known.record.id() == record.id() {
            known.first_seen_ms = known.first_seen_ms.min(first_seen_ms);
            if record.bytes() < known.record.bytes() {
                known.record = record;
            }
            return Sighting::Known;
        }
        if !supersedes(&record, &known.record) {
            return Sighting::Stale;
        }
        known.record = record;
        known.first_seen_ms = first_seen_ms;
        Sighting::Newer
    }

    /// Keeps pinned nodes, then those that drew the smallest lots: a choice that does not depend
    /// on arrival.
    fn drop_crowd(&mut self) {
        let pinned = |node: &NodeId| self.pinned.contains(node);
        while self.live.len() > MAX_IN_VIEW {
            let last = self.live.iter();
            let last = last.max_by_key(|(node, seen)| (!pinned(node), seen.lot));
            let Some(last) = last.map(|(node, _)| *node) else {
                return;
            };
            self.live.remove(&last);
        }
        while self.expired.len() > MAX_EXPIRED {
            let last = self.expired.iter();
            let last = last.max_by_key(|(node, expired)| (!pinned(node), expired.lot));
            let Some(last) = last.map(|(node, _)| *node) else {
                return;
            };
            self.expired.remove(&last);
        }
    }

    /// A hash that only this node's seed predicts, so that nobody can choose a key to be kept by
    /// all or push others out everywhere.
    fn lot(&self, node: &NodeId) -> ContentHash {
        let mut seeded = self.seed.to_le_bytes().to_vec();
        seeded.extend_from_slice(node.as_bytes());
        ContentHash::of(&seeded)
    }
}

/// The higher sequence wins; of a fork the smaller id, so that all nodes see the same branch.
fn supersedes(new: &Verified<Capability>, old: &Verified<Capability>) -> bool {
    match seq_of(new).cmp(&seq_of(old)) {
        std::cmp::Ordering::Equal => new.id() < old.id(),
        order => order.is_gt(),
    }
}

fn seq_of(record: &Verified<Capability>) -> u64 {
    record.record().place.map_or(0, |place| place.seq)
}
