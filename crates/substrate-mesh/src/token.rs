//! What a provider may say about the likelihood of a token, inside a `Token` frame.
//!
//! Invariant: logarithms are fixed-point integers, natural, times 2^16; entries follow the frame's ids.
//! Absent by design: floats, and any printing of what the tokens stand for.

use std::fmt;

use ciborium::Value;

use crate::cbor::{Body, Fields, FrameError, bytes, integer, list};

/// Most token ids in one frame: the unacknowledged tail a provider keeps (PROTOCOL.md 5).
pub const MAX_IDS: usize = 256;

/// Most alternatives listed for one token. OpenAI's `top_logprobs` ends at 20.
pub const MAX_ALTERNATIVES: usize = 20;

/// Longest byte string one token stands for; no tokeniser in use comes near it.
pub const MAX_TOKEN_BYTES: usize = 512;

/// How likely a token was, as a fixed-point natural logarithm.
#[derive(Clone, PartialEq, Eq)]
pub struct TokenLogprob {
    /// The token.
    pub id: u32,
    /// ln p × 2¹⁶.
    pub logprob: i32,
    /// The bytes it stands for.
    pub bytes: Vec<u8>,
    /// The likeliest tokens at that place.
    pub top: Vec<Alternative>,
}

/// A token that could have been chosen.
#[derive(Clone, PartialEq, Eq)]
pub struct Alternative {
    /// The token.
    pub id: u32,
    /// ln p × 2¹⁶.
    pub logprob: i32,
    /// The bytes it stands for.
    pub bytes: Vec<u8>,
}

/// One entry per id and in their order, or the frame lies.
pub(crate) fn logprobs(listed: Value, ids: &[u32]) -> Result<Vec<TokenLogprob>, FrameError> {
    let listed = list(listed, 3, MAX_IDS)?;
    let listed = listed
        .into_iter()
        .map(TokenLogprob::from_value)
        .collect::<Result<Vec<_>, _>>()?;
    let matches = !listed.is_empty() && listed.iter().map(|entry| entry.id).eq(ids.iter().copied());
    if matches {
        Ok(listed)
    } else {
        Err(FrameError::Field { label: 3 })
    }
}

impl TokenLogprob {
    pub(crate) fn value(&self) -> Value {
        let top: Vec<Value> = self.top.iter().map(Alternative::value).collect();
        Body::default()
            .with(1, self.id)
            .with(2, self.logprob)
            .with(3, self.bytes.clone())
            .with(4, top)
            .done()
    }

    fn from_value(value: Value) -> Result<Self, FrameError> {
        let mut fields = Fields::open(value)?;
        let entry = Self {
            id: fields.u32(1)?,
            logprob: fields.i32(2)?,
            bytes: fields.bytes(3, MAX_TOKEN_BYTES)?,
            top: (fields.list(4, MAX_ALTERNATIVES)?.into_iter())
                .map(Alternative::from_value)
                .collect::<Result<_, _>>()?,
        };
        fields.end()?;
        Ok(entry)
    }
}

impl Alternative {
    fn value(&self) -> Value {
        Value::Array(vec![
            Value::from(self.id),
            Value::from(self.logprob),
            Value::Bytes(self.bytes.clone()),
        ])
    }

    fn from_value(value: Value) -> Result<Self, FrameError> {
        let parts = list(value, 4, 3)?;
        let [id, logprob, text] =
            <[Value; 3]>::try_from(parts).map_err(|_| FrameError::Field { label: 4 })?;
        Ok(Self {
            id: integer(id, 4)?,
            logprob: integer(logprob, 4)?,
            bytes: bytes(text, 4, MAX_TOKEN_BYTES)?,
        })
    }
}

impl fmt::Debug for TokenLogprob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TokenLogprob({} alternatives)", self.top.len())
    }
}

impl fmt::Debug for Alternative {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Alternative")
    }
}
