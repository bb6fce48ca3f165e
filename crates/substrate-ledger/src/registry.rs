//! The registry: which model entries exist and on whose word.
//!
//! Invariant: an entry is of the commons exactly if at least k of the Genesis' registry keys
//! signed a byte-equal body; otherwise it is its signer's own. The state is a function of the set
//! of entries inserted, so merging commutes and repeating changes nothing.
//!
//! Absent by design: names that win over others (a name may mean several entries; the caller
//! shows them), removal (a newer entry is a new record), and who may send entries here.

use std::collections::{BTreeMap, BTreeSet};

use substrate_record::{ContentHash, Genesis, ModelEntry, NodeId, RecordId, Verified};

/// Entries kept per registry key, the held ones and the newest by sequence: with the largest entries 64 MiB a key.
pub const MAX_PER_REGISTRY_KEY: usize = 4096;
/// Entries kept per other author: more models than one owner's disk holds.
pub const MAX_PER_DEVICE: usize = 256;
/// Authors kept that are neither registry keys nor pinned. Nobody's entries need them; the bound
/// is what a caller that forgets to filter is saved by.
pub const MAX_STRANGERS: usize = 64;

/// On whose word an entry stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Enough registry keys signed it: usable in every scope.
    Commons,
    /// One device signed it: usable in scope `mine` there, and in circles that list the device.
    Device(NodeId),
}

/// What an insertion did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Insertion {
    /// The entry is new.
    New,
    /// It was there.
    Known,
    /// The author's bound, or the bound on unpinned authors, leaves no room for it.
    Crowded,
}

/// A position in an author's stream; the id tells forks apart.
type Position = (u64, RecordId);

/// The model entries a node knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registry {
    keys: BTreeSet<NodeId>,
    k: usize,
    pinned: BTreeSet<NodeId>,
    held: BTreeSet<RecordId>,
    entries: BTreeMap<RecordId, Verified<ModelEntry>>,
    by_author: BTreeMap<NodeId, BTreeSet<Position>>,
    by_body: BTreeMap<ContentHash, BTreeSet<RecordId>>,
}

impl Registry {
    /// An empty registry under a network's keys.
    pub fn new(genesis: &Verified<Genesis>) -> Self {
        let genesis = genesis.body();
        Self {
            keys: genesis.registry_keys.iter().copied().collect(),
            k: usize::try_from(genesis.registry_k).unwrap_or(usize::MAX),
            pinned: BTreeSet::new(),
            held: BTreeSet::new(),
            entries: BTreeMap::new(),
            by_author: BTreeMap::new(),
            by_body: BTreeMap::new(),
        }
    }

    /// Keeps an author's entries however many strangers send theirs: the own device, the circle.
    pub fn pin(&mut self, author: NodeId) {
        self.pinned.insert(author);
    }

    /// Replaces the authors kept; entries of those who left it count as strangers' again.
    pub fn set_pinned(&mut self, authors: impl IntoIterator<Item = NodeId>) {
        self.pinned = authors.into_iter().collect();
        self.drop_strangers();
    }

    /// Replaces the entries that an author's newer ones do not push out: of the models held here, as many as there are. One that
    /// was pushed out before has to be inserted again.
    pub fn set_held(&mut self, entries: impl IntoIterator<Item = RecordId>) {
        self.held = entries.into_iter().collect();
        let authors: Vec<NodeId> = self.by_author.keys().copied().collect();
        for author in authors {
            self.drop_oldest(author);
        }
    }

    /// Whether an author's entries are kept: a registry key's, or a pinned one's.
    pub fn keeps(&self, author: &NodeId) -> bool {
        self.keys.contains(author) || self.pinned.contains(author)
    }

    /// Whether the author is one of the registry's keys.
    pub fn is_key(&self, author: &NodeId) -> bool {
        self.keys.contains(author)
    }

    /// Adds an entry. Of several signatures over one entry the bytewise smallest is kept.
    pub fn insert(&mut self, entry: Verified<ModelEntry>) -> Insertion {
        let (id, author) = (entry.id(), entry.author());
        if let Some(known) = self.entries.get_mut(&id) {
            if entry.bytes() < known.bytes() {
                *known = entry;
            }
            return Insertion::Known;
        }
        self.by_author
            .entry(author)
            .or_default()
            .insert(position(&entry));
        self.by_body
            .entry(entry.body_hash())
            .or_default()
            .insert(id);
        self.entries.insert(id, entry);
        self.drop_oldest(author);
        self.drop_strangers();
        match self.entries.contains_key(&id) {
            true => Insertion::New,
            false => Insertion::Crowded,
        }
    }

    /// Adds everything another registry of the same network knows.
    pub fn merge(&mut self, other: &Registry) {
        for entry in other.entries.values() {
            self.insert(entry.clone());
        }
    }

    /// On whose word the entry stands; `None` if it is unknown.
    pub fn standing(&self, id: &RecordId) -> Option<Standing> {
        let entry = self.entries.get(id)?;
        if self.signers(entry).len() >= self.k {
            return Some(Standing::Commons);
        }
        Some(Standing::Device(entry.author()))
    }

    /// The entry of this id.
    pub fn get(&self, id: &RecordId) -> Option<&Verified<ModelEntry>> {
        self.entries.get(id)
    }

    /// All entries, by id.
    pub fn iter(&self) -> impl Iterator<Item = &Verified<ModelEntry>> {
        self.entries.values()
    }

    /// The entries of this name, by id.
    pub fn by_name<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Verified<ModelEntry>> {
        self.iter().filter(move |entry| entry.body().name == name)
    }

    /// The entries that a file of this digest belongs to, by id.
    pub fn by_digest<'a>(
        &'a self,
        digest: &'a ContentHash,
    ) -> impl Iterator<Item = &'a Verified<ModelEntry>> {
        let has = |entry: &Verified<ModelEntry>| {
            entry.body().files.iter().any(|file| file.sha256 == *digest)
        };
        self.iter().filter(move |entry| has(entry))
    }

    /// The entries whose body is byte-equal to this one's, itself included: the same model on
    /// other words.
    pub fn equals(&self, id: &RecordId) -> impl Iterator<Item = &Verified<ModelEntry>> {
        let body = self.entries.get(id).map(Verified::body_hash);
        let ids = body.and_then(|body| self.by_body.get(&body));
        ids.into_iter()
            .flatten()
            .filter_map(|id| self.entries.get(id))
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The registry keys that signed a body byte-equal to the entry's.
    fn signers(&self, entry: &Verified<ModelEntry>) -> BTreeSet<NodeId> {
        let ids = self.by_body.get(&entry.body_hash());
        let equals = ids
            .into_iter()
            .flatten()
            .filter_map(|id| self.entries.get(id));
        let authors = equals.map(Verified::author);
        authors
            .filter(|author| self.keys.contains(author))
            .collect()
    }

    /// Keeps what is held and the newest of an author's entries, a choice that does not depend on arrival.
    fn drop_oldest(&mut self, author: NodeId) {
        let limit = match self.keys.contains(&author) {
            true => MAX_PER_REGISTRY_KEY,
            false => MAX_PER_DEVICE,
        };
        let Some(positions) = self.by_author.get_mut(&author) else {
            return;
        };
        let excess = positions.len().saturating_sub(limit);
        let droppable = positions.iter().filter(|(_, id)| !self.held.contains(id));
        let dropped: Vec<Position> = droppable.copied().take(excess).collect();
        for position in &dropped {
            positions.remove(position);
        }
        for (_, id) in dropped {
            self.forget(id);
        }
    }

    /// Keeps the strangers with the smallest keys, a choice that does not depend on arrival.
    fn drop_strangers(&mut self) {
        let strangers = self.by_author.keys().filter(|author| !self.keeps(author));
        let dropped: Vec<NodeId> = strangers.copied().skip(MAX_STRANGERS).collect();
        for author in dropped {
            for (_, id) in self.by_author.remove(&author).unwrap_or_default() {
                self.forget(id);
            }
        }
    }

    /// Removes an entry that no longer has a position.
    fn forget(&mut self, id: RecordId) {
        let Some(entry) = self.entries.remove(&id) else {
            return;
        };
        let body = entry.body_hash();
        if let Some(ids) = self.by_body.get_mut(&body) {
            ids.remove(&id);
            if ids.is_empty() {
                self.by_body.remove(&body);
            }
        }
    }
}

fn position(entry: &Verified<ModelEntry>) -> Position {
    let seq = entry.record().place.map_or(0, |place| place.seq);
    (seq, entry.id())
}
