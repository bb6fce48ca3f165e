//! Signed and verified records: COSE_Sign1 (RFC 9052) narrowed to a single form.
//!
//! Invariant: a [`Verified`] comes only from [`Signed::verify`] (for a Genesis
//! [`Signed::verify_genesis`]) or from signing. The protected
//! header is exactly `{1: -19, 3: "application/substrate+cbor", 4: author}`, the unprotected one
//! is empty, the signature passes Ed25519's strict rule (no small-order key or nonce, canonical S,
//! cofactorless equation) with the network's name as external data.
//!
//! Absent by design: detached payloads, counter-signatures, a COSE tag, other algorithms, a
//! lenient check.

use coset::{
    AsCborValue, CborSerializable, ContentType, CoseSign1, CoseSign1Builder, Header, HeaderBuilder,
    ProtectedHeader, RegisteredLabelWithPrivate, iana,
};
use ed25519_dalek::{Signature, Signer, VerifyingKey};
use sha2::{Digest, Sha256};

use crate::cbor::{self, CborError};
use crate::envelope::{Body, InNetwork, Record, type_of_payload};
use crate::{
    ContentHash, DecodeError, Genesis, MAX_RECORD_BYTES, NetworkId, NodeId, RecordId, RecordType,
    SignError, SignatureError, SigningKey,
};

const CONTENT_TYPE: &str = "application/substrate+cbor";

/// The name a Genesis is signed under, as it has no network yet.
pub(crate) const GENESIS_CONTEXT: &str = "substrate/genesis/v1";

/// The outer structure nests no deeper than array and header map.
const ENVELOPE_DEPTH: usize = 2;

/// The name everything but the Genesis is signed under, so nothing replays across networks.
pub(crate) fn context_of(network: &NetworkId) -> String {
    format!("substrate/{network}/v1")
}

/// A record as it came in: well-formed, canonical, of the right type, its signature unchecked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed<B> {
    record: Record<B>,
    envelope: Envelope,
}

/// A record whose signature has been checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified<B> {
    record: Record<B>,
    id: RecordId,
    bytes: Vec<u8>,
}

impl<B: Body> Signed<B> {
    /// Reads the canonical bytes of a record.
    ///
    /// # Errors
    /// Anything that is not the one canonical encoding of a record of this type within its bounds.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        Self::from_envelope(Envelope::decode(bytes)?)
    }

    pub(crate) fn from_envelope(envelope: Envelope) -> Result<Self, DecodeError> {
        let record = Record::<B>::from_payload(envelope.payload()?)?;
        let author = record.author;
        if author != envelope.kid {
            let kid = envelope.kid;
            return Err(DecodeError::AuthorIsNotKid { author, kid });
        }
        if record.to_payload() != envelope.payload_bytes() {
            return Err(DecodeError::NotCanonical);
        }
        Ok(Self { record, envelope })
    }

    /// Who claims to have written it.
    pub fn author(&self) -> NodeId {
        self.record.author
    }

    /// The record's id, which the signature does not enter.
    pub fn id(&self) -> RecordId {
        self.envelope.id()
    }

    /// What it says, to look at before the signature is checked.
    pub fn unverified(&self) -> &Record<B> {
        &self.record
    }

    fn verify_under(self, context: &str) -> Result<Verified<B>, SignatureError> {
        let author = self.record.author;
        let key = VerifyingKey::from_bytes(author.as_bytes())
            .map_err(|_| SignatureError::MalformedKey(author))?;
        let message = self.envelope.sign1.tbs_data(context.as_bytes());
        key.verify_strict(&message, &self.envelope.signature)
            .map_err(|_| SignatureError::Mismatch { of: B::TYPE })?;
        Ok(Verified {
            id: self.envelope.id(),
            record: self.record,
            bytes: self.envelope.bytes,
        })
    }
}

impl<B: InNetwork> Signed<B> {
    /// Checks the signature under the network's name.
    ///
    /// # Errors
    /// The key is no point, or the signature fails the strict rule.
    pub fn verify(self, network: &NetworkId) -> Result<Verified<B>, SignatureError> {
        self.verify_under(&context_of(network))
    }
}

impl Signed<Genesis> {
    /// Checks the founder's signature; which network that founds is [`Verified::network`].
    ///
    /// # Errors
    /// As for the other records.
    pub fn verify_genesis(self) -> Result<Verified<Genesis>, SignatureError> {
        self.verify_under(GENESIS_CONTEXT)
    }
}

impl<B> Verified<B> {
    /// The record's id.
    pub fn id(&self) -> RecordId {
        self.id
    }

    /// Who wrote it.
    pub fn author(&self) -> NodeId {
        self.record.author
    }

    /// What it says.
    pub fn body(&self) -> &B {
        &self.record.body
    }

    /// The whole record.
    pub fn record(&self) -> &Record<B> {
        &self.record
    }

    /// The canonical COSE_Sign1 bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl<B: Body> Verified<B> {
    /// The SHA-256 of the body's canonical bytes: equal exactly for byte-equal bodies, which is
    /// how k keys sign one thing.
    pub fn body_hash(&self) -> ContentHash {
        ContentHash::of(&cbor::encode(&self.record.body.to_cbor()))
    }
}

impl Verified<Genesis> {
    /// Founds a network: signs a Genesis under the one name that needs no network.
    ///
    /// # Errors
    /// Readers would refuse the Genesis: lists past their bounds, fewer keys than `registry_k`.
    pub fn found(body: Genesis, claimed_ms: u64, key: &SigningKey) -> Result<Self, SignError> {
        let author = NodeId::from_bytes(key.verifying_key().to_bytes());
        sign(Record::new(author, claimed_ms, body), key, GENESIS_CONTEXT)
    }

    /// The network this Genesis founds.
    pub fn network(&self) -> NetworkId {
        NetworkId::from_bytes(*self.id.as_bytes())
    }
}

/// Signs a record, then reads it as any other node would.
pub(crate) fn sign<B: Body>(
    record: Record<B>,
    key: &SigningKey,
    context: &str,
) -> Result<Verified<B>, SignError> {
    let owner = NodeId::from_bytes(key.verifying_key().to_bytes());
    if record.author != owner {
        let author = record.author;
        return Err(SignError::OtherAuthor { author, key: owner });
    }
    let bytes = CoseSign1Builder::new()
        .protected(header_of(&owner))
        .payload(record.to_payload())
        .create_signature(context.as_bytes(), |message| {
            key.sign(message).to_bytes().to_vec()
        })
        .build()
        .to_vec()
        .expect("a COSE_Sign1 of text and bytes always encodes");
    let read_back = Signed::<B>::decode(&bytes)?;
    Ok(Verified {
        id: read_back.id(),
        record: read_back.record,
        bytes,
    })
}

fn header_of(author: &NodeId) -> Header {
    HeaderBuilder::new()
        .algorithm(iana::Algorithm::Ed25519)
        .content_type(CONTENT_TYPE.to_owned())
        .key_id(author.as_bytes().to_vec())
        .build()
}

/// The COSE_Sign1 structure around a payload, checked for form.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Envelope {
    sign1: CoseSign1,
    kid: NodeId,
    signature: Signature,
    bytes: Vec<u8>,
}

/// Two envelopes are equal if their bytes are; everything else in them is derived.
impl Eq for Envelope {}

impl Envelope {
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let length = bytes.len();
        if length > MAX_RECORD_BYTES {
            return Err(DecodeError::Oversize { length });
        }
        cbor::check(bytes, ENVELOPE_DEPTH).map_err(DecodeError::Envelope)?;
        let sign1 = read_sign1(bytes)?;
        let kid = read_header(&sign1.protected)?;
        let signature =
            Signature::from_slice(&sign1.signature).map_err(|_| DecodeError::SignatureLength)?;
        let bytes = bytes.to_vec();
        Ok(Self {
            sign1,
            kid,
            signature,
            bytes,
        })
    }

    /// The type the payload claims.
    pub(crate) fn record_type(&self) -> Result<RecordType, DecodeError> {
        type_of_payload(self.payload()?)
    }

    fn payload_bytes(&self) -> &[u8] {
        self.sign1.payload.as_deref().unwrap_or_default()
    }

    fn payload(&self) -> Result<ciborium::Value, DecodeError> {
        let payload = self.payload_bytes();
        cbor::decode(payload, cbor::MAX_DEPTH).map_err(|error| {
            // The payload stands before the signature: its head is two bytes, its content 64.
            let start = self.bytes.len() - payload.len() - 2 - self.sign1.signature.len();
            DecodeError::Payload(CborError {
                offset: start + error.offset,
                ..error
            })
        })
    }

    fn id(&self) -> RecordId {
        let protected = self.sign1.protected.original_data.as_deref();
        let mut hash = Sha256::new();
        hash.update([0]);
        hash.update(protected.unwrap_or_default());
        hash.update(self.payload_bytes());
        RecordId::from_bytes(hash.finalize().into())
    }
}

fn read_sign1(bytes: &[u8]) -> Result<CoseSign1, DecodeError> {
    let items = match cbor::decode(bytes, ENVELOPE_DEPTH).map_err(DecodeError::Envelope)? {
        ciborium::Value::Array(items) => items,
        _ => return Err(DecodeError::NotSign1),
    };
    let [protected, unprotected, payload, _signature] = items.as_slice() else {
        return Err(DecodeError::NotSign1);
    };
    if unprotected.as_map().is_some_and(|map| !map.is_empty()) {
        return Err(DecodeError::UnprotectedHeader);
    }
    let Some(protected) = protected.as_bytes() else {
        return Err(DecodeError::NotSign1);
    };
    cbor::check(protected, ENVELOPE_DEPTH).map_err(|_| DecodeError::Header)?;
    if !payload.is_bytes() {
        return Err(DecodeError::NotSign1);
    }
    let sign1 = CoseSign1::from_cbor_value(ciborium::Value::Array(items));
    sign1.map_err(|_| DecodeError::NotSign1)
}

fn read_header(protected: &ProtectedHeader) -> Result<NodeId, DecodeError> {
    let header = &protected.header;
    let ed25519 = RegisteredLabelWithPrivate::Assigned(iana::Algorithm::Ed25519);
    if header.alg.as_ref() != Some(&ed25519) {
        return Err(DecodeError::Algorithm);
    }
    if header.content_type != Some(ContentType::Text(CONTENT_TYPE.to_owned())) {
        return Err(DecodeError::ContentType);
    }
    let kid = <[u8; 32]>::try_from(header.key_id.as_slice()).map_err(|_| DecodeError::KeyId)?;
    let kid = NodeId::from_bytes(kid);
    if *header != header_of(&kid) {
        return Err(DecodeError::ExtraHeader);
    }
    Ok(kid)
}
