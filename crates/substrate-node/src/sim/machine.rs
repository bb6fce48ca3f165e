//! One simulated daemon: its node, its worker, its drifting clock, its conduct.
//!
//! Invariant: it performs every action in order and reports only what a daemon could know.
//! Absent by design: the streams themselves (`network`).

use std::collections::{BTreeMap, BTreeSet};

use substrate_ledger::registry::Standing;
use substrate_record::{
    Capability, ContentHash, Hardware, ModelOffer, NetworkId, NodeId, Place, Record, RecordId,
    Scope, SessionNonce, SigningKey, Stream, Verified, WallTier,
};

use crate::event::Event;
use crate::limits::OWN_LIST;
use crate::node::{Config, Node};
use crate::terms::{AttemptId, Lending, LendingTerms, OwnModel, Timestamp};

use super::network::StreamKey;
use super::plan::{CIRCLE, Conduct, Plan};

/// Slots of every simulated machine.
const SLOTS: u32 = 4;

pub(crate) struct Machine {
    pub index: usize,
    pub id: NodeId,
    pub conduct: Conduct,
    /// `None` while it is dead.
    pub node: Option<Node>,
    /// Counts its deaths, so that what was under way for an earlier life is void.
    pub life: u32,
    /// When it asked to be woken, in virtual time.
    pub wake: Option<u64>,
    pub runs: BTreeMap<StreamKey, Run>,
    /// Gossip messages its mesh has handed over.
    pub seen: BTreeSet<RecordId>,
    /// Its clock: an origin of its own, and parts per million too fast.
    origin: u64,
    ppm: u64,
    key: SigningKey,
    seq: u64,
    prev: Option<RecordId>,
}

/// An answer being made.
#[derive(Debug)]
pub(crate) struct Run {
    pub attempt: AttemptId,
    pub tokens: u32,
    pub goal: u32,
    pub paused: bool,
    /// It will never go on: its machine vanished on purpose, or stalls.
    pub frozen: bool,
}

impl Machine {
    pub fn new(plan: &Plan, index: usize, origin: u64, ppm: u64) -> Self {
        let key = key_of(index);
        Self {
            index,
            id: id_of(&key),
            conduct: plan.conduct(index),
            node: None,
            life: 0,
            wake: None,
            runs: BTreeMap::new(),
            seen: BTreeSet::new(),
            origin,
            ppm,
            key,
            seq: 0,
            prev: None,
        }
    }

    /// Starts its daemon: a fresh node with a fresh session.
    pub fn start(&mut self, seed: u64) {
        self.life += 1;
        let config = Config {
            own: self.id,
            session: self.session(),
            slots: SLOTS,
            walls: vec![WallTier::Process],
            isolated: false,
            own_list: OWN_LIST,
        };
        self.node = Some(Node::new(config, seed));
        self.wake = None;
        self.runs.clear();
        self.seen.clear();
    }

    pub fn stop(&mut self) {
        self.life += 1;
        self.node = None;
        self.runs.clear();
    }

    pub fn session(&self) -> SessionNonce {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&(self.index as u64).to_be_bytes());
        bytes[8..12].copy_from_slice(&self.life.to_be_bytes());
        SessionNonce::from_bytes(bytes)
    }

    /// Its own monotonic clock.
    pub fn clock(&self, now: u64) -> Timestamp {
        Timestamp(self.origin + now + now * self.ppm / 1_000_000)
    }

    /// The virtual time at which its clock will show `at`.
    pub fn virtual_time(&self, at: Timestamp) -> u64 {
        let shown = at.0.saturating_sub(self.origin);
        shown - shown * self.ppm / (1_000_000 + self.ppm) + 1
    }

    /// Tokens per second.
    pub fn speed(&self) -> u64 {
        [60, 30, 20, 50, 1][self.index % CIRCLE]
    }

    /// What the daemon tells its node at the start.
    pub fn first_reports(&self, plan: &Plan, ids: &[NodeId]) -> Vec<Event> {
        let first = self.index - self.index % CIRCLE;
        let circle = ids[first..(first + CIRCLE).min(ids.len())]
            .iter()
            .filter(|id| **id != self.id);
        let mut registry: BTreeMap<_, _> = (0..ids.len())
            .map(|n| (Plan::own_entry(n), Standing::Device(ids[n])))
            .collect();
        registry.insert(Plan::commons_entry(), Standing::Commons);
        let lending = Lending::On(LendingTerms {
            widest: Scope::Commons,
            slots: SLOTS,
            only_nodes: Vec::new(),
            refused_nodes: Vec::new(),
            refused_entries: Vec::new(),
            refused_kinds: Vec::new(),
        });
        let models = if plan.has_model(self.index) {
            self.models()
        } else {
            Vec::new()
        };
        vec![
            Event::CircleChanged(circle.copied().collect()),
            Event::RegistryChanged(registry),
            Event::OwnModelsChanged(models),
            Event::LendingChanged(lending),
        ]
    }

    fn models(&self) -> Vec<OwnModel> {
        let model = |entry| OwnModel {
            entry,
            engine_class: "sim".into(),
            loaded: true,
            prefill: self.speed() * 20_000,
            decode: self.speed() * 1_000,
            load_ms: 0,
        };
        vec![
            model(Plan::commons_entry()),
            model(Plan::own_entry(self.index)),
        ]
    }

    /// Signs its capability; a boaster exaggerates.
    pub fn sign(
        &mut self,
        mut models: Vec<ModelOffer>,
        slots: u32,
        queue: u32,
    ) -> Option<Verified<Capability>> {
        if self.conduct == Conduct::Boaster {
            for offer in &mut models {
                offer.decode *= 20;
                offer.prefill *= 20;
            }
        }
        self.seq += 1;
        let record = Record {
            author: self.id,
            place: Some(Place {
                stream: Stream::Cap,
                seq: self.seq,
                prev: self.prev,
            }),
            epoch: 0,
            claimed_ms: 0,
            deps: Vec::new(),
            body: capability(models, slots, queue),
        };
        let signed = record
            .sign(&self.key, &NetworkId::from_bytes([1; 32]))
            .ok()?;
        self.prev = Some(signed.id());
        Some(signed)
    }
}

fn capability(models: Vec<ModelOffer>, slots: u32, queue: u32) -> Capability {
    Capability {
        hardware: Hardware {
            cpu: "sim".into(),
            cores: 4,
            memory: 1 << 34,
            gpus: Vec::new(),
            storage: 1 << 40,
            bandwidth: None,
        },
        models,
        free_memory: 1 << 33,
        slots,
        queue,
        walls: vec![WallTier::Process],
        tee: None,
        build: "sim".into(),
        worker_sha256: ContentHash::from_bytes([0; 32]),
    }
}

fn key_of(index: usize) -> SigningKey {
    let mut bytes = [7; 32];
    bytes[..8].copy_from_slice(&(index as u64 + 1).to_be_bytes());
    SigningKey::from_bytes(&bytes)
}

fn id_of(key: &SigningKey) -> NodeId {
    NodeId::from_bytes(key.verifying_key().to_bytes())
}
