//! What the passing of time does to own jobs: deadlines, silence, stalls, news.
//!
//! Invariant: [`Requester::due`] never lies after the moment at which [`Requester::on_time`] would do something.
//! Absent by design: a clock. `now` is an argument.

use substrate_record::JobId;

use crate::limits::{
    NEWS_FLOOR_MS, NEWS_INTERVAL_MS, OFFER_ANSWER_MS, PREPARE_LEASE_MS, RESUME_WINDOW_MS,
    SETTLE_LIMIT_MS, SILENCE_MS,
};
use crate::status::JobPhase;
use crate::terms::{AttemptId, CloseReason, JobFailure, MoveReason, Timestamp};
use crate::world::{Step, World};

use super::Requester;
use super::job::{Job, Live};

/// What is overdue on a job, in the order of its weight.
enum Overdue {
    Deadline,
    Silent(AttemptId),
    Stalled(AttemptId),
    Settle,
    Look,
    News,
}

impl Requester {
    /// Does everything that is due.
    pub fn on_time(&mut self, step: &mut Step<'_>) {
        let due: Vec<_> = self
            .jobs
            .iter()
            .filter_map(|(id, job)| job.overdue(step.now, step.world).map(|what| (*id, what)))
            .collect();
        for (id, what) in due {
            match what {
                Overdue::Deadline => self.expire(step, id),
                Overdue::Silent(attempt) => self.lose(step, attempt),
                Overdue::Stalled(attempt) => {
                    step.world.conducts.strike(step.now, attempt.peer);
                    self.move_on(step, attempt, CloseReason::Stalled, MoveReason::Stalled);
                }
                Overdue::Settle => self.finish(step, id),
                Overdue::Look => self.stir(),
                Overdue::News => self.tell(step, id),
            }
        }
    }

    /// When something is due next.
    pub fn due(&self, world: &World) -> Option<Timestamp> {
        self.jobs.values().map(|job| job.due(world)).min()
    }

    fn expire(&mut self, step: &mut Step<'_>, id: JobId) {
        let Some(job) = self.jobs.get(&id) else {
            return;
        };
        let why = JobFailure::Deadline {
            attempts: job.attempts,
            last: job.news(step.now, 0).why,
        };
        self.fail(step, id, CloseReason::Deadline, why);
    }

    /// Tells the client where the job stands: at a change of phase at once, of place after [`NEWS_FLOOR_MS`],
    /// and in any case every [`NEWS_INTERVAL_MS`].
    pub(super) fn tell(&mut self, step: &mut Step<'_>, id: JobId) {
        let Some(job) = self.jobs.get(&id).filter(|job| job.waits()) else {
            return;
        };
        let why = job.news(step.now, 0).why;
        if job
            .told
            .as_ref()
            .is_some_and(|(told, at)| told.why == why && step.now.since(*at) < NEWS_FLOOR_MS)
        {
            return;
        }
        let ahead = if job.live.is_none() {
            self.waiting_before(job.order)
        } else {
            0
        };
        let news = job.news(step.now, ahead);
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        let fresh = job.told.as_ref().is_none_or(|(told, at)| {
            let age = step.now.since(*at);
            told.why != news.why || told.position != news.position || age >= NEWS_INTERVAL_MS
        });
        if fresh {
            job.told = Some((news.clone(), step.now));
            step.order(crate::event::Action::TellQueued { job: id, news });
        }
    }

    fn waiting_before(&self, order: u64) -> u32 {
        let before = self
            .jobs
            .values()
            .filter(|job| job.live.is_none() && job.order < order)
            .count();
        u32::try_from(before).unwrap_or(u32::MAX)
    }
}

impl Job {
    fn overdue(&self, now: Timestamp, world: &World) -> Option<Overdue> {
        if self.phase() == JobPhase::Settling {
            let live = self.live.as_ref()?;
            return (now >= live.moved + SETTLE_LIMIT_MS).then_some(Overdue::Settle);
        }
        if self.patience_ends_at().is_some_and(|at| now >= at) {
            return Some(Overdue::Deadline);
        }
        if let Some(live) = &self.live {
            if live.silent_at(world).is_some_and(|at| now >= at) {
                return Some(Overdue::Silent(live.attempt));
            }
            if live.stalled_at(world).is_some_and(|at| now >= at) {
                return Some(Overdue::Stalled(live.attempt));
            }
        } else if now >= self.look_at {
            return Some(Overdue::Look);
        }
        self.news_at()
            .is_some_and(|at| now >= at)
            .then_some(Overdue::News)
    }

    fn due(&self, world: &World) -> Timestamp {
        let patience = self.patience_ends_at();
        let limits = match &self.live {
            None => [patience, Some(self.look_at), None, self.news_at()],
            Some(live) if live.phase == JobPhase::Settling => {
                return live.moved + SETTLE_LIMIT_MS;
            }
            Some(live) => [
                patience,
                live.silent_at(world),
                live.stalled_at(world),
                self.news_at(),
            ],
        };
        // While text flows there is no patience to end, but the limit of a stall.
        limits.into_iter().flatten().min().unwrap_or(self.deadline)
    }

    fn news_at(&self) -> Option<Timestamp> {
        let (_, at) = self.told.as_ref().filter(|_| self.waits())?;
        Some(*at + NEWS_INTERVAL_MS)
    }
}

impl Live {
    /// When silence will mean that the peer is gone. The own machine cannot fall silent to itself.
    fn silent_at(&self, world: &World) -> Option<Timestamp> {
        let own = self.attempt.peer == world.own();
        match self.phase {
            JobPhase::Resuming => Some(self.moved + RESUME_WINDOW_MS),
            JobPhase::Settling | JobPhase::Waiting => None,
            _ if own || self.dialling => None,
            _ => Some(self.heard + SILENCE_MS),
        }
    }

    /// When a peer that is alive has done nothing for too long.
    fn stalled_at(&self, world: &World) -> Option<Timestamp> {
        let own = self.attempt.peer == world.own();
        match self.phase {
            JobPhase::Offered => Some(self.moved + OFFER_ANSWER_MS),
            JobPhase::Queued if own => None,
            JobPhase::Queued => self.queue.map(|promise| promise.patience),
            JobPhase::Preparing => Some(self.moved + PREPARE_LEASE_MS * self.slowness),
            JobPhase::Running => Some(self.moved + self.stall_ms),
            JobPhase::Waiting | JobPhase::Resuming | JobPhase::Settling => None,
        }
    }
}
