//! A forger: writes records byte by byte, so that each can tell exactly one lie.
//!
//! Invariant: nothing here uses the crate's encoder; what the crate must accept is therefore also
//! checked against an encoder written from the protocol's text.

use curve25519_dalek::constants::{ED25519_BASEPOINT_POINT, EIGHT_TORSION};
use curve25519_dalek::edwards::{CompressedEdwardsY, EdwardsPoint};
use curve25519_dalek::scalar::{Scalar, clamp_integer};
use ed25519_dalek::Signer;
use sha2::{Digest, Sha512};
use substrate_record::{NetworkId, SigningKey};

/// The head of a CBOR item in its shortest form.
pub fn head(major: u8, argument: u64) -> Vec<u8> {
    let major = major << 5;
    let be = argument.to_be_bytes();
    match argument {
        0..=23 => vec![major | be[7]],
        24..=0xff => vec![major | 24, be[7]],
        0x100..=0xffff => [&[major | 25], &be[6..]].concat(),
        0x1_0000..=0xffff_ffff => [&[major | 26], &be[4..]].concat(),
        _ => [&[major | 27], &be[..]].concat(),
    }
}

pub fn uint(value: u64) -> Vec<u8> {
    head(0, value)
}

pub fn bytes(content: &[u8]) -> Vec<u8> {
    [head(2, content.len() as u64), content.to_vec()].concat()
}

pub fn text(content: &str) -> Vec<u8> {
    [head(3, content.len() as u64), content.as_bytes().to_vec()].concat()
}

pub fn array(items: &[Vec<u8>]) -> Vec<u8> {
    [head(4, items.len() as u64), items.concat()].concat()
}

/// A map of raw keys and values, in the order given.
pub fn map(pairs: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
    let pairs_bytes: Vec<u8> = pairs
        .iter()
        .flat_map(|(key, value)| [key.clone(), value.clone()].concat())
        .collect();
    [head(5, pairs.len() as u64), pairs_bytes].concat()
}

/// A struct: unsigned labels and raw values, in the order given.
pub fn fields(fields: &[(u64, Vec<u8>)]) -> Vec<u8> {
    let pairs: Vec<_> = fields
        .iter()
        .map(|(label, value)| (uint(*label), value.clone()))
        .collect();
    map(&pairs)
}

/// The parts of a COSE_Sign1 before they are put together, each free to lie.
#[derive(Clone)]
pub struct Forgery {
    pub protected: Vec<u8>,
    pub unprotected: Vec<u8>,
    pub payload: Vec<u8>,
    pub context: String,
}

pub const CONTENT_TYPE: &str = "application/substrate+cbor";

/// `{1: -19, 3: content type, 4: kid}`.
pub fn header(kid: &[u8]) -> Vec<u8> {
    fields(&[(1, head(1, 18)), (3, text(CONTENT_TYPE)), (4, bytes(kid))])
}

impl Forgery {
    pub fn new(kid: &[u8; 32], payload: Vec<u8>, network: &NetworkId) -> Self {
        Self {
            protected: header(kid),
            unprotected: fields(&[]),
            payload,
            context: format!("substrate/{network}/v1"),
        }
    }

    /// RFC 9052 §4.4: what is signed.
    pub fn to_be_signed(&self) -> Vec<u8> {
        array(&[
            text("Signature1"),
            bytes(&self.protected),
            bytes(self.context.as_bytes()),
            bytes(&self.payload),
        ])
    }

    pub fn signed_by(&self, key: &SigningKey) -> Vec<u8> {
        self.with_signature(&key.sign(&self.to_be_signed()).to_bytes())
    }

    pub fn with_signature(&self, signature: &[u8]) -> Vec<u8> {
        array(&[
            bytes(&self.protected),
            self.unprotected.clone(),
            bytes(&self.payload),
            bytes(signature),
        ])
    }
}

/// The secret scalar of a key, as RFC 8032 derives it.
pub fn secret_scalar(key: &SigningKey) -> Scalar {
    let hash = Sha512::digest(key.to_bytes());
    let mut low = [0; 32];
    low.copy_from_slice(&hash[..32]);
    Scalar::from_bytes_mod_order(clamp_integer(low))
}

/// The challenge k = SHA-512(R ‖ A ‖ message) mod L.
pub fn challenge(nonce_point: &[u8; 32], key: &[u8; 32], message: &[u8]) -> Scalar {
    let mut hash = Sha512::new();
    hash.update(nonce_point);
    hash.update(key);
    hash.update(message);
    Scalar::from_hash(hash)
}

/// A point of order 8.
pub fn torsion() -> EdwardsPoint {
    EIGHT_TORSION[1]
}

/// Signs with R = r·B + `nonce_torsion` under A = a·B + `key_torsion`. With either not zero the
/// equation holds only after multiplication by the cofactor, except where k·torsion vanishes.
pub fn sign_with_torsion(
    secret: Scalar,
    key: &[u8; 32],
    r: Scalar,
    nonce_torsion: EdwardsPoint,
    message: &[u8],
) -> [u8; 64] {
    let nonce_point = (r * ED25519_BASEPOINT_POINT + nonce_torsion).compress();
    let s = r + challenge(nonce_point.as_bytes(), key, message) * secret;
    join(nonce_point.as_bytes(), s.as_bytes())
}

/// Signs with the nonce r = 0: R is the neutral element, a point of small order, written as given.
pub fn sign_with_nonce_point(
    secret: Scalar,
    key: &[u8; 32],
    nonce_point: &[u8; 32],
    message: &[u8],
) -> [u8; 64] {
    let s = challenge(nonce_point, key, message) * secret;
    join(nonce_point, s.as_bytes())
}

pub fn join(nonce_point: &[u8; 32], s: &[u8; 32]) -> [u8; 64] {
    let mut signature = [0; 64];
    signature[..32].copy_from_slice(nonce_point);
    signature[32..].copy_from_slice(s);
    signature
}

/// S + L, which means the same scalar and is not the canonical way to write it.
pub fn s_plus_order(s: &[u8; 32]) -> [u8; 32] {
    const ORDER: [u8; 32] = [
        0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde,
        0x14, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
    ];
    let mut sum = [0; 32];
    let mut carry = 0u16;
    for index in 0..32 {
        carry += u16::from(s[index]) + u16::from(ORDER[index]);
        sum[index] = carry.to_le_bytes()[0];
        carry >>= 8;
    }
    sum
}

/// The neutral element, as it is written.
pub fn neutral() -> [u8; 32] {
    let mut point = [0; 32];
    point[0] = 1;
    point
}

/// The neutral element with y = p + 1, which no encoder writes.
pub fn neutral_uncanonical() -> [u8; 32] {
    let mut point = [0xff; 32];
    point[0] = 0xee;
    point[31] = 0x7f;
    point
}

/// Whether the bytes are a point of the curve.
pub fn is_point(bytes: &[u8; 32]) -> bool {
    CompressedEdwardsY(*bytes).decompress().is_some()
}
