//! The order in which waiting attempts are served: the owner's own jobs first, then fair among identities. Own jobs that
//! may wait are one identity among the others.
//!
//! Fairness is the virtual token counter (VTC, arXiv 2401.00588): every identity is charged for the tokens it is served,
//! as they are produced; the waiting identity with the smallest counter goes next; one that comes back from idleness is
//! lifted to the smallest counter waiting, so that absence saves nothing up.
//! Invariant: counters only grow; an identity that waits is passed over only for one that was served less, or for the owner.
//! Absent by design: credits, the wait function and the floor's share (LEDGER.md b5, b6). Until credits exist everyone is
//! in the floor class, so its reserved share is the whole machine.

use std::collections::BTreeMap;

use substrate_record::NodeId;

use crate::limits::{ANSWER_WEIGHT, COUNTERS, PROMPT_WEIGHT};
use crate::terms::{AttemptId, ClientId};

/// Whom the counter is kept for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Identity {
    /// A client of this machine's own daemon. Sorts first.
    Own(ClientId),
    /// What may wait of a client of this machine's own daemon.
    Patient(ClientId),
    /// Another node.
    Other(NodeId),
}

impl Identity {
    /// A job of this machine's own daemon, which takes no slot that is lent.
    pub fn is_own(self) -> bool {
        matches!(self, Self::Own(_) | Self::Patient(_))
    }

    fn goes_first(self) -> bool {
        matches!(self, Self::Own(_))
    }
}

/// A waiting attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Waiting {
    /// Order of arrival; unique.
    pub order: u64,
    pub attempt: AttemptId,
}

#[derive(Debug, Default)]
pub(crate) struct Queue {
    waiting: BTreeMap<Identity, Vec<Waiting>>,
    counters: BTreeMap<Identity, u64>,
    /// Counter of the identity served last, for a queue that ran empty (VTC, algorithm 2, line 8).
    last_served: u64,
    len: usize,
}

impl Queue {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn len_of(&self, identity: Identity) -> usize {
        self.waiting.get(&identity).map_or(0, Vec::len)
    }

    /// Waiting attempts of others.
    pub fn len_of_others(&self) -> usize {
        self.waiting
            .iter()
            .filter(|(identity, _)| !identity.is_own())
            .map(|(_, list)| list.len())
            .sum()
    }

    pub fn push(&mut self, identity: Identity, waiting: Waiting) {
        if self.len_of(identity) == 0 {
            self.lift(identity);
        }
        self.waiting.entry(identity).or_default().push(waiting);
        self.len += 1;
    }

    pub fn remove(&mut self, identity: Identity, attempt: &AttemptId) {
        let Some(list) = self.waiting.get_mut(&identity) else {
            return;
        };
        if let Some(at) = list.iter().position(|waiting| waiting.attempt == *attempt) {
            list.remove(at);
            self.len -= 1;
        }
        if list.is_empty() {
            self.waiting.remove(&identity);
        }
    }

    /// The attempt to serve next among the identities that may be served now. `running` breaks ties between
    /// counters that have not been charged yet.
    pub fn next(
        &self,
        may: impl Fn(Identity) -> bool,
        running: impl Fn(Identity) -> u32,
    ) -> Option<AttemptId> {
        let heads = self
            .waiting
            .iter()
            .filter_map(|(identity, list)| Some((*identity, list.first()?)));
        heads
            .filter(|(identity, _)| may(*identity))
            .min_by_key(|(identity, head)| {
                (
                    !identity.goes_first(),
                    self.counter(*identity),
                    running(*identity),
                    head.order,
                )
            })
            .map(|(_, head)| head.attempt)
    }

    /// Everyone waiting, in the order they would be served if all jobs were equally long.
    pub fn order(&self) -> Vec<AttemptId> {
        let mut keyed: Vec<_> = (self.waiting.iter())
            .flat_map(|(identity, list)| {
                let counter = self.counter(*identity);
                let key = move |(rank, waiting): (usize, &Waiting)| {
                    (
                        !identity.goes_first(),
                        rank,
                        counter,
                        waiting.order,
                        waiting.attempt,
                    )
                };
                list.iter().enumerate().map(key)
            })
            .collect();
        keyed.sort_unstable();
        keyed.into_iter().map(|(.., attempt)| attempt).collect()
    }

    /// Charges tokens as they are read and produced.
    pub fn charge(&mut self, identity: Identity, prompt: u32, answer: u32) {
        let cost = u64::from(prompt) * PROMPT_WEIGHT + u64::from(answer) * ANSWER_WEIGHT;
        let counter = self.counters.entry(identity).or_default();
        *counter = counter.saturating_add(cost);
        self.last_served = *counter;
        if self.counters.len() > COUNTERS {
            self.forget_an_idle_counter(identity);
        }
    }

    fn counter(&self, identity: Identity) -> u64 {
        self.counters.get(&identity).copied().unwrap_or(0)
    }

    fn lift(&mut self, identity: Identity) {
        let others = self
            .waiting
            .keys()
            .filter(|other| other.goes_first() == identity.goes_first());
        let floor = others
            .map(|other| self.counter(*other))
            .min()
            .unwrap_or(self.last_served);
        let counter = self.counters.entry(identity).or_default();
        *counter = (*counter).max(floor);
        if self.counters.len() > COUNTERS {
            self.forget_an_idle_counter(identity);
        }
    }

    /// The smallest counter of nobody waiting: its owner would be lifted on return anyway.
    fn forget_an_idle_counter(&mut self, keep: Identity) {
        let idle = |identity: &Identity| *identity != keep && !self.waiting.contains_key(identity);
        let least = self
            .counters
            .iter()
            .filter(|(identity, _)| idle(identity))
            .min_by_key(|(_, counter)| **counter);
        if let Some(identity) = least.map(|(identity, _)| *identity) {
            self.counters.remove(&identity);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};
    use substrate_record::JobId;

    fn other(n: u8) -> Identity {
        Identity::Other(NodeId::from_bytes([n; 32]))
    }

    /// Each step is `push X`, `serve N` (serve the next and charge it N tokens), or `idle X` (forget X's jobs).
    fn check(script: &[&str], expect: Expect) {
        let mut queue = Queue::default();
        let (mut order, mut served) = (0, String::new());
        let mut owners = BTreeMap::new();
        for step in script {
            let (verb, what) = step.split_once(' ').expect("verb and object");
            let identity = match what.as_bytes()[0] {
                b'o' => Identity::Own(ClientId(0)),
                b'p' => Identity::Patient(ClientId(0)),
                letter => other(letter),
            };
            match verb {
                "push" => {
                    order += 1;
                    let attempt = attempt(order, what.as_bytes()[0]);
                    owners.insert(attempt, (identity, what.to_owned()));
                    queue.push(
                        identity,
                        Waiting {
                            order: u64::from(order),
                            attempt,
                        },
                    );
                }
                _ => {
                    let next = queue.next(|_| true, |_| 0).expect("somebody waits");
                    let (identity, name) = owners[&next].clone();
                    queue.remove(identity, &next);
                    queue.charge(identity, what.parse().expect("a number"), 0);
                    served.push_str(&name);
                }
            }
        }
        expect.assert_eq(&served);
    }

    fn attempt(n: u8, peer: u8) -> AttemptId {
        AttemptId {
            job: JobId::from_bytes([n; 16]),
            number: 1,
            peer: NodeId::from_bytes([peer; 32]),
        }
    }

    #[test]
    fn the_owner_goes_first_however_much_it_was_served() {
        check(
            &[
                "push a",
                "push o",
                "push o",
                "serve 900",
                "serve 900",
                "serve 1",
            ],
            expect!["ooa"],
        );
    }

    #[test]
    fn what_may_wait_is_one_among_the_others_and_behind_who_waits_here() {
        let script = [
            "push p",
            "push p",
            "push a",
            "push o",
            "serve 900",
            "serve 10",
            "push o",
            "serve 900",
            "serve 10",
            "serve 10",
        ];
        check(&script, expect!["opoap"]);
    }

    #[test]
    fn a_thousand_jobs_of_one_delay_another_by_one() {
        check(
            &[
                "push a", "push a", "push a", "push b", "serve 10", "serve 10", "serve 10",
                "serve 10",
            ],
            expect!["abaa"],
        );
    }

    #[test]
    fn who_got_long_answers_waits_for_who_got_short_ones() {
        let script = [
            "push a",
            "push b",
            "push a",
            "push b",
            "push b",
            "serve 100",
            "serve 10",
            "serve 10",
            "serve 10",
            "serve 1",
        ];
        check(&script, expect!["abbba"]);
    }

    #[test]
    fn absence_saves_nothing_up() {
        // b was never there; it does not get a hundred tokens of priority over a, who was.
        let script = [
            "push a",
            "serve 100",
            "push a",
            "push a",
            "push b",
            "push b",
            "serve 10",
            "serve 10",
            "serve 10",
            "serve 10",
        ];
        check(&script, expect!["aabab"]);
    }
}
