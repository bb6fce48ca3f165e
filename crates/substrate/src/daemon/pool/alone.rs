//! Workers of one job each (DESIGN.md 6, `isolated`): started for it, used by nobody else, killed with it.
//!
//! Invariant: a worker listed here is one job's from its start, so it counts as busy and is never unloaded for another; no second
//! job is handed to it, and nothing that it held is read again.
//! Absent by design: a store of such workers kept ready. What costs least is the shared one.

use std::sync::{Arc, Mutex};

use substrate_record::WallTier;

use super::loading::Manner;
use super::{Lease, LoadError, Machines, Pool, Seen, Slot, Whose, lock};
use crate::daemon::engine::Engine;
use crate::models::parts::Parts;

/// Answers at a time in such a worker.
const ONE_ANSWER: u32 = 1;

/// A model, and its place for one job.
type Place = (Parts, Arc<Slot>);

/// The workers of one job each, loaded and being loaded. Clones share the list.
#[derive(Clone, Default)]
pub(super) struct Alone(Arc<Mutex<Vec<Place>>>);

/// The end of such a worker, when its job lets go of it.
pub(super) struct End {
    alone: Alone,
    slot: Arc<Slot>,
}

impl Alone {
    fn open(&self, parts: Parts, wall: WallTier) -> End {
        let seen = Seen {
            busy: 1,
            alone: true,
            wall: Some(wall),
            ..Seen::default()
        };
        let slot = Arc::new(Slot {
            seen: Mutex::new(seen),
            ..Slot::default()
        });
        lock(&self.0).push((parts, slot.clone()));
        End {
            alone: self.clone(),
            slot,
        }
    }

    pub(super) fn slots(&self) -> Vec<Place> {
        lock(&self.0).clone()
    }

    /// Ends all of them; their jobs find them gone.
    pub(super) fn clear(&self) {
        for (_, slot) in self.slots() {
            if let Some(engine) = &lock(&slot.seen).engine {
                engine.kill();
            }
        }
    }
}

impl Drop for End {
    fn drop(&mut self) {
        lock(&self.alone.0).retain(|(_, slot)| !Arc::ptr_eq(slot, &self.slot));
        if let Some(engine) = lock(&self.slot.seen).engine.take() {
            tracing::info!(pid = engine.pid(), "worker ended with its job");
            engine.kill();
        }
    }
}

impl Pool {
    /// A worker loaded for one job, which ends with the lease. It takes its place and its memory as any load does: idle models
    /// leave for it, what answers does not.
    ///
    /// # Errors
    /// As [`Pool::lease`].
    pub async fn lease_alone(
        &self,
        parts: &Parts,
        whose: Whose,
        wall: WallTier,
    ) -> Result<Lease, LoadError> {
        let end = self.alone.open(*parts, wall);
        let slot = end.slot.clone();
        let stake = self.stake(&slot, whose);
        let manner = Manner {
            slots: ONE_ANSWER,
            wall,
        };
        let engine = tokio::select! {
            biased;
            () = self.taken_from(whose) => return Err(LoadError::TakenBack),
            engine = self.load(parts, &slot, manner) => engine?,
        };
        Ok(self.leased_alone(engine, wall, slot, stake, end))
    }

    fn leased_alone(
        &self,
        engine: Engine,
        wall: WallTier,
        slot: Arc<Slot>,
        stake: super::taken::Stake,
        end: End,
    ) -> Lease {
        lock(&slot.seen).engine = Some(engine.clone());
        let image = self.machines.as_ref().as_ref().ok().map(Machines::image);
        Lease {
            engine,
            wall,
            worker: image
                .filter(|_| wall.is_machine())
                .unwrap_or(self.settings.sha256),
            slot,
            released: self.released.clone(),
            _stake: stake,
            end: Some(end),
        }
    }
}

#[cfg(test)]
mod tests {
    use substrate_record::ContentHash;

    use super::super::USUAL;
    use super::*;
    use crate::blobs::Blobs;
    use crate::daemon::testing::{no_worker, until};

    fn model(n: u8) -> Parts {
        ContentHash::from_bytes([n; 32]).into()
    }

    #[tokio::test]
    async fn each_job_has_a_place_of_its_own_and_none_is_left_of_a_load_that_failed_or_was_given_up()
     {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let blobs = Blobs::open(folder.path()).expect("blobs");
        let pool = Pool::new(no_worker(), blobs);
        let turn = pool.turns.lock().await;
        let ask = || {
            let pool = pool.clone();
            tokio::spawn(async move {
                pool.lease_alone(&model(1), Whose::Owners, USUAL)
                    .await
                    .map(drop)
            })
        };
        let (waits, given_up) = (ask(), ask());
        let two = async || (pool.loading().len() == 2).then_some(());
        until("two workers of one model are under way", two).await;
        given_up.abort();
        let one = async || (pool.loading().len() == 1).then_some(());
        until("the one that was given up is gone", one).await;
        drop(turn);
        let absent = waits.await.expect("no panic");
        assert!(matches!(absent, Err(LoadError::NoBlob(_))));
        assert!(pool.alone.slots().is_empty());
        assert!(
            lock(&pool.models).is_empty(),
            "the shared place is untouched"
        );
    }

    #[tokio::test]
    async fn one_for_others_gives_up_when_the_owner_comes_back() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let blobs = Blobs::open(folder.path()).expect("blobs");
        let pool = Pool::new(no_worker(), blobs);
        pool.take_back();
        let others = pool.lease_alone(&model(1), Whose::Others, USUAL).await;
        assert!(matches!(others, Err(LoadError::TakenBack)));
        assert!(pool.alone.slots().is_empty());
    }
}
