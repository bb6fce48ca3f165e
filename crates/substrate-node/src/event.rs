//! Everything a node can be told ([`Event`]) and everything it can order ([`Action`]).
//!
//! The daemon (or the simulator) reports events in the order they happened and performs each
//! action list in the order given, before it reports the next event. Three roles meet here, and an
//! own job passes through two of them on the same machine, by the same messages:
//!
//! - *requester*: `Job*` and `Peer*` events, about a job a client of this daemon asked for;
//! - *provider*: `Offer*`, `Input*`, `Requester*` and `Work*` events, about another's (or an own) attempt;
//! - *world*: peers, capabilities, settings, time.
//!
//! Invariant: every event about an attempt names it in full ([`AttemptId`]); one that names an attempt
//! the node no longer holds changes nothing, so late and duplicate reports are harmless.
//! Absent by design: prompts, token ids, text, signatures, sockets. Counts pass here, contents never do.

use std::collections::BTreeMap;

use substrate_ledger::registry::Standing;
use substrate_record::{
    Capability, Finish, JobId, ModelOffer, NodeId, RecordId, Scope, SessionNonce, Verified,
    WallTier,
};

use crate::terms::{
    AttemptId, Audience, CloseReason, DropReason, JobFailure, Lending, MoveReason, OwnModel,
    QueueNews, Refusal, StopReason, Terms, Timestamp, Want, WorkFailure,
};

/// What happened. Past tense; `now` travels beside it.
#[expect(
    clippy::large_enum_variant,
    reason = "one event exists at a time; a box would only cost an allocation"
)]
#[derive(Debug, Clone)]
pub enum Event {
    // ---- requester: the client's side -------------------------------------------------------
    /// A client asked for an answer. `job` is fresh and random; a known one is ignored.
    JobSubmitted {
        /// Drawn by the daemon.
        job: JobId,
        /// What is asked.
        want: Want,
    },
    /// The client went away, or someone cancelled the job. The node closes the live attempt and
    /// forgets the job with [`Action::FailJob`] (`Cancelled`). A job whose answer is whole already is settled as usual.
    JobCancelled {
        /// Which.
        job: JobId,
    },

    // ---- requester: what the provider of an attempt did (`attempt.peer` = the provider) ----
    /// `Queued` arrived on the job stream.
    PeerQueued {
        /// Which attempt.
        attempt: AttemptId,
        /// Jobs ahead, 0 = next.
        position: u32,
        /// By the provider's own estimate.
        expected_wait_ms: u64,
    },
    /// `Ready` arrived: the daemon sends the input at once, without asking the node.
    PeerReady {
        /// Which attempt.
        attempt: AttemptId,
    },
    /// `Started` arrived and its Accept verified (right manifest, right author, wall at least the demanded one).
    PeerStarted {
        /// Which attempt.
        attempt: AttemptId,
        /// Prompt tokens by the Accept.
        n_in: u32,
    },
    /// Prefill or decode went on. Report every `Prefilled` and every chunk of tokens; numbers are
    /// totals of this attempt (resumed tokens not counted), so a repeated or reordered report is harmless.
    PeerProgress {
        /// Which attempt.
        attempt: AttemptId,
        /// Prompt tokens read so far.
        prefilled: u32,
        /// Own tokens of this attempt so far.
        tokens: u32,
    },
    /// `Finished` arrived and its ReceiptW verified against everything received (commitments, counts, Accept).
    /// `Stop` and `Length` are answered with [`Action::Settle`]; `Failed`, and a `Cancelled` nobody here
    /// ordered (the owner took the machine back), with a failover.
    PeerFinished {
        /// Which attempt.
        attempt: AttemptId,
        /// Own tokens of this attempt.
        tokens: u32,
        /// The ReceiptW's own word.
        finish: Finish,
    },
    /// `Refused` arrived (only ever before `Started`).
    PeerRefused {
        /// Which attempt.
        attempt: AttemptId,
        /// Its code.
        why: Refusal,
        /// When to ask that node again.
        retry_after_ms: u64,
    },
    /// A heartbeat arrived. Any other `Peer*` event counts as a sign of life too, so heartbeats need
    /// reporting only when nothing else was reported in the last 500 ms. Attempts on the own machine need none.
    PeerHeartbeat {
        /// Which attempt.
        attempt: AttemptId,
    },
    /// The answer to [`Action::Resume`]: the provider goes on, on a new stream.
    PeerResumed {
        /// Which attempt.
        attempt: AttemptId,
    },
    /// The peer broke the protocol on this attempt: a record that does not verify, a commitment that
    /// differs, a frame out of order. The daemon has already penalised it in the mesh; the node fails over
    /// and asks that peer nothing for a while.
    PeerMisbehaved {
        /// Which attempt.
        attempt: AttemptId,
    },
    /// The job stream ended without `Finished` or `Refused`. While the answer runs, the node has the stream made again,
    /// whether or not the connection has to be made again for it.
    StreamLost {
        /// Which attempt.
        attempt: AttemptId,
        /// The connection to the peer still stands, or was re-made.
        connected: bool,
    },
    /// [`Action::Resume`] did not succeed (refused, unknown there, or no stream).
    ResumeFailed {
        /// Which attempt.
        attempt: AttemptId,
    },
    /// [`Action::Offer`] did not get as far as a stream.
    DialFailed {
        /// Which attempt.
        attempt: AttemptId,
    },
    /// [`Action::Offer`] cannot be made to anybody: the input and the tokens so far are more than a stream carries.
    OfferImpossible {
        /// Which attempt.
        attempt: AttemptId,
        /// What its client is told.
        why: Refusal,
    },
    /// Both halves of the receipt are durable here ([`Action::Settle`] is done). Does not wait for the
    /// provider's `Stored`.
    ReceiptStored {
        /// Which attempt.
        attempt: AttemptId,
    },

    // ---- provider (`attempt.peer` = the requester; may be this node itself) -----------------
    /// An offer arrived whose manifest verified: author = the connection's key, provider = this node.
    /// Answered by exactly one of `ReplyQueued`, `ReplyReady`, `ReplyRefused`.
    OfferArrived {
        /// Which attempt.
        attempt: AttemptId,
        /// The manifest's record id, remembered until the session nonce changes.
        manifest: RecordId,
        /// The manifest's `provider_session`.
        session: SessionNonce,
        /// What it demands.
        terms: Terms,
    },
    /// The whole input of a Ready attempt is in and opens its commitments.
    InputArrived {
        /// Which attempt.
        attempt: AttemptId,
    },
    /// The Accept is signed, durable and sent, and the worker has begun.
    WorkStarted {
        /// Which attempt.
        attempt: AttemptId,
        /// Prompt tokens.
        n_in: u32,
    },
    /// The worker went on; totals of this attempt. Every 2,048 prefilled and every 16 tokens is enough.
    WorkProgress {
        /// Which attempt.
        attempt: AttemptId,
        /// Prompt tokens read.
        prefilled: u32,
        /// Tokens sampled.
        tokens: u32,
    },
    /// The worker is done and the sequence's memory is free. The receipt's exchange goes on without the node.
    WorkFinished {
        /// Which attempt.
        attempt: AttemptId,
        /// Tokens sampled.
        tokens: u32,
    },
    /// The worker could not start or go on (also: it crashed, once per attempt in it).
    WorkFailed {
        /// Which attempt.
        attempt: AttemptId,
        /// Why.
        why: WorkFailure,
    },
    /// A `Cancel` frame arrived.
    RequesterCancelled {
        /// Which attempt.
        attempt: AttemptId,
    },
    /// The job stream closed without `Cancel`. Before Accept the attempt is gone; after it the work is paused
    /// and its tail kept for a `Resume`.
    RequesterLost {
        /// Which attempt.
        attempt: AttemptId,
    },
    /// A `Resume` frame arrived on a new stream, and its manifest, author and count were checked by the daemon.
    RequesterResumed {
        /// Which attempt.
        attempt: AttemptId,
    },
    /// A heartbeat of the requester arrived. Same thinning as [`Event::PeerHeartbeat`].
    RequesterHeartbeat {
        /// Which attempt.
        attempt: AttemptId,
    },

    // ---- world -----------------------------------------------------------------------------
    /// A capability of this network arrived and verified. Gossiped ones are answered by exactly one
    /// [`Action::Forward`] or [`Action::Drop`] with the same record id; direct ones by neither.
    CapabilitySeen {
        /// The record.
        record: Verified<Capability>,
        /// Who passed it on.
        from: NodeId,
        /// Sent to us alone over `/sync` or hello, not by gossip. Never passed on.
        direct: bool,
        /// It carries evidence of a trusted execution environment that was checked and believed. Otherwise a claim of
        /// that wall counts for nothing.
        attested: bool,
    },
    /// A peer said hello; from now on it can be offered jobs. Repeat it when its session or round trip changed.
    PeerUp {
        /// Which.
        node: NodeId,
        /// Round trip.
        rtt_ms: u32,
        /// Its session nonce, which the daemon puts in manifests for it.
        session: SessionNonce,
    },
    /// The last connection to a peer closed. Its attempts that run are resumed if one dial makes the connection again,
    /// the others are lost, with `StreamLost{connected: false}` each or by this event alone: both orders are safe.
    PeerDown {
        /// Which.
        node: NodeId,
    },
    /// A ping was answered.
    RttMeasured {
        /// By whom.
        node: NodeId,
        /// Round trip.
        rtt_ms: u32,
    },
    /// The keys the owner lists, complete, over all circles.
    CircleChanged(Vec<NodeId>),
    /// The models this machine can answer with, complete.
    OwnModelsChanged(Vec<OwnModel>),
    /// Who vouches for each known entry, complete. An entry not in it is valid nowhere.
    RegistryChanged(BTreeMap<RecordId, Standing>),
    /// The owner's settings, or what they come to at this moment (`when idle`, hours, battery).
    /// `Off` also stops the work that runs for others, by `StopWork{OwnerTookBack}`.
    LendingChanged(Lending),
    /// The walls that stand here changed: one did not hold any more, or did again.
    WallsChanged(Vec<WallTier>),
    /// A new session nonce is in force (the answer to [`Action::RenewSession`], or any other cause).
    SessionRenewed(SessionNonce),
    /// The daemon is stopping: refuse every offer, start nothing new, let what runs go on.
    Draining,
    /// Time passed. Send one when the last [`Action::WakeAt`] is due; more are harmless.
    Tick,
}

/// What to do, in order. Imperative. None of them can fail here: a failure comes back as an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    // ---- requester -------------------------------------------------------------------------
    /// Sign a manifest for `attempt.peer` and open the job stream with it (in process, if that is this node).
    /// `parents` = the manifest of attempt `previous`; the resumed ids are those the daemon holds.
    /// Report `DialFailed`, or what the peer says.
    Offer {
        /// Job, number and provider of the new attempt.
        attempt: AttemptId,
        /// The entry to name, one of `Want::entries` that this provider holds.
        entry: RecordId,
        /// The scope to sign: the one asked, or a narrower one if the entry is vouched for only there. Never wider.
        scope: Scope,
        /// Tokens already received and carried over, by the node's count; the daemon's own count is the one signed.
        resume_tokens: u32,
        /// Number of the attempt before this one, already closed; `None` for the first.
        previous: Option<u32>,
    },
    /// Open a new stream to the same provider, dialling it once if it is not connected, and send `Resume{manifest, n}`
    /// with the daemon's own count. Report `PeerResumed` or `ResumeFailed`.
    Resume {
        /// Which attempt.
        attempt: AttemptId,
    },
    /// Stop an attempt: send `Cancel` if the stream stands, close it, drop its later frames. If an Accept of it
    /// is held, sign ReceiptR partial over it with the number of tokens received. Needs no answer.
    CloseAttempt {
        /// Which attempt.
        attempt: AttemptId,
        /// Own tokens of the attempt, by the node's count.
        tokens: u32,
        /// Why.
        why: CloseReason,
    },
    /// The answer is whole: sign ReceiptR ok over the ReceiptW, make both durable, send it, report `ReceiptStored`.
    /// The only action that accepts a receipt; issued at most once per job.
    Settle {
        /// Which attempt.
        attempt: AttemptId,
        /// Own tokens of the attempt.
        tokens: u32,
    },
    /// Tell the client where its job stands.
    TellQueued {
        /// Which job.
        job: JobId,
        /// Where, how long, why.
        news: QueueNews,
    },
    /// Tell the client that a node has begun (a first time, or again after a move).
    TellStarted {
        /// Which attempt.
        attempt: AttemptId,
        /// Prompt tokens.
        n_in: u32,
    },
    /// Tell the client that its answer goes on elsewhere. Sent only if the old node had started.
    TellMoved {
        /// Which job.
        job: JobId,
        /// The node left.
        from: NodeId,
        /// Tokens of the whole answer so far.
        after_tokens: u32,
        /// Why.
        why: MoveReason,
    },
    /// End the client's stream with an error. The job is forgotten.
    FailJob {
        /// Which job.
        job: JobId,
        /// Why.
        why: JobFailure,
    },
    /// End the client's stream well. The job is forgotten.
    FinishJob {
        /// Which job.
        job: JobId,
    },

    // ---- provider --------------------------------------------------------------------------
    /// Send `Queued`. Repeated at every change and at least every 2 s.
    ReplyQueued {
        /// Which attempt.
        attempt: AttemptId,
        /// Where, how long, why.
        news: QueueNews,
    },
    /// Send `Ready` and take the input. A slot is held for it until the lease ends.
    ReplyReady {
        /// Which attempt.
        attempt: AttemptId,
    },
    /// Send `Refused` and close the stream. The attempt is forgotten.
    ReplyRefused {
        /// Which attempt.
        attempt: AttemptId,
        /// Code.
        why: Refusal,
        /// When to ask again.
        retry_after_ms: u64,
    },
    /// The input is in: load the model if need be, prepare, and — only if the stream still stands at that
    /// moment — sign and send the Accept and begin. Report `WorkStarted` or `WorkFailed`.
    Run {
        /// Which attempt.
        attempt: AttemptId,
        /// The entry to answer with.
        entry: RecordId,
        /// In a fresh worker of its own.
        isolated: bool,
    },
    /// Pause the sequence and keep its unacknowledged tail.
    PauseWork {
        /// Which attempt.
        attempt: AttemptId,
    },
    /// Go on with a paused sequence on the new stream.
    ResumeWork {
        /// Which attempt.
        attempt: AttemptId,
    },
    /// Stop and free everything held for the attempt. If an Accept was sent: sign ReceiptW (`Cancelled` or `Failed`) for
    /// what was sampled and send `Finished` if the stream stands. If none was sent: send `Refused` with
    /// [`StopReason::refusal`], if it has one, and close. Nothing is reported back.
    StopWork {
        /// Which attempt.
        attempt: AttemptId,
        /// Why.
        why: StopReason,
    },
    /// Start loading a model that a waiting job will need. A hint: `Run` loads what is not loaded.
    Load {
        /// Which entry.
        entry: RecordId,
    },

    // ---- world -----------------------------------------------------------------------------
    /// Sign my Capability with these numbers (the daemon adds hardware, walls, build) and send it.
    /// With a circle, one for [`Audience::Gossip`] is followed by one for [`Audience::Circle`]: the later sequence number wins.
    Publish {
        /// To whom.
        audience: Audience,
        /// Models to name.
        models: Vec<ModelOffer>,
        /// Slots lent.
        slots: u32,
        /// Jobs waiting here.
        queue: u32,
    },
    /// Accept the gossiped capability and pass it on.
    Forward {
        /// Its record id.
        record: RecordId,
    },
    /// Do not pass the gossiped capability on.
    Drop {
        /// Its record id.
        record: RecordId,
        /// Why; [`DropReason::is_offence`] tells `Reject` from `Ignore`.
        why: DropReason,
    },
    /// Draw a new session nonce and say hello again on every connection, then report `SessionRenewed`.
    RenewSession,
    /// Report `Tick` then. At most one per list, the last in it, replacing every earlier one.
    WakeAt(Timestamp),
}
