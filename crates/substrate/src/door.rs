//! The door: everything the HTTP listener and the gRPC service may ask of the daemon.
//!
//! Both are strangers' parsers turned into these few typed calls; neither sees the mesh, the
//! keys or the node's state. A job's answer is a bounded channel of [`JobEvent`]: when its reader
//! stops reading, the sampler stops; when its reader is dropped, the job is cancelled everywhere.
//!
//! Absent by design: HTTP, gRPC, colours, and any way to widen a scope after submission.

use serde::{Deserialize, Serialize};
use substrate_record::{ContentHash, JobId, NodeId, RecordId, Sampler, Scope, WallTier};
use substrate_sandbox::wire::input::Input;
use tokio::sync::{mpsc, oneshot};

use crate::models::parameters::Said;

/// How many calls may wait for the daemon's loop. More callers than this wait in `send`.
pub const DOOR_DEPTH: usize = 256;

/// How many events of one job may wait for its client. Small, so that back pressure reaches the sampler.
pub const JOB_EVENT_DEPTH: usize = 16;

/// Who asks, for fairness, limits and `jobs`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Client {
    /// The machine's owner, over the Unix socket.
    Owner,
    /// The holder of an API key, by the key's public name.
    Key(String),
    /// A caller of the loopback listener without a key.
    Anonymous,
}

/// Where the asker wants the job to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Placement {
    /// Anywhere the scope allows; this machine wins ties.
    #[default]
    Any,
    /// Never on this machine.
    Elsewhere,
    /// On this node or nowhere.
    Node(NodeId),
}

/// One request for an answer.
#[derive(Debug, Clone)]
pub struct Ask {
    /// A model's name, as a person typed it (`smollm2:135m`), or an entry's id in hex.
    pub model: String,
    /// What to answer; parsed only inside the wall.
    pub input: Input,
    /// Sampling parameters, as PROTOCOL.md 1's integers. `n` choices are `n` jobs of one choice each to the caller.
    pub sampler: Sampler,
    /// Which parameters the client chose itself; a model made here has defaults for the others.
    pub said: Said,
    /// The client's seed; `None` draws one.
    pub seed: Option<i64>,
    /// Which of `n` choices this is, from 0: each draws its own noise from the one seed.
    pub choice: u32,
    /// At most this many new tokens; `None` = up to the context's end.
    pub max_tokens: Option<u32>,
    /// The widest scope the job may use; `None` = the caller's default.
    pub scope: Option<Scope>,
    /// Where it may run.
    pub placement: Placement,
    /// The wall demanded of the node; `None` = the default demand.
    pub wall: Option<WallTier>,
    /// A fresh worker that does nothing else and is destroyed afterwards.
    pub isolated: bool,
    /// Milliseconds the client waits with nothing coming: for the first token, and after it between two.
    pub deadline_ms: u64,
    /// Who asks.
    pub client: Client,
    /// Nobody waits for the words, so that every job that somebody waits for goes first.
    pub patient: bool,
}

/// What happens to a job, in order: `Queued*`, `Started`, (`Text` | `Row` | `Moved` | `Started`)*, then `Finished` or
/// `Failed`.
#[derive(Debug, Clone)]
pub enum JobEvent {
    /// The job waits; told at every change and at least every 2 s.
    Queued(QueueNews),
    /// A node accepted and prefill starts.
    Started(Started),
    /// The answer goes on. `bytes` is whole UTF-8.
    Text(TextPiece),
    /// The vector of the next text, in the order they were given: f32, little-endian, of length 1.
    Row(Vec<u8>),
    /// The node vanished; the answer goes on at another (a new `Started` follows). Nothing is repeated.
    Moved {
        /// The node left.
        from: NodeId,
        /// Tokens of the whole answer so far.
        after_tokens: u32,
        /// In plain words.
        why: String,
    },
    /// The end of a good answer, the only event after which nothing follows, with `Failed`.
    Finished(Box<Summary>),
    /// The end of a job that could not be answered.
    Failed(AskError),
}

/// Where a job stands while it waits, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueNews {
    /// Jobs ahead of this one, 0 = next.
    pub position: u32,
    /// Milliseconds until it should start, by the provider's measured rates.
    pub expected_wait_ms: u64,
    /// In plain words.
    pub why: String,
}

/// A node has begun.
#[derive(Debug, Clone)]
pub struct Started {
    /// The node that answers.
    pub node: NodeId,
    /// How it is reached.
    pub route: Route,
    /// Prompt tokens.
    pub n_in: u32,
    /// 1 for the first node, more after a failover.
    pub attempt: u32,
}

/// How the answering node is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// This machine.
    Local,
    /// A direct connection.
    Direct,
    /// Through a relay.
    Relayed,
}

/// Text released by the answering worker.
#[derive(Debug, Clone, Default)]
pub struct TextPiece {
    /// Whole UTF-8, maybe empty (a token may only complete a character).
    pub bytes: Vec<u8>,
    /// The token ids behind it.
    pub ids: Vec<u32>,
    /// One per id, if asked for.
    pub logprobs: Vec<TokenLogprob>,
}

/// A sampled token's log-probability and its best alternatives.
#[derive(Debug, Clone)]
pub struct TokenLogprob {
    /// Token id.
    pub id: u32,
    /// The token's own bytes.
    pub bytes: Vec<u8>,
    /// Natural logarithm.
    pub logprob: f32,
    /// (id, logprob, bytes), best first.
    pub top: Vec<(u32, f32, Vec<u8>)>,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// End of sequence or a stop string.
    Stop,
    /// `max_tokens` or the context's end.
    Length,
    /// The client went away.
    Cancelled,
}

/// What a finished answer cost and who gave it.
#[derive(Debug, Clone)]
pub struct Summary {
    /// Why it ended.
    pub finish: FinishReason,
    /// Prompt tokens.
    pub n_in: u32,
    /// Tokens of the whole answer, over all attempts.
    pub n_out: u32,
    /// The node that gave the last part.
    pub node: NodeId,
    /// How it was reached.
    pub route: Route,
    /// The scope the job was signed with.
    pub scope: Scope,
    /// The wall it ran behind.
    pub wall: WallTier,
    /// Whether it had a worker of its own.
    pub isolated: bool,
    /// Attempts made (1 = no failover).
    pub attempts: u32,
    /// The requester's half of the last receipt.
    pub receipt: Option<RecordId>,
    /// Digest of the weights that answered.
    pub model_sha256: ContentHash,
    /// Milliseconds.
    pub timings: Timings,
}

/// Where the time went, in milliseconds, by this daemon's monotonic clock (prefill and decode by the worker's).
#[derive(Debug, Clone, Copy, Default)]
pub struct Timings {
    /// Waiting in a provider's queue.
    pub queue: u64,
    /// Choosing a node and shaking hands with it.
    pub route: u64,
    /// From the end of the wait to the start of the work: loading the model, if that was needed, and taking the prompt in.
    pub load: u64,
    /// Reading the prompt.
    pub prefill: u64,
    /// Writing the answer.
    pub decode: u64,
    /// From submission to the end.
    pub total: u64,
}

/// A scope as people write it.
pub fn scope_word(scope: Scope) -> &'static str {
    match scope {
        Scope::Mine => "mine",
        Scope::Circle => "circle",
        Scope::Commons => "commons",
    }
}

/// By how much a prompt is too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overflow {
    /// Tokens of the prompt.
    pub used: u32,
    /// Tokens of the context.
    pub limit: u32,
}

fn overflow_words(tokens: Option<Overflow>) -> String {
    match tokens {
        Some(Overflow { used, limit }) => {
            format!("the prompt needs {used} tokens, the context holds {limit}")
        }
        None => "the prompt is longer than the context".to_owned(),
    }
}

/// Why a job was not taken, or not finished.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum AskError {
    /// No such model here or in the scope.
    #[error("model '{model}' not found")]
    UnknownModel {
        /// As asked.
        model: String,
        /// Names usable now that resemble it.
        similar: Vec<String>,
    },
    /// The model exists, but no node in scope can run the job.
    #[error("no node in scope '{}' can answer with '{model}': {why}", scope_word(*scope))]
    NoNode {
        /// As asked.
        model: String,
        /// Scope asked.
        scope: Scope,
        /// In plain words.
        why: String,
    },
    /// The request cannot be right.
    #[error("{why}")]
    BadRequest {
        /// Parameter at fault, if one is.
        param: Option<String>,
        /// In plain words.
        why: String,
    },
    /// Prompt and answer do not fit.
    #[error("{}", overflow_words(*tokens))]
    ContextOverflow {
        /// The counts, if a worker of this machine told them: another node's refusal carries none.
        tokens: Option<Overflow>,
    },
    /// The caller may not do this.
    #[error("{why}")]
    Forbidden {
        /// In plain words.
        why: String,
    },
    /// This daemon's own list is full.
    #[error("server busy, please try again: {waiting} jobs wait")]
    Busy {
        /// Jobs in the list.
        waiting: u32,
        /// When to come back.
        retry_after_ms: u64,
    },
    /// The client's deadline passed.
    #[error("nothing came within the deadline of {deadline_ms} ms: {why}")]
    Deadline {
        /// As asked.
        deadline_ms: u64,
        /// What was tried.
        why: String,
    },
    /// The daemon is stopping: it takes nothing new, and what it could not finish it gives up.
    #[error("the daemon is stopping: ask again when it is back")]
    Stopping,
    /// Cancelled by `jobs cancel`.
    #[error("the job was cancelled: {why}")]
    Cancelled {
        /// By whom.
        why: String,
    },
    /// A fault of ours.
    #[error("internal error: {why}")]
    Internal {
        /// What failed.
        why: String,
    },
}

/// An accepted job: its id and its events.
#[derive(Debug)]
pub struct JobStream {
    /// Sent as `x-substrate-job`.
    pub job: JobId,
    /// The signed scope, sent as `x-substrate-scope`.
    pub scope: Scope,
    /// The model's full name as resolved.
    pub model: String,
    /// Dropping it cancels the job within a token.
    pub events: mpsc::Receiver<JobEvent>,
}

/// A model usable now in a scope, as the lists show it.
#[derive(Debug, Clone)]
pub struct ModelView {
    /// Full name, `name:tag`.
    pub name: String,
    /// The entry's record id.
    pub entry: RecordId,
    /// SHA-256 of the weights.
    pub digest: ContentHash,
    /// Bytes of all files.
    pub size: u64,
    /// GGUF architecture.
    pub arch: String,
    /// Such as `Q4_1`.
    pub quant: String,
    /// Parameters, 0 if unknown.
    pub n_params: u64,
    /// Trained context length.
    pub context: u32,
    /// Context that a worker of this machine gives it; `None` if it is another node's.
    pub served_context: Option<u32>,
    /// SPDX expression or the model's own words.
    pub licence: String,
    /// Unix milliseconds of import or first sight.
    pub modified_ms: u64,
    /// Held on this machine.
    pub own: bool,
    /// Nodes in scope that hold it now.
    pub nodes: Vec<NodeId>,
    /// Loaded in a worker here.
    pub loaded: bool,
    /// Whether it sees images.
    pub sees: bool,
    /// Chat template text, if known here.
    pub template: Option<String>,
}

/// A job as `jobs` and `/api/ps` show it.
#[derive(Debug, Clone)]
pub struct JobView {
    /// Job id.
    pub job: JobId,
    /// `requested` here or `serving` for another.
    pub role: JobRole,
    /// Model name.
    pub model: String,
    /// Signed scope.
    pub scope: Scope,
    /// `queued`, `starting`, `running`, `finished`, `failed`.
    pub state: String,
    /// Who asked, if a client of this daemon did.
    pub client: Option<Client>,
    /// The other side.
    pub peer: Option<NodeId>,
    /// Place in the queue, while it waits.
    pub queue: Option<QueueNews>,
    /// Tokens so far.
    pub tokens: u32,
    /// Attempt number.
    pub attempt: u32,
    /// Milliseconds since submission.
    pub age_ms: u64,
}

/// Which side of a job this node is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobRole {
    /// A client of this daemon asked.
    Requested,
    /// This node answers another's job.
    Serving,
}

/// A loaded worker, as `ps` shows it.
#[derive(Debug, Clone)]
pub struct WorkerView {
    /// Model name.
    pub model: String,
    /// Digest of the weights.
    pub digest: ContentHash,
    /// Bytes resident.
    pub memory: u64,
    /// Context allocated, in tokens.
    pub context: u32,
    /// Host process id.
    pub pid: u32,
    /// Wall it runs behind.
    pub wall: Option<WallTier>,
    /// Running and waiting jobs.
    pub busy: u32,
    /// It works for one job alone and ends with it.
    pub isolated: bool,
    /// Unix milliseconds when it unloads if idle; `None` = never.
    pub expires_ms: Option<u64>,
    /// Architecture, quantisation and parameters.
    pub arch: String,
    /// Quantisation.
    pub quant: String,
    /// Parameters, 0 if unknown.
    pub n_params: u64,
    /// How far its load is, in words; `None` once it is loaded.
    pub loading: Option<&'static str>,
}

/// The memory a model takes here, in bytes, and where it would run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FitView {
    /// Tokens of one conversation.
    pub context: u32,
    /// Answers at a time.
    pub slots: u32,
    /// How the numbers of the cache are kept.
    pub kv_cache_type: &'static str,
    /// Whether attention may be fused.
    pub flash_attention: bool,
    /// Weights.
    pub weights: u64,
    /// Cells of the cache, and recurrent state.
    pub kv_cache: u64,
    /// Kept prefixes apart from the cells, at most.
    pub prefixes: u64,
    /// Intermediate results and logits.
    pub buffers: u64,
    /// The engine itself.
    pub engine: u64,
    /// All of these.
    pub total: u64,
    /// Mapped originals of reordered weights, which the kernel takes back when it needs the memory.
    pub mapped: u64,
    /// Where it would run; `None` = it does not fit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub place: Option<String>,
    /// Why it does not fit, and what to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// A node in sight.
#[derive(Debug, Clone)]
pub struct PeerView {
    /// Its key.
    pub node: NodeId,
    /// Addresses it is connected by.
    pub addrs: Vec<String>,
    /// Connected now.
    pub connected: bool,
    /// Listed in one of my circles.
    pub circle: bool,
    /// Round trip.
    pub rtt_ms: Option<u32>,
    /// Its wall clock minus ours, milliseconds.
    pub skew_ms: Option<i64>,
    /// Release and build it says it runs.
    pub build: String,
    /// Names of models it offers.
    pub models: Vec<String>,
    /// Slots and queue it claims.
    pub slots: u32,
    /// Jobs waiting there.
    pub queue: u32,
    /// Walls it claims.
    pub walls: Vec<WallTier>,
    /// (prefill, decode) it measured with the fastest model it offers, in millitokens per second; 0 = not yet.
    pub rates: (u64, u64),
}

/// The daemon's own state.
#[derive(Debug, Clone)]
pub struct Status {
    /// Own key.
    pub node: NodeId,
    /// Network name and id.
    pub network: (String, substrate_record::NetworkId),
    /// Release.
    pub version: String,
    /// Listening multiaddresses.
    pub listen: Vec<String>,
    /// HTTP listener.
    pub api: Option<String>,
    /// `off`, `idle` or `always`.
    pub lending: String,
    /// Why nothing is lent at this moment all the same.
    pub withheld: Option<String>,
    /// Connected peers.
    pub peers: u32,
    /// Jobs running for others and for us.
    pub running: u32,
    /// Jobs waiting.
    pub waiting: u32,
    /// The wall offered here, if one stands.
    pub wall: Option<WallTier>,
    /// Resident bytes of the daemon itself.
    pub rss: u64,
    /// Milliseconds since start.
    pub uptime_ms: u64,
    /// What runs is finished or handed over, and nothing new is taken.
    pub stopping: bool,
    /// Things the owner should know.
    pub warnings: Vec<String>,
}

/// Where a join led.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Joined {
    /// Name of the network this machine is in now.
    pub network: String,
    /// Name of the one it left for it. Models came along; receipts and circles stay with the network left.
    pub left: Option<String>,
}

/// A question to the daemon's loop. `reply` is dropped if the daemon stops first.
#[expect(
    missing_docs,
    reason = "the fields are the arguments the variant's sentence names"
)]
pub enum Call {
    /// Take a job.
    Submit {
        ask: Box<Ask>,
        reply: oneshot::Sender<Result<JobStream, AskError>>,
    },
    /// Cancel a job by id.
    Cancel {
        job: JobId,
        reply: oneshot::Sender<bool>,
    },
    /// Models usable now in a scope, own first.
    Models {
        scope: Scope,
        reply: oneshot::Sender<Vec<ModelView>>,
    },
    /// Live and recent jobs.
    Jobs {
        reply: oneshot::Sender<Vec<JobView>>,
    },
    /// Loaded workers.
    Workers {
        reply: oneshot::Sender<Vec<WorkerView>>,
    },
    /// Reckon the memory of a model of this machine, with a context or as it would be loaded.
    Fit {
        model: String,
        context: Option<u32>,
        reply: oneshot::Sender<Result<FitView, AskError>>,
    },
    /// Set the keep-alive of a model's worker; 0 unloads it, negative = for ever. `false` = not loaded.
    KeepAlive {
        model: String,
        seconds: i64,
        reply: oneshot::Sender<bool>,
    },
    /// Load a model without a prompt (Ollama's empty prompt).
    Load {
        model: String,
        reply: oneshot::Sender<Result<(), AskError>>,
    },
    /// Nodes in sight.
    Peers {
        reply: oneshot::Sender<Vec<PeerView>>,
    },
    /// State of the daemon.
    Status { reply: oneshot::Sender<Status> },
    /// The model list on disk changed (import, pull, rm, copy): read it again.
    ModelsChanged { reply: oneshot::Sender<()> },
    /// The settings file or the circles changed: read them again.
    SettingsChanged {
        reply: oneshot::Sender<Result<(), String>>,
    },
    /// Join by an invite code.
    Join {
        code: String,
        reply: oneshot::Sender<Result<Joined, String>>,
    },
    /// Make an invite (its secret is kept hashed, single use).
    Invite {
        circle: String,
        valid_ms: u64,
        reply: oneshot::Sender<Result<String, String>>,
    },
    /// Run the benchmark of a model again; (prefill, decode) in millitokens per second.
    Bench {
        model: String,
        reply: oneshot::Sender<Result<(u64, u64), AskError>>,
    },
    /// Finish or hand over what runs, then stop. New jobs are refused from now on.
    Stop { reply: oneshot::Sender<()> },
}

/// The handle both listeners hold.
#[derive(Clone)]
pub struct Door {
    calls: mpsc::Sender<Call>,
}

/// The daemon is stopping and takes no more calls.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("the daemon is stopping")]
pub struct DoorClosed;

impl Door {
    /// A door and the end the daemon's loop reads.
    pub fn new() -> (Self, mpsc::Receiver<Call>) {
        let (calls, inbox) = mpsc::channel(DOOR_DEPTH);
        (Self { calls }, inbox)
    }

    /// Makes one call: `door.call(|reply| Call::Peers { reply }).await?`.
    pub async fn call<T>(
        &self,
        call: impl FnOnce(oneshot::Sender<T>) -> Call,
    ) -> Result<T, DoorClosed> {
        let (reply, answer) = oneshot::channel();
        self.calls.send(call(reply)).await.map_err(|_| DoorClosed)?;
        answer.await.map_err(|_| DoorClosed)
    }
}
