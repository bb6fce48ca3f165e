//! What a quote's signature is over: its header and the report of the trust domain (`sgx_quote_4.h`, `sgx_quote_5.h`).
//!
//! Invariant: a length that does not belong to its version and type is refused, so every offset below is within.
//! Absent by design: what is not judged here, such as `MRCONFIGID`, `MROWNER` and `XFAM`.

use crate::error::EvidenceError;

pub(super) const HEADER: usize = 48;

/// Type and size of the report, in version 5.
pub(super) const DESCRIPTOR: usize = 6;

/// Reports of TDX 1.0, of 1.5, and of 1.5 with its extensions. The later ones begin as the first.
const TD_1_0: usize = 584;
const TD_1_5: usize = 648;
const TD_1_5_EX: usize = 885;

const ECDSA_P256: u16 = 2;
const TRUST_DOMAIN: u32 = 0x81;

/// Who made the quoting enclave: Intel (939a7233-f79c-4ca9-940a-0db3957f0607).
const INTEL: [u8; 16] = [
    0x93, 0x9a, 0x72, 0x33, 0xf7, 0x9c, 0x4c, 0xa9, 0x94, 0x0a, 0x0d, 0xb3, 0x95, 0x7f, 0x06, 0x07,
];

/// `TDATTRIBUTES` that make a domain untrusted, debugging the first of them (TDX module ABI, TUD).
const UNDER_DEBUG: u64 = 0xff;

/// `TDATTRIBUTES`: another domain may move this one to another machine.
const MIGRATABLE: u64 = 1 << 29;

/// The report of a trust domain.
pub(super) struct Body<'a>(&'a [u8; TD_1_0]);

impl<'a> Body<'a> {
    pub fn read(signed: &'a [u8]) -> Result<Self, EvidenceError> {
        let (header, rest) = signed
            .split_first_chunk::<HEADER>()
            .ok_or(EvidenceError::QuoteLength)?;
        let (begin, length) = match check_header(header)? {
            Version::Four => (0, TD_1_0),
            Version::Five => (DESCRIPTOR, length_described(rest)?),
        };
        if rest.len() != begin + length {
            return Err(EvidenceError::QuoteLength);
        }
        let report = rest[begin..].first_chunk();
        report.map(Self).ok_or(EvidenceError::QuoteLength)
    }

    /// What a report says of itself that makes it worthless here, whoever signed it.
    pub fn check_own_words(&self) -> Result<(), EvidenceError> {
        let module_signer = &self.0[64..112];
        let module_attributes = &self.0[112..120];
        if module_signer
            .iter()
            .chain(module_attributes)
            .any(|byte| *byte != 0)
        {
            return Err(EvidenceError::TdxModule);
        }
        let attributes = u64::from_le_bytes(*self.at(120));
        if attributes & UNDER_DEBUG != 0 {
            return Err(EvidenceError::Debug);
        }
        if attributes & MIGRATABLE != 0 {
            return Err(EvidenceError::Migratable);
        }
        Ok(())
    }

    /// `TEE_TCB_SVN`
    pub fn svns(&self) -> &'a [u8; 16] {
        self.at(0)
    }

    /// MRTD and the four run-time registers.
    pub fn measurements(&self) -> [&'a [u8; 48]; 5] {
        [136, 328, 376, 424, 472].map(|offset| self.at(offset))
    }

    /// `REPORTDATA`
    pub fn user_data(&self) -> &'a [u8; 64] {
        self.at(520)
    }

    fn at<const N: usize>(&self, offset: usize) -> &'a [u8; N] {
        self.0[offset..]
            .first_chunk()
            .expect("fields are within the shortest report")
    }
}

/// The versions of quotes that are read.
pub(super) enum Version {
    Four,
    Five,
}

/// Whether it is a quote of Intel's for a trust domain; which version.
pub(super) fn check_header(header: &[u8; HEADER]) -> Result<Version, EvidenceError> {
    let short = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
    let version = match short(0) {
        4 => Version::Four,
        5 => Version::Five,
        other => return Err(EvidenceError::QuoteVersion(other)),
    };
    if short(2) != ECDSA_P256 {
        return Err(EvidenceError::QuoteKeyType(short(2)));
    }
    if header[4..8] != TRUST_DOMAIN.to_le_bytes() {
        return Err(EvidenceError::NotTrustDomain);
    }
    if header[12..28] != INTEL {
        return Err(EvidenceError::QuotingEnclave);
    }
    Ok(version)
}

/// How long the report is, by its descriptor in a quote of version 5.
pub(super) fn length_described(rest: &[u8]) -> Result<usize, EvidenceError> {
    let descriptor: &[u8; DESCRIPTOR] = rest.first_chunk().ok_or(EvidenceError::QuoteLength)?;
    let [kind, size] = [&descriptor[..2], &descriptor[2..]];
    let length = match kind {
        [2, 0] => TD_1_0,
        [3, 0] => TD_1_5,
        [4, 0] => TD_1_5_EX,
        _ => return Err(EvidenceError::NotTrustDomain),
    };
    if size != (length as u32).to_le_bytes() {
        return Err(EvidenceError::QuoteLength);
    }
    Ok(length)
}

/// How long the report of a quote of version 4 is.
pub(super) const fn length_of_four() -> usize {
    TD_1_0
}
