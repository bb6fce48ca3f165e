//! Each lie by its name.

mod support;

use ciborium::Value;
use substrate_record::cbor;
use substrate_tee::{
    Binding, Evidence, EvidenceError, MAX_EVIDENCE, Party, Platform, Policy, UnixSeconds,
};

use support::{Judge, MILAN_VCEK, SGX, TDX, TURIN_VCEK, all, snp, snp_report, tdx};

/// A day within the year 2020, before any of the samples' own certificates.
const EARLY: UnixSeconds = UnixSeconds(1_604_000_000);
/// 2032-06-01: the chips' certificates have expired, their issuers' not.
const LATE: UnixSeconds = UnixSeconds(1_969_660_800);

/// What is said of the sample report once some of its bytes are others, which is found without any signature.
fn report_with(at: usize, bytes: &[u8]) -> EvidenceError {
    let mut report = snp_report();
    report[at..at + bytes.len()].copy_from_slice(bytes);
    match Evidence::from_snp(&report, MILAN_VCEK) {
        Err(error) => error,
        Ok(evidence) => Judge::of(&snp()).judge(&evidence).unwrap_err(),
    }
}

fn quote_with(which: usize, at: usize, bytes: &[u8]) -> EvidenceError {
    let mut quote = TDX[which].to_vec();
    quote[at..at + bytes.len()].copy_from_slice(bytes);
    match Evidence::from_tdx_quote(&quote) {
        Err(error) => error,
        Ok(evidence) => Judge::of(&tdx(which)).judge(&evidence).unwrap_err(),
    }
}

#[test]
fn a_guest_that_may_be_debugged_is_refused() {
    let policy = 0x3_0000_u64 | 1 << 19;
    assert_eq!(
        report_with(0x08, &policy.to_le_bytes()),
        EvidenceError::Debug
    );
    let attributes = 48 + 120;
    assert_eq!(quote_with(0, attributes, &[1]), EvidenceError::Debug);
    // The other attributes of the same group say "untrusted" too.
    assert_eq!(quote_with(0, attributes, &[1 << 4]), EvidenceError::Debug);
    assert_eq!(quote_with(1, attributes + 6, &[1]), EvidenceError::Debug);
}

#[test]
fn a_guest_that_may_be_moved_is_refused() {
    let policy = 0x3_0000_u64 | 1 << 18;
    assert_eq!(
        report_with(0x08, &policy.to_le_bytes()),
        EvidenceError::Migratable
    );
    assert_eq!(quote_with(0, 48 + 123, &[0x20]), EvidenceError::Migratable);
}

#[test]
fn a_report_that_the_host_asked_for_is_refused() {
    assert_eq!(
        report_with(0x30, &[0xff; 4]),
        EvidenceError::PrivilegeLevel(u32::MAX)
    );
    assert_eq!(report_with(0x30, &[3]), EvidenceError::PrivilegeLevel(3));
}

#[test]
fn a_report_that_no_chip_signed_is_refused() {
    // Signed by a cloud's key; by none; masked; with another algorithm.
    for key in [1 << 2, 7 << 2, 1 << 1] {
        assert_eq!(report_with(0x48, &[key]), EvidenceError::ReportKey);
    }
    assert_eq!(report_with(0x34, &[2]), EvidenceError::ReportKey);
}

#[test]
fn reports_of_unknown_versions_and_forms_are_refused() {
    for version in [0, 1, 6, 255] {
        assert_eq!(
            report_with(0, &[version]),
            EvidenceError::ReportVersion(version.into())
        );
    }
    // Behind r, behind s, behind both, and between fields.
    for reserved in [0x2a0 + 48, 0x2a0 + 72 + 71, 0x2a0 + 144, 1183, 0x4c] {
        assert_eq!(
            report_with(reserved, &[1]),
            EvidenceError::Report,
            "{reserved:#x}"
        );
    }
    assert_eq!(
        Evidence::from_snp(&snp_report()[1..], MILAN_VCEK),
        Err(EvidenceError::FieldLength {
            field: "report",
            length: 1183
        })
    );
}

#[test]
fn a_changed_report_is_found_by_its_signature() {
    // The data of the host, which nothing here judges.
    assert_eq!(report_with(0xc0, &[1]), EvidenceError::ReportSignature);
    assert_eq!(report_with(0x2a0, &[1]), EvidenceError::ReportSignature);
}

#[test]
fn a_changed_quote_is_found_by_its_signature() {
    for which in 0..TDX.len() {
        let begin = if which == 0 { 48 } else { 54 };
        // MRCONFIGID, which nothing here judges; and the header's user data.
        assert_eq!(
            quote_with(which, begin + 184, &[0xa5]),
            EvidenceError::ReportSignature
        );
        assert_eq!(
            quote_with(which, 30, &[0xa5]),
            EvidenceError::ReportSignature
        );
    }
}

#[test]
fn evidence_for_another_node_or_worker_is_refused() {
    for evidence in all() {
        let judge = Judge {
            binding: Binding::from_bytes([7; 64]),
            ..Judge::of(&evidence)
        };
        assert_eq!(judge.judge(&evidence), Err(EvidenceError::Binding));
    }
}

#[test]
fn a_policy_that_names_nothing_accepts_nothing() {
    for evidence in all() {
        let judge = Judge {
            policy: Policy::default(),
            ..Judge::of(&evidence)
        };
        assert_eq!(judge.judge(&evidence), Err(EvidenceError::Measurement));
    }
}

#[test]
fn another_image_or_older_firmware_is_refused() {
    for evidence in all() {
        let mut judge = Judge::of(&evidence);
        let svns = judge.policy.accepted[0].least;
        judge.policy.accepted[0].least.0[1] += 1;
        assert_eq!(judge.judge(&evidence), Err(EvidenceError::OldTcb { svns }));
        judge.policy.accepted[0].measurement[47] ^= 1;
        assert_eq!(judge.judge(&evidence), Err(EvidenceError::Measurement));
    }
    // Any of several lines will do.
    let mut judge = Judge::of(&snp());
    let mut stricter = judge.policy.accepted[0].clone();
    stricter.least.0[4] = 255;
    judge.policy.accepted.insert(0, stricter);
    judge.judge(&snp()).unwrap();
}

#[test]
fn certificates_out_of_date_are_refused() {
    for (evidence, whose) in [(snp(), Party::Vcek), (tdx(0), Party::Pck)] {
        let at = |now| Judge {
            now,
            ..Judge::of(&evidence)
        };
        assert_eq!(
            at(EARLY).judge(&evidence),
            Err(EvidenceError::NotYetValid(whose))
        );
        assert_eq!(
            at(LATE).judge(&evidence),
            Err(EvidenceError::Expired(whose))
        );
    }
    // 2030-04-03 19:23:43, as the chip's certificate says, is its last second.
    let last = 1_901_474_623;
    let at = |now| Judge {
        now: UnixSeconds(now),
        ..Judge::of(&snp())
    };
    at(last).judge(&snp()).unwrap();
    assert_eq!(
        at(last + 1).judge(&snp()),
        Err(EvidenceError::Expired(Party::Vcek))
    );
    // Long after, the issuers' have expired, too, and are found first.
    let far = UnixSeconds(4_000_000_000);
    let judge = |evidence: &Evidence| {
        let judge = Judge {
            now: far,
            ..Judge::of(evidence)
        };
        judge.judge(evidence)
    };
    assert_eq!(judge(&snp()), Err(EvidenceError::Expired(Party::Amd)));
    assert_eq!(
        judge(&tdx(0)),
        Err(EvidenceError::Expired(Party::IntelRoot))
    );
}

#[test]
fn the_certificate_of_another_chip_is_refused() {
    let Evidence::SevSnp(mut evidence) = snp() else {
        unreachable!()
    };
    evidence.vcek = TURIN_VCEK.to_vec();
    let evidence = Evidence::SevSnp(evidence);
    // Whoever accepts this image on Milan has not accepted it on Turin; and the chip is another in any case.
    assert_eq!(
        Judge::of(&snp()).judge(&evidence),
        Err(EvidenceError::Measurement)
    );
    let mut judge = Judge::of(&snp());
    judge.policy.accepted[0].platform = Platform::Turin;
    judge.policy.accepted[0].least = "0.3.0.8.115".parse().unwrap();
    assert_eq!(judge.judge(&evidence), Err(EvidenceError::OtherChip));
}

#[test]
fn the_certificate_for_other_firmware_is_refused() {
    // The report's security versions, changed in the field that names the certificate.
    let mut report = snp_report();
    report[0x180 + 7] -= 1;
    let evidence = Evidence::from_snp(&report, MILAN_VCEK).unwrap();
    assert_eq!(
        Judge::of(&evidence).judge(&evidence),
        Err(EvidenceError::OtherTcb)
    );
}

#[test]
fn a_chain_that_leads_elsewhere_is_refused() {
    let Evidence::Tdx(good) = tdx(0) else {
        unreachable!()
    };
    let Evidence::Tdx(other) = tdx(1) else {
        unreachable!()
    };
    let judge = Judge::of(&tdx(0));
    let refused = |evidence| judge.judge(&Evidence::Tdx(evidence)).unwrap_err();
    // Two platforms: each signed its own enclave only, and each enclave vouches for its own key only.
    let mut mixed = good.clone();
    mixed.pck = other.pck.clone();
    assert_eq!(refused(mixed), EvidenceError::EnclaveSignature);
    let mut mixed = good.clone();
    mixed.qe_report = other.qe_report;
    mixed.qe_signature = other.qe_signature;
    mixed.pck = other.pck.clone();
    assert_eq!(refused(mixed.clone()), EvidenceError::AttestationKey);
    mixed.key = other.key;
    mixed.qe_auth = other.qe_auth.clone();
    assert_eq!(refused(mixed), EvidenceError::ReportSignature);
    // A platform that is its own authority, one that issues for others, and a chip of the other maker.
    let mut mixed = good.clone();
    mixed.pck_ca = good.pck.clone();
    assert_eq!(refused(mixed), EvidenceError::UnknownIssuer(Party::PckCa));
    let mut mixed = good.clone();
    mixed.pck = good.pck_ca.clone();
    assert_eq!(refused(mixed), EvidenceError::UnknownIssuer(Party::Pck));
    let mut mixed = good.clone();
    mixed.pck = MILAN_VCEK.to_vec();
    assert_eq!(refused(mixed), EvidenceError::UnknownIssuer(Party::Pck));
}

#[test]
fn a_changed_certificate_is_found_by_its_issuer() {
    let Evidence::Tdx(good) = tdx(0) else {
        unreachable!()
    };
    let judge = Judge::of(&tdx(0));
    // A digit of the serial number, which comes first within what is signed.
    for (whose, at) in [(Party::Pck, 20), (Party::PckCa, 20)] {
        let mut evidence = good.clone();
        let der = match whose {
            Party::Pck => &mut evidence.pck,
            _ => &mut evidence.pck_ca,
        };
        der[at] ^= 1;
        assert_eq!(
            judge.judge(&Evidence::Tdx(evidence)),
            Err(EvidenceError::CertificateSignature(whose))
        );
    }
    let Evidence::SevSnp(mut evidence) = snp() else {
        unreachable!()
    };
    // Within the key: it is found before the report's signature is looked at.
    let key = evidence
        .vcek
        .windows(4)
        .position(|four| four == [0x04, 0xa1, 0x7a, 0xcc]);
    evidence.vcek[key.expect("the key begins so") + 8] ^= 1;
    assert_eq!(
        Judge::of(&snp()).judge(&Evidence::SevSnp(evidence)),
        Err(EvidenceError::CertificateSignature(Party::Vcek))
    );
}

#[test]
fn quotes_of_other_kinds_are_refused() {
    let read = |quote: &[u8]| Evidence::from_tdx_quote(quote).unwrap_err();
    assert_eq!(read(SGX), EvidenceError::QuoteVersion(3));
    assert_eq!(quote_with(0, 2, &[3]), EvidenceError::QuoteKeyType(3));
    assert_eq!(quote_with(0, 4, &[0]), EvidenceError::NotTrustDomain);
    assert_eq!(quote_with(0, 12, &[0]), EvidenceError::QuotingEnclave);
    // An enclave's report within a quote of version 5; a descriptor that is wrong about its length.
    assert_eq!(quote_with(1, 48, &[1]), EvidenceError::NotTrustDomain);
    assert_eq!(quote_with(1, 50, &[1]), EvidenceError::QuoteLength);
    // A module of somebody else's, and one for development.
    assert_eq!(quote_with(0, 48 + 64, &[1]), EvidenceError::TdxModule);
    assert_eq!(quote_with(0, 48 + 112, &[1]), EvidenceError::TdxModule);
    // Certificates by reference (types 1 to 4), which would have to be looked up.
    let inner = 48 + 584 + 4 + 128 + 6 + 384 + 64 + 2 + 32;
    assert_eq!(
        quote_with(0, inner, &[4]),
        EvidenceError::CertificationData(4)
    );
    assert_eq!(
        quote_with(0, inner + 2, &[0xff]),
        EvidenceError::QuoteLength
    );
    assert_eq!(
        quote_with(0, TDX[0].len() - 1, &[1]),
        EvidenceError::QuoteLength
    );
}

#[test]
fn encodings_that_are_not_evidence_are_refused() {
    let map = |pairs: Vec<(u64, Value)>| {
        let pairs = pairs.into_iter().map(|(at, value)| (at.into(), value));
        Evidence::decode(&cbor::encode(&Value::Map(pairs.collect()))).unwrap_err()
    };
    let report = || (2, Value::Bytes(snp_report()));
    let vcek = || (3, Value::Bytes(MILAN_VCEK.to_vec()));
    assert_eq!(map(vec![]), EvidenceError::Fields);
    assert_eq!(map(vec![(1, 1.into()), report()]), EvidenceError::Fields);
    assert_eq!(
        map(vec![(1, 1.into()), report(), vcek(), (4, 1.into())]),
        EvidenceError::Fields
    );
    // 3 is set aside for GPUs, of which nothing is read yet.
    assert_eq!(
        map(vec![(1, 3.into()), report(), vcek()]),
        EvidenceError::UnknownTechnology(3)
    );
    assert_eq!(
        map(vec![
            (1, 1.into()),
            report(),
            (3, Value::Bytes(vec![0; 2049]))
        ]),
        EvidenceError::FieldLength {
            field: "vcek",
            length: 2049
        }
    );
    assert!(matches!(
        map(vec![(1, 1.into()), report(), (3, "text".into())]),
        EvidenceError::Cbor(_)
    ));
    assert_eq!(
        Evidence::decode(&[0; MAX_EVIDENCE + 1]),
        Err(EvidenceError::TooLong {
            length: MAX_EVIDENCE + 1
        })
    );
}

#[test]
fn a_chain_too_long_for_a_capability_says_so() {
    let Evidence::Tdx(mut evidence) = tdx(2) else {
        unreachable!()
    };
    evidence.pck.resize(2048, 0);
    evidence.pck_ca.resize(2048, 0);
    let said = Evidence::Tdx(evidence).encode().unwrap_err().to_string();
    assert!(
        said.ends_with("does not fit into a capability, which holds 5120"),
        "{said}"
    );
}
