//! Where an answer in JSON stands in a number, so that no number is written without end.
//!
//! A schema's `number` may have any number of digits (RFC 8259, section 6), and a model that has fallen into 3.3333…
//! never leaves it. Digits beyond what a double keeps change nothing for most readers, exponents beyond its range
//! break some; so both are bounded.
//!
//! Absent by design: whether the text is JSON at all, which the grammar sees to (`grammar.rs`).

/// Digits in a row: a double has 17 that matter (IEEE 754 binary64, round trip), a 64-bit integer up to 20.
const MAX_DIGITS: usize = 20;

/// Digits of an exponent: 1e99 fits every double, 1e999 none.
const MAX_EXPONENT: usize = 2;

/// Reads the bytes of an answer as they come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Numerals {
    /// Between values, or in a word such as `true`.
    #[default]
    Outside,
    /// In a string.
    Text,
    /// In a string, after a backslash.
    Escape,
    /// In a number, after so many digits in a row.
    Digits(usize),
    /// In a number's exponent, after so many digits.
    Exponent(usize),
}

impl Numerals {
    /// Goes on after `bytes`.
    pub fn read(&mut self, bytes: &[u8]) {
        for byte in bytes {
            *self = self.after(*byte);
        }
    }

    fn after(self, byte: u8) -> Numerals {
        match (self, byte) {
            (Numerals::Text, b'\\') => Numerals::Escape,
            (Numerals::Text, b'"') => Numerals::Outside,
            (Numerals::Text | Numerals::Escape, _) | (_, b'"') => Numerals::Text,
            (Numerals::Exponent(n), b'0'..=b'9') => Numerals::Exponent(n + 1),
            (Numerals::Exponent(n), b'+' | b'-') => Numerals::Exponent(n),
            (Numerals::Digits(n), b'0'..=b'9') => Numerals::Digits(n + 1),
            (Numerals::Digits(_), b'.') => Numerals::Digits(0),
            (Numerals::Digits(_), b'e' | b'E') => Numerals::Exponent(0),
            (_, b'0'..=b'9') => Numerals::Digits(1),
            _ => Numerals::Outside,
        }
    }

    /// How many digits may come next.
    pub fn room(self) -> usize {
        match self {
            Numerals::Text | Numerals::Escape => usize::MAX,
            Numerals::Outside => MAX_DIGITS,
            Numerals::Digits(n) => MAX_DIGITS.saturating_sub(n),
            Numerals::Exponent(n) => MAX_EXPONENT.saturating_sub(n),
        }
    }
}

/// How many digits `word` begins with.
pub fn leading_digits(word: &[u8]) -> usize {
    word.iter().take_while(|byte| byte.is_ascii_digit()).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room(text: &str) -> usize {
        let mut numerals = Numerals::default();
        numerals.read(text.as_bytes());
        numerals.room()
    }

    #[test]
    fn digits_in_a_row_are_counted() {
        for (text, left) in [
            ("", 20),
            (r#"{"a": 1"#, 19),
            (r#"{"a": -12"#, 18),
            (r#"{"a": 1234."#, 20),
            (r#"{"a": 0.333"#, 17),
            ("[1234567890, ", 20),
            ("12345678901234567890", 0),
            ("3.333333333333333333333", 0),
            ("1e", 2),
            ("1E+", 2),
            ("1.5e-3", 1),
            ("1e300", 0),
            ("[true, 1", 19),
        ] {
            assert_eq!(room(text), left, "{text}");
        }
    }

    #[test]
    fn digits_of_a_text_are_not() {
        assert_eq!(room(r#"{"number": "1234567890123456789012345"#), usize::MAX);
        assert_eq!(room(r#"["a\"1234567890123456789012345"#), usize::MAX);
        assert_eq!(room(r#"["a\\", 12"#), 18);
    }

    #[test]
    fn words_tell_how_many_digits_they_begin_with() {
        assert_eq!(leading_digits(b"12a3"), 2);
        assert_eq!(leading_digits(b".5"), 0);
        assert_eq!(leading_digits(b""), 0);
    }
}
