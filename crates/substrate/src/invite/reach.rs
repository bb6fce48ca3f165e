//! Which of this machine's addresses go into an invite, and in which order.
//!
//! Invariant: an address that only leads back to the reader's own machine is left out, unless there is no other kind:
//! then both nodes are on one machine, as in a trial.
//!
//! Absent by design: asking the network. What a stranger says of our addresses is the mesh's business.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::MAX_ADDRS;

/// How likely a guest gets through, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Reach {
    /// From anywhere: a public address or a name.
    Anywhere,
    /// From anywhere, by way of a third node.
    Relayed,
    /// From the same house, or the same private network.
    House,
    /// Only from containers and virtual machines here: their bridge's own end.
    Bridge,
    /// Only from this machine.
    Machine,
    /// From nowhere without more than an address says.
    Nowhere,
}

/// The addresses for a code, best first, at most [`MAX_ADDRS`]. Empty if the node listens nowhere.
pub fn reachable(listening: Vec<String>) -> Vec<String> {
    let mut ranked: Vec<(Reach, String)> = listening
        .into_iter()
        .map(|addr| (reach_of(&addr), addr))
        .filter(|(reach, _)| *reach < Reach::Nowhere)
        .collect();
    ranked.sort_by_key(|(reach, _)| *reach);
    if ranked.iter().any(|(reach, _)| *reach < Reach::Machine) {
        ranked.retain(|(reach, _)| *reach < Reach::Machine);
    }
    ranked.truncate(MAX_ADDRS);
    ranked.into_iter().map(|(_, addr)| addr).collect()
}

/// By the first part of a multiaddress, which says where to go.
fn reach_of(addr: &str) -> Reach {
    if addr.split('/').any(|part| part == "p2p-circuit") {
        return Reach::Relayed;
    }
    let mut parts = addr.split('/').skip(1);
    match (parts.next(), parts.next()) {
        (Some("dns" | "dns4" | "dns6" | "dnsaddr"), Some(_)) => Reach::Anywhere,
        (Some("ip4" | "ip6"), Some(ip)) => match ip.parse() {
            Ok(IpAddr::V4(ip)) => of_v4(ip),
            Ok(IpAddr::V6(ip)) => of_v6(ip),
            Err(_) => Reach::Nowhere,
        },
        _ => Reach::Nowhere,
    }
}

fn of_v4(ip: Ipv4Addr) -> Reach {
    match ip.octets() {
        _ if ip.is_unspecified() => Reach::Nowhere,
        _ if ip.is_loopback() => Reach::Machine,
        _ if ip.is_link_local() => Reach::House,
        // The ends that Docker (172.17.0.1 to 172.31.0.1), libvirt and LXC give their bridges by default.
        [172, 17..=31, 0, 1] | [192, 168, 122, 1] | [10, 0, 3, 1] => Reach::Bridge,
        // Behind a provider's or an overlay's translation (RFC 6598).
        [100, 64..=127, ..] => Reach::House,
        _ if ip.is_private() => Reach::House,
        _ => Reach::Anywhere,
    }
}

fn of_v6(ip: Ipv6Addr) -> Reach {
    if let Some(ip) = ip.to_ipv4_mapped() {
        return of_v4(ip);
    }
    let first = ip.segments()[0];
    match first {
        _ if ip.is_unspecified() => Reach::Nowhere,
        _ if ip.is_loopback() => Reach::Machine,
        // fe80::/10 means nothing without the interface, which a multiaddress does not name.
        0xfe80..=0xfebf => Reach::Nowhere,
        // fc00::/7
        0xfc00..=0xfdff => Reach::House,
        _ => Reach::Anywhere,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(listening: &[&str]) -> Vec<String> {
        reachable(listening.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn routable_addresses_come_first_and_bridges_last() {
        let told = of(&[
            "/ip4/127.0.0.1/tcp/1",
            "/ip4/172.17.0.1/tcp/1",
            "/ip4/192.168.178.20/udp/1/quic-v1",
            "/ip6/::1/tcp/1",
            "/ip6/fe80::1/tcp/1",
            "/ip6/fd00::5/tcp/1",
            "/ip4/93.184.216.34/tcp/1",
            "/ip6/2a00:1450::1/tcp/1",
            "/dns4/node.example.org/tcp/1",
            "/ip4/93.184.216.35/tcp/2/p2p/relay/p2p-circuit",
        ]);
        assert_eq!(
            told,
            [
                "/ip4/93.184.216.34/tcp/1",
                "/ip6/2a00:1450::1/tcp/1",
                "/dns4/node.example.org/tcp/1",
                "/ip4/93.184.216.35/tcp/2/p2p/relay/p2p-circuit",
                "/ip4/192.168.178.20/udp/1/quic-v1",
                "/ip6/fd00::5/tcp/1",
                "/ip4/172.17.0.1/tcp/1",
            ]
        );
    }

    #[test]
    fn loopback_is_named_when_there_is_nothing_else() {
        let both = ["/ip4/127.0.0.1/udp/1/quic-v1", "/ip4/127.0.0.1/tcp/1"];
        assert_eq!(of(&both), both);
        assert!(of(&[]).is_empty());
        assert!(of(&["/ip6/fe80::1/tcp/1"]).is_empty());
    }

    #[test]
    fn a_code_names_no_more_than_it_holds() {
        let many: Vec<String> = (0..20).map(|n| format!("/ip4/10.1.1.{n}/tcp/1")).collect();
        assert_eq!(reachable(many).len(), MAX_ADDRS);
    }
}
