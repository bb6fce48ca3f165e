//! Which tokens may be drawn at all: top-k, typical, top-p and min-p.
//!
//! Invariant: sums are added in an order fixed by (logit, id), so the cut falls in the same place
//! on every machine. At least one candidate always stays.
//! Absent by design: temperature and noise, which come after.

use std::cmp::Ordering;

use substrate_sandbox::wire;

use crate::portable::{exp, ln, sum_exp};

/// One million millionths: a fraction that cuts nothing.
const WHOLE: u64 = 1_000_000;

/// How many candidates are sorted first; most nuclei are smaller than this.
const FIRST_SORTED: usize = 64;

/// A token that may be drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate {
    /// The token.
    pub id: u32,
    /// Its adjusted logit.
    pub logit: f32,
    /// Its probability among the candidates, as of the last [`weigh`].
    p: f64,
    /// What typical sampling sorts by.
    surprise: f64,
}

/// The four cuts of a sampler.
#[derive(Debug, Clone, Copy)]
pub struct Filters {
    top_k: u32,
    typical_p: u64,
    top_p: u64,
    min_p: u64,
}

impl Filters {
    /// The cuts that `settings` ask for.
    pub fn new(settings: &wire::Sampler) -> Filters {
        Filters {
            top_k: settings.top_k,
            typical_p: settings.typical_p,
            top_p: settings.top_p,
            min_p: settings.min_p,
        }
    }

    /// Whether every token may be drawn.
    pub fn are_off(&self) -> bool {
        self.top_k == 0 && self.typical_p >= WHOLE && self.top_p >= WHOLE && self.min_p == 0
    }

    /// Leaves in `pool` the tokens of `logits` that may be drawn, by ascending id.
    pub fn select(&self, logits: &[f32], max: f32, pool: &mut Vec<Candidate>) {
        if self.is_nucleus_of_all(logits.len()) {
            nucleus(logits, max, fraction(self.top_p), pool);
        } else {
            self.collect(logits, max, pool);
            self.cut(max, pool);
        }
        if self.min_p > 0 {
            let floor = self.min_p_floor(largest(pool));
            pool.retain(|c| f64::from(c.logit) >= floor);
        }
        pool.sort_unstable_by_key(|c| c.id);
    }

    /// Top-k's tokens, or all that min-p alone could leave.
    fn collect(&self, logits: &[f32], max: f32, pool: &mut Vec<Candidate>) {
        if self.cuts_by_count(logits.len()) {
            return keep_top(logits, self.top_k as usize, pool);
        }
        let alone = self.typical_p >= WHOLE && self.top_p >= WHOLE && self.min_p > 0;
        let floor = if alone {
            self.min_p_floor(max)
        } else {
            f64::NEG_INFINITY
        };
        pool.clear();
        let all = (0..)
            .zip(logits)
            .map(|(id, &logit)| Candidate::new(id, logit));
        pool.extend(all.filter(|candidate| f64::from(candidate.logit) >= floor));
    }

    /// Typical, then top-p.
    fn cut(&self, max: f32, pool: &mut Vec<Candidate>) {
        if self.typical_p < WHOLE {
            weigh(pool, max);
            measure_surprise(pool);
            keep_mass(
                pool,
                fraction(self.typical_p),
                by_surprise,
                |sum, target| sum > target,
            );
        }
        if self.top_p < WHOLE {
            let max = largest(pool);
            weigh(pool, max);
            keep_mass(pool, fraction(self.top_p), by_logit, |sum, target| {
                sum >= target
            });
        }
    }

    fn cuts_by_count(&self, n_vocab: usize) -> bool {
        self.top_k > 0 && (self.top_k as usize) < n_vocab
    }

    /// Top-p over the whole vocabulary, the usual case: no need to weigh every token apart.
    fn is_nucleus_of_all(&self, n_vocab: usize) -> bool {
        self.top_p < WHOLE && self.typical_p >= WHOLE && !self.cuts_by_count(n_vocab)
    }

    /// p ≥ min_p · p_max is logit ≥ max + ln(min_p).
    fn min_p_floor(&self, max: f32) -> f64 {
        f64::from(max) + ln(fraction(self.min_p.min(WHOLE)))
    }
}

impl Candidate {
    fn new(id: u32, logit: f32) -> Candidate {
        Candidate {
            id,
            logit,
            p: 0.0,
            surprise: 0.0,
        }
    }
}

fn fraction(millionths: u64) -> f64 {
    millionths as f64 / WHOLE as f64
}

fn by_logit(a: &Candidate, b: &Candidate) -> Ordering {
    b.logit.total_cmp(&a.logit).then(a.id.cmp(&b.id))
}

fn by_surprise(a: &Candidate, b: &Candidate) -> Ordering {
    a.surprise.total_cmp(&b.surprise).then(a.id.cmp(&b.id))
}

fn largest(pool: &[Candidate]) -> f32 {
    pool.iter().fold(
        f32::NEG_INFINITY,
        |max, c| if c.logit > max { c.logit } else { max },
    )
}

/// The `k` largest logits by ascending id. One pass with a rising bar; the buffer is cut back to
/// `k` whenever it has doubled.
pub(crate) fn keep_top(logits: &[f32], k: usize, pool: &mut Vec<Candidate>) {
    pool.clear();
    let mut bar = f32::NEG_INFINITY;
    for (id, &logit) in (0..).zip(logits) {
        // Equal to the bar loses: its id is higher than that of the holder.
        if logit > bar || (pool.len() < k && !logit.is_nan()) {
            pool.push(Candidate::new(id, logit));
            if pool.len() >= 2 * k.max(FIRST_SORTED) {
                bar = cut_to(pool, k);
            }
        }
    }
    if pool.len() > k {
        cut_to(pool, k);
    }
    pool.sort_unstable_by_key(|c| c.id);
}

fn cut_to(pool: &mut Vec<Candidate>, k: usize) -> f32 {
    let (_, last, _) = pool.select_nth_unstable_by(k - 1, by_logit);
    let bar = last.logit;
    pool.truncate(k);
    bar
}

/// The shortest prefix of all tokens, likeliest first, whose mass reaches `target`. The likeliest
/// are looked at in rounds of eight times as many; most nuclei end in the first.
fn nucleus(logits: &[f32], max: f32, target: f64, pool: &mut Vec<Candidate>) {
    let whole = sum_exp(logits, max);
    let mut count = FIRST_SORTED;
    loop {
        keep_top(logits, count, pool);
        pool.sort_unstable_by(by_logit);
        let mut sum = 0.0;
        for index in 0..pool.len() {
            sum += exp(f64::from(pool[index].logit) - f64::from(max)) / whole;
            if sum >= target {
                return pool.truncate(index + 1);
            }
        }
        if count >= logits.len() {
            return;
        }
        count *= 8;
    }
}

/// Sets every candidate's probability among the candidates.
fn weigh(pool: &mut [Candidate], max: f32) {
    let max = f64::from(max);
    let mut sum = 0.0;
    for c in pool.iter_mut() {
        c.p = exp(f64::from(c.logit) - max);
        sum += c.p;
    }
    for c in pool.iter_mut() {
        c.p /= sum;
    }
}

/// |−ln p − H|: how far a token's surprise is from the expected one (Meister et al. 2022).
fn measure_surprise(pool: &mut [Candidate]) {
    for c in pool.iter_mut() {
        c.surprise = if c.p.is_normal() {
            -ln(c.p)
        } else {
            f64::INFINITY
        };
    }
    let entropy: f64 = pool
        .iter()
        .filter(|c| c.p.is_normal())
        .map(|c| c.p * c.surprise)
        .sum();
    for c in pool.iter_mut() {
        c.surprise = (c.surprise - entropy).abs();
    }
}

/// Keeps the shortest prefix in `order` whose mass is `enough`, sorting no more than it must.
fn keep_mass(
    pool: &mut Vec<Candidate>,
    target: f64,
    order: fn(&Candidate, &Candidate) -> Ordering,
    enough: fn(f64, f64) -> bool,
) {
    let (mut sorted, mut step, mut sum) = (0, FIRST_SORTED, 0.0);
    while sorted < pool.len() {
        let end = pool.len().min(sorted + step);
        if end < pool.len() {
            pool[sorted..].select_nth_unstable_by(end - sorted - 1, order);
        }
        pool[sorted..end].sort_unstable_by(order);
        for index in sorted..end {
            sum += pool[index].p;
            if enough(sum, target) {
                pool.truncate(index + 1);
                return;
            }
        }
        sorted = end;
        step *= 8;
    }
}
