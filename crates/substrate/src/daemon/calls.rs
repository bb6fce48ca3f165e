//! The door's calls, answered from the loop's state. What waits for others is handed to a task.

use std::sync::Arc;

use substrate_node::{Event, JobPhase, Want, WorkPhase};
use substrate_record::{ContentHash, JobId, RecordId, WallTier};
use substrate_sandbox::wire::input::{Image, Input, Prompt};
use tokio::sync::{Mutex, mpsc, oneshot};

use super::context::{blocking, draw, unix_ms};
use super::life::{Arrival, Life, Note, Requested};
use super::session::answer::{Answer, kind_of};
use super::{defaults, joining, views};
use crate::config::Config;
use crate::door::{
    Ask, AskError, Call, Client, JOB_EVENT_DEPTH, JobEvent, JobStream, JobView, Joined, Placement,
    QueueNews,
};
use crate::invite::{self, Invite};
use crate::models::parts::Parts;
use crate::pause::Pause;

/// Tokens of an image, for the estimate before a worker has counted: those of the most common encoders, 256 to 729.
const TOKENS_PER_IMAGE: usize = 512;

/// The wall demanded where nobody says which.
const DEFAULT_DEMAND: WallTier = WallTier::Process;

/// Bytes per token, low: admission and routing must not underestimate a prompt of an odd script.
const BYTES_PER_TOKEN: usize = 3;

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
            Call::Fit {
                model,
                context,
                reply,
            } => self.fit(&model, context, reply),
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

    fn submit(&mut self, mut ask: Ask) -> Result<JobStream, AskError> {
        let default = self.settings.config().api.default_scope;
        let scope = ask.scope.unwrap_or_else(|| default.into());
        let entries = self.shelf.named(&ask.model);
        if entries.is_empty() || !self.is_held(&entries, scope, ask.placement) {
            return Err(self.unknown(&ask.model, scope, &entries));
        }
        if let Some(recipe) = self.shelf.recipe(&ask.model) {
            defaults::fill(&mut ask, &recipe);
        }
        let images = images_of(&ask.input);
        let seen: usize = images.iter().map(|image| image.bytes.len()).sum();
        if !images.is_empty() && !self.sees(&entries) {
            return Err(AskError::BadRequest {
                param: None,
                why: format!(
                    "'{}' sees no images: it has no projector (`substrate import FILE --projector MMPROJ --as NAME` brings one along)",
                    ask.model
                ),
            });
        }
        let input = ask
            .input
            .to_cbor_bytes()
            .map_err(|error| AskError::BadRequest {
                param: None,
                why: error.to_string(),
            })?;
        let wall = ask.wall.unwrap_or(DEFAULT_DEMAND);
        let max_tokens = match &ask.input.prompt {
            Prompt::Texts { texts, .. } => u32::try_from(texts.len()).unwrap_or(u32::MAX),
            Prompt::Chat(_) | Prompt::Text { .. } => ask
                .max_tokens
                .unwrap_or_else(|| self.longest(&entries))
                .max(1),
        };
        let job = JobId::from_bytes(draw());
        let (events, stream) = mpsc::channel(JOB_EVENT_DEPTH);
        let want = Want {
            entries,
            scope,
            placement: placement(ask.placement),
            wall,
            isolated: ask.isolated,
            kind: kind_of(&ask.input),
            n_in_estimate: n_in(input.len() - seen, images.len()),
            max_tokens,
            deadline_ms: ask.deadline_ms,
            client: client_id(&ask.client),
            patient: ask.patient,
        };
        let model = self.full_name(&ask.model);
        let answer = Answer::new(&ask, input, wall, max_tokens, events.clone());
        let requested = Requested {
            answer: Arc::new(Mutex::new(answer)),
            events: events.clone(),
            client: ask.client,
            model: model.clone(),
            entries: want.entries.clone(),
            scope,
            deadline_ms: ask.deadline_ms,
            overflow: None,
            hopeless: false,
            no_room: None,
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

    /// Whether a model of these entries sees images.
    fn sees(&self, entries: &[RecordId]) -> bool {
        let mut entries = entries.iter().filter_map(|id| self.shelf.entry(id));
        entries.any(|entry| Parts::of(entry.body()).is_some_and(|parts| parts.projector.is_some()))
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

    fn job_views(&self) -> Vec<JobView> {
        let now = self.context.now();
        let requested = self.node.jobs().into_iter().map(|status| {
            let job = self.jobs.get(&status.job);
            let model = job.map_or_else(String::new, |job| job.model.clone());
            let client = job.map(|job| job.client.clone());
            let mut view = views::requested(&status, model, client, now);
            if view.state == "starting" && view.peer == Some(self.context.me) {
                view.queue = job.and_then(|job| self.load_news(&job.entries));
            }
            view
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

    /// What a job of this machine waits for while its model is loaded.
    fn load_news(&self, entries: &[RecordId]) -> Option<QueueNews> {
        let entries = entries.iter().filter_map(|id| self.shelf.entry(id));
        let wanted: Vec<Parts> = entries
            .filter_map(|entry| Parts::of(entry.body()))
            .collect();
        let loading = self.context.pool.loading();
        let (_, loading) = (loading.into_iter()).find(|(parts, _)| wanted.contains(parts))?;
        Some(QueueNews {
            position: 0,
            expected_wait_ms: 0,
            why: format!("its model: {}", loading.stage.word()),
        })
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
            withheld: self.settings.withheld(self.context.now()),
            peers: views::count(self.peers.len()),
            running: views::count(running),
            waiting: views::count(waiting),
            wall: self.context.pool.wall(),
            rss: views::resident_bytes(),
            uptime_ms: self.context.now().0,
            stopping: self.stopping,
            warnings: self.warnings_now(),
        };
        let mesh = self.context.mesh.clone();
        self.tasks.spawn(async move {
            reply.send(crate::door::Status {
                listen: mesh.listen_addrs().await,
                ..status
            })
        });
    }

    fn warnings_now(&self) -> Vec<String> {
        let stopping =
            "the daemon is stopping: it finishes or hands over what runs and takes nothing new";
        let stopping = self.stopping.then(|| stopping.to_owned());
        self.warnings.iter().cloned().chain(stopping).collect()
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
        self.context.pool.use_cores(config.lending.cores);
        let now = self.context.now();
        self.settings
            .replace(config, circle.into_iter().collect(), now);
        self.settings
            .set_pause(Pause::read(&self.context.desk.home));
        self.refuse_unlent();
        self.tell_circle();
        let lending = self.settings.lending();
        self.handle(Event::LendingChanged(lending));
        self.mind_owner();
        Ok(())
    }

    fn join(&mut self, code: &str, reply: oneshot::Sender<Result<Joined, String>>) {
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
                    Ok(joined) => {
                        let _ = notes
                            .send(Note::MovedNetwork(Arrival { joined, reply }))
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
            let addrs = invite::reachable(context.mesh.listen_addrs().await);
            if addrs.is_empty() {
                let why = "this node listens on no address, so nobody could use a code; \
                           set mesh.listen in config.toml or start it with `serve --listen`";
                return reply.send(Err(why.to_owned()));
            }
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
        let now = self.context.now();
        self.settings.replace(config, circle.clone(), now);
        self.publisher.set_circle(circle.clone());
        self.keep_entries_of(&circle);
        self.handle(Event::CircleChanged(circle));
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

/// The images of a conversation.
fn images_of(input: &Input) -> Vec<&Image> {
    match &input.prompt {
        Prompt::Chat(messages) => messages.iter().flat_map(|said| &said.images).collect(),
        Prompt::Text { .. } | Prompt::Texts { .. } => Vec::new(),
    }
}

/// About how many tokens so many bytes beside so many images are.
fn n_in(bytes: usize, images: usize) -> u32 {
    let tokens = bytes / BYTES_PER_TOKEN + images * TOKENS_PER_IMAGE;
    u32::try_from(tokens).unwrap_or(u32::MAX)
}
