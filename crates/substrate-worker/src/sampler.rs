//! From logits to a token, by integers and shared noise (PROTOCOL.md 3).
//!
//! Order, as llama.cpp's default chain: logit bias and penalties, then top-k, typical, top-p, min-p
//! on the adjusted logits, then temperature, then the Gumbel maximum. Temperature 0 is argmax, the
//! lowest id on a tie.
//!
//! Invariant: a function of (logits, settings, accepted ids, seed, position) alone, computed with
//! portable arithmetic in a fixed order: two machines with the same logits choose the same token.
//! Absent by design: a random generator, state beyond the accepted ids, a cap on candidates.

use std::collections::{BTreeMap, VecDeque};

use substrate_sandbox::wire;

use crate::candidates::{Candidate, Filters};
use crate::noise::{BLOCK_TOKENS, Noise, max_reach, reach, reach_table};

/// Fractions on the wire are millionths.
const MILLION: f64 = 1e6;
/// Logit biases and gaps on the wire are 1/65,536 of a logit.
const LOGIT_UNIT: f64 = 65_536.0;

/// Why settings are refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SettingsError {
    /// A field is outside its range.
    #[error("{0} is out of range")]
    OutOfRange(&'static str),
    /// A bias names a token that does not exist.
    #[error("a logit bias names token {0}, which is not in the vocabulary")]
    UnknownToken(u32),
}

/// A chosen token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Choice {
    /// The token.
    pub id: u32,
    /// By how many logits it beat the second best, noise included.
    pub gap: f64,
}

/// The sampler of one sequence.
pub struct Sampler {
    temperature: u64,
    filters: Filters,
    adjust: Adjust,
    adjusted: Vec<f32>,
    pool: Vec<Candidate>,
}

impl Sampler {
    /// A sampler over a vocabulary of `n_vocab` tokens.
    pub fn new(
        settings: &wire::Sampler,
        bias: &[(u32, i32)],
        n_vocab: u32,
    ) -> Result<Sampler, SettingsError> {
        if settings.repeat == 0 {
            return Err(SettingsError::OutOfRange("repeat penalty"));
        }
        if settings.repeat_last_n < -1 {
            return Err(SettingsError::OutOfRange("repeat_last_n"));
        }
        if let Some(&(id, _)) = bias.iter().find(|(id, _)| *id >= n_vocab) {
            return Err(SettingsError::UnknownToken(id));
        }
        Ok(Sampler {
            temperature: settings.temperature,
            filters: Filters::new(settings),
            adjust: Adjust::new(settings, bias),
            adjusted: Vec::new(),
            pool: Vec::new(),
        })
    }

    /// Counts `id`, of the prompt or of the answer, for the penalties.
    pub fn accept(&mut self, id: u32) {
        self.adjust.accept(id);
    }

    /// Chooses the token at `position`; `None` if no logit is finite.
    pub fn choose(&mut self, logits: &[f32], seed: &[u8; 32], position: u64) -> Option<Choice> {
        let logits = if self.adjust.is_idle() {
            logits
        } else {
            self.adjusted.clear();
            self.adjusted.extend_from_slice(logits);
            self.adjust.apply(&mut self.adjusted);
            &self.adjusted
        };
        let top = top_two(logits)?;
        if self.temperature == 0 {
            let gap = f64::from(top.best) - f64::from(top.second);
            return Some(Choice { id: top.id, gap });
        }
        let mut draw = Draw::new(Noise::new(seed, position), self.temperature);
        if self.filters.are_off() {
            draw.offer_all(logits, top.id);
        } else {
            self.filters.select(logits, top.best, &mut self.pool);
            for candidate in &self.pool {
                draw.offer(candidate.id, candidate.logit);
            }
        }
        draw.choice()
    }
}

/// A gap as the wire carries it.
pub fn gap_to_wire(gap: f64) -> i32 {
    // `as` saturates, which is what an infinite gap (one candidate) wants.
    (gap * LOGIT_UNIT) as i32
}

/// Logit bias and penalties.
struct Adjust {
    bias: Vec<(u32, f64)>,
    window: Option<usize>,
    repeat: f64,
    presence: f64,
    frequency: f64,
    recent: VecDeque<u32>,
    counts: BTreeMap<u32, u32>,
}

impl Adjust {
    fn new(settings: &wire::Sampler, bias: &[(u32, i32)]) -> Adjust {
        let off = settings.repeat == 1_000_000 && settings.presence == 0 && settings.frequency == 0;
        let window = match settings.repeat_last_n {
            0 => None,
            _ if off => None,
            n => Some(usize::try_from(n).unwrap_or(usize::MAX)),
        };
        Adjust {
            bias: bias
                .iter()
                .map(|&(id, bias)| (id, f64::from(bias) / LOGIT_UNIT))
                .collect(),
            window,
            repeat: settings.repeat as f64 / MILLION,
            presence: settings.presence as f64 / MILLION,
            frequency: settings.frequency as f64 / MILLION,
            recent: VecDeque::new(),
            counts: BTreeMap::new(),
        }
    }

    fn is_idle(&self) -> bool {
        self.bias.is_empty() && self.counts.is_empty()
    }

    fn accept(&mut self, id: u32) {
        let Some(window) = self.window else { return };
        if self.recent.len() == window
            && let Some(old) = self.recent.pop_front()
            && let Some(count) = self.counts.get_mut(&old)
        {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&old);
            }
        }
        self.recent.push_back(id);
        *self.counts.entry(id).or_default() += 1;
    }

    /// Keskar et al. 2019 for `repeat` (divide or multiply by sign), OpenAI's additive pair after.
    fn apply(&self, logits: &mut [f32]) {
        for &(id, bias) in &self.bias {
            if let Some(logit) = logits.get_mut(id as usize) {
                *logit = (f64::from(*logit) + bias) as f32;
            }
        }
        for (&id, &count) in &self.counts {
            let Some(logit) = logits.get_mut(id as usize) else {
                continue;
            };
            let mut value = f64::from(*logit);
            value = if value <= 0.0 {
                value * self.repeat
            } else {
                value / self.repeat
            };
            value -= f64::from(count) * self.frequency + self.presence;
            *logit = value as f32;
        }
    }
}

/// The two largest logits and the lowest id of the largest.
pub(crate) struct TopTwo {
    pub id: u32,
    pub best: f32,
    pub second: f32,
}

/// One pass in eight lanes that the compiler turns into vector code, and one to find the id.
pub(crate) fn top_two(logits: &[f32]) -> Option<TopTwo> {
    const LANES: usize = 8;
    let mut best = [f32::NEG_INFINITY; LANES];
    let mut second = [f32::NEG_INFINITY; LANES];
    let mut chunks = logits.chunks_exact(LANES);
    for chunk in &mut chunks {
        for lane in 0..LANES {
            let x = chunk[lane];
            let lower = if x > best[lane] { best[lane] } else { x };
            best[lane] = if x > best[lane] { x } else { best[lane] };
            second[lane] = if lower > second[lane] {
                lower
            } else {
                second[lane]
            };
        }
    }
    let (mut first, mut next) = (f32::NEG_INFINITY, f32::NEG_INFINITY);
    for &x in best.iter().chain(&second).chain(chunks.remainder()) {
        if x > first {
            (first, next) = (x, first);
        } else if x > next {
            next = x;
        }
    }
    let id = logits.iter().position(|&x| x == first)?;
    first.is_finite().then_some(TopTwo {
        id: id as u32,
        best: first,
        second: next,
    })
}

/// A running Gumbel maximum over offered candidates; the order of offers does not matter.
struct Draw {
    noise: Noise,
    table: &'static [f64; 256],
    max_reach: f64,
    temperature: f64,
    id: Option<u32>,
    best: f64,
    second: f64,
}

impl Draw {
    fn new(noise: Noise, temperature: u64) -> Draw {
        Draw {
            noise,
            table: reach_table(),
            max_reach: max_reach(),
            temperature: temperature as f64,
            id: None,
            best: f64::NEG_INFINITY,
            second: f64::NEG_INFINITY,
        }
    }

    /// logit / T, T in millionths.
    #[inline]
    fn scaled(&self, logit: f32) -> f64 {
        f64::from(logit) * MILLION / self.temperature
    }

    /// Offers every token, `likeliest` first: the higher the bar, the more is skipped.
    fn offer_all(&mut self, logits: &[f32], likeliest: u32) {
        self.offer(likeliest, logits[likeliest as usize]);
        for (block, logits) in logits.chunks(BLOCK_TOKENS).enumerate() {
            let top = logits
                .iter()
                .fold(f32::NEG_INFINITY, |top, &x| if x > top { x } else { top });
            if self.scaled(top) + self.max_reach < self.second {
                continue;
            }
            let first = (block * BLOCK_TOKENS) as u32;
            for (id, &logit) in (first..).zip(logits) {
                if id != likeliest {
                    self.offer(id, logit);
                }
            }
        }
    }

    /// Skips, exactly, what could reach neither the best sum nor the second.
    #[inline]
    fn offer(&mut self, id: u32, logit: f32) {
        let scaled = self.scaled(logit);
        if scaled + self.max_reach < self.second {
            return;
        }
        let word = self.noise.word24(id);
        if scaled + reach(self.table, word) < self.second {
            return;
        }
        self.enter(id, scaled + crate::noise::gumbel(word));
    }

    fn enter(&mut self, id: u32, sum: f64) {
        if sum > self.best || (sum == self.best && self.id.is_some_and(|held| id < held)) {
            self.second = self.best;
            self.best = sum;
            self.id = Some(id);
        } else if sum > self.second {
            self.second = sum;
        }
    }

    fn choice(&self) -> Option<Choice> {
        let gap = (self.best - self.second) * self.temperature / MILLION;
        Some(Choice { id: self.id?, gap })
    }
}

#[cfg(test)]
mod tests;
