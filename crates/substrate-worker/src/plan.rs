//! How one decode call is divided among the sequences that run: who feeds how many tokens.
//!
//! Every answer under way gets its next token in every step; the rest of the batch goes to prompts, in
//! equal shares, so that a short prompt is read in one step beside a long one (chunked prefill:
//! Sarathi-Serve, arXiv 2403.02310). While answers run, prompts get at most [`BESIDE_ANSWERS`] tokens of a
//! step, which bounds the pause that a long prompt makes in every answer.
//!
//! Invariant: never more rows than the batch holds; whoever waits gets at least one row of a step unless
//! the batch is full; what is planned depends on the lengths alone.
//! Absent by design: time, memory, identities. Fairness among identities is the daemon's queue.

use crate::ffi::MAX_BATCH;

/// Prompt tokens in one step while answers run.
///
/// Half of a batch. Each piece is one pause in every answer, 1.6 s at the 158 tokens per second that two cores
/// read with a 135M model; and each carries a token of every answer along, so that smaller pieces make the
/// prompt's own wait longer. docs/benchmarks.md has both figures beside llama.cpp's server.
pub const BESIDE_ANSWERS: usize = 256;

/// Tokens that each prompt of `left` (tokens still to be read) feeds in a step in which `answers` sequences
/// feed one token each.
pub fn shares(answers: usize, left: &[usize]) -> Vec<usize> {
    let room = MAX_BATCH.saturating_sub(answers);
    let room = if answers > 0 {
        room.min(BESIDE_ANSWERS)
    } else {
        room
    };
    fill(room, left)
}

/// Divides `room` equally; what one does not need goes to the others (max-min fairness).
fn fill(room: usize, left: &[usize]) -> Vec<usize> {
    let mut shares = vec![0; left.len()];
    let mut by_need: Vec<usize> = (0..left.len()).collect();
    by_need.sort_by_key(|&index| left[index]);
    let mut room = room;
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
        assert_eq!(shares(8, &[2000, 40]), [216, 40]);
    }

    #[test]
    fn a_lone_prompt_gets_whole_batches_and_a_bounded_part_beside_answers() {
        assert_eq!(shares(0, &[2000]), [512]);
        assert_eq!(shares(1, &[2000]), [BESIDE_ANSWERS]);
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
            let room = if answers > 0 { room.min(BESIDE_ANSWERS) } else { room };
            prop_assert_eq!(used, room.min(left.iter().sum()));
            let starved = shares.contains(&0);
            prop_assert!(!starved || room < left.len());
        }
    }
}
