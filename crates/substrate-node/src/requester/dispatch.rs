//! Which waiting job goes out next, and the offer itself.
//!
//! Invariant: among own clients the one with the fewest live attempts goes first, then the older job; so a client with
//! a thousand jobs delays another's single job by one, not by a thousand. Jobs that may wait go after all others.
//! Absent by design: parallel offers of one job. An answer is asked of one node at a time.

use std::collections::{BTreeMap, BTreeSet};

use substrate_record::{JobId, NodeId};

use crate::event::Action;
use crate::limits::{PREFILL_CHUNK, STALL_BASE_MS, WORK_LEASE_MS, slowness};
use crate::route::{Blocked, Chosen, Errand, ScopedCandidates, millis};
use crate::status::JobPhase;
use crate::terms::{AttemptId, ClientId, Want};
use crate::world::Step;

use super::Requester;
use super::job::Live;

/// A client's jobs that may wait, or its others. What may wait sorts behind.
type Party = (bool, ClientId);

/// A party's turn: whoever waits for words first, then fewest live attempts, then the oldest waiting job.
type Turn = (bool, u32, u64, ClientId);

impl Requester {
    /// Offers every waiting job that can go, if anything changed or one is due.
    pub fn dispatch(&mut self, step: &mut Step<'_>, lent_out: u32) {
        if !std::mem::take(&mut self.stirred) {
            return;
        }
        let mut lists = self.waiting_by_party();
        if lists.is_empty() {
            return;
        }
        let mut live_of = self.live_by_party();
        let mut in_flight = self.in_flight();
        let mut turns: BTreeSet<Turn> = lists
            .iter()
            .filter_map(|(party, list)| turn(*party, list, &live_of))
            .collect();
        let mut stuck = Vec::new();
        while let Some((patient, _, order, client)) = turns.pop_first() {
            let party = (patient, client);
            let Some(id) = lists.get_mut(&party).and_then(|list| list.remove(&order)) else {
                continue;
            };
            if let Some(to) = self.try_offer(step, id, &in_flight, lent_out, &mut stuck) {
                *in_flight.entry(to).or_default() += 1;
                *live_of.entry(party).or_default() += 1;
            }
            turns.extend(
                lists
                    .get(&party)
                    .and_then(|list| turn(party, list, &live_of)),
            );
        }
    }

    fn try_offer(
        &mut self,
        step: &mut Step<'_>,
        id: JobId,
        in_flight: &BTreeMap<NodeId, u32>,
        lent_out: u32,
        stuck: &mut Vec<(Want, Blocked)>,
    ) -> Option<NodeId> {
        let job = self.jobs.get_mut(&id)?;
        if let Some((_, blocked)) = stuck.iter().find(|(want, _)| same_demands(want, &job.want)) {
            // The first job with these demands found nobody: neither will this one.
            job.wait(blocked);
            self.tell(step, id);
            return None;
        }
        let errand = Errand {
            now: step.now,
            want: &job.want,
            tried: &job.tried,
            in_flight,
            lent_out,
            warm: &self.warm,
        };
        let choice = ScopedCandidates::of(step.world, job.scope).choose(&errand, step.draws);
        match choice {
            Ok(chosen) => {
                let to = chosen.to();
                self.offer(step, id, chosen);
                self.tell(step, id);
                Some(to)
            }
            Err(blocked) => {
                job.wait(&blocked);
                if blocked.for_all {
                    stuck.push((job.want.clone(), blocked));
                }
                self.tell(step, id);
                None
            }
        }
    }

    /// Makes the next attempt. The last one is closed already: `live` is empty.
    fn offer(&mut self, step: &mut Step<'_>, id: JobId, chosen: Chosen) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        let previous = (job.attempts > 0).then_some(job.attempts);
        job.attempts = job.attempts.saturating_add(1);
        let (to, entry) = (chosen.to(), chosen.entry());
        let attempt = AttemptId {
            job: id,
            number: job.attempts,
            peer: to,
        };
        job.live = Some(Live {
            attempt,
            entry,
            phase: JobPhase::Offered,
            heard: step.now,
            moved: step.now,
            dialling: !step.world.connected(&to),
            prefilled: 0,
            tokens: 0,
            queue: None,
            slowness: slowness(job.want.wall),
            stall_ms: stall_ms(step, &to, &entry) * slowness(job.want.wall),
        });
        step.order(Action::Offer {
            attempt,
            entry,
            scope: chosen.scope(),
            resume_tokens: job.carried,
            previous,
        });
    }

    fn waiting_by_party(&self) -> BTreeMap<Party, BTreeMap<u64, JobId>> {
        let mut lists: BTreeMap<_, BTreeMap<_, _>> = BTreeMap::new();
        for (id, job) in self.jobs.iter().filter(|(_, job)| job.live.is_none()) {
            lists
                .entry(party(&job.want))
                .or_default()
                .insert(job.order, *id);
        }
        lists
    }

    fn live_by_party(&self) -> BTreeMap<Party, u32> {
        let mut live = BTreeMap::new();
        for job in self.jobs.values().filter(|job| job.live.is_some()) {
            *live.entry(party(&job.want)).or_default() += 1;
        }
        live
    }

    fn in_flight(&self) -> BTreeMap<NodeId, u32> {
        let mut in_flight = BTreeMap::new();
        for live in self.jobs.values().filter_map(|job| job.live.as_ref()) {
            if live.phase != JobPhase::Settling {
                *in_flight.entry(live.attempt.peer).or_default() += 1;
            }
        }
        in_flight
    }
}

fn party(want: &Want) -> Party {
    (want.patient, want.client)
}

fn turn(party: Party, list: &BTreeMap<u64, JobId>, live_of: &BTreeMap<Party, u32>) -> Option<Turn> {
    let (order, _) = list.first_key_value()?;
    let live = live_of.get(&party).copied().unwrap_or(0);
    let (patient, client) = party;
    Some((patient, live, *order, client))
}

/// Everything that decides whether there is anybody to ask.
fn same_demands(a: &Want, b: &Want) -> bool {
    (a.scope, a.placement, a.wall, &a.entries) == (b.scope, b.placement, b.wall, &b.entries)
}

/// How long this provider may go without progress, by the prompt speed it claims itself. However slow it claims to be, an honest
/// one has given such work up by then.
fn stall_ms(step: &Step<'_>, node: &NodeId, entry: &substrate_record::RecordId) -> u64 {
    let claimed = if *node == step.world.own() {
        step.world.models.get(entry).map(|model| model.prefill)
    } else {
        let record = step.world.view.get(node);
        record.and_then(|record| {
            record
                .body()
                .models
                .iter()
                .find(|offer| offer.entry == *entry)
                .map(|o| o.prefill)
        })
    };
    let three_steps = 3 * millis(PREFILL_CHUNK, claimed.unwrap_or(0));
    STALL_BASE_MS + three_steps.min(WORK_LEASE_MS)
}
