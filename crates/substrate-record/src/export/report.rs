//! What an export proves, attempt by attempt.
//!
//! Invariant: a verdict is given only if every record of the job fits the ones before it: same
//! requester, same job, attempts in sequence, each half about this manifest and this Accept.
//!
//! Absent by design: trust in the network itself; the report names it and the reader compares.

use std::fmt;

use super::check::check;
use super::{Attempt, Export, ExportError};
use crate::{Finish, Half, JobId, NetworkId, NodeId, ReceiptVerdict, RecordId, Verified};

/// What an export proves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The network whose records these are.
    pub network: NetworkId,
    /// What its Genesis calls it.
    pub network_name: String,
    /// The job.
    pub job: JobId,
    /// Who asked.
    pub requester: NodeId,
    /// Its attempts, first to last.
    pub attempts: Vec<AttemptReport>,
}

/// What an export proves of one attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttemptReport {
    /// Its number.
    pub attempt: u32,
    /// Its manifest.
    pub manifest: RecordId,
    /// The entry it was asked for.
    pub entry: RecordId,
    /// Who was asked.
    pub provider: NodeId,
    /// How far it is proven.
    pub verdict: AttemptVerdict,
    /// Whether it follows an attempt that is not in this file, as in the export of a provider that
    /// took over: what was received before then rests on its manifest alone.
    pub follows_unseen: bool,
    /// Tokens it went on from.
    pub resumed: u32,
    /// Tokens of its own that count.
    pub tokens: u32,
    /// Tokens of its own that the worker's half claims.
    pub claimed: Option<u32>,
    /// Why it ended, by the worker's half.
    pub finish: Option<Finish>,
    /// What the requester's half says.
    pub requester_says: Option<ReceiptVerdict>,
}

/// How far an attempt is proven.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttemptVerdict {
    /// Worker and requester both signed.
    BothHalves,
    /// The requester never answered the worker's half; it counts to the last Ack.
    WorkerHalfOnly,
    /// The worker began and gave no half; its tokens stand by the requester's word only.
    AcceptedThenVanished,
    /// The offer was never taken; it counts nothing.
    NeverAccepted,
}

impl fmt::Display for AttemptVerdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BothHalves => "both halves",
            Self::WorkerHalfOnly => "worker half only",
            Self::AcceptedThenVanished => "accepted, then vanished",
            Self::NeverAccepted => "never accepted",
        })
    }
}

/// Reads an export and says what it proves.
///
/// # Errors
/// A damaged file, a record that is not authentic, or records that contradict each other; always
/// with the place.
pub fn verify(bytes: &[u8]) -> Result<Report, ExportError> {
    let export = Export::decode(bytes)?;
    check(&export).map_err(|contradiction| contradiction.located(&export, bytes))?;
    let first = &export.attempts[0].manifest;
    Ok(Report {
        network: export.genesis.network(),
        network_name: export.genesis.body().name.clone(),
        job: first.body().job,
        requester: first.author(),
        attempts: summaries(&export),
    })
}

fn summaries(export: &Export) -> Vec<AttemptReport> {
    let seen = |id: &RecordId| {
        let mut manifests = export.attempts.iter().map(|attempt| attempt.manifest.id());
        manifests.any(|manifest| manifest == *id)
    };
    let summary = |attempt: &Attempt| AttemptReport {
        follows_unseen: !attempt.manifest.body().parents.iter().all(seen),
        ..summarise(attempt)
    };
    export.attempts.iter().map(summary).collect()
}

fn summarise(attempt: &Attempt) -> AttemptReport {
    let manifest = attempt.manifest.body();
    let (verdict, tokens) = judge(attempt);
    let receipt_w = attempt.receipt_w.as_ref().map(Verified::body);
    AttemptReport {
        attempt: manifest.attempt,
        manifest: attempt.manifest.id(),
        entry: manifest.entry,
        provider: manifest.provider,
        verdict,
        follows_unseen: false,
        resumed: manifest.resume_tokens,
        tokens,
        claimed: receipt_w.map(|half| half.n_out),
        finish: receipt_w.map(|half| half.finish),
        requester_says: attempt.receipt_r.as_ref().map(|half| half.body().verdict),
    }
}

/// The verdict, and how many of the attempt's own tokens count.
fn judge(attempt: &Attempt) -> (AttemptVerdict, u32) {
    if attempt.accept.is_none() {
        return (AttemptVerdict::NeverAccepted, 0);
    }
    let Some(receipt_w) = &attempt.receipt_w else {
        return (
            AttemptVerdict::AcceptedThenVanished,
            tokens_received(attempt),
        );
    };
    let claimed = receipt_w.body().n_out;
    let answer = attempt.receipt_r.as_ref().map(Verified::body);
    match answer.filter(|answer| answer.half == Half::ReceiptW(receipt_w.id())) {
        Some(answer) => (AttemptVerdict::BothHalves, claimed.min(answer.tokens)),
        None => (
            AttemptVerdict::WorkerHalfOnly,
            claimed.min(tokens_acked(attempt)),
        ),
    }
}

/// By the requester's word: its half, or else its last Ack.
pub(super) fn tokens_received(attempt: &Attempt) -> u32 {
    let half = attempt.receipt_r.as_ref().map(|half| half.body().tokens);
    half.unwrap_or(0).max(tokens_acked(attempt))
}

fn tokens_acked(attempt: &Attempt) -> u32 {
    attempt.acks.last().map_or(0, |ack| ack.body().tokens)
}
