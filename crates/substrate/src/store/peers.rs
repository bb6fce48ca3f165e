//! Addresses of nodes seen before, so that a restart does not begin from nothing.
//!
//! Invariant: at most [`MAX_PEERS`] per network; the one not seen for longest makes room.

use serde::{Deserialize, Serialize};
use substrate_record::{NetworkId, NodeId};

use super::keyed::{below, get, put};
use super::tables::{PEERS, key};
use super::{Store, StoreError};

/// Enough to find a network again after a long pause; 128 is the capacity view of a running node.
pub const MAX_PEERS: usize = 1024;

/// The most addresses kept of one peer.
const MAX_ADDRS: usize = 16;

/// Where a peer was reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerAddrs {
    /// Multiaddresses, best first.
    pub addrs: Vec<String>,
    /// When, by this machine's wall clock.
    pub last_seen_ms: u64,
}

impl Store {
    /// Remembers where a peer was reached.
    pub fn save_peer(
        &self,
        network: &NetworkId,
        node: &NodeId,
        seen: &PeerAddrs,
    ) -> Result<(), StoreError> {
        self.write(|tx| {
            let mut peers = tx.open_table(PEERS)?;
            let row_key = key(&[network.as_bytes(), node.as_bytes()]);
            if get::<PeerAddrs>(&peers, &row_key)?.is_none() {
                let known = below::<PeerAddrs>(&peers, network.as_bytes(), MAX_PEERS)?;
                if known.len() == MAX_PEERS
                    && let Some((oldest, _)) =
                        known.iter().min_by_key(|(_, peer)| peer.last_seen_ms)
                {
                    peers.remove(key(&[network.as_bytes(), oldest]).as_slice())?;
                }
            }
            let mut seen = seen.clone();
            seen.addrs.truncate(MAX_ADDRS);
            put(&mut peers, &row_key, &seen)
        })
    }

    /// The peers seen before, latest first.
    pub fn peers(&self, network: &NetworkId) -> Result<Vec<(NodeId, PeerAddrs)>, StoreError> {
        let rows = self
            .read(|tx| below::<PeerAddrs>(&tx.open_table(PEERS)?, network.as_bytes(), MAX_PEERS))?;
        let mut peers = Vec::with_capacity(rows.len());
        for (node, seen) in rows {
            let node = node
                .as_slice()
                .try_into()
                .map_err(|_| StoreError::Corrupt {
                    detail: "a peer's key is not a node's".to_owned(),
                })?;
            peers.push((NodeId::from_bytes(node), seen));
        }
        peers.sort_by_key(|(_, seen)| std::cmp::Reverse(seen.last_seen_ms));
        Ok(peers)
    }

    /// Forgets a peer; `false` if it was not known.
    pub fn forget_peer(&self, network: &NetworkId, node: &NodeId) -> Result<bool, StoreError> {
        let row_key = key(&[network.as_bytes(), node.as_bytes()]);
        self.write(|tx| Ok(tx.open_table(PEERS)?.remove(row_key.as_slice())?.is_some()))
    }
}
