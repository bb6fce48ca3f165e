//! What clients may ask to change about the models on this machine, as a trait the daemon fills in.
//!
//! Absent by design: who may ask. The listener has decided that before it calls.

use std::collections::BTreeMap;

use axum::body::Bytes;
use futures::future::BoxFuture;
use serde::Serialize;
use serde_json::Value;
use substrate_record::ContentHash;
use tokio::sync::mpsc;

use crate::models::create::Order;
use crate::models::recipe::Recipe;

/// What the caller of a pull may cause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PullRights {
    /// Only bytes of an entry that the registry already knows.
    AdoptOnly,
    /// Also a new entry, signed by this device.
    MaySign,
}

/// One line of a pull or of a making, with the words Ollama's clients know: `pulling manifest`,
/// `pulling <digest>`, `verifying sha256 digest`, `writing manifest`, and at last `success`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PullProgress {
    /// In words.
    pub status: String,
    /// `sha256:<hex>` of the file that moves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// Its bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total: Option<u64>,
    /// Bytes that are here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completed: Option<u64>,
}

/// What `/api/show` tells beyond the list.
#[derive(Debug, Clone, Default)]
pub struct Details {
    /// The licence's text, or its name.
    pub license: String,
    /// Chat template.
    pub template: String,
    /// `general.architecture` and the like.
    pub model_info: BTreeMap<String, Value>,
    /// Such as `completion` and `tools`.
    pub capabilities: Vec<String>,
    /// What is added to it, if it was made here.
    pub recipe: Option<Recipe>,
    /// A Modelfile that makes it again.
    pub modelfile: String,
}

/// Why a change was not made.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ActionError {
    /// No such model on this machine, or at its source.
    #[error("model '{model}' not found")]
    Unknown {
        /// As asked.
        model: String,
        /// Names here that resemble it.
        similar: Vec<String>,
    },
    /// The source has nothing of that name.
    #[error("{why}")]
    NotFound {
        /// In plain words.
        why: String,
    },
    /// Not a name.
    #[error("{why}")]
    BadName {
        /// In plain words.
        why: String,
    },
    /// What was sent cannot be.
    #[error("{why}")]
    Invalid {
        /// The field at fault.
        param: &'static str,
        /// In plain words.
        why: String,
    },
    /// The disk is full.
    #[error("{why}")]
    NoSpace {
        /// In plain words.
        why: String,
    },
    /// The rights do not reach.
    #[error("{why}")]
    Forbidden {
        /// In plain words.
        why: String,
    },
    /// A fault of ours or of the source.
    #[error("{why}")]
    Failed {
        /// In plain words.
        why: String,
    },
}

/// Progress, then an end of the channel after `success` or after one error.
pub type PullStream = mpsc::Receiver<Result<PullProgress, ActionError>>;

/// The daemon's hands.
pub trait ModelActions: Send + Sync + 'static {
    /// Fetches, verifies and binds a model. Dropping the receiver gives up this caller's interest.
    fn pull(
        &self,
        name: String,
        rights: PullRights,
    ) -> BoxFuture<'_, Result<PullStream, ActionError>>;
    /// Forgets a name, and its bytes if no other name needs them.
    fn delete(&self, name: String) -> BoxFuture<'_, Result<(), ActionError>>;
    /// Gives a model a second name.
    fn copy(&self, from: String, to: String) -> BoxFuture<'_, Result<(), ActionError>>;
    /// Makes a model from one that is here or from an upload. What it is made from is looked up before anything is told.
    fn create(&self, order: Order) -> BoxFuture<'_, Result<PullStream, ActionError>>;
    /// Whether a blob is here.
    fn has_blob(&self, digest: ContentHash) -> BoxFuture<'_, bool>;
    /// Keeps what comes as a blob, if it has this digest when the channel ends. `total` is what the caller said of its
    /// size.
    fn upload(
        &self,
        digest: ContentHash,
        total: Option<u64>,
        bytes: mpsc::Receiver<Bytes>,
    ) -> BoxFuture<'_, Result<(), ActionError>>;
    /// Details of a model held here.
    fn show(&self, name: String) -> BoxFuture<'_, Result<Details, ActionError>>;
}
