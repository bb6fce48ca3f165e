//! Every signed record that nodes exchange: its fields, its canonical bytes and its check.
//!
//! Invariant: one fact has one encoding. What [`Signed::decode`] accepts encodes again to exactly
//! the bytes it was read from, and a [`Verified`] record exists only behind a signature that
//! passed the strict Ed25519 rule under this network's name.
//!
//! Absent by design: clocks, randomness, files, sockets, floats and hash order. Nothing here
//! decides what a record is worth; that is the ledger's.
//!
//! Reading order: [`Record`] (the envelope), the bodies, [`Signed`] and [`Verified`],
//! [`AnyRecord`], [`export`].

#![deny(clippy::float_arithmetic)]

// The envelope.
mod envelope;
mod ids;

// What a record can say.
mod capability;
mod commitment;
mod genesis;
mod job;
mod model_entry;
mod receipt;

// How it is signed, checked and shown.
mod any;
pub mod export;
mod signed;

// How it becomes bytes.
pub mod cbor;
mod error;
mod fields;

pub use any::AnyRecord;
pub use capability::{Capability, Gpu, Hardware, MAX_OFFERS, MAX_TEE, ModelOffer, WallTier};
pub use commitment::{commit, output_bytes, seed_for_choice};
pub use ed25519_dalek::SigningKey;
pub use envelope::{Body, InNetwork, Place, Record, RecordType, Stream};
pub use error::{DecodeError, FieldError, FieldFault, RecordError, SignError, SignatureError};
pub use genesis::{Genesis, rules_hash};
pub use ids::{
    Commitment, ContentHash, JobId, NetworkId, NodeId, ParseIdError, RecordId, Salt, SessionNonce,
};
pub use job::{Accept, Ack, JobKind, JobManifest, Policy, Sampler, Scope};
pub use model_entry::{FileRole, ModelEntry, ModelFile, ReferenceRates};
pub use receipt::{Finish, Half, ReceiptR, ReceiptVerdict, ReceiptW, Timings};
pub use signed::{Signed, Verified};

/// The largest record on the wire, signature included.
///
/// Gossip floods every record to every node; 16 KiB keeps the worst record within a dozen
/// network packets, and a genesis with a hundred founding members still fits.
pub const MAX_RECORD_BYTES: usize = 16 * 1024;
