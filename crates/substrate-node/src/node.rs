//! The node: one state, one door in ([`Node::handle`]), read-only windows out.
//!
//! Invariant: every change of state goes through `handle`, and at most one `WakeAt` comes out of it, as the last action.
//! Absent by design: anything that waits. What must happen later is a `WakeAt`.

use substrate_ledger::capacity::CapacityView;
use substrate_record::{NodeId, RecordId, Scope, SessionNonce, WallTier};

use crate::draws::Draws;
use crate::event::{Action, Event};
use crate::gossip::Gossip;
use crate::provider::{Offer, Provider};
use crate::requester::Requester;
use crate::route::ScopedCandidates;
use crate::status::{JobStatus, PeerStatus, WorkStatus};
use crate::terms::Timestamp;
use crate::world::{Peer, Step, World};

/// What a node is, for as long as it runs.
#[derive(Debug, Clone)]
pub struct Config {
    /// Its own key.
    pub own: NodeId,
    /// The session nonce of this start.
    pub session: SessionNonce,
    /// Sequences the machine can run at once.
    pub slots: u32,
    /// Wall tiers whose own probe passed here. Empty = this machine answers nobody, not even itself.
    pub walls: Vec<WallTier>,
    /// It can give a job a fresh worker of its own.
    pub isolated: bool,
    /// Jobs of its own clients it keeps, waiting or running; at most [`crate::limits::OWN_LIST`].
    pub own_list: usize,
}

/// The state machine of one node.
#[derive(Debug)]
pub struct Node {
    world: World,
    requester: Requester,
    provider: Provider,
    gossip: Gossip,
    draws: Draws,
    /// The last `WakeAt`, until it is due.
    wake: Option<Timestamp>,
}

impl Node {
    /// A node that knows nothing yet. `seed` drives its few random choices and nothing else.
    pub fn new(config: Config, seed: u64) -> Self {
        let mut draws = Draws::new(seed);
        let view = CapacityView::new(draws.next());
        Self {
            world: World::new(config, view),
            requester: Requester::default(),
            provider: Provider::default(),
            gossip: Gossip::default(),
            draws,
            wake: None,
        }
    }

    /// Takes one event, answers with what to do, in order.
    pub fn handle(&mut self, now: Timestamp, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        let Self {
            world,
            requester,
            provider,
            gossip,
            draws,
            wake,
        } = self;
        let mut step = Step {
            now,
            world,
            draws,
            actions: &mut actions,
        };
        match Role::of(&event) {
            Role::Requester => on_requester(requester, &mut step, event),
            Role::Provider => on_provider(provider, requester, &mut step, event),
            Role::World => on_world(requester, provider, gossip, &mut step, event),
        }
        gossip.note_queue(now, provider.queue_len());
        if wake.is_none_or(|at| now >= at) {
            requester.on_time(&mut step);
            provider.on_time(&mut step);
            if gossip.on_time(&mut step, provider.queue_len()) {
                requester.stir();
            }
            *wake = None;
        }
        requester.dispatch(&mut step, provider.lent_out());
        let due = [
            requester.due(step.world),
            provider.due(step.world),
            Some(gossip.due(step.world)),
        ];
        // Never in the past: what is due now was done, and what it caused may be due a millisecond later.
        let next = due.into_iter().flatten().min().map(|at| at.max(now + 1));
        if next.is_some_and(|at| wake.is_none_or(|set| at < set)) {
            *wake = next;
            actions.extend(next.map(Action::WakeAt));
        }
        actions
    }

    /// Jobs of this daemon's clients, oldest first.
    pub fn jobs(&self) -> Vec<JobStatus> {
        self.requester.statuses()
    }

    /// Attempts this node holds for requesters, itself included.
    pub fn work(&self) -> Vec<WorkStatus> {
        self.provider.statuses()
    }

    /// Attempts waiting in this node's queue.
    pub fn queue_len(&self) -> usize {
        self.provider.queue_len()
    }

    /// Connected peers and known capabilities, by key.
    pub fn peers(&self) -> Vec<PeerStatus<'_>> {
        let known = self.world.view.iter().map(|record| record.author());
        let mut nodes: Vec<_> = known.chain(self.world.peers.keys().copied()).collect();
        nodes.sort_unstable();
        nodes.dedup();
        nodes.into_iter().map(|node| self.peer(node)).collect()
    }

    fn peer(&self, node: NodeId) -> PeerStatus<'_> {
        let peer = self.world.peers.get(&node);
        PeerStatus {
            node,
            connected: peer.is_some(),
            rtt_ms: peer.map(|peer| peer.rtt_ms),
            session: peer.map(|peer| peer.session),
            circle: self.world.circle.contains(&node),
            capability: self.world.view.get(&node),
            walls: self.world.walls_of(&node).collect(),
        }
    }

    /// Nodes that a job of this scope for this entry could go to now, own first.
    pub fn holders(&self, entry: &RecordId, scope: Scope) -> Vec<NodeId> {
        ScopedCandidates::of(&self.world, scope).holders(entry)
    }

    /// The bounded view of who can do what.
    pub fn capacity(&self) -> &CapacityView {
        &self.world.view
    }

    /// The session nonce in force.
    pub fn session(&self) -> SessionNonce {
        self.world.config.session
    }
}

/// Which of the three roles an event is for.
enum Role {
    Requester,
    Provider,
    World,
}

impl Role {
    fn of(event: &Event) -> Self {
        use Event as E;
        match event {
            E::JobSubmitted { .. }
            | E::JobCancelled { .. }
            | E::PeerQueued { .. }
            | E::PeerReady { .. }
            | E::PeerStarted { .. }
            | E::PeerProgress { .. }
            | E::PeerFinished { .. }
            | E::PeerRefused { .. }
            | E::PeerHeartbeat { .. }
            | E::PeerResumed { .. }
            | E::PeerMisbehaved { .. }
            | E::StreamLost { .. }
            | E::ResumeFailed { .. }
            | E::DialFailed { .. }
            | E::OfferImpossible { .. }
            | E::ReceiptStored { .. } => Self::Requester,
            E::OfferArrived { .. }
            | E::InputArrived { .. }
            | E::WorkStarted { .. }
            | E::WorkProgress { .. }
            | E::WorkFinished { .. }
            | E::WorkFailed { .. }
            | E::RequesterCancelled { .. }
            | E::RequesterLost { .. }
            | E::RequesterResumed { .. }
            | E::RequesterHeartbeat { .. } => Self::Provider,
            _ => Self::World,
        }
    }
}

fn on_requester(requester: &mut Requester, step: &mut Step<'_>, event: Event) {
    match event {
        Event::JobSubmitted { job, want } => requester.on_submitted(step, job, want),
        Event::JobCancelled { job } => requester.on_cancelled(step, job),
        Event::PeerQueued {
            attempt,
            position,
            expected_wait_ms,
        } => {
            requester.on_queued(step, attempt, position, expected_wait_ms);
        }
        Event::PeerReady { attempt } => requester.on_ready(step, attempt),
        Event::PeerStarted { attempt, n_in } => requester.on_started(step, attempt, n_in),
        Event::PeerProgress {
            attempt,
            prefilled,
            tokens,
        } => {
            requester.on_progress(step, attempt, prefilled, tokens);
        }
        Event::PeerFinished {
            attempt,
            tokens,
            finish,
        } => requester.on_finished(step, attempt, tokens, finish),
        Event::PeerRefused {
            attempt,
            why,
            retry_after_ms,
        } => {
            requester.on_refused(step, attempt, why, retry_after_ms);
        }
        Event::PeerHeartbeat { attempt } => requester.on_heartbeat(step, attempt),
        Event::PeerResumed { attempt } => requester.on_resumed(step, attempt),
        Event::PeerMisbehaved { attempt } => requester.on_misbehaved(step, attempt),
        Event::StreamLost { attempt, .. } => requester.on_stream_lost(step, attempt),
        Event::ResumeFailed { attempt } => requester.on_resume_failed(step, attempt),
        Event::DialFailed { attempt } => requester.lose(step, attempt),
        Event::OfferImpossible { attempt, why } => requester.on_impossible(step, attempt, why),
        Event::ReceiptStored { attempt } => requester.on_receipt_stored(step, attempt),
        _ => {}
    }
}

fn on_provider(provider: &mut Provider, requester: &Requester, step: &mut Step<'_>, event: Event) {
    match event {
        Event::OfferArrived {
            attempt,
            manifest,
            session,
            terms,
        } => {
            let is_own = attempt.peer == step.world.own();
            let own = requester.identity_of(&attempt.job).filter(|_| is_own);
            provider.on_offer(
                step,
                Offer {
                    attempt,
                    manifest,
                    session,
                    terms,
                    own,
                },
            );
        }
        Event::InputArrived { attempt } => provider.on_input(step, attempt),
        Event::WorkStarted { attempt, n_in } => provider.on_work_started(step, attempt, n_in),
        Event::WorkProgress {
            attempt,
            prefilled,
            tokens,
        } => {
            provider.on_work_progress(step, attempt, prefilled, tokens);
        }
        Event::WorkFinished { attempt, tokens } => provider.on_work_finished(step, attempt, tokens),
        Event::WorkFailed { attempt, why } => provider.on_work_failed(step, attempt, why),
        Event::RequesterCancelled { attempt } => provider.on_requester_cancelled(step, attempt),
        Event::RequesterLost { attempt } => provider.on_requester_lost(step, attempt),
        Event::RequesterResumed { attempt } => provider.on_requester_resumed(step, attempt),
        Event::RequesterHeartbeat { attempt } => provider.on_requester_heartbeat(step.now, attempt),
        _ => {}
    }
}

fn on_world(
    requester: &mut Requester,
    provider: &mut Provider,
    gossip: &mut Gossip,
    step: &mut Step<'_>,
    event: Event,
) {
    let now = step.now;
    match event {
        Event::CapabilitySeen {
            record,
            from,
            direct,
            attested,
        } => {
            let (id, author) = (record.id(), record.author());
            let news = gossip.on_capability(step, record, from, direct);
            if news {
                step.world.set_attested(author, attested.then_some(id));
                requester.stir();
            }
        }
        Event::PeerUp {
            node,
            rtt_ms,
            session,
        } => {
            let new = step.world.peer_up(node, Peer { rtt_ms, session });
            if new {
                gossip.on_peer_up(now);
                requester.stir();
            }
        }
        Event::PeerDown { node } => {
            step.world.peers.remove(&node);
            requester.on_peer_down(step, node);
            provider.on_peer_down(step, node);
        }
        Event::RttMeasured { node, rtt_ms } => {
            if let Some(peer) = step.world.peers.get_mut(&node) {
                peer.rtt_ms = rtt_ms;
            }
        }
        Event::CircleChanged(_)
        | Event::OwnModelsChanged(_)
        | Event::RegistryChanged(_)
        | Event::LendingChanged(_)
        | Event::WallsChanged(_) => on_facts(requester, provider, gossip, step, event),
        Event::SessionRenewed(session) => provider.on_session_renewed(step.world, session),
        Event::Draining => {
            step.world.draining = true;
            provider.on_draining(step);
            gossip.want(now);
        }
        _ => {}
    }
}

/// The owner's facts changed: whatever they no longer allow ends now, whatever they newly allow begins.
fn on_facts(
    requester: &mut Requester,
    provider: &mut Provider,
    gossip: &mut Gossip,
    step: &mut Step<'_>,
    event: Event,
) {
    match event {
        Event::CircleChanged(circle) => step.world.set_circle(circle.into_iter().collect()),
        Event::OwnModelsChanged(models) => {
            step.world.models = models
                .into_iter()
                .map(|model| (model.entry, model))
                .collect();
        }
        Event::RegistryChanged(registry) => step.world.registry = registry,
        Event::LendingChanged(lending) => step.world.lending = lending,
        Event::WallsChanged(walls) => step.world.config.walls = walls,
        _ => return,
    }
    requester.recheck_scope(step);
    provider.recheck(step);
    gossip.want(step.now);
}
