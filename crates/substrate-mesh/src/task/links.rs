//! What happens on connections: hello, streams, gossip, pings, discovery.

use libp2p::core::ConnectedPoint;
use libp2p::swarm::ConnectionId;
use libp2p::{PeerId, gossipsub, identify, mdns, ping};
use substrate_record::NodeId;
use tokio::time::Instant;

use super::peers::{Connection, Greeted, KEPT};
use super::{Purpose, Task};
use crate::event::{DialError, Direction, Judgement, MeshEvent, MessageToken, OpenError};
use crate::gossip::Verdict;
use crate::hello::{Hello, HelloMismatch};
use crate::identity::node_of;
use crate::link::FromHandler;
use crate::name::Protocol;
use crate::standing::Offence;
use crate::stream::MeshStream;
use crate::table;

/// Peers of one multicast answer that are dialed: a class in one room.
const MDNS_DIALS: usize = 32;

impl Task {
    pub(super) fn on_connected(
        &mut self,
        peer: PeerId,
        id: ConnectionId,
        endpoint: &ConnectedPoint,
    ) {
        // The link behaviour denies every other kind of key.
        let Some(node) = node_of(&peer) else {
            return;
        };
        let direction = if endpoint.is_dialer() {
            Direction::Outbound
        } else {
            Direction::Inbound
        };
        let address = endpoint.get_remote_address().clone();
        self.peers.connections.insert(
            id,
            Connection {
                peer,
                node,
                address,
                direction,
                session: None,
                heard: Instant::now(),
            },
        );
    }

    pub(super) fn on_disconnected(&mut self, peer: PeerId, id: ConnectionId) {
        self.settle_dial(id, Err("the connection was lost".into()));
        if let Some(node) = self.peers.close(id) {
            self.outbox.push(MeshEvent::PeerDown { node });
            self.unhold(&peer, false);
        }
        if self.peers.up_count() == 0 {
            self.redial.on_alone(self.now_ms());
        }
    }

    pub(super) fn on_dial_failed(&mut self, id: ConnectionId, peer: Option<PeerId>, reason: &str) {
        self.settle_dial(id, Err(reason.to_owned()));
        let Some(peer) = peer.filter(|peer| !self.swarm.is_connected(peer)) else {
            return;
        };
        self.fail_opens(&peer);
        if let Some(kad) = self.swarm.behaviour_mut().kad.as_mut() {
            // Its place, and its subnet's, belong to somebody who answers.
            kad.remove_peer(&peer);
        }
    }

    /// Ends a dial with a hello, or without one. A listed address stays noted while its connection lives.
    fn settle_dial(&mut self, id: ConnectionId, outcome: Result<NodeId, String>) {
        match (self.dials.remove(&id), outcome) {
            (Some(Purpose::Listed(i)), Ok(_)) => {
                self.redial.on_up(i);
                self.dials.insert(id, Purpose::Listed(i));
            }
            (Some(Purpose::Listed(i)), Err(_)) => self.redial.on_lost(i, self.now_ms()),
            (Some(Purpose::Asked { address, reply }), outcome) => {
                let outcome = outcome.map_err(|reason| DialError::Unreachable { address, reason });
                let _ = reply.send(outcome);
            }
            (None, _) => {}
        }
    }

    pub(super) fn on_link(&mut self, peer: PeerId, id: ConnectionId, what: FromHandler) {
        let Some(node) = self
            .peers
            .connections
            .get(&id)
            .map(|connection| connection.node)
        else {
            return;
        };
        match what {
            FromHandler::Greeted(hello, measured) if hello.is_joiner() => {
                tracing::debug!(node = %node.short(), rtt = ?measured.rtt, "joiner connected");
                self.swarm.behaviour_mut().link.keep(peer, id, false);
            }
            FromHandler::Greeted(hello, measured) => {
                let rtt_ms = u64::try_from(measured.rtt.as_millis()).unwrap_or(u64::MAX);
                self.on_greeted(peer, id, node, hello, (rtt_ms, measured.skew_ms));
            }
            FromHandler::Parted(why) => self.on_parted(id, node, why),
            FromHandler::Inbound(protocol, stream) => self.on_inbound(node, protocol, stream),
            FromHandler::Offended(offence) => self.penalise(node, offence),
            // The link behaviour keeps this one for itself.
            FromHandler::Close => {}
        }
    }

    fn on_greeted(
        &mut self,
        peer: PeerId,
        id: ConnectionId,
        node: NodeId,
        hello: Hello,
        measured: (u64, i64),
    ) {
        let (rtt_ms, skew_ms) = measured;
        match self.peers.greet(id, hello, rtt_ms, skew_ms) {
            Greeted::Up(view) => {
                tracing::debug!(node = %node.short(), rtt_ms, skew_ms, "peer up");
                self.outbox.push(MeshEvent::PeerUp(view));
            }
            Greeted::Changed(view) => {
                self.outbox.push(MeshEvent::PeerChanged(view));
            }
            Greeted::Same => {}
        }
        for outlived in self.peers.outlived_by(id) {
            tracing::debug!(node = %node.short(), "an earlier start's connection is dead");
            self.give_up(peer, outlived);
        }
        if self.peers.up_count() > KEPT {
            self.swarm.behaviour_mut().link.keep(peer, id, false);
        }
        self.settle_dial(id, Ok(node));
        for open in self.opens.extract_if(.., |open| open.peer == peer) {
            self.swarm
                .behaviour_mut()
                .link
                .open(peer, open.protocol, open.reply);
        }
        self.enter_table(peer, id);
        self.unhold(&peer, true);
    }

    fn on_parted(&mut self, id: ConnectionId, node: NodeId, why: HelloMismatch) {
        let Some(connection) = self.peers.connections.get(&id) else {
            return;
        };
        tracing::debug!(node = %node.short(), %why, "refused at hello");
        let (address, peer) = (connection.address.to_string(), connection.peer);
        match self.dials.remove(&id) {
            Some(Purpose::Asked { reply, .. }) => {
                let _ = reply.send(Err(DialError::Refused(why)));
            }
            Some(listed) => {
                self.dials.insert(id, listed);
            }
            None => {}
        }
        self.outbox.push(MeshEvent::Refused { node, address, why });
        if !self.peers.is_up(&node) {
            self.fail_opens(&peer);
        }
    }

    /// The peer cannot be reached: nobody waits for a stream to it any longer.
    fn fail_opens(&mut self, peer: &PeerId) {
        for open in self.opens.extract_if(.., |open| open.peer == *peer) {
            // The asker may have given up: then nobody needs the answer.
            let _ = open.reply.send(Err(OpenError::NotConnected));
        }
    }

    fn on_inbound(&mut self, node: NodeId, protocol: Protocol, stream: MeshStream) {
        if !self.outbox.push(MeshEvent::Inbound {
            node,
            protocol,
            stream,
        }) {
            tracing::warn!(node = %node.short(), ?protocol, "inbound stream dropped, the daemon does not keep up");
        }
    }

    pub(super) fn on_gossip(&mut self, event: gossipsub::Event) {
        match event {
            gossipsub::Event::Message {
                propagation_source,
                message_id,
                message,
            } => {
                let token = MessageToken {
                    id: message_id,
                    source: propagation_source,
                };
                self.on_message(token, message.data);
            }
            gossipsub::Event::SlowPeer { peer_id, .. } => {
                tracing::debug!(peer = %peer_id, "gossip to this peer is dropped, it does not keep up");
            }
            _ => {}
        }
    }

    fn on_message(&mut self, token: MessageToken, bytes: Vec<u8>) {
        let Some(node) = node_of(&token.source) else {
            return self.judge(&token, Judgement::Ignore);
        };
        match self.checker.check(&bytes) {
            Verdict::Bad => {
                self.outbox.counters.gossip_refused += 1;
                self.judge(&token, Judgement::Reject);
                // Neighbours check before they pass on, so this one is at fault.
                self.penalise(node, Offence::BadRecord);
            }
            Verdict::Unknown => {
                self.outbox.counters.gossip_refused += 1;
                self.judge(&token, Judgement::Ignore);
            }
            Verdict::Record(_) if self.peers.is_up(&node) => self.deliver(node, token, bytes),
            Verdict::Record(_) => self.hold(token, bytes),
        }
    }

    fn deliver(&mut self, from: NodeId, token: MessageToken, bytes: Vec<u8>) {
        let dropped = token.clone();
        if !self.outbox.push(MeshEvent::Record { from, token, bytes }) {
            self.judge(&dropped, Judgement::Ignore);
        }
    }

    /// Keeps a record whose sender has not said hello: a seen message does not come a second time.
    fn hold(&mut self, token: MessageToken, bytes: Vec<u8>) {
        if let Some((token, _)) = self.held.push(token, bytes) {
            self.outbox.counters.gossip_refused += 1;
            self.judge(&token, Judgement::Ignore);
        }
    }

    /// Delivers what a peer sent before its hello, or drops it if the hello never came.
    fn unhold(&mut self, peer: &PeerId, up: bool) {
        for (token, bytes) in self.held.take(peer) {
            match node_of(peer).filter(|_| up) {
                Some(node) => self.deliver(node, token, bytes),
                None => {
                    self.outbox.counters.gossip_refused += 1;
                    self.judge(&token, Judgement::Ignore);
                }
            }
        }
    }

    pub(super) fn on_identify(&mut self, event: identify::Event) {
        let identify::Event::Received {
            peer_id,
            connection_id,
            info,
        } = event
        else {
            return;
        };
        let Some(node) = node_of(&peer_id) else {
            return;
        };
        self.peers.listens_at(peer_id, &node, info.listen_addrs);
        if self.peers.is_up(&node) {
            self.enter_table(peer_id, connection_id);
        }
    }

    /// Puts a peer that has said hello and told its addresses into the table.
    fn enter_table(&mut self, peer: PeerId, id: ConnectionId) {
        let addresses = self.peers.listens_of(&peer);
        let seen_at = self
            .peers
            .connections
            .get(&id)
            .map(|connection| &connection.address);
        if let (Some(kad), Some(seen_at)) = (self.swarm.behaviour_mut().kad.as_mut(), seen_at) {
            table::admit(kad, peer, addresses, seen_at);
        }
    }

    pub(super) fn on_ping(&mut self, event: ping::Event) {
        match event.result {
            Ok(rtt) => {
                let rtt_ms = u64::try_from(rtt.as_millis()).unwrap_or(u64::MAX);
                if let Some(view) = self.peers.measure(event.connection, rtt_ms) {
                    self.outbox.push(MeshEvent::PeerChanged(view));
                }
            }
            Err(error) => tracing::debug!(peer = %event.peer, %error, "ping failed"),
        }
    }

    /// Gives up connections that are silent.
    ///
    /// Closing one waits for its last bytes to leave, which on a cut cable is when the system
    /// gives up, so it counts as closed from now on.
    pub(super) fn drop_dead(&mut self) {
        for (peer, id) in self.peers.dead(Instant::now()) {
            tracing::debug!(%peer, "connection is dead");
            self.give_up(peer, id);
        }
    }

    fn give_up(&mut self, peer: PeerId, id: ConnectionId) {
        self.swarm.behaviour_mut().link.forget(peer, id);
        self.swarm.close_connection(id);
        self.on_disconnected(peer, id);
    }

    pub(super) fn on_mdns(&mut self, event: mdns::Event) {
        let mdns::Event::Discovered(found) = event else {
            return;
        };
        for (peer, address) in found.into_iter().take(MDNS_DIALS) {
            if !self.swarm.is_connected(&peer) {
                let options = libp2p::swarm::dial_opts::DialOpts::peer_id(peer)
                    .addresses(vec![address])
                    .build();
                if let Err(error) = self.swarm.dial(options) {
                    tracing::trace!(%peer, %error, "not dialed");
                }
            }
        }
    }
}
