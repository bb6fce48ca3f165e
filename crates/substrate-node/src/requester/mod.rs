//! The requester: jobs of this daemon's clients, from submission to the receipt.
//!
//! Invariant: every accepted job ends in exactly one `FinishJob` or `FailJob`; a new attempt is made only after the
//! last one was closed; at most one attempt of a job is ever settled.
//! Absent by design: the choice of a node (`route.rs`) and what other requesters do here (`provider/`).

mod clock;
mod dispatch;
mod job;

use std::collections::BTreeMap;

use substrate_record::{Finish, JobId, NodeId};

use crate::event::Action;
use crate::limits::{
    LIST_RETRY_MS, LOST_RETRY_MS, MAX_GIVEN_UP, OWN_LIST, QUEUE_PATIENCE_MS, RETRY_RANGE_MS,
    TRIED_PER_JOB,
};
use crate::queue::Identity;
use crate::route::ScopedCandidates;
use crate::status::{JobPhase, JobStatus};
use crate::terms::{
    AttemptId, ClientId, CloseReason, JobFailure, MoveReason, Placement, Refusal, Timestamp, Want,
};
use crate::warm::Warm;
use crate::world::{Step, World};

use job::{Job, Live, Promise};

#[derive(Debug, Default)]
pub(crate) struct Requester {
    jobs: BTreeMap<JobId, Job>,
    submitted: u64,
    warm: Warm,
    /// Something changed that may let a waiting job go.
    stirred: bool,
}

impl Requester {
    pub fn statuses(&self) -> Vec<JobStatus> {
        let mut jobs: Vec<_> = self.jobs.iter().collect();
        jobs.sort_by_key(|(_, job)| job.order);
        jobs.into_iter().map(|(id, job)| job.status(*id)).collect()
    }

    /// For whom an own job counts in the own queue.
    pub fn identity_of(&self, job: &JobId) -> Option<Identity> {
        let want = &self.jobs.get(job)?.want;
        Some(if want.patient {
            Identity::Patient(want.client)
        } else {
            Identity::Own(want.client)
        })
    }

    fn client_of(&self, job: &JobId) -> Option<ClientId> {
        self.jobs.get(job).map(|job| job.want.client)
    }

    /// Something outside changed (a node came, a model loaded): look at all waiting jobs again.
    pub fn stir(&mut self) {
        self.stirred = true;
    }

    pub fn on_submitted(&mut self, step: &mut Step<'_>, id: JobId, want: Want) {
        if self.jobs.contains_key(&id) {
            return;
        }
        match self.admit(step, &want) {
            Ok(scope) => {
                self.submitted += 1;
                self.jobs
                    .insert(id, Job::new(step.now, self.submitted, want, scope));
                self.stir();
            }
            Err(why) => step.order(Action::FailJob { job: id, why }),
        }
    }

    /// The scope to sign, or why the job cannot be taken.
    fn admit(&self, step: &Step<'_>, want: &Want) -> Result<substrate_record::Scope, JobFailure> {
        if self.jobs.len() >= step.world.config.own_list.min(OWN_LIST) {
            let waiting = u32::try_from(self.jobs.len()).unwrap_or(u32::MAX);
            return Err(JobFailure::ListFull {
                waiting,
                retry_after_ms: LIST_RETRY_MS,
            });
        }
        let scope = step
            .world
            .widest_valid(want.scope, &want.entries)
            .ok_or(JobFailure::EntryNotValid)?;
        let reachable = match want.placement {
            Placement::Any => true,
            Placement::Elsewhere => scope > substrate_record::Scope::Mine,
            Placement::Node(node) => step.world.in_scope(scope, &node),
        };
        if reachable {
            Ok(scope)
        } else {
            Err(JobFailure::PlaceOutsideScope)
        }
    }

    pub fn on_cancelled(&mut self, step: &mut Step<'_>, id: JobId) {
        if self
            .jobs
            .get(&id)
            .is_some_and(|job| job.phase() != JobPhase::Settling)
        {
            self.fail(step, id, CloseReason::Cancelled, JobFailure::Cancelled);
        }
    }

    pub fn on_queued(
        &mut self,
        step: &mut Step<'_>,
        attempt: AttemptId,
        position: u32,
        expected_wait_ms: u64,
    ) {
        let now = step.now;
        let Some(live) = self.live(&attempt) else {
            return;
        };
        live.heard = now;
        live.dialling = false;
        if live.phase > JobPhase::Queued {
            return;
        }
        let first = now
            + expected_wait_ms
                .saturating_mul(2)
                .saturating_add(QUEUE_PATIENCE_MS);
        let patience = live.queue.map_or(first, |promise| promise.patience);
        live.queue = Some(Promise {
            position,
            expected_wait_ms,
            at: now,
            patience,
        });
        live.enter(now, JobPhase::Queued);
        self.tell(step, attempt.job);
    }

    pub fn on_ready(&mut self, step: &mut Step<'_>, attempt: AttemptId) {
        let now = step.now;
        let Some(live) = self.live(&attempt) else {
            return;
        };
        live.heard = now;
        live.dialling = false;
        if live.phase <= JobPhase::Queued {
            live.enter(now, JobPhase::Preparing);
            self.tell(step, attempt.job);
        }
    }

    pub fn on_started(&mut self, step: &mut Step<'_>, attempt: AttemptId, n_in: u32) {
        let now = step.now;
        let Some(live) = self.live(&attempt) else {
            return;
        };
        live.heard = now;
        if live.phase >= JobPhase::Running {
            return;
        }
        live.enter(now, JobPhase::Running);
        let entry = live.entry;
        if let Some(client) = self.client_of(&attempt.job) {
            self.warm.note(now, client, entry, attempt.peer);
        }
        step.order(Action::TellStarted { attempt, n_in });
    }

    pub fn on_progress(
        &mut self,
        step: &mut Step<'_>,
        attempt: AttemptId,
        prefilled: u32,
        tokens: u32,
    ) {
        let now = step.now;
        let Some(job) = self.job_of(&attempt) else {
            return;
        };
        let allowed = job.allowed();
        let Some(live) = job.live.as_mut() else {
            return;
        };
        if live.phase == JobPhase::Resuming {
            // What was still in flight on the broken stream; the resumed one counts it again.
            return;
        }
        if live.phase < JobPhase::Running || tokens > allowed {
            // Before Started, or more than was asked for: no honest node sends that.
            return self.on_misbehaved(step, attempt);
        }
        live.heard = now;
        let fed = tokens > live.tokens;
        if prefilled > live.prefilled || fed {
            live.moved = now;
            live.prefilled = live.prefilled.max(prefilled);
            live.tokens = live.tokens.max(tokens);
        }
        if fed {
            job.feed(now);
        }
    }

    pub fn on_finished(
        &mut self,
        step: &mut Step<'_>,
        attempt: AttemptId,
        tokens: u32,
        finish: Finish,
    ) {
        let now = step.now;
        let Some(job) = self.job_of(&attempt) else {
            return;
        };
        let allowed = job.allowed();
        let Some(live) = job.live.as_mut() else {
            return;
        };
        if live.phase < JobPhase::Running || tokens > allowed || tokens < live.tokens {
            return self.on_misbehaved(step, attempt);
        }
        live.tokens = tokens;
        match finish {
            Finish::Stop | Finish::Length => {
                live.enter(now, JobPhase::Settling);
                step.order(Action::Settle { attempt, tokens });
                step.world.conducts.forgive(&attempt.peer);
                step.world.note_used(attempt.peer);
            }
            Finish::Cancelled | Finish::Failed => {
                job.given_up += 1;
                if finish == Finish::Failed {
                    step.world.conducts.strike(now, attempt.peer);
                }
                self.move_on(step, attempt, CloseReason::GaveUp, MoveReason::GaveUp);
            }
        }
    }

    pub fn on_refused(
        &mut self,
        step: &mut Step<'_>,
        attempt: AttemptId,
        why: Refusal,
        retry_after_ms: u64,
    ) {
        let Some(job) = self.job_of(&attempt) else {
            return;
        };
        if job.phase() >= JobPhase::Running {
            return self.on_misbehaved(step, attempt);
        }
        let retry = retry_after_ms.clamp(RETRY_RANGE_MS.0, RETRY_RANGE_MS.1);
        job.keep_away(attempt.peer, step.now + retry);
        if why.blames_the_job() {
            job.blamed_by.insert(attempt.peer);
            // The own machine is believed, a stranger when a second one says the same or there is no second.
            let own = attempt.peer == step.world.own();
            if own || job.blamed_by.len() >= 2 || !job.has_another_opinion(step.world) {
                return self.fail(
                    step,
                    attempt.job,
                    CloseReason::Refused,
                    JobFailure::Refused(why),
                );
            }
        }
        // A worker that fails here says something about its model; the others have workers of their own.
        let here = attempt.peer == step.world.own() && why == Refusal::WorkerFailed;
        if why.holds_for_all_jobs() && !here {
            step.world.conducts.decline(step.now, attempt.peer, retry);
        }
        self.close(step, attempt.job, CloseReason::Refused);
    }

    pub fn on_heartbeat(&mut self, step: &mut Step<'_>, attempt: AttemptId) {
        if let Some(live) = self.live(&attempt) {
            live.heard = step.now;
            live.dialling = false;
        }
    }

    pub fn on_resumed(&mut self, step: &mut Step<'_>, attempt: AttemptId) {
        let now = step.now;
        if let Some(live) = self
            .live(&attempt)
            .filter(|live| live.phase == JobPhase::Resuming)
        {
            live.heard = now;
            live.enter(now, JobPhase::Running);
        }
    }

    pub fn on_misbehaved(&mut self, step: &mut Step<'_>, attempt: AttemptId) {
        if self.live(&attempt).is_some() {
            // This machine does not shun itself: whatever broke the protocol came from one of its workers.
            match attempt.peer == step.world.own() {
                true => step.world.conducts.strike(step.now, attempt.peer),
                false => step.world.conducts.misbehave(step.now, attempt.peer),
            }
            self.move_on(
                step,
                attempt,
                CloseReason::Misbehaved,
                MoveReason::Misbehaved,
            );
        }
    }

    /// The stream is gone, with its connection or without. What runs is taken up again on a new stream if one dial
    /// reaches the provider in time (PROTOCOL.md 5): a killed one refuses it at once, so failover is no later for it.
    pub fn on_stream_lost(&mut self, step: &mut Step<'_>, attempt: AttemptId) {
        let now = step.now;
        let Some(live) = self.live(&attempt) else {
            return;
        };
        match live.phase {
            JobPhase::Running => {
                live.enter(now, JobPhase::Resuming);
                step.order(Action::Resume { attempt });
            }
            // The same loss, reported again: by the stream and by its connection.
            JobPhase::Resuming => {}
            _ => self.lose(step, attempt),
        }
    }

    /// The job itself is at fault, by this machine's own count.
    pub fn on_impossible(&mut self, step: &mut Step<'_>, attempt: AttemptId, why: Refusal) {
        if self.live(&attempt).is_some() {
            self.fail(
                step,
                attempt.job,
                CloseReason::Refused,
                JobFailure::Refused(why),
            );
        }
    }

    /// The attempt's provider is out of reach: silence, a failed dial, a failed resume.
    pub fn lose(&mut self, step: &mut Step<'_>, attempt: AttemptId) {
        if self.live(&attempt).is_some() {
            step.world.conducts.strike(step.now, attempt.peer);
            self.move_on(step, attempt, CloseReason::Lost, MoveReason::Vanished);
        }
    }

    pub fn on_resume_failed(&mut self, step: &mut Step<'_>, attempt: AttemptId) {
        if self
            .live(&attempt)
            .is_some_and(|live| live.phase == JobPhase::Resuming)
        {
            self.lose(step, attempt);
        }
    }

    pub fn on_receipt_stored(&mut self, step: &mut Step<'_>, attempt: AttemptId) {
        let job = self
            .jobs
            .get(&attempt.job)
            .filter(|job| job.phase() == JobPhase::Settling);
        if job
            .and_then(|job| job.live.as_ref())
            .is_some_and(|live| live.attempt == attempt)
        {
            self.finish(step, attempt.job);
        }
    }

    /// A peer's last connection is gone, and every stream with it.
    pub fn on_peer_down(&mut self, step: &mut Step<'_>, node: NodeId) {
        self.warm.forget_node(&node);
        for attempt in self.attempts_at(|live| live.attempt.peer == node) {
            self.on_stream_lost(step, attempt);
        }
    }

    /// The circle or the registry changed: nothing may go on where it may no longer be.
    pub fn recheck_scope(&mut self, step: &mut Step<'_>) {
        let outside: Vec<_> = (self.jobs.values())
            .filter_map(|job| {
                let live = job
                    .live
                    .as_ref()
                    .filter(|live| live.phase != JobPhase::Settling)?;
                let inside = step.world.in_scope(job.scope, &live.attempt.peer)
                    && step.world.valid_in(job.scope, &live.entry);
                (!inside).then_some(live.attempt)
            })
            .collect();
        for attempt in outside {
            self.move_on(
                step,
                attempt,
                CloseReason::OutOfScope,
                MoveReason::OutOfScope,
            );
        }
        self.stir();
    }

    /// Leaves the provider and looks for the next one; what the client has stays.
    fn move_on(
        &mut self,
        step: &mut Step<'_>,
        attempt: AttemptId,
        close: CloseReason,
        why: MoveReason,
    ) {
        let Some(job) = self.job_of(&attempt) else {
            return;
        };
        let had_started = job.phase() >= JobPhase::Running;
        job.keep_away(attempt.peer, step.now + LOST_RETRY_MS);
        self.close(step, attempt.job, close);
        let Some(job) = self.jobs.get(&attempt.job) else {
            return;
        };
        let (after_tokens, given_up) = (job.carried, job.given_up);
        if given_up >= MAX_GIVEN_UP {
            return self.fail(
                step,
                attempt.job,
                close,
                JobFailure::GivenUp { times: given_up },
            );
        }
        if after_tokens > 0 && job.allowed() == 0 {
            // The node vanished after the last token: the client has the whole answer.
            return self.finish(step, attempt.job);
        }
        if had_started {
            step.order(Action::TellMoved {
                job: attempt.job,
                from: attempt.peer,
                after_tokens,
                why,
            });
        }
    }

    /// Closes the live attempt, if there is one, and carries its tokens over.
    fn close(&mut self, step: &mut Step<'_>, id: JobId, why: CloseReason) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        if let Some(live) = job.live.take() {
            job.carried = job.carried.saturating_add(live.tokens);
            job.look_at = step.now;
            step.order(Action::CloseAttempt {
                attempt: live.attempt,
                tokens: live.tokens,
                why,
            });
            self.stir();
        }
    }

    fn fail(&mut self, step: &mut Step<'_>, id: JobId, close: CloseReason, why: JobFailure) {
        self.close(step, id, close);
        if self.jobs.remove(&id).is_some() {
            step.order(Action::FailJob { job: id, why });
        }
    }

    fn finish(&mut self, step: &mut Step<'_>, id: JobId) {
        if self.jobs.remove(&id).is_some() {
            step.order(Action::FinishJob { job: id });
            self.stir();
        }
    }

    /// The job whose live attempt this is; `None` for anything late, and once the answer is whole.
    fn job_of(&mut self, attempt: &AttemptId) -> Option<&mut Job> {
        let job = self.jobs.get_mut(&attempt.job)?;
        let live = job.live.as_ref()?;
        (live.attempt == *attempt && live.phase != JobPhase::Settling).then_some(job)
    }

    fn live(&mut self, attempt: &AttemptId) -> Option<&mut Live> {
        self.job_of(attempt)?.live.as_mut()
    }

    fn attempts_at(&self, wanted: impl Fn(&Live) -> bool) -> Vec<AttemptId> {
        let lives = self.jobs.values().filter_map(|job| job.live.as_ref());
        lives
            .filter(|live| wanted(live))
            .map(|live| live.attempt)
            .collect()
    }
}

impl Job {
    /// Somebody who could answer has not yet said that the job itself is at fault.
    fn has_another_opinion(&self, world: &World) -> bool {
        let candidates = ScopedCandidates::of(world, self.scope);
        let holders = |entry| candidates.holders(entry).into_iter();
        let asked = |node: &NodeId| match self.want.placement {
            Placement::Any => true,
            Placement::Elsewhere => *node != world.own(),
            Placement::Node(wanted) => *node == wanted,
        };
        (self.want.entries.iter())
            .flat_map(holders)
            .any(|node| asked(&node) && !self.blamed_by.contains(&node))
    }

    fn keep_away(&mut self, node: NodeId, until: Timestamp) {
        if self.tried.len() < TRIED_PER_JOB || self.tried.contains_key(&node) {
            self.tried.insert(node, until);
        }
    }
}
