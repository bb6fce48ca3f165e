//! The handle the daemon holds.
//!
//! Invariant: every call either reaches the task or says that the mesh is closed.

use std::net::{Ipv4Addr, Ipv6Addr};

use libp2p::Multiaddr;
use substrate_record::{NodeId, SessionNonce};
use tokio::sync::{mpsc, oneshot};

use crate::config::MeshConfig;
use crate::event::{
    Counters, DialError, Judgement, MeshError, MeshEvent, MessageToken, OpenError, PeerView,
    PublishError,
};
use crate::gossip::Checker;
use crate::name::{Names, Protocol};
use crate::redial::{Hold, Redial};
use crate::standing::Offence;
use crate::stream::MeshStream;
use crate::swarm;
use crate::task::{Command, Task};

/// Commands that may wait for the task.
const COMMANDS: usize = 128;

/// Events that may wait for the daemon before they wait in the task's own outbox.
const EVENTS: usize = 64;

/// The mesh's usual port, on UDP and TCP.
pub const PORT: u16 = 11_536;

/// A running mesh. Clones share it; it ends with [`Mesh::shutdown`] or with the last clone.
#[derive(Debug, Clone)]
pub struct Mesh {
    commands: mpsc::Sender<Command>,
}

/// Starts a mesh on the current tokio runtime.
///
/// # Errors
/// An address is malformed, or none can be listened on.
pub async fn start(config: MeshConfig) -> Result<(Mesh, mpsc::Receiver<MeshEvent>), MeshError> {
    let checker = Checker::new(config.network);
    let mut swarm = swarm::build(&config, &checker)?;
    for address in &config.listen {
        let reason = |error: &dyn std::fmt::Display| MeshError::Listen {
            address: address.clone(),
            reason: error.to_string(),
        };
        swarm
            .listen_on(parsed(address)?)
            .map_err(|error| reason(&error))?;
    }
    let mut listed = Vec::new();
    for (addresses, hold) in [
        (&config.static_peers, Hold::Static),
        (&config.known_peers, Hold::Known),
    ] {
        for address in addresses {
            listed.push((parsed(address)?, hold));
        }
    }
    let spread = swarm
        .local_peer_id()
        .to_bytes()
        .last()
        .copied()
        .unwrap_or_default();
    let (commands, inbox) = mpsc::channel(COMMANDS);
    let (events, outbox) = mpsc::channel(EVENTS);
    let names = Names::new(config.network);
    let task = Task::new(
        swarm,
        names,
        checker,
        Redial::new(listed, spread),
        inbox,
        events,
    );
    tokio::spawn(task.run());
    Ok((Mesh { commands }, outbox))
}

/// The multiaddrs of a port on all interfaces, QUIC first.
pub fn listen_on_all(port: u16) -> Vec<String> {
    let (v4, v6) = (Ipv4Addr::UNSPECIFIED, Ipv6Addr::UNSPECIFIED);
    vec![
        format!("/ip4/{v4}/udp/{port}/quic-v1"),
        format!("/ip4/{v4}/tcp/{port}"),
        format!("/ip6/{v6}/udp/{port}/quic-v1"),
        format!("/ip6/{v6}/tcp/{port}"),
    ]
}

fn parsed(address: &str) -> Result<Multiaddr, MeshError> {
    address.parse().map_err(|_| MeshError::Address {
        address: address.to_owned(),
    })
}

impl Mesh {
    /// Connects to an address and waits until hello is done.
    ///
    /// # Errors
    /// Nobody answers there, or somebody of another network.
    pub async fn dial(&self, address: &str) -> Result<NodeId, DialError> {
        let address = address.to_owned();
        self.ask(|reply| Command::Dial { address, reply })
            .await
            .unwrap_or(Err(DialError::Closed))
    }

    /// Opens a stream to a peer, dialing it at its last known addresses if it is not connected.
    pub async fn open(&self, node: NodeId, protocol: Protocol) -> Result<MeshStream, OpenError> {
        let (reply, answer) = oneshot::channel();
        let command = Command::Open {
            node,
            protocol,
            reply,
        };
        self.commands
            .send(command)
            .await
            .map_err(|_| OpenError::Closed)?;
        // Without an answer the connection went away with the request.
        answer.await.unwrap_or(Err(OpenError::Lost))
    }

    /// Gossips a signed record of this network.
    pub async fn publish(&self, bytes: Vec<u8>) -> Result<(), PublishError> {
        self.ask(|reply| Command::Publish { bytes, reply })
            .await
            .unwrap_or(Err(PublishError::Closed))
    }

    /// Decides what becomes of a gossiped record. Late or repeated judgements change nothing.
    pub async fn judge(&self, token: MessageToken, judgement: Judgement) {
        self.tell(Command::Judge { token, judgement }).await;
    }

    /// Counts something a peer did that the protocol forbids. Enough of it drops and blocks the peer.
    pub async fn penalise(&self, node: NodeId, offence: Offence) {
        self.tell(Command::Penalise { node, offence }).await;
    }

    /// Tells every peer of a new session.
    pub async fn set_session(&self, session: SessionNonce) {
        self.tell(Command::SetSession { session }).await;
    }

    /// Sets whether joiners are let in: an invite is open. Holds for connections made after this returns.
    pub async fn open_joins(&self, open: bool) {
        // Without an answer the mesh is shut down, and lets nobody in.
        let _ = self.ask(|done| Command::OpenJoins { open, done }).await;
    }

    /// Multiaddrs this node listens on, with its id.
    pub async fn listen_addrs(&self) -> Vec<String> {
        self.ask(|reply| Command::ListenAddresses { reply })
            .await
            .unwrap_or_default()
    }

    /// The peers that are up.
    pub async fn peers(&self) -> Vec<PeerView> {
        self.ask(|reply| Command::Peers { reply })
            .await
            .unwrap_or_default()
    }

    /// What was left undone to stay within bounds.
    pub async fn counters(&self) -> Counters {
        self.ask(|reply| Command::Counters { reply })
            .await
            .unwrap_or_default()
    }

    /// Says goodbye to every peer and ends the task.
    pub async fn shutdown(&self) {
        let _ = self.ask(|done| Command::Shutdown { done }).await;
    }

    /// `None` if the mesh is shut down.
    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.ok()?;
        answer.await.ok()
    }

    /// A mesh that is shut down has nobody left to tell.
    async fn tell(&self, command: Command) {
        let _ = self.commands.send(command).await;
    }
}
