//! What can be answered with: the models of this machine and of the nodes in sight, by the names people type.
//!
//! Invariant: the node is told of every change of what this machine can answer with, and of nothing else; a model
//! whose bytes are not whole is not offered to anybody.

use std::collections::BTreeSet;
use std::time::Duration;

use substrate_node::{Event, JobPhase};
use substrate_record::{JobId, RecordId, Scope};
use tokio::sync::oneshot;

use super::life::{Life, Note, Requested};
use super::pool::{LoadError, Whose};
use super::views;
use crate::door::{AskError, FitView, ModelView, Placement, scope_word};
use crate::models::catalogue::{Held, similar_to};
use crate::models::parts::Parts;

/// What is told of a model that has a name here and no whole bytes.
pub(super) const LOST_WEIGHTS: &str =
    "its weights on this machine are damaged or gone; import or pull it again";

impl Life {
    /// Tokens of an answer that asked for no limit: what the model was trained for, since no node serves a longer
    /// context and each worker stops at the end of its own. A file that does not say is served the default here.
    pub(super) fn longest(&self, entries: &[RecordId]) -> u32 {
        let known = entries.iter().filter_map(|id| self.shelf.entry(id));
        let trained = known.clone().map(|entry| entry.body().context).max();
        let parts = known.clone().find_map(|entry| Parts::of(entry.body()));
        match (trained, parts) {
            (Some(trained), _) if trained > 0 => trained,
            (_, Some(parts)) => self.context.pool.context_of(&parts, 0),
            _ => 1,
        }
    }

    pub(super) fn is_held(&self, entries: &[RecordId], scope: Scope, place: Placement) -> bool {
        let me = self.context.me;
        entries.iter().any(|entry| {
            self.node
                .holders(entry, scope)
                .iter()
                .any(|node| match place {
                    Placement::Any => true,
                    Placement::Elsewhere => *node != me,
                    Placement::Node(wanted) => *node == wanted,
                })
        })
    }

    pub(super) fn unknown(&self, model: &str, scope: Scope, entries: &[RecordId]) -> AskError {
        let wider = [Scope::Circle, Scope::Commons]
            .into_iter()
            .find(|wider| *wider > scope && self.is_held(entries, *wider, Placement::Any));
        let anywhere = self.is_held(entries, scope, Placement::Any);
        let no_node = |why: String| AskError::NoNode {
            model: model.to_owned(),
            scope,
            why,
        };
        match wider {
            _ if anywhere => no_node("no node at the place asked for holds it now".to_owned()),
            Some(wider) => no_node(format!(
                "nodes in scope {} hold it; ask with that scope to let them read the prompt",
                scope_word(wider)
            )),
            None if self.is_lost(model) => no_node(LOST_WEIGHTS.to_owned()),
            None => AskError::UnknownModel {
                model: model.to_owned(),
                similar: self.similar(model, scope),
            },
        }
    }

    /// Whether this machine has a name for it, and no whole bytes.
    fn is_lost(&self, model: &str) -> bool {
        let parts = self.own_parts(model);
        parts.is_some_and(|parts| self.context.pool.is_unusable(&parts))
    }

    /// The models of this machine whose bytes were not found missing or damaged.
    fn held_whole(&self) -> impl Iterator<Item = &Held> {
        let whole = move |held: &&Held| !self.context.pool.is_unusable(&held.parts());
        self.shelf.held().iter().filter(whole)
    }

    /// Names usable in the scope that resemble one that is not, own or another's.
    fn similar(&self, model: &str, scope: Scope) -> Vec<String> {
        let usable = self.model_views(scope).into_iter().map(|view| view.name);
        similar_to(model, usable)
    }

    pub(super) fn full_name(&self, model: &str) -> String {
        let held = self.shelf.called(model);
        let first = self.shelf.named(model).into_iter().next();
        match (held, first.and_then(|id| self.shelf.entry(&id))) {
            (Some(held), _) => held.name.to_string(),
            (None, Some(entry)) => entry.body().name.clone(),
            (None, None) => model.to_owned(),
        }
    }

    pub(super) fn model_views(&self, scope: Scope) -> Vec<ModelView> {
        let own = self.held_whole().map(|held| {
            let nodes = self.node.holders(&held.entry.id(), scope);
            views::own_model(held, nodes, &self.context.pool)
        });
        let mut seen: Vec<Parts> = self.held_whole().map(Held::parts).collect();
        let mut views: Vec<_> = own.collect();
        for entry in self.shelf.entries() {
            let Some(parts) = Parts::of(entry.body()).filter(|parts| !seen.contains(parts)) else {
                continue;
            };
            let nodes = self.node.holders(&entry.id(), scope);
            if !nodes.is_empty() {
                seen.push(parts);
                views.push(views::others_model(entry, parts.weights, nodes));
            }
        }
        views
    }

    fn own_parts(&self, model: &str) -> Option<Parts> {
        let ids = self.shelf.named(model);
        self.shelf
            .held()
            .iter()
            .find(|held| ids.contains(&held.entry.id()))
            .map(Held::parts)
    }

    pub(super) fn keep_alive(&mut self, model: &str, seconds: i64, reply: oneshot::Sender<bool>) {
        let Some(parts) = self.own_parts(model) else {
            let _ = reply.send(false);
            return;
        };
        let stay = u64::try_from(seconds).ok().map(Duration::from_secs);
        let pool = self.context.pool.clone();
        self.tasks
            .spawn(async move { reply.send(pool.keep_alive(&parts, stay).await) });
    }

    pub(super) fn load(&mut self, model: &str, reply: oneshot::Sender<Result<(), AskError>>) {
        let Some(parts) = self.own_parts(model) else {
            // A model of another node is loaded there when it is asked.
            let held = self.is_held(&self.shelf.named(model), Scope::Circle, Placement::Any);
            let _ = reply.send(if held {
                Ok(())
            } else {
                Err(self.unknown(model, Scope::Circle, &[]))
            });
            return;
        };
        let (pool, name) = (self.context.pool.clone(), model.to_owned());
        self.tasks.spawn(async move {
            let loaded = pool.lease(&parts, Whose::Owners).await.map(drop);
            reply.send(loaded.map_err(|error| not_loaded(&name, error)))
        });
    }

    pub(super) fn fit(
        &mut self,
        model: &str,
        context: Option<u32>,
        reply: oneshot::Sender<Result<FitView, AskError>>,
    ) {
        let Some(parts) = self.own_parts(model) else {
            let _ = reply.send(Err(self.unknown(model, Scope::Mine, &[])));
            return;
        };
        let (pool, name) = (self.context.pool.clone(), model.to_owned());
        self.tasks.spawn(async move {
            let fit = pool.fit(&parts, context).await.map(views::fit);
            reply.send(fit.map_err(|error| not_loaded(&name, error)))
        });
    }

    pub(super) fn bench(
        &mut self,
        model: &str,
        reply: oneshot::Sender<Result<(u64, u64), AskError>>,
    ) {
        let Some(parts) = self.own_parts(model) else {
            let _ = reply.send(Err(self.unknown(model, Scope::Mine, &[])));
            return;
        };
        let (pool, notes) = (self.context.pool.clone(), self.notes.clone());
        let name = model.to_owned();
        self.tasks.spawn(async move {
            let rates = pool.rates(&parts, Whose::Owners).await;
            let _ = notes.send(Note::Measured).await;
            reply.send(rates.map_err(|error| not_loaded(&name, error)))
        });
    }

    pub(super) fn models_changed(&mut self) {
        if let Err(error) = self.shelf.reread() {
            tracing::error!(%error, "the list of models could not be read");
            return;
        }
        self.context.pool.look_again();
        self.tell_pool();
        let standings = self.shelf.standings();
        self.handle(Event::RegistryChanged(standings));
        self.refuse_unlent();
        self.tell_models();
        self.measure_next();
        for node in self.peers.keys().copied().collect::<Vec<_>>() {
            self.send_entries(node);
        }
    }

    /// Tells the pool which models have a name here; the workers of others end.
    pub(super) fn tell_pool(&self) {
        let pool = self.context.pool.clone();
        pool.know(self.shelf.names(), self.shelf.contexts());
        self.tasks.spawn(async move { pool.expire().await });
    }

    /// Tells the node what this machine can answer with, if that changed.
    pub(super) fn tell_models(&mut self) {
        let models = self.shelf.own_models(&self.context.pool);
        if models == self.told_models {
            return;
        }
        let gone = self.told_models.iter().map(|model| model.entry);
        let still = |entry: &RecordId| models.iter().any(|model| model.entry == *entry);
        self.lost.extend(gone.filter(|entry| !still(entry)));
        self.lost.retain(|entry| !still(entry));
        self.told_models.clone_from(&models);
        self.handle(Event::OwnModelsChanged(models));
    }

    /// Jobs of a model that this machine no longer holds, and nobody else either, are told at once. Those of a model
    /// that was always another's wait, because such a node comes back.
    pub(super) fn fail_hopeless(&mut self) {
        if self.lost.is_empty() {
            return;
        }
        let named = |job: &Requested| job.entries.clone();
        let asked: Vec<RecordId> = self.jobs.values().flat_map(named).collect();
        self.lost.retain(|entry| asked.contains(entry));
        let hopeless = |id: &JobId| {
            let job = self.jobs.get(id)?;
            let was_own = job.entries.iter().any(|entry| self.lost.contains(entry));
            (was_own && !self.is_held(&job.entries, job.scope, Placement::Any)).then_some(*id)
        };
        let waiting = self.node.jobs().into_iter();
        let hopeless: Vec<JobId> = waiting
            .filter(|status| status.phase == JobPhase::Waiting)
            .filter_map(|status| hopeless(&status.job))
            .collect();
        for job in hopeless {
            if let Some(requested) = self.jobs.get_mut(&job) {
                requested.hopeless = true;
            }
            self.handle(Event::JobCancelled { job });
        }
    }

    /// The model of one of our own jobs does not fit here. If nobody else holds it, waiting would change nothing.
    pub(super) fn on_no_room(&mut self, job: JobId, why: String) {
        let Some(requested) = self.jobs.get(&job) else {
            return;
        };
        let (entries, scope) = (requested.entries.clone(), requested.scope);
        if self.is_held(&entries, scope, Placement::Elsewhere) {
            return;
        }
        if let Some(requested) = self.jobs.get_mut(&job) {
            requested.no_room = Some(why);
        }
        self.handle(Event::JobCancelled { job });
    }

    /// Entries held but not on the owner's list of what is lent.
    pub(super) fn refuse_unlent(&mut self) {
        let lending = &self.settings.config().lending;
        let held = self.shelf.held();
        // A model is lent if it is under any of its names.
        let lent = held.iter().filter(|held| lending.lends(&held.name));
        let lent: BTreeSet<RecordId> = lent.map(|held| held.entry.id()).collect();
        let ids = held.iter().map(|held| held.entry.id());
        let refused = ids.filter(|id| !lent.contains(id)).collect();
        for name in lending.unknown_models(held.iter().map(|held| &held.name)) {
            tracing::warn!(%name, "a model on the list of what is lent is not on this machine");
        }
        self.settings.set_refused_entries(refused);
    }

    /// Measures the next model without known rates, one at a time and away from the loop.
    pub(super) fn measure_next(&mut self) {
        if self.measuring || self.context.pool.is_taken_from(Whose::Others) {
            return;
        }
        let next = self
            .shelf
            .held()
            .iter()
            .map(Held::parts)
            .find(|parts| self.context.pool.needs_measuring(parts));
        let Some(parts) = next else { return };
        self.measuring = true;
        let (pool, notes) = (self.context.pool.clone(), self.notes.clone());
        self.tasks.spawn(async move {
            if let Err(error) = pool.rates(&parts, Whose::Others).await {
                tracing::warn!(model = %parts, %error, "the model's speed could not be measured");
            }
            let _ = notes.send(Note::Measured).await;
        });
    }
}

/// A machine that is too small is no fault of ours.
fn not_loaded(model: &str, error: LoadError) -> AskError {
    match error {
        LoadError::NoRoom { why, .. } => AskError::NoNode {
            model: model.to_owned(),
            scope: Scope::Mine,
            why,
        },
        error => AskError::Internal {
            why: error.to_string(),
        },
    }
}
