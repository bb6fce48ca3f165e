//! What evidence says, and what is left of it when it was believed.
//!
//! Invariant: a [`Claim`] is worth nothing by itself; an [`Attested`] is only made by [`verify`](crate::verify).
//! Absent by design: which chip it is. The maker's certificate names it, and nobody here keeps it.

use std::fmt;
use std::str::FromStr;

use crate::policy::ParseAcceptedError;

/// Whose processor runs the guest, as far as security versions differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Platform {
    /// AMD SEV-SNP, third generation EPYC.
    Milan,
    /// AMD SEV-SNP, fourth generation EPYC.
    Genoa,
    /// AMD SEV-SNP, fifth generation EPYC.
    Turin,
    /// Intel TDX.
    Tdx,
}

impl Platform {
    /// The name in settings.
    pub fn name(self) -> &'static str {
        match self {
            Self::Milan => "milan",
            Self::Genoa => "genoa",
            Self::Turin => "turin",
            Self::Tdx => "tdx",
        }
    }
}

/// Security version numbers of what is below the guest, part by part. Each counts up with the maker's mends.
///
/// SEV-SNP: FMC (0 before Turin), boot loader, TEE, SNP firmware, microcode. TDX: the 16 of `TEE_TCB_SVN`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Svns(pub [u8; 16]);

impl Svns {
    /// Whether every part is at least what is asked of it.
    pub fn at_least(&self, least: &Svns) -> bool {
        self.0
            .iter()
            .zip(least.0)
            .all(|(have, least)| *have >= least)
    }
}

/// Up to the last part that is not 0, such as `0.3.0.8.115`.
impl fmt::Display for Svns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = self.0.iter().rposition(|part| *part != 0);
        let parts: Vec<String> = self.0[..=parts.unwrap_or(0)]
            .iter()
            .map(u8::to_string)
            .collect();
        f.write_str(&parts.join("."))
    }
}

impl FromStr for Svns {
    type Err = ParseAcceptedError;

    fn from_str(text: &str) -> Result<Self, ParseAcceptedError> {
        let mut svns = Self::default();
        let mut places = svns.0.iter_mut();
        for part in text.split('.') {
            let place = places.next().ok_or(ParseAcceptedError::Svns)?;
            *place = part.parse().map_err(|_| ParseAcceptedError::Svns)?;
        }
        Ok(svns)
    }
}

/// What evidence says, checked by nobody.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// On what.
    pub platform: Platform,
    /// What was started. SEV-SNP: the launch measurement. TDX: SHA-384(MRTD ‖ RTMR0 ‖ RTMR1 ‖ RTMR2 ‖ RTMR3).
    pub measurement: [u8; 48],
    /// Whom the report is for, see [`Binding`](crate::Binding).
    pub user_data: [u8; 64],
    /// What is below the guest.
    pub svns: Svns,
}

/// What evidence proved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attested {
    claim: Claim,
    unchecked: &'static [Unchecked],
}

/// What was not looked at, because it would have to be asked of somebody else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unchecked {
    /// Whether the maker has revoked one of the certificates.
    Revocation,
    /// Whether Intel calls this platform, its TDX module and its quoting enclave up to date (TCB info and QE identity).
    TcbStatus,
    /// When the report was made: it says how the guest started, not that it still runs.
    Freshness,
}

impl Attested {
    pub(crate) fn new(claim: Claim, unchecked: &'static [Unchecked]) -> Self {
        Self { claim, unchecked }
    }

    /// On what.
    pub fn platform(&self) -> Platform {
        self.claim.platform
    }

    /// What was started.
    pub fn measurement(&self) -> &[u8; 48] {
        &self.claim.measurement
    }

    /// What is below the guest.
    pub fn svns(&self) -> Svns {
        self.claim.svns
    }

    /// What was not looked at. Never empty.
    pub fn unchecked(&self) -> &'static [Unchecked] {
        self.unchecked
    }
}
