//! The owner takes the machine back: workers end, but for those in which a job of the owner's is.
//!
//! Invariant: from [`Pool::take_back`] to [`Pool::lend_again`] no worker is loaded or kept for others, and a job of the owner's
//! loses neither its worker nor its place in the line for one.
//! Absent by design: when that is (`daemon/owner.rs`), and what becomes of others' jobs: the node hands them over.

use std::sync::Arc;

use super::{Engine, Pool, Slot, lock};

/// Whom a worker is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// A client of this machine.
    Owners,
    /// Another node, or this one for what it tells others.
    Others,
}

/// A use of a worker, from the wish for it to its end.
pub(super) struct Stake(Option<Arc<Slot>>);

impl Drop for Stake {
    fn drop(&mut self) {
        if let Some(slot) = &self.0 {
            lock(&slot.seen).owners -= 1;
        }
    }
}

impl Pool {
    /// Counted before it is looked whether the worker lives, and under the lock that [`Pool::take_back`] ends it under.
    pub(super) fn stake(&self, slot: &Arc<Slot>, whose: Whose) -> Stake {
        if whose == Whose::Others {
            return Stake(None);
        }
        lock(&slot.seen).owners += 1;
        Stake(Some(slot.clone()))
    }

    /// Completes when the machine is no longer lent to them.
    pub(super) async fn taken_from(&self, whose: Whose) {
        let mut taken = self.taken.subscribe();
        let is_over = whose == Whose::Others && taken.wait_for(|taken| *taken).await.is_ok();
        if !is_over {
            std::future::pending::<()>().await;
        }
    }

    /// Whether nothing is loaded for them now.
    pub fn is_taken_from(&self, whose: Whose) -> bool {
        whose == Whose::Others && *self.taken.borrow()
    }

    /// Ends every worker that no job of the owner's uses or waits for; what it does for others is cut off.
    /// They have been told before.
    pub fn take_back(&self) {
        self.taken.send_replace(true);
        for (_, slot) in self.slots() {
            let seen = lock(&slot.seen);
            let engine = seen.engine.as_ref().filter(|_| seen.owners == 0);
            if let Some(engine) = engine.filter(|engine| Engine::is_alive(engine)) {
                tracing::info!(
                    pid = engine.pid(),
                    "worker ended: the owner took the machine back"
                );
                engine.kill();
            }
        }
    }

    /// The owner is away again.
    pub fn lend_again(&self) {
        self.taken.send_replace(false);
    }
}

#[cfg(test)]
mod tests {
    use substrate_record::ContentHash;

    use super::*;
    use crate::blobs::Blobs;
    use crate::daemon::pool::LoadError;
    use crate::daemon::testing::{no_worker, until};
    use crate::models::parts::Parts;

    fn pool() -> (tempfile::TempDir, Pool) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let blobs = Blobs::open(folder.path()).expect("blobs");
        (folder, Pool::new(no_worker(), blobs))
    }

    const MODEL: Parts = Parts {
        weights: ContentHash::from_bytes([1; 32]),
        projector: None,
        adapter: None,
    };

    #[tokio::test]
    async fn nothing_is_loaded_for_others_while_the_machine_is_taken() {
        let (_folder, pool) = pool();
        pool.take_back();
        let others = pool.lease(&MODEL, Whose::Others).await;
        assert!(matches!(others, Err(LoadError::TakenBack)));
        let owners = pool.lease(&MODEL, Whose::Owners).await;
        assert!(matches!(owners, Err(LoadError::NoBlob(_))));
        pool.lend_again();
        let others = pool.lease(&MODEL, Whose::Others).await;
        assert!(matches!(others, Err(LoadError::NoBlob(_))));
    }

    #[tokio::test]
    async fn a_load_for_others_gives_up_and_one_of_the_owners_goes_on() {
        let (_folder, pool) = pool();
        let turn = pool.turns.lock().await;
        let ask = |n, whose| {
            let pool = pool.clone();
            let parts = ContentHash::from_bytes([n; 32]).into();
            tokio::spawn(async move { pool.lease(&parts, whose).await.map(drop) })
        };
        let (others, owners) = (ask(1, Whose::Others), ask(2, Whose::Owners));
        let both_wait = async || (pool.loading().len() == 2).then_some(());
        until("both wait for their turn", both_wait).await;
        pool.take_back();
        let given_up = others.await.expect("no panic");
        assert!(matches!(given_up, Err(LoadError::TakenBack)));
        assert_eq!(pool.loading().len(), 1);
        drop(turn);
        let owners = owners.await.expect("no panic");
        assert!(matches!(owners, Err(LoadError::NoBlob(_))));
        let slot = lock(&pool.models).get(&MODEL).cloned().expect("a slot");
        assert_eq!(
            lock(&slot.seen).owners,
            0,
            "nobody has a stake in it any more"
        );
    }

    #[tokio::test]
    async fn a_measurement_that_was_cut_off_is_made_again() {
        let (_folder, pool) = pool();
        pool.take_back();
        assert!(pool.rates(&MODEL, Whose::Others).await.is_err());
        assert!(pool.needs_measuring(&MODEL));
        pool.lend_again();
        assert!(pool.rates(&MODEL, Whose::Others).await.is_err());
        assert!(
            !pool.needs_measuring(&MODEL),
            "a model that does not load is not tried for ever"
        );
    }
}
