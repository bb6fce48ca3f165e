//! Receipts for people: the list, one job's story, an export, and what an export proves.
//!
//! Invariant: nothing here decides anything; verdicts are the record crate's, told in words.
//!
//! Absent by design: prompts and answers. They are not in receipts.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use substrate_record::export::{
    Attempt, AttemptReport, AttemptVerdict, Export, ExportError, Report,
};
use substrate_record::{AnyRecord, Genesis, JobId, ModelEntry, NodeId, RecordId, Verified};

use crate::store::{Records, StoreError};

/// Why there is no story to tell.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReceiptError {
    /// No record of the job is here.
    #[error("no receipt of job {job}")]
    UnknownJob {
        /// As asked.
        job: JobId,
    },
    /// The entry is missing, so nobody could check which model answered.
    #[error("the model entry {0} of the job is not in the store")]
    NoEntry(RecordId),
    /// The records contradict each other.
    #[error("the stored records do not make a receipt: {0}")]
    Export(#[from] ExportError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Which side of an attempt this node was on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It asked.
    Requested,
    /// It answered.
    Served,
    /// It answered itself.
    Both,
}

/// One attempt in the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReceiptRow {
    /// Place in the list.
    pub cursor: u64,
    /// The job.
    pub job: JobId,
    /// From 1.
    pub attempt: u32,
    /// Our side.
    pub role: Role,
    /// The other side; ourselves if [`Role::Both`].
    pub other: NodeId,
    /// The model's name in its entry, or the entry's id.
    pub model: String,
    /// Tokens that count.
    pub tokens: u32,
    /// PROTOCOL.md 5's verdict.
    pub verdict: String,
    /// The requester's wall clock, for people.
    pub claimed_ms: u64,
}

/// A part of the list, newest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReceiptPage {
    /// One row per attempt.
    pub rows: Vec<ReceiptRow>,
    /// Give this as `before` for the rest.
    pub next: Option<u64>,
}

/// What one job's records say.
#[derive(Debug, Clone)]
pub struct JobStory {
    /// The checked facts.
    pub report: Report,
    /// The same in words, a line per thing.
    pub lines: Vec<String>,
}

/// What an export proves, in words.
#[derive(Debug, Clone)]
pub struct VerifyStory {
    /// The checked facts.
    pub report: Report,
    /// A line per thing.
    pub lines: Vec<String>,
}

/// Why an export proves nothing, in words.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct VerifyFailure {
    /// What is wrong, and where: attempt, record, byte.
    pub what: String,
    /// Attempt (from 1), if the fault is in one.
    pub attempt: Option<usize>,
    /// Byte of the file at which the faulty record begins, or the damage is.
    pub offset: Option<usize>,
    /// The library's own error.
    #[source]
    pub source: ExportError,
}

/// Attempts of this node, newest job first.
pub fn list(
    records: &Records,
    me: &NodeId,
    before: Option<u64>,
    limit: usize,
) -> Result<ReceiptPage, StoreError> {
    let page = records.jobs(before, limit)?;
    let mut rows = Vec::new();
    for (cursor, job) in page.jobs {
        for attempt in attempts(records.job(&job)?) {
            let manifest = attempt.manifest.body();
            let entry = records.entry(&manifest.entry)?;
            let (verdict, tokens) = outcome(&attempt);
            let (role, other) = side(me, attempt.manifest.author(), manifest.provider);
            let model = entry.map_or_else(
                || manifest.entry.to_string(),
                |entry| entry.body().name.clone(),
            );
            let claimed_ms = attempt.manifest.record().claimed_ms;
            rows.push(ReceiptRow {
                cursor,
                job,
                attempt: manifest.attempt,
                role,
                other,
                model,
                tokens,
                verdict: verdict.to_string(),
                claimed_ms,
            });
        }
    }
    Ok(ReceiptPage {
        rows,
        next: page.next,
    })
}

/// One job's story, checked as an outsider would check it.
pub fn show(records: &Records, job: &JobId) -> Result<JobStory, ReceiptError> {
    let network = records.network();
    let genesis = records
        .store()
        .network(network)?
        .ok_or(StoreError::UnknownNetwork(*network))?;
    let report = substrate_record::export::verify(&export(records, &genesis, job)?)?;
    let lines = story(&report);
    Ok(JobStory { report, lines })
}

/// One job's records in one file that anybody can check offline.
pub fn export(
    records: &Records,
    genesis: &Verified<Genesis>,
    job: &JobId,
) -> Result<Vec<u8>, ReceiptError> {
    let attempts = attempts(records.job(job)?);
    if attempts.is_empty() {
        return Err(ReceiptError::UnknownJob { job: *job });
    }
    let mut entries: BTreeMap<RecordId, Verified<ModelEntry>> = BTreeMap::new();
    for attempt in &attempts {
        let id = attempt.manifest.body().entry;
        let entry = records.entry(&id)?.ok_or(ReceiptError::NoEntry(id))?;
        entries.insert(id, entry);
    }
    let export = Export {
        genesis: genesis.clone(),
        entries: entries.into_values().collect(),
        attempts,
    };
    Ok(export.encode())
}

/// What a file proves, or what is wrong with it and where.
pub fn verify(bytes: &[u8]) -> Result<VerifyStory, Box<VerifyFailure>> {
    match substrate_record::export::verify(bytes) {
        Ok(report) => {
            let lines = story(&report);
            Ok(VerifyStory { report, lines })
        }
        Err(source) => {
            let (attempt, offset) = match &source {
                ExportError::Record { at, .. } | ExportError::Contradiction { at, .. } => {
                    (at.attempt.map(|attempt| attempt + 1), Some(at.offset))
                }
                ExportError::Structure(error) => (None, Some(error.offset)),
                _ => (None, None),
            };
            Err(Box::new(VerifyFailure {
                what: source.to_string(),
                attempt,
                offset,
                source,
            }))
        }
    }
}

/// A job's records, sorted into attempts. Records of a manifest that is not here were never stored.
fn attempts(records: Vec<AnyRecord>) -> Vec<Attempt> {
    let mut attempts: BTreeMap<u32, Attempt> = BTreeMap::new();
    for record in &records {
        if let AnyRecord::JobManifest(manifest) = record {
            let attempt = Attempt {
                manifest: manifest.clone(),
                accept: None,
                acks: Vec::new(),
                receipt_w: None,
                receipt_r: None,
            };
            attempts.insert(manifest.body().attempt, attempt);
        }
    }
    let mut attempts: Vec<Attempt> = attempts.into_values().collect();
    for record in records {
        let of =
            |manifest: RecordId| move |attempt: &&mut Attempt| attempt.manifest.id() == manifest;
        match record {
            AnyRecord::Accept(accept) => {
                if let Some(attempt) = attempts.iter_mut().find(of(accept.body().manifest)) {
                    attempt.accept = Some(accept);
                }
            }
            AnyRecord::Ack(ack) => {
                if let Some(attempt) = attempts.iter_mut().find(of(ack.body().manifest)) {
                    attempt.acks.push(ack);
                }
            }
            AnyRecord::ReceiptW(half) => {
                if let Some(attempt) = attempts.iter_mut().find(of(half.body().manifest)) {
                    attempt.receipt_w = Some(half);
                }
            }
            AnyRecord::ReceiptR(half) => {
                if let Some(attempt) = attempts.iter_mut().find(of(half.body().manifest)) {
                    attempt.receipt_r = Some(half);
                }
            }
            _ => {}
        }
    }
    for attempt in &mut attempts {
        attempt
            .acks
            .sort_by_key(|ack| (ack.body().prefilled, ack.body().tokens));
    }
    attempts
}

/// For the list only; [`verify`] is the judge.
fn outcome(attempt: &Attempt) -> (AttemptVerdict, u32) {
    let requester = attempt.receipt_r.as_ref().map(|half| half.body().tokens);
    let acked = attempt.acks.last().map_or(0, |ack| ack.body().tokens);
    match (&attempt.accept, &attempt.receipt_w, requester) {
        (None, ..) => (AttemptVerdict::NeverAccepted, 0),
        (Some(_), None, tokens) => (
            AttemptVerdict::AcceptedThenVanished,
            tokens.unwrap_or(acked),
        ),
        (Some(_), Some(_), None) => (AttemptVerdict::WorkerHalfOnly, acked),
        (Some(_), Some(half), Some(tokens)) => {
            (AttemptVerdict::BothHalves, tokens.min(half.body().n_out))
        }
    }
}

fn side(me: &NodeId, requester: NodeId, provider: NodeId) -> (Role, NodeId) {
    match (requester == *me, provider == *me) {
        (true, true) => (Role::Both, provider),
        (true, false) => (Role::Requested, provider),
        (false, _) => (Role::Served, requester),
    }
}

fn story(report: &Report) -> Vec<String> {
    let mut lines = vec![
        format!("network    {} ({})", report.network_name, report.network),
        format!("job        {}", report.job),
        format!("requester  {}", report.requester),
    ];
    lines.extend(report.attempts.iter().map(line_of));
    lines.push("every signature, commitment and reference holds".to_owned());
    lines
}

fn line_of(attempt: &AttemptReport) -> String {
    let mut line = format!(
        "attempt {}  {}: {} by node {}",
        attempt.attempt,
        attempt.verdict,
        tokens(attempt.tokens),
        attempt.provider.short()
    );
    let tell = |line: &mut String, text: String| {
        // Writing to a String cannot fail.
        let _ = write!(line, ", {text}");
    };
    if attempt.follows_unseen {
        tell(
            &mut line,
            "after an attempt that is not in this file".to_owned(),
        );
    }
    if attempt.resumed > 0 {
        tell(
            &mut line,
            format!("going on from token {}", attempt.resumed),
        );
    }
    if let Some(claimed) = attempt.claimed.filter(|claimed| *claimed != attempt.tokens) {
        tell(&mut line, format!("{} claimed", tokens(claimed)));
    }
    if attempt.verdict == AttemptVerdict::AcceptedThenVanished {
        tell(&mut line, "by the requester's word only".to_owned());
    }
    line
}

fn tokens(count: u32) -> String {
    format!("{count} token{}", if count == 1 { "" } else { "s" })
}
