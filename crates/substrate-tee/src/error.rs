//! Why evidence is not believed.
//!
//! Invariant: each lie has its own case.
//! Absent by design: anything about a node; whose evidence it was is known to whoever asked.

use std::fmt;

use substrate_record::cbor::CborError;

use crate::claim::Svns;
use crate::evidence::MAX_EVIDENCE;

/// Whose certificate it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Party {
    /// The key of one AMD chip at one firmware version.
    Vcek,
    /// AMD's intermediate or root.
    Amd,
    /// The key of one Intel platform.
    Pck,
    /// Intel's intermediate for such keys.
    PckCa,
    /// Intel's root.
    IntelRoot,
}

impl fmt::Display for Party {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Vcek => "chip (VCEK)",
            Self::Amd => "AMD authority",
            Self::Pck => "platform (PCK)",
            Self::PckCa => "platform authority (PCK CA)",
            Self::IntelRoot => "Intel root",
        })
    }
}

/// Why evidence is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EvidenceError {
    // ---- the bytes -------------------------------------------------------------------------
    /// More than a Capability holds.
    #[error(
        "evidence of {length} bytes does not fit into a capability, which holds {MAX_EVIDENCE}"
    )]
    TooLong {
        /// Its length.
        length: usize,
    },
    /// Not deterministic CBOR.
    #[error("evidence: {0}")]
    Cbor(#[from] CborError),
    /// A technology this code does not know; 3 is set aside for GPUs.
    #[error("unknown technology {0}")]
    UnknownTechnology(u64),
    /// The fields are not those of the technology.
    #[error("evidence does not have the fields of its technology")]
    Fields,
    /// A field of another length than it can have.
    #[error("{field} has {length} bytes")]
    FieldLength {
        /// Which.
        field: &'static str,
        /// Its length.
        length: usize,
    },

    // ---- what they hold --------------------------------------------------------------------
    /// A quote ends in the middle of something, or goes on after its end.
    #[error("the quote's parts and its length do not fit together")]
    QuoteLength,
    /// Neither version 4 nor 5.
    #[error("quote version {0} is neither 4 nor 5")]
    QuoteVersion(u16),
    /// Signed by something other than a P-256 key that a quoting enclave named.
    #[error("attestation key type {0} is not ECDSA on P-256")]
    QuoteKeyType(u16),
    /// The report in the quote is not a trust domain's.
    #[error("the quote is not of a trust domain")]
    NotTrustDomain,
    /// The quote's certificates are missing or given in a form that has to be looked up elsewhere.
    #[error("certification data of type {0} holds no certificates")]
    CertificationData(u16),
    /// Not a SEV-SNP report.
    #[error("not a SEV-SNP report in its only form")]
    Report,
    /// A report version that is not known here.
    #[error("report version {0} is not known")]
    ReportVersion(u32),
    /// A report that no chip's own key signed.
    #[error("the report is not signed by the chip's own key (VCEK)")]
    ReportKey,
    /// A certificate that cannot be read.
    #[error("the {0} certificate is malformed")]
    Certificate(Party),

    // ---- what they say ---------------------------------------------------------------------
    /// The report is for another node, worker or network.
    #[error("the report is bound to another node, worker or network")]
    Binding,
    /// The guest may be debugged by its host.
    #[error("the guest may be debugged by its host")]
    Debug,
    /// The guest may be moved to a machine that nobody checked.
    #[error("the guest may be moved to another machine")]
    Migratable,
    /// Asked for by the host, or by something less trusted within the guest.
    #[error("the report was asked for at privilege level {0}, not 0")]
    PrivilegeLevel(u32),
    /// The module that keeps trust domains apart is not Intel's own, or is one for development.
    #[error("the TDX module is not a production module of Intel's")]
    TdxModule,
    /// Nobody here accepts what was started.
    #[error("the measurement of the guest is not accepted here")]
    Measurement,
    /// Firmware or microcode older than what is accepted.
    #[error("security versions {svns} are older than what is accepted")]
    OldTcb {
        /// What they are.
        svns: Svns,
    },

    // ---- whether it is so ------------------------------------------------------------------
    /// A certificate of somebody whose root is not pinned.
    #[error("the {0} certificate was issued by somebody unknown")]
    UnknownIssuer(Party),
    /// A certificate that is not valid yet.
    #[error("the {0} certificate is not valid yet")]
    NotYetValid(Party),
    /// A certificate that is no longer valid.
    #[error("the {0} certificate has expired")]
    Expired(Party),
    /// A certificate its issuer did not sign.
    #[error("the {0} certificate is not signed by its issuer")]
    CertificateSignature(Party),
    /// A certificate for something else.
    #[error("the {0} certificate is for another purpose")]
    CertificatePurpose(Party),
    /// The certificate is another chip's.
    #[error("the certificate is of another chip than the report")]
    OtherChip,
    /// The certificate is for other firmware than the report.
    #[error("the certificate is for other security versions than the report")]
    OtherTcb,
    /// The certificate is of another generation than the report.
    #[error("the certificate is of another processor generation than the report")]
    OtherGeneration,
    /// The report or quote was changed, or signed by another key.
    #[error("the signature does not match the report")]
    ReportSignature,
    /// The quoting enclave's report was changed, or signed by another key.
    #[error("the signature does not match the quoting enclave's report")]
    EnclaveSignature,
    /// The quoting enclave did not name the key that signed the quote.
    #[error("the quoting enclave does not vouch for the key that signed the quote")]
    AttestationKey,
    /// The quoting enclave is not Intel's for trust domains, may be debugged, or is older than Intel accepts.
    #[error("the quoting enclave is not Intel's production enclave for trust domains")]
    QuotingEnclave,
}
