//! Guesses at the next tokens of an answer: what followed the last time these tokens came (prompt lookup decoding: Saxena 2023,
//! github.com/apoorvumang/prompt-lookup-decoding; a form of speculative decoding, arXiv 2211.17192).
//!
//! Answers that repeat what was read (edited code, quotations, tables) are guessed well, others are not guessed at all. A step
//! computes the guesses beside the token they follow, and the sampler then draws each token as ever; a guess that is not what it
//! draws is thrown away with all that follow it. So the answer is what it would be without, and only the time differs.
//!
//! Invariant: total; a guess is never longer than asked for; one that failed is paid for by a pause that doubles.
//! Absent by design: the cells, the sampler, and when guessing is worth it beside others (the scheduler knows).

use crate::prompt::SEEN;

/// Tokens that must have come before in the same order. Two are met by chance too often.
const CONTEXT: usize = 3;

/// Most tokens guessed for one step. On a processor every row costs a good part of a token, and long runs are rare.
pub const MOST: usize = 4;

/// Tokens without a guess after one that failed at once: two to the power of how many did in a row, up to this.
const LONGEST_PAUSE: u32 = 64;

/// How guessing has gone for one answer.
#[derive(Debug, Clone)]
pub struct Lookup {
    /// Tokens of the next guess.
    length: usize,
    /// Guesses in a row of which nothing was right.
    failed: u32,
    /// Tokens to go without one.
    pause: u32,
}

impl Default for Lookup {
    fn default() -> Lookup {
        Lookup {
            length: MOST,
            failed: 0,
            pause: 0,
        }
    }
}

impl Lookup {
    /// Guesses what follows the `len` tokens that `id_at` tells, at most `most` of them.
    pub fn guess(&mut self, len: usize, id_at: impl Fn(usize) -> u32, most: usize) -> Vec<u32> {
        if self.pause > 0 {
            self.pause -= 1;
            return Vec::new();
        }
        let Some(last) = len.checked_sub(CONTEXT) else {
            return Vec::new();
        };
        let meets = |start: usize| (0..CONTEXT).all(|at| id_at(start + at) == id_at(last + at));
        let Some(start) = (0..last).rev().find(|start| meets(*start)) else {
            return Vec::new();
        };
        let mut guess = Vec::new();
        for place in (start + CONTEXT..).take(self.length.min(most)) {
            // What repeats itself goes on into its own guess.
            let id = match place.checked_sub(len) {
                None => id_at(place),
                Some(ahead) => guess[ahead],
            };
            // Rows of an image are no tokens.
            if id & SEEN != 0 {
                break;
            }
            guess.push(id);
        }
        guess
    }

    /// Of `guessed` tokens, the first `right` were drawn.
    pub fn learn(&mut self, guessed: usize, right: usize) {
        if right == 0 {
            self.failed = self.failed.saturating_add(1);
            self.pause = 1_u32
                .checked_shl(self.failed)
                .map_or(LONGEST_PAUSE, |pause| pause.min(LONGEST_PAUSE));
            self.length = 1;
        } else {
            self.failed = 0;
            self.length = match right == guessed {
                true => (right + 1).min(MOST),
                false => right,
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn guess(lookup: &mut Lookup, ids: &[u32], most: usize) -> Vec<u32> {
        lookup.guess(ids.len(), |place| ids[place], most)
    }

    #[test]
    fn what_followed_last_time_is_guessed() {
        let ids = [1, 2, 3, 9, 1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3];
        assert_eq!(guess(&mut Lookup::default(), &ids, 9), [4, 5, 6, 7]);
        assert_eq!(guess(&mut Lookup::default(), &ids, 2), [4, 5]);
        assert!(guess(&mut Lookup::default(), &ids[..4], 9).is_empty());
        assert!(guess(&mut Lookup::default(), &ids[..2], 9).is_empty());
    }

    #[test]
    fn a_repetition_guesses_itself() {
        assert_eq!(guess(&mut Lookup::default(), &[7; 4], 4), [7; 4]);
        let pair = [1, 2, 1, 2, 1, 2];
        assert_eq!(guess(&mut Lookup::default(), &pair, 3), [1, 2, 1]);
    }

    #[test]
    fn images_are_not_guessed() {
        let ids = [1, 2, 3, 4, SEEN | 5, 6, 1, 2, 3];
        assert_eq!(guess(&mut Lookup::default(), &ids, 4), [4]);
    }

    #[test]
    fn guesses_grow_while_they_are_right_and_pause_longer_each_time_they_are_not() {
        let ids = [1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3];
        let mut lookup = Lookup::default();
        for pause in [2, 4, 8, 16, 32, 64, 64] {
            lookup.learn(1, 0);
            for _ in 0..pause {
                assert!(guess(&mut lookup, &ids, 4).is_empty());
            }
            assert_eq!(guess(&mut lookup, &ids, 4), [4]);
        }
        lookup.learn(1, 1);
        assert_eq!(guess(&mut lookup, &ids, 4).len(), 2);
        lookup.learn(2, 2);
        lookup.learn(3, 3);
        assert_eq!(guess(&mut lookup, &ids, 9).len(), MOST);
        lookup.learn(4, 2);
        assert_eq!(guess(&mut lookup, &ids, 9).len(), 2);
    }

    proptest! {
        #[test]
        fn a_guess_has_followed_the_same_tokens_before(
            ids in proptest::collection::vec(0_u32..3, 0..60),
            most in 0_usize..8,
        ) {
            let guessed = guess(&mut Lookup::default(), &ids, most);
            prop_assert!(guessed.len() <= most.min(MOST));
            if !guessed.is_empty() {
                // Every token of it comes after the three before it, as it did somewhere before.
                let all = [ids.as_slice(), &guessed].concat();
                for end in ids.len()..all.len() {
                    let wanted = &all[end - CONTEXT..=end];
                    prop_assert!(all[..end].windows(wanted.len()).any(|part| part == wanted));
                }
            }
        }
    }
}
