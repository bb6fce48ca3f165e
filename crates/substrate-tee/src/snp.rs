//! AMD SEV-SNP: a report of the chip's firmware, signed by the chip's own key, certified by AMD.
//!
//! The crate `sev` reads the report and checks both signatures; its copies of AMD's roots and intermediates are the pins.
//! What it leaves to its callers is here: dates, that certificate and report are of one chip, one generation and one set
//! of security versions (VCEK specification §3), and what a report says of itself.
//!
//! Invariant: a report is the bytes it was read from, padding included.
//! Absent by design: reports signed by a cloud's key (VLEK), whose intermediates are not pinned.

use std::sync::LazyLock;

use sev::Generation;
use sev::certs::snp::{Certificate, Verifiable, builtin};
use sev::firmware::guest::AttestationReport;
use sev::firmware::host::TcbVersion;
use sev::parser::ByteParser;
use x509_cert::der::Decode;
use x509_cert::der::asn1::ObjectIdentifier;
use x509_cert::name::Name;

use crate::UnixSeconds;
use crate::cert::Cert;
use crate::claim::{Claim, Platform, Svns, Unchecked};
use crate::error::{EvidenceError, Party};
use crate::evidence::SnpEvidence;

/// The newest report version whose fields are known here.
const NEWEST_REPORT: u32 = 5;

/// ECDSA on P-384 over SHA-384, as reports number it.
const ECDSA_P384: u32 = 1;

/// Signed by the chip's own key, as reports number it.
const VCEK: u32 = 0;

/// Where the signature's r and s begin in a report, and how much of each a P-384 number takes.
const SIGNATURE: usize = 0x2a0;
const NUMBER: usize = 72;
const NUMBER_USED: usize = 48;

/// Extensions of a VCEK (VCEK specification, table 8).
const BOOT_LOADER: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.3.1");
const TEE: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.3.2");
const SNP: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.3.3");
const MICROCODE: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.3.8");
const FMC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.3.9");
const CHIP: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.3704.1.4");

/// What the report says, if it is one that could be worth something.
pub(crate) fn claim(evidence: &SnpEvidence) -> Result<Claim, EvidenceError> {
    let report = read(&evidence.report)?;
    let vcek = Cert::read(Party::Vcek, &evidence.vcek)?;
    let platform = issued_for(&vcek)?;
    check_own_words(&report)?;
    check_generation(&report, platform)?;
    Ok(Claim {
        platform,
        measurement: report.measurement,
        user_data: report.report_data,
        svns: svns(&report.reported_tcb),
    })
}

/// Whether AMD's roots stand behind the report.
pub(crate) fn verify(
    evidence: &SnpEvidence,
    now: UnixSeconds,
) -> Result<&'static [Unchecked], EvidenceError> {
    let report = read(&evidence.report)?;
    let vcek = Cert::read(Party::Vcek, &evidence.vcek)?;
    let pins = pinned(issued_for(&vcek)?);
    for pin in [&pins.ark, &pins.ask] {
        let x509 = pin.clone().into();
        let whose = Party::Amd;
        Cert { whose, x509 }.check_dates(now)?;
    }
    vcek.check_dates(now)?;
    check_same_chip(&report, &vcek)?;
    let vcek = Certificate::from(vcek.x509);
    // That the root signed itself and the intermediate is a property of the pins, and a test of them.
    (&pins.ask, &vcek)
        .verify()
        .map_err(|_| EvidenceError::CertificateSignature(Party::Vcek))?;
    (&vcek, &report)
        .verify()
        .map_err(|_| EvidenceError::ReportSignature)?;
    Ok(&[Unchecked::Revocation, Unchecked::Freshness])
}

/// `sev` passes over what stands behind each number of the signature and behind both, so that one report had many forms.
fn read(bytes: &[u8]) -> Result<AttestationReport, EvidenceError> {
    let version = bytes.first_chunk().map(|first| u32::from_le_bytes(*first));
    match version {
        Some(2..=NEWEST_REPORT) => {}
        Some(unknown) => return Err(EvidenceError::ReportVersion(unknown)),
        None => return Err(EvidenceError::Report),
    }
    let report = AttestationReport::from_bytes(bytes).map_err(|_| EvidenceError::Report)?;
    let again = report.to_bytes().map_err(|_| EvidenceError::Report)?;
    let numbers = bytes[SIGNATURE..].chunks(NUMBER).take(2);
    let padded = numbers
        .flat_map(|number| &number[NUMBER_USED..])
        .all(|byte| *byte == 0);
    if again != *bytes || !padded {
        return Err(EvidenceError::Report);
    }
    Ok(report)
}

/// What a report says of itself that makes it worthless here, whoever signed it.
fn check_own_words(report: &AttestationReport) -> Result<(), EvidenceError> {
    if report.sig_algo != ECDSA_P384
        || report.key_info.signing_key() != VCEK
        || report.key_info.mask_chip_key()
    {
        return Err(EvidenceError::ReportKey);
    }
    if report.policy.debug_allowed() {
        return Err(EvidenceError::Debug);
    }
    if report.policy.migrate_ma_allowed() {
        return Err(EvidenceError::Migratable);
    }
    if report.vmpl != 0 {
        return Err(EvidenceError::PrivilegeLevel(report.vmpl));
    }
    Ok(())
}

/// Reports say of which generation they are from version 3 on.
fn check_generation(report: &AttestationReport, platform: Platform) -> Result<(), EvidenceError> {
    let (Some(family), Some(model)) = (report.cpuid_fam_id, report.cpuid_mod_id) else {
        return Ok(());
    };
    let said = match Generation::identify_cpu(family, model) {
        Ok(Generation::Milan) => Platform::Milan,
        Ok(Generation::Genoa) => Platform::Genoa,
        Ok(Generation::Turin) => Platform::Turin,
        // Venice is known to `sev`, but AMD's roots for it are not.
        _ => return Err(EvidenceError::OtherGeneration),
    };
    if said != platform {
        return Err(EvidenceError::OtherGeneration);
    }
    Ok(())
}

/// The chip's certificate names chip and security versions: the report must be of the same.
fn check_same_chip(report: &AttestationReport, vcek: &Cert) -> Result<(), EvidenceError> {
    let chip = vcek.extension(CHIP).unwrap_or_default();
    // From Turin on the identity is shorter, and the report pads it.
    let (named, padding) = report
        .chip_id
        .split_at_checked(chip.len())
        .ok_or(EvidenceError::OtherChip)?;
    if chip.is_empty() || named != chip || padding.iter().any(|byte| *byte != 0) {
        return Err(EvidenceError::OtherChip);
    }
    let tcb = &report.reported_tcb;
    let parts = [
        (BOOT_LOADER, Some(tcb.bootloader)),
        (TEE, Some(tcb.tee)),
        (SNP, Some(tcb.snp)),
        (MICROCODE, Some(tcb.microcode)),
        (FMC, tcb.fmc),
    ];
    let certified = |oid| Some(u8::from_der(vcek.extension(oid)?).ok());
    let same = parts
        .into_iter()
        .all(|(oid, said)| certified(oid) == said.map(Some));
    if !same {
        return Err(EvidenceError::OtherTcb);
    }
    Ok(())
}

fn issued_for(vcek: &Cert) -> Result<Platform, EvidenceError> {
    let issuer = &vcek.x509.tbs_certificate.issuer;
    let found = PINNED.iter().find(|(_, pins)| pins.issues_as == *issuer);
    found
        .map(|(platform, _)| *platform)
        .ok_or(EvidenceError::UnknownIssuer(Party::Vcek))
}

/// AMD's certificates for one generation.
struct Pins {
    ark: Certificate,
    ask: Certificate,
    /// The intermediate's name.
    issues_as: Name,
}

static PINNED: LazyLock<[(Platform, Pins); 3]> = LazyLock::new(|| {
    let pins = |ark, ask| {
        let read = |pem| Certificate::from_pem(pem).expect("a pinned certificate can be read");
        let ask: Certificate = read(ask);
        let x509: x509_cert::Certificate = ask.clone().into();
        Pins {
            ark: read(ark),
            ask,
            issues_as: x509.tbs_certificate.subject,
        }
    };
    use builtin::{genoa, milan, turin};
    [
        (Platform::Milan, pins(milan::ARK, milan::ASK)),
        (Platform::Genoa, pins(genoa::ARK, genoa::ASK)),
        (Platform::Turin, pins(turin::ARK, turin::ASK)),
    ]
});

fn pinned(platform: Platform) -> &'static Pins {
    let found = PINNED.iter().find(|(pinned, _)| *pinned == platform);
    &found.expect("a platform that was found by its pins").1
}

fn svns(tcb: &TcbVersion) -> Svns {
    let mut svns = Svns::default();
    let parts = [
        tcb.fmc.unwrap_or(0),
        tcb.bootloader,
        tcb.tee,
        tcb.snp,
        tcb.microcode,
    ];
    svns.0[..parts.len()].copy_from_slice(&parts);
    svns
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SHA-256 of each root and intermediate, so that an update of `sev` cannot change a pin in silence.
    #[test]
    fn the_pins_are_the_ones_that_were_looked_at() {
        use sha2::{Digest, Sha256};
        for (platform, ark, ask) in [
            (
                Platform::Milan,
                "69d063b45344d26a2e94e1f4210de49ef555308287d4c174445c95639a540bcd",
                "67d303bd3905fd38db8b20e0793699870e7fa612eaad5dec358293fd8c0bac1b",
            ),
            (
                Platform::Genoa,
                "4c6598d19c18719c5dfd4a7d335f674e5bfe1d8f800cea2cf270c10d103db2f1",
                "5464738c1546aed5f2cecf1dc98c5c960a92e8913238a61711bc90ec6e828521",
            ),
            (
                Platform::Turin,
                "1f084161a44bb6d93778a904877d4819cafa5d05ef4193b2ded9dd9c73dd3f6a",
                "5b77ef5fe7a7a004fd9032668fba9d0fda22f88c4442069a479636a6ae3b3185",
            ),
        ] {
            let pins = pinned(platform);
            let digest = |cert: &Certificate| hex::encode(Sha256::digest(cert.to_der().unwrap()));
            assert_eq!(digest(&pins.ark), ark);
            assert_eq!(digest(&pins.ask), ask);
            for signed in [&pins.ark, &pins.ask] {
                (&pins.ark, signed).verify().expect("the root signed both");
            }
        }
    }

    /// No report of a Turin is published with the crate, but a certificate of one is.
    #[test]
    fn the_certificate_of_a_turin_leads_to_its_pins() {
        let der = include_bytes!("../tests/samples/snp-turin-vcek.der");
        let vcek = Cert::read(Party::Vcek, der).unwrap();
        assert_eq!(issued_for(&vcek), Ok(Platform::Turin));
        let vcek = Certificate::from(vcek.x509);
        (&pinned(Platform::Turin).ask, &vcek).verify().unwrap();
        assert!((&pinned(Platform::Genoa).ask, &vcek).verify().is_err());
    }
}
