//! The Kademlia table: who is let in, and under which addresses.
//!
//! Invariant: at most 2 peers of one subnet (/24 of IPv4, /48 of IPv6) in a bucket and 3 in the
//! table, so that surrounding a node costs addresses in many networks and not just many keys.
//! Absent by design: records and providers. The table finds peers; everything else has its own way.
//!
//! Loopback, private and link-local ranges are exempt: all nodes of one home or one test share
//! such a subnet, and nobody outside can route there, so a limit would only keep neighbours apart.

use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use libp2p::kad::store::{MemoryStore, MemoryStoreConfig};
use libp2p::kad::{self, BucketInserts, Caching, StoreInserts};
use libp2p::multiaddr::Protocol;
use libp2p::{Multiaddr, PeerId};

use crate::name::Names;

/// Peers of one subnet in one bucket (DESIGN 4; Ethereum's discv5 uses the same numbers).
const PER_BUCKET: usize = 2;

/// Peers of one subnet in the whole table. The buckets nearest to a key are the ones worth
/// taking over, so the sum is bounded as well.
const PER_TABLE: usize = 3;

/// Addresses kept of one peer: two transports, two families, and room.
pub(crate) const ADDRESSES_PER_PEER: usize = 8;

/// How often the table is refreshed by a walk.
const REFRESH: Duration = Duration::from_secs(5 * 60);

/// A walk is given up after this long.
const WALK: Duration = Duration::from_secs(20);

pub(crate) type Behaviour = kad::Behaviour<MemoryStore>;

/// A network one holder is assumed to have a whole of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Subnet {
    V4([u8; 3]),
    V6([u8; 6]),
}

/// An empty table that stores nothing for others.
///
/// It always serves queries: until reachability is tested, every node of this release is one
/// that others were given an address of.
pub(crate) fn behaviour(me: PeerId, names: &Names) -> Behaviour {
    let mut config = kad::Config::new(names.kad());
    config
        .disjoint_query_paths(true)
        .set_kbucket_inserts(BucketInserts::Manual)
        .set_record_filtering(StoreInserts::FilterBoth)
        .set_caching(Caching::Disabled)
        .set_replication_interval(None)
        .set_publication_interval(None)
        .set_provider_publication_interval(None)
        .set_periodic_bootstrap_interval(Some(REFRESH))
        .set_query_timeout(WALK);
    let nothing = MemoryStoreConfig {
        max_records: 0,
        max_value_bytes: 0,
        max_providers_per_key: 0,
        max_provided_keys: 0,
    };
    let mut kad = kad::Behaviour::with_config(me, MemoryStore::with_config(me, nothing), config);
    kad.set_mode(Some(kad::Mode::Server));
    kad
}

/// Puts a peer into the table under those of its addresses that are admissible.
/// Returns whether any was.
pub(crate) fn admit(
    kad: &mut Behaviour,
    peer: PeerId,
    addresses: &[Multiaddr],
    seen_at: &Multiaddr,
) -> bool {
    let mut admitted = false;
    let useful = addresses
        .iter()
        .filter(|address| is_useful(address, seen_at));
    for address in useful.take(ADDRESSES_PER_PEER) {
        if has_room(kad, peer, address) {
            admitted |= !matches!(
                kad.add_address(&peer, address.clone()),
                kad::RoutingUpdate::Failed
            );
        }
    }
    admitted
}

/// Whether another peer of the address's subnet may come in.
fn has_room(kad: &mut Behaviour, peer: PeerId, address: &Multiaddr) -> bool {
    let Some(subnet) = subnet(address) else {
        return true;
    };
    let taken = |entries: &mut dyn Iterator<Item = (PeerId, bool)>| {
        entries
            .filter(|(other, same)| *same && *other != peer)
            .count()
    };
    let in_bucket = kad.kbucket(peer).map_or(0, |bucket| {
        taken(&mut bucket.iter().map(|entry| {
            let same = entry
                .node
                .value
                .iter()
                .any(|other| self::subnet(other) == Some(subnet));
            (*entry.node.key.preimage(), same)
        }))
    });
    let in_table: usize = kad
        .kbuckets()
        .map(|bucket| {
            taken(&mut bucket.iter().map(|entry| {
                let same = entry
                    .node
                    .value
                    .iter()
                    .any(|other| self::subnet(other) == Some(subnet));
                (*entry.node.key.preimage(), same)
            }))
        })
        .sum();
    in_bucket < PER_BUCKET && in_table < PER_TABLE
}

/// Whether an address a peer claims can lead to it from here.
///
/// Names are left out: a stranger could make this node resolve, and so visit, whatever it likes,
/// and their subnet is not known. An address of the peer's own machine helps only on that machine.
fn is_useful(address: &Multiaddr, seen_at: &Multiaddr) -> bool {
    let direct = !address.iter().any(|part| part == Protocol::P2pCircuit);
    match ip(address) {
        Some(claimed) if claimed.is_unspecified() => false,
        Some(claimed) if claimed.is_loopback() => {
            direct && ip(seen_at).is_some_and(|seen| seen.is_loopback())
        }
        Some(claimed) => direct && !is_link_local_v6(claimed),
        None => false,
    }
}

fn ip(address: &Multiaddr) -> Option<IpAddr> {
    match address.iter().next()? {
        Protocol::Ip4(ip) => Some(IpAddr::V4(ip)),
        Protocol::Ip6(ip) => Some(ip.to_ipv4_mapped().map_or(IpAddr::V6(ip), IpAddr::V4)),
        _ => None,
    }
}

/// The subnet that counts, or `None` for an exempt address.
fn subnet(address: &Multiaddr) -> Option<Subnet> {
    match ip(address)? {
        IpAddr::V4(ip) => {
            let [a, b, c, _] = ip.octets();
            // 100.64.0.0/10 is the carrier's own side of its NAT (RFC 6598).
            let carrier = a == 100 && b & 0xc0 == 64;
            let exempt = ip.is_loopback() || ip.is_private() || ip.is_link_local() || carrier;
            if exempt {
                None
            } else {
                Some(Subnet::V4([a, b, c]))
            }
        }
        IpAddr::V6(ip) => {
            let exempt =
                ip.is_loopback() || is_unique_local(ip) || is_link_local_v6(IpAddr::V6(ip));
            let [a, b, c, d, e, f, ..] = ip.octets();
            if exempt {
                None
            } else {
                Some(Subnet::V6([a, b, c, d, e, f]))
            }
        }
    }
}

/// fc00::/7 (RFC 4193).
fn is_unique_local(ip: Ipv6Addr) -> bool {
    ip.octets()[0] & 0xfe == 0xfc
}

/// fe80::/10: meaningless without the interface it was seen on.
fn is_link_local_v6(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.segments()[0] & 0xffc0 == 0xfe80)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::network;

    fn filled(address: impl Fn(u32) -> String) -> usize {
        let mut kad = behaviour(PeerId::random(), &Names::new(network(1)));
        for i in 0..60 {
            let address: Multiaddr = address(i).parse().unwrap();
            admit(
                &mut kad,
                PeerId::random(),
                std::slice::from_ref(&address),
                &address,
            );
        }
        kad.kbuckets().map(|bucket| bucket.num_entries()).sum()
    }

    #[test]
    fn one_subnet_gets_three_places_in_the_table() {
        assert_eq!(
            filled(|i| format!("/ip4/8.8.8.{i}/udp/1/quic-v1")),
            PER_TABLE
        );
        assert_eq!(
            filled(|i| format!("/ip6/2001:db8:7:{i}::1/tcp/1")),
            PER_TABLE
        );
        assert_eq!(
            filled(|i| format!("/ip6/::ffff:8.8.8.{i}/tcp/1")),
            PER_TABLE
        );
    }

    #[test]
    fn neighbours_at_home_and_peers_of_many_subnets_are_not_limited() {
        for many in [
            filled(|i| format!("/ip4/192.168.1.{i}/tcp/1")),
            filled(|i| format!("/ip4/127.0.0.1/tcp/{}", i + 1)),
            filled(|i| format!("/ip6/fd00::{i}/tcp/1")),
            filled(|i| format!("/ip4/8.8.{i}.1/tcp/1")),
        ] {
            // Random keys fill the first buckets (20 each), so not all 60 find a place.
            assert!(many > 30, "{many}");
        }
    }

    #[test]
    fn addresses_that_lead_nowhere_from_here_are_left_out() {
        let seen: Multiaddr = "/ip4/9.9.9.9/tcp/1".parse().unwrap();
        for (address, useful) in [
            ("/ip4/9.9.9.9/tcp/5", true),
            ("/ip4/192.168.0.3/tcp/5", true),
            ("/ip4/127.0.0.1/tcp/5", false),
            ("/ip4/0.0.0.0/tcp/5", false),
            ("/ip6/fe80::1/tcp/5", false),
            ("/dns4/example.org/tcp/5", false),
        ] {
            assert_eq!(
                is_useful(&address.parse().unwrap(), &seen),
                useful,
                "{address}"
            );
        }
    }
}
