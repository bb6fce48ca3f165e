//! Commitments to what stays out of records, and the seeds of a job's choices.
//!
//! Invariant: the same inputs give the same bytes on every machine.
//! Absent by design: drawing salts or seeds; randomness is handed in.

use sha2::{Digest, Sha256};

use crate::{Commitment, Salt};

/// Commits to bytes: SHA-256(salt ‖ bytes).
pub fn commit(salt: &Salt, bytes: &[u8]) -> Commitment {
    let mut hash = Sha256::new();
    hash.update(salt.as_bytes());
    hash.update(bytes);
    Commitment::from_bytes(hash.finalize().into())
}

/// The output bytes of a generated answer: its token ids, each as u32 big-endian.
pub fn output_bytes(ids: &[u32]) -> Vec<u8> {
    ids.iter().flat_map(|id| id.to_be_bytes()).collect()
}

/// The seed of choice `i` (from 0): SHA-256("substrate/seed/v1" ‖ base ‖ u32-LE i).
///
/// `base` is the client's seed as i64 little-endian, or 32 random bytes of the requester's.
pub fn seed_for_choice(base: &[u8], i: u32) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(b"substrate/seed/v1");
    hash.update(base);
    hash.update(i.to_le_bytes());
    hash.finalize().into()
}
