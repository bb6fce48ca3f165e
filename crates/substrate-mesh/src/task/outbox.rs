//! Events on their way to the daemon.
//!
//! Invariant: an event about a peer or an address is never dropped; the queue is bounded because
//! the swarm rests while it is full.

use std::collections::VecDeque;

use tokio::sync::mpsc;

use crate::event::{Counters, MeshEvent};

/// Beyond this many waiting events, gossip is dropped: some seconds of a busy topic.
const GOSSIP_ROOM: usize = 256;

/// Beyond this many, inbound streams are dropped: their peers see a reset and try elsewhere.
const STREAM_ROOM: usize = 512;

/// Beyond this many, the swarm rests. One poll adds a handful of events at most.
const ROOM: usize = 1_024;

pub(super) struct Outbox {
    events: mpsc::Sender<MeshEvent>,
    waiting: VecDeque<MeshEvent>,
    pub(super) counters: Counters,
}

impl Outbox {
    pub(super) fn new(events: mpsc::Sender<MeshEvent>) -> Self {
        Self {
            events,
            waiting: VecDeque::new(),
            counters: Counters::default(),
        }
    }

    pub(super) fn has_mail(&self) -> bool {
        !self.waiting.is_empty()
    }

    pub(super) fn has_room(&self) -> bool {
        self.waiting.len() < ROOM
    }

    /// Queues an event. Returns false if it was dropped.
    pub(super) fn push(&mut self, event: MeshEvent) -> bool {
        let room = match event {
            MeshEvent::Record { .. } => GOSSIP_ROOM,
            MeshEvent::Inbound { .. } => STREAM_ROOM,
            _ => usize::MAX,
        };
        if self.waiting.len() < room {
            self.waiting.push_back(event);
            return true;
        }
        match event {
            MeshEvent::Record { .. } => self.counters.gossip_dropped += 1,
            _ => self.counters.streams_dropped += 1,
        }
        false
    }

    /// Hands over one event as soon as the daemon takes it. Cancel safe.
    ///
    /// A daemon that has dropped its receiver listens no more: events are then discarded.
    pub(super) async fn flush(&mut self) {
        match self.events.reserve().await {
            Ok(place) => {
                if let Some(event) = self.waiting.pop_front() {
                    place.send(event);
                }
            }
            Err(_) => self.waiting.clear(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::MessageToken;
    use libp2p::PeerId;
    use libp2p::gossipsub::MessageId;
    use substrate_record::NodeId;

    #[tokio::test]
    async fn when_the_daemon_is_slow_gossip_goes_first_and_lifecycle_never() {
        let (sender, mut receiver) = mpsc::channel(1);
        let mut outbox = Outbox::new(sender);
        let node = NodeId::from_bytes([1; 32]);
        let source = PeerId::random();
        for i in 0..600u32 {
            let token = MessageToken {
                id: MessageId::new(&i.to_be_bytes()),
                source,
            };
            outbox.push(MeshEvent::Record {
                from: node,
                token,
                bytes: vec![],
            });
            outbox.push(MeshEvent::PeerDown { node });
        }
        assert_eq!(outbox.counters.gossip_dropped, 600 - 128);
        let (mut records, mut downs) = (0, 0);
        while outbox.has_mail() {
            outbox.flush().await;
            match receiver.recv().await.unwrap() {
                MeshEvent::Record { .. } => records += 1,
                _ => downs += 1,
            }
        }
        assert_eq!((records, downs), (128, 600));
    }

    #[tokio::test]
    async fn a_full_outbox_rests_the_swarm() {
        let (sender, _receiver) = mpsc::channel(1);
        let mut outbox = Outbox::new(sender);
        let node = NodeId::from_bytes([1; 32]);
        while outbox.has_room() {
            outbox.push(MeshEvent::PeerDown { node });
        }
        assert_eq!(outbox.waiting.len(), ROOM);
    }
}
