//! A provider's work between the stream and the worker: the input that opens its commitments, the prepared
//! sequence, and where its time went.

use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use substrate_mesh::input;
use substrate_mesh::token::{Alternative, TokenLogprob};
use substrate_node::WorkFailure;
use substrate_record::{
    Commitment, JobKind, JobManifest, NodeId, Salt, commit, output_bytes, seed_for_choice,
};
use substrate_sandbox::wire::{self, Failure, Prepare};
use tokio_util::sync::CancellationToken;
use zeroize::Zeroize;

use super::answer::Salts;
use crate::daemon::engine::{Sequence, WorkError};
use crate::daemon::pool::{Lease, LoadError, Pool, Whose};
use crate::door::Overflow;
use crate::models::parts::Parts;

/// PROTOCOL.md 4: `Prefilled` every 2,048 tokens.
const PREFILLED_EVERY: u32 = 2048;
/// The node is told of progress this often; every token would only cost time.
const TELL_EVERY_TOKENS: usize = 16;

/// An input whose commitments were checked.
pub struct Input {
    /// Canonical bytes, parsed only inside the wall.
    pub bytes: Vec<u8>,
    /// The seed's base.
    pub seed: Vec<u8>,
    /// Ids of earlier attempts.
    pub resume: Vec<u32>,
    /// As sent by the requester.
    pub salts: Salts,
    /// Which of the requester's prefixes may be used, if any.
    pub partition: Option<input::Partition>,
}

impl Drop for Input {
    fn drop(&mut self) {
        self.bytes.zeroize();
        self.resume.zeroize();
    }
}

impl Input {
    /// Checks each part of what came against the manifest.
    ///
    /// # Errors
    /// Which part does not open its commitment.
    pub fn open(manifest: &JobManifest, whole: input::Input) -> Result<Self, &'static str> {
        let input::Input {
            header,
            input: bytes,
            resume,
        } = whole;
        let salts = Salts {
            seed: header.seed_salt,
            input: header.input_salt,
            resume: header.resume_salt,
            output: header.output_salt,
        };
        if commit(&salts.input, &bytes) != manifest.input_commitment {
            return Err("an input the manifest does not commit to");
        }
        if commit(&salts.seed, &header.seed) != manifest.seed_commitment {
            return Err("a seed the manifest does not commit to");
        }
        let promised = (manifest.resume_tokens > 0)
            .then_some(manifest.resume_commitment)
            .flatten();
        let count_fits = resume.len() == manifest.resume_tokens as usize;
        if !count_fits
            || promised
                .is_some_and(|promised| commit(&salts.resume, &output_bytes(&resume)) != promised)
        {
            return Err("resumed tokens the manifest does not commit to");
        }
        if manifest.resume_tokens > 0 && promised.is_none() {
            return Err("resumed tokens without a commitment");
        }
        Ok(Self {
            bytes,
            seed: header.seed,
            resume,
            salts,
            partition: header.partition,
        })
    }
}

/// A sequence that is ready to begin.
pub struct Running {
    /// Prompt tokens.
    pub n_in: u32,
    /// The sequence.
    pub sequence: Sequence,
    /// Keeps its worker loaded.
    pub lease: Lease,
}

/// Why work could not start.
pub struct StartError {
    /// For the node.
    pub why: WorkFailure,
    /// For the requester.
    pub detail: String,
    /// By how much the prompt is too long, if that is why.
    pub overflow: Option<Overflow>,
    /// Whether the model does not fit the memory of this machine.
    pub no_room: bool,
    /// The detail is in a worker's words, which may hold what it was asked: nothing logs it.
    pub private: bool,
}

impl StartError {
    /// A fault of ours.
    pub fn internal() -> Self {
        Self {
            why: WorkFailure::Crashed,
            detail: "the task that prepared the work failed".to_owned(),
            overflow: None,
            no_room: false,
            private: false,
        }
    }
}

impl From<LoadError> for StartError {
    fn from(error: LoadError) -> Self {
        let why = match &error {
            LoadError::Work(work) => failure(work),
            LoadError::NoBlob(_) | LoadError::Damaged(_) | LoadError::NoRoom { .. } => {
                WorkFailure::ModelUnusable
            }
            LoadError::Disk(_) | LoadError::Wall(_) | LoadError::TakenBack => WorkFailure::Crashed,
        };
        Self {
            why,
            no_room: matches!(error, LoadError::NoRoom { .. }),
            private: false,
            detail: error.to_string(),
            overflow: None,
        }
    }
}

impl From<WorkError> for StartError {
    fn from(error: WorkError) -> Self {
        let overflow = match &error {
            WorkError::Failed {
                why: Failure::ContextOverflow { used, limit },
                ..
            } => Some(Overflow {
                used: *used,
                limit: *limit,
            }),
            _ => None,
        };
        Self {
            why: failure(&error),
            detail: error.to_string(),
            overflow,
            no_room: false,
            private: matches!(error, WorkError::Failed { .. }),
        }
    }
}

/// Loads the model if need be and has its worker read the input, unless its job is `gone` by then.
///
/// # Errors
/// Why the worker could not start.
pub async fn prepare(
    pool: Pool,
    requester: NodeId,
    whose: Whose,
    parts: Option<Parts>,
    manifest: JobManifest,
    mut input: Input,
    gone: CancellationToken,
) -> Result<Running, StartError> {
    if manifest.sampler.n > 1 {
        let detail = "only one choice of text per job is answered here".to_owned();
        return Err(StartError {
            why: WorkFailure::BadInput,
            detail,
            overflow: None,
            no_room: false,
            private: false,
        });
    }
    let parts = parts.ok_or_else(|| StartError {
        why: WorkFailure::ModelUnusable,
        detail: "the entry names no weights".to_owned(),
        overflow: None,
        no_room: false,
        private: false,
    })?;
    let wall = pool.wall_for(manifest.wall);
    // A machine is one job's own, whether or not that was asked for.
    let alone = manifest.isolated || wall.is_machine();
    let lease = match alone {
        true => pool.lease_alone(&parts, whose, wall).await?,
        false => pool.lease(&parts, whose).await?,
    };
    let seed = seed_for_choice(&input.seed, 0);
    let make = |seq| Prepare {
        seq,
        input: std::mem::take(&mut input.bytes),
        sampler: sampler(&manifest.sampler),
        seed,
        resume: std::mem::take(&mut input.resume),
        max_tokens: manifest.max_tokens,
        partition: partition(&requester, input.partition.unwrap_or_default()),
        reuse: input.partition.is_some() && !alone,
    };
    // A load goes on for whoever waits for it too; a prompt is this job's alone.
    let (n_in, sequence) = tokio::select! {
        biased;
        () = gone.cancelled() => return Err(StartError::internal()),
        prepared = lease.engine.prepare(make) => prepared?,
    };
    let texts = match manifest.kind {
        JobKind::Generate => 1,
        JobKind::Embed => u64::from(manifest.max_tokens),
    };
    if u64::from(n_in) > u64::from(lease.engine.facts().n_ctx) * texts {
        return Err(sequence
            .condemn("it counts more tokens than its context has")
            .into());
    }
    Ok(Running {
        n_in,
        sequence,
        lease,
    })
}

/// Whose prefixes a job may find in the cache, and who may find its own: one client of one requester.
fn partition(requester: &NodeId, client: input::Partition) -> [u8; 32] {
    let mut hash = Sha256::new_with_prefix(b"substrate/prefixes/v1");
    hash.update(requester.as_bytes());
    hash.update(client);
    hash.finalize().into()
}

fn failure(error: &WorkError) -> WorkFailure {
    match error {
        WorkError::Failed { why, .. } => failure_of(*why),
        WorkError::Crashed { .. } | WorkError::Silent { .. } => WorkFailure::Crashed,
    }
}

/// The node's word for a worker's refusal.
pub fn failure_of(why: Failure) -> WorkFailure {
    match why {
        Failure::ContextOverflow { .. } => WorkFailure::ContextOverflow,
        Failure::BadInput | Failure::BadTemplate | Failure::Unsupported => WorkFailure::BadInput,
        Failure::BadModel | Failure::OutOfMemory => WorkFailure::ModelUnusable,
        _ => WorkFailure::Crashed,
    }
}

fn sampler(signed: &substrate_record::Sampler) -> wire::Sampler {
    wire::Sampler {
        temperature: signed.temperature,
        top_k: signed.top_k,
        top_p: signed.top_p,
        min_p: signed.min_p,
        typical_p: signed.typical_p,
        repeat_last_n: signed.repeat_last_n,
        repeat: signed.repeat,
        presence: signed.presence,
        frequency: signed.frequency,
        n: signed.n,
        top_logprobs: signed.top_logprobs,
    }
}

/// A worker's log-probability as the stream carries it.
pub fn for_stream(token: wire::TokenLogprob) -> TokenLogprob {
    let top = token
        .top
        .into_iter()
        .map(|(id, logprob, bytes)| Alternative { id, logprob, bytes })
        .collect();
    TokenLogprob {
        id: token.id,
        logprob: token.logprob,
        bytes: token.bytes,
        top,
    }
}

/// Commitment to resumed and own ids together.
pub fn commit_output(salt: &Salt, ids: &[u32]) -> Commitment {
    commit(salt, &output_bytes(ids))
}

/// Where an attempt's time went at its provider.
pub struct Spent {
    offered: Instant,
    queue: Duration,
    prefill: Duration,
    decode: Duration,
    prefilled: u32,
    told_prefilled: u32,
    told_tokens: usize,
}

impl Spent {
    /// The offer has just come.
    pub fn begin() -> Self {
        let zero = Duration::ZERO;
        Self {
            offered: Instant::now(),
            queue: zero,
            prefill: zero,
            decode: zero,
            prefilled: 0,
            told_prefilled: 0,
            told_tokens: 0,
        }
    }

    /// The wait in the queue is over.
    pub fn ready(&mut self) {
        self.queue = self.offered.elapsed();
    }

    /// Prefill begins.
    pub fn started(&mut self) {
        self.told_prefilled = 0;
    }

    /// Notes prefill's progress; some number when the requester is to be told of it.
    pub fn prefilled(&mut self, n: u32) -> Option<u32> {
        self.prefilled = n;
        let tell = n - self.told_prefilled.min(n) >= PREFILLED_EVERY;
        tell.then(|| {
            self.told_prefilled = n;
            n
        })
    }

    /// Prompt tokens read.
    pub fn prefilled_so_far(&self) -> u32 {
        self.prefilled
    }

    /// Some number when the node is to be told of it.
    pub fn worth_telling(&mut self, tokens: usize) -> Option<u32> {
        if tokens - self.told_tokens < TELL_EVERY_TOKENS && self.told_tokens > 0 {
            return None;
        }
        self.told_tokens = tokens;
        u32::try_from(tokens).ok()
    }

    /// The worker's own account of its time, of which no more is believed than has passed.
    pub fn finished(&mut self, prefill_us: u64, decode_us: u64) {
        let passed = self.offered.elapsed();
        self.prefill = Duration::from_micros(prefill_us).min(passed);
        self.decode = Duration::from_micros(decode_us).min(passed);
    }

    /// Milliseconds in the queue.
    pub fn queue_ms(&self) -> u64 {
        ms(self.queue)
    }

    /// Milliseconds of prefill.
    pub fn prefill_ms(&self) -> u64 {
        ms(self.prefill)
    }

    /// Milliseconds of decode.
    pub fn decode_ms(&self) -> u64 {
        ms(self.decode)
    }
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
