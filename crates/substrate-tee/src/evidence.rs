//! The bytes that a Capability carries in `tee`: deterministic CBOR, one form for one piece of evidence.
//!
//! Invariant: what [`Evidence::decode`] accepts encodes again to the same bytes. Every field has a bound, and no
//! certificate is looked into here.
//! Absent by design: roots and what can be made from them. They are pinned, so nobody needs to send them.

use ciborium::Value;
use substrate_record::cbor::{self, Reader};

use crate::claim::Claim;
use crate::error::EvidenceError;
use crate::{snp, tdx};

/// What a Capability holds at most.
pub const MAX_EVIDENCE: usize = substrate_record::MAX_TEE;

/// AMD's reports have had this length in every version.
pub(crate) const SNP_REPORT: usize = 1184;

/// AMD's certificates for chips have 1.4 KB, Intel's for platforms 1.3 KB.
const MAX_CERTIFICATE: usize = 2048;

/// Header, descriptor and the longest report known (TDX 1.5 with extensions) have 939 bytes.
const MAX_SIGNED: usize = 1024;

/// Intel's quoting enclave adds 32 bytes of its own.
const MAX_QE_AUTH: usize = 256;

const SEV_SNP: u64 = 1;
const TDX: u64 = 2;

/// What a node shows of its environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Evidence {
    /// AMD SEV-SNP.
    SevSnp(Box<SnpEvidence>),
    /// Intel TDX.
    Tdx(Box<TdxEvidence>),
}

/// A report of AMD's firmware, and the certificate of the key that signed it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnpEvidence {
    /// As the firmware gives it.
    pub report: [u8; SNP_REPORT],
    /// The chip's certificate (VCEK) in DER, as AMD's server gives it.
    pub vcek: Vec<u8>,
}

/// A quote of Intel's, taken apart: without its root certificate, and with the others in DER.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TdxEvidence {
    /// Header, descriptor (version 5) and report: what the signature is over.
    pub signed: Vec<u8>,
    /// r ‖ s.
    pub signature: [u8; 64],
    /// The key that signed, x ‖ y.
    pub key: [u8; 64],
    /// The report of the quoting enclave that made the key.
    pub qe_report: [u8; 384],
    /// Over that report, by the platform's key.
    pub qe_signature: [u8; 64],
    /// What the enclave hashed into its report besides the key.
    pub qe_auth: Vec<u8>,
    /// The platform's certificate (PCK) in DER.
    pub pck: Vec<u8>,
    /// Its issuer's in DER.
    pub pck_ca: Vec<u8>,
}

impl Evidence {
    /// What a guest's firmware and AMD's server gave.
    ///
    /// # Errors
    /// Not a report of 1184 bytes, not a certificate, or both of different generations.
    pub fn from_snp(report: &[u8], vcek: &[u8]) -> Result<Self, EvidenceError> {
        let report = exactly("report", report)?;
        let vcek = bounded("vcek", vcek, MAX_CERTIFICATE)?;
        let evidence = Self::SevSnp(Box::new(SnpEvidence { report, vcek }));
        evidence.claim()?;
        Ok(evidence)
    }

    /// What a guest's quoting service gave: a quote of version 4 or 5 with its chain of certificates.
    ///
    /// # Errors
    /// Not such a quote, or one that does not fit.
    pub fn from_tdx_quote(quote: &[u8]) -> Result<Self, EvidenceError> {
        let evidence = Self::Tdx(Box::new(tdx::quote::take_apart(quote)?));
        evidence.claim()?;
        // What this makes can be read again by whoever gets it.
        Self::decode(&evidence.encode()?)
    }

    /// What it says. Nobody has checked that it is so.
    ///
    /// # Errors
    /// The report or a certificate cannot be read, or says of itself that it is worth nothing (a guest that may be
    /// debugged).
    pub fn claim(&self) -> Result<Claim, EvidenceError> {
        match self {
            Self::SevSnp(evidence) => snp::claim(evidence),
            Self::Tdx(evidence) => tdx::claim(evidence),
        }
    }

    /// The bytes for a Capability.
    ///
    /// # Errors
    /// [`EvidenceError::TooLong`]
    pub fn encode(&self) -> Result<Vec<u8>, EvidenceError> {
        let (technology, fields): (u64, Vec<&[u8]>) = match self {
            Self::SevSnp(it) => (SEV_SNP, vec![&it.report, &it.vcek]),
            Self::Tdx(it) => (
                TDX,
                vec![
                    &it.signed,
                    &it.signature,
                    &it.key,
                    &it.qe_report,
                    &it.qe_signature,
                    &it.qe_auth,
                    &it.pck,
                    &it.pck_ca,
                ],
            ),
        };
        let fields = fields.into_iter().map(|field| Value::Bytes(field.to_vec()));
        let values = [Value::from(technology)].into_iter().chain(fields);
        let labelled = (1u64..).zip(values);
        let map = Value::Map(labelled.map(|(at, value)| (at.into(), value)).collect());
        let bytes = cbor::encode(&map);
        fits(&bytes)?;
        Ok(bytes)
    }

    /// Reads what a Capability carries. Certificates and reports are only measured.
    ///
    /// # Errors
    /// Not the encoding of any evidence.
    pub fn decode(bytes: &[u8]) -> Result<Self, EvidenceError> {
        fits(bytes)?;
        let mut fields = Fields::open(bytes)?;
        let evidence = match fields.technology()? {
            SEV_SNP => Self::SevSnp(Box::new(SnpEvidence {
                report: exactly("report", fields.next()?)?,
                vcek: bounded("vcek", fields.next()?, MAX_CERTIFICATE)?,
            })),
            TDX => Self::Tdx(Box::new(TdxEvidence {
                signed: bounded("signed", fields.next()?, MAX_SIGNED)?,
                signature: exactly("signature", fields.next()?)?,
                key: exactly("key", fields.next()?)?,
                qe_report: exactly("qe_report", fields.next()?)?,
                qe_signature: exactly("qe_signature", fields.next()?)?,
                qe_auth: bounded("qe_auth", fields.next()?, MAX_QE_AUTH)?,
                pck: bounded("pck", fields.next()?, MAX_CERTIFICATE)?,
                pck_ca: bounded("pck_ca", fields.next()?, MAX_CERTIFICATE)?,
            })),
            unknown => return Err(EvidenceError::UnknownTechnology(unknown)),
        };
        fields.end()?;
        Ok(evidence)
    }
}

/// The fields of the map, one after the other under labels that count from 1.
struct Fields<'a> {
    reader: Reader<'a>,
    pairs: usize,
    label: u64,
}

impl<'a> Fields<'a> {
    fn open(bytes: &'a [u8]) -> Result<Self, EvidenceError> {
        let mut reader = Reader::new(bytes);
        let pairs = reader.map()?;
        Ok(Self {
            reader,
            pairs,
            label: 0,
        })
    }

    fn technology(&mut self) -> Result<u64, EvidenceError> {
        self.label()?;
        Ok(self.reader.uint()?)
    }

    fn next(&mut self) -> Result<&'a [u8], EvidenceError> {
        self.label()?;
        Ok(self.reader.byte_string()?)
    }

    fn label(&mut self) -> Result<(), EvidenceError> {
        self.label += 1;
        if self.label > self.pairs as u64 || self.reader.uint()? != self.label {
            return Err(EvidenceError::Fields);
        }
        Ok(())
    }

    fn end(self) -> Result<(), EvidenceError> {
        if self.label != self.pairs as u64 {
            return Err(EvidenceError::Fields);
        }
        Ok(self.reader.end()?)
    }
}

fn fits(bytes: &[u8]) -> Result<(), EvidenceError> {
    if bytes.len() > MAX_EVIDENCE {
        return Err(EvidenceError::TooLong {
            length: bytes.len(),
        });
    }
    Ok(())
}

fn exactly<const N: usize>(field: &'static str, bytes: &[u8]) -> Result<[u8; N], EvidenceError> {
    let length = bytes.len();
    bytes
        .try_into()
        .map_err(|_| EvidenceError::FieldLength { field, length })
}

fn bounded(field: &'static str, bytes: &[u8], limit: usize) -> Result<Vec<u8>, EvidenceError> {
    let length = bytes.len();
    if length > limit {
        return Err(EvidenceError::FieldLength { field, length });
    }
    Ok(bytes.to_vec())
}
