//! How workers are made on this machine, and which wall stands around them.

use std::path::PathBuf;
use std::time::Duration;

use substrate_record::{ContentHash, WallTier};
use substrate_sandbox::launch::probe;
use substrate_sandbox::wire::KvType;

/// How workers are made on this machine.
#[derive(Debug, Clone)]
pub struct WorkerSettings {
    /// The static worker binary.
    pub binary: PathBuf,
    /// Its SHA-256; another binary is refused.
    pub sha256: ContentHash,
    /// The wall workers are started behind, tried when the daemon started; or why there is none.
    pub wall: Result<WallTier, NoWall>,
    /// What computes, as its class names it.
    pub engine_class: String,
    /// Cores of the machine.
    pub cores: u32,
    /// Threads for the engine at most at the start, for the owner's own jobs too; [`Pool::use_cores`](super::Pool::use_cores)
    /// changes it.
    pub threads: u32,
    /// Threads for the engine always, if the owner said so.
    pub fixed_threads: Option<u32>,
    /// Context in tokens the owner set.
    pub context: Option<u32>,
    /// Answers a model gives at the same time.
    pub slots: u32,
    /// Bytes a worker may map.
    pub memory_limit: u64,
    /// What one model may take, if the owner said so.
    pub owner_limit: Option<u64>,
    /// How long a load may take.
    pub load_timeout: Duration,
    /// How long an idle worker stays; `None` = for ever.
    pub keep_alive: Option<Duration>,
    /// Models in memory at the same time.
    pub max_loaded: u32,
    /// How the numbers of the cache are kept.
    pub kv: KvType,
    /// Whether attention may be fused.
    pub flash_attention: bool,
    /// Whether each answer may have the cells of a whole context to itself; `None` = if they take a small part of what is free.
    pub own_cells: Option<bool>,
    /// Whether an answer that runs alone guesses its next tokens.
    pub prompt_lookup: bool,
}

impl WorkerSettings {
    /// Whether the engine computes on graphics processors: its class names what it was built for.
    pub fn uses_gpus(&self) -> bool {
        backend(&self.engine_class) != CPU
    }
}

/// What an engine that computes on no graphics processor was built for.
const CPU: &str = "cpu";

fn backend(engine_class: &str) -> &str {
    engine_class.split('/').nth(2).unwrap_or(CPU)
}

/// The wall for workers of this class on this machine, tried now: a child is sent through every layer.
///
/// # Errors
/// There is none, for that reason.
pub fn try_wall(engine_class: &str) -> Result<WallTier, NoWall> {
    let backend = backend(engine_class);
    if backend != CPU {
        return Err(NoWall::Gpu(backend.to_owned()));
    }
    let report = probe(None);
    match report.offers_process() {
        true => Ok(WallTier::Process),
        false => Err(NoWall::Missing(report.whole.to_string())),
    }
}

/// Why no worker runs on this machine: none runs without a wall.
#[derive(Debug, Clone, thiserror::Error)]
pub enum NoWall {
    /// A worker that opens a graphics processor's driver cannot live behind the wall there is.
    #[error(
        "the worker installed here computes on {0}, and there is no wall for graphics processors yet (docs/gpu.md): install the worker built without"
    )]
    Gpu(String),
    /// The wall was tried, and does not stand on this machine.
    #[error("no wall stands on this machine: {0}")]
    Missing(String),
}
