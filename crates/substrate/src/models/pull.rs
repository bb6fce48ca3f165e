//! From the web to a model: find the file, bring its bytes in parts, check them, import them.
//!
//! Invariants: no byte is used whose digest is not the one the hub promised; what was downloaded is
//! kept when a pull is dropped, and the next one goes on from there; two pulls of one model are one
//! download that both watch.
//!
//! Absent by design: several hubs, and trust in one: whoever signs the entry vouches, not the hub.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use super::catalogue::Held;
use super::import::{ImportError, Importer, More, Signer};
use super::names::ModelName;
use crate::blobs::BlobError;
use crate::files::FileError;

mod hashing;
mod hub;
mod partial;
mod progress;
mod retry;
mod source;
mod transfer;

pub use progress::Progress;
pub use source::Source;

use hub::Hub;
use progress::{Outcome, Watched};

/// The wall clock in Unix milliseconds, for the catalogue.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// The most connections of one download: what Ollama's own downloader opens.
const MOST_CONNECTIONS: usize = 16;

/// How to download.
#[derive(Debug, Clone)]
pub struct PullSettings {
    /// The hub's address, without a slash at its end.
    pub endpoint: String,
    /// Connections at once.
    pub connections: usize,
    /// Bytes of a part: what at most is fetched again after a crash.
    pub part: u64,
    /// Failures in a row, without a byte between them, until a part is given up.
    pub retries: u32,
    /// Wait after the first failure; doubled after each further one.
    pub backoff: Duration,
    /// Silence after which a connection counts as dead.
    pub stall: Duration,
}

impl Default for PullSettings {
    /// Ollama's downloader has 16 parts and 6 retries; four connections fill a home's line as well
    /// and leave the hub's limits alone.
    fn default() -> Self {
        Self {
            endpoint: "https://huggingface.co".to_owned(),
            connections: 4,
            part: 32 << 20,
            retries: 6,
            backoff: Duration::from_millis(250),
            stall: Duration::from_secs(20),
        }
    }
}

impl PullSettings {
    /// The defaults, with the hub of `SUBSTRATE_HF_ENDPOINT`, else of `HF_ENDPOINT`, and as many connections as
    /// `OLLAMA_MAX_TRANSFER_STREAMS` says.
    pub fn from_env() -> Self {
        let named = ["SUBSTRATE_HF_ENDPOINT", "HF_ENDPOINT"]
            .into_iter()
            .find_map(|name| std::env::var(name).ok());
        let mut settings = Self::default();
        let streams = std::env::var("OLLAMA_MAX_TRANSFER_STREAMS").ok();
        let streams = streams.and_then(|text| text.trim().parse().ok());
        // Zero is Ollama's word for the default.
        if let Some(streams) = streams.filter(|streams| *streams > 0) {
            settings.connections = MOST_CONNECTIONS.min(streams);
        }
        if let Some(endpoint) = named
            .map(|url| url.trim().trim_end_matches('/').to_owned())
            .filter(|url| !url.is_empty())
        {
            settings.endpoint = endpoint;
        }
        settings
    }
}

/// Why a pull failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PullError {
    /// Not a source.
    #[error("'{text}' is not a source: {why}")]
    Source {
        /// As typed.
        text: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The hub has no such repository or file.
    #[error("{what} does not exist at {endpoint}")]
    NotFound {
        /// Repository or file.
        what: String,
        /// The hub.
        endpoint: String,
    },
    /// The hub wants its user to agree to something first, or the repository is private.
    #[error("{what} is private or gated: the hub does not give it to us")]
    Gated {
        /// The repository.
        what: String,
    },
    /// The repository has no such quantisation.
    #[error("{repo} has no GGUF file for '{quant}'; it has: {}", offered.join(", "))]
    NoQuant {
        /// The repository.
        repo: String,
        /// As asked.
        quant: String,
        /// File names it has.
        offered: Vec<String>,
    },
    /// The hub answered with something else than asked for.
    #[error("{url} answered {status}")]
    Http {
        /// What was asked.
        url: String,
        /// The status.
        status: u16,
    },
    /// The hub's answer makes no sense.
    #[error("{url} answered nonsense: {why}")]
    Nonsense {
        /// What was asked.
        url: String,
        /// What is wrong.
        why: String,
    },
    /// The connection failed again and again.
    #[error("the download broke off at byte {at} and {retries} retries did not help: {why}")]
    BrokeOff {
        /// Where.
        at: u64,
        /// How often it was tried without a single byte.
        retries: u32,
        /// The last failure.
        why: String,
    },
    /// No connection could be made at all.
    #[error("{url} cannot be reached: {why}")]
    Unreachable {
        /// What was asked.
        url: String,
        /// In the system's words.
        why: String,
    },
    /// The bytes are not those promised; they are thrown away.
    #[error("the downloaded bytes have digest {found}, the hub promised {promised}")]
    Digest {
        /// By the hub.
        promised: substrate_record::ContentHash,
        /// Of the bytes.
        found: substrate_record::ContentHash,
    },
    /// The blob store failed.
    #[error(transparent)]
    Blob(#[from] BlobError),
    /// The import failed after the download.
    #[error(transparent)]
    Import(#[from] ImportError),
    /// The pull was stopped before its end.
    #[error("the pull was stopped; it goes on from there next time")]
    Stopped,
    /// Another pull of the same model, which this one had joined, failed.
    #[error("{0}")]
    Shared(Arc<PullError>),
}

impl From<FileError> for PullError {
    fn from(error: FileError) -> Self {
        Self::Blob(BlobError::File(error))
    }
}

/// Downloads models. Clones share the running downloads.
#[derive(Clone)]
pub struct Puller {
    importer: Importer,
    clock: Clock,
    settings: Arc<PullSettings>,
    running: Arc<Mutex<BTreeMap<String, Weak<Running>>>>,
}

/// A download under way; dropped with the last [`Pull`] that watches it.
struct Running {
    watched: Arc<Watched>,
    task: tokio::task::AbortHandle,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// One caller's view of a download.
pub struct Pull {
    running: Arc<Running>,
    cursor: progress::Cursor,
}

impl Puller {
    /// A downloader into an importer's blobs and catalogue.
    pub fn new(importer: Importer, clock: Clock, settings: PullSettings) -> Self {
        Self {
            importer,
            clock,
            settings: Arc::new(settings),
            running: Arc::default(),
        }
    }

    /// Starts a pull, or joins the one of the same source and name. Call it inside a tokio runtime.
    pub fn pull(&self, source: Source, name: ModelName, signer: Signer) -> Pull {
        let key = format!("{source} {}", name.folded());
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.retain(|_, pull| pull.strong_count() > 0);
        if let Some(joined) = running
            .get(&key)
            .and_then(Weak::upgrade)
            .filter(|joined| !joined.watched.is_over())
        {
            return Pull {
                running: joined,
                cursor: progress::Cursor::default(),
            };
        }
        let watched = Arc::new(Watched::default());
        let work = work(self.clone(), source, name, signer, watched.clone());
        let told = watched.clone();
        let task = tokio::spawn(async move {
            let outcome = work.await;
            told.end(outcome.map(Box::new).map_err(Arc::new));
        });
        let started = Arc::new(Running {
            watched,
            task: task.abort_handle(),
        });
        running.insert(key, Arc::downgrade(&started));
        Pull {
            running: started,
            cursor: progress::Cursor::default(),
        }
    }
}

impl Pull {
    /// The next line of progress; `None` when it is over, well or not.
    pub async fn next(&mut self) -> Option<Progress> {
        self.running.watched.next(&mut self.cursor).await
    }

    /// Waits for the end.
    pub async fn finish(mut self) -> Result<Held, PullError> {
        while self.next().await.is_some() {}
        match self.running.watched.outcome() {
            Some(Outcome::Done(held)) => Ok(*held),
            Some(Outcome::Failed(error)) => Err(PullError::Shared(error)),
            None => Err(PullError::Stopped),
        }
    }
}

/// The whole pull, as Ollama tells it: manifest, bytes, digest, manifest again.
async fn work(
    puller: Puller,
    source: Source,
    name: ModelName,
    signer: Signer,
    watched: Arc<Watched>,
) -> Result<Held, PullError> {
    watched.tell("pulling manifest");
    let importer = puller.importer.clone();
    let now_ms = (puller.clock)();
    if let Some(path) = source.local_file() {
        let path = path.to_path_buf();
        let held = off_loop(move || {
            Ok(importer
                .import(&path, &name, Vec::new(), &signer, now_ms, &mut |_, _| {})?
                .held)
        })
        .await?;
        watched.tell("success");
        return Ok(held);
    }
    let hub = Arc::new(Hub::new(&puller.settings)?);
    let remote = hub.resolve(&source).await?;
    let digest =
        transfer::bring(&puller.settings, &hub, importer.blobs(), &remote, &watched).await?;
    let mut sources = vec![remote.source.clone()];
    let projector = match &remote.projector {
        Some(remote) => {
            sources.push(remote.source.clone());
            let blobs = importer.blobs();
            Some(transfer::bring(&puller.settings, &hub, blobs, remote, &watched).await?)
        }
        None => None,
    };
    watched.tell("writing manifest");
    let held = off_loop(move || {
        let mut staged = importer.stage_blob(&digest, &name.to_string(), sources)?;
        if let Some(projector) = projector {
            importer.add_blob(&mut staged, More::Projector, &projector)?;
        }
        Ok(importer.vouch(staged, &name, &signer, None, now_ms)?.held)
    })
    .await?;
    watched.tell("success");
    Ok(held)
}

/// Work that blocks on disk or processor, away from the runtime's threads.
async fn off_loop<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, PullError> + Send + 'static,
) -> Result<T, PullError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| PullError::Stopped)?
}
