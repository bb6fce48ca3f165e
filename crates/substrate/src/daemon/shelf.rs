//! Every model this node knows of: its own, and those whose entries it was shown.
//!
//! Invariant: a name means a set of entries over the same weights; what may run where is the registry's word
//! ([`Standing`]), never a name's.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use substrate_ledger::registry::{Insertion, Registry, Standing};
use substrate_node::OwnModel;
use substrate_record::{ContentHash, Genesis, ModelEntry, RecordId, Verified};

use super::pool::Pool;
use super::session::closing::weights;
use crate::models::catalogue::{Catalogue, Held};

/// Time to load a model before one was loaded here: 100 MB from the page cache took 0.2 s on two slow cores.
const LOAD_GUESS: Duration = Duration::from_millis(500);

/// The models known here.
pub struct Shelf {
    catalogue: Catalogue,
    registry: Registry,
    held: Vec<Held>,
}

impl Shelf {
    /// Reads the models held here and the entries stored.
    ///
    /// # Errors
    /// The store's.
    pub fn open(
        genesis: &Verified<Genesis>,
        catalogue: Catalogue,
        entries: Vec<Verified<ModelEntry>>,
    ) -> anyhow::Result<Self> {
        let mut shelf = Self {
            catalogue,
            registry: Registry::new(genesis),
            held: Vec::new(),
        };
        for entry in entries {
            shelf.learn(entry);
        }
        shelf.reread()?;
        Ok(shelf)
    }

    /// Reads the models held here again.
    ///
    /// # Errors
    /// The store's.
    pub fn reread(&mut self) -> anyhow::Result<()> {
        self.held = self.catalogue.list()?;
        for held in self.held.clone() {
            self.learn(held.entry);
        }
        Ok(())
    }

    /// Takes note of an entry; `true` if it was new.
    pub fn learn(&mut self, entry: Verified<ModelEntry>) -> bool {
        self.registry.insert(entry) == Insertion::New
    }

    /// Who vouches for each known entry.
    pub fn standings(&self) -> BTreeMap<RecordId, Standing> {
        self.registry
            .iter()
            .filter_map(|entry| Some((entry.id(), self.registry.standing(&entry.id())?)))
            .collect()
    }

    /// An entry by its id.
    pub fn entry(&self, id: &RecordId) -> Option<&Verified<ModelEntry>> {
        self.registry.get(id)
    }

    /// Every entry known.
    pub fn entries(&self) -> impl Iterator<Item = &Verified<ModelEntry>> {
        self.registry.iter()
    }

    /// The models held here.
    pub fn held(&self) -> &[Held] {
        &self.held
    }

    /// Entries that a typed name may mean, all over the same weights, own ones first.
    pub fn named(&self, model: &str) -> Vec<RecordId> {
        let Some(weights) = self.weights_of(model) else {
            return Vec::new();
        };
        let own: BTreeSet<RecordId> = self.held.iter().map(|held| held.entry.id()).collect();
        let mut ids: Vec<RecordId> = self.over(&weights).map(Verified::id).collect();
        ids.sort_by_key(|id| !own.contains(id));
        ids
    }

    /// The weights a typed name means: an own model's, else those of a known entry of that name.
    fn weights_of(&self, model: &str) -> Option<ContentHash> {
        if let Ok(held) = self.catalogue.find(model) {
            return Some(held.weights());
        }
        if let Ok(id) = model.parse::<RecordId>() {
            return self.registry.get(&id).and_then(weights);
        }
        let wanted = model.parse::<crate::models::names::ModelName>().ok()?;
        let same = |entry: &&Verified<ModelEntry>| {
            entry
                .body()
                .name
                .parse()
                .is_ok_and(|name: crate::models::names::ModelName| name == wanted)
        };
        self.registry.iter().find(same).and_then(weights)
    }

    fn over<'a>(
        &'a self,
        digest: &'a ContentHash,
    ) -> impl Iterator<Item = &'a Verified<ModelEntry>> {
        self.registry
            .iter()
            .filter(move |entry| weights(entry).as_ref() == Some(digest))
    }

    /// The weights held here, each with the context it was trained for.
    pub fn trained(&self) -> BTreeMap<ContentHash, u32> {
        let held = self.held.iter();
        held.map(|held| (held.weights(), held.entry.body().context))
            .collect()
    }

    /// What this machine can answer with, for the node: one line per entry over weights held here and whole.
    pub fn own_models(&self, pool: &Pool) -> Vec<OwnModel> {
        let held: BTreeSet<ContentHash> = self.held.iter().map(Held::weights).collect();
        held.iter()
            .filter(|digest| !pool.is_unusable(digest))
            .flat_map(|digest| {
                self.over(digest)
                    .map(move |entry| own_model(entry, digest, pool))
            })
            .collect()
    }
}

fn own_model(entry: &Verified<ModelEntry>, digest: &ContentHash, pool: &Pool) -> OwnModel {
    let (prefill, decode) = pool.known_rates(digest).unwrap_or_default();
    OwnModel {
        entry: entry.id(),
        engine_class: pool.settings().engine_class.clone(),
        loaded: pool.is_loaded(digest),
        prefill,
        decode,
        load_ms: u64::try_from(LOAD_GUESS.as_millis()).unwrap_or(u64::MAX),
    }
}
