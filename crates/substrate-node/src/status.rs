//! What a node can be asked: read-only pictures for `jobs`, `ps`, `peers` and `status`.
//!
//! Invariant: asking changes nothing.
//! Absent by design: setters; anything an event should say instead.

use substrate_record::{Capability, NodeId, Scope, Verified, WallTier};

use crate::terms::{AttemptId, ClientId, QueueNews, Timestamp};

/// A job of a client of this daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobStatus {
    /// The job.
    pub job: substrate_record::JobId,
    /// Who asked.
    pub client: ClientId,
    /// Where it is.
    pub phase: JobPhase,
    /// The live attempt, if there is one.
    pub attempt: Option<AttemptId>,
    /// Attempts made so far.
    pub attempts: u32,
    /// Tokens of the whole answer so far.
    pub tokens: u32,
    /// Its scope.
    pub scope: Scope,
    /// When it was submitted.
    pub since: Timestamp,
    /// The last news its client was told, while it waits.
    pub news: Option<QueueNews>,
}

/// Where a requested job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum JobPhase {
    /// In the own list, no live attempt.
    Waiting,
    /// An offer is out; no answer yet.
    Offered,
    /// In a provider's queue.
    Queued,
    /// Ready was said; the input travels, the model loads.
    Preparing,
    /// The provider has started.
    Running,
    /// The stream broke; the same attempt is being taken up again.
    Resuming,
    /// The answer is whole; the receipt is being stored.
    Settling,
}

/// An attempt this node works on for a requester (or itself).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkStatus {
    /// Which; `peer` is the requester.
    pub attempt: AttemptId,
    /// Where it is.
    pub phase: WorkPhase,
    /// Entry it runs.
    pub entry: substrate_record::RecordId,
    /// Its signed scope.
    pub scope: Scope,
    /// Tokens sampled.
    pub tokens: u32,
    /// When the offer came.
    pub since: Timestamp,
    /// The last news the requester was told, while it waits.
    pub news: Option<QueueNews>,
}

/// Where an attempt is at its provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum WorkPhase {
    /// In the queue.
    Queued,
    /// Holds a leased slot; the input is awaited.
    Ready,
    /// The input is in; the worker prepares.
    Preparing,
    /// Accept sent, working.
    Running,
    /// The requester's stream broke; paused, tail kept.
    Paused,
}

/// A node in sight.
#[derive(Debug, Clone)]
pub struct PeerStatus<'a> {
    /// Its key.
    pub node: NodeId,
    /// Connected and through hello.
    pub connected: bool,
    /// Last measured round trip.
    pub rtt_ms: Option<u32>,
    /// Its session nonce, while connected.
    pub session: Option<substrate_record::SessionNonce>,
    /// Listed in a circle of mine.
    pub circle: bool,
    /// Its capability, if one is held and not expired.
    pub capability: Option<&'a Verified<Capability>>,
    /// The walls it says it has, but a trusted execution environment only if its evidence was believed.
    pub walls: Vec<WallTier>,
}
