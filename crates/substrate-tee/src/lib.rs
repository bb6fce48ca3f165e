//! What a node says of the trusted execution environment it runs in, and the check of it.
//!
//! Invariant: [`Attested`] exists only behind signatures that lead to a root the maker of the processor published and
//! that is pinned here, over a report that names this node and this worker. It lists what was not looked at.
//!
//! Absent by design: clocks (time is an argument), files, sockets, asking a device for a report, and any way to accept
//! a guest that may be debugged. What is asked of the makers' servers elsewhere (revocation, Intel's list of what is up
//! to date) is not asked here, and [`Unchecked`] says so.
//!
//! Reading order: [`Evidence`] (the bytes), [`Claim`] (what they say), [`Policy`] (what is wanted), [`verify`], [`attested`] (for
//! a whole Capability).

#![forbid(unsafe_code)]

mod binding;
mod evidence;

// What is said, and what is wanted.
mod claim;
mod policy;

// How it is checked.
mod cert;
mod error;
mod snp;
mod tdx;

// What a node's claim is worth.
mod capability;

pub use binding::Binding;
pub use capability::{ClaimError, attested};
pub use claim::{Attested, Claim, Platform, Svns, Unchecked};
pub use error::{EvidenceError, Party};
pub use evidence::{Evidence, MAX_EVIDENCE, SnpEvidence, TdxEvidence};
pub use policy::{Accepted, MAX_ACCEPTED, ParseAcceptedError, Policy};

/// What evidence must agree with.
#[derive(Debug, Clone, Copy)]
pub struct Expectation<'a> {
    /// Whom and what the report must name.
    pub binding: Binding,
    /// Which guests are good enough.
    pub policy: &'a Policy,
}

/// Seconds since 1970, by the clock of whoever checks. Only the certificates' dates are compared with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct UnixSeconds(pub u64);

/// Believes evidence, or says why not.
///
/// What costs nothing is compared first: evidence of a guest that nobody here accepts costs no signature check.
///
/// # Errors
/// The first thing that is wrong.
pub fn verify(
    evidence: &Evidence,
    expected: &Expectation<'_>,
    now: UnixSeconds,
) -> Result<Attested, EvidenceError> {
    let claim = evidence.claim()?;
    if claim.user_data != *expected.binding.as_bytes() {
        return Err(EvidenceError::Binding);
    }
    expected.policy.admit(&claim)?;
    let unchecked = match evidence {
        Evidence::SevSnp(evidence) => snp::verify(evidence, now)?,
        Evidence::Tdx(evidence) => tdx::verify(evidence, now)?,
    };
    Ok(Attested::new(claim, unchecked))
}
