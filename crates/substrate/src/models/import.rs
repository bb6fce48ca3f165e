//! From a file to a model: hash, inspect behind the wall, adopt or sign an entry, bind the name.
//!
//! Invariants: no entry without an inspection that succeeded; an entry of the commons for these files
//! is adopted, so that the same bytes have one entry wherever they came from (PROTOCOL.md 7); a
//! registry key is only ever used by the command its holder runs.
//!
//! Absent by design: parsing weights, and moving or changing the user's own file.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use substrate_record::{
    ContentHash, FileRole, ModelEntry, ModelFile, NodeId, SigningKey, Verified,
};

use super::catalogue::{Catalogue, Held, Known, LocalFacts, known_entry, sign_entry};
use super::names::ModelName;
use super::recipe::Recipe;
use crate::blobs::{BlobError, Blobs, How};
use crate::keys::{DeviceKey, RegistryKey};
use crate::store::StoreError;

/// Texts out of a file's header end up in a record of 16 KiB; they are cut to this.
const MAX_WORD: usize = 64;

/// The longest licence text kept in a record.
const MAX_LICENCE: usize = 256;

/// What the header of a projector names as its architecture.
const PROJECTOR: &str = "clip";

/// The longest template kept beside the record. Real ones reach 12 KiB.
const MAX_TEMPLATE: usize = 256 * 1024;

/// What an inspection behind the wall found in a file's header.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ModelFacts {
    /// Architecture, in the engine's words.
    pub arch: String,
    /// Quantisation, in the engine's words.
    pub quant: String,
    /// What the file calls itself.
    pub name: String,
    /// Parameters.
    pub n_params: u64,
    /// Context it was trained for.
    pub n_ctx_train: u32,
    /// Size of the vocabulary.
    pub n_vocab: u32,
    /// Chat template.
    pub template: Option<String>,
    /// Licence, as the file says.
    pub licence: Option<String>,
    /// Bytes of the file as its own header adds them up; 0 if it does not say.
    pub size: u64,
    /// Whether it is a LoRA adapter for a model of this architecture, and none itself.
    pub is_adapter: bool,
}

/// Why a file was not inspected, or refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InspectError {
    /// Truncated, lying about sizes, or no model at all.
    #[error("not a usable model: {0}")]
    BadModel(String),
    /// The inspection itself could not run.
    #[error("the model could not be inspected: {0}")]
    Unavailable(String),
}

/// Whoever can look into a file without being harmed by it.
pub trait Inspect: Send + Sync {
    /// Reads the header of a model.
    fn inspect(&self, model: &Path) -> Result<ModelFacts, InspectError>;
}

/// Who vouches for a model that no known entry covers.
#[derive(Clone)]
pub enum Signer {
    /// This device: valid for its owner, and in circles that list it.
    Device(Arc<DeviceKey>),
    /// A registry key, opened by its holder: valid in the commons.
    Registry(Arc<RegistryKey>),
}

impl Signer {
    fn key(&self) -> &SigningKey {
        match self {
            Self::Device(key) => key.signing(),
            Self::Registry(key) => key.signing(),
        }
    }

    /// The key entries will name.
    pub fn node(&self) -> NodeId {
        match self {
            Self::Device(key) => key.node(),
            Self::Registry(key) => key.node(),
        }
    }
}

/// Why a file did not become a model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImportError {
    /// The file cannot be used; our own copy of it is in quarantine.
    #[error("{} was refused: {why}", file.display())]
    Refused {
        /// What was imported.
        file: PathBuf,
        /// In the inspector's words.
        why: String,
        /// Where our copy is now.
        quarantined: Option<PathBuf>,
    },
    /// The inspection could not run, so nothing is known of the file.
    #[error(transparent)]
    Inspect(InspectError),
    /// The entry is for other files.
    #[error("the signed entry does not describe the imported file")]
    OtherEntry,
    /// The blob store failed.
    #[error(transparent)]
    Blob(#[from] BlobError),
    /// The record store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A file that is hashed, stored and inspected, and has no name yet.
#[derive(Debug, Clone)]
pub struct Staged {
    /// Digest of the file.
    pub digest: ContentHash,
    /// Its size.
    pub size: u64,
    /// What the inspection found.
    pub facts: ModelFacts,
    /// The entry to sign, if none is known.
    pub body: ModelEntry,
    /// How the bytes came in.
    pub how: How,
}

/// What may go with a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum More {
    /// What sees images for it, as llama.cpp's `mmproj` files.
    Projector,
    /// A LoRA laid over its weights, as llama.cpp's converter writes.
    Adapter,
}

/// A finished import.
#[derive(Debug, Clone)]
pub struct ImportReport {
    /// The model.
    pub held: Held,
    /// Whether a known entry was adopted; otherwise one was signed.
    pub adopted: bool,
    /// How the bytes came in.
    pub how: How,
}

/// Turns files into models. Clones share everything.
#[derive(Clone)]
pub struct Importer {
    blobs: Blobs,
    catalogue: Catalogue,
    inspect: Arc<dyn Inspect>,
}

impl Importer {
    /// An importer into one network's catalogue.
    pub fn new(blobs: Blobs, catalogue: Catalogue, inspect: Arc<dyn Inspect>) -> Self {
        Self {
            blobs,
            catalogue,
            inspect,
        }
    }

    /// Where the bytes go.
    pub fn blobs(&self) -> &Blobs {
        &self.blobs
    }

    /// Where the names go.
    pub fn catalogue(&self) -> &Catalogue {
        &self.catalogue
    }

    /// The whole way: take in a file, inspect it, adopt or sign its entry, bind the name.
    pub fn import(
        &self,
        file: &Path,
        name: &ModelName,
        sources: Vec<String>,
        signer: &Signer,
        now_ms: u64,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<ImportReport, ImportError> {
        let staged = self.stage(file, sources, progress)?;
        self.vouch(staged, name, signer, None, now_ms)
    }

    /// Takes in a file that goes with a staged model, and makes another model of it: a GGUF file of its own.
    ///
    /// # Errors
    /// It is none of these or for another architecture, or the disk's. Whether its widths fit is found out when both are
    /// loaded: files do not tell them alike.
    pub fn add(
        &self,
        staged: &mut Staged,
        more: More,
        file: &Path,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<(), ImportError> {
        let imported = self.blobs.import(file, None, progress)?;
        self.inspect_more(staged, more, &imported.digest, file)
    }

    /// As [`Self::add`], of a blob that is here already.
    pub fn add_blob(
        &self,
        staged: &mut Staged,
        more: More,
        digest: &ContentHash,
    ) -> Result<(), ImportError> {
        if !self.blobs.has(digest) {
            return Err(BlobError::Absent(*digest).into());
        }
        self.inspect_more(staged, more, digest, &self.blobs.path(digest))
    }

    fn inspect_more(
        &self,
        staged: &mut Staged,
        more: More,
        digest: &ContentHash,
        file: &Path,
    ) -> Result<(), ImportError> {
        let (facts, size) = self.looked_at(digest, file)?;
        let (is_one, what, role) = match more {
            More::Projector => (facts.arch == PROJECTOR, "projector", FileRole::Projector),
            More::Adapter => (facts.is_adapter, "adapter", FileRole::Adapter),
        };
        let (arch, wanted) = (&facts.arch, &staged.facts.arch);
        let why = if !is_one {
            format!("it is a model of architecture {arch}, and no {what}")
        } else if more == More::Adapter && arch != wanted {
            format!(
                "it is an adapter for models of architecture {arch}, and this one is of {wanted}"
            )
        } else if staged.body.files.iter().any(|file| file.role == role) {
            format!("the model it is for has its {what} already, and takes one")
        } else {
            staged.body.files.push(ModelFile {
                role,
                sha256: *digest,
                size,
            });
            return Ok(());
        };
        Err(unfit(file, why))
    }

    /// Takes in a file and inspects it. Between this and [`Self::finish`] a person may sign; the draft
    /// bears the file's own name until its signer gives another.
    pub fn stage(
        &self,
        file: &Path,
        sources: Vec<String>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Staged, ImportError> {
        let name = file.file_stem().unwrap_or_default().to_string_lossy();
        let imported = self.blobs.import(file, None, progress)?;
        self.inspect_blob(&imported.digest, imported.how, file, &name, sources)
    }

    /// Inspects a blob that is here already: a finished download, an upload.
    pub fn stage_blob(
        &self,
        digest: &ContentHash,
        name: &str,
        sources: Vec<String>,
    ) -> Result<Staged, ImportError> {
        if !self.blobs.has(digest) {
            return Err(BlobError::Absent(*digest).into());
        }
        self.inspect_blob(digest, How::Copied, &self.blobs.path(digest), name, sources)
    }

    /// Binds the name to an entry somebody signed for the staged file. The bytes of an older model of that name go,
    /// unless another name needs them.
    pub fn finish(
        &self,
        staged: Staged,
        name: &ModelName,
        signed: Verified<ModelEntry>,
        recipe: Option<&Recipe>,
        now_ms: u64,
    ) -> Result<Held, ImportError> {
        let same_files = signed.body().files == staged.body.files;
        if !same_files || signed.body().template_sha256 != staged.body.template_sha256 {
            return Err(ImportError::OtherEntry);
        }
        let facts = local_facts(&staged.facts);
        let freed = self.catalogue.bind(name, &signed, &facts, recipe, now_ms)?;
        for digest in freed {
            self.blobs.remove(&digest)?;
        }
        Ok(Held {
            name: name.clone(),
            entry: signed,
            facts,
            recipe: recipe.cloned(),
            modified_ms: now_ms,
        })
    }

    /// What is known here of the staged file, as this signer may use it.
    pub fn known(&self, staged: &Staged, signer: &NodeId) -> Result<Known, ImportError> {
        Ok(known_entry(
            &self.catalogue.records(),
            &staged.body,
            signer,
        )?)
    }

    /// Adopts the known entry, or signs one, and binds the name, with what is added to the model if something is.
    pub fn vouch(
        &self,
        staged: Staged,
        name: &ModelName,
        signer: &Signer,
        recipe: Option<&Recipe>,
        now_ms: u64,
    ) -> Result<ImportReport, ImportError> {
        let how = staged.how;
        let mut body = staged.body.clone();
        body.name = cut(&name.to_string(), MAX_LICENCE);
        let known = self.known(&staged, &signer.node())?;
        if let Some(begun) = known.countersign {
            body = begun;
        }
        let adopted = known.adopt.is_some();
        let entry = match known.adopt {
            Some(known) => known,
            None => sign_entry(&self.catalogue.records(), body, signer.key(), now_ms)?,
        };
        let held = self.finish(staged, name, entry, recipe, now_ms)?;
        Ok(ImportReport { held, adopted, how })
    }

    fn inspect_blob(
        &self,
        digest: &ContentHash,
        how: How,
        file: &Path,
        name: &str,
        sources: Vec<String>,
    ) -> Result<Staged, ImportError> {
        let (facts, size) = self.looked_at(digest, file)?;
        if facts.arch == PROJECTOR {
            let why =
                "it is a projector, which a model is imported with (--projector), and no model";
            return Err(unfit(file, why.to_owned()));
        }
        if facts.is_adapter {
            let why = "it is an adapter, which a model is made with (ADAPTER in a Modelfile), and no model";
            return Err(unfit(file, why.to_owned()));
        }
        let body = entry_body(&facts, name, sources, *digest, size);
        Ok(Staged {
            digest: *digest,
            size,
            facts,
            body,
            how,
        })
    }

    /// What the inspection finds in a blob, and its size.
    fn looked_at(
        &self,
        digest: &ContentHash,
        file: &Path,
    ) -> Result<(ModelFacts, u64), ImportError> {
        let size = self.blobs.size(digest).ok_or(BlobError::Absent(*digest))?;
        let inspected = self
            .inspect
            .inspect(&self.blobs.path(digest))
            .and_then(|facts| plausible(facts, size));
        match inspected {
            Ok(facts) => Ok((facts, size)),
            Err(InspectError::BadModel(why)) => Err(self.refuse(digest, file, why)),
            Err(unavailable) => Err(ImportError::Inspect(unavailable)),
        }
    }

    /// Puts our copy where nothing uses it, unless some model that works already needs these very bytes.
    fn refuse(&self, digest: &ContentHash, file: &Path, why: String) -> ImportError {
        let quarantined = self.blobs.quarantine(digest, &why);
        let quarantined = quarantined
            .inspect_err(
                |error| tracing::warn!(%digest, %error, "a refused file could not be quarantined"),
            )
            .ok();
        ImportError::Refused {
            file: file.to_path_buf(),
            why,
            quarantined,
        }
    }
}

/// A sound file in the wrong place; our copy of it stays.
fn unfit(file: &Path, why: String) -> ImportError {
    ImportError::Refused {
        file: file.to_path_buf(),
        why,
        quarantined: None,
    }
}

/// A header that promises more bytes than the file has is a lie or a cut.
fn plausible(facts: ModelFacts, size: u64) -> Result<ModelFacts, InspectError> {
    if facts.size > size {
        let why = format!(
            "its header speaks of {} bytes, the file has {size}",
            facts.size
        );
        return Err(InspectError::BadModel(why));
    }
    if facts.arch.is_empty() {
        return Err(InspectError::BadModel(
            "it names no architecture".to_owned(),
        ));
    }
    Ok(facts)
}

fn entry_body(
    facts: &ModelFacts,
    name: &str,
    sources: Vec<String>,
    digest: ContentHash,
    size: u64,
) -> ModelEntry {
    ModelEntry {
        name: cut(name, MAX_LICENCE),
        files: vec![ModelFile {
            role: FileRole::Weights,
            sha256: digest,
            size,
        }],
        arch: cut(&facts.arch, MAX_WORD),
        quant: cut(&facts.quant, MAX_WORD),
        context: facts.n_ctx_train,
        licence: cut(facts.licence.as_deref().unwrap_or(""), MAX_LICENCE),
        template_sha256: facts
            .template
            .as_ref()
            .map(|template| ContentHash::of(template.as_bytes())),
        sources,
        reference_rates: None,
        base: None,
    }
}

fn local_facts(facts: &ModelFacts) -> LocalFacts {
    let template = facts
        .template
        .clone()
        .filter(|template| template.len() <= MAX_TEMPLATE);
    LocalFacts {
        n_params: facts.n_params,
        n_vocab: facts.n_vocab,
        template,
    }
}

/// At most `longest` bytes, whole characters.
fn cut(text: &str, longest: usize) -> String {
    let end = (0..=longest.min(text.len()))
        .rev()
        .find(|at| text.is_char_boundary(*at))
        .unwrap_or(0);
    text[..end].to_owned()
}
