//! Gossip of capabilities: what to pass on, and when to speak of oneself.
//!
//! Invariant: a capability is passed on at most once, and only if it was news here; what leaves by gossip names only
//! entries valid in the commons (PROTOCOL.md 4).
//! Absent by design: the overlay. Who is whose neighbour is the mesh's business.

use std::collections::BTreeMap;

use substrate_ledger::capacity::Sighting;
use substrate_record::{Capability, ModelOffer, NodeId, Scope, Verified};

use crate::draws::Draws;
use crate::event::Action;
use crate::limits::{
    EXPIRY_ROUND_MS, GOSSIP_INTERVAL_MS, HEARD_FLOOR_MS, MAX_CLAIMED, MODELS_PER_CAPABILITY,
    OVERLAY_SETTLE_MS, PUBLISH_FLOOR_MS,
};
use crate::terms::{Audience, DropReason, OwnModel, Timestamp};
use crate::world::{Step, World};

#[derive(Debug, Default)]
pub(crate) struct Gossip {
    /// When each author in view was last heard by gossip.
    heard: BTreeMap<NodeId, Timestamp>,
    expire_at: Timestamp,
    /// When the regular Capability goes out.
    regular_at: Timestamp,
    /// Since when something new is to be said.
    wanted_at: Option<Timestamp>,
    last_at: Option<Timestamp>,
    /// The last word to each audience offered something, so that its end must be said too.
    offered: BTreeMap<u8, bool>,
    /// Magnitude of the queue when last published.
    queue_told: u32,
}

impl Gossip {
    /// Takes in a capability. True if the view changed.
    pub fn on_capability(
        &mut self,
        step: &mut Step<'_>,
        record: Verified<Capability>,
        from: NodeId,
        direct: bool,
    ) -> bool {
        let (id, author) = (record.id(), record.author());
        if direct {
            return author == from
                && self.judge(step, &record, true).is_ok()
                && see(step, record).is_ok();
        }
        let verdict = self
            .judge(step, &record, false)
            .and_then(|()| see(step, record));
        match verdict {
            Ok(()) => {
                self.heard.insert(author, step.now);
                self.heard
                    .retain(|node, _| step.world.view.get(node).is_some());
                step.order(Action::Forward { record: id });
            }
            Err(why) => step.order(Action::Drop { record: id, why }),
        }
        verdict.is_ok()
    }

    fn judge(
        &self,
        step: &Step<'_>,
        record: &Verified<Capability>,
        direct: bool,
    ) -> Result<(), DropReason> {
        let author = record.author();
        if author == step.world.own() {
            return Err(DropReason::Own);
        }
        let body = record.body();
        if body.models.len() > MODELS_PER_CAPABILITY
            || body.slots > MAX_CLAIMED
            || body.queue > MAX_CLAIMED
        {
            return Err(DropReason::Oversize);
        }
        let known = step.world.view.get(&author);
        if known.is_some_and(|known| seq(known) >= seq(record)) {
            return Err(DropReason::Stale);
        }
        let early = self
            .heard
            .get(&author)
            .is_some_and(|at| step.now.since(*at) < HEARD_FLOOR_MS);
        if early && !direct {
            Err(DropReason::TooOften)
        } else {
            Ok(())
        }
    }

    /// Something about this node changed: say so as soon as the floor allows.
    pub fn want(&mut self, at: Timestamp) {
        self.wanted_at = Some(self.wanted_at.map_or(at, |wanted| wanted.min(at)));
    }

    /// A new peer has nothing of mine yet.
    pub fn on_peer_up(&mut self, now: Timestamp) {
        self.want(now + OVERLAY_SETTLE_MS);
    }

    /// A queue that doubled or halved is worth telling; one more waiting job is not.
    pub fn note_queue(&mut self, now: Timestamp, waiting: usize) {
        if magnitude(waiting) != self.queue_told {
            self.want(now);
        }
    }

    /// Does what is due. True if the view changed.
    pub fn on_time(&mut self, step: &mut Step<'_>, waiting: usize) -> bool {
        if step.now >= self.publish_at() {
            self.publish(step, waiting);
        }
        if step.now < self.expire_at {
            return false;
        }
        self.expire_at = step.now + EXPIRY_ROUND_MS;
        !step.world.view.expire(step.now.0).is_empty()
    }

    /// When something is due next.
    pub fn due(&self, world: &World) -> Timestamp {
        let publish = self.publish_at();
        if world.view.is_empty() {
            publish
        } else {
            publish.min(self.expire_at)
        }
    }

    fn publish_at(&self) -> Timestamp {
        let floor = self
            .last_at
            .map_or(Timestamp(0), |last| last + PUBLISH_FLOOR_MS);
        self.wanted_at.map_or(self.regular_at, |wanted| {
            self.regular_at.min(wanted.max(floor))
        })
    }

    fn publish(&mut self, step: &mut Step<'_>, waiting: usize) {
        self.wanted_at = None;
        self.regular_at = step.now + jittered(step.draws);
        self.queue_told = magnitude(waiting);
        self.say(step, Audience::Gossip, waiting);
        if !step.world.circle.is_empty() {
            self.say(step, Audience::Circle, waiting);
        }
    }

    /// Says what is offered to an audience. One that was never offered anything hears nothing.
    fn say(&mut self, step: &mut Step<'_>, audience: Audience, waiting: usize) {
        let models = offered_to(step.world, audience);
        let offers = !models.is_empty();
        if !self.offered.insert(audience as u8, offers).unwrap_or(false) && !offers {
            return;
        }
        let slots = if offers { step.world.lent_slots() } else { 0 };
        let queue = u32::try_from(waiting)
            .unwrap_or(MAX_CLAIMED)
            .min(MAX_CLAIMED);
        self.last_at = Some(step.now);
        step.order(Action::Publish {
            audience,
            models,
            slots,
            queue,
        });
    }
}

fn see(step: &mut Step<'_>, record: Verified<Capability>) -> Result<(), DropReason> {
    match step.world.view.insert(record, step.now.0) {
        Sighting::New | Sighting::Newer => Ok(()),
        Sighting::Known | Sighting::Stale => Err(DropReason::Stale),
        Sighting::Crowded => Err(DropReason::NotKept),
    }
}

/// Own models an audience may ask for.
fn offered_to(world: &World, audience: Audience) -> Vec<ModelOffer> {
    let scope = match audience {
        Audience::Gossip => Scope::Commons,
        Audience::Circle => Scope::Circle,
    };
    let Some(lent) = world
        .lent()
        .filter(|lent| lent.widest >= scope && lent.slots > 0)
    else {
        return Vec::new();
    };
    let models = world.models.values();
    let offered = models
        .filter(|m| world.valid_in(scope, &m.entry) && !lent.refused_entries.contains(&m.entry));
    offered
        .take(MODELS_PER_CAPABILITY)
        .map(OwnModel::offer)
        .collect()
}

/// The gossip interval ± a tenth, so that nodes started together do not speak together.
fn jittered(draws: &mut Draws) -> u64 {
    let tenth = GOSSIP_INTERVAL_MS / 10;
    GOSSIP_INTERVAL_MS - tenth + draws.below(2 * tenth + 1)
}

fn magnitude(waiting: usize) -> u32 {
    waiting.checked_ilog2().map_or(0, |log| log + 1)
}

fn seq(record: &Verified<Capability>) -> u64 {
    record.record().place.map_or(0, |place| place.seq)
}
