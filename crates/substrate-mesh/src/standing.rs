//! Who broke the protocol lately: a small table of penalties that decay.
//!
//! Invariant: time is an argument, the table is bounded, and a block always ends.
//! Absent by design: reputation. What a node is worth to a job is a fold over receipts elsewhere;
//! this table only keeps a misbehaving program from using up the machine.

use std::collections::BTreeMap;

use substrate_record::NodeId;

/// What a peer did that the protocol forbids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Offence {
    /// A frame that does not decode.
    MalformedFrame,
    /// A frame longer than allowed.
    OversizeFrame,
    /// A frame that began and did not end in time.
    SlowFrame,
    /// A frame that is valid but not at this point of the exchange.
    OutOfOrder,
    /// A record whose signature, network or content is not acceptable.
    BadRecord,
    /// More streams at once, or more hellos, than allowed.
    Flood,
}

impl Offence {
    /// What it costs. [`BLOCK_AT`] is reached by three deliberate acts, or by
    /// five that a bad line or an old build might also explain.
    fn points(self) -> u32 {
        match self {
            Self::OversizeFrame | Self::MalformedFrame | Self::BadRecord => 34,
            Self::SlowFrame | Self::OutOfOrder | Self::Flood => 20,
        }
    }
}

/// Points at which a peer is dropped and blocked.
const BLOCK_AT: u32 = 100;

/// Points halve in this time, so that an honest peer with one bad day starts clean the next hour.
const HALF_LIFE_MS: u64 = 10 * 60 * 1000;

/// First block; each further one within [`FORGET_MS`] doubles it.
const FIRST_BLOCK_MS: u64 = 10 * 60 * 1000;

/// Blocks double at most this often: 10 minutes becomes about a day.
const MAX_DOUBLINGS: u32 = 7;

/// An entry without new offences is forgotten after this long.
const FORGET_MS: u64 = 24 * 60 * 60 * 1000;

/// Entries kept; beyond, the mildest that is not blocked makes room.
const MAX_ENTRIES: usize = 1_024;

#[derive(Debug, Clone, Copy, Default)]
struct Entry {
    points: u32,
    since_ms: u64,
    blocks: u32,
    blocked_until_ms: Option<u64>,
}

/// The table.
#[derive(Debug, Default)]
pub struct Standing {
    entries: BTreeMap<NodeId, Entry>,
}

impl Standing {
    /// Counts an offence. Returns true if the peer is to be dropped and blocked now.
    pub fn penalise(&mut self, now_ms: u64, node: NodeId, offence: Offence) -> bool {
        self.make_room(node);
        let entry = self.entries.entry(node).or_default();
        entry.points = decayed(entry, now_ms).saturating_add(offence.points());
        entry.since_ms = now_ms;
        if entry.blocked_until_ms.is_some() || entry.points < BLOCK_AT {
            return false;
        }
        let block_ms = FIRST_BLOCK_MS << entry.blocks.min(MAX_DOUBLINGS);
        entry.blocked_until_ms = Some(now_ms + block_ms);
        entry.blocks += 1;
        entry.points = 0;
        true
    }

    /// Peers whose block has ended, each named once. Forgets old entries.
    pub fn released(&mut self, now_ms: u64) -> Vec<NodeId> {
        let mut released = Vec::new();
        for (node, entry) in &mut self.entries {
            if entry.blocked_until_ms.is_some_and(|until| until <= now_ms) {
                entry.blocked_until_ms = None;
                released.push(*node);
            }
        }
        self.entries.retain(|_, entry| {
            entry.blocked_until_ms.is_some() || now_ms.saturating_sub(entry.since_ms) < FORGET_MS
        });
        released
    }

    /// Points of a peer now, 0 for one that is not in the table.
    pub fn points(&self, now_ms: u64, node: &NodeId) -> u32 {
        self.entries
            .get(node)
            .map_or(0, |entry| decayed(entry, now_ms))
    }

    fn make_room(&mut self, node: NodeId) {
        if self.entries.len() < MAX_ENTRIES || self.entries.contains_key(&node) {
            return;
        }
        let mildest = self
            .entries
            .iter()
            .min_by_key(|(_, entry)| (entry.blocked_until_ms, entry.blocks, entry.points))
            .map(|(node, _)| *node);
        if let Some(mildest) = mildest {
            self.entries.remove(&mildest);
        }
    }
}

fn decayed(entry: &Entry, now_ms: u64) -> u32 {
    let halvings = now_ms.saturating_sub(entry.since_ms) / HALF_LIFE_MS;
    u32::try_from(halvings)
        .ok()
        .and_then(|by| entry.points.checked_shr(by))
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(i: u32) -> NodeId {
        let mut bytes = [0; 32];
        bytes[..4].copy_from_slice(&i.to_be_bytes());
        NodeId::from_bytes(bytes)
    }

    #[test]
    fn three_malformed_frames_block_and_the_block_ends() {
        let mut standing = Standing::default();
        assert!(!standing.penalise(0, node(1), Offence::MalformedFrame));
        assert!(!standing.penalise(1, node(1), Offence::OversizeFrame));
        assert!(standing.penalise(2, node(1), Offence::MalformedFrame));
        assert!(
            !standing.penalise(3, node(1), Offence::MalformedFrame),
            "blocked already"
        );
        assert_eq!(standing.released(FIRST_BLOCK_MS + 1), []);
        assert_eq!(standing.released(FIRST_BLOCK_MS + 2), [node(1)]);
        assert_eq!(standing.released(FIRST_BLOCK_MS + 2), []);
    }

    #[test]
    fn offences_far_apart_never_block() {
        let mut standing = Standing::default();
        for day in 0..1_000 {
            assert!(!standing.penalise(day * 2 * HALF_LIFE_MS, node(1), Offence::MalformedFrame));
        }
    }

    #[test]
    fn a_second_block_lasts_longer() {
        let mut standing = Standing::default();
        let mut block = |at| (0..3).any(|_| standing.penalise(at, node(1), Offence::BadRecord));
        assert!(block(0));
        assert_eq!(standing.released(FIRST_BLOCK_MS), [node(1)]);
        let mut block = |at| (0..3).any(|_| standing.penalise(at, node(1), Offence::BadRecord));
        assert!(block(FIRST_BLOCK_MS));
        assert_eq!(standing.released(3 * FIRST_BLOCK_MS - 1), []);
        assert_eq!(standing.released(3 * FIRST_BLOCK_MS), [node(1)]);
    }

    #[test]
    fn a_flood_of_strangers_does_not_grow_the_table_or_free_a_blocked_peer() {
        let mut standing = Standing::default();
        while !standing.penalise(0, node(0), Offence::BadRecord) {}
        for i in 1..5_000 {
            standing.penalise(1, node(i), Offence::SlowFrame);
        }
        assert_eq!(standing.entries.len(), MAX_ENTRIES);
        assert_eq!(standing.released(FIRST_BLOCK_MS), [node(0)]);
    }
}
