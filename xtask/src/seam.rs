//! Seams: whether an answer that moved to another node is the answer that was never broken.
//!
//! PROTOCOL.md 3: two greedy texts may part only at a near-tie, because prefill and decode round differently. The judge
//! is each answer's own best tokens, which the stream tells: a repeated or a missing word at the seam is a token that the
//! unbroken answer did not consider there. Where three or more lie within a near-tie of the best, any of them may be the
//! other's.
//!
//! Invariant: the limit is the worker's measured constant, read from its source, so that there is one.

use anyhow::{Context, Result};

use crate::stream::{Answer, Token};

/// The file with the measurement. The worker is never linked here: it brings llama.cpp.
const MEASURED: &str = include_str!("../../crates/substrate-worker/src/near_tie.rs");

/// How two greedy answers to one question compare.
#[derive(Debug, Clone, PartialEq)]
pub enum Seam {
    /// Token for token the same.
    Equal,
    /// They part where what both went on with was close.
    NearTie {
        /// Tokens they share.
        after: usize,
        /// Between the best and the other's choice there, in logits.
        gap: f64,
    },
    /// They part where they must not.
    Apart {
        /// Tokens they share.
        after: usize,
        /// What is wrong, for people.
        why: String,
    },
}

/// Compares an unbroken answer with one that was broken. Both were asked with [`crate::stream::Chat::with_two_best`].
///
/// # Errors
/// An answer came without its tokens.
pub fn judge(unbroken: &Answer, broken: &Answer) -> Result<Seam> {
    anyhow::ensure!(
        !unbroken.tokens.is_empty() && !broken.tokens.is_empty(),
        "an answer came without its tokens"
    );
    let pairs = unbroken.tokens.iter().zip(&broken.tokens);
    let after = pairs
        .take_while(|(left, right)| left.bytes == right.bytes)
        .count();
    let (left, right) = (unbroken.tokens.get(after), broken.tokens.get(after));
    if left.is_none() && right.is_none() {
        return Ok(match unbroken.text == broken.text {
            true => Seam::Equal,
            false => Seam::Apart {
                after,
                why: "the tokens are the same and the texts are not".to_owned(),
            },
        });
    }
    let limit = near_tie()?;
    Ok(match near(left, right).or_else(|| near(right, left)) {
        Some(gap) if gap <= limit => Seam::NearTie { after, gap },
        Some(gap) => Seam::Apart {
            after,
            why: format!("they chose {gap:.4} apart there, a near-tie has at most {limit}"),
        },
        None => Seam::Apart {
            after,
            why: format!("{left:?} and {right:?} are not among each other's best"),
        },
    })
}

/// How far below the best of `chosen` lies what the other answer went on with, if it is among the best there. An answer
/// that ended there chose the end, whose token has no text.
fn near(chosen: Option<&Token>, other: Option<&Token>) -> Option<f64> {
    let (best, rest) = chosen?.best.split_first()?;
    let other = other.map_or(&[][..], |token| &token.bytes);
    let is_end = |bytes: &[u8]| bytes.is_empty() || bytes.starts_with(b"<|");
    let is_other = |bytes: &[u8]| bytes == other || (other.is_empty() && is_end(bytes));
    let found = rest.iter().find(|(bytes, _)| is_other(bytes))?;
    (best.0 == chosen?.bytes).then_some(best.1 - found.1)
}

/// The largest gap that still is a near-tie, in logits: twice what the worker's build measured.
///
/// # Errors
/// The worker's source does not tell it any more.
pub fn near_tie() -> Result<f64> {
    let line = MEASURED
        .lines()
        .find_map(|line| line.strip_prefix("pub const MEASURED_P999: f64 = "))
        .context("near_tie.rs tells no MEASURED_P999")?;
    Ok(2.0 * line.trim_end_matches(';').parse::<f64>()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Words with their second best and its distance.
    fn answer(words: &[(&str, &str, f64)]) -> Answer {
        let token = |(word, second, gap): &(&str, &str, f64)| Token {
            bytes: word.as_bytes().to_vec(),
            best: vec![
                (word.as_bytes().to_vec(), -0.5),
                (second.as_bytes().to_vec(), -0.5 - gap),
            ],
        };
        Answer {
            text: words.iter().map(|(word, ..)| *word).collect(),
            tokens: words.iter().map(token).collect(),
            ..Answer::default()
        }
    }

    #[test]
    fn answers_may_part_at_a_near_tie_only() {
        let unbroken = answer(&[("a", "x", 3.0), ("b", "c", 0.25), ("d", "e", 3.0)]);
        let judged = |words: &[(&str, &str, f64)]| judge(&unbroken, &answer(words)).unwrap();
        assert_eq!(
            judged(&[("a", "x", 3.0), ("b", "c", 0.3), ("d", "e", 3.0)]),
            Seam::Equal
        );
        assert_eq!(
            judged(&[("a", "x", 3.0), ("c", "b", 0.1)]),
            Seam::NearTie {
                after: 1,
                gap: 0.25
            }
        );
        let wide = [("x", "a", 2.9)];
        assert!(matches!(judged(&wide), Seam::Apart { after: 0, .. }));
        let third = answer(&[("a", "x", 3.0), ("z", "c", 0.25)]);
        let mut three = unbroken.clone();
        three.tokens[1].best.push((b"z".to_vec(), -0.9));
        assert!(matches!(
            judge(&three, &third).unwrap(),
            Seam::NearTie { after: 1, .. }
        ));
        // A word that is repeated at the seam is nobody's second best.
        let repeated = [("a", "x", 3.0), ("a", "q", 0.1), ("b", "c", 0.25)];
        assert!(matches!(judged(&repeated), Seam::Apart { after: 1, .. }));
        let ended = answer(&[("a", "x", 3.0)]);
        let with_end = answer(&[("a", "x", 3.0), ("b", "<|im_end|>", 0.2)]);
        assert!(matches!(
            judge(&with_end, &ended).unwrap(),
            Seam::NearTie { after: 1, .. }
        ));
    }

    #[test]
    fn the_limit_is_the_workers() {
        assert!(near_tie().unwrap() > 0.0);
    }
}
