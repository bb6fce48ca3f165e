//! Whether a node's claim of a trusted execution environment is believed.
//!
//! Invariant: the wall counts only with evidence for this network, the record's author and the worker it names.
//! Absent by design: what follows from it. A claim that is not believed is a claim of nothing, and no offence: the owner of
//! a node cannot know which guests its reader accepts.

use substrate_record::{Capability, NetworkId, Verified, WallTier};

use crate::{Attested, Binding, Evidence, EvidenceError, Expectation, Policy, UnixSeconds, verify};

/// Why a claim is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClaimError {
    /// There is no claim.
    #[error("no trusted execution environment is claimed")]
    NotClaimed,
    /// There is nothing to believe it by.
    #[error("a trusted execution environment is claimed without evidence")]
    NoEvidence,
    /// Nobody here accepts any guest, so the evidence was not looked at.
    #[error("no guest is accepted here")]
    NothingAccepted,
    /// The evidence is wrong, or of a guest that is not accepted here.
    #[error(transparent)]
    Evidence(#[from] EvidenceError),
}

/// Believes a node's claim, or says why not. As long as nothing is accepted, no byte of the evidence is read.
///
/// # Errors
/// There is no claim, or it is not believed.
pub fn attested(
    capability: &Verified<Capability>,
    network: &NetworkId,
    policy: &Policy,
    now: UnixSeconds,
) -> Result<Attested, ClaimError> {
    let body = capability.body();
    if !body.walls.contains(&WallTier::Tee) {
        return Err(ClaimError::NotClaimed);
    }
    let bytes = body.tee.as_ref().ok_or(ClaimError::NoEvidence)?;
    if policy.accepted.is_empty() {
        return Err(ClaimError::NothingAccepted);
    }
    let expected = Expectation {
        binding: Binding::of(network, &capability.author(), &body.worker_sha256),
        policy,
    };
    Ok(verify(&Evidence::decode(bytes)?, &expected, now)?)
}
