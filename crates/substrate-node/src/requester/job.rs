//! One job of an own client, and its one live attempt.
//!
//! Invariant: at most one attempt is live; `carried` + the live attempt's tokens is what the client has.
//! Absent by design: decisions. They are taken in the files beside this one.

use std::collections::{BTreeMap, BTreeSet};

use substrate_record::{JobId, NodeId, RecordId, Scope};

use crate::limits::{MAX_DEADLINE_MS, MAX_ENTRIES_PER_WANT, MAX_TOKENS};
use crate::route::Blocked;
use crate::status::{JobPhase, JobStatus};
use crate::terms::{AttemptId, QueueNews, Timestamp, WaitReason, Want};

#[derive(Debug)]
pub(crate) struct Job {
    pub want: Want,
    /// The scope to sign: never wider than asked.
    pub scope: Scope,
    pub since: Timestamp,
    /// When the client's patience ends if nothing comes before: a deadline after the submission, and after each token.
    /// While text flows it does not count at all; then only a stall ends the attempt, so that a slow and healthy
    /// stream is never cut for being long.
    pub deadline: Timestamp,
    /// Order of submission, for fairness among equals.
    pub order: u64,
    /// Number of the last attempt made.
    pub attempts: u32,
    /// Tokens of closed attempts.
    pub carried: u32,
    /// Times a node that had started gave the job back.
    pub given_up: u32,
    pub live: Option<Live>,
    /// Nodes to keep away from, and until when.
    pub tried: BTreeMap<NodeId, Timestamp>,
    /// Nodes that said the job itself is at fault.
    pub blamed_by: BTreeSet<NodeId>,
    /// Why it waits, while nothing is live.
    pub waits: WaitReason,
    /// When to look for a node again.
    pub look_at: Timestamp,
    /// What the client was told last, and when.
    pub told: Option<(QueueNews, Timestamp)>,
}

/// The attempt under way.
#[derive(Debug)]
pub(crate) struct Live {
    pub attempt: AttemptId,
    pub entry: RecordId,
    pub phase: JobPhase,
    /// Last sign of life.
    pub heard: Timestamp,
    /// When the phase began, or progress was last seen.
    pub moved: Timestamp,
    /// The peer has to be dialled first, so silence means nothing yet.
    pub dialling: bool,
    pub prefilled: u32,
    pub tokens: u32,
    /// The provider's last word on its queue, and when the first one came.
    pub queue: Option<Promise>,
    /// Longest time without progress, by the provider's own claimed speed.
    pub stall_ms: u64,
    /// Times as long as usual that it may take behind its wall.
    pub slowness: u64,
}

/// What a provider said about the wait.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Promise {
    pub position: u32,
    pub expected_wait_ms: u64,
    /// When it was said.
    pub at: Timestamp,
    /// When patience with the first promise ends.
    pub patience: Timestamp,
}

impl Job {
    pub fn new(now: Timestamp, order: u64, mut want: Want, scope: Scope) -> Self {
        want.entries.truncate(MAX_ENTRIES_PER_WANT);
        want.max_tokens = want.max_tokens.min(MAX_TOKENS);
        want.deadline_ms = want.deadline_ms.min(MAX_DEADLINE_MS);
        Self {
            scope,
            since: now,
            deadline: now + want.deadline_ms,
            order,
            attempts: 0,
            carried: 0,
            given_up: 0,
            live: None,
            tried: BTreeMap::new(),
            blamed_by: BTreeSet::new(),
            waits: WaitReason::NoCandidate,
            look_at: now,
            told: None,
            want,
        }
    }

    /// Nobody to ask: waits until something changes, or until the time given.
    pub fn wait(&mut self, blocked: &Blocked) {
        self.waits = blocked.why;
        self.look_at = blocked.until;
    }

    /// A token came: the client's patience begins anew.
    pub fn feed(&mut self, now: Timestamp) {
        self.deadline = now + self.want.deadline_ms;
    }

    /// When the client's patience ends; `None` while text flows.
    pub fn patience_ends_at(&self) -> Option<Timestamp> {
        let flows = |live: &Live| live.phase == JobPhase::Running && live.tokens > 0;
        (!self.live.as_ref().is_some_and(flows)).then_some(self.deadline)
    }

    /// Tokens the client has.
    pub fn tokens(&self) -> u32 {
        self.carried
            .saturating_add(self.live.as_ref().map_or(0, |live| live.tokens))
    }

    /// Tokens the live attempt may still produce in all.
    pub fn allowed(&self) -> u32 {
        self.want.max_tokens.saturating_sub(self.carried)
    }

    pub fn phase(&self) -> JobPhase {
        self.live
            .as_ref()
            .map_or(JobPhase::Waiting, |live| live.phase)
    }

    /// True while the client waits for a node to start.
    pub fn waits(&self) -> bool {
        self.phase() < JobPhase::Running
    }

    /// Where the job stands now, for its client.
    pub fn news(&self, now: Timestamp, position: u32) -> QueueNews {
        let waiting = QueueNews {
            position,
            expected_wait_ms: 0,
            why: self.waits,
        };
        let Some(live) = &self.live else {
            return waiting;
        };
        let peer = live.attempt.peer;
        match (live.phase, live.queue) {
            (JobPhase::Offered, _) => QueueNews {
                position: 0,
                why: WaitReason::Asking(peer),
                ..waiting
            },
            (JobPhase::Queued, Some(promise)) => QueueNews {
                position: promise.position,
                expected_wait_ms: promise
                    .expected_wait_ms
                    .saturating_sub(now.since(promise.at)),
                why: WaitReason::QueuedAt(peer),
            },
            (JobPhase::Running | JobPhase::Resuming | JobPhase::Settling, _) => QueueNews {
                position: 0,
                why: WaitReason::Answering(peer),
                ..waiting
            },
            _ => QueueNews {
                position: 0,
                why: WaitReason::Preparing(peer),
                ..waiting
            },
        }
    }

    pub fn status(&self, job: JobId) -> JobStatus {
        JobStatus {
            job,
            client: self.want.client,
            phase: self.phase(),
            attempt: self.live.as_ref().map(|live| live.attempt),
            attempts: self.attempts,
            tokens: self.tokens(),
            scope: self.scope,
            since: self.since,
            news: self
                .told
                .as_ref()
                .filter(|_| self.waits())
                .map(|(news, _)| news.clone()),
        }
    }
}

impl Live {
    /// Enters a phase; it has until its own limit from now on.
    pub fn enter(&mut self, now: Timestamp, phase: JobPhase) {
        self.phase = phase;
        self.moved = now;
    }
}
