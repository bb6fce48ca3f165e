//! Why bytes are not a record, and why a record is not believed.
//!
//! Invariant: every refusal names the field or the byte it is about.
//! Absent by design: any error for what a record means; refusals of jobs are answers, not errors.

use std::fmt;

use crate::cbor::CborError;
use crate::{MAX_RECORD_BYTES, NodeId, RecordId, RecordType, Stream};

/// Why bytes are not a record of the expected type, the signature aside.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// Longer than any record may be.
    #[error("record of {length} bytes is longer than {MAX_RECORD_BYTES}")]
    Oversize {
        /// Its length.
        length: usize,
    },
    /// The envelope around header, payload and signature is not deterministic CBOR.
    #[error("envelope: {0}")]
    Envelope(CborError),
    /// Header, payload and signature are not four items of the right kinds.
    #[error("not a COSE_Sign1 structure with an embedded payload")]
    NotSign1,
    /// The protected header is not deterministic CBOR or not a header.
    #[error("malformed protected header")]
    Header,
    /// The signature algorithm is not −19 (Ed25519).
    #[error("signature algorithm is not Ed25519 (-19)")]
    Algorithm,
    /// The content type is another.
    #[error("content type is not application/substrate+cbor")]
    ContentType,
    /// The key id is not a 32-byte key.
    #[error("key id is not a 32-byte Ed25519 key")]
    KeyId,
    /// The protected header holds more than algorithm, content type and key id.
    #[error("protected header holds more than algorithm, content type and key id")]
    ExtraHeader,
    /// The unprotected header holds something nobody signed.
    #[error("unprotected header is not empty")]
    UnprotectedHeader,
    /// The signature is not 64 bytes.
    #[error("signature is not 64 bytes")]
    SignatureLength,
    /// The payload is not deterministic CBOR; the offset counts from the record's first byte.
    #[error("payload: {0}")]
    Payload(CborError),
    /// A field is missing, of the wrong kind or out of bounds.
    #[error(transparent)]
    Field(#[from] FieldError),
    /// A version this code does not know.
    #[error("unknown record version {0}")]
    Version(u64),
    /// A record type this code does not know.
    #[error("unknown record type {0}")]
    UnknownType(u64),
    /// Another type than the one asked for.
    #[error("expected record type {expected}, found {found}")]
    OtherType {
        /// What was asked for.
        expected: RecordType,
        /// What it is.
        found: RecordType,
    },
    /// The author named inside is not the key in the header.
    #[error("author {author} is not the key that the header names, {kid}")]
    AuthorIsNotKid {
        /// Who the payload says wrote it.
        author: NodeId,
        /// Whose key the header names.
        kid: NodeId,
    },
    /// The record type has its own place in a stream, or none, and this is not it.
    #[error("{of} records belong in {}", place_name(.expected))]
    Place {
        /// The record's type.
        of: RecordType,
        /// The stream its records belong in.
        expected: Option<Stream>,
    },
    /// Sequence numbers start at 1, and only the first has no predecessor.
    #[error("sequence number and predecessor do not fit together")]
    Sequence,
    /// Decoding and encoding again gave other bytes.
    #[error("not the canonical encoding of its content")]
    NotCanonical,
}

fn place_name(stream: &Option<Stream>) -> String {
    match stream {
        Some(stream) => format!("stream {stream:?}"),
        None => "no stream".to_owned(),
    }
}

/// Which field of a record is wrong, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldError {
    /// From the field outwards to the record.
    path: Vec<&'static str>,
    /// What is wrong.
    pub fault: FieldFault,
}

impl FieldError {
    pub(crate) fn within(mut self, name: &'static str) -> Self {
        self.path.push(name);
        self
    }
}

impl From<FieldFault> for FieldError {
    fn from(fault: FieldFault) -> Self {
        let path = Vec::new();
        Self { path, fault }
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let outermost_first: Vec<_> = self.path.iter().rev().copied().collect();
        write!(f, "{}: {}", outermost_first.join("."), self.fault)
    }
}

impl std::error::Error for FieldError {}

/// What can be wrong with one field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FieldFault {
    /// A field that must be there is not.
    #[error("missing")]
    Missing,
    /// Another kind of value was needed.
    #[error("expected {0}")]
    WrongType(&'static str),
    /// Bytes of a fixed length had another.
    #[error("expected {expected} bytes")]
    WrongLength {
        /// The fixed length.
        expected: usize,
    },
    /// An integer or code outside its range.
    #[error("value out of range")]
    OutOfRange,
    /// More items than the field's bound.
    #[error("more than {limit} items")]
    TooMany {
        /// The bound.
        limit: usize,
    },
    /// More bytes than the field's bound.
    #[error("longer than {limit} bytes")]
    TooLong {
        /// The bound.
        limit: usize,
    },
    /// A map key that is not an unsigned integer.
    #[error("map key is not an unsigned integer")]
    NotALabel,
    /// A label this version does not define.
    #[error("unknown label {0}")]
    UnknownLabel(u64),
    /// Two fields that contradict each other.
    #[error("{0}")]
    Inconsistent(&'static str),
}

/// Why a decoded record's signature was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SignatureError {
    /// The author's key is no point of the curve.
    #[error("author key {0} is not a valid Ed25519 point")]
    MalformedKey(NodeId),
    /// Wrong key, changed content, another network, or a signature that only lenient rules accept.
    #[error("signature does not match the {of} record under this network's name")]
    Mismatch {
        /// The record's type.
        of: RecordType,
    },
    /// A genesis, but of another network.
    #[error("genesis {0} is that of another network")]
    OtherNetwork(RecordId),
}

/// Why bytes were not accepted as a record of this network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The bytes are not a record.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// The record is not authentic.
    #[error(transparent)]
    Signature(#[from] SignatureError),
}

/// Why a record cannot be signed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignError {
    /// The record names another author than the key's owner.
    #[error("record names author {author}, but the key is {key}'s")]
    OtherAuthor {
        /// Whom the record names.
        author: NodeId,
        /// Whose key it is.
        key: NodeId,
    },
    /// Every reader would refuse it.
    #[error("record would be refused by its readers")]
    Refused(#[from] DecodeError),
}
