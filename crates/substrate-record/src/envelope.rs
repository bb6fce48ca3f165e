//! The envelope every record shares: who says it, where in their stream, and the body.
//!
//! Invariant: the payload is the map 1 version, 2 type, 3 author, 4 stream, 5 seq, 6 prev, 7 epoch,
//! 8 claimed time, 9 deps, 10 body; 4 to 6 are there exactly for types that have a stream, and 6
//! exactly from the second record of a stream on.
//!
//! Absent by design: any rule that reads the claimed time.

use std::fmt;

use ciborium::Value;

use crate::error::{DecodeError, FieldFault};
use crate::fields::{List, MapReader, MapWriter, Maybe, Plain, cbor_codes};
use crate::{NetworkId, signed};
use crate::{NodeId, RecordId, SignError, SigningKey, Verified, cbor};

/// The only payload version there is.
const VERSION: u64 = 1;

/// How many records one record may depend on: 32 ids are 1 KiB, and a record that needs more
/// facts than that is a summary, which names a Merkle root instead.
pub(crate) const MAX_DEPS: usize = 32;

/// What a node says, before or after it is signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record<B> {
    /// Who says it.
    pub author: NodeId,
    /// Where in the author's stream it stands; `None` for types outside a stream.
    pub place: Option<Place>,
    /// The epoch the author takes it to be in; 0 until epochs are closed.
    pub epoch: u64,
    /// The author's wall clock in ms, for people; no rule reads it.
    pub claimed_ms: u64,
    /// Records this one does not count without.
    pub deps: Vec<RecordId>,
    /// What is said.
    pub body: B,
}

/// A record's position in its author's stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Which stream.
    pub stream: Stream,
    /// From 1.
    pub seq: u64,
    /// The record before it; `None` exactly for the first.
    pub prev: Option<RecordId>,
}

/// The streams a node writes, one chain each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs, reason = "the names are the protocol's and say it all")]
pub enum Stream {
    Id = 1,
    Cap = 2,
    Work = 3,
    Credit = 4,
    Registry = 5,
    Consent = 6,
    Train = 7,
    Gov = 8,
    Evidence = 9,
}
cbor_codes!(Stream {
    Id,
    Cap,
    Work,
    Credit,
    Registry,
    Consent,
    Train,
    Gov,
    Evidence
});

/// The kinds of record there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs, reason = "each is documented at its body")]
pub enum RecordType {
    Genesis = 1,
    Capability = 2,
    ModelEntry = 3,
    JobManifest = 4,
    Accept = 5,
    Ack = 6,
    ReceiptW = 7,
    ReceiptR = 8,
}

impl RecordType {
    const ALL: [Self; 8] = [
        Self::Genesis,
        Self::Capability,
        Self::ModelEntry,
        Self::JobManifest,
        Self::Accept,
        Self::Ack,
        Self::ReceiptW,
        Self::ReceiptR,
    ];

    fn from_code(code: u64) -> Result<Self, DecodeError> {
        let known = Self::ALL.into_iter().find(|known| *known as u64 == code);
        known.ok_or(DecodeError::UnknownType(code))
    }
}

impl fmt::Display for RecordType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What a record can say.
pub trait Body: Sized {
    /// Its code in the envelope.
    const TYPE: RecordType;
    /// The stream its records are chained in, if any.
    const STREAM: Option<Stream>;

    /// The body as a CBOR map of ascending labels.
    fn to_cbor(&self) -> Value;

    /// Reads the body.
    ///
    /// # Errors
    /// A missing, unknown, ill-typed or out-of-bounds field.
    fn from_cbor(value: Value) -> Result<Self, DecodeError>;
}

/// Bodies that exist only within a network: all but the Genesis that founds it.
pub trait InNetwork: Body {}

impl<B: Body> Record<B> {
    /// A record outside any stream, in epoch 0, depending on nothing.
    pub fn new(author: NodeId, claimed_ms: u64, body: B) -> Self {
        Self {
            author,
            place: None,
            epoch: 0,
            claimed_ms,
            deps: Vec::new(),
            body,
        }
    }

    /// Puts the record into its type's stream after `prev`, `(seq, id)` of the author's last one.
    pub fn after(mut self, prev: Option<(u64, RecordId)>) -> Self {
        self.place = B::STREAM.map(|stream| Place {
            stream,
            seq: prev.map_or(1, |(seq, _)| seq.saturating_add(1)),
            prev: prev.map(|(_, id)| id),
        });
        self
    }

    /// The canonical payload bytes.
    pub(crate) fn to_payload(&self) -> Vec<u8> {
        let place = self.place.as_ref();
        let mut map = MapWriter::default();
        map.put(1, &Plain, &VERSION);
        map.put(2, &Plain, &(B::TYPE as u64));
        map.put(3, &Plain, &self.author);
        map.put(4, &Maybe(Plain), &place.map(|place| place.stream));
        map.put(5, &Maybe(Plain), &place.map(|place| place.seq));
        map.put(6, &Maybe(Plain), &place.and_then(|place| place.prev));
        map.put(7, &Plain, &self.epoch);
        map.put(8, &Plain, &self.claimed_ms);
        map.put(9, &List(MAX_DEPS, Plain), &self.deps);
        map.put(10, &AsIs, &self.body.to_cbor());
        cbor::encode(&map.finish())
    }

    /// Reads a payload that is already known to be deterministic CBOR.
    pub(crate) fn from_payload(payload: Value) -> Result<Self, DecodeError> {
        let mut map = open_map(payload)?;
        let found = read_type(&mut map)?;
        if found != B::TYPE {
            let expected = B::TYPE;
            return Err(DecodeError::OtherType { expected, found });
        }
        let record = Self {
            author: map.take(3, "author", &Plain)?,
            place: read_place(&mut map, B::TYPE, B::STREAM)?,
            epoch: map.take(7, "epoch", &Plain)?,
            claimed_ms: map.take(8, "claimed_ms", &Plain)?,
            deps: map.take(9, "deps", &List(MAX_DEPS, Plain))?,
            body: B::from_cbor(map.take(10, "body", &AsIs)?)?,
        };
        map.close().map_err(|error| error.within("record"))?;
        Ok(record)
    }
}

impl<B: InNetwork> Record<B> {
    /// Signs the record for one network.
    ///
    /// # Errors
    /// The key is not the author's, or readers would refuse the record (a list past its bound, a
    /// place that is not its type's, more than 16 KiB).
    pub fn sign(self, key: &SigningKey, network: &NetworkId) -> Result<Verified<B>, SignError> {
        signed::sign(self, key, &signed::context_of(network))
    }
}

/// The type a payload claims, for dispatch before the body is read.
pub(crate) fn type_of_payload(payload: Value) -> Result<RecordType, DecodeError> {
    read_type(&mut open_map(payload)?)
}

fn open_map(payload: Value) -> Result<MapReader, DecodeError> {
    let map = MapReader::open(payload).map_err(|error| error.within("record"))?;
    Ok(map)
}

fn read_type(map: &mut MapReader) -> Result<RecordType, DecodeError> {
    match map.take(1, "version", &Plain)? {
        VERSION => RecordType::from_code(map.take(2, "type", &Plain)?),
        other => Err(DecodeError::Version(other)),
    }
}

fn read_place(
    map: &mut MapReader,
    of: RecordType,
    expected: Option<Stream>,
) -> Result<Option<Place>, DecodeError> {
    let stream: Option<Stream> = map.take(4, "stream", &Maybe(Plain))?;
    let seq: Option<u64> = map.take(5, "seq", &Maybe(Plain))?;
    let prev: Option<RecordId> = map.take(6, "prev", &Maybe(Plain))?;
    if stream != expected || seq.is_some() != expected.is_some() {
        return Err(DecodeError::Place { of, expected });
    }
    let (Some(stream), Some(seq)) = (stream, seq) else {
        return match prev {
            Some(_) => Err(DecodeError::Place { of, expected }),
            None => Ok(None),
        };
    };
    if seq == 0 || (seq == 1) != prev.is_none() {
        return Err(DecodeError::Sequence);
    }
    Ok(Some(Place { stream, seq, prev }))
}

/// The body's value, passed through to its own reader.
struct AsIs;

impl crate::fields::Codec<Value> for AsIs {
    fn put(&self, field: &Value) -> Option<Value> {
        Some(field.clone())
    }

    fn get(&self, value: Option<Value>) -> Result<Value, crate::FieldError> {
        value.ok_or_else(|| FieldFault::Missing.into())
    }
}
