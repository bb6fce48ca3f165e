//! One key, two spellings: the commons' `NodeId` and libp2p's `PeerId`.
//!
//! Invariant: the two are the same raw Ed25519 key, converted here and nowhere else.
//! Absent by design: peers with any other kind of key.

use libp2p::PeerId;
use libp2p::identity::{Keypair, PublicKey, ed25519};
use substrate_record::NodeId;

/// What stands before the key in an Ed25519 `PeerId`: identity multihash (0x00) of 36 bytes,
/// then protobuf `{Type: Ed25519, Data: 32 bytes}` (libp2p peer-ids spec).
const ED25519_PREFIX: [u8; 6] = [0x00, 0x24, 0x08, 0x01, 0x12, 0x20];

/// The node behind a peer, unless its key is not Ed25519.
pub(crate) fn node_of(peer: &PeerId) -> Option<NodeId> {
    let bytes = peer.to_bytes();
    let key = bytes.strip_prefix(&ED25519_PREFIX)?;
    Some(NodeId::from_bytes(key.try_into().ok()?))
}

/// The peer of a node, unless the bytes are not a point of the curve.
pub(crate) fn peer_of(node: &NodeId) -> Option<PeerId> {
    let key = ed25519::PublicKey::try_from_bytes(node.as_bytes()).ok()?;
    Some(PublicKey::from(key).to_peer_id())
}

/// The key pair of a 32-byte secret.
pub(crate) fn keypair(mut seed: [u8; 32]) -> Keypair {
    Keypair::ed25519_from_bytes(&mut seed).expect("any 32 bytes are an Ed25519 secret")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_and_its_peer_are_the_same_key() {
        for seed in 0..50 {
            let peer = keypair([seed; 32]).public().to_peer_id();
            let node = node_of(&peer).unwrap();
            assert_eq!(peer_of(&node), Some(peer));
        }
        assert_eq!(node_of(&PeerId::random()), None);
    }
}
