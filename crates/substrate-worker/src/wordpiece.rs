//! What a text looks like to a WordPiece vocabulary, where llama.cpp's own reading falls short of the one that models
//! were trained with (BERT's uncased tokenizer): canonical decomposition of every script, marks that take no room left
//! out, and words that are too long unknown.
//!
//! llama.cpp does the rest: lower case, white space, punctuation, and the ideographs that stand alone.
//! Invariant: total, and no longer than the decomposition of what came.

use unicode_normalization::UnicodeNormalization;
use unicode_properties::{GeneralCategory, UnicodeGeneralCategory};

/// Characters of a word beyond which BERT's tokenizer gives it up.
const LONGEST_WORD: usize = 100;

/// The token for what is not known, as a text may name it.
const UNKNOWN: &str = "[UNK]";

/// The text as the vocabulary wants it.
pub fn normalised(text: &str) -> String {
    let stripped = text
        .nfd()
        .filter(|c| c.general_category() != GeneralCategory::NonspacingMark);
    let mut out = String::with_capacity(text.len());
    // Bytes and characters of the word that `out` ends with.
    let (mut bytes, mut characters) = (0, 0);
    for c in stripped {
        if c.is_alphanumeric() && !stands_alone(c) {
            bytes += c.len_utf8();
            characters += 1;
        } else {
            end_word(&mut out, bytes, characters);
            (bytes, characters) = (0, 0);
        }
        out.push(c);
    }
    end_word(&mut out, bytes, characters);
    out
}

fn end_word(out: &mut String, bytes: usize, characters: usize) {
    if characters > LONGEST_WORD {
        out.truncate(out.len() - bytes);
        out.push_str(UNKNOWN);
    }
}

/// Ideographs are words of their own (`_is_chinese_char` of BERT's reference tokenizer).
fn stands_alone(c: char) -> bool {
    matches!(u32::from(c),
        0x4E00..=0x9FFF | 0x3400..=0x4DBF | 0xF900..=0xFAFF | 0x2_0000..=0x2_A6DF
        | 0x2_A700..=0x2_B73F | 0x2_B740..=0x2_B81F | 0x2_B820..=0x2_CEAF | 0x2_F800..=0x2_FA1F)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_without_room_are_left_out_and_syllables_taken_apart() {
        assert_eq!(normalised("naïve Café"), "naive Cafe");
        assert_eq!(normalised("\u{ac00}"), "\u{1100}\u{1161}");
        // The vowel below goes, the one beside stays.
        assert_eq!(
            normalised("\u{92a}\u{941}\u{930}\u{940}"),
            "\u{92a}\u{930}\u{940}"
        );
    }

    #[test]
    fn a_word_that_is_too_long_is_unknown_and_its_neighbours_stay() {
        let long = "x".repeat(101);
        assert_eq!(normalised(&format!("a {long}, b")), "a [UNK], b");
        let fits = "x".repeat(100);
        assert_eq!(normalised(&fits), fits);
        let ideographs = "\u{4e2d}".repeat(200);
        assert_eq!(normalised(&ideographs), ideographs);
    }
}
