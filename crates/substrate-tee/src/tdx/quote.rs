//! A quote as the quoting service gives it, taken apart for a Capability.
//!
//! Invariant: nothing that is signed is changed. What is left out can be had elsewhere: lengths, the root certificate,
//! and the armour around the other two.
//! Absent by design: strangers' bytes. They send what this makes, so no quote and no PEM of theirs is read.

use x509_cert::Certificate;
use x509_cert::der::Encode;

use super::body::{self, HEADER, Version};
use crate::error::{EvidenceError, Party};
use crate::evidence::TdxEvidence;

/// Certification data: the quoting enclave's report and what certifies it.
const ENCLAVE_REPORT: u16 = 6;

/// Certification data: the platform's chain of certificates in PEM.
const PCK_CHAIN: u16 = 5;

/// Takes a quote apart. Zeroes behind its end are the quoting service's buffer.
pub(crate) fn take_apart(quote: &[u8]) -> Result<TdxEvidence, EvidenceError> {
    let mut rest = Rest(quote);
    let signed = rest.signed()?;
    let signatures = rest.sized_long()?;
    if rest.0.iter().any(|byte| *byte != 0) {
        return Err(EvidenceError::QuoteLength);
    }
    let mut rest = Rest(signatures);
    let (signature, key) = (rest.array()?, rest.array()?);
    let mut enclave = Rest(rest.certification(ENCLAVE_REPORT)?);
    rest.end()?;
    let (qe_report, qe_signature) = (enclave.array()?, enclave.array()?);
    let qe_auth = enclave.sized_short()?;
    let chain = enclave.certification(PCK_CHAIN)?;
    enclave.end()?;
    let [pck, pck_ca] = without_root(chain)?;
    Ok(TdxEvidence {
        signed: signed.to_vec(),
        signature,
        key,
        qe_report,
        qe_signature,
        qe_auth: qe_auth.to_vec(),
        pck,
        pck_ca,
    })
}

/// The platform's certificate and its issuer's. The root may follow; ours is used.
fn without_root(pem: &[u8]) -> Result<[Vec<u8>; 2], EvidenceError> {
    let pem = pem.strip_suffix(&[0]).unwrap_or(pem).trim_ascii();
    if pem.is_empty() {
        return Err(EvidenceError::CertificationData(PCK_CHAIN));
    }
    let malformed = |_| EvidenceError::Certificate(Party::Pck);
    let chain = Certificate::load_pem_chain(pem).map_err(malformed)?;
    let ([platform, authority] | [platform, authority, _]) = &chain[..] else {
        return Err(EvidenceError::CertificationData(PCK_CHAIN));
    };
    Ok([
        platform.to_der().map_err(malformed)?,
        authority.to_der().map_err(malformed)?,
    ])
}

/// What of a quote is still to be read.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], EvidenceError> {
        let (taken, rest) = self
            .0
            .split_at_checked(length)
            .ok_or(EvidenceError::QuoteLength)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], EvidenceError> {
        let (taken, rest) = self
            .0
            .split_first_chunk()
            .ok_or(EvidenceError::QuoteLength)?;
        self.0 = rest;
        Ok(*taken)
    }

    /// Header and report, with the descriptor between them in version 5.
    fn signed(&mut self) -> Result<&'a [u8], EvidenceError> {
        let header: &[u8; HEADER] = self.0.first_chunk().ok_or(EvidenceError::QuoteLength)?;
        let length = match body::check_header(header)? {
            Version::Four => body::length_of_four(),
            Version::Five => body::DESCRIPTOR + body::length_described(&self.0[HEADER..])?,
        };
        self.take(HEADER + length)
    }

    fn sized_short(&mut self) -> Result<&'a [u8], EvidenceError> {
        let length = u16::from_le_bytes(self.array()?);
        self.take(usize::from(length))
    }

    fn sized_long(&mut self) -> Result<&'a [u8], EvidenceError> {
        let length = u32::from_le_bytes(self.array()?);
        let length = usize::try_from(length).map_err(|_| EvidenceError::QuoteLength)?;
        self.take(length)
    }

    fn certification(&mut self, wanted: u16) -> Result<&'a [u8], EvidenceError> {
        let kind = u16::from_le_bytes(self.array()?);
        if kind != wanted {
            return Err(EvidenceError::CertificationData(kind));
        }
        self.sized_long()
    }

    fn end(&self) -> Result<(), EvidenceError> {
        if self.0.is_empty() {
            return Ok(());
        }
        Err(EvidenceError::QuoteLength)
    }
}
