//! Which token prefixes are kept, whose they are, and where: in the cells of the cache, or copied out of it.
//!
//! An entry is the path from the root of a radix tree to a leaf. While it lies in the cells it has a lane, and shares the
//! cells of a common part with others (`Context::share` copies nothing); once other answers come it lies apart, as a
//! copy that is put back when it is asked for. There are few entries, and the longest common prefix is found by looking
//! at each, once for every answer.
//!
//! Invariant: an entry is seen through its own partition only, so nobody can learn by timing what another
//! has asked (a shared tree is an oracle: arXiv 2409.20002). An entry has a lane or a copy, or both. Ids and copies are
//! overwritten when an entry goes.
//! Absent by design: the cells. The scheduler frees, shares and copies them.

use std::collections::BTreeMap;

use crate::prompt::{Ids, State};

/// Prefixes shorter than this are not worth an entry: reading them again takes one step anyway.
pub const SHORTEST: usize = 16;

/// Entries at a time, of all partitions together. A person goes on with one of a handful of conversations; the bound on
/// tokens is reached before so many are long.
pub const MOST: usize = 64;

/// Whose prefixes: requester and API key, as the daemon names them.
pub type Partition = [u8; 32];

struct Entry {
    partition: Partition,
    ids: Ids,
    used: u64,
    lane: Option<u32>,
    copy: Option<State>,
}

/// The kept prefixes, by a number that is never given twice.
pub struct Prefixes {
    entries: BTreeMap<u64, Entry>,
    clock: u64,
    /// Most tokens of all entries together.
    room: usize,
}

/// A prefix found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// Which entry.
    pub entry: u64,
    /// Tokens in common.
    pub count: usize,
}

impl Prefixes {
    /// None yet; never more than [`MOST`], nor of more than `room` tokens together.
    pub fn new(room: usize) -> Prefixes {
        Prefixes {
            entries: BTreeMap::new(),
            clock: 0,
            room,
        }
    }

    /// How many lie in the cells.
    pub fn in_cells(&self) -> usize {
        self.lanes().count()
    }

    /// The longest prefix that `ids` has in common with an entry of its partition, if it is worth having.
    /// The last of `ids` never counts: its logits must be computed.
    pub fn longest(&mut self, partition: &Partition, ids: &[u32]) -> Option<Found> {
        let wanted = &ids[..ids.len().saturating_sub(1)];
        let (&entry, count) = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.partition == *partition)
            .map(|(key, entry)| (key, common(entry.ids.expose(), wanted)))
            .max_by_key(|(_, count)| *count)
            .filter(|(_, count)| *count >= SHORTEST)?;
        self.clock += 1;
        if let Some(entry) = self.entries.get_mut(&entry) {
            entry.used = self.clock;
        }
        Some(Found { entry, count })
    }

    /// Keeps `ids`, which lie in `lane`. Returns the lanes of the entries that go for it: those that are a prefix of it,
    /// and those for which there is no room any more, the least lately used first.
    pub fn keep(&mut self, lane: u32, partition: Partition, ids: Ids) -> Vec<u32> {
        let superfluous = |entry: &Entry| {
            entry.partition == partition && ids.expose().starts_with(entry.ids.expose())
        };
        let keys: Vec<u64> = self
            .entries
            .iter()
            .filter(|(_, entry)| superfluous(entry))
            .map(|(key, _)| *key)
            .collect();
        let mut freed: Vec<u32> = keys.iter().filter_map(|key| self.forget(*key)).collect();
        let mut tokens: usize = self.entries.values().map(|entry| entry.ids.len()).sum();
        tokens += ids.len();
        self.clock += 1;
        let entry = Entry {
            partition,
            ids,
            used: self.clock,
            lane: Some(lane),
            copy: None,
        };
        self.entries.insert(self.clock, entry);
        while self.entries.len() > MOST || tokens > self.room {
            let oldest = self.entries.iter().min_by_key(|(_, entry)| entry.used);
            let Some((&oldest, entry)) = oldest else {
                break;
            };
            tokens -= entry.ids.len();
            freed.extend(self.forget(oldest));
        }
        freed
    }

    /// Drops an entry and names the lane it had.
    pub fn forget(&mut self, entry: u64) -> Option<u32> {
        self.entries.remove(&entry)?.lane
    }

    /// The entries in the cells, each with its lane.
    pub fn lanes(&self) -> impl Iterator<Item = (u64, u32)> {
        let entries = self.entries.iter();
        entries.filter_map(|(key, entry)| Some((*key, entry.lane?)))
    }

    /// The lane of an entry, if it lies in the cells.
    pub fn lane(&self, entry: u64) -> Option<u32> {
        self.entries.get(&entry)?.lane
    }

    /// The copy of an entry, if there is one.
    pub fn copy(&self, entry: u64) -> Option<&State> {
        self.entries.get(&entry)?.copy.as_ref()
    }

    /// Adds a copy of an entry's cells.
    pub fn set_copy(&mut self, entry: u64, copy: State) {
        if let Some(entry) = self.entries.get_mut(&entry) {
            entry.copy = Some(copy);
        }
    }

    /// Makes every copy anew; an entry in no lane whose copy has no successor goes.
    pub fn remake_copies(&mut self, mut anew: impl FnMut(&State) -> Option<State>) {
        self.entries.retain(|_, entry| {
            entry.copy = entry.copy.take().and_then(|copy| anew(&copy));
            entry.copy.is_some() || entry.lane.is_some()
        });
    }

    /// Takes an entry out of its lane, which is named; without a copy that is its end.
    pub fn leave_cells(&mut self, entry: u64) -> Option<u32> {
        let held = self.entries.get_mut(&entry)?;
        let lane = held.lane.take();
        if held.copy.is_none() {
            self.entries.remove(&entry);
        }
        lane
    }

    /// Forgets everything, and names the lanes that are free now.
    pub fn clear(&mut self) -> Vec<u32> {
        let entries = std::mem::take(&mut self.entries);
        entries
            .into_values()
            .filter_map(|entry| entry.lane)
            .collect()
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
    const NONE: [u32; 0] = [];

    fn ids(from: u32, count: u32) -> Vec<u32> {
        (from..from + count).collect()
    }

    fn kept(prefixes: &mut Prefixes, lane: u32, whose: Partition, of: Vec<u32>) -> Vec<u32> {
        prefixes.keep(lane, whose, Ids::new(of))
    }

    /// The lane and the length of what is found.
    fn found(prefixes: &mut Prefixes, whose: Partition, ids: &[u32]) -> Option<(u32, usize)> {
        let found = prefixes.longest(&whose, ids)?;
        Some((prefixes.lane(found.entry)?, found.count))
    }

    #[test]
    fn the_longest_prefix_of_ones_own_is_found() {
        let mut prefixes = Prefixes::new(1000);
        kept(&mut prefixes, 3, ANN, ids(0, 40));
        let other = [ids(0, 20), ids(500, 40)].concat();
        kept(&mut prefixes, 4, ANN, other.clone());
        let asked = [other.clone(), ids(900, 5)].concat();
        assert_eq!(found(&mut prefixes, ANN, &asked), Some((4, 60)));
        assert_eq!(found(&mut prefixes, ANN, &ids(0, 100)), Some((3, 40)));
        assert_eq!(found(&mut prefixes, BEN, &asked), None, "another's");
    }

    #[test]
    fn the_last_token_is_always_computed_and_little_is_not_worth_it() {
        let mut prefixes = Prefixes::new(1000);
        kept(&mut prefixes, 0, ANN, ids(0, 40));
        assert_eq!(found(&mut prefixes, ANN, &ids(0, 40)), Some((0, 39)));
        assert_eq!(found(&mut prefixes, ANN, &ids(0, 16)), None);
        assert_eq!(found(&mut prefixes, ANN, &[]), None);
    }

    #[test]
    fn a_conversation_that_went_on_takes_its_beginnings_place() {
        let mut prefixes = Prefixes::new(1000);
        kept(&mut prefixes, 0, ANN, ids(0, 40));
        kept(&mut prefixes, 1, BEN, ids(0, 40));
        assert_eq!(kept(&mut prefixes, 2, ANN, ids(0, 90)), [0]);
        assert_eq!(prefixes.in_cells(), 2);
    }

    #[test]
    fn what_was_used_least_lately_goes_first() {
        let mut prefixes = Prefixes::new(120);
        for lane in 0..3 {
            assert_eq!(kept(&mut prefixes, lane, ANN, ids(lane * 1000, 40)), NONE);
        }
        assert!(found(&mut prefixes, ANN, &ids(0, 60)).is_some());
        assert_eq!(kept(&mut prefixes, 3, ANN, ids(3000, 30)), [1]);
        assert_eq!(kept(&mut prefixes, 4, ANN, ids(4000, 60)), [2, 0]);
        // What has no room by itself is not kept at all.
        assert_eq!(kept(&mut prefixes, 5, ANN, ids(5000, 121)), [3, 4, 5]);
        assert_eq!(prefixes.clear(), NONE);
    }

    #[test]
    fn there_are_never_more_than_the_bound() {
        let mut prefixes = Prefixes::new(usize::MAX);
        for lane in 0..MOST as u32 {
            assert_eq!(kept(&mut prefixes, lane, ANN, ids(lane * 100, 20)), NONE);
        }
        assert_eq!(kept(&mut prefixes, 900, ANN, ids(90_000, 20)), [0]);
    }

    #[test]
    fn what_was_copied_outlives_its_cells_and_what_was_not_does_not() {
        let mut prefixes = Prefixes::new(1000);
        kept(&mut prefixes, 0, ANN, ids(0, 40));
        kept(&mut prefixes, 1, ANN, ids(500, 40));
        let lanes: Vec<_> = prefixes.lanes().collect();
        prefixes.set_copy(lanes[0].0, State::new(vec![7; 9]));
        for (entry, lane) in lanes {
            assert_eq!(prefixes.leave_cells(entry), Some(lane));
            assert_eq!(prefixes.leave_cells(entry), None);
        }
        let apart = prefixes.longest(&ANN, &ids(0, 60)).expect("it was copied");
        assert_eq!((prefixes.lane(apart.entry), apart.count), (None, 40));
        assert_eq!(prefixes.copy(apart.entry).map(State::len), Some(9));
        assert_eq!(prefixes.longest(&ANN, &ids(500, 60)), None);
    }

    proptest! {
        /// Against the definition, on words over a small alphabet, so that prefixes meet often.
        #[test]
        fn what_is_found_is_a_prefix_and_none_is_longer(
            held in proptest::collection::vec((0_u8..2, proptest::collection::vec(0_u32..2, 1..60)), 0..8),
            asked in proptest::collection::vec(0_u32..2, 1..60),
        ) {
            let mut prefixes = Prefixes::new(1000);
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
            let found = found(&mut prefixes, [0; 32], &asked);
            prop_assert_eq!(found.map(|(_, count)| count), best);
            if let Some((lane, count)) = found {
                prop_assert_eq!(lanes[&lane].0, 0);
                prop_assert_eq!(&lanes[&lane].1[..count], &asked[..count]);
            }
        }
    }
}
