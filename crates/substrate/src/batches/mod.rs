//! Batches: many requests in one file, answered when there is time, over the mesh as any other request is.
//!
//! Reading order: `lines` (what a client wrote), `check` (all of it, before any is asked), `record` (what is known of a
//! batch), `parts` (what came of it), `asker` (who answers), `run` (the life of a batch).
//!
//! Invariants: every line becomes a signed job of its batch's scope and owner, through the handler that answers everybody's
//! requests; a line that has its row is not asked again, whatever crashes; at most [`LINES_AT_ONCE`] lines are under way,
//! and they go behind every job that somebody waits for.
//! Absent by design: a queue of its own in the node, an order of the answers, and a price.

mod asker;
mod check;
pub mod lines;
mod parts;
mod record;
mod run;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use asker::{Asked, Asker, Reply, Told};
pub use check::MAX_LINES;
pub use record::{Batch, Counts, Ending, Endpoint, Planned, Stamps, Status, Wrong};

use crate::door::Client;
use crate::files::FileError;
use crate::grpc::desk::now_ms;
use crate::kept::{BatchId, FileId, KeptError, KeptFiles, Purpose, sees};

/// Lines under way at a time, over all batches: half of the answers that a model gives at once unless its owner says
/// otherwise, so that the other half is always free for people.
pub const LINES_AT_ONCE: usize = 4;

/// Times a line is asked before a failure that may pass is told as its answer. With the pauses between them, nine minutes.
pub const LINE_TRIES: u32 = 10;

/// Times a line is asked whose model nobody has. With the pauses between them, a minute: a daemon that has just started, or
/// a node of its circle that has, is found again by then, and a slip of the pen is told while somebody may still look.
pub const UNKNOWN_TRIES: u32 = 7;

/// The pause before a line's second try; it doubles with each further one.
pub const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// How long a batch has, in seconds: the one window that OpenAI's API knows.
pub const WINDOW_SECONDS: u64 = 86_400;

/// Batches of one client that are not over.
const LIVE_OF_ONE: usize = 16;

/// Batches that are not over, in all: each has a task, and the places of its lines in memory, up to 3 MiB.
const LIVE: usize = 64;

/// Batches of one client that are remembered; beyond it the oldest that is over is forgotten. Its files stay.
const REMEMBERED: usize = 1_000;

/// Behind a batch's name: what is known of it, its good answers, its errors.
const RECORD: &str = "json";
const GOOD: &str = "good";
const BAD: &str = "bad";

/// What a client asks for.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Whose it is.
    pub owner: Client,
    /// The widest scope of its jobs.
    pub scope: Box<str>,
    /// The network whose circles that means.
    pub network: Box<str>,
    /// Where its lines go.
    pub endpoint: Endpoint,
    /// The file of its lines.
    pub input: FileId,
    /// The client's own words.
    pub metadata: Option<BTreeMap<String, String>>,
    /// How long its files live, in seconds.
    pub files_live: Option<u64>,
}

/// Why a batch is not made, given or stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BatchError {
    /// There is none, or it is another client's.
    #[error("no such batch: {0}")]
    Unknown(String),
    /// Nothing is left to stop.
    #[error("{id} is {} already", status.word())]
    Over {
        /// Its name.
        id: BatchId,
        /// How it ended.
        status: Status,
    },
    /// The file is for something else.
    #[error("{id} has purpose '{}', not 'batch'", purpose.word())]
    NotABatch {
        /// The file.
        id: FileId,
        /// What it is for.
        purpose: Purpose,
    },
    /// Too many run already.
    #[error("{0}: wait until one is over, or cancel one")]
    TooMany(String),
    /// The file's.
    #[error(transparent)]
    Kept(#[from] KeptError),
    /// The disk's.
    #[error(transparent)]
    File(#[from] FileError),
}

/// The batches of one home. Clones share them. Calls wait for the disk: a caller in a runtime wraps them.
#[derive(Clone)]
pub struct Batches {
    shared: Arc<Shared>,
}

struct Shared {
    folder: PathBuf,
    kept: KeptFiles,
    asker: Arc<dyn Asker>,
    known: Mutex<Known>,
    /// Lines under way.
    seats: Semaphore,
    tasks: TaskTracker,
    halt: CancellationToken,
    /// [`FIRST_PAUSE`], but in tests.
    first_pause: Duration,
}

#[derive(Default)]
struct Known {
    batches: BTreeMap<BatchId, Batch>,
    /// Stops those that are not over.
    live: BTreeMap<BatchId, CancellationToken>,
}

impl Batches {
    /// Opens the folder. Nothing runs yet; nothing begins after `halt`.
    ///
    /// # Errors
    /// The disk's.
    pub fn open(
        folder: &Path,
        kept: KeptFiles,
        asker: Arc<dyn Asker>,
        halt: CancellationToken,
    ) -> Result<Self, BatchError> {
        Self::open_at(folder, kept, asker, halt, FIRST_PAUSE)
    }

    /// As [`Batches::open`], with another [`FIRST_PAUSE`].
    pub(crate) fn open_at(
        folder: &Path,
        kept: KeptFiles,
        asker: Arc<dyn Asker>,
        halt: CancellationToken,
        first_pause: Duration,
    ) -> Result<Self, BatchError> {
        let mut batches = BTreeMap::new();
        for entry in std::fs::read_dir(folder).map_err(FileError::at("read", folder))? {
            let path = entry.map_err(FileError::at("read", folder))?.path();
            let end = path.extension().and_then(|end| end.to_str());
            match end {
                Some(RECORD) => match Batch::load(&path) {
                    Some(batch) => drop(batches.insert(batch.id, batch)),
                    None => {
                        tracing::warn!(path = %path.display(), "a batch's record cannot be read; it is left alone");
                    }
                },
                Some("tmp") => {
                    std::fs::remove_file(&path).map_err(FileError::at("remove", &path))?;
                }
                _ => {}
            }
        }
        let known = Known {
            batches,
            ..Known::default()
        };
        let shared = Shared {
            folder: folder.to_path_buf(),
            kept,
            asker,
            known: Mutex::new(known),
            seats: Semaphore::new(LINES_AT_ONCE),
            tasks: TaskTracker::new(),
            halt,
            first_pause,
        };
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    /// Goes on with every batch that was not over when the last daemon ended.
    pub fn resume(&self) {
        let known = self.known();
        let live = known
            .batches
            .values()
            .filter(|batch| !batch.status.is_over());
        let live: Vec<BatchId> = live.map(|batch| batch.id).collect();
        drop(known);
        for id in live {
            self.start(id);
        }
    }

    /// Waits until nothing runs any more, which is soon after the halt.
    pub async fn ended(&self) {
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
    }

    /// The files that batches read and make.
    pub fn kept(&self) -> &KeptFiles {
        &self.shared.kept
    }

    /// Makes a batch and begins with it. Must be called where tasks can be started.
    ///
    /// # Errors
    /// The file is not one for it, too many batches run, or the disk's.
    pub fn create(&self, wanted: Wanted) -> Result<Batch, BatchError> {
        let now = now_ms();
        let input = self.kept().get(&wanted.owner, wanted.input, now)?;
        if input.purpose != Purpose::Batch {
            return Err(BatchError::NotABatch {
                id: input.id,
                purpose: input.purpose,
            });
        }
        let created_at = now / 1_000;
        let batch = Batch {
            id: BatchId::draw(),
            owner: wanted.owner,
            scope: wanted.scope,
            network: wanted.network,
            endpoint: wanted.endpoint,
            input: wanted.input,
            status: Status::Validating,
            stamps: Stamps {
                created_at,
                expires_at: created_at + WINDOW_SECONDS,
                ..Stamps::default()
            },
            counts: Counts::default(),
            wrong: Vec::new(),
            metadata: wanted.metadata,
            files_live: wanted.files_live,
            planned: Planned {
                output: FileId::draw(),
                errors: FileId::draw(),
            },
            output: None,
            errors: None,
            ending: None,
        };
        let mut known = self.known();
        known.has_room(&batch.owner)?;
        batch.save(&self.path(batch.id, RECORD))?;
        let forgotten = known.too_old(&batch.owner);
        known.batches.insert(batch.id, batch.clone());
        if let Some(id) = forgotten {
            known.batches.remove(&id);
            let path = self.path(id, RECORD);
            std::fs::remove_file(&path).map_err(FileError::at("remove", &path))?;
        }
        drop(known);
        self.start(batch.id);
        Ok(batch)
    }

    /// The batches a client may see, newest first.
    pub fn list(&self, viewer: &Client) -> Vec<Batch> {
        let known = self.known();
        let seen = known.batches.values();
        let mut seen: Vec<Batch> = seen
            .filter(|batch| sees(viewer, &batch.owner))
            .cloned()
            .collect();
        seen.sort_by_key(|batch| std::cmp::Reverse((batch.stamps.created_at, batch.id)));
        seen
    }

    /// One batch that a client may see.
    ///
    /// # Errors
    /// There is none of that name for it.
    pub fn get(&self, viewer: &Client, id: BatchId) -> Result<Batch, BatchError> {
        let known = self.known();
        let batch = known.batches.get(&id);
        let seen = batch.filter(|batch| sees(viewer, &batch.owner));
        seen.cloned()
            .ok_or_else(|| BatchError::Unknown(id.to_string()))
    }

    /// Stops a batch: lines under way are given up, answers that came stay.
    ///
    /// # Errors
    /// There is none of that name for this client, it is over, or the disk's.
    pub fn cancel(&self, viewer: &Client, id: BatchId) -> Result<Batch, BatchError> {
        let batch = self.get(viewer, id)?;
        if batch.status.is_over() {
            let status = batch.status;
            return Err(BatchError::Over { id, status });
        }
        let batch = self.change(id, |batch| {
            if batch.status.is_over() || batch.ending.is_some() {
                return;
            }
            batch.status = Status::Cancelling;
            batch.stamps.cancelling_at.get_or_insert(now_ms() / 1_000);
        })?;
        if let Some(token) = self.known().live.get(&id) {
            token.cancel();
        }
        Ok(batch)
    }

    /// Changes a batch, on disk first.
    fn change(&self, id: BatchId, change: impl FnOnce(&mut Batch)) -> Result<Batch, BatchError> {
        let mut known = self.known();
        let held = known.batches.get(&id);
        let mut batch = held
            .cloned()
            .ok_or_else(|| BatchError::Unknown(id.to_string()))?;
        change(&mut batch);
        batch.save(&self.path(id, RECORD))?;
        known.batches.insert(id, batch.clone());
        Ok(batch)
    }

    /// Tells how far a batch is. That is not written down: its rows say it.
    fn tell_counts(&self, id: BatchId, counts: Counts) {
        if let Some(batch) = self.known().batches.get_mut(&id) {
            batch.counts = counts;
        }
    }

    fn start(&self, id: BatchId) {
        let token = self.shared.halt.child_token();
        self.known().live.insert(id, token.clone());
        let batches = self.clone();
        self.shared.tasks.spawn(async move {
            run::run(&batches, id, token).await;
            batches.known().live.remove(&id);
        });
    }

    fn path(&self, id: BatchId, what: &str) -> PathBuf {
        self.shared.folder.join(format!("{id}.{what}"))
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.shared
            .known
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn has_room(&self, owner: &Client) -> Result<(), BatchError> {
        let live = || {
            self.batches
                .values()
                .filter(|batch| !batch.status.is_over())
        };
        if live().filter(|batch| batch.owner == *owner).count() >= LIVE_OF_ONE {
            let why = format!("{LIVE_OF_ONE} of your batches run already");
            return Err(BatchError::TooMany(why));
        }
        if live().count() >= LIVE {
            let why = format!("{LIVE} batches run on this machine already");
            return Err(BatchError::TooMany(why));
        }
        Ok(())
    }

    /// The oldest of a client's batches that is over, if it has as many as are remembered.
    fn too_old(&self, owner: &Client) -> Option<BatchId> {
        let of_owner = || self.batches.values().filter(|batch| batch.owner == *owner);
        if of_owner().count() < REMEMBERED {
            return None;
        }
        of_owner()
            .filter(|batch| batch.status.is_over())
            .min_by_key(|batch| (batch.stamps.created_at, batch.id))
            .map(|batch| batch.id)
    }
}

#[cfg(test)]
mod tests;
