//! What the passing of time does to work held for requesters: leases, silence, deadlines, news.
//!
//! Invariant: every slot has an end in sight: [`Work::ends_at`] is never `None` for long, whatever the requester does.
//! Absent by design: a clock. `now` is an argument.

use crate::limits::{
    INPUT_LEASE_MS, PREPARE_LEASE_MS, SILENCE_MS, TAIL_KEPT_MS, WORK_LEASE_MS, slowness,
};
use crate::status::WorkPhase;
use crate::terms::{AttemptId, Refusal, StopReason, Timestamp};
use crate::world::{Step, World};

use super::Provider;
use super::work::Work;

/// What is overdue on an attempt.
enum Overdue {
    Deadline,
    Silent,
    Lease,
    Tail,
}

impl Provider {
    /// Does everything that is due.
    pub fn on_time(&mut self, step: &mut Step<'_>) {
        let due: Vec<_> = (self.works.values())
            .filter_map(|work| {
                work.overdue(step.now, step.world)
                    .map(|what| (work.attempt, what))
            })
            .collect();
        for (attempt, what) in due {
            self.end_overdue(step, attempt, what);
        }
        self.tell_all(step);
    }

    fn end_overdue(&mut self, step: &mut Step<'_>, attempt: AttemptId, what: Overdue) {
        match what {
            Overdue::Deadline => {
                self.end(step, attempt, Refusal::DeadlinePassed, StopReason::Deadline)
            }
            Overdue::Lease => self.end(
                step,
                attempt,
                Refusal::LeaseExpired,
                StopReason::LeaseExpired,
            ),
            Overdue::Silent => self.on_requester_lost(step, attempt),
            Overdue::Tail => self.stop(step, attempt, StopReason::RequesterGone),
        }
    }

    /// When something is due next.
    pub fn due(&self, world: &World) -> Option<Timestamp> {
        let works = self.works.values().map(|work| work.due(world));
        works.chain(self.news_at()).min()
    }
}

impl Work {
    fn overdue(&self, now: Timestamp, world: &World) -> Option<Overdue> {
        if self.patience_ends_at().is_some_and(|at| now >= at) {
            return Some(Overdue::Deadline);
        }
        if self.silent_at(world).is_some_and(|at| now >= at) {
            return Some(Overdue::Silent);
        }
        let over = self.lease_ends_at().is_some_and(|at| now >= at);
        over.then_some(if self.phase == WorkPhase::Paused {
            Overdue::Tail
        } else {
            Overdue::Lease
        })
    }

    fn due(&self, world: &World) -> Timestamp {
        let limits = [
            self.patience_ends_at(),
            self.silent_at(world),
            self.lease_ends_at(),
        ];
        // Work without a first token has its deadline, and any other its lease.
        limits.into_iter().flatten().min().unwrap_or(self.deadline)
    }

    /// When silence will mean that the requester is gone. The own machine cannot fall silent to itself.
    fn silent_at(&self, world: &World) -> Option<Timestamp> {
        let listened_for = self.phase != WorkPhase::Paused && !self.is_own(world.own());
        listened_for.then_some(self.heard + SILENCE_MS)
    }

    fn lease_ends_at(&self) -> Option<Timestamp> {
        match self.phase {
            WorkPhase::Queued => None,
            WorkPhase::Ready => Some(self.moved + INPUT_LEASE_MS),
            WorkPhase::Preparing => Some(self.moved + PREPARE_LEASE_MS * slowness(self.terms.wall)),
            WorkPhase::Running => Some(self.moved + WORK_LEASE_MS * slowness(self.terms.wall)),
            WorkPhase::Paused => Some(self.moved + TAIL_KEPT_MS),
        }
    }
}
