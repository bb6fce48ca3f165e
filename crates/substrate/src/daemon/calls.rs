//! The door's calls, answered from the loop's state. What waits for others is handed to a task.

use std::sync::Arc;

use substrate_node::{Event, JobPhase, Want, WorkPhase};
use substrate_record::{ContentHash, JobId, JobKind, RecordId, Scope, WallTier};
use tokio::sync::{Mutex, mpsc, oneshot};

use super::context::{blocking, draw, unix_ms};
use super::life::{Arrival, Life, Note, Requested};
use super::session::answer::Answer;
use super::{joining, views};
use crate::config::Config;
use crate::door::{
    Ask, AskError, Call, Client, JOB_EVENT_DEPTH, JobEvent, JobStream, JobView, Placement,
    scope_word,
};
use crate::invite::{self, Invite};

/// Bytes per token, low: admission and routing must not underestimate a prompt of an odd script.
const BYTES_PER_TOKEN: usize = 3;

/// Tokens of an answer that asked for no limit; the worker stops at the context's end in any case.
const UNLIMITED_TOKENS: u32 = 4096;

impl Life {
    pub(super) async fn on_call(&mut self, call: Call) {
        match call {
            Call::Submit { ask, reply } => drop(reply.send(self.submit(*ask))),
            Call::Cancel { job, reply } => {
                let known = self.jobs.contains_key(&job);
                self.handle(Event::JobCancelled { job });
                let _ = reply.send(known);
            }
            Call::Models { scope, reply } => drop(reply.send(self.model_views(scope))),
            Call::Jobs { reply } => drop(reply.send(self.job_views())),
            Call::Workers { reply } => {
                drop(reply.send(views::workers(&self.context.pool, self.shelf.held())))
            }
            Call::KeepAlive {
                model,
                seconds,
                reply,
            } => self.keep_alive(&model, seconds, reply),
            Call::Load { model, reply } => self.load(&model, reply),
            Call::Peers { reply } => self.peer_views(reply),
            Call::Status { reply } => self.status(reply),
            Call::ModelsChanged { reply } => {
                self.models_changed();
                let _ = reply.send(());
            }
            Call::SettingsChanged { reply } => drop(reply.send(self.settings_changed())),
            Call::Join { code, reply } => self.join(&code, reply),
            Call::Invite {
                circle,
                valid_ms,
                reply,
            } => self.invite(circle, valid_ms, reply),
            Call::Bench { model, reply } => self.bench(&model, reply),
            Call::Stop { reply } => {
                let _ = reply.send(());
                self.stop.cancel();
            }
        }
    }

    fn submit(&mut self, ask: Ask) -> Result<JobStream, AskError> {
        let scope = ask.scope.unwrap_or(Scope::Circle);
        let entries = self.shelf.named(&ask.model);
        if entries.is_empty() || !self.is_held(&entries, scope, ask.placement) {
            return Err(self.unknown(&ask.model, scope, &entries));
        }
        let input = ask
            .input
            .to_cbor_bytes()
            .map_err(|error| AskError::BadRequest {
                param: None,
                why: error.to_string(),
            })?;
        let wall = ask.wall.unwrap_or(WallTier::Basic);
        let max_tokens = ask.max_tokens.unwrap_or(UNLIMITED_TOKENS).max(1);
        let job = JobId::from_bytes(draw());
        let (events, stream) = mpsc::channel(JOB_EVENT_DEPTH);
        let want = Want {
            entries,
            scope,
            placement: placement(ask.placement),
            wall,
            isolated: false,
            kind: JobKind::Generate,
            n_in_estimate: u32::try_from(input.len() / BYTES_PER_TOKEN).unwrap_or(u32::MAX),
            max_tokens,
            deadline_ms: ask.deadline_ms,
            client: client_id(&ask.client),
        };
        let model = self.full_name(&ask.model);
        let answer = Answer::new(&ask, input, wall, max_tokens, events.clone());
        let requested = Requested {
            answer: Arc::new(Mutex::new(answer)),
            events: events.clone(),
            model: model.clone(),
            scope,
            deadline_ms: ask.deadline_ms,
            moved: None,
        };
        self.jobs.insert(job, requested);
        self.watch_client(job, events);
        self.handle(Event::JobSubmitted { job, want });
        Ok(JobStream {
            job,
            scope,
            model,
            events: stream,
        })
    }

    /// A client that goes away cancels its job everywhere.
    fn watch_client(&self, job: JobId, events: mpsc::Sender<JobEvent>) {
        let reports = self.reports.clone();
        self.tasks.spawn(async move {
            events.closed().await;
            let _ = reports
                .send(super::session::Report::Event(Event::JobCancelled { job }))
                .await;
        });
    }

    fn is_held(&self, entries: &[RecordId], scope: Scope, place: Placement) -> bool {
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

    fn unknown(&self, model: &str, scope: Scope, entries: &[RecordId]) -> AskError {
        let wider = [Scope::Circle, Scope::Commons]
            .into_iter()
            .find(|wider| *wider > scope && self.is_held(entries, *wider, Placement::Any));
        let anywhere = self.is_held(entries, scope, Placement::Any);
        match wider {
            _ if anywhere => AskError::NoNode {
                model: model.to_owned(),
                scope,
                why: "no node at the place asked for holds it now".to_owned(),
            },
            Some(wider) => AskError::NoNode {
                model: model.to_owned(),
                scope,
                why: format!(
                    "nodes in scope {} hold it; ask with that scope to let them read the prompt",
                    scope_word(wider)
                ),
            },
            None => AskError::UnknownModel {
                model: model.to_owned(),
                similar: self.shelf.similar(model),
            },
        }
    }

    fn full_name(&self, model: &str) -> String {
        let first = self.shelf.named(model).into_iter().next();
        let held = self
            .shelf
            .held()
            .iter()
            .find(|held| Some(held.entry.id()) == first);
        match (held, first.and_then(|id| self.shelf.entry(&id))) {
            (Some(held), _) => held.name.to_string(),
            (None, Some(entry)) => entry.body().name.clone(),
            (None, None) => model.to_owned(),
        }
    }

    fn model_views(&self, scope: Scope) -> Vec<crate::door::ModelView> {
        let own = self.shelf.held().iter().map(|held| {
            let nodes = self.node.holders(&held.entry.id(), scope);
            views::own_model(held, nodes, self.context.pool.is_loaded(&held.weights()))
        });
        let held: Vec<ContentHash> = self
            .shelf
            .held()
            .iter()
            .map(crate::models::catalogue::Held::weights)
            .collect();
        let mut seen = held.clone();
        let mut views: Vec<_> = own.collect();
        for entry in self.shelf.entries() {
            let Some(weights) =
                super::session::closing::weights(entry).filter(|weights| !seen.contains(weights))
            else {
                continue;
            };
            let nodes = self.node.holders(&entry.id(), scope);
            if !nodes.is_empty() {
                seen.push(weights);
                views.push(views::others_model(entry, weights, nodes));
            }
        }
        views
    }

    fn job_views(&self) -> Vec<JobView> {
        let now = self.context.now();
        let requested = self.node.jobs().into_iter().map(|status| {
            let model = self
                .jobs
                .get(&status.job)
                .map_or_else(String::new, |job| job.model.clone());
            views::requested(&status, model, now)
        });
        let served = self
            .node
            .work()
            .into_iter()
            .filter(|work| work.attempt.peer != self.context.me)
            .map(|work| {
                let model = self
                    .shelf
                    .entry(&work.entry)
                    .map_or_else(String::new, |entry| entry.body().name.clone());
                views::serving(&work, model, now)
            });
        requested.chain(served).collect()
    }

    fn own_weights(&self, model: &str) -> Option<ContentHash> {
        let ids = self.shelf.named(model);
        self.shelf
            .held()
            .iter()
            .find(|held| ids.contains(&held.entry.id()))
            .map(crate::models::catalogue::Held::weights)
    }

    fn keep_alive(&mut self, model: &str, seconds: i64, reply: oneshot::Sender<bool>) {
        let Some(weights) = self.own_weights(model) else {
            let _ = reply.send(false);
            return;
        };
        let stay = u64::try_from(seconds)
            .ok()
            .map(std::time::Duration::from_secs);
        let pool = self.context.pool.clone();
        self.tasks
            .spawn(async move { reply.send(pool.keep_alive(&weights, stay).await) });
    }

    fn load(&mut self, model: &str, reply: oneshot::Sender<Result<(), AskError>>) {
        let Some(weights) = self.own_weights(model) else {
            // A model of another node is loaded there when it is asked.
            let held = self.is_held(&self.shelf.named(model), Scope::Circle, Placement::Any);
            let _ = reply.send(if held {
                Ok(())
            } else {
                Err(self.unknown(model, Scope::Circle, &[]))
            });
            return;
        };
        let pool = self.context.pool.clone();
        self.tasks.spawn(async move {
            let loaded = pool.lease(&weights).await.map(drop);
            reply.send(loaded.map_err(|error| AskError::Internal {
                why: error.to_string(),
            }))
        });
    }

    fn bench(&mut self, model: &str, reply: oneshot::Sender<Result<(u64, u64), AskError>>) {
        let Some(weights) = self.own_weights(model) else {
            let _ = reply.send(Err(self.unknown(model, Scope::Mine, &[])));
            return;
        };
        let (pool, notes) = (self.context.pool.clone(), self.notes.clone());
        self.tasks.spawn(async move {
            let rates = pool.rates(&weights, true).await;
            let _ = notes.send(Note::Measured).await;
            reply.send(rates.map_err(|error| AskError::Internal {
                why: error.to_string(),
            }))
        });
    }

    fn peer_views(&self, reply: oneshot::Sender<Vec<crate::door::PeerView>>) {
        let known: Vec<_> = self
            .node
            .peers()
            .iter()
            .map(|peer| views::peer(peer, self.peers.get(&peer.node), &self.shelf))
            .collect();
        let mesh = self.context.mesh.clone();
        self.tasks.spawn(async move {
            let connected = mesh.peers().await;
            reply.send(views::with_addresses(known, &connected))
        });
    }

    fn status(&self, reply: oneshot::Sender<crate::door::Status>) {
        let waiting = self
            .node
            .jobs()
            .iter()
            .filter(|job| job.phase < JobPhase::Preparing)
            .count();
        let running = self
            .node
            .work()
            .iter()
            .filter(|work| work.phase == WorkPhase::Running)
            .count();
        let status = crate::door::Status {
            node: self.context.me,
            network: (
                self.context.desk.genesis.body().name.clone(),
                self.context.network,
            ),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            listen: Vec::new(),
            api: self.context.api.first().map(ToString::to_string),
            lending: self.settings.lending_word().to_owned(),
            peers: views::count(self.peers.len()),
            running: views::count(running),
            waiting: views::count(waiting),
            wall: self.context.pool.wall(),
            rss: views::resident_bytes(),
            uptime_ms: self.context.now().0,
            warnings: self.warnings.clone(),
        };
        let mesh = self.context.mesh.clone();
        self.tasks.spawn(async move {
            reply.send(crate::door::Status {
                listen: mesh.listen_addrs().await,
                ..status
            })
        });
    }

    pub(super) fn models_changed(&mut self) {
        if let Err(error) = self.shelf.reread() {
            tracing::error!(%error, "the list of models could not be read");
            return;
        }
        let standings = self.shelf.standings();
        self.handle(Event::RegistryChanged(standings));
        self.refuse_unlent();
        self.tell_models();
        self.measure_next();
        for node in self.peers.keys().copied().collect::<Vec<_>>() {
            self.send_entries(node);
        }
    }

    fn settings_changed(&mut self) -> Result<(), String> {
        let config = Config::load(&self.context.desk.home).map_err(|error| error.to_string())?;
        let circle = self
            .context
            .desk
            .store
            .circle_members(&self.context.network)
            .map_err(|error| error.to_string())?;
        self.context.keys.replace(super::http_keys(&config));
        self.settings.replace(config, circle.into_iter().collect());
        self.refuse_unlent();
        self.tell_circle();
        let lending = self.settings.lending();
        self.handle(Event::LendingChanged(lending));
        Ok(())
    }

    fn join(&mut self, code: &str, reply: oneshot::Sender<Result<String, String>>) {
        let invite = match Invite::decode(code) {
            Ok(invite) => invite,
            Err(error) => return drop(reply.send(Err(error.to_string()))),
        };
        let (context, notes) = (self.context.clone(), self.notes.clone());
        self.tasks.spawn(async move {
            let joined = if invite.network == context.network {
                let inviter = invite.inviter;
                let joined = joining::enlist(context, invite).await;
                if joined.is_ok() {
                    let _ = notes.send(Note::Joined(inviter)).await;
                }
                joined
            } else {
                let identity = super::start::identity(&context.desk, Vec::new(), Vec::new());
                match joining::join(context.desk.clone(), invite, identity).await {
                    Ok(network) => {
                        let _ = notes
                            .send(Note::MovedNetwork(Arrival { network, reply }))
                            .await;
                        return;
                    }
                    Err(error) => Err(error),
                }
            };
            let _ = reply.send(joined.map_err(|error| format!("{error:#}")));
        });
    }

    fn invite(
        &mut self,
        circle: String,
        valid_ms: u64,
        reply: oneshot::Sender<Result<String, String>>,
    ) {
        let context = self.context.clone();
        self.tasks.spawn(async move {
            let addrs: Vec<String> = context
                .mesh
                .listen_addrs()
                .await
                .into_iter()
                .take(invite::MAX_ADDRS)
                .collect();
            let mesh = context.mesh.clone();
            let issued = blocking(move || {
                let invite = Invite {
                    network: context.network,
                    inviter: context.me,
                    addrs,
                    secret: invite::InviteSecret::draw(),
                    expires_ms: unix_ms().saturating_add(valid_ms),
                    circle: (!circle.is_empty()).then_some(circle),
                };
                invite::issue(&context.desk.store, &invite, unix_ms()).map(|()| invite.encode())
            });
            let issued = issued.await.map_err(|error| error.to_string());
            if issued.is_ok() {
                mesh.open_joins(true).await;
            }
            reply.send(issued)
        });
    }

    pub(super) fn tell_circle(&mut self) {
        let members = self
            .context
            .desk
            .store
            .circle_members(&self.context.network);
        let circle: Vec<_> = match members {
            Ok(members) => members.into_iter().collect(),
            Err(error) => {
                tracing::error!(%error, "the circles could not be read");
                return;
            }
        };
        let config = self.settings.config().clone();
        self.settings.replace(config, circle.clone());
        self.publisher.set_circle(circle.clone());
        self.keep_entries_of(&circle);
        self.handle(Event::CircleChanged(circle));
    }

    /// Tells the node what this machine can answer with, if that changed.
    pub(super) fn tell_models(&mut self) {
        let models = self.shelf.own_models(&self.context.pool);
        if models != self.told_models {
            self.told_models.clone_from(&models);
            self.handle(Event::OwnModelsChanged(models));
        }
    }

    /// Entries held but not on the owner's list of what is lent.
    pub(super) fn refuse_unlent(&mut self) {
        let lent = &self.settings.config().lending.models;
        let is_lent = |name: &str| lent.is_empty() || lent.iter().any(|lent| lent == name);
        let refused = self
            .shelf
            .held()
            .iter()
            .filter(|held| !is_lent(&held.name.to_string()))
            .map(|held| held.entry.id())
            .collect();
        self.settings.set_refused_entries(refused);
    }

    /// Measures the next model without known rates, one at a time and away from the loop.
    pub(super) fn measure_next(&mut self) {
        if self.measuring {
            return;
        }
        let next = self
            .shelf
            .held()
            .iter()
            .map(crate::models::catalogue::Held::weights)
            .find(|weights| self.context.pool.needs_measuring(weights));
        let Some(weights) = next else { return };
        self.measuring = true;
        let (pool, notes) = (self.context.pool.clone(), self.notes.clone());
        self.tasks.spawn(async move {
            if let Err(error) = pool.rates(&weights, false).await {
                tracing::warn!(model = %weights, %error, "the model's speed could not be measured");
            }
            let _ = notes.send(Note::Measured).await;
        });
    }
}

fn placement(place: Placement) -> substrate_node::Placement {
    match place {
        Placement::Any => substrate_node::Placement::Any,
        Placement::Elsewhere => substrate_node::Placement::Elsewhere,
        Placement::Node(node) => substrate_node::Placement::Node(node),
    }
}

/// A number for fairness; two keys fall together once in 2^64.
fn client_id(client: &Client) -> substrate_node::ClientId {
    let name = match client {
        Client::Owner => return substrate_node::ClientId(0),
        Client::Anonymous => return substrate_node::ClientId(1),
        Client::Key(name) => name,
    };
    let hash = ContentHash::of(name.as_bytes());
    let first: [u8; 8] = hash.as_bytes()[..8]
        .try_into()
        .expect("a hash has 32 bytes");
    substrate_node::ClientId(u64::from_be_bytes(first))
}
