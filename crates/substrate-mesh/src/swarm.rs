//! The swarm: transports, and the behaviours put together.
//!
//! Absent by design: relay, hole punching, reachability tests and port mapping. They are further
//! fields of [`Behaviour`] when their time comes.

use std::sync::Arc;
use std::time::Duration;

use libp2p::allow_block_list::{self, BlockedPeers};
use libp2p::connection_limits::{self, ConnectionLimits};
use libp2p::identity::Keypair;
use libp2p::swarm::NetworkBehaviour;
use libp2p::swarm::behaviour::toggle::Toggle;
use libp2p::{
    Swarm, SwarmBuilder, identify, mdns, memory_connection_limits, noise, ping, quic, tcp, yamux,
};

use crate::config::{Limits, MeshConfig};
use crate::event::MeshError;
use crate::gossip::{self, Checker};
use crate::hello::Hello;
use crate::identity::keypair;
use crate::link::{self, Greeting};
use crate::name::Names;
use crate::table;

/// A connection nobody uses and nobody asked to keep is closed after this long.
const IDLE: Duration = Duration::from_secs(60);

/// A dial is given up after this long.
const CONNECT: Duration = Duration::from_secs(10);

/// A ping goes out this often on every connection, and is lost after as long again.
const PING_EVERY: Duration = Duration::from_secs(5);

/// QUIC's own silence limit and keep-alive, to the same end.
const QUIC_IDLE_MS: u32 = 8_000;
const QUIC_KEEP_ALIVE: Duration = Duration::from_secs(2);

/// Streams a peer may have open on one QUIC connection: twice the allowance for jobs.
const QUIC_STREAMS: u32 = 512;

/// Peers whose addresses identify remembers, for dialing them again.
const REMEMBERED_PEERS: usize = 512;

#[derive(NetworkBehaviour)]
pub(crate) struct Behaviour {
    // The gates come first: what they deny reaches nothing below.
    blocked: allow_block_list::Behaviour<BlockedPeers>,
    limits: connection_limits::Behaviour,
    memory: memory_connection_limits::Behaviour,
    pub(crate) link: link::Behaviour,
    identify: identify::Behaviour,
    ping: ping::Behaviour,
    pub(crate) kad: Toggle<table::Behaviour>,
    pub(crate) mdns: Toggle<mdns::tokio::Behaviour>,
    pub(crate) gossip: gossip::Behaviour,
}

impl Behaviour {
    /// Drops a peer and keeps it out.
    pub(crate) fn block(&mut self, peer: libp2p::PeerId) {
        self.blocked.block_peer(peer);
    }

    /// Lets a peer in again.
    pub(crate) fn unblock(&mut self, peer: libp2p::PeerId) {
        self.blocked.unblock_peer(peer);
    }
}

/// Builds the swarm of a configuration. Nothing listens or dials yet.
pub(crate) fn build(
    config: &MeshConfig,
    checker: &Arc<Checker>,
) -> Result<Swarm<Behaviour>, MeshError> {
    let keypair = keypair(config.seed);
    // Without a resolver (no /etc/resolv.conf) addresses still work, and that is all a mesh needs.
    match with_transports(&keypair, config, checker, true) {
        Ok(swarm) => Ok(swarm),
        Err(error) => {
            tracing::debug!(%error, "no name resolver, names in addresses will not work");
            with_transports(&keypair, config, checker, false)
        }
    }
}

fn with_transports(
    keypair: &Keypair,
    config: &MeshConfig,
    checker: &Arc<Checker>,
    names: bool,
) -> Result<Swarm<Behaviour>, MeshError> {
    let transport = |reason: String| MeshError::Transport { reason };
    let behaviour = behaviour(keypair, config, checker)?;
    let builder = SwarmBuilder::with_existing_identity(keypair.clone())
        .with_tokio()
        .with_tcp(
            tcp::Config::default().nodelay(true),
            noise::Config::new,
            yamux::Config::default,
        )
        .map_err(|error| transport(error.to_string()))?
        .with_quic_config(quic_config);
    let tune = |swarm: libp2p::swarm::Config| swarm.with_idle_connection_timeout(IDLE);
    if names {
        let swarm = builder
            .with_dns()
            .map_err(|error| transport(error.to_string()))?
            .with_behaviour(|_| behaviour)
            .map_err(|error| transport(error.to_string()))?
            .with_swarm_config(tune)
            .with_connection_timeout(CONNECT)
            .build();
        return Ok(swarm);
    }
    let swarm = builder
        .with_behaviour(|_| behaviour)
        .map_err(|error| transport(error.to_string()))?
        .with_swarm_config(tune)
        .with_connection_timeout(CONNECT)
        .build();
    Ok(swarm)
}

fn quic_config(mut config: quic::Config) -> quic::Config {
    config.max_idle_timeout = QUIC_IDLE_MS;
    config.keep_alive_interval = QUIC_KEEP_ALIVE;
    config.max_concurrent_stream_limit = QUIC_STREAMS;
    config
}

fn behaviour(
    keypair: &Keypair,
    config: &MeshConfig,
    checker: &Arc<Checker>,
) -> Result<Behaviour, MeshError> {
    let me = keypair.public().to_peer_id();
    let names = Names::new(config.network);
    let transport = |reason: String| MeshError::Transport { reason };
    let mdns = if config.discovery.mdns {
        let mdns = mdns::tokio::Behaviour::new(mdns::Config::default(), me);
        Some(mdns.map_err(|error| transport(error.to_string()))?)
    } else {
        None
    };
    let kad = if config.discovery.kad {
        Some(table::behaviour(me, &names))
    } else {
        None
    };
    // Nothing here names the network or the build: hello does, to those it concerns.
    let identify = identify::Config::new("substrate/1".into(), keypair.public())
        .with_agent_version("substrate".into())
        .with_push_listen_addr_updates(true)
        .with_cache_size(REMEMBERED_PEERS);
    Ok(Behaviour {
        blocked: allow_block_list::Behaviour::default(),
        limits: connection_limits::Behaviour::new(connection_limits(&config.limits)),
        memory: memory_connection_limits::Behaviour::with_max_bytes(config.limits.memory_bytes),
        identify: identify::Behaviour::new(identify),
        ping: ping::Behaviour::new(
            ping::Config::new()
                .with_interval(PING_EVERY)
                .with_timeout(PING_EVERY),
        ),
        kad: kad.into(),
        mdns: mdns.into(),
        gossip: gossip::behaviour(&names, checker).map_err(transport)?,
        link: link::Behaviour::new(greeting(config, names)),
    })
}

fn greeting(config: &MeshConfig, names: Names) -> Greeting {
    let hello = Hello {
        network: config.network,
        rules: config.rules_hash,
        version: shortened(&config.version),
        build: shortened(&config.build),
        session: config.session,
    };
    Greeting {
        hello,
        joins_open: config.allow_join,
        names,
    }
}

/// A name cut to what a hello carries.
fn shortened(name: &str) -> String {
    let mut end = name.len().min(crate::hello::MAX_NAME);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    name[..end].to_owned()
}

fn connection_limits(limits: &Limits) -> ConnectionLimits {
    ConnectionLimits::default()
        .with_max_pending_incoming(Some(limits.inbound))
        .with_max_pending_outgoing(Some(limits.outbound))
        .with_max_established_incoming(Some(limits.inbound))
        .with_max_established_outgoing(Some(limits.outbound))
        .with_max_established_per_peer(Some(limits.per_peer))
}
