//! Exports: one job's records in one file that anybody can check offline.
//!
//! Invariant: an [`Export`] holds only verified records of one network, and its file has one
//! encoding: the map 1 version, 2 genesis, 3 entries, 4 attempts {1 manifest, 2 accept?, 3 acks,
//! 4 receipt_w?, 5 receipt_r?}, records as byte strings. What the records say to each other is
//! [`verify`]'s.
//!
//! Absent by design: prompts, answers, salts; an export proves who did what, not what was said.

mod check;
mod file;
mod report;

use std::fmt;

use ciborium::Value;

use crate::cbor::{self, CborError};
use crate::{
    Accept, Ack, Genesis, JobManifest, ModelEntry, ReceiptR, ReceiptW, RecordError, Verified,
};

pub use report::{AttemptReport, AttemptVerdict, Report, verify};

/// The only file version there is.
const VERSION: u64 = 1;

/// A job of an hour with an Ack every second of it, twice over.
pub const MAX_EXPORT_BYTES: usize = 4 * 1024 * 1024;
/// Every offer is an attempt; one every second for a quarter of an hour.
pub const MAX_ATTEMPTS: usize = 1024;
/// One Ack per 256 tokens is a million tokens.
pub const MAX_ACKS: usize = 4096;
/// Copies of an entry by as many registry keys as a Genesis lists, or as many acceptable entries.
pub const MAX_ENTRIES: usize = 32;

/// One job's records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Export {
    /// The network they are of.
    pub genesis: Verified<Genesis>,
    /// The model entries the manifests name, or byte-equal ones by other keys.
    pub entries: Vec<Verified<ModelEntry>>,
    /// The attempts, first to last.
    pub attempts: Vec<Attempt>,
}

/// The records of one attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// What was asked.
    pub manifest: Verified<JobManifest>,
    /// The provider's word that it began.
    pub accept: Option<Verified<Accept>>,
    /// The requester's acknowledgements, oldest first.
    pub acks: Vec<Verified<Ack>>,
    /// The worker's half.
    pub receipt_w: Option<Verified<ReceiptW>>,
    /// The requester's half.
    pub receipt_r: Option<Verified<ReceiptR>>,
}

/// Where in an export something is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Location {
    /// Which attempt, counted from 0; `None` before the first.
    pub attempt: Option<usize>,
    /// Which record.
    pub record: Role,
    /// The file offset of the record's first byte.
    pub offset: usize,
}

/// What a record is to the export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The network's Genesis.
    Genesis,
    /// A model entry, counted from 0.
    Entry(usize),
    /// An attempt's manifest.
    Manifest,
    /// An attempt's Accept.
    Accept,
    /// An attempt's Ack, counted from 0.
    Ack(usize),
    /// An attempt's worker half.
    ReceiptW,
    /// An attempt's requester half.
    ReceiptR,
}

/// Why an export is not believed, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// Longer than any export may be.
    #[error("export of {length} bytes is longer than {MAX_EXPORT_BYTES}")]
    Oversize {
        /// Its length.
        length: usize,
    },
    /// The file around the records is damaged.
    #[error("not an export: {0}")]
    Structure(CborError),
    /// A version this code does not know.
    #[error("unknown export version {0}")]
    Version(u64),
    /// A job has at least one attempt.
    #[error("export holds no attempt")]
    Empty,
    /// A record that is malformed or not authentic.
    #[error("{at}: {source}")]
    Record {
        /// Where it is.
        at: Location,
        /// What is wrong with it.
        source: RecordError,
    },
    /// Authentic records that contradict each other.
    #[error("{at}: {what}")]
    Contradiction {
        /// The record that does not fit the ones before it.
        at: Location,
        /// What does not fit.
        what: &'static str,
    },
}

impl Export {
    /// The file's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let entries = self.entries.iter().map(bytes_of).collect();
        let attempts = self.attempts.iter().map(Attempt::to_cbor).collect();
        cbor::encode(&labelled([
            (1, Some(Value::from(VERSION))),
            (2, Some(bytes_of(&self.genesis))),
            (3, Some(Value::Array(entries))),
            (4, Some(Value::Array(attempts))),
        ]))
    }

    /// Reads a file and checks every record in it.
    ///
    /// # Errors
    /// A damaged file, or a record that is malformed or not authentic, and where.
    pub fn decode(bytes: &[u8]) -> Result<Self, ExportError> {
        file::read(bytes)
    }
}

impl Attempt {
    fn to_cbor(&self) -> Value {
        let acks = self.acks.iter().map(bytes_of).collect();
        labelled([
            (1, Some(bytes_of(&self.manifest))),
            (2, self.accept.as_ref().map(bytes_of)),
            (3, Some(Value::Array(acks))),
            (4, self.receipt_w.as_ref().map(bytes_of)),
            (5, self.receipt_r.as_ref().map(bytes_of)),
        ])
    }
}

fn bytes_of<B>(record: &Verified<B>) -> Value {
    Value::Bytes(record.bytes().to_vec())
}

fn labelled<const N: usize>(fields: [(u64, Option<Value>); N]) -> Value {
    let present = fields
        .into_iter()
        .filter_map(|(label, value)| Some((Value::from(label), value?)));
    Value::Map(present.collect())
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(attempt) = self.attempt {
            write!(f, "attempt {}, ", attempt + 1)?;
        }
        write!(f, "{} at byte {}", self.record, self.offset)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Genesis => f.write_str("genesis"),
            Self::Entry(index) => write!(f, "model entry {}", index + 1),
            Self::Manifest => f.write_str("manifest"),
            Self::Accept => f.write_str("accept"),
            Self::Ack(index) => write!(f, "ack {}", index + 1),
            Self::ReceiptW => f.write_str("worker half"),
            Self::ReceiptR => f.write_str("requester half"),
        }
    }
}
