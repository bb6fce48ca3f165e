//! The one task that owns the swarm: commands in, events out.
//!
//! Invariant: every queue is bounded. When the daemon is slow, gossip is dropped first (and
//! counted), then new inbound streams; when the outbox is full even so, the swarm is not polled
//! until there is room, so an event about a peer's coming or going is late but never lost.
//! Absent by design: locks held across an await, timers of single peers (one tick serves all).

mod commands;
mod held;
#[cfg(test)]
mod hostile;
mod links;
mod outbox;
mod peers;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use libp2p::swarm::{ConnectionId, SwarmEvent};
use libp2p::{Multiaddr, PeerId, Swarm};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

use crate::event::{DialError, MeshEvent, OpenError};
use crate::gossip::Checker;
use crate::link::LinkEvent;
use crate::name::Names;
use crate::redial::Redial;
use crate::standing::Standing;
use crate::swarm::{Behaviour, BehaviourEvent};
use held::Held;
use outbox::Outbox;
use peers::{Peers, with_peer};

pub(crate) use commands::Command;

/// How often waiting things are looked at: redials, blocks that end, opens that took too long.
const TICK: Duration = Duration::from_millis(250);

/// How long a stream to a peer without a connection may take, the dial included.
/// A requester that resumes has 1.8 s and gives up by itself.
const OPEN_WITHIN: Duration = Duration::from_secs(5);

/// How long goodbyes may take at the end.
const GOODBYE: Duration = Duration::from_millis(500);

/// How long QUIC's own task then has to send its last packets: closing only queues them, and
/// the process may end right after. There is no event to wait for.
const LAST_PACKETS: Duration = Duration::from_millis(50);

/// What a dial was for.
pub(super) enum Purpose {
    /// An address of the configuration, by its number.
    Listed(usize),
    /// The daemon asked.
    Asked {
        address: String,
        reply: oneshot::Sender<Result<substrate_record::NodeId, DialError>>,
    },
}

/// A stream that waits for a connection.
pub(super) struct WaitingOpen {
    peer: PeerId,
    protocol: crate::name::Protocol,
    reply: oneshot::Sender<Result<crate::stream::MeshStream, OpenError>>,
    until: Instant,
}

pub(crate) struct Task {
    swarm: Swarm<Behaviour>,
    names: Names,
    checker: Arc<Checker>,
    commands: mpsc::Receiver<Command>,
    outbox: Outbox,
    peers: Peers,
    standing: Standing,
    redial: Redial<Multiaddr>,
    dials: HashMap<ConnectionId, Purpose>,
    opens: Vec<WaitingOpen>,
    held: Held,
    started: Instant,
}

impl Task {
    pub(crate) fn new(
        swarm: Swarm<Behaviour>,
        names: Names,
        checker: Arc<Checker>,
        redial: Redial<Multiaddr>,
        commands: mpsc::Receiver<Command>,
        events: mpsc::Sender<MeshEvent>,
    ) -> Self {
        Self {
            swarm,
            names,
            checker,
            commands,
            outbox: Outbox::new(events),
            peers: Peers::default(),
            standing: Standing::default(),
            redial,
            dials: HashMap::new(),
            opens: Vec::new(),
            held: Held::default(),
            started: Instant::now(),
        }
    }

    /// Runs until the daemon shuts the mesh down, or drops every handle to it.
    pub(crate) async fn run(mut self) {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let goodbye = loop {
            tokio::select! {
                biased;
                () = self.outbox.flush(), if self.outbox.has_mail() => {}
                command = self.commands.recv() => match command {
                    Some(Command::Shutdown { done }) => break Some(done),
                    Some(command) => self.perform(command),
                    None => break None,
                },
                _ = tick.tick() => self.on_tick(),
                event = self.swarm.select_next_some(), if self.outbox.has_room() => self.on_swarm(event),
            }
        };
        self.say_goodbye().await;
        if let Some(done) = goodbye {
            // Whoever asked may have gone: the mesh is down all the same.
            let _ = done.send(());
        }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn on_tick(&mut self) {
        let now = self.now_ms();
        for node in self.standing.released(now) {
            with_peer(&node, |peer| self.swarm.behaviour_mut().unblock(peer));
        }
        for (i, address) in self.redial.due(now) {
            self.dial(address, Purpose::Listed(i));
        }
        self.drop_dead();
        let late = Instant::now();
        for open in self.opens.extract_if(.., |open| open.until <= late) {
            // The asker may have given up: then nobody needs the answer.
            let _ = open.reply.send(Err(OpenError::NotConnected));
        }
    }

    fn on_swarm(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::Behaviour(event) => self.on_behaviour(event),
            SwarmEvent::ConnectionEstablished {
                peer_id,
                connection_id,
                endpoint,
                ..
            } => {
                self.on_connected(peer_id, connection_id, &endpoint);
            }
            SwarmEvent::ConnectionClosed {
                peer_id,
                connection_id,
                num_established,
                cause,
                ..
            } => {
                tracing::debug!(peer = %peer_id, ?cause, left = num_established, "connection closed");
                self.on_disconnected(peer_id, connection_id);
            }
            SwarmEvent::OutgoingConnectionError {
                connection_id,
                peer_id,
                error,
            } => {
                tracing::debug!(peer = ?peer_id, %error, "dial failed");
                self.on_dial_failed(connection_id, peer_id, &error.to_string());
            }
            SwarmEvent::NewListenAddr { address, .. } => {
                let address = address
                    .with_p2p(*self.swarm.local_peer_id())
                    .unwrap_or_else(|same| same);
                self.outbox.push(MeshEvent::Listening {
                    address: address.to_string(),
                });
            }
            _ => {}
        }
    }

    fn on_behaviour(&mut self, event: BehaviourEvent) {
        match event {
            BehaviourEvent::Link(LinkEvent {
                peer,
                connection,
                what,
            }) => self.on_link(peer, connection, what),
            BehaviourEvent::Gossip(event) => self.on_gossip(event),
            BehaviourEvent::Identify(event) => self.on_identify(event),
            BehaviourEvent::Ping(event) => self.on_ping(event),
            BehaviourEvent::Mdns(event) => self.on_mdns(event),
            BehaviourEvent::Kad(event) => tracing::trace!(?event, "table"),
            BehaviourEvent::Blocked(never)
            | BehaviourEvent::Limits(never)
            | BehaviourEvent::Memory(never) => match never {},
        }
    }

    /// Closes every connection and waits a moment for that to go out: peers then need not find out by silence.
    async fn say_goodbye(&mut self) {
        let peers: Vec<PeerId> = self.swarm.connected_peers().copied().collect();
        for peer in peers {
            // Fails only if it has gone in between.
            let _ = self.swarm.disconnect_peer_id(peer);
        }
        let all_closed = async {
            while self.swarm.connected_peers().next().is_some() {
                self.swarm.select_next_some().await;
            }
        };
        if timeout(GOODBYE, all_closed).await.is_err() {
            tracing::debug!("some peers will notice by silence");
        }
        sleep(LAST_PACKETS).await;
    }
}
