//! What the daemon asks of the swarm.

use libp2p::gossipsub::{self, MessageAcceptance};
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::{Multiaddr, PeerId};
use substrate_record::{NodeId, SessionNonce};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::{OPEN_WITHIN, Purpose, Task, WaitingOpen};
use crate::event::{
    Counters, DialError, Judgement, MessageToken, OpenError, PeerView, PublishError,
};
use crate::gossip::Verdict;
use crate::identity::{node_of, peer_of};
use crate::name::Protocol;
use crate::standing::Offence;
use crate::stream::MeshStream;

/// Dials the daemon may have under way: it has one per invite and one per `--peer`.
const DIALS: usize = 64;

/// Streams that may wait for a connection.
const WAITING_OPENS: usize = 256;

pub(crate) enum Command {
    Dial {
        address: String,
        reply: oneshot::Sender<Result<NodeId, DialError>>,
    },
    Open {
        node: NodeId,
        protocol: Protocol,
        reply: oneshot::Sender<Result<MeshStream, OpenError>>,
    },
    Publish {
        bytes: Vec<u8>,
        reply: oneshot::Sender<Result<(), PublishError>>,
    },
    Judge {
        token: MessageToken,
        judgement: Judgement,
    },
    Penalise {
        node: NodeId,
        offence: Offence,
    },
    SetSession {
        session: SessionNonce,
    },
    OpenJoins {
        open: bool,
        done: oneshot::Sender<()>,
    },
    ListenAddresses {
        reply: oneshot::Sender<Vec<String>>,
    },
    Peers {
        reply: oneshot::Sender<Vec<PeerView>>,
    },
    Counters {
        reply: oneshot::Sender<Counters>,
    },
    Shutdown {
        done: oneshot::Sender<()>,
    },
}

/// Answers an asker who may have given up: then nobody needs the answer.
fn answer<T>(reply: oneshot::Sender<T>, with: T) {
    let _ = reply.send(with);
}

impl Task {
    pub(super) fn perform(&mut self, command: Command) {
        match command {
            Command::Dial { address, reply } => self.dial_asked(address, reply),
            Command::Open {
                node,
                protocol,
                reply,
            } => self.open(&node, protocol, reply),
            Command::Publish { bytes, reply } => {
                let outcome = self.publish(bytes);
                answer(reply, outcome);
            }
            Command::Judge { token, judgement } => self.judge(&token, judgement),
            Command::Penalise { node, offence } => self.penalise(node, offence),
            Command::SetSession { session } => self.swarm.behaviour_mut().link.greet(session),
            Command::OpenJoins { open, done } => {
                self.swarm.behaviour_mut().link.open_joins(open);
                answer(done, ());
            }
            Command::ListenAddresses { reply } => {
                let me = *self.swarm.local_peer_id();
                let own =
                    |address: &Multiaddr| address.clone().with_p2p(me).unwrap_or_else(|same| same);
                answer(
                    reply,
                    self.swarm
                        .listeners()
                        .map(|address| own(address).to_string())
                        .collect(),
                );
            }
            Command::Peers { reply } => answer(reply, self.peers.views()),
            Command::Counters { reply } => answer(reply, self.outbox.counters),
            Command::Shutdown { done } => answer(done, ()),
        }
    }

    fn dial_asked(&mut self, address: String, reply: oneshot::Sender<Result<NodeId, DialError>>) {
        let Ok(parsed) = address.parse::<Multiaddr>() else {
            return answer(reply, Err(DialError::Address { address }));
        };
        let known = DialOpts::from(parsed.clone()).get_peer_id();
        if let Some(node) = known
            .as_ref()
            .and_then(node_of)
            .filter(|node| self.peers.is_up(node))
        {
            return answer(reply, Ok(node));
        }
        let asked = |purpose: &&Purpose| matches!(purpose, Purpose::Asked { .. });
        if self.dials.values().filter(asked).count() >= DIALS {
            return answer(reply, Err(DialError::Busy));
        }
        self.dial(parsed, Purpose::Asked { address, reply });
    }

    /// Dials an address. The outcome is known when hello is done.
    pub(super) fn dial(&mut self, address: Multiaddr, purpose: Purpose) {
        let options = DialOpts::from(address.clone());
        // A connection that exists may be a dead one nobody has noticed yet; a second costs little.
        let options = match options.get_peer_id() {
            Some(peer) => DialOpts::peer_id(peer)
                .addresses(vec![address])
                .condition(PeerCondition::Always)
                .build(),
            None => options,
        };
        let id = options.connection_id();
        self.dials.insert(id, purpose);
        if let Err(error) = self.swarm.dial(options) {
            self.on_dial_failed(id, None, &error.to_string());
        }
    }

    fn open(
        &mut self,
        node: &NodeId,
        protocol: Protocol,
        reply: oneshot::Sender<Result<MeshStream, OpenError>>,
    ) {
        let Some(peer) = peer_of(node) else {
            return answer(reply, Err(OpenError::NotConnected));
        };
        if self.swarm.behaviour().link.is_linked(&peer) {
            return self.swarm.behaviour_mut().link.open(peer, protocol, reply);
        }
        if self.opens.len() >= WAITING_OPENS {
            return answer(reply, Err(OpenError::Busy));
        }
        if self.reach(peer) {
            self.opens.push(WaitingOpen {
                peer,
                protocol,
                reply,
                until: Instant::now() + OPEN_WITHIN,
            });
        } else {
            answer(reply, Err(OpenError::NotConnected));
        }
    }

    /// Dials a peer at the addresses it was last known at, unless that is under way.
    /// Returns false if there is no way to it.
    fn reach(&mut self, peer: PeerId) -> bool {
        use libp2p::swarm::DialError::{DialPeerConditionFalse, NoAddresses};
        let options = match self.peers.lost_at(&peer) {
            Some(addresses) => DialOpts::peer_id(peer).addresses(addresses).build(),
            None => DialOpts::peer_id(peer).build(),
        };
        match self.swarm.dial(options) {
            Ok(()) | Err(DialPeerConditionFalse(_)) => true,
            Err(NoAddresses) => false,
            Err(error) => {
                tracing::debug!(%peer, %error, "cannot dial");
                false
            }
        }
    }

    fn publish(&mut self, bytes: Vec<u8>) -> Result<(), PublishError> {
        if !matches!(self.checker.check(&bytes), Verdict::Record(_)) {
            return Err(PublishError::NotARecord);
        }
        let topic = self.names.records_topic();
        match self.swarm.behaviour_mut().gossip.publish(topic, bytes) {
            // Published before: it is out, which is what was asked for.
            Ok(_) | Err(gossipsub::PublishError::Duplicate) => Ok(()),
            Err(gossipsub::PublishError::NoPeersSubscribedToTopic) => Err(PublishError::NoPeers),
            Err(gossipsub::PublishError::AllQueuesFull(_)) => Err(PublishError::Busy),
            Err(_) => Err(PublishError::NotARecord),
        }
    }

    pub(super) fn judge(&mut self, token: &MessageToken, judgement: Judgement) {
        let acceptance = match judgement {
            Judgement::Accept => MessageAcceptance::Accept,
            Judgement::Ignore => MessageAcceptance::Ignore,
            Judgement::Reject => MessageAcceptance::Reject,
        };
        let gossip = &mut self.swarm.behaviour_mut().gossip;
        // False if the message has left the cache: a judgement that late changes nothing.
        let _ = gossip.report_message_validation_result(&token.id, &token.source, acceptance);
    }

    /// Counts an offence, lowers the peer's gossip score, and blocks it when it is too much.
    pub(super) fn penalise(&mut self, node: NodeId, offence: Offence) {
        let Some(peer) = peer_of(&node) else {
            return;
        };
        let now = self.now_ms();
        self.outbox.counters.offences += 1;
        tracing::debug!(node = %node.short(), ?offence, "offence");
        if self.standing.penalise(now, node, offence) {
            self.outbox.counters.blocks += 1;
            tracing::info!(node = %node.short(), "peer blocked for breaking the protocol");
            self.swarm.behaviour_mut().block(peer);
            return;
        }
        let score = -f64::from(self.standing.points(now, &node)) / 20.0;
        // False if gossip does not know the peer.
        let _ = self
            .swarm
            .behaviour_mut()
            .gossip
            .set_application_score(&peer, score);
    }
}
