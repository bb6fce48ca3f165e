//! Who is connected, over what, and what they said of themselves.
//!
//! Invariant: a peer is *up* while at least one of its connections has said hello.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use libp2p::multiaddr::Protocol as Part;
use libp2p::swarm::ConnectionId;
use libp2p::{Multiaddr, PeerId};
use substrate_record::{NodeId, SessionNonce};
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

/// How long after a loss a dial goes only where the lost connection came from or went to. A requester that resumes
/// has 1.8 s (PROTOCOL.md 5).
const REMAKE_WITHIN: Duration = Duration::from_secs(2);

/// Losses remembered: more running answers than a node has at once.
const LOSSES: usize = 64;

/// Where a peer was reached when its last connection ended.
struct Loss {
    peer: PeerId,
    addresses: Vec<Multiaddr>,
    at: Instant,
}

/// One connection.
pub(super) struct Connection {
    pub(super) peer: PeerId,
    pub(super) node: NodeId,
    pub(super) address: Multiaddr,
    pub(super) direction: Direction,
    /// The session of its hello, once it has said one.
    pub(super) session: Option<SessionNonce>,
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
    losses: VecDeque<Loss>,
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
        connection.session = Some(hello.session);
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
            self.note_loss(&gone);
            self.listens.remove(&gone.peer);
        }
        let linked = self
            .connections
            .values()
            .any(|other| other.node == gone.node && other.session.is_some());
        if linked {
            if let Some(peer) = self.up.get_mut(&gone.node) {
                peer.connected_at = connected_at;
            }
            return None;
        }
        self.up.remove(&gone.node).map(|_| gone.node)
    }

    fn note_loss(&mut self, gone: &Connection) {
        let addresses = remakes(gone, self.listens_of(&gone.peer));
        self.losses.retain(|loss| loss.peer != gone.peer);
        if addresses.is_empty() {
            return;
        }
        if self.losses.len() == LOSSES {
            self.losses.pop_front();
        }
        let (peer, at) = (gone.peer, Instant::now());
        self.losses.push_back(Loss {
            peer,
            addresses,
            at,
        });
    }

    /// Addresses at which a connection that was lost just now may be made again.
    ///
    /// A process that died refuses these at once; at its other addresses, another transport's or another interface's,
    /// a dial may wait for an answer that never comes.
    pub(super) fn lost_at(&self, peer: &PeerId) -> Option<Vec<Multiaddr>> {
        let loss = self.losses.iter().find(|loss| loss.peer == *peer)?;
        (loss.at.elapsed() <= REMAKE_WITHIN).then(|| loss.addresses.clone())
    }

    /// Other connections of the same peer that an earlier start of it made: its process has ended, and what is sent there
    /// is answered by nobody. (QUIC says nothing when a process is killed.)
    pub(super) fn outlived_by(&self, id: ConnectionId) -> Vec<ConnectionId> {
        let Some(newest) = self.connections.get(&id) else {
            return Vec::new();
        };
        let outlived = self.connections.iter().filter(|(other, connection)| {
            **other != id
                && connection.peer == newest.peer
                && connection.session.is_some()
                && connection.session != newest.session
        });
        outlived.map(|(id, _)| *id).collect()
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

/// The addresses of a lost connection's own transport and machine: the one that was dialed, or those its peer listens at.
fn remakes(gone: &Connection, listens: &[Multiaddr]) -> Vec<Multiaddr> {
    let same = |address: &&Multiaddr| {
        is_quic(address) == is_quic(&gone.address)
            && address.iter().next() == gone.address.iter().next()
    };
    let dialed = (gone.direction == Direction::Outbound).then(|| gone.address.clone());
    match dialed {
        Some(address) => vec![address],
        None => listens.iter().filter(same).cloned().collect(),
    }
}

fn is_quic(address: &Multiaddr) -> bool {
    address.iter().any(|part| part == Part::QuicV1)
}

/// Does something with the peer of a node, if its key is one.
pub(crate) fn with_peer(node: &NodeId, then: impl FnOnce(PeerId)) {
    if let Some(peer) = peer_of(node) {
        then(peer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use libp2p::identity::Keypair;

    fn connection(address: &str, direction: Direction) -> Connection {
        let peer = Keypair::generate_ed25519().public().to_peer_id();
        Connection {
            peer,
            node: crate::identity::node_of(&peer).unwrap(),
            address: address.parse().unwrap(),
            direction,
            session: Some(SessionNonce::from_bytes([1; 16])),
            heard: Instant::now(),
        }
    }

    #[tokio::test]
    async fn a_hello_of_a_new_start_ends_the_connections_of_the_last() {
        let id = ConnectionId::new_unchecked;
        let first = connection("/ip4/10.0.0.2/udp/11536/quic-v1", Direction::Outbound);
        let of_first = |session: Option<u8>| Connection {
            peer: first.peer,
            node: first.node,
            address: first.address.clone(),
            direction: first.direction,
            session: session.map(|n| SessionNonce::from_bytes([n; 16])),
            heard: first.heard,
        };
        let mut peers = Peers::default();
        for (n, session) in [(1, Some(1)), (2, Some(2)), (3, Some(2)), (4, None)] {
            peers.connections.insert(id(n), of_first(session));
        }
        let stranger = connection("/ip4/10.0.0.3/tcp/11536", Direction::Inbound);
        peers.connections.insert(id(5), stranger);
        assert_eq!(peers.outlived_by(id(2)), [id(1)]);
        assert!(peers.outlived_by(id(9)).is_empty());
    }

    fn lost(address: &str, direction: Direction) -> Vec<String> {
        let listens = [
            "/ip4/10.0.0.2/tcp/11536",
            "/ip4/10.0.0.2/udp/11536/quic-v1",
            "/ip4/172.17.0.1/tcp/11536",
        ];
        let mut peers = Peers::default();
        let (id, gone) = (
            ConnectionId::new_unchecked(1),
            connection(address, direction),
        );
        let peer = gone.peer;
        peers
            .listens
            .insert(peer, listens.map(|at| at.parse().unwrap()).to_vec());
        peers.connections.insert(id, gone);
        peers.close(id);
        let found = peers.lost_at(&peer).unwrap_or_default();
        found.iter().map(ToString::to_string).collect()
    }

    #[tokio::test]
    async fn a_lost_connection_is_made_again_only_over_its_own_transport_and_machine() {
        use Direction::{Inbound, Outbound};
        assert_eq!(
            lost("/ip4/10.0.0.2/tcp/11536", Outbound),
            ["/ip4/10.0.0.2/tcp/11536"]
        );
        assert_eq!(
            lost("/ip4/10.0.0.2/tcp/40000", Inbound),
            ["/ip4/10.0.0.2/tcp/11536"]
        );
        assert_eq!(
            lost("/ip4/10.0.0.2/udp/40000/quic-v1", Inbound),
            ["/ip4/10.0.0.2/udp/11536/quic-v1"]
        );
        assert!(lost("/ip4/9.9.9.9/tcp/40000", Inbound).is_empty());
    }
}
