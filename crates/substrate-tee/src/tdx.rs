//! Intel TDX: a quote that a quoting enclave signed with a key of its own, which the platform's key vouches for, which
//! Intel certified.
//!
//! Root → PCK CA → PCK → quoting enclave's report → key of the quote → header and report of the trust domain
//! (Intel's DCAP quote library, quote versions 4 and 5).
//!
//! Invariant: every link is checked up to Intel's root, pinned in `roots/`; only Intel's own enclave may vouch for a key.
//! Absent by design: collateral (TCB info, QE identity, revocation lists). It is asked of Intel's server and is short-lived;
//! a quote is never called up to date here.

mod body;
pub(crate) mod quote;

use p256::ecdsa::signature::Verifier;
use p256::ecdsa::{Signature, VerifyingKey};
use sha2::{Digest, Sha256, Sha384};
use x509_cert::der::asn1::ObjectIdentifier;

use crate::UnixSeconds;
use crate::cert::Cert;
use crate::claim::{Claim, Platform, Svns, Unchecked};
use crate::error::{EvidenceError, Party};
use crate::evidence::TdxEvidence;
use body::Body;

/// Intel's root, as <https://certificates.trustedservices.intel.com> has it. README.md in `roots/` tells where from.
const INTEL_ROOT: &[u8] = include_bytes!("../roots/intel-sgx-root-ca.der");

/// What every PCK certificate says of its platform, and no other certificate of Intel's has.
const SGX_EXTENSIONS: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113741.1.13.1");

/// Who signs Intel's quoting enclave for trust domains. The same in every QE identity Intel has published so far.
const QE_SIGNER: [u8; 32] = [
    0xdc, 0x9e, 0x2a, 0x7c, 0x6f, 0x94, 0x8f, 0x17, 0x47, 0x4e, 0x34, 0xa7, 0xfc, 0x43, 0xed, 0x03,
    0x0f, 0x7c, 0x15, 0x63, 0xf1, 0xba, 0xbd, 0xdf, 0x63, 0x40, 0xc8, 0x2e, 0x0e, 0x54, 0xa8, 0xc5,
];

/// Which of that signer's enclaves it is.
const QE_PRODUCT: u16 = 2;

/// The oldest such enclave that Intel called up to date (QE identity of October 2026). A later identity may ask for more.
const QE_LEAST_SVN: u16 = 4;

/// Attributes of the enclave: what is looked at, and what it must be. Initialised, 64 bits, and no debugging.
const QE_ATTRIBUTES_MASK: u64 = 0xffff_ffff_ffff_fffb;
const QE_ATTRIBUTES: u64 = 0x11;

/// What the report says, if it is one that could be worth something.
pub(crate) fn claim(evidence: &TdxEvidence) -> Result<Claim, EvidenceError> {
    let body = Body::read(&evidence.signed)?;
    body.check_own_words()?;
    let mut measurement = Sha384::new();
    for register in body.measurements() {
        measurement.update(register);
    }
    Ok(Claim {
        platform: Platform::Tdx,
        measurement: measurement.finalize().into(),
        user_data: *body.user_data(),
        svns: Svns(*body.svns()),
    })
}

/// Whether Intel's root stands behind the quote.
pub(crate) fn verify(
    evidence: &TdxEvidence,
    now: UnixSeconds,
) -> Result<&'static [Unchecked], EvidenceError> {
    let platform = platform_key(evidence, now)?;
    let enclave = Enclave(&evidence.qe_report);
    check(
        &platform,
        enclave.0,
        &evidence.qe_signature,
        EvidenceError::EnclaveSignature,
    )?;
    enclave.check_identity()?;
    enclave.check_vouches(&evidence.key, &evidence.qe_auth)?;
    let quote_key = VerifyingKey::from_sec1_bytes(&[&[4], &evidence.key[..]].concat())
        .map_err(|_| EvidenceError::AttestationKey)?;
    check(
        &quote_key,
        &evidence.signed,
        &evidence.signature,
        EvidenceError::ReportSignature,
    )?;
    Ok(&[
        Unchecked::Revocation,
        Unchecked::TcbStatus,
        Unchecked::Freshness,
    ])
}

/// The key of the platform, certified by Intel.
fn platform_key(evidence: &TdxEvidence, now: UnixSeconds) -> Result<VerifyingKey, EvidenceError> {
    let root = Cert::read(Party::IntelRoot, INTEL_ROOT)?;
    let authority = Cert::read(Party::PckCa, &evidence.pck_ca)?;
    let platform = Cert::read(Party::Pck, &evidence.pck)?;
    for cert in [&root, &authority, &platform] {
        cert.check_dates(now)?;
    }
    authority.check_issuer(&root)?;
    platform.check_issuer(&authority)?;
    if platform.extension(SGX_EXTENSIONS).is_none() {
        return Err(EvidenceError::CertificatePurpose(Party::Pck));
    }
    platform.p256_key()
}

fn check(
    key: &VerifyingKey,
    signed: &[u8],
    signature: &[u8; 64],
    otherwise: EvidenceError,
) -> Result<(), EvidenceError> {
    let signature = Signature::from_slice(signature).map_err(|_| otherwise.clone())?;
    key.verify(signed, &signature).map_err(|_| otherwise)
}

/// The report of an enclave (`sgx_report_body_t`).
struct Enclave<'a>(&'a [u8; 384]);

impl Enclave<'_> {
    fn check_identity(&self) -> Result<(), EvidenceError> {
        let selected = self.0[16..20] == [0; 4];
        let attributes = u64::from_le_bytes(self.at(48));
        let production = attributes & QE_ATTRIBUTES_MASK == QE_ATTRIBUTES;
        let signer = self.0[128..160] == QE_SIGNER;
        let product = u16::from_le_bytes(self.at(256)) == QE_PRODUCT;
        let recent = u16::from_le_bytes(self.at(258)) >= QE_LEAST_SVN;
        if !(selected && production && signer && product && recent) {
            return Err(EvidenceError::QuotingEnclave);
        }
        Ok(())
    }

    /// The enclave puts SHA-256(key ‖ its own data) and 32 zero bytes into its report.
    fn check_vouches(&self, key: &[u8; 64], auth: &[u8]) -> Result<(), EvidenceError> {
        let digest = Sha256::new()
            .chain_update(key)
            .chain_update(auth)
            .finalize();
        if self.0[320..352] != digest[..] || self.0[352..] != [0; 32] {
            return Err(EvidenceError::AttestationKey);
        }
        Ok(())
    }

    fn at<const N: usize>(&self, offset: usize) -> [u8; N] {
        std::array::from_fn(|i| self.0[offset + i])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pinned_root_signed_itself() {
        let root = Cert::read(Party::IntelRoot, INTEL_ROOT).unwrap();
        root.check_issuer(&root).unwrap();
    }

    /// The report of a published quote's enclave, with some of its bytes changed. Only Intel could sign it.
    fn enclave_with(at: usize, bytes: &[u8]) -> Result<(), EvidenceError> {
        let quote = include_bytes!("../tests/samples/tdx-v4.quote");
        let mut report = quote::take_apart(quote).unwrap().qe_report;
        report[at..at + bytes.len()].copy_from_slice(bytes);
        Enclave(&report).check_identity()
    }

    #[test]
    fn only_intels_own_enclave_vouches_for_keys() {
        assert_eq!(enclave_with(0, &[]), Ok(()));
        assert_eq!(enclave_with(258, &[4]), Ok(()), "the oldest accepted");
        let others: [(usize, &[u8]); 6] = [
            (16, &[1]),
            (48, &[0x17]), // with debugging
            (48, &[0x14]), // not initialised
            (128, &[0xdd]),
            (256, &[1]),
            (258, &[3, 0]),
        ];
        for (at, bytes) in others {
            let said = enclave_with(at, bytes);
            assert_eq!(said, Err(EvidenceError::QuotingEnclave), "{at}");
        }
    }
}
