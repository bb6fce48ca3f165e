//! Where a job goes next.
//!
//! Invariant: an offer can only be made of a [`Chosen`], a `Chosen` only comes out of a [`ScopedCandidates`], and that
//! only holds nodes of its scope. First offer, retry and failover have no other door.
//! Absent by design: reputation (the ledger's), anything a peer says about prefixes, and any way to widen a scope.

use std::collections::BTreeMap;

use substrate_record::{NodeId, RecordId, Scope};

use crate::draws::Draws;
use crate::limits::{
    BEST_FEW, DIAL_MS, EXPECTED_ANSWER, FEW_HALVES, LOOK_AGAIN_MS, OFFERS_PER_NODE, REMOTE_LOAD_MS,
    TIE_DIVISOR, WARM_DIVISOR,
};
use crate::terms::{Placement, Timestamp, WaitReason, Want};
use crate::warm::Warm;
use crate::world::World;

/// A job's next provider. Holding one is the permission to offer.
#[derive(Debug)]
pub(crate) struct Chosen {
    to: NodeId,
    entry: RecordId,
    scope: Scope,
}

impl Chosen {
    pub fn to(&self) -> NodeId {
        self.to
    }

    pub fn entry(&self) -> RecordId {
        self.entry
    }

    pub fn scope(&self) -> Scope {
        self.scope
    }
}

/// The nodes that a job of one scope may be shown to.
pub(crate) struct ScopedCandidates<'w> {
    world: &'w World,
    scope: Scope,
    nodes: Vec<NodeId>,
}

/// What a choice depends on besides the world.
pub(crate) struct Errand<'a> {
    pub now: Timestamp,
    pub want: &'a Want,
    /// Nodes this job keeps away from, and until when.
    pub tried: &'a BTreeMap<NodeId, Timestamp>,
    /// Own live attempts per node.
    pub in_flight: &'a BTreeMap<NodeId, u32>,
    /// Slots of this machine held for others.
    pub lent_out: u32,
    pub warm: &'a Warm,
}

/// Why nobody was chosen.
#[derive(Debug)]
pub(crate) struct Blocked {
    pub why: WaitReason,
    /// When to look again, if nothing changes before.
    pub until: Timestamp,
    /// True if every job with the same demands would be blocked now.
    pub for_all: bool,
}

/// A node's own claim about one model, and how busy it is.
struct Claim {
    entry: RecordId,
    loaded: bool,
    load_ms: u64,
    prefill: u64,
    decode: u64,
    busy: u32,
    slots: u32,
}

struct Candidate {
    node: NodeId,
    entry: RecordId,
    score: u64,
    suspect: bool,
}

impl<'w> ScopedCandidates<'w> {
    pub fn of(world: &'w World, scope: Scope) -> Self {
        let mut nodes = vec![world.own()];
        if scope > Scope::Mine {
            let known = world.view.iter().map(|record| record.author());
            nodes.extend(known.filter(|node| *node != world.own() && world.in_scope(scope, node)));
        }
        Self {
            world,
            scope,
            nodes,
        }
    }

    /// Nodes that hold the entry and could be asked, own first.
    pub fn holders(&self, entry: &RecordId) -> Vec<NodeId> {
        let entries = std::slice::from_ref(entry);
        let holds = |node: &&NodeId| self.claim(node, entries, &BTreeMap::new(), 0).is_some();
        self.nodes.iter().filter(holds).copied().collect()
    }

    /// The next provider for an errand, or why there is none.
    pub fn choose(&self, errand: &Errand<'_>, draws: &mut Draws) -> Result<Chosen, Blocked> {
        let mut blocked = Blocked {
            why: WaitReason::NoCandidate,
            until: errand.now + LOOK_AGAIN_MS,
            for_all: true,
        };
        let candidates: Vec<_> = self
            .nodes
            .iter()
            .filter_map(|node| self.consider(node, errand, &mut blocked))
            .collect();
        match pick(candidates, self.world.own(), draws) {
            Some(best) => Ok(Chosen {
                to: best.node,
                entry: best.entry,
                scope: self.scope,
            }),
            None => Err(blocked),
        }
    }

    fn consider(
        &self,
        node: &NodeId,
        errand: &Errand<'_>,
        blocked: &mut Blocked,
    ) -> Option<Candidate> {
        let want = errand.want;
        let here = *node == self.world.own();
        let placed = match want.placement {
            Placement::Any => true,
            Placement::Elsewhere => !here,
            Placement::Node(only) => *node == only,
        };
        if !placed || !self.offers_wall(node, want) {
            return None;
        }
        let claim = self.claim(node, &want.entries, errand.in_flight, errand.lent_out)?;
        if let Some(until) = self.world.conducts.closed(errand.now, node) {
            blocked.wait_until(until);
            return None;
        }
        if let Some(until) = errand.tried.get(node).filter(|until| errand.now < **until) {
            blocked.wait_until(*until);
            blocked.for_all = false;
            return None;
        }
        if !here
            && errand
                .in_flight
                .get(node)
                .is_some_and(|n| *n >= OFFERS_PER_NODE)
        {
            blocked.why = WaitReason::AllBusy;
            return None;
        }
        Some(Candidate {
            node: *node,
            entry: claim.entry,
            score: self.score(node, &claim, errand),
            suspect: self.world.conducts.suspect(errand.now, node),
        })
    }

    fn offers_wall(&self, node: &NodeId, want: &Want) -> bool {
        if *node == self.world.own() {
            let own = &self.world.config.walls;
            return own.iter().any(|wall| wall.satisfies(want.wall));
        }
        let mut walls = self.world.walls_of(node);
        walls.any(|wall| wall.satisfies(want.wall))
    }

    /// The best claim of a node about any of the entries that are valid in this scope: loaded first, then fastest.
    fn claim(
        &self,
        node: &NodeId,
        entries: &[RecordId],
        in_flight: &BTreeMap<NodeId, u32>,
        lent_out: u32,
    ) -> Option<Claim> {
        let valid =
            |entry: &RecordId| entries.contains(entry) && self.world.valid_in(self.scope, entry);
        let own_attempts = in_flight.get(node).copied().unwrap_or(0);
        if *node == self.world.own() {
            let models = self
                .world
                .models
                .values()
                .filter(|model| valid(&model.entry));
            let model = models.max_by_key(|model| (model.loaded, model.decode))?;
            return (self.world.config.slots > 0).then(|| Claim {
                entry: model.entry,
                loaded: model.loaded,
                load_ms: model.load_ms,
                prefill: model.prefill,
                decode: model.decode,
                busy: own_attempts.saturating_add(lent_out),
                slots: self.world.config.slots,
            });
        }
        let capability = self.world.view.get(node)?.body();
        let offers = capability.models.iter().filter(|offer| valid(&offer.entry));
        let offer = offers.max_by_key(|offer| (offer.loaded, offer.decode))?;
        (capability.slots > 0).then(|| Claim {
            entry: offer.entry,
            loaded: offer.loaded,
            load_ms: REMOTE_LOAD_MS,
            prefill: offer.prefill,
            decode: offer.decode,
            busy: own_attempts.saturating_add(capability.queue),
            slots: capability.slots,
        })
    }

    /// Expected milliseconds to the first token plus to the last, doubled per strike. Lower is better.
    fn score(&self, node: &NodeId, claim: &Claim, errand: &Errand<'_>) -> u64 {
        let want = errand.want;
        let answer = millis(EXPECTED_ANSWER.min(want.max_tokens), claim.decode);
        let mut prefill = millis(want.n_in_estimate, claim.prefill);
        if errand
            .warm
            .is_warm(errand.now, want.client, claim.entry, *node)
        {
            prefill /= WARM_DIVISOR;
        }
        // A worker of its own is loaded for the job, whatever is loaded.
        let is_alone = want.isolated || want.wall.is_machine();
        let is_ready = claim.loaded && !is_alone;
        let load = if is_ready { 0 } else { claim.load_ms };
        let dial = if self.world.connected(node) {
            0
        } else {
            DIAL_MS
        };
        // Offer, Ready, Input, Started: two round trips before the first token can leave.
        let travel = dial.saturating_add(2 * u64::from(self.world.rtt_ms(node)));
        let first = [load, travel, prefill, claim.wait_ms(answer)]
            .into_iter()
            .fold(0, u64::saturating_add);
        let sum = first.saturating_mul(2).saturating_add(answer);
        sum.saturating_mul(1 << self.world.conducts.strikes(node))
    }
}

impl Claim {
    /// Expected wait for a slot, if every job ahead is as long as this one.
    fn wait_ms(&self, answer_ms: u64) -> u64 {
        let ahead = u64::from(self.busy.saturating_add(1).saturating_sub(self.slots));
        ahead.saturating_mul(answer_ms) / u64::from(self.slots.max(1))
    }
}

impl Blocked {
    fn wait_until(&mut self, until: Timestamp) {
        if self.why == WaitReason::NoCandidate {
            self.why = WaitReason::AllBusy;
        }
        self.until = self.until.min(until);
    }
}

/// Milliseconds for so many tokens at a speed in millitokens per second. No speed counts as one token per second.
pub(crate) fn millis(tokens: u32, millitokens_per_second: u64) -> u64 {
    let speed = millitokens_per_second.max(1_000);
    u64::from(tokens).saturating_mul(1_000_000) / speed
}

/// The own machine if it is as good as the best; else the better of two drawn among the best few, so that many
/// requesters with equal views do not all run to the same node. Suspects only if nobody else is left.
fn pick(mut candidates: Vec<Candidate>, own: NodeId, draws: &mut Draws) -> Option<Candidate> {
    if candidates.iter().any(|candidate| !candidate.suspect) {
        candidates.retain(|candidate| !candidate.suspect);
    }
    candidates.sort_by_key(|candidate| (candidate.score, candidate.node));
    let best = candidates.first()?.score;
    let tie = best.saturating_add(best / TIE_DIVISOR);
    if let Some(here) = candidates
        .iter()
        .position(|c| c.node == own && c.score <= tie)
    {
        return Some(candidates.swap_remove(here));
    }
    let bound = best.saturating_mul(FEW_HALVES) / 2;
    let few = candidates
        .iter()
        .take(BEST_FEW)
        .filter(|candidate| candidate.score <= bound)
        .count();
    let drawn = [draws.below(few as u64), draws.below(few as u64)];
    // Sorted, so the lower index is the better score.
    let index = usize::try_from(drawn[0].min(drawn[1])).unwrap_or(0);
    Some(candidates.swap_remove(index))
}
