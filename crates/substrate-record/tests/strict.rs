//! One Ed25519 rule for everybody: `verify_strict`, pinned against Project Wycheproof's verdicts
//! and against signatures on which verifiers are known to differ.

mod support;

use std::sync::OnceLock;

use curve25519_dalek::constants::ED25519_BASEPOINT_POINT;
use curve25519_dalek::edwards::{CompressedEdwardsY, EdwardsPoint};
use curve25519_dalek::scalar::Scalar;
use curve25519_dalek::traits::IsIdentity;
use ed25519_dalek::{Signature, Verifier, VerifyingKey};
use support::{forge, lies};
use wycheproof::TestResult;
use wycheproof::eddsa::{TestName, TestSet};

fn strict(key: &[u8], message: &[u8], signature: &[u8]) -> bool {
    let key = <[u8; 32]>::try_from(key).ok();
    let key = key.and_then(|key| VerifyingKey::from_bytes(&key).ok());
    let signature = Signature::from_slice(signature).ok();
    key.zip(signature)
        .is_some_and(|(key, signature)| key.verify_strict(message, &signature).is_ok())
}

/// The rule accepts what Wycheproof calls valid and refuses the rest, without exception: none of
/// its valid cases has a small-order key or nonce, the only honest-looking input the strict rule
/// refuses in addition.
#[test]
fn wycheproof_and_the_strict_rule_agree() {
    let set = TestSet::load(TestName::Ed25519).expect("vectors ship with the crate");
    let mut cases = 0;
    for group in &set.test_groups {
        for case in &group.tests {
            let valid = case.result == TestResult::Valid;
            let accepted = strict(&group.key.pk, &case.msg, &case.sig);
            assert_eq!(accepted, valid, "case {}: {}", case.tc_id, case.comment);
            assert_ne!(case.result, TestResult::Acceptable, "case {}", case.tc_id);
            cases += 1;
        }
    }
    assert_eq!(cases, set.number_of_tests);
    assert!(cases >= 150, "only {cases} cases");
}

/// What three rules say of a vector: the plain cofactorless one, the cofactored one of RFC 8032
/// and batch verifiers, ours.
fn rules(name: &str) -> [bool; 3] {
    use coset::CborSerializable;
    static VECTORS: OnceLock<Vec<lies::Vector>> = OnceLock::new();
    let vectors = VECTORS.get_or_init(lies::all);
    let vector = vectors.iter().find(|vector| vector.name == name);
    let record = coset::CoseSign1::from_slice(&vector.expect("known").bytes).expect("well-formed");
    let key = <[u8; 32]>::try_from(&record.protected.header.key_id[..]).expect("32 bytes");
    let context = format!("substrate/{}/v1", support::network());
    let message = record.tbs_data(context.as_bytes());
    let signature = Signature::from_slice(&record.signature).expect("64 bytes");
    let lenient = VerifyingKey::from_bytes(&key).expect("a point");
    [
        lenient.verify(&message, &signature).is_ok(),
        cofactored(&key, &message, &signature),
        strict(&key, &message, &record.signature),
    ]
}

fn cofactored(key: &[u8; 32], message: &[u8], signature: &Signature) -> bool {
    let point = |bytes: &[u8; 32]| -> EdwardsPoint {
        CompressedEdwardsY(*bytes).decompress().expect("a point")
    };
    let Some(s) = Option::<Scalar>::from(Scalar::from_canonical_bytes(*signature.s_bytes())) else {
        return false;
    };
    let k = forge::challenge(signature.r_bytes(), key, message);
    let difference = s * ED25519_BASEPOINT_POINT - point(signature.r_bytes()) - k * point(key);
    difference.mul_by_cofactor().is_identity()
}

#[test]
fn the_vectors_are_signatures_on_which_verifiers_differ() {
    //                                                        plain  cofactored  strict
    assert_eq!(rules("good-accept"), [true, true, true]);
    assert_eq!(rules("good-other-nonce"), [true, true, true]);
    assert_eq!(rules("torsion-in-nonce"), [false, true, false]);
    assert_eq!(rules("torsion-in-key"), [false, true, false]);
    assert_eq!(rules("good-torsion-in-key-vanishes"), [true, true, true]);
    assert_eq!(rules("small-order-key"), [true, true, false]);
    assert_eq!(rules("neutral-key"), [true, true, false]);
    assert_eq!(rules("small-order-nonce"), [true, true, false]);
    assert_eq!(rules("small-order-nonce-uncanonical"), [false, true, false]);
    assert_eq!(rules("s-not-canonical"), [false, false, false]);
}
