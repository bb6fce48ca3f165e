//! What is known of a batch, as it is on disk.
//!
//! Invariant: the file is replaced whole at every change; what it says was so at one moment.
//! Absent by design: how far a running batch is. The rows that came of it say that.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::lines::Fault;
use crate::door::Client;
use crate::files::{FileError, write_atomically};
use crate::kept::{BatchId, FileId};

/// Most faults told of one batch: enough to see what is wrong, far less than 50,000 lines could have.
pub const FAULTS_TOLD: usize = 100;

/// A record of a batch with all its faults, their names and the client's own words is far below this.
const RECORD_BYTES: u64 = 1 << 20;

/// Routes whose requests a batch may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Endpoint {
    /// Chat completions.
    #[serde(rename = "/v1/chat/completions")]
    Chat,
    /// Completions of plain text.
    #[serde(rename = "/v1/completions")]
    Completions,
    /// Vectors.
    #[serde(rename = "/v1/embeddings")]
    Embeddings,
    /// Responses.
    #[serde(rename = "/v1/responses")]
    Responses,
}

impl Endpoint {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::Chat,
        Self::Completions,
        Self::Embeddings,
        Self::Responses,
    ];

    /// As clients write it.
    pub fn path(self) -> &'static str {
        match self {
            Self::Chat => "/v1/chat/completions",
            Self::Completions => "/v1/completions",
            Self::Embeddings => "/v1/embeddings",
            Self::Responses => "/v1/responses",
        }
    }

    /// The one with this path.
    pub fn of(path: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|endpoint| endpoint.path() == path)
    }
}

/// Where a batch is, by OpenAI's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Its lines are read.
    Validating,
    /// Its lines are not what they should be, or it could not go on.
    Failed,
    /// Its lines are answered.
    InProgress,
    /// Its files are made.
    Finalizing,
    /// It is done.
    Completed,
    /// Its time was up before it was done.
    Expired,
    /// It is being stopped.
    Cancelling,
    /// It was stopped.
    Cancelled,
}

impl Status {
    /// As clients read it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Validating => "validating",
            Self::Failed => "failed",
            Self::InProgress => "in_progress",
            Self::Finalizing => "finalizing",
            Self::Completed => "completed",
            Self::Expired => "expired",
            Self::Cancelling => "cancelling",
            Self::Cancelled => "cancelled",
        }
    }

    /// Nothing happens to it any more.
    pub fn is_over(self) -> bool {
        matches!(
            self,
            Self::Failed | Self::Completed | Self::Expired | Self::Cancelled
        )
    }
}

/// When a batch came where, in Unix seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "OpenAI's names, which say it")]
pub struct Stamps {
    pub created_at: u64,
    pub expires_at: u64,
    pub in_progress_at: Option<u64>,
    pub finalizing_at: Option<u64>,
    pub completed_at: Option<u64>,
    pub failed_at: Option<u64>,
    pub expired_at: Option<u64>,
    pub cancelling_at: Option<u64>,
    pub cancelled_at: Option<u64>,
}

/// How many requests a batch has, and what became of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// All of them.
    pub total: u32,
    /// Answered well.
    pub completed: u32,
    /// Answered with an error, or not at all.
    pub failed: u32,
}

/// What is wrong with a batch, as it is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wrong {
    /// For programs.
    pub code: String,
    /// In plain words.
    pub message: String,
    /// The field at fault.
    pub param: Option<String>,
    /// The line at fault, from 1.
    pub line: Option<u32>,
}

impl Wrong {
    /// Something that is wrong with all of it.
    pub fn whole(code: &str, message: impl Into<String>) -> Self {
        Self {
            code: code.to_owned(),
            message: message.into(),
            param: None,
            line: None,
        }
    }

    /// A fault of one line.
    pub fn at(line: u32, fault: Fault) -> Self {
        Self {
            code: fault.code.to_owned(),
            message: fault.message,
            param: fault.param.map(str::to_owned),
            line: Some(line),
        }
    }
}

/// How a batch ends; decided before its files are made, so that a crash between the two changes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// Every line has its answer.
    Done,
    /// The time is up.
    Late,
    /// Its client stopped it.
    Stopped,
    /// It cannot go on.
    Broken,
}

/// A batch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch {
    /// Its name.
    pub id: BatchId,
    /// Whose it is.
    pub owner: Client,
    /// The widest scope of its jobs: `mine`, `circle` or `commons`.
    pub scope: Box<str>,
    /// The network whose circles its scope meant, in hex.
    pub network: Box<str>,
    /// Where its lines go.
    pub endpoint: Endpoint,
    /// The file of its lines.
    pub input: FileId,
    /// Where it is.
    pub status: Status,
    /// When it came where.
    pub stamps: Stamps,
    /// Its requests.
    pub counts: Counts,
    /// What is wrong with it, the first of them.
    pub wrong: Vec<Wrong>,
    /// Its client's own words.
    pub metadata: Option<BTreeMap<String, String>>,
    /// How long its files live, in seconds; `None` = until they are deleted.
    pub files_live: Option<u64>,
    /// The names its files have, or will have.
    pub planned: Planned,
    /// The file of good answers, once there is one.
    pub output: Option<FileId>,
    /// The file of errors, once there is one.
    pub errors: Option<FileId>,
    /// How it ends, once that is decided.
    pub ending: Option<Ending>,
}

/// Names given before there is anything to name, so that making a file twice makes it once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Planned {
    /// Of the good answers.
    pub output: FileId,
    /// Of the errors.
    pub errors: FileId,
}

impl Batch {
    /// Writes it down.
    pub(super) fn save(&self, path: &Path) -> Result<(), FileError> {
        let text = serde_json::to_vec(self).expect("a record has no map with odd keys");
        write_atomically(path, 0o600, &text)
    }

    /// Reads one that was written down here.
    pub(super) fn load(path: &Path) -> Option<Self> {
        let mut text = Vec::new();
        let file = File::open(path).ok()?;
        file.take(RECORD_BYTES).read_to_end(&mut text).ok()?;
        serde_json::from_slice(&text).ok()
    }
}
