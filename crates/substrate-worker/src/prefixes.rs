//! Which token prefixes lie in the cache, and whose they are: a radix tree in the form of its leaves.
//!
//! An entry is the path from the root to a leaf and the lane whose cells hold it; two entries that begin
//! alike share the cells of their common part (`Context::share` copies nothing), so the edges of the tree
//! are in the cells themselves. There are at most as many entries as lanes, and the longest common prefix
//! is found by looking at each, once for every answer.
//!
//! Invariant: an entry is seen through its own partition only, so nobody can learn by timing what another
//! has asked (a shared tree is an oracle: arXiv 2409.20002). Ids are overwritten when an entry goes.
//! Absent by design: the cells. The scheduler frees and shares them.

use std::collections::BTreeMap;

use crate::prompt::Ids;

/// Prefixes shorter than this are not worth a lane: reading them again takes one step anyway.
pub const SHORTEST: usize = 16;

/// Whose prefixes: requester and API key, as the daemon names them.
pub type Partition = [u8; 32];

struct Entry {
    partition: Partition,
    ids: Ids,
    used: u64,
}

/// The prefixes that lie in the cache, by lane.
#[derive(Default)]
pub struct Prefixes {
    entries: BTreeMap<u32, Entry>,
    clock: u64,
}

/// A prefix found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// The lane that holds it.
    pub lane: u32,
    /// Tokens in common.
    pub count: usize,
}

impl Prefixes {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The longest prefix that `ids` has in common with an entry of its partition, if it is worth having.
    /// The last of `ids` never counts: its logits must be computed.
    pub fn longest(&mut self, partition: &Partition, ids: &[u32]) -> Option<Found> {
        let wanted = &ids[..ids.len().saturating_sub(1)];
        let (&lane, count) = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.partition == *partition)
            .map(|(lane, entry)| (lane, common(entry.ids.expose(), wanted)))
            .max_by_key(|(_, count)| *count)
            .filter(|(_, count)| *count >= SHORTEST)?;
        self.touch(lane);
        Some(Found { lane, count })
    }

    /// Keeps `ids`, which lie in `lane`. Returns the lanes whose entries they make superfluous: those that
    /// are a prefix of them.
    pub fn keep(&mut self, lane: u32, partition: Partition, ids: Ids) -> Vec<u32> {
        let superfluous: Vec<u32> = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.partition == partition)
            .filter(|(_, entry)| ids.expose().starts_with(entry.ids.expose()))
            .map(|(lane, _)| *lane)
            .collect();
        for lane in &superfluous {
            self.entries.remove(lane);
        }
        let entry = Entry {
            partition,
            ids,
            used: 0,
        };
        self.entries.insert(lane, entry);
        self.touch(lane);
        superfluous
    }

    /// Forgets the entry that was not used for longest, and names its lane.
    pub fn evict(&mut self) -> Option<u32> {
        self.evict_but(None)
    }

    /// As [`Prefixes::evict`], but spares the entry in the lane `spared`.
    pub fn evict_but(&mut self, spared: Option<u32>) -> Option<u32> {
        let (&lane, _) = self
            .entries
            .iter()
            .filter(|(lane, _)| Some(**lane) != spared)
            .min_by_key(|(_, entry)| entry.used)?;
        self.entries.remove(&lane);
        Some(lane)
    }

    fn touch(&mut self, lane: u32) {
        self.clock += 1;
        if let Some(entry) = self.entries.get_mut(&lane) {
            entry.used = self.clock;
        }
    }
}

fn common(left: &[u32], right: &[u32]) -> usize {
    left.iter()
        .zip(right)
        .take_while(|(left, right)| left == right)
        .count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ANN: Partition = [1; 32];
    const BEN: Partition = [2; 32];

    fn ids(from: u32, count: u32) -> Vec<u32> {
        (from..from + count).collect()
    }

    fn kept(prefixes: &mut Prefixes, lane: u32, whose: Partition, of: Vec<u32>) -> Vec<u32> {
        prefixes.keep(lane, whose, Ids::new(of))
    }

    #[test]
    fn the_longest_prefix_of_ones_own_is_found() {
        let mut prefixes = Prefixes::default();
        kept(&mut prefixes, 3, ANN, ids(0, 40));
        let other = [ids(0, 20), ids(500, 40)].concat();
        kept(&mut prefixes, 4, ANN, other.clone());
        let asked = [other.clone(), ids(900, 5)].concat();
        let found = prefixes.longest(&ANN, &asked);
        assert_eq!(found, Some(Found { lane: 4, count: 60 }));
        let found = prefixes.longest(&ANN, &ids(0, 100));
        assert_eq!(found, Some(Found { lane: 3, count: 40 }));
        assert_eq!(
            prefixes.longest(&BEN, &asked),
            None,
            "another's is not seen"
        );
    }

    #[test]
    fn the_last_token_is_always_computed_and_little_is_not_worth_it() {
        let mut prefixes = Prefixes::default();
        kept(&mut prefixes, 0, ANN, ids(0, 40));
        let found = prefixes.longest(&ANN, &ids(0, 40));
        assert_eq!(found, Some(Found { lane: 0, count: 39 }));
        assert_eq!(prefixes.longest(&ANN, &ids(0, 16)), None);
        assert_eq!(prefixes.longest(&ANN, &[]), None);
    }

    #[test]
    fn a_conversation_that_went_on_takes_its_beginnings_place() {
        let mut prefixes = Prefixes::default();
        kept(&mut prefixes, 0, ANN, ids(0, 40));
        kept(&mut prefixes, 1, BEN, ids(0, 40));
        assert_eq!(kept(&mut prefixes, 2, ANN, ids(0, 90)), [0]);
        assert_eq!(prefixes.len(), 2);
    }

    #[test]
    fn what_was_used_least_lately_goes_first() {
        let mut prefixes = Prefixes::default();
        for lane in 0..3 {
            kept(&mut prefixes, lane, ANN, ids(lane * 1000, 40));
        }
        assert!(prefixes.longest(&ANN, &ids(0, 60)).is_some());
        assert_eq!(prefixes.evict(), Some(1));
        assert_eq!(prefixes.evict(), Some(2));
        assert_eq!(prefixes.evict(), Some(0));
        assert_eq!(prefixes.evict(), None);
    }

    proptest! {
        /// Against the definition, on words over a small alphabet, so that prefixes meet often.
        #[test]
        fn what_is_found_is_a_prefix_and_none_is_longer(
            held in proptest::collection::vec((0_u8..2, proptest::collection::vec(0_u32..2, 1..60)), 0..8),
            asked in proptest::collection::vec(0_u32..2, 1..60),
        ) {
            let mut prefixes = Prefixes::default();
            let mut lanes: BTreeMap<u32, (u8, Vec<u32>)> = BTreeMap::new();
            for (lane, (whose, ids)) in (0..).zip(held) {
                for gone in kept(&mut prefixes, lane, [whose; 32], ids.clone()) {
                    lanes.remove(&gone);
                }
                lanes.insert(lane, (whose, ids));
            }
            let best = lanes
                .values()
                .filter(|(whose, _)| *whose == 0)
                .map(|(_, ids)| common(ids, &asked[..asked.len() - 1]))
                .max()
                .filter(|count| *count >= SHORTEST);
            let found = prefixes.longest(&[0; 32], &asked);
            prop_assert_eq!(found.map(|found| found.count), best);
            if let Some(Found { lane, count }) = found {
                prop_assert_eq!(lanes[&lane].0, 0);
                prop_assert_eq!(&lanes[&lane].1[..count], &asked[..count]);
            }
        }
    }
}
