//! A record of any type, for whoever receives bytes without knowing what they are.
//!
//! Invariant: opening checks form, bounds, canonical bytes and signature; there is no record of
//! unknown type. Absent by design: a way to hold a record that was not checked.

use crate::signed::Envelope;
use crate::{
    Accept, Ack, Capability, Genesis, InNetwork, JobManifest, ModelEntry, NetworkId, NodeId,
    ReceiptR, ReceiptW, RecordError, RecordId, RecordType, SignatureError, Signed, Verified,
};

/// A verified record of one of the known types.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "each is documented at its body")]
pub enum AnyRecord {
    Genesis(Verified<Genesis>),
    Capability(Verified<Capability>),
    ModelEntry(Verified<ModelEntry>),
    JobManifest(Verified<JobManifest>),
    Accept(Verified<Accept>),
    Ack(Verified<Ack>),
    ReceiptW(Verified<ReceiptW>),
    ReceiptR(Verified<ReceiptR>),
}

macro_rules! each {
    ($any:expr, $record:ident => $what:expr) => {
        match $any {
            AnyRecord::Genesis($record) => $what,
            AnyRecord::Capability($record) => $what,
            AnyRecord::ModelEntry($record) => $what,
            AnyRecord::JobManifest($record) => $what,
            AnyRecord::Accept($record) => $what,
            AnyRecord::Ack($record) => $what,
            AnyRecord::ReceiptW($record) => $what,
            AnyRecord::ReceiptR($record) => $what,
        }
    };
}

impl AnyRecord {
    /// Opens the bytes of a record of `network`. A Genesis opens only if it founds that network.
    ///
    /// # Errors
    /// The bytes are no canonical record, or it is not authentic in this network.
    pub fn open(bytes: &[u8], network: &NetworkId) -> Result<Self, RecordError> {
        let envelope = Envelope::decode(bytes)?;
        Ok(match envelope.record_type()? {
            RecordType::Genesis => Self::Genesis(open_genesis(envelope, network)?),
            RecordType::Capability => Self::Capability(open(envelope, network)?),
            RecordType::ModelEntry => Self::ModelEntry(open(envelope, network)?),
            RecordType::JobManifest => Self::JobManifest(open(envelope, network)?),
            RecordType::Accept => Self::Accept(open(envelope, network)?),
            RecordType::Ack => Self::Ack(open(envelope, network)?),
            RecordType::ReceiptW => Self::ReceiptW(open(envelope, network)?),
            RecordType::ReceiptR => Self::ReceiptR(open(envelope, network)?),
        })
    }

    /// The record's id.
    pub fn id(&self) -> RecordId {
        each!(self, record => record.id())
    }

    /// Who wrote it.
    pub fn author(&self) -> NodeId {
        each!(self, record => record.author())
    }

    /// The canonical bytes.
    pub fn bytes(&self) -> &[u8] {
        each!(self, record => record.bytes())
    }

    /// Which type it is.
    pub fn record_type(&self) -> RecordType {
        match self {
            Self::Genesis(_) => RecordType::Genesis,
            Self::Capability(_) => RecordType::Capability,
            Self::ModelEntry(_) => RecordType::ModelEntry,
            Self::JobManifest(_) => RecordType::JobManifest,
            Self::Accept(_) => RecordType::Accept,
            Self::Ack(_) => RecordType::Ack,
            Self::ReceiptW(_) => RecordType::ReceiptW,
            Self::ReceiptR(_) => RecordType::ReceiptR,
        }
    }
}

fn open<B: InNetwork>(envelope: Envelope, network: &NetworkId) -> Result<Verified<B>, RecordError> {
    Ok(Signed::from_envelope(envelope)?.verify(network)?)
}

fn open_genesis(envelope: Envelope, network: &NetworkId) -> Result<Verified<Genesis>, RecordError> {
    let genesis = Signed::<Genesis>::from_envelope(envelope)?.verify_genesis()?;
    if genesis.network() != *network {
        return Err(SignatureError::OtherNetwork(genesis.id()).into());
    }
    Ok(genesis)
}
