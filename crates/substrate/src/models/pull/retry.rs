//! How often a download is tried again, and how long it waits before.

use std::time::Duration;

use super::{PullError, PullSettings};

/// The longest wait between two tries.
const MAX_BACKOFF: Duration = Duration::from_secs(15);

/// Failures in a row, and the wait after each.
pub(super) struct Failures {
    count: u32,
    most: u32,
    first: Duration,
}

impl Failures {
    pub(super) fn new(settings: &PullSettings) -> Self {
        Self {
            count: 0,
            most: settings.retries,
            first: settings.backoff,
        }
    }

    /// A byte came: the count starts anew.
    pub(super) fn reset(&mut self) {
        self.count = 0;
    }

    /// Waits before the next try, or gives up.
    pub(super) async fn wait(&mut self, at: u64, why: String) -> Result<(), PullError> {
        if self.count >= self.most {
            return Err(PullError::BrokeOff {
                at,
                retries: self.most,
                why,
            });
        }
        tracing::debug!(
            at,
            why,
            failures = self.count + 1,
            "download goes on after a pause"
        );
        let pause = self
            .first
            .saturating_mul(1 << self.count.min(10))
            .min(MAX_BACKOFF);
        // A third more or less, so that several parts do not come back in one burst.
        let pause = pause.mul_f64(rand::random_range(0.67..1.33));
        self.count += 1;
        tokio::time::sleep(pause).await;
        Ok(())
    }
}
