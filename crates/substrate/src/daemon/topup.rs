//! Connections of this node's own choosing: fewer than four, and peers met before are dialed again.
//!
//! A node whose every connection was opened by others sees only what they let it see (PROTOCOL.md 4, DESIGN.md 4:
//! persisted outbound peers).
//!
//! Invariant: at most [`WANTED`] dials a minute, and each remembered peer gets its turn.

use std::collections::BTreeMap;
use std::time::Duration;

use substrate_record::NodeId;
use tokio::time::Instant;

use super::context::blocking;
use super::life::{Life, Peer};
use crate::store::PeerAddrs;

/// Outbound connections kept: one liar among four does not hide the rest.
const WANTED: usize = 4;

/// Between two rounds. The mesh dials what it was started with by itself; this is for what it lost since.
const EVERY: Duration = Duration::from_secs(60);

/// Addresses of one peer that are tried.
const ADDRESSES: usize = 4;

/// When the next round is due, and whom it begins with.
pub struct TopUp {
    due: Instant,
    rounds: usize,
}

impl Default for TopUp {
    fn default() -> Self {
        Self {
            due: Instant::now() + EVERY,
            rounds: 0,
        }
    }
}

impl Life {
    pub(super) fn top_up(&mut self) {
        let now = Instant::now();
        let lacking = lacking(&self.peers);
        if now < self.topping_up.due || lacking == 0 {
            return;
        }
        self.topping_up.due = now + EVERY;
        let from = self.topping_up.rounds * WANTED;
        self.topping_up.rounds = self.topping_up.rounds.wrapping_add(1);
        let connected: Vec<NodeId> = self
            .peers
            .keys()
            .copied()
            .chain([self.context.me])
            .collect();
        let context = self.context.clone();
        self.tasks.spawn(async move {
            let shared = context.clone();
            let known = blocking(move || shared.desk.store.peers(&shared.network)).await;
            let known = known.unwrap_or_else(|error| {
                tracing::debug!(%error, "the peers met before could not be read");
                Vec::new()
            });
            for peer in choose(known, &connected, lacking, from) {
                for address in peer.addrs.iter().take(ADDRESSES) {
                    if context.mesh.dial(address).await.is_ok() {
                        break;
                    }
                }
            }
        });
    }
}

fn lacking(peers: &BTreeMap<NodeId, Peer>) -> usize {
    WANTED.saturating_sub(peers.values().filter(|peer| peer.outbound).count())
}

/// Peers to dial: those met last first, and from round to round the next of them.
fn choose(
    mut known: Vec<(NodeId, PeerAddrs)>,
    connected: &[NodeId],
    lacking: usize,
    from: usize,
) -> Vec<PeerAddrs> {
    known.retain(|(node, _)| !connected.contains(node));
    known.sort_by_key(|(_, peer)| std::cmp::Reverse(peer.last_seen_ms));
    let count = known.len();
    known.rotate_left(from.checked_rem(count).unwrap_or(0));
    let chosen = known.into_iter().take(lacking);
    chosen.map(|(_, peer)| peer).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn met(ages: &[u64]) -> Vec<(NodeId, PeerAddrs)> {
        let peer = |(i, last_seen_ms): (usize, &u64)| {
            let addrs = vec![format!("peer {i}")];
            let node = NodeId::from_bytes([u8::try_from(i).expect("few"); 32]);
            let last_seen_ms = *last_seen_ms;
            (
                node,
                PeerAddrs {
                    addrs,
                    last_seen_ms,
                },
            )
        };
        ages.iter().enumerate().map(peer).collect()
    }

    fn chosen(connected: &[u8], lacking: usize, from: usize) -> Vec<String> {
        let connected: Vec<_> = connected
            .iter()
            .map(|i| NodeId::from_bytes([*i; 32]))
            .collect();
        let chosen = choose(met(&[10, 50, 30, 40, 20]), &connected, lacking, from);
        chosen
            .into_iter()
            .map(|peer| peer.addrs[0].clone())
            .collect()
    }

    #[test]
    fn the_peers_met_last_are_dialed_first_and_each_gets_its_turn() {
        assert_eq!(chosen(&[], 2, 0), ["peer 1", "peer 3"]);
        assert_eq!(chosen(&[1], 2, 0), ["peer 3", "peer 2"]);
        assert_eq!(chosen(&[], 2, 4), ["peer 0", "peer 1"]);
        assert_eq!(chosen(&[0, 1, 2, 3, 4], 4, 8), Vec::<String>::new());
    }
}
