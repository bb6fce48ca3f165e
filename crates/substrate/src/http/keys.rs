//! API keys: who a caller is, how far its jobs may go and how often it may ask.
//!
//! Only SHA-256 digests of keys are held; a shown key is hashed and compared with every held digest
//! in constant time, without an early exit.
//!
//! Absent by design: making and storing keys (the settings file does), and key texts in logs.

use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Instant;

use sha2::{Digest, Sha256};
use substrate_record::Scope;
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How every key of this program begins. A shown key without it is another program's placeholder
/// (`ollama`, `sk-none`), which clients insist on sending.
pub const KEY_PREFIX: &str = "sk-substrate-";

/// What the owner granted to the holder of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiKey {
    /// Public name, as `jobs` shows it.
    pub name: String,
    /// SHA-256 of the key's text.
    pub sha256: [u8; 32],
    /// The widest scope its jobs may have, and their default.
    pub scope: Scope,
    /// May pull under this device's signature, copy and delete models.
    pub admin: bool,
    /// Requests a minute; `None` = as many as it likes.
    pub per_minute: Option<u32>,
    /// Requests at once; `None` = as many as it likes.
    pub concurrent: Option<u32>,
}

impl ApiKey {
    /// The digest that is held for a key's text.
    pub fn digest(secret: &str) -> [u8; 32] {
        Sha256::digest(secret.as_bytes()).into()
    }
}

/// The keys a listener knows. Clones share them; [`ApiKeys::replace`] changes them everywhere.
#[derive(Clone, Default)]
pub struct ApiKeys {
    held: Arc<RwLock<Vec<Arc<Held>>>>,
}

struct Held {
    key: ApiKey,
    budget: Mutex<Budget>,
    seats: Option<Arc<Semaphore>>,
}

/// A token bucket in thousandths of a request.
struct Budget {
    left: u64,
    filled: Option<Instant>,
}

/// What a shown key is worth now.
pub(super) enum Shown {
    /// A known key within its limits.
    Known {
        name: String,
        scope: Scope,
        admin: bool,
        seat: Option<OwnedSemaphorePermit>,
    },
    /// A known key that asks too often, or too much at once.
    Spent { why: String, retry_after_ms: u64 },
    /// No such key.
    Unknown,
}

impl ApiKeys {
    /// These keys and no others.
    pub fn new(keys: Vec<ApiKey>) -> Self {
        let known = Self::default();
        known.replace(keys);
        known
    }

    /// Forgets all keys and takes these, with full budgets.
    pub fn replace(&self, keys: Vec<ApiKey>) {
        let held = keys
            .into_iter()
            .map(|key| Arc::new(Held::new(key)))
            .collect();
        *self.held.write().unwrap_or_else(PoisonError::into_inner) = held;
    }

    /// No key is set.
    pub fn is_empty(&self) -> bool {
        self.held
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .is_empty()
    }

    pub(super) fn show(&self, secret: &str, now: Instant) -> Shown {
        match self.find(&ApiKey::digest(secret)) {
            Some(held) => held.admit(now),
            None => Shown::Unknown,
        }
    }

    /// A request of a key's holder that this machine makes for it. `None` = there is no such key any more.
    pub(super) fn admit(&self, name: &str, now: Instant) -> Option<Shown> {
        let held = self.held.read().unwrap_or_else(PoisonError::into_inner);
        let held = held.iter().find(|held| held.key.name == name)?.clone();
        Some(held.admit(now))
    }

    /// Compares with every key, so that the time taken tells nothing about which one matched.
    fn find(&self, digest: &[u8; 32]) -> Option<Arc<Held>> {
        let held = self.held.read().unwrap_or_else(PoisonError::into_inner);
        let mut found = u32::MAX;
        for (index, held) in (0_u32..).zip(held.iter()) {
            let same: Choice = held.key.sha256.ct_eq(digest);
            found.conditional_assign(&index, same);
        }
        held.get(usize::try_from(found).ok()?).cloned()
    }
}

impl Held {
    fn new(key: ApiKey) -> Self {
        let left = u64::from(key.per_minute.unwrap_or(0)) * 1_000;
        let seats = key
            .concurrent
            .map(|seats| Arc::new(Semaphore::new(seats as usize)));
        Self {
            key,
            budget: Mutex::new(Budget { left, filled: None }),
            seats,
        }
    }

    fn admit(&self, now: Instant) -> Shown {
        let seat = match self.seats.clone().map(Semaphore::try_acquire_owned) {
            None => None,
            Some(Ok(seat)) => Some(seat),
            Some(Err(_)) => {
                let most = self.key.concurrent.unwrap_or(0);
                let why = format!(
                    "the key '{}' may have {most} requests open at once",
                    self.key.name
                );
                return Shown::Spent {
                    why,
                    retry_after_ms: 1_000,
                };
            }
        };
        if let Some(per_minute) = self.key.per_minute
            && let Err(retry_after_ms) = self.spend(u64::from(per_minute), now)
        {
            let why = format!(
                "the key '{}' may ask {per_minute} times a minute",
                self.key.name
            );
            return Shown::Spent {
                why,
                retry_after_ms,
            };
        }
        Shown::Known {
            name: self.key.name.clone(),
            scope: self.key.scope,
            admin: self.key.admin,
            seat,
        }
    }

    /// Takes one request from the bucket, or says in how many milliseconds there will be one.
    fn spend(&self, per_minute: u64, now: Instant) -> Result<(), u64> {
        let mut budget = self.budget.lock().unwrap_or_else(PoisonError::into_inner);
        let idle = budget.filled.map_or(0, |filled| {
            now.saturating_duration_since(filled).as_millis()
        });
        // per_minute requests in 60,000 ms = per_minute/60 thousandths in 1 ms.
        let earned = u64::try_from(idle)
            .unwrap_or(u64::MAX)
            .saturating_mul(per_minute)
            / 60;
        if earned > 0 || budget.filled.is_none() {
            budget.filled = Some(now);
        }
        budget.left = budget.left.saturating_add(earned).min(per_minute * 1_000);
        if budget.left >= 1_000 {
            budget.left -= 1_000;
            return Ok(());
        }
        Err(((1_000 - budget.left) * 60)
            .div_ceil(per_minute.max(1))
            .max(1))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn key(per_minute: Option<u32>, concurrent: Option<u32>) -> ApiKeys {
        let sha256 = ApiKey::digest("sk-substrate-one");
        let named = |name: &str, sha256| ApiKey {
            name: name.into(),
            sha256,
            scope: Scope::Circle,
            admin: false,
            per_minute,
            concurrent,
        };
        ApiKeys::new(vec![
            named("none", [0; 32]),
            named("one", sha256),
            named("other", [7; 32]),
        ])
    }

    fn verdict(keys: &ApiKeys, now: Instant) -> String {
        match keys.show("sk-substrate-one", now) {
            Shown::Known { name, .. } => name,
            Shown::Spent { retry_after_ms, .. } => format!("retry in {retry_after_ms}"),
            Shown::Unknown => "unknown".into(),
        }
    }

    #[test]
    fn only_the_very_key_is_known() {
        let keys = key(None, None);
        assert_eq!(verdict(&keys, Instant::now()), "one");
        for wrong in [
            "",
            "sk-substrate-on",
            "sk-substrate-one ",
            "SK-SUBSTRATE-ONE",
        ] {
            assert!(
                matches!(keys.show(wrong, Instant::now()), Shown::Unknown),
                "{wrong}"
            );
        }
        keys.replace(Vec::new());
        assert_eq!(verdict(&keys, Instant::now()), "unknown");
    }

    #[test]
    fn a_spent_key_waits_for_its_next_request() {
        let keys = key(Some(2), None);
        let start = Instant::now();
        assert_eq!(verdict(&keys, start), "one");
        assert_eq!(verdict(&keys, start), "one");
        assert_eq!(verdict(&keys, start), "retry in 30000");
        assert_eq!(
            verdict(&keys, start + Duration::from_secs(29)),
            "retry in 1020"
        );
        assert_eq!(verdict(&keys, start + Duration::from_secs(31)), "one");
        assert_eq!(verdict(&keys, start + Duration::from_secs(3_600)), "one");
    }

    #[test]
    fn a_seat_is_free_again_when_its_request_ends() {
        let keys = key(None, Some(1));
        let first = keys.show("sk-substrate-one", Instant::now());
        assert_eq!(verdict(&keys, Instant::now()), "retry in 1000");
        drop(first);
        assert_eq!(verdict(&keys, Instant::now()), "one");
    }
}
