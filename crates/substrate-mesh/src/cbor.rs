//! The bytes of a frame: deterministic CBOR `[kind, body]`, and `[kind, body, padding]` on the job stream.
//!
//! Invariant: a decoder accepts exactly the bytes the encoder makes. The CBOR is the records' own
//! (checked on the raw bytes before anything is allocated), and every payload is re-encoded and
//! compared, padding included, so one frame has one spelling and nothing can hide in another.
//! Absent by design: floats, tags, null, maps with anything but ascending integer labels.

use ciborium::Value;
use substrate_record::cbor::{self, CborError};

/// Longest frame on any stream, its length prefix included (PROTOCOL.md 4).
pub const MAX_FRAME: usize = 64 * 1024;

/// Bytes of the big-endian length in front of every frame.
pub const PREFIX: usize = 4;

/// Job frames are padded to multiples of this, prefix included: the size of a prompt's
/// last chunk or of a token's text tells its topic, a multiple of 256 tells much less.
pub const PAD_TO: usize = 256;

/// Nesting a body may have. The deepest one, a token's alternatives, needs six levels.
const MAX_DEPTH: usize = 8;

/// Why bytes are not a frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// Longer than [`MAX_FRAME`].
    #[error("frame of {len} bytes is longer than {MAX_FRAME}")]
    TooLarge {
        /// Bytes claimed or given, prefix included.
        len: usize,
    },
    /// Not one item of deterministic CBOR.
    #[error("frame: {0}")]
    Cbor(#[from] CborError),
    /// Deterministic CBOR, but not `[kind, body]`, or not with the one padding that fits.
    #[error("frame is not in its canonical form")]
    NotCanonical,
    /// A kind this stream does not know.
    #[error("frame kind {0} is not known on this stream")]
    UnknownKind(u64),
    /// A field is absent, of another type, or outside its limits.
    #[error("field {label} of the frame is not acceptable")]
    Field {
        /// Label of the field inside the body.
        label: u64,
    },
}

/// Whether a stream hides the length of its frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Padding {
    None,
    Job,
}

/// Encodes one payload: what follows the length prefix.
pub(crate) fn seal(kind: u64, body: Value, padding: Padding) -> Result<Vec<u8>, FrameError> {
    let mut items = vec![Value::from(kind), body];
    if padding == Padding::Job {
        let bare = cbor::encode(&Value::Array(items.clone()));
        items.push(Value::Bytes(vec![0; pad_len(PREFIX + bare.len())]));
    }
    let payload = cbor::encode(&Value::Array(items));
    if PREFIX + payload.len() > MAX_FRAME {
        return Err(FrameError::TooLarge {
            len: PREFIX + payload.len(),
        });
    }
    Ok(payload)
}

/// Decodes one payload into its kind and the fields of its body.
pub(crate) fn open(payload: &[u8], padding: Padding) -> Result<(u64, Fields), FrameError> {
    if PREFIX + payload.len() > MAX_FRAME {
        return Err(FrameError::TooLarge {
            len: PREFIX + payload.len(),
        });
    }
    let value = cbor::decode(payload, MAX_DEPTH)?;
    let Value::Array(items) = value else {
        return Err(FrameError::NotCanonical);
    };
    let mut items = items.into_iter();
    let (Some(Value::Integer(kind)), Some(body)) = (items.next(), items.next()) else {
        return Err(FrameError::NotCanonical);
    };
    let kind = u64::try_from(kind).map_err(|_| FrameError::NotCanonical)?;
    if seal(kind, body.clone(), padding)? != payload {
        return Err(FrameError::NotCanonical);
    }
    Ok((kind, Fields::open(body)?))
}

/// Length of the shortest zero string that brings a frame of `bare` bytes to a multiple of [`PAD_TO`].
///
/// The string's own header takes 1, 2 or 3 bytes. The one total a header cannot
/// make (25 = 1 + 24, but 24 needs a header of 2) takes a whole block more.
fn pad_len(bare: usize) -> usize {
    match (PAD_TO - bare % PAD_TO) % PAD_TO {
        0 => PAD_TO - 2,
        total @ 1..=24 => total - 1,
        25 => 25 + PAD_TO - 3,
        total => total - 2,
    }
}

/// A body under construction: labels in the order they are added, which must ascend.
#[derive(Default)]
pub(crate) struct Body(Vec<(Value, Value)>);

impl Body {
    pub(crate) fn with(mut self, label: u64, value: impl Into<Value>) -> Self {
        self.0.push((Value::from(label), value.into()));
        self
    }

    /// Adds a field only if there is something to say.
    pub(crate) fn with_some(self, label: u64, value: Option<impl Into<Value>>) -> Self {
        match value {
            Some(value) => self.with(label, value),
            None => self,
        }
    }

    pub(crate) fn done(self) -> Value {
        Value::Map(self.0)
    }
}

/// A list of byte strings, as records travel in batches.
pub(crate) fn byte_strings<T: AsRef<[u8]>>(items: &[T]) -> Value {
    Value::Array(
        items
            .iter()
            .map(|item| Value::Bytes(item.as_ref().to_vec()))
            .collect(),
    )
}

/// The fields of a received body, taken out one by one in ascending order of label.
pub(crate) struct Fields {
    fields: std::iter::Peekable<std::vec::IntoIter<(u64, Value)>>,
}

impl Fields {
    /// Opens a map whose labels are strictly ascending unsigned integers.
    pub(crate) fn open(value: Value) -> Result<Self, FrameError> {
        let Value::Map(entries) = value else {
            return Err(FrameError::NotCanonical);
        };
        let mut fields = Vec::with_capacity(entries.len());
        let mut last = 0;
        for (label, value) in entries {
            let label = label
                .as_integer()
                .and_then(|label| u64::try_from(label).ok());
            let label = label
                .filter(|label| *label > last)
                .ok_or(FrameError::NotCanonical)?;
            last = label;
            fields.push((label, value));
        }
        Ok(Self {
            fields: fields.into_iter().peekable(),
        })
    }

    /// A field that may be absent.
    pub(crate) fn optional(&mut self, label: u64) -> Option<Value> {
        self.fields
            .next_if(|(found, _)| *found == label)
            .map(|(_, value)| value)
    }

    fn required(&mut self, label: u64) -> Result<Value, FrameError> {
        self.optional(label).ok_or(FrameError::Field { label })
    }

    pub(crate) fn u64(&mut self, label: u64) -> Result<u64, FrameError> {
        integer(self.required(label)?, label)
    }

    pub(crate) fn u32(&mut self, label: u64) -> Result<u32, FrameError> {
        integer(self.required(label)?, label)
    }

    pub(crate) fn i32(&mut self, label: u64) -> Result<i32, FrameError> {
        integer(self.required(label)?, label)
    }

    pub(crate) fn i64(&mut self, label: u64) -> Result<i64, FrameError> {
        integer(self.required(label)?, label)
    }

    /// A byte string of at most `max` bytes.
    pub(crate) fn bytes(&mut self, label: u64, max: usize) -> Result<Vec<u8>, FrameError> {
        bytes(self.required(label)?, label, max)
    }

    /// A byte string of exactly `N` bytes.
    pub(crate) fn array<const N: usize>(&mut self, label: u64) -> Result<[u8; N], FrameError> {
        fixed(self.required(label)?, label)
    }

    /// A text of at most `max` bytes.
    pub(crate) fn text(&mut self, label: u64, max: usize) -> Result<String, FrameError> {
        let text = self
            .required(label)?
            .into_text()
            .map_err(|_| FrameError::Field { label })?;
        if text.len() > max {
            Err(FrameError::Field { label })
        } else {
            Ok(text)
        }
    }

    /// A list of at most `max` items.
    pub(crate) fn list(&mut self, label: u64, max: usize) -> Result<Vec<Value>, FrameError> {
        list(self.required(label)?, label, max)
    }

    /// Ends the body: a label nobody asked for is an error, never ignored.
    pub(crate) fn end(mut self) -> Result<(), FrameError> {
        match self.fields.next() {
            Some((label, _)) => Err(FrameError::Field { label }),
            None => Ok(()),
        }
    }
}

pub(crate) fn integer<T: TryFrom<i128>>(value: Value, label: u64) -> Result<T, FrameError> {
    let integer = value
        .into_integer()
        .map_err(|_| FrameError::Field { label })?;
    T::try_from(i128::from(integer)).map_err(|_| FrameError::Field { label })
}

pub(crate) fn bytes(value: Value, label: u64, max: usize) -> Result<Vec<u8>, FrameError> {
    let bytes = value
        .into_bytes()
        .map_err(|_| FrameError::Field { label })?;
    if bytes.len() > max {
        Err(FrameError::Field { label })
    } else {
        Ok(bytes)
    }
}

pub(crate) fn fixed<const N: usize>(value: Value, label: u64) -> Result<[u8; N], FrameError> {
    bytes(value, label, N)?
        .try_into()
        .map_err(|_| FrameError::Field { label })
}

pub(crate) fn list(value: Value, label: u64, max: usize) -> Result<Vec<Value>, FrameError> {
    let items = value
        .into_array()
        .map_err(|_| FrameError::Field { label })?;
    if items.len() > max {
        Err(FrameError::Field { label })
    } else {
        Ok(items)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_always_fills_the_block_and_is_never_longer_than_needed() {
        for len in 0..1_500 {
            let body = Body::default().with(1, vec![7u8; len]).done();
            let bare = PREFIX + seal(1, body.clone(), Padding::None).unwrap().len();
            let padded = PREFIX + seal(1, body, Padding::Job).unwrap().len();
            assert_eq!(padded % PAD_TO, 0, "at {len}");
            assert!(padded - bare <= PAD_TO + 25, "at {len}");
        }
    }

    #[test]
    fn only_the_one_spelling_is_accepted() {
        let good = seal(3, Body::default().with(1, 5).done(), Padding::None).unwrap();
        assert_eq!(good, [0x82, 0x03, 0xa1, 0x01, 0x05]);
        let cases: [(&str, &[u8]); 8] = [
            ("a longer integer", &[0x82, 0x18, 0x03, 0xa1, 0x01, 0x05]),
            ("an indefinite array", &[0x9f, 0x03, 0xa1, 0x01, 0x05, 0xff]),
            ("trailing bytes", &[0x82, 0x03, 0xa1, 0x01, 0x05, 0x00]),
            ("cut short", &[0x82, 0x03, 0xa1, 0x01]),
            (
                "a duplicate label",
                &[0x82, 0x03, 0xa2, 0x01, 0x05, 0x01, 0x05],
            ),
            (
                "labels out of order",
                &[0x82, 0x03, 0xa2, 0x02, 0x05, 0x01, 0x05],
            ),
            ("a third element", &[0x83, 0x03, 0xa1, 0x01, 0x05, 0x40]),
            ("a body that is no map", &[0x82, 0x03, 0x81, 0x01]),
        ];
        for (name, bytes) in cases {
            assert!(open(bytes, Padding::None).is_err(), "{name}");
        }
    }

    #[test]
    fn an_array_that_claims_to_be_huge_is_refused_without_allocating_it() {
        let bomb = [0x9a, 0xff, 0xff, 0xff, 0xff];
        assert!(matches!(
            open(&bomb, Padding::None),
            Err(FrameError::Cbor(_))
        ));
        let nested = vec![0x81; 60_000];
        assert!(matches!(
            open(&nested, Padding::None),
            Err(FrameError::Cbor(_))
        ));
    }
}
