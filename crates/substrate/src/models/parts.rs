//! Which files make a model: what its worker is given, and what is loaded and unloaded as one.
//!
//! Invariant: entries over the same parts are answered by the same worker, and no others are; an answer about an image
//! is never given through another projector than the one its entry names, nor one through another adapter.
//! Absent by design: tokenizers, which no worker is given.

use std::fmt;

use substrate_record::{ContentHash, FileRole, ModelEntry};

/// The files of a model, by digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Parts {
    /// The weights.
    pub weights: ContentHash,
    /// What sees images for them.
    pub projector: Option<ContentHash>,
    /// What is laid over them.
    pub adapter: Option<ContentHash>,
}

impl Parts {
    /// The parts that an entry names; none without weights.
    pub fn of(entry: &ModelEntry) -> Option<Self> {
        let first = |role| {
            let mut files = entry.files.iter();
            files.find(|file| file.role == role).map(|file| file.sha256)
        };
        Some(Self {
            weights: first(FileRole::Weights)?,
            projector: first(FileRole::Projector),
            adapter: first(FileRole::Adapter),
        })
    }

    /// All of them.
    pub fn files(&self) -> impl Iterator<Item = ContentHash> {
        let all = [Some(self.weights), self.projector, self.adapter];
        all.into_iter().flatten()
    }
}

impl From<ContentHash> for Parts {
    fn from(weights: ContentHash) -> Self {
        Self {
            weights,
            projector: None,
            adapter: None,
        }
    }
}

/// As its weights: what lists and logs call a model.
impl fmt::Display for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.weights.fmt(f)
    }
}
