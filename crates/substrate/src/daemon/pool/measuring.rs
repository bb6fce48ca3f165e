//! How fast a model is on this machine: measured once in a daemon's life, and anew when its owner asks.
//!
//! Invariant: a model that does not load is not tried for ever.
//! Absent by design: when to measure which (`daemon/stock.rs`).

use super::{LoadError, Pool, Whose, lock};
use crate::models::parts::Parts;

/// Prompt and answer tokens of the benchmark whose rates the Capability publishes.
/// Small: while a worker measures itself, a first prompt waits.
const BENCH_PREFILL: u32 = 96;
const BENCH_DECODE: u32 = 16;

impl Pool {
    /// Measured (prefill, decode) in millitokens per second; for the owner anew, else once.
    ///
    /// # Errors
    /// As [`Pool::lease`], and the benchmark's own.
    pub async fn rates(&self, parts: &Parts, whose: Whose) -> Result<(u64, u64), LoadError> {
        let slot = lock(&self.models).entry(*parts).or_default().clone();
        lock(&slot.seen).tried = true;
        let measured = self.measure(parts, whose).await;
        // Cut off, it says nothing of the model: it is tried again when the machine is lent again.
        lock(&slot.seen).tried = measured.is_ok() || !self.is_taken_from(whose);
        measured
    }

    async fn measure(&self, parts: &Parts, whose: Whose) -> Result<(u64, u64), LoadError> {
        let lease = self.lease(parts, whose).await?;
        let known = lock(&lease.slot.seen).rates;
        // Its owner asks to see it measured now.
        if let Some(rates) = known.filter(|_| whose == Whose::Others) {
            return Ok(rates);
        }
        // It takes about as long as a load.
        let within = self.settings.load_timeout;
        let bench = lease.engine.bench(BENCH_PREFILL, BENCH_DECODE, within);
        let rates = bench.await?;
        lock(&lease.slot.seen).rates = Some(rates);
        Ok(rates)
    }

    /// Whether nobody has tried to measure the model yet.
    pub fn needs_measuring(&self, parts: &Parts) -> bool {
        let slot = lock(&self.models).entry(*parts).or_default().clone();
        let tried = lock(&slot.seen).tried;
        !tried
    }

    /// The rates last measured in this run, without loading anything.
    pub fn known_rates(&self, parts: &Parts) -> Option<(u64, u64)> {
        let slot = lock(&self.models).get(parts).cloned()?;
        lock(&slot.seen).rates
    }
}
