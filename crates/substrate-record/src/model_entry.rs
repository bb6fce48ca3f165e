//! A ModelEntry: the bytes a model's name stands for, its licence and where to get them.
//!
//! Invariant: files are named by digest and size, never by path; another template is another
//! entry. Absent by design: who may use it; that follows from who signed (the ledger's registry).

use crate::error::{FieldError, FieldFault};
use crate::fields::{List, Maybe, Plain, Text, body, cbor_codes, cbor_map};
use crate::{ContentHash, InNetwork, RecordId, Stream};

/// `hf.co/USER/REPO:QUANT` with the hub's longest user and repository names.
const MAX_NAME: usize = 256;
/// The largest models are split into some hundred shards; a file is about 48 bytes.
const MAX_FILES: usize = 128;
/// Architecture and quantisation are single words of the engine's.
const MAX_WORD: usize = 64;
/// An SPDX expression, or the short name of a licence that has none.
const MAX_LICENCE: usize = 256;
/// A hub, a mirror or two, a file; peers are found by digest, not listed.
const MAX_SOURCES: usize = 8;
/// A URL with a full commit hash and a long file name.
const MAX_SOURCE: usize = 512;

/// A model, bound to the digests of its files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelEntry {
    /// As people type it.
    pub name: String,
    /// Its files, weights first.
    pub files: Vec<ModelFile>,
    /// Architecture, in the engine's words.
    pub arch: String,
    /// Quantisation, in the engine's words.
    pub quant: String,
    /// The context it was trained for, in tokens.
    pub context: u32,
    /// SPDX expression, or the licence's own name.
    pub licence: String,
    /// The chat template it is used with, if it has one.
    pub template_sha256: Option<ContentHash>,
    /// Where the bytes can be had: `hf:`, `file:`.
    pub sources: Vec<String>,
    /// Speeds on the reference card, once measured.
    pub reference_rates: Option<ReferenceRates>,
    /// The entry this one is an adapter for.
    pub base: Option<RecordId>,
}

/// One file of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModelFile {
    /// What it is for.
    pub role: FileRole,
    /// Its digest.
    pub sha256: ContentHash,
    /// Its length in bytes.
    pub size: u64,
}

/// What a model's file is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs, reason = "the names are the field's own")]
pub enum FileRole {
    Weights = 1,
    Projector = 2,
    Adapter = 3,
    Tokenizer = 4,
}

/// Millitokens per second on the reference card.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReferenceRates {
    /// Reading the prompt.
    pub prefill: u64,
    /// Generating.
    pub decode: u64,
}

cbor_codes!(FileRole {
    Weights,
    Projector,
    Adapter,
    Tokenizer
});
cbor_map!(ModelFile {
    1 => role: Plain,
    2 => sha256: Plain,
    3 => size: Plain,
});
cbor_map!(ReferenceRates {
    1 => prefill: Plain,
    2 => decode: Plain,
});
cbor_map!(ModelEntry {
    1 => name: Text(MAX_NAME),
    2 => files: List(MAX_FILES, Plain),
    3 => arch: Text(MAX_WORD),
    4 => quant: Text(MAX_WORD),
    5 => context: Plain,
    6 => licence: Text(MAX_LICENCE),
    7 => template_sha256: Maybe(Plain),
    8 => sources: List(MAX_SOURCES, Text(MAX_SOURCE)),
    9 => reference_rates: Maybe(Plain),
    10 => base: Maybe(Plain),
});
body!(ModelEntry, Some(Stream::Registry));

impl InNetwork for ModelEntry {}

impl ModelEntry {
    fn consistent(&self) -> Result<(), FieldError> {
        if self.files.is_empty() {
            return Err(FieldFault::Inconsistent("a model has at least one file").into());
        }
        Ok(())
    }

    /// The digests of the weights, in the order the entry lists them.
    pub fn weights(&self) -> impl Iterator<Item = &ModelFile> {
        self.files
            .iter()
            .filter(|file| file.role == FileRole::Weights)
    }
}
