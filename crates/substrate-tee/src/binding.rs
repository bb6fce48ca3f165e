//! What ties a report to a node and its worker: the 64 bytes that the guest has its hardware sign.
//!
//! Invariant: two nodes, two workers or two networks never have the same bytes.
//! Absent by design: a nonce. A Capability is for everybody, so no reader of it can have drawn one; what a report says
//! is therefore not fresh, and [`Unchecked::Freshness`](crate::Unchecked::Freshness) says so.

use sha2::{Digest, Sha512};
use substrate_record::{ContentHash, NetworkId, NodeId};

/// Sets these bytes apart from whatever else a guest may have its hardware sign.
const DOMAIN: &[u8] = b"substrate/tee/v1";

/// The user data of a report: `REPORT_DATA` in both makers' words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Binding([u8; 64]);

impl Binding {
    /// SHA-512("substrate/tee/v1" ‖ network ‖ node ‖ worker), where the node is its public key and the worker the
    /// SHA-256 of the program that runs jobs, as the Capability names both.
    pub fn of(network: &NetworkId, node: &NodeId, worker: &ContentHash) -> Self {
        let mut hash = Sha512::new();
        hash.update(DOMAIN);
        hash.update(network.as_bytes());
        hash.update(node.as_bytes());
        hash.update(worker.as_bytes());
        Self(hash.finalize().into())
    }

    /// Wraps the user data of a report that was made for another purpose.
    pub const fn from_bytes(bytes: [u8; 64]) -> Self {
        Self(bytes)
    }

    /// The bytes to have signed.
    pub const fn as_bytes(&self) -> &[u8; 64] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_network_node_or_worker_has_other_bytes() {
        let binding = |network: u8, node: u8, worker: u8| {
            Binding::of(
                &NetworkId::from_bytes([network; 32]),
                &NodeId::from_bytes([node; 32]),
                &ContentHash::from_bytes([worker; 32]),
            )
        };
        let ours = binding(1, 2, 3);
        assert_eq!(ours, binding(1, 2, 3));
        for other in [
            binding(9, 2, 3),
            binding(1, 9, 3),
            binding(1, 2, 9),
            binding(2, 1, 3),
        ] {
            assert_ne!(ours, other);
        }
    }

    #[test]
    fn the_bytes_are_what_the_docs_have_a_guest_compute() {
        // printf 'substrate/tee/v1' and 96 zero bytes, into sha512sum.
        let zero = Binding::of(
            &NetworkId::from_bytes([0; 32]),
            &NodeId::from_bytes([0; 32]),
            &ContentHash::from_bytes([0; 32]),
        );
        assert_eq!(hex::encode(&zero.as_bytes()[..8]), "c9fc65889b427142");
    }
}
