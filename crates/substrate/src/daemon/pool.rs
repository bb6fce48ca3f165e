//! The loaded workers: one process per model, started on demand, ended when idle.
//!
//! Invariant: a worker only ever gets a path inside the blob store, to a file whose digest was computed by this
//! process and which has not changed since. Two jobs that need the same model wait for one load, and loads of different
//! models for each other, in order.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use substrate_record::{ContentHash, WallTier};
use substrate_sandbox::launch::WallSpec;
use substrate_sandbox::wire;
use tokio::sync::watch;

use super::context::{blocking, unix_ms};
use super::engine::{Engine, WorkError};
use super::threads::FreeCores;
use crate::blobs::{BlobError, Blobs};
use crate::models::fit::Estimate;
use crate::models::parts::Parts;

mod alone;
mod inspector;
mod loading;
mod machines;
mod measuring;
mod room;
mod settings;
mod taken;

pub use inspector::WalledInspector;
pub use loading::Fit;
pub use machines::{MachineSettings, Machines, NoMachines};
pub use settings::{NoWall, WorkerSettings, try_wall};
pub use taken::Whose;

/// Context allocated when neither the owner nor the model asks for less: Ollama's default without a large GPU.
const DEFAULT_CONTEXT: u32 = 4096;

/// Whole contexts the cache of a model holds, for all its answers and kept prefixes together. Few conversations are as
/// long as a context allows, and a long one takes the room of prefixes first.
const CONTEXTS: u32 = 2;

/// The wall of every worker but those in machines, which have it around them, too.
const USUAL: WallTier = WallTier::Process;

/// A worker that could not be started or loaded.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LoadError {
    /// The blob is not here.
    #[error("the weights {0} are not on this machine")]
    NoBlob(ContentHash),
    /// The blob is not what it was; it is in quarantine now.
    #[error(
        "the weights {0} are damaged and were put in quarantine: import or pull the model again"
    )]
    Damaged(ContentHash),
    /// The blob could not be read.
    #[error("the weights could not be read: {0}")]
    Disk(String),
    /// The wall could not be put up.
    #[error("the wall could not be put up: {0}")]
    Wall(String),
    /// There is not enough memory; nothing was started or ended for it.
    #[error("{model} does not fit the memory of this machine: {why}")]
    NoRoom {
        /// Its name here.
        model: String,
        /// What it needs, what there is, and what to do.
        why: String,
    },
    /// The machine is its owner's now, and the job is another's.
    #[error("the owner of this machine took it back")]
    TakenBack,
    /// The worker's own answer.
    #[error(transparent)]
    Work(#[from] WorkError),
}

/// Handle to all workers. Clones share them.
#[derive(Clone)]
pub struct Pool {
    settings: Arc<WorkerSettings>,
    blobs: Blobs,
    models: Arc<Mutex<BTreeMap<Parts, Arc<Slot>>>>,
    /// Workers of one job each.
    alone: alone::Alone,
    /// Virtual machines for those of them that demand one.
    machines: Arc<Result<Machines, NoMachines>>,
    /// The models that have a name here, and the name.
    known: Arc<Mutex<BTreeMap<Parts, String>>>,
    /// Contexts that models made from others want, the longest of each.
    wished: Arc<Mutex<BTreeMap<Parts, u32>>>,
    /// What the headers of those say, of as many as were asked for.
    inspected: Arc<Mutex<BTreeMap<Parts, Arc<wire::ModelFacts>>>>,
    /// Whoever loads holds this; the lock is fair, so that the others come in order.
    turns: Arc<tokio::sync::Mutex<()>>,
    /// A job has left its worker.
    released: Arc<tokio::sync::Notify>,
    /// Models of which a file was missing or damaged when they were last wanted.
    unusable: Arc<Mutex<BTreeSet<Parts>>>,
    free: Arc<Mutex<FreeCores>>,
    /// The machine is its owner's now: nothing is loaded for others.
    taken: watch::Sender<bool>,
}

/// One model's place: the load is behind an async lock so that a second asker waits for it.
#[derive(Default)]
struct Slot {
    engine: tokio::sync::Mutex<Option<Engine>>,
    seen: Mutex<Seen>,
}

/// What lists show without waiting for a load.
#[derive(Default, Clone)]
struct Seen {
    engine: Option<Engine>,
    busy: u32,
    /// Jobs of the owner's that use the worker or wait for it.
    owners: u32,
    last_used: Option<Instant>,
    keep_alive: Option<Option<Duration>>,
    rates: Option<(u64, u64)>,
    /// A measurement was tried: a model that does not load is not tried for ever.
    tried: bool,
    /// What it was reckoned to take when it was loaded.
    estimate: Option<Estimate>,
    loading: Option<Loading>,
    /// It is one job's own.
    alone: bool,
    /// What it runs behind, if not behind the usual wall.
    wall: Option<WallTier>,
}

impl Seen {
    /// The worker is gone; what was measured stays true.
    fn forget(&mut self) {
        self.engine = None;
        self.keep_alive = None;
        self.estimate = None;
    }
}

/// A load under way.
#[derive(Debug, Clone, Copy)]
pub struct Loading {
    /// How far it is.
    pub stage: Stage,
    /// When it began.
    pub since: Instant,
    /// It is for one job alone.
    pub alone: bool,
    /// What it will run behind, if not behind the usual wall.
    pub wall: Option<WallTier>,
}

/// How far a load is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Another model is being loaded.
    Waiting,
    /// The file is checked and its header read.
    Reading,
    /// Other models leave for it.
    MakingRoom,
    /// The engine loads it.
    Loading,
}

impl Stage {
    /// In words that lists show.
    pub fn word(self) -> &'static str {
        match self {
            Self::Waiting => "waiting for another load",
            Self::Reading => "reading its header",
            Self::MakingRoom => "waiting for room",
            Self::Loading => "loading",
        }
    }
}

/// A loaded worker, for `ps`.
pub struct Loaded {
    /// Its files.
    pub parts: Parts,
    /// The worker.
    pub engine: Engine,
    /// Jobs in it.
    pub busy: u32,
    /// Unix milliseconds; `None` = never.
    pub expires_ms: Option<u64>,
    /// It works for one job alone and ends with it.
    pub alone: bool,
    /// What it runs behind.
    pub wall: WallTier,
}

/// Keeps a worker loaded while a job uses it.
pub struct Lease {
    /// The worker.
    pub engine: Engine,
    /// What it runs behind.
    pub wall: WallTier,
    /// What it is, for its Accept: the digest of its binary, or the name of its guest's image.
    pub worker: ContentHash,
    slot: Arc<Slot>,
    released: Arc<tokio::sync::Notify>,
    _stake: taken::Stake,
    /// Ends the worker, if it is this job's own.
    end: Option<alone::End>,
}

impl Pool {
    /// No worker is started yet.
    pub fn new(settings: WorkerSettings, blobs: Blobs) -> Self {
        let free = match settings.fixed_threads {
            Some(threads) => FreeCores::fixed(threads),
            None => FreeCores::new(settings.cores, settings.threads),
        };
        let free = Arc::new(Mutex::new(free));
        Self {
            settings: Arc::new(settings),
            blobs,
            models: Arc::default(),
            alone: alone::Alone::default(),
            machines: Arc::new(Err(NoMachines("none were tried".to_owned()))),
            known: Arc::default(),
            wished: Arc::default(),
            inspected: Arc::default(),
            turns: Arc::default(),
            released: Arc::default(),
            unusable: Arc::default(),
            free,
            taken: watch::Sender::new(false),
        }
    }

    /// With virtual machines as a second wall, or why there are none.
    pub fn with_machines(self, machines: Result<Machines, NoMachines>) -> Self {
        Self {
            machines: Arc::new(machines),
            ..self
        }
    }

    /// How workers are made.
    pub fn settings(&self) -> &WorkerSettings {
        &self.settings
    }

    /// The tier of the wall put up here, if one stands.
    pub fn wall(&self) -> Option<WallTier> {
        self.settings.wall.as_ref().ok().copied()
    }

    /// Every wall that stands here now, the usual one first.
    pub fn walls(&self) -> Vec<WallTier> {
        let machines = self.machines.as_ref().as_ref().ok();
        let machines = machines.and_then(Machines::tier);
        // A header is read behind the usual one whatever a job demands, so that without it there is none.
        let usual = self.wall();
        usual.into_iter().chain(usual.and(machines)).collect()
    }

    /// The wall that a job with this demand gets: the first that is enough.
    pub fn wall_for(&self, demand: WallTier) -> WallTier {
        let walls = self.walls();
        let enough = walls.iter().find(|wall| wall.satisfies(demand));
        enough.copied().unwrap_or(USUAL)
    }

    /// Why there are no virtual machines, if there are none or none any more.
    pub fn no_machines(&self) -> Option<NoMachines> {
        match self.machines.as_ref() {
            Ok(machines) => machines.withdrawn(),
            Err(why) => Some(why.clone()),
        }
    }

    /// The model's worker, loading it if need be.
    ///
    /// # Errors
    /// Why it could not be loaded; the next call tries again.
    pub async fn lease(&self, parts: &Parts, whose: Whose) -> Result<Lease, LoadError> {
        let slot = lock(&self.models).entry(*parts).or_default().clone();
        let stake = self.stake(&slot, whose);
        tokio::select! {
            biased;
            () = self.taken_from(whose) => Err(LoadError::TakenBack),
            lease = self.lease_slot(parts, &slot, stake) => lease,
        }
    }

    async fn lease_slot(
        &self,
        parts: &Parts,
        slot: &Arc<Slot>,
        stake: taken::Stake,
    ) -> Result<Lease, LoadError> {
        let mut held = slot.engine.lock().await;
        let engine = match held.as_ref().filter(|engine| engine.is_alive()) {
            Some(engine) => engine.clone(),
            None => {
                let engine = self.load(parts, slot, self.shared()).await?;
                *held = Some(engine.clone());
                engine
            }
        };
        let mut seen = lock(&slot.seen);
        seen.engine = Some(engine.clone());
        seen.busy += 1;
        drop(seen);
        // Only now: whoever makes room looks at `busy` with the slot in hand.
        drop(held);
        Ok(Lease {
            engine,
            wall: USUAL,
            worker: self.settings.sha256,
            slot: slot.clone(),
            released: self.released.clone(),
            _stake: stake,
            end: None,
        })
    }

    /// Nothing is loaded whose bytes are not those its entry promises.
    async fn check(&self, parts: &Parts) -> Result<(), LoadError> {
        for digest in parts.files() {
            let blobs = self.blobs.clone();
            let error = match blocking(move || blobs.check(&digest)).await {
                Ok(()) => continue,
                Err(BlobError::Absent(_)) => LoadError::NoBlob(digest),
                Err(BlobError::Digest { .. }) => LoadError::Damaged(digest),
                Err(error) => return Err(LoadError::Disk(error.to_string())),
            };
            lock(&self.unusable).insert(*parts);
            return Err(error);
        }
        Ok(())
    }

    /// Which models have a name here, and which contexts are wished for them. Workers of others end when they are idle.
    pub fn know(&self, named: BTreeMap<Parts, String>, wished: BTreeMap<Parts, u32>) {
        *lock(&self.known) = named;
        *lock(&self.wished) = wished;
    }

    fn engine_of(&self, parts: &Parts) -> Option<Engine> {
        let slot = lock(&self.models).get(parts).cloned()?;
        let engine = lock(&slot.seen).engine.clone();
        engine.filter(Engine::is_alive)
    }

    /// The context of the model's worker, if it is loaded: it may be smaller than usual.
    pub fn loaded_context(&self, parts: &Parts) -> Option<u32> {
        self.engine_of(parts).map(|engine| engine.facts().n_ctx)
    }

    /// The loads under way.
    pub fn loading(&self) -> Vec<(Parts, Loading)> {
        let loading = |(parts, slot): (Parts, Arc<Slot>)| {
            let loading = lock(&slot.seen).loading?;
            Some((parts, loading))
        };
        self.slots().into_iter().filter_map(loading).collect()
    }

    /// The context a worker of this model is given: the owner's choice, or the default and more if a model made from
    /// them wishes it; and never more than the model was trained for (0 = it does not say), past which its answers are
    /// noise.
    pub fn context_of(&self, parts: &Parts, trained: u32) -> u32 {
        let wished = lock(&self.wished).get(parts).copied().unwrap_or(0);
        let default = DEFAULT_CONTEXT.max(wished);
        let wanted = self.settings.context.unwrap_or(default);
        if trained == 0 {
            wanted
        } else {
            wanted.min(trained)
        }
    }

    /// Whether a file of it was missing or damaged when it was last wanted.
    pub fn is_unusable(&self, parts: &Parts) -> bool {
        lock(&self.unusable).contains(parts)
    }

    /// The blobs on disk changed: what was unusable may be whole again.
    pub fn look_again(&self) {
        lock(&self.unusable).clear();
    }

    /// The wall of a worker for the model in this file.
    fn spec(&self, model: PathBuf) -> Result<WallSpec, NoWall> {
        self.settings.wall.clone()?;
        Ok(WallSpec {
            memory_limit: self.settings.memory_limit,
            expected_worker_sha256: Some(*self.settings.sha256.as_bytes()),
            ..WallSpec::new(self.settings.binary.clone(), model)
        })
    }

    /// Whether a live worker holds the model.
    pub fn is_loaded(&self, parts: &Parts) -> bool {
        self.engine_of(parts).is_some()
    }

    /// Sets how long the model's worker stays when idle: `Some(0)` ends it now, `None` = for ever.
    /// Returns whether it was loaded; if it was not, the next worker of the model has nothing to do with it.
    pub async fn keep_alive(&self, parts: &Parts, stay: Option<Duration>) -> bool {
        let Some(slot) = lock(&self.models).get(parts).cloned() else {
            return false;
        };
        let loaded = {
            let mut seen = lock(&slot.seen);
            let loaded = seen.engine.as_ref().is_some_and(Engine::is_alive);
            if loaded {
                seen.keep_alive = Some(stay);
            }
            loaded
        };
        self.expire().await;
        loaded
    }

    /// Ends workers that were idle for their keep-alive or have no name any more, and forgets dead ones.
    pub async fn expire(&self) {
        let slots = lock(&self.models).clone();
        for (parts, slot) in slots {
            let Ok(mut held) = slot.engine.try_lock() else {
                continue;
            };
            let named = lock(&self.known).contains_key(&parts);
            if slot.is_over(self.settings.keep_alive, named) {
                *held = None;
                lock(&slot.seen).forget();
            }
        }
    }

    /// Gives the engines as many threads as there are cores that nobody else uses. Called once a second.
    pub fn fit_threads(&self) {
        let engines: Vec<Engine> = self
            .loaded()
            .into_iter()
            .map(|loaded| loaded.engine)
            .collect();
        let pids: Vec<u32> = engines.iter().map(Engine::pid).collect();
        let Some(threads) = lock(&self.free).look(&pids) else {
            return;
        };
        tracing::debug!(threads, "threads of the engine");
        for engine in engines {
            engine.use_threads(threads);
        }
    }

    /// Gives the engines at most so many threads from now on; `None` = as many as there are cores.
    pub fn use_cores(&self, most: Option<u32>) {
        let most = most.unwrap_or(self.settings.cores);
        let lowered = lock(&self.free).limit(most);
        let Some(threads) = lowered else { return };
        tracing::debug!(threads, "threads of the engine");
        for loaded in self.loaded() {
            loaded.engine.use_threads(threads);
        }
    }

    /// Ends every worker.
    pub async fn clear(&self) {
        let slots = std::mem::take(&mut *lock(&self.models));
        for slot in slots.into_values() {
            *slot.engine.lock().await = None;
            lock(&slot.seen).forget();
        }
        self.alone.clear();
    }

    /// Every place that has or gets a worker: the shared ones, then those of one job each.
    fn slots(&self) -> Vec<(Parts, Arc<Slot>)> {
        let models = lock(&self.models).clone();
        models.into_iter().chain(self.alone.slots()).collect()
    }

    /// The workers alive now.
    pub fn loaded(&self) -> Vec<Loaded> {
        let stay = self.settings.keep_alive;
        let slots = self.slots().into_iter();
        slots
            .filter_map(|(parts, slot)| slot.listed(parts, stay))
            .collect()
    }
}

impl Slot {
    fn is_over(&self, default: Option<Duration>, named: bool) -> bool {
        let seen = lock(&self.seen);
        let Some(engine) = &seen.engine else {
            return false;
        };
        let idle = seen
            .last_used
            .filter(|_| seen.busy == 0)
            .map(|at| at.elapsed());
        let over = match (seen.keep_alive.unwrap_or(default), idle) {
            (_, Some(_)) if !named => true,
            (Some(stay), Some(idle)) => idle >= stay,
            _ => false,
        };
        over || !engine.is_alive()
    }

    fn listed(&self, parts: Parts, default: Option<Duration>) -> Option<Loaded> {
        let seen = lock(&self.seen).clone();
        let engine = seen.engine.filter(Engine::is_alive)?;
        let stay = seen.keep_alive.unwrap_or(default);
        let left = stay.map(|stay| {
            stay.saturating_sub(seen.last_used.map_or(Duration::ZERO, |at| at.elapsed()))
        });
        let expires_ms = left.map(|left| {
            unix_ms().saturating_add(u64::try_from(left.as_millis()).unwrap_or(u64::MAX))
        });
        Some(Loaded {
            parts,
            engine,
            busy: seen.busy,
            expires_ms: expires_ms.filter(|_| !seen.alone),
            alone: seen.alone,
            wall: seen.wall.unwrap_or(USUAL),
        })
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // Before anybody is told that there is room.
        drop(self.end.take());
        let mut seen = lock(&self.slot.seen);
        seen.busy -= 1;
        seen.last_used = Some(Instant::now());
        drop(seen);
        self.released.notify_one();
    }
}

/// Nothing panics while holding these locks, so a poisoned one still guards whole state.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}
