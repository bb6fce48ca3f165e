//! Slots: who gets a free one, and what those who wait are told.
//!
//! Invariant: never more slots held than the machine has, nor more by others than are lent, nor by one of them more than its cap.
//! Absent by design: preemption. A slot once given is freed by its work, its lease or its owner's settings.

use std::collections::BTreeMap;

use crate::event::Action;
use crate::limits::{EXPECTED_ANSWER, NEWS_FLOOR_MS, NEWS_INTERVAL_MS};
use crate::queue::Identity;
use crate::route::millis;
use crate::status::WorkPhase;
use crate::terms::{AttemptId, QueueNews, Timestamp, WaitReason};
use crate::world::{Step, World};

use super::Provider;
use super::work::Work;

impl Provider {
    /// Slots held by others.
    pub fn lent_out(&self) -> u32 {
        self.held(|identity| !identity.is_own())
    }

    /// Gives free slots to those who wait, in order.
    pub(super) fn fill_slots(&mut self, step: &mut Step<'_>) {
        while let Some(attempt) = self.next_to_serve(step.world) {
            let Some(work) = self.works.get_mut(&attempt) else {
                return;
            };
            work.enter(step.now, WorkPhase::Ready);
            work.heard = step.now;
            let (identity, entry) = (work.identity, work.terms.entry);
            // A job with a worker of its own has no use for the one that others share.
            let shares = !work.terms.isolated && !work.terms.wall.is_machine();
            self.queue.remove(identity, &attempt);
            self.stirred = true;
            step.order(Action::ReplyReady { attempt });
            let model = step.world.models.get(&entry);
            if shares && model.is_some_and(|model| !model.loaded) {
                step.order(Action::Load { entry });
            }
        }
    }

    fn next_to_serve(&self, world: &World) -> Option<AttemptId> {
        if self.queue.len() == 0 || self.held(|_| true) >= world.config.slots {
            return None;
        }
        let lendable = self.lent_out() < world.lent_slots();
        let cap = identity_cap(world.lent_slots());
        let may = |identity: Identity| {
            identity.is_own() || (lendable && self.held(|holder| holder == identity) < cap)
        };
        self.queue
            .next(may, |identity| self.held(|holder| holder == identity))
    }

    fn held(&self, by: impl Fn(Identity) -> bool) -> u32 {
        let held = self
            .works
            .values()
            .filter(|work| work.holds_slot() && by(work.identity))
            .count();
        u32::try_from(held).unwrap_or(u32::MAX)
    }

    /// An arrival that did not get a slot at once hears where it stands.
    pub(super) fn tell_arrival(&mut self, step: &mut Step<'_>, attempt: AttemptId) {
        let waits = self
            .works
            .get(&attempt)
            .is_some_and(|work| work.phase == WorkPhase::Queued);
        if waits
            && let Some(position) = self
                .queue
                .order()
                .iter()
                .position(|other| *other == attempt)
        {
            let scene = self.scene(step.world);
            self.tell(step, &scene, attempt, position);
        }
        self.stirred = true;
    }

    /// Tells everyone who waits: at a change after [`NEWS_FLOOR_MS`], and every [`NEWS_INTERVAL_MS`].
    pub(super) fn tell_all(&mut self, step: &mut Step<'_>) {
        if self.news_at().is_none_or(|at| step.now < at) {
            return;
        }
        let regular = step.now.since(self.told_at) >= NEWS_INTERVAL_MS;
        self.stirred = false;
        if regular {
            self.told_at = step.now;
        }
        let scene = self.scene(step.world);
        for (position, attempt) in self.queue.order().into_iter().enumerate() {
            let moved = |news: &QueueNews| usize::try_from(news.position) != Ok(position);
            let told = self.works.get(&attempt).and_then(|work| work.told.as_ref());
            if regular || told.is_none_or(moved) {
                self.tell(step, &scene, attempt, position);
            }
        }
        self.changes_told_at = step.now;
    }

    /// When those who wait are to be told next.
    pub(super) fn news_at(&self) -> Option<Timestamp> {
        if self.queue.len() == 0 {
            return None;
        }
        let regular = self.told_at + NEWS_INTERVAL_MS;
        let change = self.changes_told_at + NEWS_FLOOR_MS;
        Some(if self.stirred {
            regular.min(change)
        } else {
            regular
        })
    }

    fn tell(&mut self, step: &mut Step<'_>, scene: &Scene, attempt: AttemptId, position: usize) {
        let Some(work) = self.works.get_mut(&attempt) else {
            return;
        };
        let ahead = u32::try_from(position).unwrap_or(u32::MAX);
        let news = QueueNews {
            position: ahead,
            expected_wait_ms: scene.expected_wait_ms(ahead),
            why: scene.why(work.identity),
        };
        work.told = Some(news.clone());
        step.order(Action::ReplyQueued { attempt, news });
    }

    /// Looks once at everything that news depends on, so that a thousand who wait cost a thousand looks, not a million.
    fn scene(&self, world: &World) -> Scene {
        let mut scene = Scene {
            slots: world.config.slots.max(1),
            cap: identity_cap(world.lent_slots()),
            left_ms: 0,
            each_ms: 0,
            own_waits: false,
            held: BTreeMap::new(),
        };
        for work in self.works.values() {
            if work.holds_slot() {
                scene.left_ms = scene.left_ms.saturating_add(work.left_ms(world));
                *scene.held.entry(work.identity).or_default() += 1;
            } else {
                scene.each_ms = scene.each_ms.max(work.left_ms(world));
                scene.own_waits |= work.identity.is_own();
            }
        }
        scene
    }
}

/// What the news to everyone who waits is made of.
struct Scene {
    slots: u32,
    cap: u32,
    /// Expected milliseconds left of all running answers.
    left_ms: u64,
    /// Of the longest one waiting: a promise that is kept early is better than one that is not.
    each_ms: u64,
    own_waits: bool,
    held: BTreeMap<Identity, u32>,
}

impl Scene {
    /// What is left of the running answers plus those ahead, by measured speed, over the slots that serve them.
    fn expected_wait_ms(&self, ahead: u32) -> u64 {
        let queued = self.each_ms.saturating_mul(u64::from(ahead));
        self.left_ms.saturating_add(queued) / u64::from(self.slots)
    }

    fn why(&self, identity: Identity) -> WaitReason {
        let held = self.held.get(&identity).copied().unwrap_or(0);
        if identity.is_own() {
            WaitReason::SlotsTaken
        } else if held >= self.cap {
            WaitReason::IdentityCap
        } else if self.own_waits {
            WaitReason::OwnerFirst
        } else {
            WaitReason::SlotsTaken
        }
    }
}

impl Work {
    /// Expected milliseconds to the end of the answer.
    fn left_ms(&self, world: &World) -> u64 {
        let speed = world
            .models
            .get(&self.terms.entry)
            .map_or(0, |model| model.decode);
        let expected = self.terms.max_tokens.min(EXPECTED_ANSWER);
        millis(expected.saturating_sub(self.tokens).max(1), speed)
    }
}

/// Slots one identity may hold at once: all but a quarter, and at least one less than all, so that a second identity is
/// served at once; with a single slot, that one.
pub(crate) fn identity_cap(lent: u32) -> u32 {
    lent.saturating_sub((lent / 4).max(1)).max(1)
}
