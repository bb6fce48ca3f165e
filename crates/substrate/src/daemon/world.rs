//! What the mesh brings: peers that come and go, gossip, streams, and records sent to us alone.

#[cfg(test)]
mod tests;

use substrate_mesh::entries::entries_frames;
use substrate_mesh::{
    Direction, Judgement, MeshEvent, MeshStream, MessageToken, Offence, PeerView, Protocol,
};
use substrate_node::Event;
use substrate_record::{AnyRecord, Capability, ModelEntry, NodeId, Verified};
use substrate_tee::{ClaimError, UnixSeconds};

use super::context::unix_ms;
use super::exchange;
use super::life::{Life, MAX_OPEN_GOSSIP, Note, Peer};
use super::session::io::JobIo;
use super::session::provider;

impl Life {
    pub(super) async fn on_mesh(&mut self, event: MeshEvent) {
        match event {
            MeshEvent::PeerUp(peer) | MeshEvent::PeerChanged(peer) => {
                let known = self.peers.get(&peer.node);
                // A peer that was killed and is back within seconds was never seen to go; it knows nothing any more.
                let begins = known.is_none_or(|known| known.session != peer.session);
                self.meet(&peer);
                if begins {
                    self.send_entries(peer.node);
                    self.remember_peer(peer);
                }
            }
            MeshEvent::PeerDown { node } => {
                self.peers.remove(&node);
                self.unlisted.take(&node);
                self.handle(Event::PeerDown { node });
            }
            MeshEvent::Record { from, token, bytes } => self.on_gossip(from, token, &bytes),
            MeshEvent::Inbound {
                node,
                protocol,
                stream,
            } => self.on_stream(node, protocol, stream),
            MeshEvent::Listening { address } => tracing::info!(%address, "mesh listens"),
            MeshEvent::Refused { node, address, why } => {
                tracing::warn!(%node, %address, %why, "a peer was refused at hello");
            }
            _ => {}
        }
    }

    fn meet(&mut self, peer: &PeerView) {
        let build = format!("{} {}", peer.version, peer.build);
        self.peers.insert(
            peer.node,
            Peer {
                session: peer.session,
                skew_ms: peer.skew_ms,
                build,
                outbound: peer.direction == Direction::Outbound,
            },
        );
        let rtt_ms = u32::try_from(peer.rtt_ms).unwrap_or(u32::MAX);
        self.handle(Event::PeerUp {
            node: peer.node,
            rtt_ms,
            session: peer.session,
        });
    }

    fn on_gossip(&mut self, from: NodeId, token: MessageToken, bytes: &[u8]) {
        match AnyRecord::open(bytes, &self.context.network) {
            Ok(AnyRecord::Capability(record)) => {
                if self.gossip.len() >= MAX_OPEN_GOSSIP {
                    self.gossip.pop_first();
                }
                self.gossip.insert(record.id(), token);
                self.see(from, record, false);
            }
            Ok(AnyRecord::ModelEntry(entry)) => self.on_gossiped_entry(from, token, entry),
            Ok(_) => self.say(token, Judgement::Reject),
            Err(error) => {
                tracing::debug!(%from, %error, "a gossiped record does not verify");
                self.say(token, Judgement::Reject);
            }
        }
    }

    /// What another node offers. That it runs in a trusted execution environment is believed by its evidence only.
    fn see(&mut self, from: NodeId, record: Verified<Capability>, direct: bool) {
        let policy = &self.settings.config().tee.accept;
        let now = UnixSeconds(unix_ms() / 1000);
        let attested = match substrate_tee::attested(&record, &self.context.network, policy, now) {
            Ok(attested) => {
                let (node, unchecked) = (record.author(), attested.unchecked());
                tracing::debug!(%node, platform = attested.platform().name(), ?unchecked, "evidence is believed");
                true
            }
            Err(ClaimError::NotClaimed) => false,
            Err(why) => {
                tracing::debug!(node = %record.author(), %why, "a trusted execution environment is not believed");
                false
            }
        };
        self.handle(Event::CapabilitySeen {
            record,
            from,
            direct,
            attested,
        });
    }

    fn say(&self, token: MessageToken, judgement: Judgement) {
        let mesh = self.context.mesh.clone();
        self.tasks
            .spawn(async move { mesh.judge(token, judgement).await });
    }

    /// A registry entry by gossip: learned from any of the registry's keys, passed on once enough of them signed it.
    ///
    /// Device-signed entries go point to point only; here they are neither used nor passed on.
    fn on_gossiped_entry(
        &mut self,
        from: NodeId,
        token: MessageToken,
        entry: Verified<ModelEntry>,
    ) {
        let (id, author) = (entry.id(), entry.author());
        let keys = &self.context.desk.genesis.body().registry_keys;
        if !keys.contains(&author) {
            return self.say(token, Judgement::Ignore);
        }
        let known = self.shelf.entry(&id).is_some() && !self.shelf.is_news(&id);
        self.on_direct(from, vec![AnyRecord::ModelEntry(entry)]);
        // What was known before was told to the neighbours when it was news; what is still to be told goes out with this.
        let judgement = if !known && self.shelf.is_commons(&id) {
            Judgement::Accept
        } else {
            Judgement::Ignore
        };
        self.say(token, judgement);
    }

    /// Gossips entries that became the commons' since the last time, however they came here.
    ///
    /// What came by gossip itself has been passed on already, and is not sent twice.
    pub(super) fn announce_entries(&mut self) {
        for entry in self.shelf.take_news() {
            let mesh = self.context.mesh.clone();
            self.tasks.spawn(async move {
                if let Err(error) = mesh.publish(entry.bytes().to_vec()).await {
                    // Whoever connects later is sent the registry in full.
                    tracing::debug!(entry = %entry.id(), %error, "an entry was not gossiped");
                }
            });
        }
    }

    /// Records sent to us alone: entries to know of, capabilities of our circle.
    pub(super) fn on_direct(&mut self, from: NodeId, records: Vec<AnyRecord>) {
        let mut new = Vec::new();
        for record in records {
            match record {
                AnyRecord::ModelEntry(entry) if self.shelf.admits(&entry, &from) => {
                    if self.shelf.learn(entry.clone()) {
                        new.push(AnyRecord::ModelEntry(entry));
                    }
                }
                AnyRecord::ModelEntry(entry) if entry.author() == from => {
                    // Worth nothing here unless the owner lists its author, which may yet happen.
                    if self.peers.contains_key(&from) {
                        self.unlisted.hold(from, entry);
                    }
                }
                AnyRecord::ModelEntry(entry) => {
                    tracing::debug!(%from, author = %entry.author(), "an entry nobody here asks for");
                }
                AnyRecord::Capability(record) => self.see(from, record, true),
                other => {
                    tracing::debug!(%from, kind = ?other.record_type(), "a record that is not sent this way")
                }
            }
        }
        self.keep_new(new);
    }

    /// The circle changed: whose own entries count from now on, those held back among them.
    pub(super) fn keep_entries_of(&mut self, circle: &[NodeId]) {
        let me = self.context.me;
        self.shelf.keep(circle.iter().copied().chain([me]));
        for node in circle {
            let held = self.unlisted.take(node);
            let held = held.into_iter().map(AnyRecord::ModelEntry).collect();
            self.on_direct(*node, held);
        }
    }

    fn keep_new(&mut self, new: Vec<AnyRecord>) {
        if new.is_empty() {
            return;
        }
        let context = self.context.clone();
        self.tasks.spawn(async move {
            if let Err(error) = context.put(new).await {
                tracing::warn!(%error, "entries could not be stored; they will be sent again after the next hello");
            }
        });
        let standings = self.shelf.standings();
        self.handle(Event::RegistryChanged(standings));
        self.told_models.clear();
        self.tell_models();
    }

    fn on_stream(&mut self, node: NodeId, protocol: Protocol, stream: MeshStream) {
        match protocol {
            Protocol::Job => {
                let (context, reports) = (self.context.clone(), self.reports.clone());
                self.tasks
                    .spawn(provider::accept(context, node, JobIo::new(stream), reports));
            }
            Protocol::Sync => {
                let (network, notes, reports) = (
                    self.context.network,
                    self.notes.clone(),
                    self.reports.clone(),
                );
                self.tasks.spawn(async move {
                    match exchange::receive(stream, &network).await {
                        Ok(records) => drop(
                            notes
                                .send(Note::Direct {
                                    from: node,
                                    records,
                                })
                                .await,
                        ),
                        Err(exchange::Fault {
                            offence: None,
                            what,
                        }) => {
                            tracing::debug!(%node, what, "records did not arrive");
                        }
                        Err(exchange::Fault {
                            offence: Some(kind),
                            what,
                        }) => {
                            let offence = super::session::Report::Offence { node, kind, what };
                            drop(reports.send(offence).await);
                        }
                    }
                });
            }
            Protocol::Join => self.on_joiner(node, stream),
        }
    }

    /// The registry in full to a new peer; own entries too if it is of our circle.
    pub(super) fn send_entries(&self, node: NodeId) {
        let vouched = &self.context.desk.genesis.body().registry_keys;
        let circle = self.settings.circle().contains(&node);
        let own = self.context.me;
        let records: Vec<Vec<u8>> = self
            .shelf
            .entries()
            .filter(|entry| vouched.contains(&entry.author()) || (circle && entry.author() == own))
            .map(|entry| entry.bytes().to_vec())
            .collect();
        if records.is_empty() {
            return;
        }
        let mesh = self.context.mesh.clone();
        self.tasks.spawn(async move {
            match mesh.open(node, Protocol::Sync).await {
                Ok(stream) => exchange::send(stream, entries_frames(records)).await,
                Err(error) => tracing::debug!(%node, %error, "no stream for the registry"),
            }
        });
    }

    /// Addresses of peers are kept, so that the next start finds the mesh without asking anyone.
    fn remember_peer(&self, peer: PeerView) {
        let context = self.context.clone();
        self.tasks.spawn(async move {
            let network = context.network;
            let saved = super::context::blocking(move || {
                let addrs = crate::store::PeerAddrs {
                    addrs: peer.addresses,
                    last_seen_ms: unix_ms(),
                };
                context.desk.store.save_peer(&network, &peer.node, &addrs)
            });
            if let Err(error) = saved.await {
                tracing::debug!(%error, "a peer's addresses were not kept");
            }
        });
    }

    pub(super) fn penalise(&self, node: NodeId, kind: Offence, what: &str) {
        tracing::warn!(%node, what, "peer scored down");
        if node == self.context.me {
            return;
        }
        let mesh = self.context.mesh.clone();
        self.tasks
            .spawn(async move { mesh.penalise(node, kind).await });
    }
}
