//! Where in a settings file something is: keys of byte positions, lines and columns of both.
//!
//! The parser says at which bytes it stopped; people think in keys and lines.

use std::ops::Range;
use std::path::Path;
use std::string::FromUtf8Error;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::ConfigError;

/// Which keys a file sets, so that the environment fills in only the others.
pub(super) struct Said(Vec<String>);

impl Said {
    /// The dotted keys of a text that parses; none of one that does not.
    pub(super) fn of(text: &str) -> Self {
        let mut keys = Vec::new();
        if let Ok(table) = DeTable::parse(text) {
            walk(table.get_ref(), "", &mut |key, _| keys.push(key.to_owned()));
        }
        Self(keys)
    }

    pub(super) fn says(&self, key: &str) -> bool {
        self.0.iter().any(|said| said == key)
    }
}

/// A parser's error with the key and the line it is about.
pub(super) fn bad(text: &str, path: &Path, error: &toml::de::Error) -> ConfigError {
    let span = error.span().unwrap_or(0..0);
    let (line, column) = position(text, span.start);
    let key = key_at(text, &span).unwrap_or_else(|| key_of_line(text, line));
    let why = error
        .message()
        .lines()
        .next()
        .unwrap_or("not TOML")
        .to_owned();
    ConfigError::Bad {
        path: path.to_path_buf(),
        line,
        column,
        key,
        why,
    }
}

/// A file that is not UTF-8 text.
pub(super) fn not_text(path: &Path, error: &FromUtf8Error) -> ConfigError {
    let good = error.utf8_error().valid_up_to();
    let text = String::from_utf8_lossy(&error.as_bytes()[..good]).into_owned();
    let (line, column) = position(&text, good);
    let key = key_of_line(&text, line);
    ConfigError::Bad {
        path: path.to_path_buf(),
        line,
        column,
        key,
        why: "not UTF-8 text".to_owned(),
    }
}

/// The innermost key whose name or value holds the span.
fn key_at(text: &str, span: &Range<usize>) -> Option<String> {
    let table = DeTable::parse(text).ok()?;
    let mut found: Option<(usize, String)> = None;
    walk(table.get_ref(), "", &mut |key, place| {
        let holds = place.start <= span.start && span.end <= place.end;
        let size = place.len();
        if holds && found.as_ref().is_none_or(|(least, _)| size <= *least) {
            found = Some((size, key.to_owned()));
        }
    });
    found.map(|(_, key)| key)
}

/// Calls `visit` with every dotted key, once with the name's place and once with the value's.
fn walk(table: &DeTable<'_>, prefix: &str, visit: &mut dyn FnMut(&str, Range<usize>)) {
    for (name, value) in table.iter() {
        let key = if prefix.is_empty() {
            name.get_ref().to_string()
        } else {
            format!("{prefix}.{}", name.get_ref())
        };
        visit(&key, name.span());
        walk_value(value, &key, visit);
    }
}

fn walk_value(value: &Spanned<DeValue<'_>>, key: &str, visit: &mut dyn FnMut(&str, Range<usize>)) {
    visit(key, value.span());
    match value.get_ref() {
        DeValue::Table(inner) => walk(inner, key, visit),
        DeValue::Array(items) => items.iter().for_each(|item| walk_value(item, key, visit)),
        _ => {}
    }
}

/// What stands before the `=` of a line that does not parse.
fn key_of_line(text: &str, line: usize) -> String {
    let line = text.lines().nth(line - 1).unwrap_or("");
    let key = line.split('=').next().unwrap_or("").trim();
    if key.is_empty() {
        "(no key)".to_owned()
    } else {
        key.chars().take(64).collect()
    }
}

/// Line and column of a byte, both from 1.
fn position(text: &str, byte: usize) -> (usize, usize) {
    let byte = (0..=byte.min(text.len()))
        .rev()
        .find(|at| text.is_char_boundary(*at))
        .unwrap_or(0);
    let before = &text[..byte];
    let start = before.rfind('\n').map_or(0, |at| at + 1);
    (
        before.matches('\n').count() + 1,
        before[start..].chars().count() + 1,
    )
}
