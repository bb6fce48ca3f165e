//! The provider: attempts of requesters (this node among them), from the offer to the freed slot.
//!
//! Invariant: an offer is answered exactly once with ready or refused; a manifest id is taken once per session; input is
//! read only with a slot held; nothing runs for a requester whose stream closed before the Accept.
//! Absent by design: receipts. They are exchanged by the daemon's session task after the slot is free.

mod admission;
mod clock;
mod slots;
mod work;

use std::collections::{BTreeMap, BTreeSet};

use substrate_record::{NodeId, RecordId, SessionNonce};

use crate::event::Action;
use crate::limits::{
    IDENTITY_QUEUE, MANIFESTS_PER_SESSION, PROVIDER_QUEUE, QUEUE_RETRY_MS, REFUSAL_RETRY_MS,
    WORKER_RETRY_MS,
};
use crate::queue::{Identity, Queue, Waiting};
use crate::status::{WorkPhase, WorkStatus};
use crate::terms::{AttemptId, ClientId, Refusal, StopReason, Terms, Timestamp, WorkFailure};
use crate::world::{Step, World};

use work::Work;

/// An offer as it arrived, with whom it counts for if it is an own job.
pub(crate) struct Offer {
    pub attempt: AttemptId,
    pub manifest: RecordId,
    pub session: SessionNonce,
    pub terms: Terms,
    pub own: Option<Identity>,
}

#[derive(Debug, Default)]
pub(crate) struct Provider {
    works: BTreeMap<AttemptId, Work>,
    queue: Queue,
    /// Every manifest id of this session.
    manifests: BTreeSet<RecordId>,
    renewing: bool,
    arrived: u64,
    /// The queue changed since its waiters were told.
    stirred: bool,
    /// When everyone was told, and when a change was.
    told_at: Timestamp,
    changes_told_at: Timestamp,
}

impl Provider {
    pub fn statuses(&self) -> Vec<WorkStatus> {
        self.works.values().map(Work::status).collect()
    }

    pub fn queue_len(&self) -> usize {
        self.queue.len()
    }

    pub fn on_offer(&mut self, step: &mut Step<'_>, offer: Offer) {
        let attempt = offer.attempt;
        match self.consider(step, &offer) {
            Ok(identity) => self.enqueue(step, attempt, offer.terms, identity),
            Err(why) => step.order(refused(attempt, why)),
        }
    }

    fn consider(&mut self, step: &mut Step<'_>, offer: &Offer) -> Result<Identity, Refusal> {
        if offer.session != step.world.config.session {
            return Err(Refusal::WrongSession);
        }
        self.remember(step, offer.manifest)?;
        self.supersede(step, &offer.attempt)?;
        admission::admit(step.world, offer.attempt.peer, &offer.terms)?;
        let identity = match offer.own {
            Some(identity) => identity,
            None if offer.attempt.peer == step.world.own() => Identity::Own(ClientId::default()),
            None => Identity::Other(offer.attempt.peer),
        };
        // Own jobs are bounded by the own list.
        if !identity.is_own() {
            if self.queue.len_of(identity) >= IDENTITY_QUEUE {
                return Err(Refusal::IdentityLimit);
            }
            if self.queue.len_of_others() >= PROVIDER_QUEUE {
                return Err(Refusal::QueueFull);
            }
        }
        Ok(identity)
    }

    /// Each manifest counts once. A full memory asks for a new session, in which all of it is void.
    fn remember(&mut self, step: &mut Step<'_>, manifest: RecordId) -> Result<(), Refusal> {
        if self.manifests.len() >= MANIFESTS_PER_SESSION {
            if !std::mem::replace(&mut self.renewing, true) {
                step.order(Action::RenewSession);
            }
            return Err(Refusal::QueueFull);
        }
        if self.manifests.insert(manifest) {
            Ok(())
        } else {
            Err(Refusal::Replayed)
        }
    }

    /// A later attempt of the same job ends the earlier one here; an earlier one is too late.
    fn supersede(&mut self, step: &mut Step<'_>, attempt: &AttemptId) -> Result<(), Refusal> {
        let same_job = |held: &&AttemptId| held.job == attempt.job && held.peer == attempt.peer;
        let Some(held) = self.works.keys().find(same_job).copied() else {
            return Ok(());
        };
        if held.number >= attempt.number {
            return Err(Refusal::Replayed);
        }
        self.stop(step, held, StopReason::Superseded);
        Ok(())
    }

    fn enqueue(
        &mut self,
        step: &mut Step<'_>,
        attempt: AttemptId,
        terms: Terms,
        identity: Identity,
    ) {
        self.arrived += 1;
        self.queue.push(
            identity,
            Waiting {
                order: self.arrived,
                attempt,
            },
        );
        self.works
            .insert(attempt, Work::new(step.now, attempt, terms, identity));
        self.fill_slots(step);
        self.tell_arrival(step, attempt);
    }

    pub fn on_input(&mut self, step: &mut Step<'_>, attempt: AttemptId) {
        let now = step.now;
        let Some(work) = self.works.get_mut(&attempt) else {
            return;
        };
        work.heard = now;
        if work.phase == WorkPhase::Ready {
            work.enter(now, WorkPhase::Preparing);
            let (entry, isolated) = (work.terms.entry, work.terms.isolated);
            step.order(Action::Run {
                attempt,
                entry,
                isolated,
            });
        }
    }

    pub fn on_work_started(&mut self, step: &mut Step<'_>, attempt: AttemptId, n_in: u32) {
        let Some(work) = self.works.get_mut(&attempt) else {
            return;
        };
        if work.phase == WorkPhase::Preparing {
            work.enter(step.now, WorkPhase::Running);
            let identity = work.identity;
            self.queue.charge(identity, n_in, 0);
        }
    }

    pub fn on_work_progress(
        &mut self,
        step: &mut Step<'_>,
        attempt: AttemptId,
        prefilled: u32,
        tokens: u32,
    ) {
        let Some(work) = self.works.get_mut(&attempt) else {
            return;
        };
        if !work.accepted() {
            return;
        }
        let more = tokens.saturating_sub(work.tokens);
        if more > 0 || prefilled > work.prefilled {
            work.moved = step.now;
        }
        work.tokens = work.tokens.max(tokens);
        work.prefilled = work.prefilled.max(prefilled);
        let identity = work.identity;
        self.queue.charge(identity, 0, more);
    }

    pub fn on_work_finished(&mut self, step: &mut Step<'_>, attempt: AttemptId, tokens: u32) {
        self.on_work_progress(step, attempt, 0, tokens);
        self.forget(&attempt);
        self.fill_slots(step);
    }

    pub fn on_work_failed(&mut self, step: &mut Step<'_>, attempt: AttemptId, why: WorkFailure) {
        let Some(work) = self.works.get(&attempt) else {
            return;
        };
        if work.accepted() {
            return self.stop(step, attempt, StopReason::WorkerFailed);
        }
        let why = match why {
            WorkFailure::ContextOverflow => Refusal::ContextOverflow,
            WorkFailure::BadInput => Refusal::BadInput,
            WorkFailure::ModelUnusable | WorkFailure::Crashed => Refusal::WorkerFailed,
        };
        self.refuse(step, attempt, why);
    }

    pub fn on_requester_cancelled(&mut self, step: &mut Step<'_>, attempt: AttemptId) {
        self.stop(step, attempt, StopReason::Cancelled);
    }

    /// A peer is gone, and every stream with it.
    pub fn on_peer_down(&mut self, step: &mut Step<'_>, node: NodeId) {
        let held: Vec<_> = self
            .works
            .keys()
            .filter(|attempt| attempt.peer == node)
            .copied()
            .collect();
        for attempt in held {
            self.on_requester_lost(step, attempt);
        }
    }

    /// The requester's stream closed. Before the Accept that ends the attempt, after it the answer waits for a resume.
    pub fn on_requester_lost(&mut self, step: &mut Step<'_>, attempt: AttemptId) {
        let Some(work) = self.works.get_mut(&attempt) else {
            return;
        };
        match work.phase {
            WorkPhase::Running => {
                work.enter(step.now, WorkPhase::Paused);
                step.order(Action::PauseWork { attempt });
            }
            WorkPhase::Paused => {}
            WorkPhase::Queued | WorkPhase::Ready | WorkPhase::Preparing => {
                self.stop(step, attempt, StopReason::RequesterGone);
            }
        }
    }

    pub fn on_requester_resumed(&mut self, step: &mut Step<'_>, attempt: AttemptId) {
        let Some(work) = self.works.get_mut(&attempt).filter(|work| work.accepted()) else {
            // Too late, or never held: let go of the new stream.
            return step.order(Action::StopWork {
                attempt,
                why: StopReason::RequesterGone,
            });
        };
        work.heard = step.now;
        work.enter(step.now, WorkPhase::Running);
        step.order(Action::ResumeWork { attempt });
    }

    pub fn on_requester_heartbeat(&mut self, now: Timestamp, attempt: AttemptId) {
        if let Some(work) = self.works.get_mut(&attempt) {
            work.heard = now;
        }
    }

    /// The owner's settings, the circle or the registry changed: what is no longer permitted ends now.
    pub fn recheck(&mut self, step: &mut Step<'_>) {
        let denied: Vec<_> = (self.works.values())
            .filter_map(|work| {
                let why = admission::permitted(step.world, work.attempt.peer, &work.terms).err()?;
                Some((work.attempt, why))
            })
            .collect();
        for (attempt, why) in denied {
            let stop = match why {
                Refusal::LendingOff | Refusal::OwnerRefuses => StopReason::OwnerTookBack,
                _ => StopReason::OutOfScope,
            };
            self.end_quietly(step, attempt, why, stop);
        }
        self.fill_slots(step);
    }

    /// Stopping: nobody else waits or starts here any more; what runs goes on.
    pub fn on_draining(&mut self, step: &mut Step<'_>) {
        let own = step.world.own();
        let waiting = self
            .works
            .values()
            .filter(|work| work.phase <= WorkPhase::Ready && !work.is_own(own));
        for attempt in waiting.map(|work| work.attempt).collect::<Vec<_>>() {
            self.refuse(step, attempt, Refusal::Draining);
        }
    }

    pub fn on_session_renewed(&mut self, world: &mut World, session: SessionNonce) {
        world.config.session = session;
        self.manifests.clear();
        self.renewing = false;
    }

    /// Ends an attempt and gives its slot away: first the end, then the next one's beginning.
    fn end(&mut self, step: &mut Step<'_>, attempt: AttemptId, refusal: Refusal, stop: StopReason) {
        self.end_quietly(step, attempt, refusal, stop);
        self.fill_slots(step);
    }

    /// Refuses what the worker has not seen, stops what it may have.
    fn end_quietly(
        &mut self,
        step: &mut Step<'_>,
        attempt: AttemptId,
        refusal: Refusal,
        stop: StopReason,
    ) {
        let Some(phase) = self.works.get(&attempt).map(|work| work.phase) else {
            return;
        };
        self.forget(&attempt);
        step.order(match phase {
            WorkPhase::Queued | WorkPhase::Ready => refused(attempt, refusal),
            _ => Action::StopWork { attempt, why: stop },
        });
    }

    fn stop(&mut self, step: &mut Step<'_>, attempt: AttemptId, why: StopReason) {
        if self.forget(&attempt) {
            step.order(Action::StopWork { attempt, why });
            self.fill_slots(step);
        }
    }

    fn refuse(&mut self, step: &mut Step<'_>, attempt: AttemptId, why: Refusal) {
        if self.forget(&attempt) {
            step.order(refused(attempt, why));
            self.fill_slots(step);
        }
    }

    /// Drops an attempt. False if it was not held.
    fn forget(&mut self, attempt: &AttemptId) -> bool {
        let Some(work) = self.works.remove(attempt) else {
            return false;
        };
        self.queue.remove(work.identity, attempt);
        self.stirred = true;
        true
    }
}

fn refused(attempt: AttemptId, why: Refusal) -> Action {
    Action::ReplyRefused {
        attempt,
        why,
        retry_after_ms: retry_after_ms(why),
    }
}

fn retry_after_ms(why: Refusal) -> u64 {
    match why {
        Refusal::QueueFull | Refusal::IdentityLimit | Refusal::LeaseExpired => QUEUE_RETRY_MS,
        Refusal::WorkerFailed | Refusal::WrongSession => WORKER_RETRY_MS,
        _ => REFUSAL_RETRY_MS,
    }
}
