//! One attempt this node holds for a requester.
//!
//! Invariant: phases only go forward, but for `Paused` and `Running`, which alternate.
//! Absent by design: decisions. They are taken in the files beside this one.

use substrate_record::NodeId;

use crate::limits::MAX_DEADLINE_MS;
use crate::queue::Identity;
use crate::status::{WorkPhase, WorkStatus};
use crate::terms::{AttemptId, QueueNews, Terms, Timestamp};

#[derive(Debug)]
pub(crate) struct Work {
    pub attempt: AttemptId,
    pub terms: Terms,
    pub identity: Identity,
    pub phase: WorkPhase,
    pub since: Timestamp,
    /// When the requester no longer waits for a first token. See [`Work::patience_ends_at`].
    pub deadline: Timestamp,
    /// Last sign of life of the requester.
    pub heard: Timestamp,
    /// When the phase began, or progress was last seen.
    pub moved: Timestamp,
    pub prefilled: u32,
    pub tokens: u32,
    pub told: Option<QueueNews>,
}

impl Work {
    pub fn new(now: Timestamp, attempt: AttemptId, terms: Terms, identity: Identity) -> Self {
        Self {
            attempt,
            identity,
            phase: WorkPhase::Queued,
            since: now,
            deadline: now + terms.deadline_ms.min(MAX_DEADLINE_MS),
            heard: now,
            moved: now,
            prefilled: 0,
            tokens: 0,
            told: None,
            terms,
        }
    }

    pub fn enter(&mut self, now: Timestamp, phase: WorkPhase) {
        self.phase = phase;
        self.moved = now;
    }

    pub fn is_own(&self, own: NodeId) -> bool {
        self.attempt.peer == own
    }

    /// The manifest's deadline bounds the wait for the first token. From then on the work has its lease, which every
    /// step renews: an answer that gets on is not cut for being long.
    pub fn patience_ends_at(&self) -> Option<Timestamp> {
        (self.tokens == 0).then_some(self.deadline)
    }

    /// True while it occupies a slot.
    pub fn holds_slot(&self) -> bool {
        self.phase > WorkPhase::Queued
    }

    /// True once an Accept may have been sent.
    pub fn accepted(&self) -> bool {
        self.phase >= WorkPhase::Running
    }

    pub fn status(&self) -> WorkStatus {
        WorkStatus {
            attempt: self.attempt,
            phase: self.phase,
            entry: self.terms.entry,
            scope: self.terms.scope,
            tokens: self.tokens,
            since: self.since,
            news: self
                .told
                .clone()
                .filter(|_| self.phase == WorkPhase::Queued),
        }
    }
}
