//! A model made from one that is here, from a file or from an upload: new defaults over the same weights.
//!
//! Invariants: no byte of weights is copied for it, and the weights stay as long as one name needs them; what is made
//! from a made model holds all that one added, so that taking the one away leaves the other whole.
//! Absent by design: an entry of its own, but for one with an adapter, which changes what is computed
//! (docs/decisions/0017). What a recipe adds is told with each job (docs/decisions/0013), and a model's name leaves this
//! machine only inside entries.

use std::path::{Path, PathBuf};

use substrate_record::ContentHash;

use super::catalogue::{FindError, Held};
use super::import::{ImportError, Importer, More, Signer, Staged};
use super::names::ModelName;
use super::recipe::{Recipe, RecipeError};
use crate::blobs::BlobError;
use crate::store::StoreError;

/// What a model is made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Base {
    /// One that is here, by its name.
    Model(String),
    /// A model file of the owner's.
    File(PathBuf),
    /// Bytes that were uploaded.
    Blob(ContentHash),
}

impl Base {
    /// What `FROM` means: a file if it is written as a path or there is one in `folder`, else a model's name.
    pub fn of(from: &str, folder: &Path) -> Self {
        let path = folder.join(from);
        let written_as_path =
            from.starts_with(['/', '.']) || from.to_ascii_lowercase().ends_with(".gguf");
        if written_as_path || path.is_file() {
            Self::File(path)
        } else {
            Self::Model(from.to_owned())
        }
    }
}

/// What is laid over it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Adapter {
    /// A file of the owner's.
    File(PathBuf),
    /// Bytes that were uploaded, or are here already.
    Blob(ContentHash),
}

impl Adapter {
    /// What `ADAPTER` means: bytes by their digest, or a file in `folder`.
    pub fn of(adapter: &str, folder: &Path) -> Self {
        let digest = adapter.strip_prefix("sha256:");
        match digest.and_then(|digest| digest.parse().ok()) {
            Some(digest) => Self::Blob(digest),
            None => Self::File(folder.join(adapter)),
        }
    }
}

/// What to make.
#[derive(Debug, Clone)]
pub struct Order {
    /// Name of the new model; an older one of that name loses it.
    pub name: ModelName,
    /// What it stands on.
    pub base: Base,
    /// What is laid over its weights.
    pub adapter: Option<Adapter>,
    /// What is added.
    pub recipe: Recipe,
}

/// Why no model was made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CreateError {
    /// What it was to be made from is not here.
    #[error(transparent)]
    Base(#[from] FindError),
    /// The recipe cannot be.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    /// The file or the upload is no model.
    #[error(transparent)]
    Import(#[from] ImportError),
    /// Bytes of an older model of that name could not be removed.
    #[error(transparent)]
    Blob(#[from] BlobError),
    /// The record store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Importer {
    /// Makes the model. `tell` hears each step, in Ollama's words.
    ///
    /// # Errors
    /// Nothing was made, and an older model of that name is as it was.
    pub fn create(
        &self,
        order: Order,
        signer: &Signer,
        now_ms: u64,
        tell: &mut dyn FnMut(&str),
    ) -> Result<Held, CreateError> {
        let Order {
            name,
            base,
            adapter,
            mut recipe,
        } = order;
        let mut staged = match base {
            Base::Model(from) => {
                let base = self.catalogue().find(&from)?;
                tell(&format!("using existing layer sha256:{}", base.weights()));
                recipe.from = match &base.recipe {
                    Some(under) => {
                        recipe.lay_over(under);
                        under.from.clone()
                    }
                    None => base.name.to_string(),
                };
                if adapter.is_none() {
                    return self.over(&base, name, recipe, now_ms, tell);
                }
                self.stage_held(&base)?
            }
            Base::File(path) => {
                tell("parsing GGUF");
                let known_as = path.file_name().unwrap_or_default().display();
                let source = vec![format!("file:{known_as}")];
                let staged = self.stage(&path, source, &mut |_, _| {})?;
                recipe.from = layer(&staged, tell);
                staged
            }
            Base::Blob(digest) => {
                tell("parsing GGUF");
                let staged = self.stage_blob(&digest, &name.to_string(), Vec::new())?;
                recipe.from = layer(&staged, tell);
                staged
            }
        };
        recipe.check()?;
        if let Some(adapter) = adapter {
            tell("parsing adapter");
            match adapter {
                Adapter::File(path) => {
                    self.add(&mut staged, More::Adapter, &path, &mut |_, _| {})?;
                }
                Adapter::Blob(digest) => self.add_blob(&mut staged, More::Adapter, &digest)?,
            }
        }
        tell("writing manifest");
        let added = Some(&recipe).filter(|recipe| recipe.adds());
        Ok(self.vouch(staged, &name, signer, added, now_ms)?.held)
    }

    /// A model that is here, to be made another of: with all its files.
    fn stage_held(&self, base: &Held) -> Result<Staged, ImportError> {
        let body = base.entry.body();
        let mut staged = self.stage_blob(&base.weights(), &body.name, body.sources.clone())?;
        staged.body.files.clone_from(&body.files);
        Ok(staged)
    }

    /// A model over the files of another, with what that one adds where the new recipe says nothing.
    fn over(
        &self,
        base: &Held,
        name: ModelName,
        recipe: Recipe,
        now_ms: u64,
        tell: &mut dyn FnMut(&str),
    ) -> Result<Held, CreateError> {
        recipe.check()?;
        let added = Some(recipe).filter(Recipe::adds);
        tell("writing manifest");
        let bound =
            self.catalogue()
                .bind(&name, &base.entry, &base.facts, added.as_ref(), now_ms)?;
        for digest in bound {
            self.blobs().remove(&digest)?;
        }
        Ok(Held {
            name,
            entry: base.entry.clone(),
            facts: base.facts.clone(),
            recipe: added,
            modified_ms: now_ms,
        })
    }
}

/// The weights by their digest, told to whoever waits.
fn layer(staged: &Staged, tell: &mut dyn FnMut(&str)) -> String {
    let weights = format!("sha256:{}", staged.digest);
    tell(&format!("using existing layer {weights}"));
    weights
}
