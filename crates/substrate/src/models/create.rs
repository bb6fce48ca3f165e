//! A model made from one that is here, from a file or from an upload: new defaults over the same weights.
//!
//! Invariants: no byte of weights is copied for it, and the weights stay as long as one name needs them; what is made
//! from a made model holds all that one added, so that taking the one away leaves the other whole.
//! Absent by design: an entry of its own. What a recipe adds is told with each job (docs/decisions/0013), and a
//! model's name leaves this machine only inside entries.

use std::path::{Path, PathBuf};

use substrate_record::ContentHash;

use super::catalogue::{FindError, Held};
use super::import::{ImportError, Importer, Signer};
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

/// What to make.
#[derive(Debug, Clone)]
pub struct Order {
    /// Name of the new model; an older one of that name loses it.
    pub name: ModelName,
    /// What it stands on.
    pub base: Base,
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
            mut recipe,
        } = order;
        let staged = match base {
            Base::Model(from) => {
                let base = self.catalogue().find(&from)?;
                tell(&format!("using existing layer sha256:{}", base.weights()));
                return self.over(&base, name, recipe, now_ms, tell);
            }
            Base::File(path) => {
                tell("parsing GGUF");
                let known_as = path.file_name().unwrap_or_default().display();
                let source = vec![format!("file:{known_as}")];
                self.stage(&path, source, &mut |_, _| {})?
            }
            Base::Blob(digest) => {
                tell("parsing GGUF");
                self.stage_blob(&digest, &name.to_string(), Vec::new())?
            }
        };
        recipe.from = format!("sha256:{}", staged.digest);
        recipe.check()?;
        tell(&format!("using existing layer sha256:{}", staged.digest));
        tell("writing manifest");
        let added = Some(&recipe).filter(|recipe| recipe.adds());
        Ok(self.vouch(staged, &name, signer, added, now_ms)?.held)
    }

    /// A model over the weights of another, with what that one adds where the new recipe says nothing.
    fn over(
        &self,
        base: &Held,
        name: ModelName,
        mut recipe: Recipe,
        now_ms: u64,
        tell: &mut dyn FnMut(&str),
    ) -> Result<Held, CreateError> {
        recipe.from = match &base.recipe {
            Some(under) => {
                recipe.lay_over(under);
                under.from.clone()
            }
            None => base.name.to_string(),
        };
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
