//! Certificates as far as both makers' chains need them: dates, names, one kind of signature, one extension at a time.
//!
//! Invariant: a certificate is the bytes it was read from; a signature is checked over those.
//! Absent by design: building chains. Each has a fixed number of links, and its root is pinned.

use p256::ecdsa::signature::Verifier;
use p256::ecdsa::{DerSignature, VerifyingKey};
use x509_cert::Certificate;
use x509_cert::der::asn1::ObjectIdentifier;
use x509_cert::der::{Decode, Encode};
use x509_cert::ext::pkix::BasicConstraints;

use crate::UnixSeconds;
use crate::error::{EvidenceError, Party};

const ECDSA_WITH_SHA256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.2");
const BASIC_CONSTRAINTS: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.19");

/// A certificate that can be read, and whose it claims to be.
pub(crate) struct Cert {
    pub whose: Party,
    pub x509: Certificate,
}

impl Cert {
    pub fn read(whose: Party, der: &[u8]) -> Result<Self, EvidenceError> {
        let malformed = || EvidenceError::Certificate(whose);
        let x509 = Certificate::from_der(der).map_err(|_| malformed())?;
        // What is outside of the signed part has one form, too (RFC 5280 §4.1.1.2).
        let one_form = x509.to_der().map_err(|_| malformed())? == der
            && x509.signature_algorithm == x509.tbs_certificate.signature
            && x509.signature.unused_bits() == 0;
        if !one_form {
            return Err(malformed());
        }
        Ok(Self { whose, x509 })
    }

    /// Whether it is valid at this time, both ends included.
    pub fn check_dates(&self, now: UnixSeconds) -> Result<(), EvidenceError> {
        let validity = &self.x509.tbs_certificate.validity;
        if now.0 < validity.not_before.to_unix_duration().as_secs() {
            return Err(EvidenceError::NotYetValid(self.whose));
        }
        if now.0 > validity.not_after.to_unix_duration().as_secs() {
            return Err(EvidenceError::Expired(self.whose));
        }
        Ok(())
    }

    /// Whether this authority issued it, by name and by signature: ECDSA on P-256 over SHA-256.
    pub fn check_issuer(&self, issuer: &Cert) -> Result<(), EvidenceError> {
        if self.x509.tbs_certificate.issuer != issuer.x509.tbs_certificate.subject {
            return Err(EvidenceError::UnknownIssuer(self.whose));
        }
        if !issuer.is_authority() {
            return Err(EvidenceError::CertificatePurpose(issuer.whose));
        }
        let wrong = || EvidenceError::CertificateSignature(self.whose);
        if self.x509.signature_algorithm.oid != ECDSA_WITH_SHA256 {
            return Err(wrong());
        }
        let signed = self.x509.tbs_certificate.to_der().map_err(|_| wrong())?;
        let signature =
            DerSignature::try_from(self.x509.signature.raw_bytes()).map_err(|_| wrong())?;
        issuer
            .p256_key()?
            .verify(&signed, &signature)
            .map_err(|_| wrong())
    }

    /// The key it is for.
    pub fn p256_key(&self) -> Result<VerifyingKey, EvidenceError> {
        let info = &self.x509.tbs_certificate.subject_public_key_info;
        VerifyingKey::from_sec1_bytes(info.subject_public_key.raw_bytes())
            .map_err(|_| EvidenceError::Certificate(self.whose))
    }

    /// The content of an extension.
    pub fn extension(&self, oid: ObjectIdentifier) -> Option<&[u8]> {
        let extensions = self.x509.tbs_certificate.extensions.as_ref()?;
        let found = extensions.iter().find(|one| one.extn_id == oid)?;
        Some(found.extn_value.as_bytes())
    }

    fn is_authority(&self) -> bool {
        self.extension(BASIC_CONSTRAINTS)
            .and_then(|content| BasicConstraints::from_der(content).ok())
            .is_some_and(|constraints| constraints.ca)
    }
}
