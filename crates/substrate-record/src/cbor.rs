//! Deterministic CBOR (RFC 8949 §4.2.1), narrowed to what records use.
//!
//! Invariant: [`check`] runs over the raw bytes before anything is allocated for them. It admits
//! integers, byte strings, UTF-8 text, arrays, maps, `true` and `false`, in their only form:
//! shortest heads, definite lengths, map keys strictly ascending by their bytes, nothing after
//! the end. A length is believed only if that many bytes are there, and nesting has a bound.
//!
//! Absent by design: floats, tags, null, undefined, indefinite lengths, a lenient mode.

use ciborium::Value;

/// How deep a record may nest: one more than the deepest body (envelope, body, hardware, list of
/// GPUs, GPU) needs, so recursion stays within a few stack frames.
pub const MAX_DEPTH: usize = 6;

/// Why bytes are not deterministic CBOR, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{fault} at byte {offset}")]
pub struct CborError {
    /// Where the offending item begins.
    pub offset: usize,
    /// What is wrong with it.
    pub fault: CborFault,
}

/// What deterministic CBOR does not allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CborFault {
    /// The item says it is longer than the bytes that are left.
    #[error("item runs past the end")]
    Truncated,
    /// Bytes follow the one item there may be.
    #[error("trailing bytes")]
    TrailingBytes,
    /// A shorter head says the same.
    #[error("integer or length not in its shortest form")]
    NotShortest,
    /// Indefinite length, or a stray break.
    #[error("indefinite length")]
    Indefinite,
    /// A floating-point number.
    #[error("floating-point number")]
    Float,
    /// A tag.
    #[error("tag")]
    Tag,
    /// A simple value other than true and false.
    #[error("simple value other than true and false")]
    Simple,
    /// A head the CBOR standard reserves.
    #[error("reserved head")]
    Reserved,
    /// Nested past the bound.
    #[error("nested too deep")]
    TooDeep,
    /// The same key twice in one map.
    #[error("duplicate map key")]
    DuplicateKey,
    /// A key that sorts before its predecessor.
    #[error("map keys out of order")]
    KeyOrder,
    /// Text that is not UTF-8.
    #[error("text is not UTF-8")]
    NotUtf8,
    /// Another kind of item was needed here.
    #[error("expected {0}")]
    Expected(&'static str),
}

/// Checks that `bytes` are exactly one deterministic item nested at most `depth` deep.
///
/// # Errors
/// The first fault in reading order.
pub fn check(bytes: &[u8], depth: usize) -> Result<(), CborError> {
    let mut reader = Reader::new(bytes);
    reader.skip(depth)?;
    reader.end()
}

/// Decodes bytes that pass [`check`].
///
/// # Errors
/// What [`check`] finds.
pub fn decode(bytes: &[u8], depth: usize) -> Result<Value, CborError> {
    check(bytes, depth)?;
    ciborium::from_reader(bytes).map_err(|_| CborError {
        offset: 0,
        fault: CborFault::Expected("an item the CBOR library can represent"),
    })
}

/// Encodes a value. Lengths and integers take their shortest form; maps keep the order they are
/// given in, so the caller lists keys ascending.
pub fn encode(value: &Value) -> Vec<u8> {
    let mut bytes = Vec::new();
    ciborium::into_writer(value, &mut bytes).expect("writing to a vector cannot fail");
    bytes
}

/// Reads deterministic CBOR item by item and knows at which byte it stands.
#[derive(Debug)]
pub struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

const UINT: u8 = 0;
const BYTES: u8 = 2;
const TEXT: u8 = 3;
const ARRAY: u8 = 4;
const MAP: u8 = 5;
const TAG: u8 = 6;
const SIMPLE: u8 = 7;

impl<'a> Reader<'a> {
    /// Starts at the first byte.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// The offset of the next item.
    pub fn offset(&self) -> usize {
        self.at
    }

    /// Reads an unsigned integer.
    ///
    /// # Errors
    /// Another kind of item, or one that is not deterministic.
    pub fn uint(&mut self) -> Result<u64, CborError> {
        self.expect(UINT, "an unsigned integer")
    }

    /// Reads a byte string; [`Reader::offset`] minus its length is where its content began.
    ///
    /// # Errors
    /// As [`Reader::uint`].
    pub fn byte_string(&mut self) -> Result<&'a [u8], CborError> {
        let length = self.expect(BYTES, "bytes")?;
        self.take(length)
    }

    /// Reads the head of an array: how many items follow.
    ///
    /// # Errors
    /// As [`Reader::uint`].
    pub fn array(&mut self) -> Result<usize, CborError> {
        let start = self.at;
        let length = self.expect(ARRAY, "an array")?;
        self.plausible(start, length)
    }

    /// Reads the head of a map: how many pairs follow. The caller reads ascending keys.
    ///
    /// # Errors
    /// As [`Reader::uint`].
    pub fn map(&mut self) -> Result<usize, CborError> {
        let start = self.at;
        let pairs = self.expect(MAP, "a map")?;
        self.plausible(start, pairs.saturating_mul(2))?;
        self.plausible(start, pairs)
    }

    /// Requires that nothing is left.
    ///
    /// # Errors
    /// [`CborFault::TrailingBytes`].
    pub fn end(&self) -> Result<(), CborError> {
        if self.at == self.bytes.len() {
            return Ok(());
        }
        fault(self.at, CborFault::TrailingBytes)
    }

    /// Reads over one whole item, checking it, nested at most `depth` deep.
    ///
    /// # Errors
    /// The first fault in reading order.
    pub fn skip(&mut self, depth: usize) -> Result<(), CborError> {
        let start = self.at;
        let (major, argument) = self.head()?;
        match major {
            BYTES => self.take(argument).map(drop),
            TEXT => {
                let text = self.take(argument)?;
                match std::str::from_utf8(text) {
                    Ok(_) => Ok(()),
                    Err(_) => fault(start, CborFault::NotUtf8),
                }
            }
            ARRAY | MAP if depth == 0 => fault(start, CborFault::TooDeep),
            ARRAY => {
                let length = self.plausible(start, argument)?;
                (0..length).try_for_each(|_| self.skip(depth - 1))
            }
            MAP => {
                self.plausible(start, argument.saturating_mul(2))?;
                self.skip_pairs(argument, depth - 1)
            }
            _ => Ok(()),
        }
    }

    fn skip_pairs(&mut self, pairs: u64, depth: usize) -> Result<(), CborError> {
        let mut previous: Option<&[u8]> = None;
        for _ in 0..pairs {
            let start = self.at;
            self.skip(depth)?;
            let key = &self.bytes[start..self.at];
            match previous.map(|previous| previous.cmp(key)) {
                Some(std::cmp::Ordering::Equal) => return fault(start, CborFault::DuplicateKey),
                Some(std::cmp::Ordering::Greater) => return fault(start, CborFault::KeyOrder),
                _ => previous = Some(key),
            }
            self.skip(depth)?;
        }
        Ok(())
    }

    fn expect(&mut self, major: u8, what: &'static str) -> Result<u64, CborError> {
        let start = self.at;
        match self.head()? {
            (found, argument) if found == major => Ok(argument),
            _ => fault(start, CborFault::Expected(what)),
        }
    }

    /// Reads an item's head: its major type and its argument, in their only form.
    fn head(&mut self) -> Result<(u8, u64), CborError> {
        let start = self.at;
        let first = self.take(1)?[0];
        let (major, low) = (first >> 5, first & 0x1f);
        match (major, low) {
            (_, 31) => return fault(start, CborFault::Indefinite),
            (_, 28..=30) => return fault(start, CborFault::Reserved),
            (TAG, _) => return fault(start, CborFault::Tag),
            (SIMPLE, 20 | 21) => return Ok((major, 0)),
            (SIMPLE, 25..=27) => return fault(start, CborFault::Float),
            (SIMPLE, _) => return fault(start, CborFault::Simple),
            _ => {}
        }
        let width = match low {
            0..=23 => return Ok((major, u64::from(low))),
            24 => 1,
            25 => 2,
            26 => 4,
            _ => 8,
        };
        let argument = self
            .take(width)?
            .iter()
            .fold(0u64, |value, byte| value << 8 | u64::from(*byte));
        if argument < smallest_of_width(width) {
            return fault(start, CborFault::NotShortest);
        }
        Ok((major, argument))
    }

    fn take(&mut self, length: u64) -> Result<&'a [u8], CborError> {
        let left = &self.bytes[self.at..];
        let taken = usize::try_from(length)
            .ok()
            .and_then(|length| left.get(..length));
        match taken {
            Some(taken) => {
                self.at += taken.len();
                Ok(taken)
            }
            None => fault(self.at, CborFault::Truncated),
        }
    }

    /// Every item takes a byte at least, so a count beyond the bytes left is a lie.
    fn plausible(&self, start: usize, items: u64) -> Result<usize, CborError> {
        match usize::try_from(items) {
            Ok(items) if items <= self.bytes.len() - self.at => Ok(items),
            _ => fault(start, CborFault::Truncated),
        }
    }
}

fn smallest_of_width(width: u64) -> u64 {
    match width {
        1 => 24,
        2 => 1 << 8,
        4 => 1 << 16,
        _ => 1 << 32,
    }
}

fn fault<T>(offset: usize, fault: CborFault) -> Result<T, CborError> {
    Err(CborError { offset, fault })
}
