//! The identities records speak of, each its own type over a fixed number of bytes.
//!
//! Invariant: every value of the right length is representable; whether a [`NodeId`] is a usable
//! key is found out where a signature is checked, not here.
//!
//! Absent by design: any way to turn one kind of identity into another.

use std::fmt;
use std::str::FromStr;

use ciborium::Value;
use sha2::{Digest, Sha256};

use crate::error::{FieldError, FieldFault};
use crate::fields::Cbor;

/// Why a text is not the identity it was read as.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected {expected} hexadecimal digits")]
pub struct ParseIdError {
    /// How many digits this kind of identity has.
    pub expected: usize,
}

macro_rules! byte_id {
    ($(#[$doc:meta])* $name:ident, $len:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; $len]);

        impl $name {
            /// Wraps raw bytes.
            pub const fn from_bytes(bytes: [u8; $len]) -> Self {
                Self(bytes)
            }

            /// The raw bytes.
            pub const fn as_bytes(&self) -> &[u8; $len] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                let mut bytes = [0; $len];
                hex::decode_to_slice(text, &mut bytes)
                    .map_err(|_| ParseIdError { expected: 2 * $len })?;
                Ok(Self(bytes))
            }
        }

        impl Cbor for $name {
            fn put(&self) -> Value {
                Value::Bytes(self.0.to_vec())
            }

            fn get(value: Value) -> Result<Self, FieldError> {
                <[u8; $len]>::get(value).map(Self)
            }
        }
    };
}

macro_rules! debug_as_hex {
    ($($name:ident),+) => {$(
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    )+};
}

byte_id!(
    /// A node: its raw Ed25519 public key, which is also the COSE `kid` and the record's author.
    NodeId,
    32
);
byte_id!(
    /// A record: SHA-256(0x00 ‖ protected header ‖ payload), the signature left out, because one
    /// signer can make many valid signatures over one fact.
    RecordId,
    32
);
byte_id!(
    /// A network: the record id of its Genesis.
    NetworkId,
    32
);
byte_id!(
    /// The SHA-256 of a file or of any other bytes addressed by content.
    ContentHash,
    32
);
byte_id!(
    /// A salted commitment to bytes that are not in the record, see [`commit`](crate::commit).
    Commitment,
    32
);
byte_id!(
    /// The 32 random bytes that keep a [`Commitment`] from being guessed. Its `Debug` form shows
    /// nothing: with the salt in a log, a short prompt could be found by trying.
    Salt,
    32
);
byte_id!(
    /// 16 random bytes a daemon draws at its start; a manifest is valid only under the provider's
    /// current one, so replays need no clock.
    SessionNonce,
    16
);
byte_id!(
    /// One job of one requester, the same over all its attempts.
    JobId,
    16
);
debug_as_hex!(
    NodeId,
    RecordId,
    NetworkId,
    ContentHash,
    Commitment,
    SessionNonce,
    JobId
);

impl fmt::Debug for Salt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Salt(..)")
    }
}

impl NodeId {
    /// The first eight hexadecimal digits, for people.
    pub fn short(&self) -> String {
        hex::encode(&self.0[..4])
    }
}

impl ContentHash {
    /// The SHA-256 of `bytes`.
    ///
    /// ```
    /// use substrate_record::ContentHash;
    /// assert!(ContentHash::of(b"").to_string().starts_with("e3b0c442"));
    /// ```
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }
}

impl<const N: usize> Cbor for [u8; N] {
    fn put(&self) -> Value {
        Value::Bytes(self.to_vec())
    }

    fn get(value: Value) -> Result<Self, FieldError> {
        let Value::Bytes(bytes) = value else {
            return Err(FieldFault::WrongType("bytes").into());
        };
        Self::try_from(bytes).map_err(|_| FieldFault::WrongLength { expected: N }.into())
    }
}
