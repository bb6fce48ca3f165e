//! The daemon's one loop: everything that happens becomes an event of the node, and the node's actions are performed.
//!
//! Invariant: this task alone owns the node and the tables of live jobs; it never waits for a peer, a worker or a disk.
//! Absent by design: decisions. They are the node's.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use substrate_mesh::{MeshEvent, MessageToken};
use substrate_node::{AttemptId, Event, MoveReason, Node, Refusal, Timestamp};
use substrate_record::{JobId, NodeId, RecordId, Scope, SessionNonce, WallTier};
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::context::Context;
use super::joining::Joins;
use super::owner::Seen;
use super::owner::senses::Senses;
use super::publish::Publisher;
use super::session::answer::Answer;
use super::session::{ProviderOrder, REPORT_DEPTH, Report, RequesterOrder};
use super::settings::Settings;
use super::shelf::Shelf;
use super::topup::TopUp;
use super::unlisted::Unlisted;
use crate::door::{Call, Client, JobEvent, Joined, Overflow};

/// How often housekeeping looks at workers, settings and the clock.
const HOUSEKEEPING: Duration = Duration::from_secs(1);

/// How often it is looked whether the owner uses the machine: with a reading of half a second behind it, a sign of use
/// ends lending within a second (DESIGN 10).
const LOOK: Duration = Duration::from_millis(200);

/// Gossiped capabilities whose verdict is open: more than the node's view holds, far less than a flood.
pub const MAX_OPEN_GOSSIP: usize = 512;

/// A job a client of this daemon asked for.
pub struct Requested {
    /// What was asked and what came.
    pub answer: Arc<Mutex<Answer>>,
    /// Its client.
    pub events: mpsc::Sender<JobEvent>,
    /// Who asked.
    pub client: Client,
    /// Model name as shown.
    pub model: String,
    /// The entries it may be answered with.
    pub entries: Vec<RecordId>,
    /// Signed scope.
    pub scope: Scope,
    /// The client's patience.
    pub deadline_ms: u64,
    /// The prompt's tokens and those of the context, if this machine's worker found it too long.
    pub overflow: Option<Overflow>,
    /// This machine lost the model, and nobody else holds it.
    pub hopeless: bool,
    /// The model does not fit this machine, and nobody else holds it: what its owner is told.
    pub no_room: Option<String>,
    /// The node the answer left, until the next offer tells the client.
    pub moved: Option<(NodeId, MoveReason)>,
}

/// A connected peer.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Its session nonce, named in manifests for it.
    pub session: SessionNonce,
    /// Wall clock minus ours.
    pub skew_ms: i64,
    /// Release and build.
    pub build: String,
    /// We opened the first connection.
    pub outbound: bool,
}

/// An attempt this node works on.
pub struct Provider {
    /// Names its session.
    pub session: u64,
    /// Where it takes orders.
    pub orders: mpsc::Sender<ProviderOrder>,
}

/// How the loop ended.
pub enum Ending {
    /// The daemon was told to stop.
    Stopped,
    /// Another network was joined: start again in it.
    Moved(Arrival),
}

/// The loop's state.
pub struct Life {
    pub(super) context: Arc<Context>,
    pub(super) node: Node,
    pub(super) shelf: Shelf,
    pub(super) settings: Settings,
    pub(super) jobs: BTreeMap<JobId, Requested>,
    pub(super) requesters: BTreeMap<AttemptId, mpsc::Sender<RequesterOrder>>,
    pub(super) providers: BTreeMap<AttemptId, Provider>,
    pub(super) resumable: BTreeMap<RecordId, AttemptId>,
    pub(super) peers: BTreeMap<NodeId, Peer>,
    pub(super) gossip: BTreeMap<RecordId, MessageToken>,
    pub(super) unlisted: Unlisted,
    pub(super) topping_up: TopUp,
    pub(super) joins: Joins,
    pub(super) publisher: Publisher,
    pub(super) reports: mpsc::Sender<Report>,
    pub(super) tasks: TaskTracker,
    pub(super) wake: Option<Instant>,
    pub(super) stop: CancellationToken,
    pub(super) ending: Ending,
    /// The daemon ends with this life, which takes nothing new any more.
    pub(super) stopping: bool,
    pub(super) warnings: Vec<String>,
    /// Walls as last told to the node, and so for models.
    pub(super) told_walls: Vec<WallTier>,
    /// Own models as last told to the node, so that housekeeping tells only changes.
    pub(super) told_models: Vec<substrate_node::OwnModel>,
    /// Entries this machine could answer with and no longer can, as long as a job asks for them.
    pub(super) lost: BTreeSet<RecordId>,
    /// Whether some model's rates are being measured.
    pub(super) measuring: bool,
    /// What looks after the owner; away while it does.
    pub(super) senses: Option<Box<Senses>>,
    /// The owner keeps the machine to itself, and the pool was told.
    pub(super) withheld: bool,
    /// What tasks of the loop's own report back.
    pub(super) notes: mpsc::Sender<Note>,
}

/// What the loop's own helpers report back.
pub enum Note {
    /// A model's rates were measured, or could not be.
    Measured,
    /// Records that a peer sent us alone.
    Direct {
        /// Who.
        from: NodeId,
        /// What.
        records: Vec<substrate_record::AnyRecord>,
    },
    /// It was looked whether the owner uses the machine.
    Looked {
        /// For the next look.
        senses: Box<Senses>,
        /// What was seen.
        seen: Seen,
    },
    /// Somebody redeemed an invite and is listed now.
    Joined(NodeId),
    /// We are in another network now; told to the asker once the daemon lives in it.
    MovedNetwork(Arrival),
}

/// The answer to a join, sent when the daemon lives in the network joined.
pub struct Arrival {
    /// From where to where.
    pub joined: Joined,
    /// Who asked.
    pub reply: oneshot::Sender<Result<Joined, String>>,
}

/// Channels the loop reads.
pub struct Inboxes {
    /// Calls of the listeners.
    pub calls: mpsc::Receiver<Call>,
    /// The mesh.
    pub mesh: mpsc::Receiver<MeshEvent>,
    /// Sessions.
    pub reports: mpsc::Receiver<Report>,
    /// Own tasks.
    pub notes: mpsc::Receiver<Note>,
}

/// The channel sessions report by.
pub fn report_channel() -> (mpsc::Sender<Report>, mpsc::Receiver<Report>) {
    mpsc::channel(REPORT_DEPTH)
}

impl Life {
    /// Runs until told to stop, then lets running jobs finish or hands them over. Calls are taken from the
    /// inbox as long as the loop lives; the inbox goes back to the caller for a next life.
    pub async fn run(mut self, mut inboxes: Inboxes) -> (Ending, mpsc::Receiver<Call>) {
        self.begin();
        let mut housekeeping = interval(HOUSEKEEPING);
        housekeeping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => break,
                Some(report) = inboxes.reports.recv() => self.on_report(report),
                Some(event) = inboxes.mesh.recv() => self.on_mesh(event).await,
                Some(note) = inboxes.notes.recv() => self.on_note(note),
                Some(call) = inboxes.calls.recv() => self.on_call(call).await,
                () = due(self.wake) => self.handle(Event::Tick),
                _ = looks.tick() => self.look(),
                _ = housekeeping.tick() => self.keep_house().await,
            }
        }
        self.drain(&mut inboxes).await;
        (self.ending, inboxes.calls)
    }

    /// Tells the node everything it starts from.
    fn begin(&mut self) {
        let standings = self.shelf.standings();
        self.handle(Event::RegistryChanged(standings));
        self.tell_pool();
        self.tell_models();
        self.tell_circle();
        let lending = self.settings.lending();
        self.handle(Event::LendingChanged(lending));
        self.mind_owner();
        self.measure_next();
    }

    /// One event into the node, its actions out.
    pub(super) fn handle(&mut self, event: Event) {
        let now = self.context.now();
        if !matches!(event, Event::Tick) {
            tracing::trace!(?now, ?event, "node");
        }
        for action in self.node.handle(now, event) {
            tracing::trace!(?action, "node");
            self.perform(action);
        }
    }

    pub(super) fn wake_at(&mut self, at: Timestamp) {
        let now = self.context.now();
        self.wake = Some(Instant::now() + Duration::from_millis(at.since(now)));
    }

    pub(super) fn on_report(&mut self, report: Report) {
        match report {
            Report::Event(event) => self.handle(event),
            Report::Offered {
                attempt,
                session,
                manifest,
                orders,
                event,
            } => self.on_offered(attempt, manifest, Provider { session, orders }, event),
            Report::Reattach {
                from,
                manifest,
                tokens,
                io,
            } => self.reattach(from, manifest, tokens, io),
            Report::RequesterClosed(attempt) => {
                self.requesters.remove(&attempt);
            }
            Report::ProviderClosed { attempt, session } => {
                if self
                    .providers
                    .get(&attempt)
                    .is_some_and(|held| held.session == session)
                {
                    self.providers.remove(&attempt);
                    self.resumable.retain(|_, known| *known != attempt);
                }
            }
            Report::Overflow { job, tokens } => {
                if let Some(job) = self.jobs.get_mut(&job) {
                    job.overflow = Some(tokens);
                }
            }
            Report::NoRoom { job, why } => self.on_no_room(job, why),
            Report::Offence { node, kind, what } => self.penalise(node, kind, &what),
        }
    }

    /// A second stream that claims an attempt held here is refused by itself: the node knows the first.
    fn on_offered(
        &mut self,
        attempt: AttemptId,
        manifest: RecordId,
        provider: Provider,
        event: Event,
    ) {
        if self.providers.contains_key(&attempt) {
            let why = Refusal::Replayed;
            // A fresh session has an empty inbox.
            let _ = provider.orders.try_send(ProviderOrder::Refuse {
                why,
                retry_after_ms: 0,
            });
            return;
        }
        self.providers.insert(attempt, provider);
        self.resumable.insert(manifest, attempt);
        self.handle(event);
    }

    fn on_note(&mut self, note: Note) {
        match note {
            Note::Measured => {
                self.measuring = false;
                self.tell_models();
                self.measure_next();
            }
            Note::Direct { from, records } => self.on_direct(from, records),
            Note::Looked { senses, seen } => {
                self.senses = Some(senses);
                self.on_looked(seen);
            }
            Note::Joined(node) => {
                self.tell_circle();
                self.send_entries(node);
            }
            Note::MovedNetwork(arrival) => {
                self.ending = Ending::Moved(arrival);
                self.stop.cancel();
            }
        }
    }

    async fn keep_house(&mut self) {
        self.context.pool.expire().await;
        self.context.pool.fit_threads();
        self.tell_walls();
        self.tell_models();
        self.fail_hopeless();
        self.announce_entries();
        self.top_up();
        self.mind_invites();
        self.tell_lending();
    }

    /// A wall that did not hold is not offered any more.
    fn tell_walls(&mut self) {
        let walls = self.context.pool.walls();
        if walls == self.told_walls {
            return;
        }
        if let Some(why) = self.context.pool.no_machines() {
            self.warnings
                .push(format!("virtual machines are no wall here any more: {why}"));
        }
        self.told_walls.clone_from(&walls);
        self.handle(Event::WallsChanged(walls));
    }
}

/// Waits until then, or for ever.
pub(super) async fn due(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}
