//! The nouns of the node's events and actions.
//!
//! Invariant: every number has its unit in its name or its type, every reason is an enum that can be counted.
//! Absent by design: wall-clock times, floats, anything a prompt or an answer is made of.

use std::fmt;
use std::ops::Add;

use substrate_record::{JobId, JobKind, ModelOffer, NodeId, RecordId, Scope, WallTier};

/// Milliseconds on the caller's monotonic clock. Only differences mean anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// Milliseconds since `earlier`, 0 if that lies ahead.
    pub fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<u64> for Timestamp {
    type Output = Self;

    fn add(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms))
    }
}

/// One attempt at one job, named from either end of its stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AttemptId {
    /// The job, the same through every failover.
    pub job: JobId,
    /// 1 for the first offer, one more for every further offer, as in the manifest.
    pub number: u32,
    /// The other end: the provider in requester events, the requester in provider events.
    pub peer: NodeId,
}

impl fmt::Display for AttemptId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}@{}", self.job, self.number, self.peer.short())
    }
}

/// A client of this daemon (the owner, one API key, …), for fairness among them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ClientId(pub u64);

/// Where the client wants the job to run, inside its scope.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Placement {
    /// Anywhere the scope allows; the own machine wins ties.
    #[default]
    Any,
    /// Never on the own machine.
    Elsewhere,
    /// On this node or nowhere.
    Node(NodeId),
}

/// What a client asks for, without the content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Want {
    /// Acceptable entries: different signatures over the same weights. At most [`crate::limits::MAX_ENTRIES_PER_WANT`].
    pub entries: Vec<RecordId>,
    /// The widest scope the job may use.
    pub scope: Scope,
    /// Where, inside it.
    pub placement: Placement,
    /// The wall demanded.
    pub wall: WallTier,
    /// A fresh worker, shared with nobody.
    pub isolated: bool,
    /// Generate or embed.
    pub kind: JobKind,
    /// Prompt tokens, guessed by the daemon from its length.
    pub n_in_estimate: u32,
    /// At most this many new tokens.
    pub max_tokens: u32,
    /// How long the client waits with nothing coming: for the first token, and after any token while no text flows.
    pub deadline_ms: u64,
    /// Who asks.
    pub client: ClientId,
    /// Nobody sits before it: it goes behind every job of this daemon whose client waits for words, and is no more than
    /// another's in this machine's own queue.
    pub patient: bool,
}

/// What a manifest demands of its provider.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terms {
    /// Signed scope.
    pub scope: Scope,
    /// Entry to answer with.
    pub entry: RecordId,
    /// Wall demanded.
    pub wall: WallTier,
    /// A fresh worker, shared with nobody.
    pub isolated: bool,
    /// Generate or embed.
    pub kind: JobKind,
    /// At most this many new tokens.
    pub max_tokens: u32,
    /// Tokens of earlier attempts to be read in again.
    pub resume_tokens: u32,
    /// How long the requester waits from now on for the attempt's first token.
    pub deadline_ms: u64,
}

/// A model this machine can answer with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnModel {
    /// Its entry. A file with several entries is listed once per entry.
    pub entry: RecordId,
    /// As in `Capability`.
    pub engine_class: String,
    /// In a worker now.
    pub loaded: bool,
    /// Measured prompt speed, millitokens per second.
    pub prefill: u64,
    /// Measured answer speed, millitokens per second.
    pub decode: u64,
    /// Time to load it, if it is not loaded.
    pub load_ms: u64,
}

impl OwnModel {
    /// As the Capability names it.
    pub fn offer(&self) -> ModelOffer {
        ModelOffer {
            entry: self.entry,
            engine_class: self.engine_class.clone(),
            loaded: self.loaded,
            prefill: self.prefill,
            decode: self.decode,
        }
    }
}

/// What the owner lends at this moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Lending {
    /// Nothing to anyone. Own jobs run all the same.
    #[default]
    Off,
    /// Something, within bounds.
    On(LendingTerms),
}

/// The bounds of what is lent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LendingTerms {
    /// `Circle`, or `Commons` for strangers as well. `Mine` lends nothing.
    pub widest: Scope,
    /// Slots others may fill at once, at most the configured ones.
    pub slots: u32,
    /// The only keys the owner lends to; empty = anybody of the scope.
    pub only_nodes: Vec<NodeId>,
    /// Keys the owner refuses, also if they are among the only ones.
    pub refused_nodes: Vec<NodeId>,
    /// Entries the owner refuses to run for others.
    pub refused_entries: Vec<RecordId>,
    /// Job kinds the owner refuses to run for others.
    pub refused_kinds: Vec<JobKind>,
}

impl LendingTerms {
    /// Whether the owner lends to this key at all.
    pub fn admits(&self, node: &NodeId) -> bool {
        let listed = self.only_nodes.is_empty() || self.only_nodes.contains(node);
        listed && !self.refused_nodes.contains(node)
    }
}

/// To whom a Capability goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Audience {
    /// Everyone, by gossip: entries valid in the commons only.
    Gossip,
    /// The connected members of the circle, point to point: own entries too.
    Circle,
}

/// Where a waiting job stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueNews {
    /// Jobs ahead of it, 0 = next.
    pub position: u32,
    /// By measured rates; 0 if nothing is known.
    pub expected_wait_ms: u64,
    /// Why it waits.
    pub why: WaitReason,
}

/// Why a job waits. `Display` is for the client's eyes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum WaitReason {
    /// No node in scope could take it at this moment.
    #[error("no node in scope can answer with this model right now")]
    NoCandidate,
    /// All that could are busy; one is asked again soon.
    #[error("every node that could answer is busy or out of reach")]
    AllBusy,
    /// An offer is on its way to this node.
    #[error("asking node {}", .0.short())]
    Asking(NodeId),
    /// In this node's queue.
    #[error("in the queue of node {}", .0.short())]
    QueuedAt(NodeId),
    /// This node took it and is reading the input or loading the model.
    #[error("node {} is preparing", .0.short())]
    Preparing(NodeId),
    /// It does not wait: this node is answering. Only ever the last state of a job whose deadline passed.
    #[error("node {} was answering", .0.short())]
    Answering(NodeId),
    /// Own jobs of the machine's owner go first.
    #[error("the owner's own jobs go first")]
    OwnerFirst,
    /// Every slot is taken; served in fair order.
    #[error("all slots are taken")]
    SlotsTaken,
    /// This identity already runs as many jobs as one may at once.
    #[error("your other jobs are still running here")]
    IdentityCap,
}

/// Why a provider does not take an offer. The codes of `Refused` frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The queue is full.
    #[error("the queue is full")]
    QueueFull,
    /// This identity already waits with as many jobs as one may.
    #[error("too many jobs of this identity wait here")]
    IdentityLimit,
    /// The owner lends nothing at the moment.
    #[error("this node lends nothing right now")]
    LendingOff,
    /// The signed scope does not allow this requester here.
    #[error("the job's scope does not include this node and this requester")]
    OutOfScope,
    /// The owner refuses this requester, model or kind of job.
    #[error("the owner refuses this requester, model or kind of job")]
    OwnerRefuses,
    /// No such model here.
    #[error("this node does not hold the model")]
    UnknownEntry,
    /// The entry is not vouched for in the job's scope.
    #[error("the model is not approved in the job's scope")]
    EntryNotValid,
    /// The wall demanded is not offered.
    #[error("this node does not offer the wall demanded")]
    WallUnmet,
    /// The manifest was seen before.
    #[error("the manifest was used before")]
    Replayed,
    /// The manifest names another session of this node.
    #[error("the manifest is for an earlier session of this node")]
    WrongSession,
    /// A number in the manifest is past its limit.
    #[error("the job is larger than this node takes")]
    TooLarge,
    /// The input did not come in time.
    #[error("the input did not arrive in time")]
    LeaseExpired,
    /// The deadline cannot be met any more.
    #[error("the deadline passed while waiting")]
    DeadlinePassed,
    /// Prompt and answer do not fit the context. The job's own fault.
    #[error("prompt and answer do not fit the context")]
    ContextOverflow,
    /// The input is malformed or the model cannot do what it asks. The job's own fault.
    #[error("the input cannot be used with this model")]
    BadInput,
    /// The worker could not start the job.
    #[error("the worker could not start the job")]
    WorkerFailed,
    /// The node is stopping.
    #[error("this node is stopping")]
    Draining,
    /// A kind of job, an adapter, a number of choices or an engine that is not served.
    #[error("the job asks for something that is not served")]
    Unsupported,
}

impl Refusal {
    /// True if another node would refuse too, because the job itself is at fault.
    pub fn blames_the_job(self) -> bool {
        matches!(
            self,
            Self::ContextOverflow | Self::BadInput | Self::Unsupported
        )
    }

    /// True if the node would refuse our other jobs too, for a while.
    pub fn holds_for_all_jobs(self) -> bool {
        matches!(
            self,
            Self::QueueFull
                | Self::IdentityLimit
                | Self::LendingOff
                | Self::WorkerFailed
                | Self::Draining
        )
    }
}

/// Why a worker did not do its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WorkFailure {
    /// Prompt and answer do not fit the context.
    ContextOverflow,
    /// The input is malformed, the template fails, or the model cannot do it.
    BadInput,
    /// The model does not load: damaged, or too large for this machine now.
    ModelUnusable,
    /// The worker crashed or gave an internal error.
    Crashed,
}

/// Why an attempt was closed by its requester.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum CloseReason {
    /// The client went away or cancelled.
    Cancelled,
    /// The client's deadline passed.
    Deadline,
    /// The provider went silent, could not be reached, or its stream broke.
    Lost,
    /// The provider heartbeats but does not get on.
    Stalled,
    /// The provider broke the protocol.
    Misbehaved,
    /// The provider gave up after it had started.
    GaveUp,
    /// The provider refused; nothing is left to cancel.
    Refused,
    /// The owner took the provider off the circle, or the entry lost its standing.
    OutOfScope,
}

/// Why an answer goes on at another node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum MoveReason {
    /// Silence, a failed dial, a broken stream.
    #[error("the node vanished")]
    Vanished,
    /// No progress.
    #[error("the node made no progress")]
    Stalled,
    /// It gave the job back.
    #[error("the node gave the job back")]
    GaveUp,
    /// It broke the protocol.
    #[error("the node broke the protocol")]
    Misbehaved,
    /// It is no longer in the job's scope.
    #[error("the node is no longer in the job's scope")]
    OutOfScope,
}

/// Why a job failed for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JobFailure {
    /// The own list is full: 429 / 503.
    #[error("{waiting} jobs wait already")]
    ListFull {
        /// Jobs in the list.
        waiting: u32,
        /// When to come back.
        retry_after_ms: u64,
    },
    /// None of the wanted entries is vouched for in the scope.
    #[error("the model is not approved in the job's scope")]
    EntryNotValid,
    /// The placement asked lies outside the scope asked.
    #[error("the place asked for lies outside the job's scope")]
    PlaceOutsideScope,
    /// Node after node took the job and gave it back.
    #[error("{times} nodes took the job and gave it back")]
    GivenUp {
        /// How many times.
        times: u32,
    },
    /// The client went away or cancelled.
    #[error("the job was cancelled")]
    Cancelled,
    /// The deadline passed first.
    #[error("the deadline passed after {attempts} attempts: {last}")]
    Deadline {
        /// Attempts made.
        attempts: u32,
        /// Why it was waiting, or running, at the end.
        last: WaitReason,
    },
    /// The job itself is at fault.
    #[error("{0}")]
    Refused(Refusal),
}

/// Why work for a requester is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum StopReason {
    /// The requester said so.
    Cancelled,
    /// The requester's stream was gone for longer than the tail is kept.
    RequesterGone,
    /// The owner wants the machine.
    OwnerTookBack,
    /// The worker failed after it had started.
    WorkerFailed,
    /// The deadline passed.
    Deadline,
    /// The work got no further within the lease of its slot.
    LeaseExpired,
    /// The requester left the circle, or the entry lost its standing.
    OutOfScope,
    /// A later attempt at the same job arrived from the same requester.
    Superseded,
}

impl StopReason {
    /// What to send as `Refused` if no Accept was sent yet; `None` = just close the stream.
    pub fn refusal(self) -> Option<Refusal> {
        match self {
            Self::Cancelled | Self::RequesterGone | Self::Superseded => None,
            Self::OwnerTookBack => Some(Refusal::LendingOff),
            Self::WorkerFailed => Some(Refusal::WorkerFailed),
            Self::Deadline => Some(Refusal::DeadlinePassed),
            Self::LeaseExpired => Some(Refusal::LeaseExpired),
            Self::OutOfScope => Some(Refusal::OutOfScope),
        }
    }
}

/// Why a gossiped capability is not passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum DropReason {
    /// This one, or a later one of its author, is known.
    Stale,
    /// Its author sends more often than allowed.
    TooOften,
    /// The view is full of nodes that matter more here.
    NotKept,
    /// More models, slots or text than a capability may carry.
    Oversize,
    /// My own, coming back.
    Own,
}

impl DropReason {
    /// True if the sender should be scored down for it.
    pub fn is_offence(self) -> bool {
        matches!(self, Self::Oversize)
    }
}
