//! Log probabilities as the APIs report them: log-softmax of the model's raw logits.
//!
//! Invariant: independent of temperature, filters and penalties, so that two samplers over the same
//! model report the same numbers.
//! Absent by design: the bytes of the tokens, which only the vocabulary knows.

use crate::candidates::keep_top;
use crate::portable::{ln, sum_exp};
use crate::sampler::top_two;

/// The most alternatives per token: the APIs' own limit.
pub const MAX_TOP: u32 = 20;

/// One in the wire's unit: 1/65,536.
const UNIT: f64 = 65_536.0;

/// Log probabilities of one position, in 1/65,536.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logprobs {
    /// Of the chosen token.
    pub chosen: i32,
    /// The likeliest tokens, best first.
    pub top: Vec<(u32, i32)>,
}

/// Log probabilities of `id` and of the `n` likeliest; `None` if no logit is finite.
pub fn of(logits: &[f32], id: u32, n: u32) -> Option<Logprobs> {
    let max = top_two(logits)?.best;
    let norm = f64::from(max) + ln(sum_exp(logits, max));
    // `as` saturates: −∞ becomes the smallest number the wire can carry.
    let to_wire = |logit: f32| ((f64::from(logit) - norm) * UNIT).round() as i32;
    let mut pool = Vec::new();
    let n = n.min(MAX_TOP) as usize;
    if n > 0 {
        keep_top(logits, n, &mut pool);
        pool.sort_unstable_by(|a, b| b.logit.total_cmp(&a.logit).then(a.id.cmp(&b.id)));
    }
    Some(Logprobs {
        chosen: to_wire(*logits.get(id as usize)?),
        top: pool.iter().map(|c| (c.id, to_wire(c.logit))).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_logits_share_the_probability() {
        let got = of(&[1.0; 8], 3, 2).expect("finite logits");
        let eighth = ((1.0f64 / 8.0).ln() * UNIT).round() as i32;
        assert_eq!(
            got,
            Logprobs {
                chosen: eighth,
                top: vec![(0, eighth), (1, eighth)]
            }
        );
    }

    #[test]
    fn a_token_that_cannot_come_has_the_smallest_number() {
        let got = of(&[0.0, f32::NEG_INFINITY], 1, 1).expect("one finite logit");
        assert_eq!(
            got,
            Logprobs {
                chosen: i32::MIN,
                top: vec![(0, 0)]
            }
        );
    }

    #[test]
    fn the_likeliest_come_first() {
        let got = of(&[0.0, 2.0, 1.0, 2.0], 0, 3).expect("finite logits");
        assert_eq!(got.top.iter().map(|t| t.0).collect::<Vec<_>>(), [1, 3, 2]);
    }
}
