//! What the mesh tells the daemon, and why it could not do what it was asked.
//!
//! Absent by design: libp2p's own types.

use substrate_record::{NodeId, SessionNonce};

use crate::hello::HelloMismatch;
use crate::name::Protocol;
use crate::stream::MeshStream;

/// Something happened.
#[derive(Debug)]
#[non_exhaustive]
pub enum MeshEvent {
    /// A peer of this network is connected and has said hello.
    PeerUp(PeerView),
    /// It has a new session, or another round trip time.
    PeerChanged(PeerView),
    /// Its last connection is gone.
    PeerDown {
        /// Who.
        node: NodeId,
    },
    /// A gossiped record. Its signature is good in this network; whether to pass it on is the
    /// daemon's to [`judge`](crate::Mesh::judge). A record nobody judges is passed on by nobody.
    Record {
        /// The neighbour it came from, which is not its author.
        from: NodeId,
        /// Names the message in the judgement.
        token: MessageToken,
        /// Canonical bytes.
        bytes: Vec<u8>,
    },
    /// A peer opened a stream.
    Inbound {
        /// Who.
        node: NodeId,
        /// What for. For [`Protocol::Join`] the node is a joiner, of whom no `PeerUp` tells.
        protocol: Protocol,
        /// The stream.
        stream: MeshStream,
    },
    /// This node listens on one more address.
    Listening {
        /// Multiaddr, with this node's own id.
        address: String,
    },
    /// A connection ended at its hello.
    Refused {
        /// Whose key it was.
        node: NodeId,
        /// Where.
        address: String,
        /// Why.
        why: HelloMismatch,
    },
}

/// A connected peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerView {
    /// Who.
    pub node: NodeId,
    /// Where it says it listens, and where it is connected from here.
    pub addresses: Vec<String>,
    /// Its current session.
    pub session: SessionNonce,
    /// Last measured round trip.
    pub rtt_ms: u64,
    /// Its wall clock minus this machine's, at hello. For showing only.
    pub skew_ms: i64,
    /// Its release.
    pub version: String,
    /// Its build.
    pub build: String,
    /// Who opened the first connection.
    pub direction: Direction,
}

/// Who opened a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// The peer.
    Inbound,
    /// This node.
    Outbound,
}

/// Names a gossiped message until it is judged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MessageToken {
    pub(crate) id: libp2p::gossipsub::MessageId,
    pub(crate) source: libp2p::PeerId,
}

/// What becomes of a gossiped message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judgement {
    /// Pass it on.
    Accept,
    /// Do not pass it on; nobody is to blame.
    Ignore,
    /// Do not pass it on; the neighbour should have known.
    Reject,
}

/// What the mesh left undone to stay within its bounds, since it started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Gossiped records dropped because the daemon did not keep up.
    pub gossip_dropped: u64,
    /// Gossiped messages not shown to the daemon: no hello, or not a record of this network.
    pub gossip_refused: u64,
    /// Inbound streams dropped because the daemon did not keep up.
    pub streams_dropped: u64,
    /// Offences counted.
    pub offences: u64,
    /// Peers blocked.
    pub blocks: u64,
}

/// Why a mesh does not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MeshError {
    /// An address is not a multiaddr.
    #[error("{address} is not a multiaddr")]
    Address {
        /// As given.
        address: String,
    },
    /// The network stack did not start.
    #[error("network stack does not start: {reason}")]
    Transport {
        /// libp2p's words.
        reason: String,
    },
    /// An address cannot be listened on.
    #[error("cannot listen on {address}: {reason}")]
    Listen {
        /// The multiaddr.
        address: String,
        /// The system's words.
        reason: String,
    },
}

/// Why a dial failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DialError {
    /// Not a multiaddr.
    #[error("{address} is not a multiaddr")]
    Address {
        /// As given.
        address: String,
    },
    /// Nobody answered, or not the one who should have.
    #[error("{address} cannot be reached: {reason}")]
    Unreachable {
        /// As given.
        address: String,
        /// libp2p's words.
        reason: String,
    },
    /// Somebody answered and is not of this network.
    #[error(transparent)]
    Refused(HelloMismatch),
    /// Too many dials are under way.
    #[error("too many dials are under way")]
    Busy,
    /// The mesh was shut down.
    #[error("the mesh is shut down")]
    Closed,
}

/// Why a stream could not be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The peer is not connected and could not be reached.
    #[error("the peer is not connected")]
    NotConnected,
    /// The peer does not accept this protocol.
    #[error("the peer does not speak this protocol")]
    NotSpoken,
    /// The connection was lost on the way.
    #[error("the connection was lost")]
    Lost,
    /// Too many streams wait to be opened.
    #[error("too many streams wait to be opened")]
    Busy,
    /// The mesh was shut down.
    #[error("the mesh is shut down")]
    Closed,
}

/// Why a record was not gossiped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PublishError {
    /// Not a verifiable record of this network.
    #[error("these bytes are not a record of this network")]
    NotARecord,
    /// Nobody is there to hear it.
    #[error("no peer listens")]
    NoPeers,
    /// The neighbours' queues are full.
    #[error("the neighbours' queues are full")]
    Busy,
    /// The mesh was shut down.
    #[error("the mesh is shut down")]
    Closed,
}
