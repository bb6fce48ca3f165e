//! The gRPC contract between the command line and the daemon.
//!
//! `proto/substrate/v1/*.proto` is the contract; [`v1`] is what it generates, committed so that
//! building needs no `protoc`. After a change to the contract:
//!
//! ```text
//! cargo run -p substrate-api --example generate
//! ```
//!
//! Invariant: the committed code equals what the contract generates; `tests/committed.rs` checks
//! it. Absent by design: meaning. Turning these messages into jobs, and errors into hints, is the
//! business of the two sides.

/// Version 1 of the contract, as generated.
#[allow(missing_docs, clippy::all)]
pub mod v1 {
    include!("generated/substrate.v1.rs");
}

/// Trailing metadata of a refused call: an encoded [`v1::Refusal`].
pub const REFUSAL_METADATA: &str = "substrate-refusal-bin";

/// Largest message either side accepts.
///
/// An input may have 8 MiB (PROTOCOL.md 4); the rest of a request is small beside it.
pub const MAX_MESSAGE_BYTES: usize = 9 * 1024 * 1024;
