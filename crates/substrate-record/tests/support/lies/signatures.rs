//! Lies told in the signature: what lenient verifiers accept and the strict rule does not.

use curve25519_dalek::constants::ED25519_BASEPOINT_POINT;
use curve25519_dalek::edwards::EdwardsPoint;
use curve25519_dalek::scalar::Scalar;
use curve25519_dalek::traits::{Identity, IsIdentity};
use ed25519_dalek::Signer;

use super::{Draft, Vector, draft, vector};
use crate::support::forge::{self, Forgery, bytes, uint};
use crate::support::{network, node, provider};

/// Signatures that some verifiers accept and the strict rule does not, and what it does accept.
pub fn signatures() -> Vec<Vector> {
    let forgery = draft().forge();
    let honest = honest_signature(&forgery);
    let (r, s) = halves(&honest);
    let key = *node(&provider()).as_bytes();
    let secret = forge::secret_scalar(&provider());
    let message = forgery.to_be_signed();
    let nonce = Scalar::from(7_654_321u64);
    let with_torsion = |torsion| forge::sign_with_torsion(secret, &key, nonce, torsion, &message);
    let neutral = |point: [u8; 32]| {
        let signature = forge::sign_with_nonce_point(secret, &key, &point, &message);
        forgery.with_signature(&signature)
    };
    vec![
        vector(
            "good-other-nonce",
            "a second valid signature over one fact, made with another nonce",
            forgery.with_signature(&with_torsion(EdwardsPoint::identity())),
        ),
        vector(
            "s-not-canonical",
            "S + L for S",
            forgery.with_signature(&forge::join(&r, &forge::s_plus_order(&s))),
        ),
        vector(
            "torsion-in-nonce",
            "R with a point of order 8 added: only cofactored verifiers accept it",
            forgery.with_signature(&with_torsion(forge::torsion())),
        ),
        vector(
            "small-order-nonce",
            "R is the neutral element",
            neutral(forge::neutral()),
        ),
        vector(
            "small-order-nonce-uncanonical",
            "R is the neutral element, written with y = p + 1",
            neutral(forge::neutral_uncanonical()),
        ),
        vector(
            "small-order-key",
            "the author is a point of order 8",
            small_order_key(),
        ),
        vector(
            "neutral-key",
            "the author is the neutral element: any S fits",
            neutral_key(),
        ),
        vector(
            "torsion-in-key",
            "the author's key has a point of order 8 added: only cofactored verifiers accept it",
            mixed_key(false),
        ),
        vector(
            "good-torsion-in-key-vanishes",
            "the same where 8 divides the challenge: the strict rule accepts it",
            mixed_key(true),
        ),
        vector(
            "key-not-a-point",
            "the author is no point of the curve",
            key_not_a_point(),
        ),
        vector(
            "signature-zero",
            "64 zero bytes",
            forgery.with_signature(&[0; 64]),
        ),
        vector(
            "signature-of-another-message",
            "R and S over other bytes",
            forgery.with_signature(&honest_signature(&draft().say(5, uint(1)).forge())),
        ),
    ]
}

fn author_draft(key: &[u8; 32]) -> Draft {
    draft().claim(3, bytes(key))
}

fn forgery_of(key: &[u8; 32], claimed_ms: u64) -> Forgery {
    let payload = author_draft(key).claim(8, uint(claimed_ms)).payload();
    Forgery::new(key, payload, &network())
}

/// S·B = R + k·A holds with A of order 8 wherever 8 divides k; the clock is tried until it does.
fn small_order_key() -> Vec<u8> {
    let key = forge::torsion().compress().to_bytes();
    let r = Scalar::from(99u64);
    first_fit(&key, |message| {
        let signature =
            forge::sign_with_torsion(Scalar::ZERO, &key, r, EdwardsPoint::identity(), message);
        vanishes(&key, &signature, message).then_some(signature)
    })
}

fn neutral_key() -> Vec<u8> {
    let key = forge::neutral();
    let r = Scalar::from(99u64);
    first_fit(&key, |message| {
        let signature =
            forge::sign_with_torsion(Scalar::ZERO, &key, r, EdwardsPoint::identity(), message);
        Some(signature)
    })
}

fn mixed_key(vanishing: bool) -> Vec<u8> {
    let secret = forge::secret_scalar(&provider());
    let point = secret * ED25519_BASEPOINT_POINT + forge::torsion();
    let key = point.compress().to_bytes();
    let r = Scalar::from(1_234_567u64);
    first_fit(&key, |message| {
        let signature =
            forge::sign_with_torsion(secret, &key, r, EdwardsPoint::identity(), message);
        (vanishes(&key, &signature, message) == vanishing).then_some(signature)
    })
}

/// Whether the challenge takes the point of order 8 to the neutral element.
fn vanishes(key: &[u8; 32], signature: &[u8; 64], message: &[u8]) -> bool {
    let (r, _) = halves(signature);
    (forge::challenge(&r, key, message) * forge::torsion()).is_identity()
}

fn first_fit(key: &[u8; 32], sign: impl Fn(&[u8]) -> Option<[u8; 64]>) -> Vec<u8> {
    (0..1000)
        .find_map(|tick| {
            let forgery = forgery_of(key, 1_700_000_001_000 + tick);
            let signature = sign(&forgery.to_be_signed())?;
            Some(forgery.with_signature(&signature))
        })
        .expect("one challenge in eight fits")
}

fn key_not_a_point() -> Vec<u8> {
    let key = (0..=u8::MAX)
        .map(|low| [low; 32])
        .find(|key| !forge::is_point(key))
        .expect("half of all strings are no point");
    forgery_of(&key, 1).with_signature(&[1; 64])
}

pub fn honest_signature(forgery: &Forgery) -> [u8; 64] {
    provider().sign(&forgery.to_be_signed()).to_bytes()
}

fn halves(signature: &[u8; 64]) -> ([u8; 32], [u8; 32]) {
    let (mut r, mut s) = ([0; 32], [0; 32]);
    r.copy_from_slice(&signature[..32]);
    s.copy_from_slice(&signature[32..]);
    (r, s)
}
