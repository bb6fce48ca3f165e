//! Every model this node knows of: its own, and those whose entries it was shown.
//!
//! Invariant: a name means a set of entries over the same files; what may run where is the registry's word
//! ([`Standing`]), never a name's.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use substrate_ledger::registry::{Insertion, MAX_PER_REGISTRY_KEY, Registry, Standing};
use substrate_node::OwnModel;
use substrate_record::{Genesis, ModelEntry, NodeId, RecordId, Verified};

use super::pool::Pool;
use crate::models::catalogue::{Catalogue, Held};
use crate::models::parts::Parts;
use crate::models::recipe::Recipe;

/// Time to load a model before one was loaded here: 100 MB from the page cache took 0.2 s on two slow cores.
const LOAD_GUESS: Duration = Duration::from_millis(500);

/// The models known here.
pub struct Shelf {
    catalogue: Catalogue,
    registry: Registry,
    held: Vec<Held>,
    /// Entries of registry keys learned since [`Shelf::take_news`]; at most as many as the registry keeps.
    news: Vec<RecordId>,
}

impl Shelf {
    /// Reads the models held here and the entries stored. `keep` are the own device and the circle.
    ///
    /// # Errors
    /// The store's.
    pub fn open(
        genesis: &Verified<Genesis>,
        catalogue: Catalogue,
        entries: Vec<Verified<ModelEntry>>,
        keep: impl IntoIterator<Item = NodeId>,
    ) -> anyhow::Result<Self> {
        let mut shelf = Self {
            catalogue,
            registry: Registry::new(genesis),
            held: Vec::new(),
            news: Vec::new(),
        };
        shelf.keep(keep);
        for entry in entries {
            shelf.learn(entry);
        }
        shelf.reread()?;
        // Peers are told these in full at their hello.
        shelf.news.clear();
        Ok(shelf)
    }

    /// Whose own entries count here besides the registry's: the device's and the circle's.
    pub fn keep(&mut self, authors: impl IntoIterator<Item = NodeId>) {
        self.registry.set_pinned(authors);
    }

    /// Reads the models held here again.
    ///
    /// # Errors
    /// The store's.
    pub fn reread(&mut self) -> anyhow::Result<()> {
        self.held = self.catalogue.list()?;
        let ids = self.held.iter().map(|held| held.entry.id());
        self.registry.set_held(ids);
        for held in self.held.clone() {
            self.learn(held.entry);
        }
        Ok(())
    }

    /// Takes note of an entry; `true` if it was new.
    pub fn learn(&mut self, entry: Verified<ModelEntry>) -> bool {
        let (id, author) = (entry.id(), entry.author());
        let new = self.registry.insert(entry) == Insertion::New;
        if new && self.registry.is_key(&author) && self.news.len() < MAX_PER_REGISTRY_KEY {
            self.news.push(id);
        }
        new
    }

    /// Entries that are of the commons since the last call, each with every registry signature over it.
    pub fn take_news(&mut self) -> Vec<Verified<ModelEntry>> {
        let news = std::mem::take(&mut self.news);
        let approved = news.iter().filter(|id| self.is_commons(id));
        let signed = approved.flat_map(|id| self.registry.equals(id));
        let signed = signed.filter(|entry| self.registry.is_key(&entry.author()));
        let all: BTreeMap<_, _> = signed.map(|entry| (entry.id(), entry.clone())).collect();
        all.into_values().collect()
    }

    /// Whether the neighbours are still to be told of this entry.
    pub fn is_news(&self, id: &RecordId) -> bool {
        self.news.contains(id)
    }

    /// Whether enough registry keys signed this entry.
    pub fn is_commons(&self, id: &RecordId) -> bool {
        self.registry.standing(id) == Some(Standing::Commons)
    }

    /// Whether an entry that `from` sent us alone is one to know: the registry's, whoever passes it on, or a circle
    /// member's own.
    pub fn admits(&self, entry: &Verified<ModelEntry>, from: &NodeId) -> bool {
        let author = entry.author();
        self.registry.is_key(&author) || (author == *from && self.registry.keeps(&author))
    }

    /// Somebody whose word counts here stands for it: the registry, this device, or the circle.
    fn is_vouched(&self, entry: &Verified<ModelEntry>) -> bool {
        match self.registry.standing(&entry.id()) {
            Some(Standing::Commons) => true,
            Some(Standing::Device(author)) => self.registry.keeps(&author),
            None => false,
        }
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

    /// The model held here that a typed name means.
    pub fn called(&self, model: &str) -> Option<Held> {
        self.catalogue.find(model).ok()
    }

    /// What is added to the model of this name, if it was made here.
    pub fn recipe(&self, model: &str) -> Option<Recipe> {
        self.called(model)?.recipe
    }

    /// Entries that a typed name may mean, all over the same files, own ones first.
    pub fn named(&self, model: &str) -> Vec<RecordId> {
        let Some(parts) = self.parts_of(model) else {
            return Vec::new();
        };
        let own: BTreeSet<RecordId> = self.held.iter().map(|held| held.entry.id()).collect();
        let vouched = self.over(&parts).filter(|entry| self.is_vouched(entry));
        let mut ids: Vec<RecordId> = vouched.map(Verified::id).collect();
        ids.sort_by_key(|id| !own.contains(id));
        ids
    }

    /// The files a typed name means: an own model's, else those of a known entry of that name.
    fn parts_of(&self, model: &str) -> Option<Parts> {
        if let Some(held) = self.called(model) {
            return Some(held.parts());
        }
        if let Ok(id) = model.parse::<RecordId>() {
            return self.registry.get(&id).and_then(parts);
        }
        let wanted = model.parse::<crate::models::names::ModelName>().ok()?;
        let same = |entry: &&Verified<ModelEntry>| {
            let name = entry.body().name.parse();
            name.is_ok_and(|name: crate::models::names::ModelName| name == wanted)
                && self.is_vouched(entry)
        };
        let named = self.registry.iter().filter(same);
        // A circle's entry does not take a name from the registry's.
        let first = named.min_by_key(|entry| (!self.is_commons(&entry.id()), entry.id()));
        first.and_then(parts)
    }

    fn over<'a>(&'a self, wanted: &'a Parts) -> impl Iterator<Item = &'a Verified<ModelEntry>> {
        self.registry
            .iter()
            .filter(move |entry| parts(entry).as_ref() == Some(wanted))
    }

    /// The models held here, each with its name; that of a model made from others only if there is no other.
    pub fn names(&self) -> BTreeMap<Parts, String> {
        let (plain, made): (Vec<_>, Vec<_>) =
            self.held.iter().partition(|held| held.recipe.is_none());
        // The last of those over the same files stays.
        let held = made.into_iter().chain(plain);
        held.map(|held| (held.parts(), held.name.to_string()))
            .collect()
    }

    /// The longest context that models made from those held here wish.
    pub fn contexts(&self) -> BTreeMap<Parts, u32> {
        let mut longest = BTreeMap::new();
        for held in &self.held {
            let wished = held
                .recipe
                .as_ref()
                .and_then(|recipe| recipe.parameters.context());
            if let Some(wished) = wished {
                let context: &mut u32 = longest.entry(held.parts()).or_default();
                *context = wished.max(*context);
            }
        }
        longest
    }

    /// What this machine can answer with, for the node: one line per entry over files held here and whole.
    pub fn own_models(&self, pool: &Pool) -> Vec<OwnModel> {
        let held: BTreeSet<Parts> = self.held.iter().map(Held::parts).collect();
        held.iter()
            .filter(|parts| !pool.is_unusable(parts))
            .flat_map(|parts| {
                self.over(parts)
                    .map(move |entry| own_model(entry, parts, pool))
            })
            .collect()
    }
}

fn parts(entry: &Verified<ModelEntry>) -> Option<Parts> {
    Parts::of(entry.body())
}

fn own_model(entry: &Verified<ModelEntry>, parts: &Parts, pool: &Pool) -> OwnModel {
    let (prefill, decode) = pool.known_rates(parts).unwrap_or_default();
    OwnModel {
        entry: entry.id(),
        engine_class: pool.settings().engine_class.clone(),
        loaded: pool.is_loaded(parts),
        prefill,
        decode,
        load_ms: u64::try_from(LOAD_GUESS.as_millis()).unwrap_or(u64::MAX),
    }
}

#[cfg(test)]
mod tests {
    use substrate_ledger::registry::MAX_PER_DEVICE;
    use substrate_record::{ContentHash, FileRole, ModelFile};

    use super::*;
    use crate::home::Home;
    use crate::keys::{DeviceKey, RegistryKey, genesis_of_network};
    use crate::models::catalogue::{LocalFacts, sign_entry};
    use crate::store::Store;

    fn body(number: usize) -> ModelEntry {
        ModelEntry {
            name: format!("m:{number}"),
            files: vec![ModelFile {
                role: FileRole::Weights,
                sha256: ContentHash::of(&number.to_be_bytes()),
                size: 1,
            }],
            arch: "llama".into(),
            quant: "Q4_1".into(),
            context: 2048,
            licence: "Apache-2.0".into(),
            template_sha256: None,
            sources: Vec::new(),
            reference_rates: None,
            base: None,
        }
    }

    #[test]
    fn what_is_held_stays_usable_however_many_were_signed_since() {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::at(folder.path().join("home"));
        home.prepare().unwrap();
        let device = DeviceKey::open_or_create(&home).unwrap();
        let genesis = genesis_of_network(&device, &RegistryKey::generate(), "ours");
        let store = Store::open(&home.store()).unwrap();
        store.add_network(&genesis).unwrap();
        let catalogue = Catalogue::new(store, genesis.network());
        let sign = |number| {
            let records = catalogue.records();
            sign_entry(&records, body(number), device.signing(), 1).unwrap()
        };
        let signed: Vec<_> = (0..=MAX_PER_DEVICE).map(sign).collect();
        let (first, second) = (signed[0].clone(), signed[1].id());
        let (name, facts) = ("first".parse().unwrap(), LocalFacts::default());
        catalogue.bind(&name, &first, &facts, None, 1).unwrap();
        let shelf = Shelf::open(&genesis, catalogue, signed, [device.node()]).unwrap();
        assert_eq!(shelf.named("first"), [first.id()]);
        let standings = shelf.standings();
        assert!(standings.contains_key(&first.id()));
        // The bound holds, at the cost of what nobody has here.
        assert_eq!(standings.len(), MAX_PER_DEVICE);
        assert!(!standings.contains_key(&second));
    }
}
