//! What the node knows of the world: itself, its peers, its circle, who vouches for what, what it lends.
//!
//! Invariant: the two questions of scope, [`World::in_scope`] and [`World::valid_in`], are answered here and nowhere else;
//! requester and provider ask the same two.
//! A claim of a trusted execution environment counts in [`World::walls_of`] only, and only if the daemon believed its evidence.
//! Absent by design: jobs; anything another node could write except its capability.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use substrate_ledger::capacity::CapacityView;
use substrate_ledger::registry::Standing;
use substrate_record::{NodeId, RecordId, Scope, SessionNonce, WallTier};

use crate::conduct::Conducts;
use crate::draws::Draws;
use crate::event::Action;
use crate::limits::{PEERS, UNKNOWN_RTT_MS, USED_PINS};
use crate::node::Config;
use crate::terms::{Lending, LendingTerms, OwnModel, Timestamp};

/// One call of `handle`: the time, the facts, the draws, and the actions so far.
pub(crate) struct Step<'a> {
    pub now: Timestamp,
    pub world: &'a mut World,
    pub draws: &'a mut Draws,
    pub actions: &'a mut Vec<Action>,
}

impl Step<'_> {
    pub fn order(&mut self, action: Action) {
        self.actions.push(action);
    }
}

/// A connected peer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer {
    pub rtt_ms: u32,
    pub session: SessionNonce,
}

#[derive(Debug)]
pub(crate) struct World {
    pub config: Config,
    pub peers: BTreeMap<NodeId, Peer>,
    pub circle: BTreeSet<NodeId>,
    pub registry: BTreeMap<RecordId, Standing>,
    pub models: BTreeMap<RecordId, OwnModel>,
    pub lending: Lending,
    pub draining: bool,
    pub view: CapacityView,
    pub conducts: Conducts,
    /// Whose evidence of a trusted execution environment was believed, and which record carried it. Nobody out of view.
    attested: BTreeMap<NodeId, RecordId>,
    /// Nodes that answered us lately, oldest first; pinned in the view.
    used: VecDeque<NodeId>,
}

impl World {
    pub fn new(config: Config, view: CapacityView) -> Self {
        Self {
            config,
            peers: BTreeMap::new(),
            circle: BTreeSet::new(),
            registry: BTreeMap::new(),
            models: BTreeMap::new(),
            lending: Lending::Off,
            draining: false,
            view,
            conducts: Conducts::default(),
            attested: BTreeMap::new(),
            used: VecDeque::new(),
        }
    }

    pub fn own(&self) -> NodeId {
        self.config.own
    }

    /// May a job of this scope be shown to this node?
    pub fn in_scope(&self, scope: Scope, node: &NodeId) -> bool {
        let own = *node == self.own();
        match scope {
            Scope::Mine => own,
            Scope::Circle => own || self.circle.contains(node),
            Scope::Commons => true,
        }
    }

    /// Is this entry vouched for in this scope (PROTOCOL.md 7)?
    pub fn valid_in(&self, scope: Scope, entry: &RecordId) -> bool {
        match (self.registry.get(entry), scope) {
            (None, _) => false,
            (Some(Standing::Commons), _) => true,
            (Some(Standing::Device(_)), Scope::Commons) => false,
            (Some(Standing::Device(author)), _) => self.in_scope(scope, author),
        }
    }

    /// The widest scope, not wider than asked, in which one of the entries is vouched for.
    pub fn widest_valid(&self, asked: Scope, entries: &[RecordId]) -> Option<Scope> {
        [Scope::Commons, Scope::Circle, Scope::Mine]
            .into_iter()
            .filter(|scope| *scope <= asked)
            .find(|scope| entries.iter().any(|entry| self.valid_in(*scope, entry)))
    }

    /// What is lent now; `None` also while the node drains.
    pub fn lent(&self) -> Option<&LendingTerms> {
        match &self.lending {
            Lending::On(terms) if !self.draining && terms.widest > Scope::Mine => Some(terms),
            _ => None,
        }
    }

    /// Slots that others may fill.
    pub fn lent_slots(&self) -> u32 {
        self.lent()
            .map_or(0, |terms| terms.slots.min(self.config.slots))
    }

    /// Notes whether the evidence in a node's newest capability was believed.
    pub fn set_attested(&mut self, node: NodeId, carried_by: Option<RecordId>) {
        match carried_by {
            Some(record) => self.attested.insert(node, record),
            None => self.attested.remove(&node),
        };
        let view = &self.view;
        self.attested.retain(|node, _| view.get(node).is_some());
    }

    /// The walls that another node has, as far as its word is taken.
    pub fn walls_of(&self, node: &NodeId) -> impl Iterator<Item = WallTier> {
        let record = self.view.get(node);
        // By the record: what a later one says does not rest on an earlier one's evidence.
        let attested = record.is_some_and(|record| self.attested.get(node) == Some(&record.id()));
        let said = record.into_iter().flat_map(|record| &record.body().walls);
        said.copied()
            .filter(move |wall| *wall != WallTier::Tee || attested)
    }

    pub fn connected(&self, node: &NodeId) -> bool {
        *node == self.own() || self.peers.contains_key(node)
    }

    pub fn rtt_ms(&self, node: &NodeId) -> u32 {
        if *node == self.own() {
            return 0;
        }
        self.peers
            .get(node)
            .map_or(UNKNOWN_RTT_MS, |peer| peer.rtt_ms)
    }

    /// Notes a peer after hello. True if it begins: it was not connected before, or its daemon was started anew.
    pub fn peer_up(&mut self, node: NodeId, peer: Peer) -> bool {
        if node == self.own() || (self.peers.len() >= PEERS && !self.peers.contains_key(&node)) {
            return false;
        }
        let session = peer.session;
        let known = self.peers.insert(node, peer);
        known.is_none_or(|known| known.session != session)
    }

    /// Replaces the circle; its members come first in the view.
    pub fn set_circle(&mut self, circle: BTreeSet<NodeId>) {
        let left = std::mem::replace(&mut self.circle, circle);
        for node in left.iter().filter(|node| !self.used.contains(node)) {
            self.view.unpin(node);
        }
        for node in &self.circle {
            self.view.pin(*node);
        }
    }

    /// Keeps a node that answered us in view.
    pub fn note_used(&mut self, node: NodeId) {
        if node == self.own() || self.used.contains(&node) {
            return;
        }
        self.view.pin(node);
        self.used.push_back(node);
        if self.used.len() > USED_PINS
            && let Some(oldest) = self.used.pop_front()
            && !self.circle.contains(&oldest)
        {
            self.view.unpin(&oldest);
        }
    }
}
