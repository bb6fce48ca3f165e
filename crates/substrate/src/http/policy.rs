//! What a listener lets in: its address, and the names and origins it answers to.
//!
//! Pure. Invariants: a listener for other machines is not started without a key; the `null` and
//! `file:` origins never pass; a name that could be made to point elsewhere is ours only if listed.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use substrate_record::Scope;

use super::keys::ApiKeys;

/// What a listener lets in.
#[derive(Debug, Clone)]
pub struct ListenerPolicy {
    /// The address it is bound to.
    pub bound: SocketAddr,
    /// Widest scope, and default, of a loopback caller without a key.
    pub keyless: Scope,
    /// Names other than loopback's by which this listener may be called.
    pub names: Arc<[String]>,
    /// Web origins other than loopback's whose pages may read answers (`https://chat.example`).
    pub origins: Arc<[String]>,
}

/// Why a listener must not be started.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ListenerRefused {
    /// Open to other machines, and no key to tell them apart.
    #[error(
        "refusing to listen on {addr}: it is not loopback, so callers must show an API key and none is set"
    )]
    NoKey {
        /// The address.
        addr: SocketAddr,
    },
}

impl ListenerPolicy {
    /// Whether a listener may be bound to `addr` with these keys.
    pub fn check(addr: SocketAddr, keys: &ApiKeys) -> Result<(), ListenerRefused> {
        if !is_loopback(addr.ip()) && keys.is_empty() {
            return Err(ListenerRefused::NoKey { addr });
        }
        Ok(())
    }

    pub(super) fn demands_key(&self) -> bool {
        !is_loopback(self.bound.ip())
    }

    /// `host` is a `Host` header's value, with or without a port.
    pub(super) fn is_ours(&self, host: &str) -> bool {
        let name = without_port(host);
        match literal(name) {
            // A wildcard listener has every address of the machine; a literal cannot be rebound.
            Some(ip) => {
                is_loopback(ip) || ip == self.bound.ip() || self.bound.ip().is_unspecified()
            }
            None => {
                is_loopback_name(name)
                    || self
                        .names
                        .iter()
                        .any(|ours| ours.eq_ignore_ascii_case(name))
            }
        }
    }

    pub(super) fn may_read(&self, origin: &str) -> bool {
        if self
            .origins
            .iter()
            .any(|allowed| allowed.trim_end_matches('/').eq_ignore_ascii_case(origin))
        {
            return true;
        }
        match origin.split_once("://") {
            Some(("tauri" | "app", _)) => true,
            Some(("http" | "https", host)) => {
                let name = without_port(host);
                is_loopback_name(name) || literal(name).is_some_and(is_loopback)
            }
            _ => false,
        }
    }
}

fn is_loopback(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}

/// `localhost`, and names below it (Tauri's pages live at `tauri.localhost`), which RFC 6761 6.3
/// keeps from ever being resolved elsewhere.
fn is_loopback_name(name: &str) -> bool {
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    name == "localhost" || name.ends_with(".localhost")
}

fn literal(name: &str) -> Option<IpAddr> {
    name.trim_start_matches('[')
        .trim_end_matches(']')
        .parse()
        .ok()
}

fn without_port(host: &str) -> &str {
    if host.starts_with('[') {
        return host.split_inclusive(']').next().unwrap_or(host);
    }
    host.rsplit_once(':').map_or(host, |(name, _)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(bound: &str) -> ListenerPolicy {
        ListenerPolicy {
            bound: bound.parse().unwrap(),
            keyless: Scope::Mine,
            names: Arc::from([String::from("box.lan")]),
            origins: Arc::from([String::from("https://chat.example")]),
        }
    }

    #[test]
    fn only_our_own_names_and_literals_are_hosts() {
        let loopback = policy("127.0.0.1:11535");
        for ours in [
            "localhost",
            "LocalHost:11535",
            "127.0.0.1:1",
            "127.9.9.9",
            "[::1]:11535",
            "box.lan",
            "tauri.localhost",
        ] {
            assert!(loopback.is_ours(ours), "{ours}");
        }
        for theirs in [
            "evil.example",
            "localhost.evil.example",
            "10.0.0.7",
            "127.0.0.1.nip.io",
            "",
            "[::2]",
            "0.0.0.0",
        ] {
            assert!(!loopback.is_ours(theirs), "{theirs}");
        }
        assert!(policy("10.0.0.7:1").is_ours("10.0.0.7:11535"));
        assert!(policy("0.0.0.0:1").is_ours("10.0.0.7"));
        assert!(!policy("0.0.0.0:1").is_ours("evil.example"));
    }

    #[test]
    fn only_local_and_listed_origins_may_read() {
        let policy = policy("127.0.0.1:11535");
        for ours in [
            "http://localhost:3000",
            "https://127.0.0.1",
            "http://[::1]:8080",
            "tauri://localhost",
            "app://obsidian.md",
            "https://chat.example",
        ] {
            assert!(policy.may_read(ours), "{ours}");
        }
        for theirs in [
            "null",
            "file://",
            "http://evil.example",
            "https://chat.example.evil",
            "http://localhost.evil.example",
            "http://10.0.0.7",
            "",
        ] {
            assert!(!policy.may_read(theirs), "{theirs}");
        }
    }

    #[test]
    fn a_listener_for_other_machines_needs_a_key() {
        let none = ApiKeys::default();
        assert_eq!(
            ListenerPolicy::check("127.0.0.1:1".parse().unwrap(), &none),
            Ok(())
        );
        assert_eq!(
            ListenerPolicy::check("[::1]:1".parse().unwrap(), &none),
            Ok(())
        );
        for open in ["0.0.0.0:1", "[::]:1", "10.0.0.7:1"] {
            let addr = open.parse().unwrap();
            assert_eq!(
                ListenerPolicy::check(addr, &none),
                Err(ListenerRefused::NoKey { addr })
            );
        }
    }
}
