//! When two texts may honestly differ: the near-tie rule (PROTOCOL.md 3).
//!
//! Prefill and decode round differently, so the same position can have slightly different logits.
//! Where the two best are closer than twice what that rounding does in all but one case of a
//! thousand, either may win.
//!
//! Invariant: the constant is a measurement of this build, printed by `examples/near_tie.rs`.
//! Absent by design: tolerance for anything that is not the *first* difference.

use crate::engine::Engine;
use crate::ffi::{EngineError, MAX_BATCH};
use crate::sampler::top_two;

/// 99.9th percentile of |Δ(l₁ − l₂)| between prefill and decode, in logits.
///
/// Measured with SmolLM2-135M Q4_1 on AVX2 over 10,731 positions in batches of 511: median 0.077,
/// p99 0.407, p99.9 0.605, largest 0.747.
pub const MEASURED_P999: f64 = 0.6052;

/// A gap up to this is a near-tie.
pub const NEAR_TIE: f64 = 2.0 * MEASURED_P999;

/// |Δ(l₁ − l₂)| of `count` positions of the model's own text, prefilled in one batch and decoded
/// one by one; `start` chooses the text.
pub fn gap_shifts(engine: &mut Engine, start: u32, count: usize) -> Result<Vec<f64>, EngineError> {
    let (ids, pairs, gaps) = decode_one_by_one(engine, start, count.min(MAX_BATCH))?;
    let context = engine.context();
    context.forget();
    context.decode_rows(&ids, true)?;
    let mut shifts = Vec::new();
    for (row, (&(first, second), gap)) in pairs.iter().zip(gaps).enumerate() {
        let logits = context.logits_at(row as i32)?;
        let prefilled = f64::from(logits[first as usize]) - f64::from(logits[second as usize]);
        shifts.push((gap - prefilled).abs());
    }
    context.forget();
    Ok(shifts)
}

/// What [`decode_one_by_one`] saw: ids, the two best of each position, their gaps.
type Decoded = (Vec<u32>, Vec<(u32, u32)>, Vec<f64>);

/// Follows the model's argmax, but every eighth token comes from a fixed walk over the vocabulary,
/// so that texts differ and do not fall into a loop.
fn decode_one_by_one(
    engine: &mut Engine,
    start: u32,
    count: usize,
) -> Result<Decoded, EngineError> {
    let n_vocab = engine.facts().n_vocab;
    let context = engine.context();
    context.forget();
    let (mut ids, mut pairs, mut gaps) = (Vec::new(), Vec::new(), Vec::new());
    let mut next = 0;
    for index in 0..count as u32 {
        let walked = start.wrapping_add(index).wrapping_mul(7919) % n_vocab;
        let id = if index % 8 == 0 { walked } else { next };
        context.decode(&[id])?;
        let logits = context.logits()?;
        let top = top_two(logits).ok_or(EngineError::Code(-1))?;
        let second = logits
            .iter()
            .zip(0..)
            .position(|(&x, id): (_, u32)| x == top.second && id != top.id);
        pairs.push((top.id, second.map_or(top.id, |id| id as u32)));
        gaps.push(f64::from(top.best) - f64::from(top.second));
        ids.push(id);
        next = top.id;
    }
    Ok((ids, pairs, gaps))
}

/// The percentile `per_mille` of `values` (nearest rank).
pub fn percentile(values: &mut [f64], per_mille: usize) -> f64 {
    if values.is_empty() {
        return 0.0;
    }
    values.sort_unstable_by(f64::total_cmp);
    let rank = (values.len() * per_mille).div_ceil(1000);
    values[rank.clamp(1, values.len()) - 1]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_by_nearest_rank() {
        let mut values: Vec<f64> = (1..=2000).rev().map(f64::from).collect();
        assert_eq!(percentile(&mut values, 999), 1998.0);
        assert_eq!(percentile(&mut values, 1000), 2000.0);
        assert_eq!(percentile(&mut [], 999), 0.0);
    }
}
