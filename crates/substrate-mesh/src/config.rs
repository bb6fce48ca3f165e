//! What the daemon decides about its mesh.

use substrate_record::{NetworkId, SessionNonce};

/// Most connections others may hold open to this node. The view of the mesh is bounded at
/// 128 peers; twice that leaves room for strangers who come for one job.
const INBOUND: u32 = 256;

/// Most connections this node holds open to others: its view of 128 peers.
const OUTBOUND: u32 = 128;

/// Most connections with one peer: both sides may dial at once, over QUIC and over TCP.
const PER_PEER: u32 = 4;

/// Memory of the process beyond which no new connection is accepted: six times what a
/// daemon without a model is allowed to take.
const MEMORY_BYTES: usize = 512 * 1024 * 1024;

/// Everything a mesh needs to start.
#[derive(Clone)]
pub struct MeshConfig {
    /// Ed25519 secret of the device key.
    pub seed: [u8; 32],
    /// The network this node belongs to, or the inviter's for a joiner.
    pub network: NetworkId,
    /// Rules in force; `None` for a joiner, who learns them from the Genesis.
    pub rules_hash: Option<[u8; 32]>,
    /// Release, shown to peers.
    pub version: String,
    /// Build name, shown to peers.
    pub build: String,
    /// 16 random bytes of this start.
    pub session: SessionNonce,
    /// Multiaddrs to listen on.
    pub listen: Vec<String>,
    /// Multiaddrs that are dialed and redialed for as long as the mesh runs.
    pub static_peers: Vec<String>,
    /// Multiaddrs known from before (or from an invite): tried until somebody answers.
    pub known_peers: Vec<String>,
    /// How peers nobody named are found.
    pub discovery: Discovery,
    /// Whether joiners are let in from the start: an invite is open. Later [`Mesh::open_joins`](crate::Mesh::open_joins) says.
    pub allow_join: bool,
    /// Bounds.
    pub limits: Limits,
}

/// How peers are found. With both off only the addresses given are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Discovery {
    /// Multicast on the local network. It tells everyone there that a libp2p program runs.
    pub mdns: bool,
    /// The Kademlia table of this network.
    pub kad: bool,
}

/// Bounds on what strangers can make this process hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Connections others opened.
    pub inbound: u32,
    /// Connections opened from here.
    pub outbound: u32,
    /// Connections with one peer.
    pub per_peer: u32,
    /// Memory of the process beyond which new connections are refused.
    pub memory_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            inbound: INBOUND,
            outbound: OUTBOUND,
            per_peer: PER_PEER,
            memory_bytes: MEMORY_BYTES,
        }
    }
}
