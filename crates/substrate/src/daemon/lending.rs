//! The owner comes first: looks, and what follows when the machine is its owner's and when it is lent again.
//!
//! Invariant: others' jobs are told to stop before their workers end, so that each is handed over and none seems to crash.
//! Absent by design: whose the machine is (`owner.rs`, `settings.rs`), and what becomes of the jobs (the node's).

use substrate_node::Event;

use super::context::blocking;
use super::life::{Life, Note};
use super::owner::Seen;
use super::owner::senses::Wanted;
use crate::config::When;

impl Life {
    /// Looks whether the owner uses the machine, away from the loop and one look at a time.
    pub(super) fn look(&mut self) {
        let lending = &self.settings.config().lending;
        if lending.when == When::Off {
            return;
        }
        let pool = &self.context.pool;
        let loaded = pool.loaded().into_iter();
        let wanted = Wanted {
            busy_file: lending.busy_file.clone(),
            programs: lending.pause_for.clone(),
            gpus_are_lent: pool.settings().uses_gpus(),
            activity: lending.when == When::Idle,
            cores: pool.settings().cores,
            workers: loaded.map(|loaded| loaded.engine.pid()).collect(),
        };
        if wanted.is_nothing() {
            return self.on_looked(Seen::default());
        }
        let Some(mut senses) = self.senses.take() else {
            return;
        };
        let notes = self.notes.clone();
        self.tasks.spawn(async move {
            let looked = blocking(move || {
                let seen = senses.look(&wanted);
                Note::Looked { senses, seen }
            });
            let _ = notes.send(looked.await).await;
        });
    }

    /// Takes in what was seen.
    pub(super) fn on_looked(&mut self, seen: Seen) {
        let now = self.context.now();
        self.settings.see(now, seen);
        self.tell_lending();
    }

    /// Tells the node what is lent, if that is something else than before.
    pub(super) fn tell_lending(&mut self) {
        if let Some(lending) = self.settings.lending_changed() {
            self.handle(Event::LendingChanged(lending));
        }
        self.mind_owner();
    }

    /// Frees the memory when the owner wants the machine, and lends it again afterwards.
    pub(super) fn mind_owner(&mut self) {
        let withheld = self.settings.is_withheld();
        if withheld == self.withheld {
            return;
        }
        self.withheld = withheld;
        if withheld {
            let now = self.context.now();
            let why = self.settings.withheld(now).unwrap_or_default();
            tracing::info!(%why, "the machine is its owner's now");
            self.context.pool.take_back();
        } else {
            tracing::info!("the machine is lent again");
            self.context.pool.lend_again();
            self.measure_next();
        }
    }
}
