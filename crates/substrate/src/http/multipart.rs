//! Forms with files in them (`multipart/form-data`, RFC 7578), taken apart as their bytes come.
//!
//! Invariants: whatever comes, in whatever pieces, no more is held than a boundary's length, one part's head, and the
//! piece at hand; the same form gives the same parts however it was cut.
//! Absent by design: encodings of parts (RFC 7578 4.7 ends them), and forms inside of forms.

use std::borrow::Cow;

/// Longest boundary: RFC 2046 5.1.1.
const MAX_BOUNDARY: usize = 70;

/// Longest head of a part: a name and a file's name of 255 bytes, many times over.
const MAX_HEAD: usize = 4 << 10;

/// Most parts of a form: a file, and the few fields that there are.
const MAX_PARTS: u32 = 16;

/// Why a form cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FormError {
    /// Another type, or none.
    #[error("content-type must be multipart/form-data with a boundary")]
    NotAForm,
    /// The bytes after a boundary are none of what may follow it.
    #[error(
        "the form is broken: a boundary is followed by something else than the end of its line"
    )]
    Broken,
    /// The head of a part is too long.
    #[error("the head of a part of the form is longer than {MAX_HEAD} bytes")]
    HeadTooLong,
    /// The head of a part does not name its field.
    #[error("a part of the form does not name its field")]
    Nameless,
    /// Too many parts.
    #[error("the form has more than {MAX_PARTS} parts")]
    TooMany,
    /// The last boundary did not come.
    #[error("the form broke off")]
    BrokeOff,
}

/// What is in a form, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// A field begins.
    Field {
        /// Its name.
        name: String,
        /// Its file's name, if it is a file.
        filename: Option<String>,
    },
    /// More of the field.
    Bytes(Vec<u8>),
    /// The field is over.
    End,
}

/// Takes a form apart.
pub struct Decoder {
    /// The boundary with what is before it.
    delimiter: Vec<u8>,
    held: Vec<u8>,
    state: State,
    parts: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Before the first boundary.
    Before,
    /// Right after a boundary.
    Boundary,
    Head,
    Body,
    /// After the last boundary.
    Over,
}

impl Decoder {
    /// A decoder for a body of this `Content-Type`.
    ///
    /// # Errors
    /// It is no form's.
    pub fn new(content_type: &str) -> Result<Self, FormError> {
        let (kind, parameters) = content_type.split_once(';').unwrap_or((content_type, ""));
        if !kind.trim().eq_ignore_ascii_case("multipart/form-data") {
            return Err(FormError::NotAForm);
        }
        let boundary = parameter(parameters, "boundary").ok_or(FormError::NotAForm)?;
        if boundary.is_empty() || boundary.len() > MAX_BOUNDARY {
            return Err(FormError::NotAForm);
        }
        Ok(Self {
            delimiter: [b"\r\n--", boundary.as_bytes()].concat(),
            // The first boundary may stand at the very beginning.
            held: b"\r\n".to_vec(),
            state: State::Before,
            parts: 0,
        })
    }

    /// Takes more bytes. Returns what is sure.
    ///
    /// # Errors
    /// The form cannot be read; nothing more of it can.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Vec<Piece>, FormError> {
        self.held.extend_from_slice(bytes);
        let mut pieces = Vec::new();
        while self.step(&mut pieces)? {}
        Ok(pieces)
    }

    /// The bytes are over.
    ///
    /// # Errors
    /// The form is not.
    pub fn finish(&self) -> Result<(), FormError> {
        match self.state {
            State::Over => Ok(()),
            _ => Err(FormError::BrokeOff),
        }
    }

    /// One step; false if more bytes are needed.
    fn step(&mut self, pieces: &mut Vec<Piece>) -> Result<bool, FormError> {
        match self.state {
            State::Before => Ok(self.pass(None)),
            State::Body => Ok(self.pass(Some(pieces))),
            State::Boundary => self.after_boundary(),
            State::Head => self.head(pieces),
            State::Over => {
                self.held.clear();
                Ok(false)
            }
        }
    }

    /// Goes on to the next boundary; what is before it is the field's, if there is one.
    fn pass(&mut self, pieces: Option<&mut Vec<Piece>>) -> bool {
        let found = find(&self.held, &self.delimiter);
        // The end of what is held may be the beginning of a boundary.
        let sure =
            found.unwrap_or_else(|| (self.held.len() + 1).saturating_sub(self.delimiter.len()));
        let before: Vec<u8> = self.held.drain(..sure).collect();
        if let Some(pieces) = pieces {
            if !before.is_empty() {
                pieces.push(Piece::Bytes(before));
            }
            if found.is_some() {
                pieces.push(Piece::End);
            }
        }
        if found.is_some() {
            self.held.drain(..self.delimiter.len());
            self.state = State::Boundary;
        }
        found.is_some()
    }

    fn after_boundary(&mut self) -> Result<bool, FormError> {
        // Senders may pad the line (RFC 2046 5.1.1).
        let padding = self
            .held
            .iter()
            .take_while(|byte| matches!(byte, b' ' | b'\t'));
        let padding = padding.count();
        self.held.drain(..padding);
        match self.held.get(..2) {
            None => Ok(false),
            Some(b"\r\n") => {
                self.held.drain(..2);
                self.parts += 1;
                if self.parts > MAX_PARTS {
                    return Err(FormError::TooMany);
                }
                self.state = State::Head;
                Ok(true)
            }
            Some(b"--") => {
                self.state = State::Over;
                Ok(true)
            }
            Some(_) => Err(FormError::Broken),
        }
    }

    fn head(&mut self, pieces: &mut Vec<Piece>) -> Result<bool, FormError> {
        let Some(end) = find(&self.held, b"\r\n\r\n") else {
            // Its end may have begun.
            return match self.held.len() > MAX_HEAD + 3 {
                true => Err(FormError::HeadTooLong),
                false => Ok(false),
            };
        };
        if end > MAX_HEAD {
            return Err(FormError::HeadTooLong);
        }
        let head: Vec<u8> = self.held.drain(..end).collect();
        pieces.push(field(&head)?);
        self.held.drain(..4);
        self.state = State::Body;
        Ok(true)
    }
}

/// Where `wanted` begins.
fn find(held: &[u8], wanted: &[u8]) -> Option<usize> {
    let (first, _) = wanted.split_first()?;
    let mut from = 0;
    while let Some(at) = held[from..].iter().position(|byte| byte == first) {
        if held[from + at..].starts_with(wanted) {
            return Some(from + at);
        }
        from += at + 1;
    }
    None
}

/// The field that a part's head names.
fn field(head: &[u8]) -> Result<Piece, FormError> {
    let head = std::str::from_utf8(head).map_err(|_| FormError::Nameless)?;
    let disposition = head.split("\r\n").find_map(|line| {
        let (name, value) = line.split_once(':')?;
        let is_it = name.trim().eq_ignore_ascii_case("content-disposition");
        is_it.then_some(value)
    });
    let (kind, parameters) = disposition
        .and_then(|value| value.split_once(';'))
        .ok_or(FormError::Nameless)?;
    if !kind.trim().eq_ignore_ascii_case("form-data") {
        return Err(FormError::Nameless);
    }
    let name = parameter(parameters, "name").ok_or(FormError::Nameless)?;
    Ok(Piece::Field {
        name: plain(&name),
        filename: parameter(parameters, "filename").map(|name| plain(&name)),
    })
}

/// The value of a parameter in `a=b; c="d"`.
fn parameter<'a>(parameters: &'a str, wanted: &str) -> Option<Cow<'a, str>> {
    let mut rest = parameters;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ';']);
        let (name, after) = rest.split_once('=')?;
        let (value, after) = match after.strip_prefix('"') {
            Some(quoted) => quoted_text(quoted)?,
            None => {
                let end = after.find(';').unwrap_or(after.len());
                (Cow::Borrowed(after[..end].trim_end()), &after[end..])
            }
        };
        if name.trim().eq_ignore_ascii_case(wanted) {
            return Some(value);
        }
        rest = after;
    }
}

/// A quoted text up to its closing quote, and what is after it.
fn quoted_text(text: &str) -> Option<(Cow<'_, str>, &str)> {
    let mut value = String::new();
    let mut letters = text.char_indices();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '"' => return Some((Cow::Owned(value), &text[at + 1..])),
            // Only quotes and itself: a path of Windows has the sign as it is.
            '\\' => match letters.clone().next() {
                Some((_, escaped @ ('"' | '\\'))) => {
                    letters.next();
                    value.push(escaped);
                }
                _ => value.push('\\'),
            },
            letter => value.push(letter),
        }
    }
    None
}

/// A name as it was before HTML's rules for forms took its quotes and ends of lines away.
fn plain(name: &str) -> String {
    name.replace("%22", "\"")
        .replace("%0D", "\r")
        .replace("%0A", "\n")
}

#[cfg(test)]
#[path = "multipart_tests.rs"]
mod tests;
