//! How one decode call is divided among the sequences that run: who feeds how many tokens.
//!
//! Every answer under way gets its next token in every step, or in every second ([`Turns`]); the rest of the batch goes to prompts, in
//! equal shares, so that a short prompt is read in one step beside a long one (chunked prefill:
//! Sarathi-Serve, arXiv 2403.02310). The batch bounds the pause that a long prompt makes in every answer; a smaller
//! bound beside answers would carry a token of each of them along more often, and the prompt would wait longer
//! (docs/benchmarks.md has both figures beside llama.cpp's server).
//!
//! Invariant: never more rows than the batch holds; whoever waits gets at least one row of a step unless
//! the batch is full; what is shared out depends on the lengths alone; answers never stand still twice in a row.
//! Absent by design: memory, identities. Fairness among identities is the daemon's queue.

use std::time::Duration;

use crate::ffi::MAX_BATCH;

/// Tokens that each prompt of `left` (tokens still to be read) feeds in a step in which `answers` sequences
/// feed one token each.
pub fn shares(answers: usize, left: &[usize]) -> Vec<usize> {
    // Divided equally; what one does not need goes to the others (max-min fairness).
    let mut room = MAX_BATCH.saturating_sub(answers);
    let mut shares = vec![0; left.len()];
    let mut by_need: Vec<usize> = (0..left.len()).collect();
    by_need.sort_by_key(|&index| left[index]);
    for (served, &index) in by_need.iter().enumerate() {
        let waiting = left.len() - served;
        shares[index] = left[index].min(room.div_ceil(waiting)).min(room);
        room -= shares[index];
    }
    shares
}

/// Longest that answers stand still for a prompt by choice: a reader waits that long for a sentence to go on.
const LONGEST_STILL: Duration = Duration::from_secs(4);

/// When answers stand still so that a long prompt is read sooner. Lanes with cells of their own are computed together only by
/// equal numbers of rows, so the tokens of answers beside a piece of a prompt are a graph of their own, and each of its rows costs
/// more than twice what one of the prompt does (docs/benchmarks.md: tokens per second of eight clients and of a prompt).
#[derive(Debug, Default)]
pub struct Turns {
    /// What the last full batch took.
    batch: Option<Duration>,
    /// Whether answers stood still in the last step.
    stood: bool,
}

impl Turns {
    /// Whether `answers` sequences stand still in the next step, while `left` tokens of prompts are to be read: if not all has
    /// room in it, and it and the one after it take no longer than [`LONGEST_STILL`].
    pub fn stand_still(&self, answers: usize, left: usize) -> bool {
        let quick = |batch: Duration| batch * 2 <= LONGEST_STILL;
        let needed = answers > 0 && answers + left > MAX_BATCH;
        needed && !self.stood && self.batch.is_some_and(quick)
    }

    /// A step of `rows` rows has been computed, in which answers stood still or did not.
    pub fn stepped(&mut self, rows: usize, took: Duration, stood: bool) {
        if rows == MAX_BATCH {
            self.batch = Some(took);
        }
        self.stood = stood;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn answers_stand_still_in_every_second_batch_of_a_long_prompt() {
        let quick = Duration::from_secs(1);
        let mut turns = Turns::default();
        assert!(!turns.stand_still(8, 2000), "nothing was measured yet");
        turns.stepped(MAX_BATCH, quick, false);
        assert!(turns.stand_still(8, 1488));
        turns.stepped(MAX_BATCH, quick, true);
        assert!(!turns.stand_still(8, 976), "not twice in a row");
        turns.stepped(MAX_BATCH, quick, false);
        assert!(!turns.stand_still(8, 472), "all has room in this step");
        assert!(
            !turns.stand_still(0, 2000),
            "nobody is there to stand still"
        );
    }

    #[test]
    fn answers_do_not_stand_still_where_a_batch_takes_long() {
        let mut turns = Turns::default();
        turns.stepped(MAX_BATCH, LONGEST_STILL, false);
        assert!(!turns.stand_still(8, 2000));
        turns.stepped(40, Duration::from_millis(1), false);
        assert!(!turns.stand_still(8, 2000), "a small step tells nothing");
    }

    #[test]
    fn a_short_prompt_is_read_at_once_beside_a_long_one() {
        assert_eq!(shares(0, &[2000, 40]), [472, 40]);
        assert_eq!(shares(8, &[2000, 40]), [464, 40]);
    }

    #[test]
    fn a_lone_prompt_gets_what_answers_leave_of_a_batch() {
        assert_eq!(shares(0, &[2000]), [512]);
        assert_eq!(shares(8, &[2000]), [504]);
        assert_eq!(shares(500, &[2000]), [12]);
    }

    #[test]
    fn equal_prompts_get_equal_shares() {
        assert_eq!(shares(0, &[600, 600, 600, 600]), [128; 4]);
    }

    proptest! {
        #[test]
        fn a_step_never_overflows_and_leaves_no_room_while_somebody_waits(
            answers in 0_usize..=512,
            left in proptest::collection::vec(1_usize..5000, 0..40),
        ) {
            let shares = shares(answers, &left);
            let used: usize = shares.iter().sum();
            prop_assert!(answers + used <= MAX_BATCH);
            prop_assert!(shares.iter().zip(&left).all(|(share, left)| share <= left));
            let room = MAX_BATCH - answers;
            prop_assert_eq!(used, room.min(left.iter().sum()));
            let starved = shares.contains(&0);
            prop_assert!(!starved || room < left.len());
        }
    }
}
