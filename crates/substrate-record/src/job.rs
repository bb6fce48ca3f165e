//! The records of a running job: what is asked, that it was taken on, how far it has come.
//!
//! Invariant: prompt, answer and seed are in none of them, only salted commitments. Every attempt
//! is a manifest of its own, for one provider in one session of it.
//!
//! Absent by design: floats (fractions are millionths), dates (deadlines are durations).

use crate::capability::MAX_ENGINE_CLASS;
use crate::error::{FieldError, FieldFault};
use crate::fields::{List, Maybe, Plain, Text, body, cbor_codes, cbor_map};
use crate::{Commitment, ContentHash, InNetwork, JobId, NodeId, RecordId, SessionNonce, WallTier};

/// A failover names one parent; the rest is room for jobs made from other jobs' answers.
const MAX_PARENTS: usize = 16;

/// What a requester asks one provider to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobManifest {
    /// The job, the same over all attempts.
    pub job: JobId,
    /// Which attempt this is.
    pub attempt: u32,
    /// Whom it asks.
    pub provider: NodeId,
    /// The provider's current session, so that an old manifest is no manifest.
    pub provider_session: SessionNonce,
    /// What kind of work.
    pub kind: JobKind,
    /// Who may see it. Nothing widens it.
    pub scope: Scope,
    /// The model.
    pub entry: RecordId,
    /// The adapter on top of it.
    pub adapter: Option<RecordId>,
    /// The engine asked for; empty for any.
    pub engine_class: String,
    /// How tokens are drawn.
    pub sampler: Sampler,
    /// Commits to the seed, so the provider cannot choose it.
    pub seed_commitment: Commitment,
    /// How many tokens at most.
    pub max_tokens: u32,
    /// How long the answer may take; a duration.
    pub deadline_ms: u64,
    /// Commits to the input.
    pub input_commitment: Commitment,
    /// The weakest wall it may run behind.
    pub wall: WallTier,
    /// A fresh worker of its own, destroyed after.
    pub isolated: bool,
    /// The attempt before this one.
    pub parents: Vec<RecordId>,
    /// The rules it is asked under.
    pub policy: Policy,
    /// Tokens already generated elsewhere, which this attempt goes on from.
    pub resume_tokens: u32,
    /// Commits to them; present exactly if there are any.
    pub resume_commitment: Option<Commitment>,
}

/// Kinds of job a node accepts; a closed list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs, reason = "the names are the field's own")]
pub enum JobKind {
    Generate = 1,
    Embed = 2,
}

/// Who may see a job, from narrow to wide.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// This device.
    Mine = 1,
    /// Keys the requester listed.
    Circle = 2,
    /// Strangers.
    Commons = 3,
}

/// How tokens are drawn. Fractions are millionths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sampler {
    /// 0 takes the likeliest token.
    pub temperature: u64,
    /// How many candidates; 0 = off.
    pub top_k: u32,
    /// Nucleus; 1,000,000 = off.
    pub top_p: u64,
    /// Least share of the likeliest; 0 = off.
    pub min_p: u64,
    /// Local typicality; 1,000,000 = off.
    pub typical_p: u64,
    /// How many tokens back the penalties look; −1 = all.
    pub repeat_last_n: i32,
    /// Repetition penalty; 1,000,000 = off.
    pub repeat: u64,
    /// Presence penalty.
    pub presence: i64,
    /// Frequency penalty.
    pub frequency: i64,
    /// How many choices.
    pub n: u32,
    /// How many alternatives are reported per token; `None` = no logprobs.
    pub top_logprobs: Option<u32>,
}

/// The rules a job is asked under.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// The rules both sides fold by.
    pub rules_hash: [u8; 32],
    /// Whether the requester lets an auditor see input and output.
    pub audit_consent: bool,
}

/// A provider's word that it has taken a job on and begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accept {
    /// The manifest.
    pub manifest: RecordId,
    /// The engine that runs it.
    pub engine_class: String,
    /// The worker binary that runs it.
    pub worker_sha256: ContentHash,
    /// The wall it runs behind.
    pub wall: WallTier,
    /// Tokens of input, as the engine counts them.
    pub n_in: u32,
}

/// A requester's word of what it has received so far; cumulative.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ack {
    /// The manifest.
    pub manifest: RecordId,
    /// The Accept.
    pub accept: RecordId,
    /// Agrees with the Accept's count.
    pub n_in: u32,
    /// Tokens of input read so far.
    pub prefilled: u32,
    /// This attempt's tokens received so far.
    pub tokens: u32,
    /// Commits to the ids received, resumed ones included.
    pub output_commitment: Commitment,
}

cbor_codes!(JobKind { Generate, Embed });
cbor_codes!(Scope {
    Mine,
    Circle,
    Commons
});
cbor_map!(Sampler {
    1 => temperature: Plain,
    2 => top_k: Plain,
    3 => top_p: Plain,
    4 => min_p: Plain,
    5 => typical_p: Plain,
    6 => repeat_last_n: Plain,
    7 => repeat: Plain,
    8 => presence: Plain,
    9 => frequency: Plain,
    10 => n: Plain,
    11 => top_logprobs: Maybe(Plain),
});
cbor_map!(Policy {
    1 => rules_hash: Plain,
    2 => audit_consent: Plain,
});
cbor_map!(JobManifest {
    1 => job: Plain,
    2 => attempt: Plain,
    3 => provider: Plain,
    4 => provider_session: Plain,
    5 => kind: Plain,
    6 => scope: Plain,
    7 => entry: Plain,
    8 => adapter: Maybe(Plain),
    9 => engine_class: Text(MAX_ENGINE_CLASS),
    10 => sampler: Plain,
    11 => seed_commitment: Plain,
    12 => max_tokens: Plain,
    13 => deadline_ms: Plain,
    14 => input_commitment: Plain,
    15 => wall: Plain,
    16 => isolated: Plain,
    17 => parents: List(MAX_PARENTS, Plain),
    18 => policy: Plain,
    19 => resume_tokens: Plain,
    20 => resume_commitment: Maybe(Plain),
});
cbor_map!(Accept {
    1 => manifest: Plain,
    2 => engine_class: Text(MAX_ENGINE_CLASS),
    3 => worker_sha256: Plain,
    4 => wall: Plain,
    5 => n_in: Plain,
});
cbor_map!(Ack {
    1 => manifest: Plain,
    2 => accept: Plain,
    3 => n_in: Plain,
    4 => prefilled: Plain,
    5 => tokens: Plain,
    6 => output_commitment: Plain,
});
body!(JobManifest, None);
body!(Accept, None);
body!(Ack, None);

impl InNetwork for JobManifest {}
impl InNetwork for Accept {}
impl InNetwork for Ack {}

impl JobManifest {
    fn consistent(&self) -> Result<(), FieldError> {
        if (self.resume_tokens == 0) != self.resume_commitment.is_none() {
            let fault = "resume_commitment is there exactly if resume_tokens is not 0";
            return Err(FieldFault::Inconsistent(fault).into());
        }
        Ok(())
    }
}

impl Accept {
    fn consistent(&self) -> Result<(), FieldError> {
        Ok(())
    }
}

impl Ack {
    fn consistent(&self) -> Result<(), FieldError> {
        if self.prefilled > self.n_in {
            return Err(FieldFault::Inconsistent("prefilled is more than n_in").into());
        }
        Ok(())
    }
}
