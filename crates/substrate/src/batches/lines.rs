//! Lines of a batch, as their client wrote them: JSON, one object in each line.
//!
//! Invariants: never more than one row is held, and a row that is too long is not held at all; whatever a row is, it is
//! either a request that can be handed on or a fault with its place; rows of white space are no requests.
//! Absent by design: reading a request's body. Its endpoint does, as it reads everybody's.

use std::borrow::Cow;
use std::io::{self, BufRead};

use serde::Deserialize;
use serde_json::value::RawValue;

/// Longest row of a batch: a request's largest body (8 MiB), and room for what is around it.
pub const MAX_ROW: usize = (8 << 20) + (64 << 10);

/// Longest `custom_id`, in bytes. They come back with every answer, and in every fault.
pub const MAX_CUSTOM_ID: usize = 512;

/// What some programs write before the first byte of a text in UTF-8.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Rows of a file, one after the other.
pub struct Rows<R> {
    from: R,
    limit: usize,
    number: u32,
    offset: u64,
    row: Vec<u8>,
}

/// A row that is not empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row<'a> {
    /// Counted from 1, empty rows too.
    pub number: u32,
    /// Where it begins in the file.
    pub offset: u64,
    /// What is in it, without its end; nothing if it is too long.
    pub bytes: Option<&'a [u8]>,
    /// Whether its end was there.
    pub is_whole: bool,
}

impl<R: BufRead> Rows<R> {
    /// The rows of this file; those longer than `limit` are told without their bytes.
    pub fn new(from: R, limit: usize) -> Self {
        Self {
            from,
            limit,
            number: 0,
            offset: 0,
            row: Vec::new(),
        }
    }

    /// The next row that is not empty.
    ///
    /// # Errors
    /// The file's.
    pub fn next_row(&mut self) -> io::Result<Option<Row<'_>>> {
        loop {
            let begins = self.offset;
            let Some((fits, is_whole)) = self.read_row()? else {
                return Ok(None);
            };
            self.number = self.number.saturating_add(1);
            let mark = if begins == 0 && self.row.starts_with(BYTE_ORDER_MARK) {
                BYTE_ORDER_MARK.len()
            } else {
                0
            };
            if fits && self.row[mark..].iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            return Ok(Some(Row {
                number: self.number,
                offset: begins + mark as u64,
                bytes: fits.then(|| &self.row[mark..]),
                is_whole,
            }));
        }
    }

    /// Reads up to the next end of a row: whether it fits, and whether its end was there.
    fn read_row(&mut self) -> io::Result<Option<(bool, bool)>> {
        self.row.clear();
        let (mut fits, mut read) = (true, false);
        loop {
            let piece = self.from.fill_buf()?;
            if piece.is_empty() {
                return Ok(read.then_some((fits, false)));
            }
            read = true;
            let end = piece.iter().position(|byte| *byte == b'\n');
            let taken = &piece[..end.unwrap_or(piece.len())];
            fits = fits && self.row.len() + taken.len() <= self.limit;
            if fits {
                self.row.extend_from_slice(taken);
            } else {
                self.row.clear();
            }
            let used = end.map_or(piece.len(), |end| end + 1);
            self.from.consume(used);
            self.offset += used as u64;
            if end.is_some() {
                return Ok(Some((fits, true)));
            }
        }
    }
}

/// One request of a batch.
#[derive(Debug, PartialEq, Eq)]
pub struct Line<'a> {
    /// Its client's name for it.
    pub custom_id: Cow<'a, str>,
    /// What is asked of the endpoint: a JSON object, as it was written.
    pub body: &'a str,
}

/// What is wrong with a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// For programs.
    pub code: &'static str,
    /// The field at fault, if one is.
    pub param: Option<&'static str>,
    /// In plain words.
    pub message: String,
}

impl Fault {
    fn at(code: &'static str, param: &'static str, message: impl Into<String>) -> Self {
        Self {
            code,
            param: Some(param),
            message: message.into(),
        }
    }

    /// A row that is too long.
    pub fn too_long() -> Self {
        Self {
            code: "line_too_long",
            param: None,
            message: format!("this line is longer than {MAX_ROW} bytes"),
        }
    }

    /// A name that an earlier row has.
    pub fn duplicate(custom_id: &str) -> Self {
        let message = format!("custom_id '{custom_id}' is used by an earlier line");
        Self::at("duplicate_custom_id", "custom_id", message)
    }
}

/// A row's fields as they are, so that each is told of by its name.
#[derive(Deserialize)]
struct Raw<'a> {
    #[serde(borrow)]
    custom_id: Option<&'a RawValue>,
    #[serde(borrow)]
    method: Option<&'a RawValue>,
    #[serde(borrow)]
    url: Option<&'a RawValue>,
    #[serde(borrow)]
    body: Option<&'a RawValue>,
}

/// What is looked at in a body.
#[derive(Deserialize)]
struct Peek<'a> {
    #[serde(borrow)]
    stream: Option<&'a RawValue>,
}

/// Reads one row of a batch for this endpoint.
///
/// # Errors
/// What is wrong with it.
pub fn read<'a>(row: &'a [u8], endpoint: &str) -> Result<Line<'a>, Fault> {
    let broken = |error: serde_json::Error| Fault {
        code: "invalid_json_line",
        param: None,
        message: format!("this line is not a JSON object: {error}"),
    };
    // Serde would also take a list, field by field.
    if row.trim_ascii_start().first() != Some(&b'{') {
        return Err(Fault {
            code: "invalid_json_line",
            param: None,
            message: "this line is not a JSON object".into(),
        });
    }
    let raw: Raw<'a> = serde_json::from_slice(row).map_err(broken)?;
    let custom_id = custom_id(raw.custom_id)?;
    match text(raw.method, "method")? {
        Some(method) if method == "POST" => {}
        _ => return Err(Fault::at("invalid_method", "method", "method must be POST")),
    }
    match text(raw.url, "url")? {
        Some(url) if url == endpoint => {}
        _ => {
            let why = format!("url must be the batch's endpoint, {endpoint}");
            return Err(Fault::at("invalid_url", "url", why));
        }
    }
    Ok(Line {
        custom_id,
        body: body(raw.body)?,
    })
}

fn custom_id(raw: Option<&RawValue>) -> Result<Cow<'_, str>, Fault> {
    let wrong = |why: String| Fault::at("invalid_custom_id", "custom_id", why);
    let Some(id) = text(raw, "custom_id")? else {
        return Err(wrong("custom_id is required".into()));
    };
    if id.is_empty() || id.len() > MAX_CUSTOM_ID {
        let why = format!(
            "custom_id must have 1 to {MAX_CUSTOM_ID} bytes, not {}",
            id.len()
        );
        return Err(wrong(why));
    }
    Ok(id)
}

fn body(raw: Option<&RawValue>) -> Result<&str, Fault> {
    let wrong = |why: &str| Fault::at("invalid_body", "body", why);
    let text = raw.map(RawValue::get).unwrap_or_default();
    if !text.starts_with('{') {
        return Err(wrong("body must be a JSON object"));
    }
    let peek: Peek<'_> =
        serde_json::from_str(text).map_err(|error| wrong(&format!("body: {error}")))?;
    let streams = peek.stream.map(RawValue::get);
    if !matches!(streams, None | Some("false" | "null")) {
        let why = "a line of a batch has no stream; leave it out, or set it to false";
        return Err(Fault::at("invalid_value", "body.stream", why));
    }
    Ok(text)
}

/// A string, or nothing.
fn text<'a>(raw: Option<&'a RawValue>, param: &'static str) -> Result<Option<Cow<'a, str>>, Fault> {
    #[derive(Deserialize)]
    struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

    let Some(raw) = raw else {
        return Ok(None);
    };
    match serde_json::from_str(raw.get()) {
        Ok(Text(text)) => Ok(Some(text)),
        Err(_) => {
            let why = format!("{param} must be a string");
            Err(Fault::at("invalid_type", param, why))
        }
    }
}

#[cfg(test)]
#[path = "lines_tests.rs"]
mod tests;
