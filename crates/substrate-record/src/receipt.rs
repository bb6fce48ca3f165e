//! The two halves of a receipt: what the worker says it did, what the requester says it got.
//!
//! Invariant: counts are this attempt's own tokens; the output commitment covers resumed ones too.
//! Absent by design: prices (0 until a rate card exists) and any text of the job.

use ciborium::Value;

use crate::error::{FieldError, FieldFault};
use crate::fields::{
    Blob, Cbor, MapReader, MapWriter, Maybe, Plain, Text, body, cbor_codes, cbor_map,
};
use crate::{Commitment, ContentHash, InNetwork, RecordId, Stream};

/// A fingerprint root and its parameters, not the fingerprints.
const MAX_AUDIT: usize = 1024;
/// One sentence.
const MAX_REASON: usize = 256;

/// The worker's half.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReceiptW {
    /// The manifest.
    pub manifest: RecordId,
    /// The Accept.
    pub accept: RecordId,
    /// The weights that answered.
    pub model_sha256: ContentHash,
    /// Commits to the input, as the manifest does.
    pub input_commitment: Commitment,
    /// Commits to the token ids, resumed ones included.
    pub output_commitment: Commitment,
    /// Tokens of input.
    pub n_in: u32,
    /// Tokens this attempt generated.
    pub n_out: u32,
    /// The grant it is paid from.
    pub grant: Option<RecordId>,
    /// Millionths of a credit; 0 until a rate card exists.
    pub microcredits: u64,
    /// The last Ack the worker holds.
    pub last_ack: Option<RecordId>,
    /// Why it ended.
    pub finish: Finish,
    /// Where the time went.
    pub timings_ms: Timings,
    /// What an auditor starts from.
    pub audit: Option<Vec<u8>>,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Finish {
    /// The model or a stop string ended it.
    Stop = 1,
    /// The token limit or the context ended it.
    Length = 2,
    /// The requester ended it.
    Cancelled = 3,
    /// The worker could not go on.
    Failed = 4,
}

/// Where the time went, in ms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timings {
    /// Waiting for a slot.
    pub queue: u64,
    /// Reading the prompt.
    pub prefill: u64,
    /// Generating.
    pub decode: u64,
}

/// The requester's half.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReceiptR {
    /// The manifest.
    pub manifest: RecordId,
    /// The latest record of the provider's it answers.
    pub half: Half,
    /// What it says of it.
    pub verdict: ReceiptVerdict,
    /// Tokens of this attempt it received.
    pub tokens: u32,
    /// One sentence, for people; empty if all is well.
    pub reason: String,
}

/// What a requester's half answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Half {
    /// The worker's half.
    ReceiptW(RecordId),
    /// Only an Accept: the worker vanished, or was left.
    Accept(RecordId),
    /// Nothing: the offer never got that far.
    Manifest,
}

/// A requester's verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ReceiptVerdict {
    /// All of it came, as committed.
    Ok = 1,
    /// Part of it came.
    Partial = 2,
    /// What came is not what was asked.
    Reject = 3,
}

cbor_codes!(Finish {
    Stop,
    Length,
    Cancelled,
    Failed
});
cbor_codes!(ReceiptVerdict {
    Ok,
    Partial,
    Reject
});
cbor_map!(Timings {
    1 => queue: Plain,
    2 => prefill: Plain,
    3 => decode: Plain,
});
cbor_map!(ReceiptW {
    1 => manifest: Plain,
    2 => accept: Plain,
    3 => model_sha256: Plain,
    4 => input_commitment: Plain,
    5 => output_commitment: Plain,
    6 => n_in: Plain,
    7 => n_out: Plain,
    8 => grant: Maybe(Plain),
    9 => microcredits: Plain,
    10 => last_ack: Maybe(Plain),
    11 => finish: Plain,
    12 => timings_ms: Plain,
    13 => audit: Maybe(Blob(MAX_AUDIT)),
});
cbor_map!(ReceiptR {
    1 => manifest: Plain,
    2 => half: Plain,
    3 => verdict: Plain,
    4 => tokens: Plain,
    5 => reason: Text(MAX_REASON),
});
body!(ReceiptW, Some(Stream::Work));
body!(ReceiptR, Some(Stream::Work));

impl InNetwork for ReceiptW {}
impl InNetwork for ReceiptR {}

impl ReceiptW {
    fn consistent(&self) -> Result<(), FieldError> {
        Ok(())
    }
}

impl ReceiptR {
    fn consistent(&self) -> Result<(), FieldError> {
        Ok(())
    }
}

/// `{1: receipt_w}`, `{2: accept}` or the empty map.
impl Cbor for Half {
    fn put(&self) -> Value {
        let mut map = MapWriter::default();
        match self {
            Self::ReceiptW(id) => map.put(1, &Plain, id),
            Self::Accept(id) => map.put(2, &Plain, id),
            Self::Manifest => {}
        }
        map.finish()
    }

    fn get(value: Value) -> Result<Self, FieldError> {
        let mut map = MapReader::open(value)?;
        let receipt_w = map.take(1, "receipt_w", &Maybe(Plain))?;
        let accept = map.take(2, "accept", &Maybe(Plain))?;
        map.close()?;
        match (receipt_w, accept) {
            (Some(id), None) => Ok(Self::ReceiptW(id)),
            (None, Some(id)) => Ok(Self::Accept(id)),
            (None, None) => Ok(Self::Manifest),
            _ => Err(FieldFault::Inconsistent("both receipt_w and accept are named").into()),
        }
    }
}
