//! JSON as Python's `json.dumps` writes it: the form that models were trained on.
//!
//! Invariant: with the default layout the text is what transformers' `tojson` gives.
//! Absent by design: HTML escaping, which Jinja's own filter does and chat templates must not have.

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, Value};
use serde_json::Value as Json;

/// How deep a value may nest: Python's own parser gives up near 1,000, real schemas stay below 20.
const MAX_DEPTH: usize = 128;

/// Spacing and order.
pub struct Layout {
    /// Spaces per level; one line if absent.
    pub indent: Option<usize>,
    /// Between items.
    pub item: String,
    /// Between key and value.
    pub key: String,
    /// Whether everything but ASCII is escaped.
    pub ascii: bool,
    /// Whether keys are sorted.
    pub sort: bool,
}

impl Default for Layout {
    fn default() -> Layout {
        Layout {
            indent: None,
            item: ", ".into(),
            key: ": ".into(),
            ascii: false,
            sort: false,
        }
    }
}

/// The text of a template value.
pub fn write(value: &Value, layout: &Layout) -> Result<String, Error> {
    let mut out = String::new();
    Writer {
        layout,
        out: &mut out,
    }
    .value(value, 0)?;
    Ok(out)
}

/// The text of a JSON value in the default layout.
pub fn spaced(json: &Json) -> String {
    let value = crate::conversation::json_to_value(json.clone());
    write(&value, &Layout::default()).unwrap_or_else(|_| json.to_string())
}

struct Writer<'a> {
    layout: &'a Layout,
    out: &'a mut String,
}

impl Writer<'_> {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        let refuse = |why: &'static str| Err(Error::new(ErrorKind::BadSerialization, why));
        if depth > MAX_DEPTH {
            return refuse("nested too deeply");
        }
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self
                .out
                .push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.out.push_str(&value.to_string()),
            ValueKind::String => self.text(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.list(('[', ']'), &items, depth, |w, item| {
                    w.value(item, depth + 1)
                })?;
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.layout.sort {
                    keys.sort_by_key(|key| key.to_string());
                }
                self.list(('{', '}'), &keys, depth, |w, key| {
                    w.text(&key.to_string());
                    w.out.push_str(&w.layout.key);
                    w.value(&value.get_item(key)?, depth + 1)
                })?;
            }
            ValueKind::Undefined => return refuse("undefined has no json"),
            _ => return refuse("no json for this value"),
        }
        Ok(())
    }

    fn list(
        &mut self,
        (open, close): (char, char),
        items: &[Value],
        depth: usize,
        mut each: impl FnMut(&mut Self, &Value) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.out.push(open);
        for (index, item) in items.iter().enumerate() {
            if index > 0 {
                self.out.push_str(&self.layout.item);
            }
            self.new_line(depth + 1);
            each(self, item)?;
        }
        if !items.is_empty() {
            self.new_line(depth);
        }
        self.out.push(close);
        Ok(())
    }

    fn new_line(&mut self, depth: usize) {
        if let Some(indent) = self.layout.indent {
            self.out.push('\n');
            self.out.extend(std::iter::repeat_n(' ', indent * depth));
        }
    }

    fn text(&mut self, text: &str) {
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                c if c < ' ' || (self.layout.ascii && !c.is_ascii()) => self.escape(c),
                c => self.out.push(c),
            }
        }
        self.out.push('"');
    }

    fn escape(&mut self, c: char) {
        for unit in c.encode_utf16(&mut [0; 2]) {
            self.out.push_str(&format!("\\u{unit:04x}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected texts are what Python 3 prints for `json.dumps(…, ensure_ascii=False)`.
    fn check(json: &str, layout: Layout, expected: &str) {
        let json = serde_json::from_str(json).expect("test JSON");
        let value = crate::conversation::json_to_value(json);
        assert_eq!(write(&value, &layout).expect("writable"), expected);
    }

    #[test]
    fn the_default_layout_is_pythons() {
        check(
            r#"{"b":[1,2.5,-3,true,null],"a":{},"é<":"\u0001\"\\\n/\u007f🦀","l":[]}"#,
            Layout::default(),
            "{\"b\": [1, 2.5, -3, true, null], \"a\": {}, \"é<\": \"\\u0001\\\"\\\\\\n/\u{7f}🦀\", \"l\": []}",
        );
    }

    #[test]
    fn indent_sort_and_ascii_are_pythons_too() {
        let layout = Layout {
            indent: Some(2),
            item: ",".into(),
            ascii: true,
            sort: true,
            ..Layout::default()
        };
        let expected = "{\n  \"a\": [\n    1,\n    {}\n  ],\n  \"b\": \"\\ud83e\\udd80\\u00e9\"\n}";
        check(r#"{"b":"🦀é","a":[1,{}]}"#, layout, expected);
    }
}
