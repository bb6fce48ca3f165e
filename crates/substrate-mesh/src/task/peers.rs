//! Who is connected, over what, and what they said of themselves.
//!
//! Invariant: a peer is *up* while at least one of its connections has said hello.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use libp2p::swarm::ConnectionId;
use libp2p::{Multiaddr, PeerId};
use substrate_record::NodeId;
use tokio::time::Instant;

use crate::event::{Direction, PeerView};
use crate::hello::Hello;
use crate::identity::peer_of;
use crate::table::ADDRESSES_PER_PEER;

/// Idle connections that are kept: the bound of a node's view of the mesh (DESIGN 4).
pub(super) const KEPT: usize = 128;

/// A round trip is reported again when it differs by this share of the last report, in percent.
const RTT_NEWS_PERCENT: u64 = 25;

/// And by at least this much: jitter of a fast line is no news.
const RTT_NEWS_MS: u64 = 5;

/// A connection without a returned ping for this long is dead: two pings, and some time for a
/// machine that is merely busy. (A job's own heartbeats notice a cut cable in 1.8 s.)
///
/// libp2p's ping keeps its first failure to itself and takes 25 s to report a second.
const DEAD_AFTER: Duration = Duration::from_secs(12);

/// One connection.
pub(super) struct Connection {
    pub(super) peer: PeerId,
    pub(super) node: NodeId,
    pub(super) address: Multiaddr,
    pub(super) direction: Direction,
    pub(super) greeted: bool,
    /// When the last ping came back, or the connection was made.
    pub(super) heard: Instant,
}

/// A peer that is up.
pub(super) struct Peer {
    hello: Hello,
    skew_ms: i64,
    rtt_ms: u64,
    reported_rtt_ms: u64,
    direction: Direction,
    listens: Vec<Multiaddr>,
    connected_at: Vec<Multiaddr>,
}

#[derive(Default)]
pub(super) struct Peers {
    pub(super) connections: HashMap<ConnectionId, Connection>,
    up: BTreeMap<NodeId, Peer>,
    /// What identify said of peers that are connected, up or not.
    listens: HashMap<PeerId, Vec<Multiaddr>>,
}

/// What a hello changed.
pub(super) enum Greeted {
    Up(PeerView),
    Changed(PeerView),
    Same,
}

impl Peers {
    pub(super) fn is_up(&self, node: &NodeId) -> bool {
        self.up.contains_key(node)
    }

    pub(super) fn up_count(&self) -> usize {
        self.up.len()
    }

    pub(super) fn views(&self) -> Vec<PeerView> {
        self.up
            .iter()
            .map(|(node, peer)| peer.view(*node))
            .collect()
    }

    /// A connection has said hello, for the first time or again.
    pub(super) fn greet(
        &mut self,
        id: ConnectionId,
        hello: Hello,
        rtt_ms: u64,
        skew_ms: i64,
    ) -> Greeted {
        let Some(connection) = self.connections.get_mut(&id) else {
            return Greeted::Same;
        };
        connection.greeted = true;
        let (node, direction) = (connection.node, connection.direction);
        let peer_id = connection.peer;
        let connected_at = self.addresses_of(peer_id);
        match self.up.get_mut(&node) {
            None => {
                let listens = self.listens.get(&peer_id).cloned().unwrap_or_default();
                let reported_rtt_ms = rtt_ms;
                let peer = Peer {
                    hello,
                    skew_ms,
                    rtt_ms,
                    reported_rtt_ms,
                    direction,
                    listens,
                    connected_at,
                };
                let view = peer.view(node);
                self.up.insert(node, peer);
                Greeted::Up(view)
            }
            Some(peer) => {
                let news = peer.hello != hello;
                peer.hello = hello;
                peer.connected_at = connected_at;
                if news {
                    Greeted::Changed(peer.view(node))
                } else {
                    Greeted::Same
                }
            }
        }
    }

    /// A connection is gone. Returns the peer if it was its last one that had said hello.
    pub(super) fn close(&mut self, id: ConnectionId) -> Option<NodeId> {
        let gone = self.connections.remove(&id)?;
        let connected_at = self.addresses_of(gone.peer);
        if connected_at.is_empty() {
            self.listens.remove(&gone.peer);
        }
        let linked = self
            .connections
            .values()
            .any(|other| other.node == gone.node && other.greeted);
        if linked {
            if let Some(peer) = self.up.get_mut(&gone.node) {
                peer.connected_at = connected_at;
            }
            return None;
        }
        self.up.remove(&gone.node).map(|_| gone.node)
    }

    /// Connections that have been silent for too long.
    pub(super) fn dead(&self, now: Instant) -> Vec<(PeerId, ConnectionId)> {
        let silent = |connection: &Connection| now.duration_since(connection.heard) > DEAD_AFTER;
        let dead = self
            .connections
            .iter()
            .filter(|(_, connection)| silent(connection));
        dead.map(|(id, connection)| (connection.peer, *id))
            .collect()
    }

    /// A ping came back. Returns a view if its round trip time is news.
    pub(super) fn measure(&mut self, id: ConnectionId, rtt_ms: u64) -> Option<PeerView> {
        let connection = self.connections.get_mut(&id)?;
        connection.heard = Instant::now();
        let node = connection.node;
        let peer = self.up.get_mut(&node)?;
        peer.rtt_ms = rtt_ms;
        let change = rtt_ms.abs_diff(peer.reported_rtt_ms);
        if change < RTT_NEWS_MS || change * 100 < peer.reported_rtt_ms * RTT_NEWS_PERCENT {
            return None;
        }
        peer.reported_rtt_ms = rtt_ms;
        Some(peer.view(node))
    }

    /// What identify said of a connected peer.
    pub(super) fn listens_at(
        &mut self,
        peer: PeerId,
        node: &NodeId,
        mut addresses: Vec<Multiaddr>,
    ) {
        addresses.truncate(ADDRESSES_PER_PEER);
        if let Some(up) = self.up.get_mut(node) {
            up.listens.clone_from(&addresses);
        }
        if self
            .connections
            .values()
            .any(|connection| connection.peer == peer)
        {
            self.listens.insert(peer, addresses);
        }
    }

    /// Addresses identify gave for a peer that is connected.
    pub(super) fn listens_of(&self, peer: &PeerId) -> &[Multiaddr] {
        self.listens.get(peer).map_or(&[], Vec::as_slice)
    }

    fn addresses_of(&self, peer: PeerId) -> Vec<Multiaddr> {
        let own = self
            .connections
            .values()
            .filter(|connection| connection.peer == peer);
        own.map(|connection| connection.address.clone()).collect()
    }
}

impl Peer {
    fn view(&self, node: NodeId) -> PeerView {
        let mut addresses: Vec<String> = self
            .connected_at
            .iter()
            .chain(&self.listens)
            .map(ToString::to_string)
            .collect();
        addresses.sort();
        addresses.dedup();
        PeerView {
            node,
            addresses,
            session: self.hello.session,
            rtt_ms: self.rtt_ms,
            skew_ms: self.skew_ms,
            version: self.hello.version.clone(),
            build: self.hello.build.clone(),
            direction: self.direction,
        }
    }
}

/// Does something with the peer of a node, if its key is one.
pub(crate) fn with_peer(node: &NodeId, then: impl FnOnce(PeerId)) {
    if let Some(peer) = peer_of(node) {
        then(peer);
    }
}
