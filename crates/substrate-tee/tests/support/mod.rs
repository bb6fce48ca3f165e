//! The published samples, and how each is judged.

#![allow(dead_code)] // Each file of tests uses its part.

use substrate_tee::{
    Accepted, Attested, Binding, Evidence, EvidenceError, Expectation, Policy, UnixSeconds, verify,
};

/// 2026-10-01, when all samples' certificates are valid.
pub const NOW: UnixSeconds = UnixSeconds(1_790_812_800);

macro_rules! sample {
    ($name:literal) => {
        include_bytes!(concat!("../samples/", $name))
    };
}

pub fn snp_report() -> Vec<u8> {
    hex::decode(sample!("snp-milan-report.hex")).expect("the sample is in hexadecimal digits")
}

pub const MILAN_VCEK: &[u8] = sample!("snp-milan-vcek.der");
pub const TURIN_VCEK: &[u8] = sample!("snp-turin-vcek.der");
pub const SGX: &[u8] = sample!("sgx-v3.quote");
pub const TDX: [&[u8]; 3] = [
    sample!("tdx-v4.quote"),
    sample!("tdx-v5-1.5.quote"),
    sample!("tdx-v5-1.5ex.quote"),
];

pub fn snp() -> Evidence {
    Evidence::from_snp(&snp_report(), MILAN_VCEK).expect("a published report")
}

pub fn tdx(which: usize) -> Evidence {
    Evidence::from_tdx_quote(TDX[which]).expect("a published quote")
}

pub fn all() -> Vec<Evidence> {
    vec![snp(), tdx(0), tdx(1), tdx(2)]
}

/// Whoever accepts exactly what this evidence says.
pub struct Judge {
    pub binding: Binding,
    pub policy: Policy,
    pub now: UnixSeconds,
}

impl Judge {
    pub fn of(evidence: &Evidence) -> Self {
        let claim = evidence.claim().expect("a sample says something");
        let accepted = Accepted {
            platform: claim.platform,
            measurement: claim.measurement,
            least: claim.svns,
        };
        Self {
            binding: Binding::from_bytes(claim.user_data),
            policy: Policy {
                accepted: vec![accepted],
            },
            now: NOW,
        }
    }

    pub fn judge(&self, evidence: &Evidence) -> Result<Attested, EvidenceError> {
        let expected = Expectation {
            binding: self.binding,
            policy: &self.policy,
        };
        verify(evidence, &expected, self.now)
    }

    /// As a stranger's bytes are judged.
    pub fn judge_bytes(&self, bytes: &[u8]) -> Result<Attested, EvidenceError> {
        self.judge(&Evidence::decode(bytes)?)
    }
}
