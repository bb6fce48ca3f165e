//! How one decode call is divided among the sequences that run: who feeds how many tokens.
//!
//! Every answer under way gets its next token in every step; the rest of the batch goes to prompts, in
//! equal shares, so that a short prompt is read in one step beside a long one (chunked prefill:
//! Sarathi-Serve, arXiv 2403.02310). The batch bounds the pause that a long prompt makes in every answer; a smaller
//! bound beside answers would carry a token of each of them along more often, and the prompt would wait longer
//! (docs/benchmarks.md has both figures beside llama.cpp's server).
//!
//! Invariant: never more rows than the batch holds; whoever waits gets at least one row of a step unless
//! the batch is full; what is planned depends on the lengths alone.
//! Absent by design: time, memory, identities. Fairness among identities is the daemon's queue.

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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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
