//! The two ends of a job stream, one task each, and what they say to the daemon's loop.
//!
//! A session owns its stream, signs and verifies the attempt's records, and moves the text. Every decision
//! (whom to ask, when to give up, what runs next) is the node's: a session reports events and obeys orders.
//! Jobs of this machine for itself pass through the same two ends, joined in memory.
//!
//! Invariant: all channels are bounded, and a session that is told to stop leaves both the stream and the
//! store in a state the other side can verify.

pub mod answer;
pub mod checks;
pub mod closing;
pub mod io;
pub mod output;
pub mod provider;
pub mod refusal;
pub mod requester;
pub mod tail;
pub mod work;

use substrate_node::{AttemptId, CloseReason, Event, QueueNews, Refusal, StopReason};
use substrate_record::{ModelEntry, Verified};
use tokio::sync::mpsc;

use io::JobIo;

/// Reports of all sessions that may wait for the loop.
pub const REPORT_DEPTH: usize = 1024;

/// Orders that may wait for one session: more than the node ever has outstanding for an attempt.
pub const ORDER_DEPTH: usize = 16;

/// What a session tells the loop.
pub enum Report {
    /// Something the node must know.
    Event(Event),
    /// A job stream arrived with an offer that verified: take orders for it here, then tell the node.
    Offered {
        /// Which attempt.
        attempt: AttemptId,
        /// Names this session, in case the attempt is offered a second time.
        session: u64,
        /// Its manifest, by which a `Resume` finds it.
        manifest: substrate_record::RecordId,
        /// Where its session takes orders.
        orders: mpsc::Sender<ProviderOrder>,
        /// The node's event.
        event: Event,
    },
    /// A stream arrived that resumes an attempt.
    Reattach {
        /// Who opened it.
        from: substrate_record::NodeId,
        /// The manifest it names.
        manifest: substrate_record::RecordId,
        /// Tokens the requester has.
        tokens: u32,
        /// The stream, its first frame read.
        io: JobIo,
    },
    /// A worker of this machine found the prompt of a client of this machine too long, and by how much. Another
    /// node's refusal carries only its code.
    Overflow {
        /// The job.
        job: substrate_record::JobId,
        /// The counts.
        tokens: crate::door::Overflow,
    },
    /// The model of a client of this machine does not fit its memory.
    NoRoom {
        /// The job.
        job: substrate_record::JobId,
        /// What it needs, what there is, and what to do.
        why: String,
    },
    /// A requester's session ended.
    RequesterClosed(AttemptId),
    /// A provider's session ended.
    ProviderClosed {
        /// Which attempt.
        attempt: AttemptId,
        /// Which of the sessions that ever claimed it.
        session: u64,
    },
    /// A peer broke the protocol.
    Offence {
        /// Who.
        node: substrate_record::NodeId,
        /// How bad.
        kind: substrate_mesh::Offence,
        /// What it did, for the log.
        what: String,
    },
}

/// What the node orders of a requester's session.
#[derive(Debug)]
pub enum RequesterOrder {
    /// Sign ReceiptR ok, store, send.
    Settle,
    /// Open a new stream to the same provider.
    Resume,
    /// Stop, and sign what was received.
    Close(CloseReason),
}

/// What the node orders of a provider's session.
pub enum ProviderOrder {
    /// Send `Queued`.
    Queued(QueueNews),
    /// Send `Ready`, take the input.
    Ready,
    /// Send `Refused` and end.
    Refuse {
        /// Code.
        why: Refusal,
        /// When to ask again.
        retry_after_ms: u64,
    },
    /// Load, prepare, accept, begin.
    Run {
        /// The entry to answer with.
        entry: Box<Verified<ModelEntry>>,
    },
    /// Stop reading the worker; keep the tail.
    Pause,
    /// Use this stream from now on and send again what follows `tokens`.
    Attach {
        /// The new stream.
        io: JobIo,
        /// Tokens the requester has.
        tokens: u32,
    },
    /// Go on with a paused sequence.
    Resume,
    /// Stop sampling, sign for what was sampled, end.
    Stop(StopReason),
}
