//! The models of this machine: names, each bound to a signed entry.
//!
//! Invariant: a name points to an entry that is in the record store of the same network; names are
//! this machine's own and leave it only inside entries.
//!
//! Absent by design: the bytes. Whoever removes a name is told which blobs nothing needs any more.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use substrate_ledger::registry::{Registry, Standing};
use substrate_record::{
    AnyRecord, ContentHash, FileRole, ModelEntry, NetworkId, NodeId, Record, RecordId, Stream,
    Verified,
};

use super::modelfile;
use super::names::{ModelName, NameError, distance};
use super::parts::Parts;
use super::recipe::Recipe;
use crate::keys::DeviceKey;
use crate::store::tables::{MODELS, key};
use crate::store::{Records, Store, StoreError, keyed};

/// The most names of one network.
const MAX_NAMES: usize = 4096;

/// How many similar names an error offers.
const MAX_SIMILAR: usize = 3;

/// The least of a hexadecimal prefix that names an entry, as Ollama's short ids.
const MIN_PREFIX: usize = 8;

/// What an inspection told and a record does not hold.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LocalFacts {
    /// Parameters, 0 if unknown.
    pub n_params: u64,
    /// Size of the vocabulary, 0 if unknown.
    pub n_vocab: u32,
    /// The chat template's text.
    pub template: Option<String>,
}

/// A model of this machine.
#[derive(Debug, Clone)]
pub struct Held {
    /// What it is called here.
    pub name: ModelName,
    /// What it is.
    pub entry: Verified<ModelEntry>,
    /// What was found inside.
    pub facts: LocalFacts,
    /// What was added to it, if it was made here.
    pub recipe: Option<Recipe>,
    /// When it was bound, Unix milliseconds.
    pub modified_ms: u64,
}

impl Held {
    /// Chat template: its recipe's, else its file's.
    pub fn template(&self) -> Option<&str> {
        let own = self
            .recipe
            .as_ref()
            .and_then(|recipe| recipe.template.as_deref());
        own.or(self.facts.template.as_deref())
    }

    /// A Modelfile that makes it again.
    pub fn modelfile(&self) -> String {
        match &self.recipe {
            Some(recipe) => {
                let adapter = self.parts().adapter;
                modelfile::write(recipe, &recipe.from, adapter.as_ref())
            }
            None => format!("FROM {}\n", self.name),
        }
    }

    /// SHA-256 of the weights (of the first file, if there are several).
    pub fn weights(&self) -> ContentHash {
        weights_of(self.entry.body()).unwrap_or_else(|| ContentHash::of(b""))
    }

    /// What a worker of it is given.
    pub fn parts(&self) -> Parts {
        Parts::of(self.entry.body()).unwrap_or_else(|| self.weights().into())
    }

    /// Bytes of all files.
    pub fn size(&self) -> u64 {
        self.entry.body().files.iter().map(|file| file.size).sum()
    }
}

/// The weights' digest of an entry.
pub fn weights_of(entry: &ModelEntry) -> Option<ContentHash> {
    entry
        .files
        .iter()
        .find(|file| file.role == FileRole::Weights)
        .map(|file| file.sha256)
}

/// A name that was removed.
#[derive(Debug, Clone)]
pub struct Removed {
    /// What it was.
    pub held: Held,
    /// Files that no other name needs; their blobs may go.
    pub unreferenced: Vec<ContentHash>,
}

/// Why there is no such model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FindError {
    /// Nothing of that name.
    #[error("model '{model}' not found")]
    Unknown {
        /// As asked.
        model: String,
        /// Names here that resemble it.
        similar: Vec<String>,
    },
    /// Not a name at all.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

#[derive(Serialize, Deserialize)]
struct Row {
    name: String,
    entry: String,
    facts: LocalFacts,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    recipe: Option<Recipe>,
    modified_ms: u64,
}

/// The models of this machine in one network.
#[derive(Clone)]
pub struct Catalogue {
    store: Store,
    network: NetworkId,
}

impl Catalogue {
    /// The catalogue of a network.
    pub fn new(store: Store, network: NetworkId) -> Self {
        Self { store, network }
    }

    /// The records its names point to.
    pub fn records(&self) -> Records {
        self.store.records(self.network)
    }

    /// All models, latest first.
    pub fn list(&self) -> Result<Vec<Held>, StoreError> {
        let rows = self.rows()?;
        let mut models = rows
            .into_iter()
            .map(|row| self.held(row))
            .collect::<Result<Vec<_>, _>>()?;
        models.sort_by(|a, b| {
            b.modified_ms
                .cmp(&a.modified_ms)
                .then_with(|| a.name.cmp(&b.name))
        });
        Ok(models)
    }

    /// A model by its name, or by the beginning of its entry's id or its weights' digest.
    pub fn find(&self, model: &str) -> Result<Held, FindError> {
        let digits = model
            .strip_prefix("sha256:")
            .unwrap_or(model)
            .to_ascii_lowercase();
        if let Ok(name) = model.parse::<ModelName>()
            && let Some(row) = self.row(&name)?
        {
            return Ok(self.held(row)?);
        }
        if digits.len() >= MIN_PREFIX && digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            let matches = |held: &Held| {
                held.entry.id().to_string().starts_with(&digits)
                    || held.weights().to_string().starts_with(&digits)
            };
            // Digits mean the weights, and not what was made from them.
            let matching = self.list()?.into_iter().filter(matches);
            if let Some(held) = matching.min_by_key(|held| held.recipe.is_some()) {
                return Ok(held);
            }
        }
        let _: ModelName = model.parse()?;
        Err(FindError::Unknown {
            model: model.to_owned(),
            similar: self.similar(model)?,
        })
    }

    /// The model whose entry this is, if some name is bound to it.
    pub fn by_entry(&self, entry: &RecordId) -> Result<Option<Held>, StoreError> {
        Ok(self
            .list()?
            .into_iter()
            .filter(|held| held.entry.id() == *entry)
            .min_by_key(|held| held.recipe.is_some()))
    }

    /// Names here that resemble what was typed, best first.
    pub fn similar(&self, model: &str) -> Result<Vec<String>, StoreError> {
        let names = self
            .rows()?
            .into_iter()
            .filter_map(|row| Some(row.name.parse::<ModelName>().ok()?.to_string()));
        Ok(similar_to(model, names))
    }

    /// Binds a name to an entry, which is stored if it is not yet, and to what is added to it. Answers with the files of an older model of that
    /// name which no other name needs; their blobs may go.
    pub fn bind(
        &self,
        name: &ModelName,
        entry: &Verified<ModelEntry>,
        facts: &LocalFacts,
        recipe: Option<&Recipe>,
        now_ms: u64,
    ) -> Result<Vec<ContentHash>, StoreError> {
        // A row that leads nowhere has nothing to give back.
        let older = self.row(name)?.and_then(|row| self.held(row).ok());
        self.records()
            .put(&[AnyRecord::ModelEntry(entry.clone())])?;
        let row = Row {
            name: name.full(),
            entry: entry.id().to_string(),
            facts: facts.clone(),
            recipe: recipe.cloned(),
            modified_ms: now_ms,
        };
        self.store.write(|tx| {
            let mut models = tx.open_table(MODELS)?;
            let row_key = self.key(name);
            if keyed::get::<Row>(&models, &row_key)?.is_none() && self.count(&models)? == MAX_NAMES
            {
                return Err(StoreError::TooMany {
                    what: "the list of models",
                    limit: MAX_NAMES,
                });
            }
            keyed::put(&mut models, &row_key, &row)
        })?;
        match older {
            Some(older) => self.unneeded(&older),
            None => Ok(Vec::new()),
        }
    }

    /// Files of a model that has lost a name, which no name of any network needs.
    fn unneeded(&self, held: &Held) -> Result<Vec<ContentHash>, StoreError> {
        let still = self.store_wide_references()?;
        let files = held.entry.body().files.iter().map(|file| file.sha256);
        Ok(files.filter(|digest| !still.contains(digest)).collect())
    }

    /// Gives a model a second name; an older model of that name loses it, and what only that one needed is told.
    pub fn copy(
        &self,
        from: &str,
        to: &ModelName,
        now_ms: u64,
    ) -> Result<Vec<ContentHash>, FindError> {
        let held = self.find(from)?;
        Ok(self.bind(to, &held.entry, &held.facts, held.recipe.as_ref(), now_ms)?)
    }

    /// Takes a name away. The entry stays: receipts point to it.
    pub fn remove(&self, name: &ModelName) -> Result<Removed, FindError> {
        let Some(row) = self.row(name)? else {
            return Err(FindError::Unknown {
                model: name.to_string(),
                similar: self.similar(&name.to_string())?,
            });
        };
        let held = self.held(row)?;
        self.store.write(|tx| {
            Ok(tx
                .open_table(MODELS)?
                .remove(self.key(name).as_slice())?
                .map(drop))
        })?;
        let unreferenced = self.unneeded(&held)?;
        Ok(Removed { held, unreferenced })
    }

    /// Every file some name of this network needs.
    pub fn referenced(&self) -> Result<BTreeSet<ContentHash>, StoreError> {
        let models = self.list()?;
        Ok(models
            .iter()
            .flat_map(|held| &held.entry.body().files)
            .map(|file| file.sha256)
            .collect())
    }

    /// Brings the models of another network along: an entry known here is adopted, else the device
    /// signs the same model for this network. Names that are taken stay as they are.
    pub fn carry_over(
        &self,
        from: &NetworkId,
        device: &DeviceKey,
        now_ms: u64,
    ) -> Result<u32, StoreError> {
        let mut carried = 0;
        for held in Self::new(self.store.clone(), *from).list()? {
            if self.row(&held.name)?.is_some() {
                continue;
            }
            let known = known_entry(&self.records(), held.entry.body(), &device.node())?;
            let entry = match known.adopt {
                Some(entry) => entry,
                None => sign_entry(
                    &self.records(),
                    held.entry.body().clone(),
                    device.signing(),
                    now_ms,
                )?,
            };
            self.bind(
                &held.name,
                &entry,
                &held.facts,
                held.recipe.as_ref(),
                held.modified_ms,
            )?;
            carried += 1;
        }
        Ok(carried)
    }

    /// Files needed by a name of any network: a blob is shared by all of them.
    fn store_wide_references(&self) -> Result<BTreeSet<ContentHash>, StoreError> {
        let mut needed = self.referenced()?;
        for genesis in self.store.networks()? {
            needed.extend(Self::new(self.store.clone(), genesis.network()).referenced()?);
        }
        Ok(needed)
    }

    fn rows(&self) -> Result<Vec<Row>, StoreError> {
        let rows = self.store.read(|tx| {
            keyed::below::<Row>(&tx.open_table(MODELS)?, self.network.as_bytes(), MAX_NAMES)
        })?;
        Ok(rows.into_iter().map(|(_, row)| row).collect())
    }

    fn row(&self, name: &ModelName) -> Result<Option<Row>, StoreError> {
        self.store
            .read(|tx| keyed::get(&tx.open_table(MODELS)?, &self.key(name)))
    }

    fn count(
        &self,
        models: &redb::Table<'_, &'static [u8], &'static [u8]>,
    ) -> Result<usize, StoreError> {
        Ok(keyed::keys_below(models, self.network.as_bytes(), MAX_NAMES, |_, _| Ok(()))?.len())
    }

    fn key(&self, name: &ModelName) -> Vec<u8> {
        key(&[self.network.as_bytes(), name.folded().as_bytes()])
    }

    fn held(&self, row: Row) -> Result<Held, StoreError> {
        let odd = || StoreError::Corrupt {
            detail: format!("model '{}' is bound to nothing", row.name),
        };
        let name = row.name.parse().map_err(|_| odd())?;
        let id: RecordId = row.entry.parse().map_err(|_| odd())?;
        let entry = self.records().entry(&id)?.ok_or_else(odd)?;
        Ok(Held {
            name,
            entry,
            facts: row.facts,
            recipe: row.recipe,
            modified_ms: row.modified_ms,
        })
    }
}

/// Of some names those that resemble what was typed, best first.
pub fn similar_to(typed: &str, names: impl Iterator<Item = String>) -> Vec<String> {
    let bare = typed.split(':').next().unwrap_or(typed).to_lowercase();
    let mut scored: Vec<(usize, String)> = names
        .filter_map(|name| {
            let other = name.split(':').next().unwrap_or(&name).to_lowercase();
            let part = bare.len() > 2 && (other.contains(&bare) || bare.contains(&other));
            let score = if part { 1 } else { distance(&bare, &other) };
            // A third of the letters wrong is still a slip of the finger; more is another name.
            (score <= 1 + bare.len() / 3).then_some((score, name))
        })
        .collect();
    scored.sort();
    scored.truncate(MAX_SIMILAR);
    scored.into_iter().map(|(_, name)| name).collect()
}

/// What is known of a model's files, as one signer may use it.
#[derive(Debug, Clone, Default)]
pub struct Known {
    /// To adopt: the commons' entry, else the signer's own. Another's is valid only where that one is listed.
    pub adopt: Option<Verified<ModelEntry>>,
    /// To sign word for word: other keys of the registry signed it, and not yet enough of them.
    pub countersign: Option<ModelEntry>,
}

/// Entries of the network with the same files and template that count for a signer.
pub(crate) fn known_entry(
    records: &Records,
    wanted: &ModelEntry,
    signer: &NodeId,
) -> Result<Known, StoreError> {
    let Some(digest) = wanted.files.first().map(|file| file.sha256) else {
        return Ok(Known::default());
    };
    let Some(genesis) = records.store().network(records.network())? else {
        return Ok(Known::default());
    };
    let same = |entry: &Verified<ModelEntry>| {
        entry.body().files == wanted.files && entry.body().template_sha256 == wanted.template_sha256
    };
    let mut registry = Registry::new(&genesis);
    registry.pin(*signer);
    for entry in records.entries_by_digest(&digest)?.into_iter().filter(same) {
        registry.insert(entry);
    }
    let approved =
        |entry: &&Verified<ModelEntry>| registry.standing(&entry.id()) == Some(Standing::Commons);
    let own = |entry: &&Verified<ModelEntry>| entry.author() == *signer;
    let adopt = registry.iter().find(approved).or(registry.iter().find(own));
    let started = registry
        .iter()
        .find(|entry| registry.is_key(&entry.author()));
    let countersign = started.filter(|_| registry.is_key(signer) && adopt.is_none());
    Ok(Known {
        adopt: adopt.cloned(),
        countersign: countersign.map(|entry| entry.body().clone()),
    })
}

/// Signs an entry at the signer's next place in the registry stream, and stores it.
pub(crate) fn sign_entry(
    records: &Records,
    body: ModelEntry,
    key: &substrate_record::SigningKey,
    now_ms: u64,
) -> Result<Verified<ModelEntry>, StoreError> {
    let author = NodeId::from_bytes(key.verifying_key().to_bytes());
    let signed = records.append(author, Stream::Registry, |place| {
        let mut record = Record::new(author, now_ms, body);
        record.place = Some(place);
        Ok(AnyRecord::ModelEntry(record.sign(key, records.network())?))
    })?;
    match signed {
        AnyRecord::ModelEntry(entry) => Ok(entry),
        other => Err(StoreError::Unexpected {
            record: other.id(),
            why: "a model entry was signed",
        }),
    }
}
