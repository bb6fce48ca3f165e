//! The few forms of deterministic CBOR (RFC 8949 §4.2.1) that an input is made of.
//!
//! Invariant: [`Reader`] accepts exactly what [`Writer`] writes: shortest heads, definite lengths,
//! known major types. So bytes that decode are canonical without being encoded again.
//!
//! Absent by design: a value tree. An input's depth is its type's depth, and no byte of the input
//! can make the reader recurse or allocate ahead of what it has seen.

const UNSIGNED: u8 = 0;
const NEGATIVE: u8 = 1;
const BYTES: u8 = 2;
const TEXT: u8 = 3;
const ARRAY: u8 = 4;
const MAP: u8 = 5;
const FALSE: u8 = 0xf4;
const TRUE: u8 = 0xf5;

/// Why bytes are not the CBOR that was expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CborError {
    /// The bytes end inside an item.
    #[error("ends inside an item")]
    Truncated,
    /// Another item was expected here.
    #[error("unexpected item 0x{0:02x}")]
    Unexpected(u8),
    /// A length or number is not in its shortest form, or has no definite length.
    #[error("not in shortest form")]
    NotShortest,
    /// A number is larger than its field.
    #[error("number out of range")]
    OutOfRange,
    /// Text is not UTF-8.
    #[error("text is not utf-8")]
    NotUtf8,
    /// Bytes follow the last item.
    #[error("{0} bytes after the last item")]
    Trailing(usize),
}

/// Writes canonical CBOR.
#[derive(Default)]
pub(super) struct Writer(pub Vec<u8>);

impl Writer {
    pub fn map(&mut self, entries: usize) {
        self.head(MAP, entries as u64);
    }

    pub fn array(&mut self, items: usize) {
        self.head(ARRAY, items as u64);
    }

    pub fn text(&mut self, text: &str) {
        self.head(TEXT, text.len() as u64);
        self.0.extend_from_slice(text.as_bytes());
    }

    pub fn bytes(&mut self, bytes: &[u8]) {
        self.head(BYTES, bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    pub fn unsigned(&mut self, n: u64) {
        self.head(UNSIGNED, n);
    }

    pub fn signed(&mut self, n: i32) {
        if n < 0 {
            self.head(NEGATIVE, u64::from(n.unsigned_abs()) - 1);
        } else {
            self.head(UNSIGNED, u64::from(n.unsigned_abs()));
        }
    }

    pub fn bool(&mut self, b: bool) {
        self.0.push(if b { TRUE } else { FALSE });
    }

    fn head(&mut self, major: u8, n: u64) {
        let major = major << 5;
        let bytes = n.to_be_bytes();
        match n {
            0..=23 => self.0.push(major | bytes[7]),
            24..=0xff => self.0.extend([major | 24, bytes[7]]),
            0x100..=0xffff => {
                self.0.push(major | 25);
                self.0.extend_from_slice(&bytes[6..]);
            }
            0x1_0000..=0xffff_ffff => {
                self.0.push(major | 26);
                self.0.extend_from_slice(&bytes[4..]);
            }
            _ => {
                self.0.push(major | 27);
                self.0.extend_from_slice(&bytes);
            }
        }
    }
}

/// Reads canonical CBOR.
pub(super) struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    pub fn map(&mut self) -> Result<u64, CborError> {
        self.expect(MAP)
    }

    pub fn array(&mut self) -> Result<u64, CborError> {
        self.expect(ARRAY)
    }

    pub fn text(&mut self) -> Result<&'a str, CborError> {
        let text = self.string(TEXT)?;
        std::str::from_utf8(text).map_err(|_| CborError::NotUtf8)
    }

    pub fn bytes(&mut self) -> Result<&'a [u8], CborError> {
        self.string(BYTES)
    }

    fn string(&mut self, major: u8) -> Result<&'a [u8], CborError> {
        let size = usize::try_from(self.expect(major)?).map_err(|_| CborError::Truncated)?;
        let (string, rest) = self.0.split_at_checked(size).ok_or(CborError::Truncated)?;
        self.0 = rest;
        Ok(string)
    }

    pub fn unsigned(&mut self) -> Result<u64, CborError> {
        self.expect(UNSIGNED)
    }

    pub fn u32(&mut self) -> Result<u32, CborError> {
        u32::try_from(self.unsigned()?).map_err(|_| CborError::OutOfRange)
    }

    pub fn i32(&mut self) -> Result<i32, CborError> {
        let (major, n) = self.head()?;
        let n = i32::try_from(n).map_err(|_| CborError::OutOfRange)?;
        match major {
            UNSIGNED => Ok(n),
            NEGATIVE => Ok(-1 - n),
            _ => Err(CborError::Unexpected(major << 5)),
        }
    }

    pub fn bool(&mut self) -> Result<bool, CborError> {
        match self.byte()? {
            FALSE => Ok(false),
            TRUE => Ok(true),
            other => Err(CborError::Unexpected(other)),
        }
    }

    pub fn finish(&self) -> Result<(), CborError> {
        match self.0.len() {
            0 => Ok(()),
            extra => Err(CborError::Trailing(extra)),
        }
    }

    fn expect(&mut self, wanted: u8) -> Result<u64, CborError> {
        match self.head()? {
            (major, n) if major == wanted => Ok(n),
            (major, _) => Err(CborError::Unexpected(major << 5)),
        }
    }

    fn head(&mut self) -> Result<(u8, u64), CborError> {
        let first = self.byte()?;
        let (major, low) = (first >> 5, first & 0x1f);
        let (n, least) = match low {
            0..=23 => (u64::from(low), 0),
            24 => (self.number(1)?, 24),
            25 => (self.number(2)?, 0x100),
            26 => (self.number(4)?, 0x1_0000),
            27 => (self.number(8)?, 0x1_0000_0000),
            _ => return Err(CborError::NotShortest),
        };
        if n < least {
            return Err(CborError::NotShortest);
        }
        Ok((major, n))
    }

    fn number(&mut self, bytes: usize) -> Result<u64, CborError> {
        (0..bytes).try_fold(0, |n, _| Ok(n << 8 | u64::from(self.byte()?)))
    }

    fn byte(&mut self) -> Result<u8, CborError> {
        let (first, rest) = self.0.split_first().ok_or(CborError::Truncated)?;
        self.0 = rest;
        Ok(*first)
    }
}
