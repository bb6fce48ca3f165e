//! All links: which connections have said hello, and which of them a stream goes over.
//!
//! Invariant: a stream is opened only on a connection whose hellos are done.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};

use libp2p::core::Endpoint;
use libp2p::core::transport::PortUse;
use libp2p::multiaddr::Protocol as Part;
use libp2p::swarm::behaviour::ConnectionClosed;
use libp2p::swarm::{
    CloseConnection, ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, NotifyHandler,
    ToSwarm,
};
use libp2p::{Multiaddr, PeerId};

use super::handler::{FromHandler, Handler, StreamReply, ToHandler};
use super::{Allowance, Greeting};
use crate::event::OpenError;
use crate::identity::node_of;
use crate::name::Protocol;

/// Something a connection reported.
#[derive(Debug)]
pub(crate) struct LinkEvent {
    pub(crate) peer: PeerId,
    pub(crate) connection: ConnectionId,
    pub(crate) what: FromHandler,
}

/// A peer whose key is not Ed25519 cannot be a node.
#[derive(Debug, thiserror::Error)]
#[error("the peer's key is not Ed25519")]
struct OtherKey;

/// A connection that has said hello.
struct Link {
    connection: ConnectionId,
    /// QUIC streams do not hold each other up when a packet is lost; TCP's do.
    quic: bool,
}

pub(crate) struct Behaviour {
    ours: Arc<Greeting>,
    links: HashMap<PeerId, Vec<Link>>,
    open: HashMap<ConnectionId, (PeerId, bool)>,
    allowances: HashMap<PeerId, Weak<Allowance>>,
    actions: VecDeque<ToSwarm<LinkEvent, ToHandler>>,
}

impl Behaviour {
    pub(crate) fn new(ours: Greeting) -> Self {
        Self {
            ours: Arc::new(ours),
            links: HashMap::new(),
            open: HashMap::new(),
            allowances: HashMap::new(),
            actions: VecDeque::new(),
        }
    }

    /// Whether a stream to the peer could be opened now.
    pub(crate) fn is_linked(&self, peer: &PeerId) -> bool {
        self.links.contains_key(peer)
    }

    /// Opens a stream on the peer's best link.
    pub(crate) fn open(&mut self, peer: PeerId, protocol: Protocol, reply: StreamReply) {
        let links = self.links.get(&peer).map_or(&[][..], Vec::as_slice);
        let Some(link) = links.iter().find(|link| link.quic).or(links.first()) else {
            // The asker may have given up: then nobody needs the answer.
            let _ = reply.send(Err(OpenError::NotConnected));
            return;
        };
        let connection = link.connection;
        self.notify(peer, connection, ToHandler::Open(protocol, reply));
    }

    /// Sets whether an idle connection stays.
    pub(crate) fn keep(&mut self, peer: PeerId, connection: ConnectionId, keep: bool) {
        self.notify(peer, connection, ToHandler::Keep(keep));
    }

    /// Says hello again on every connection.
    pub(crate) fn greet(&mut self, session: substrate_record::SessionNonce) {
        let mut hello = self.ours.hello.clone();
        hello.session = session;
        self.ours = Arc::new(Greeting {
            hello,
            joins_open: self.ours.joins_open,
            names: self.ours.names.clone(),
        });
        let connections: Vec<_> = self
            .open
            .iter()
            .map(|(id, (peer, _))| (*id, *peer))
            .collect();
        for (connection, peer) in connections {
            self.notify(peer, connection, ToHandler::Greet(Arc::clone(&self.ours)));
        }
    }

    /// Sets whether joiners are let in from the next connection on.
    pub(crate) fn open_joins(&mut self, open: bool) {
        if self.ours.joins_open != open {
            self.ours = Arc::new(Greeting {
                hello: self.ours.hello.clone(),
                joins_open: open,
                names: self.ours.names.clone(),
            });
        }
    }

    fn notify(&mut self, peer_id: PeerId, connection: ConnectionId, event: ToHandler) {
        let handler = NotifyHandler::One(connection);
        self.actions.push_back(ToSwarm::NotifyHandler {
            peer_id,
            handler,
            event,
        });
    }

    fn handler(&mut self, peer: PeerId) -> Result<Handler, ConnectionDenied> {
        if node_of(&peer).is_none() {
            return Err(ConnectionDenied::new(OtherKey));
        }
        let known = self.allowances.get(&peer).and_then(Weak::upgrade);
        let allowance = known.unwrap_or_else(|| Arc::new(Allowance::new()));
        self.allowances.retain(|_, held| held.strong_count() > 0);
        self.allowances.insert(peer, Arc::downgrade(&allowance));
        Ok(Handler::new(Arc::clone(&self.ours), allowance))
    }

    /// Opens nothing on a connection any more: it is closed, or as good as that.
    pub(crate) fn forget(&mut self, peer: PeerId, connection: ConnectionId) {
        self.open.remove(&connection);
        if let Some(links) = self.links.get_mut(&peer) {
            links.retain(|link| link.connection != connection);
            if links.is_empty() {
                self.links.remove(&peer);
            }
        }
    }

    fn on_greeted(&mut self, peer: PeerId, connection: ConnectionId) {
        // A connection that was given up may still have spoken.
        let Some((_, quic)) = self.open.get(&connection) else {
            return;
        };
        let quic = *quic;
        let links = self.links.entry(peer).or_default();
        if !links.iter().any(|link| link.connection == connection) {
            links.push(Link { connection, quic });
        }
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = Handler;
    type ToSwarm = LinkEvent;

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<Handler, ConnectionDenied> {
        self.handler(peer)
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<Handler, ConnectionDenied> {
        self.handler(peer)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionEstablished(established) => {
                let quic = established
                    .endpoint
                    .get_remote_address()
                    .iter()
                    .any(|part| part == Part::QuicV1);
                self.open
                    .insert(established.connection_id, (established.peer_id, quic));
            }
            FromSwarm::ConnectionClosed(ConnectionClosed {
                peer_id,
                connection_id,
                ..
            }) => {
                self.forget(peer_id, connection_id);
            }
            _ => {}
        }
    }

    fn on_connection_handler_event(
        &mut self,
        peer: PeerId,
        connection: ConnectionId,
        what: FromHandler,
    ) {
        if matches!(what, FromHandler::Close) {
            let connection = CloseConnection::One(connection);
            let close = ToSwarm::CloseConnection {
                peer_id: peer,
                connection,
            };
            return self.actions.push_back(close);
        }
        if matches!(what, FromHandler::Greeted(..)) {
            self.on_greeted(peer, connection);
        }
        let event = LinkEvent {
            peer,
            connection,
            what,
        };
        self.actions.push_back(ToSwarm::GenerateEvent(event));
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<LinkEvent, ToHandler>> {
        self.actions.pop_front().map_or(Poll::Pending, Poll::Ready)
    }
}
