//! What one life of the daemon is made of: workers, mesh, node, and the channels between them.

use std::num::NonZeroU32;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use substrate_mesh::{Discovery, Limits, MeshConfig};
use substrate_node::limits::OWN_LIST;
use substrate_node::{Config as NodeConfig, Node};
use substrate_record::{NetworkId, SessionNonce};
use substrate_sandbox::microvm::Trust;
use substrate_sandbox::wire::KvType;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::context::{Context, draw};
use super::life::{Ending, Inboxes, Life, report_channel};
use super::owner::Owner;
use super::pool::{MachineSettings, Machines, NoMachines, Pool, Whose, WorkerSettings, try_wall};
use super::publish::Publisher;
use super::settings::Settings;
use super::shelf::Shelf;
use super::{DaemonOptions, Opened};
use crate::blobs::Blobs;
use crate::config::{Config, KeepAlive, MicrovmUse};
use crate::door::Call;
use crate::grpc::desk::{Desk, now_ms};
use crate::hardware;
use crate::home::Home;
use crate::installed::{self, Worker};
use crate::pause::Pause;

/// Answers a model gives at the same time, unless the owner says otherwise.
///
/// On two cores eight gave the most tokens per second in all (docs/benchmarks.md); a GPU gains from more.
const DEFAULT_PARALLEL: u32 = 8;

/// The most an owner can ask for: the lanes a worker has beside those of kept prefixes.
const MOST_PARALLEL: u32 = 128;

/// Models in memory at the same time, unless the owner says otherwise: Ollama's three for each device that computes.
const DEFAULT_LOADED: u32 = 3;

/// Notes of the loop's own tasks that may wait: one per task that can be under way at once.
const NOTES: usize = 64;

/// A life that is ready to run.
pub struct Ready {
    life: Life,
    mesh: mpsc::Receiver<substrate_mesh::MeshEvent>,
    reports: mpsc::Receiver<super::session::Report>,
    notes: mpsc::Receiver<super::life::Note>,
}

impl Ready {
    /// The life itself, for tests that need no loop.
    #[cfg(test)]
    pub(super) fn life(&mut self) -> &mut Life {
        &mut self.life
    }

    /// Runs it; gives the inbox of calls back at the end.
    pub async fn run(self, calls: mpsc::Receiver<Call>) -> (Ending, mpsc::Receiver<Call>) {
        let inboxes = Inboxes {
            calls,
            mesh: self.mesh,
            reports: self.reports,
            notes: self.notes,
        };
        self.life.run(inboxes).await
    }
}

/// The workers of this machine.
///
/// # Errors
/// There is no worker beside this program, or it is not the one in the install manifest.
pub fn pool(home: &Home, config: &Config, blobs: Blobs) -> anyhow::Result<Pool> {
    let Worker {
        path: binary,
        sha256,
    } = installed::worker()?;
    let cores = std::thread::available_parallelism()
        .map_or(1, |cores| u32::try_from(cores.get()).unwrap_or(u32::MAX));
    let memory = hardware::detect(home.blobs().as_path()).memory;
    let kv = KvType::from(config.models.kv_cache_type);
    let flash_attention = config.models.flash_attention.unwrap_or(true);
    let engine_class = engine_class(&binary)? + &class_of_cache(kv, flash_attention);
    let settings = WorkerSettings {
        sha256,
        wall: try_wall(&engine_class),
        engine_class,
        binary,
        cores,
        threads: config.lending.cores.unwrap_or(cores).clamp(1, cores),
        fixed_threads: config
            .models
            .threads
            .map(|threads| threads.get().min(cores)),
        context: config.models.context,
        slots: config
            .models
            .parallel
            .map_or(DEFAULT_PARALLEL, |slots| slots.get().min(MOST_PARALLEL)),
        memory_limit: config.lending.memory.map_or(memory, |limit| limit.0),
        owner_limit: config.lending.memory.map(|limit| limit.0),
        max_loaded: config
            .models
            .max_loaded
            .map_or(DEFAULT_LOADED, NonZeroU32::get),
        kv,
        flash_attention,
        own_cells: config.models.own_cells,
        prompt_lookup: config.models.prompt_lookup.unwrap_or(true),
        load_timeout: config.models.load_timeout.0,
        keep_alive: match config.models.keep_alive {
            KeepAlive::After(stay) => Some(stay),
            KeepAlive::Forever => None,
        },
    };
    Ok(Pool::new(settings, blobs))
}

/// Virtual machines as a wall, if the owner's settings and this machine have them. Blocks while one boots.
///
/// # Errors
/// Why there are none.
pub fn machines(home: &Home, config: &Config) -> Result<Machines, NoMachines> {
    if config.walls.microvm == MicrovmUse::Off {
        return Err(NoMachines("walls.microvm is \"off\"".to_owned()));
    }
    let (image, name) = installed::guest_image().map_err(|error| NoMachines(error.to_string()))?;
    let trust = match (config.walls.image_key, name) {
        (Some(key), _) => Trust::Key(key),
        (None, Some(name)) => Trust::Name(*name.as_bytes()),
        (None, None) => {
            return Err(NoMachines(
                "no guest image was installed (from a checkout, `cargo xtask image` builds it)"
                    .to_owned(),
            ));
        }
    };
    Machines::try_out(MachineSettings {
        image,
        trust,
        folder: home.machines(),
        emulated: config.walls.microvm == MicrovmUse::Emulated,
    })
}

/// The engine's class, PROTOCOL.md 2, as the worker tells it: `llama.cpp/<rev>/<backend>/<x86-64 level>`.
fn engine_class(worker: &Path) -> anyhow::Result<String> {
    let told = std::process::Command::new(worker)
        .arg("--version")
        .env_clear()
        .output();
    let told = told.with_context(|| format!("cannot run {}", worker.display()))?;
    parse_engine_class(&String::from_utf8_lossy(&told.stdout))
        .with_context(|| format!("{} --version does not tell its engine", worker.display()))
}

/// What the owner's settings change in the engine's numbers, and so in its class (PROTOCOL.md 2); nothing by default.
fn class_of_cache(kv: KvType, flash_attention: bool) -> String {
    let kv = match kv {
        KvType::F16 => String::new(),
        kv => format!("/kv-{}", kv.name()),
    };
    let attention = if flash_attention {
        ""
    } else {
        "/plain-attention"
    };
    kv + attention
}

/// From `substrate-worker 0.1.0 (llama.cpp REV, BACKEND)`.
fn parse_engine_class(told: &str) -> Option<String> {
    let (_, engine) = told.split_once("(llama.cpp ")?;
    let (revision, backend) = engine.split_once(')')?.0.split_once(", ")?;
    Some(format!("llama.cpp/{revision}/{backend}"))
}

/// How this device shows itself to a mesh.
pub fn identity(desk: &Desk, listen: Vec<String>, peers: Vec<String>) -> MeshConfig {
    let body = desk.genesis.body();
    MeshConfig {
        seed: *desk.device.seed(),
        network: desk.network(),
        rules_hash: Some(body.rules_hash),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        build: crate::BUILD.to_owned(),
        session: SessionNonce::from_bytes(draw()),
        listen,
        static_peers: peers,
        discovery: Discovery {
            mdns: false,
            kad: false,
        },
        known_peers: Vec::new(),
        allow_join: crate::invite::is_open(&desk.store, &desk.network(), now_ms()).unwrap_or(false),
        limits: Limits::default(),
    }
}

/// Starts the mesh of the desk's network and puts a life together.
///
/// # Errors
/// The mesh cannot listen, or the store cannot be read.
pub(super) async fn life(
    options: &DaemonOptions,
    opened: &Opened,
    desk: Arc<Desk>,
    stop: CancellationToken,
) -> anyhow::Result<Ready> {
    let config = Config::load(&options.home)?;
    let mesh_config = mesh_config(options, &config, &desk)?;
    let session = mesh_config.session;
    let (mesh, mesh_events) = substrate_mesh::start(mesh_config).await?;
    let network = desk.network();
    let context = Arc::new(Context {
        me: desk.node(),
        network,
        desk: desk.clone(),
        pool: opened.pool.clone(),
        mesh,
        api: opened.api.clone(),
        keys: opened.keys.clone(),
        started: opened.started,
    });
    let circle: Vec<_> = desk.store.circle_members(&network)?.into_iter().collect();
    let shelf = Shelf::open(
        &desk.genesis,
        desk.catalogue.clone(),
        desk.records.entries()?,
        circle.iter().copied().chain([context.me]),
    )?;
    let hardware = hardware::detect(desk.home.blobs().as_path());
    let owner = Owner::new(context.now());
    let mut settings = Settings::new(config.clone(), circle, context.pool.settings().slots, owner);
    settings.set_pause(Pause::read(&desk.home));
    // The workers outlive a network, and so does what they were told.
    let withheld = context.pool.is_taken_from(Whose::Others);
    let publisher = Publisher::start(context.clone(), hardware)?;
    let (reports, report_inbox) = report_channel();
    let (notes, note_inbox) = mpsc::channel(NOTES);
    let mut life = Life {
        node: node(&context, session, &config),
        context,
        shelf,
        settings,
        senses: Some(Box::default()),
        withheld,
        jobs: Default::default(),
        requesters: Default::default(),
        providers: Default::default(),
        resumable: Default::default(),
        peers: Default::default(),
        gossip: Default::default(),
        unlisted: Default::default(),
        topping_up: Default::default(),
        joins: Default::default(),
        publisher,
        reports,
        tasks: TaskTracker::new(),
        wake: None,
        stop,
        ending: Ending::Stopped,
        stopping: false,
        warnings: Vec::new(),
        told_walls: opened.pool.walls(),
        told_models: Vec::new(),
        lost: Default::default(),
        measuring: false,
        notes,
    };
    if let Err(none) = &life.context.pool.settings().wall {
        life.warnings
            .push(format!("nothing is answered on this machine: {none}"));
    }
    if let (MicrovmUse::Emulated, Some(why)) =
        (config.walls.microvm, life.context.pool.no_machines())
    {
        life.warnings
            .push(format!("virtual machines are no wall here: {why}"));
    }
    life.refuse_unlent();
    Ok(Ready {
        life,
        mesh: mesh_events,
        reports: report_inbox,
        notes: note_inbox,
    })
}

fn node(context: &Context, session: SessionNonce, settings: &Config) -> Node {
    let config = NodeConfig {
        own: context.me,
        session,
        slots: context.pool.settings().slots,
        walls: context.pool.walls(),
        isolated: true,
        own_list: usize::try_from(settings.api.max_queue).unwrap_or(OWN_LIST),
    };
    Node::new(config, u64::from_be_bytes(draw()))
}

/// Peers of the command line, of the settings, and those met before.
fn mesh_config(
    options: &DaemonOptions,
    config: &Config,
    desk: &Desk,
) -> anyhow::Result<MeshConfig> {
    let listen = if options.listen.is_empty() {
        config.mesh.listen.clone()
    } else {
        options.listen.clone()
    };
    let mut peers = config.mesh.peers.clone();
    peers.extend(options.peers.iter().cloned());
    let discovery = Discovery {
        mdns: config.mesh.mdns,
        kad: config.mesh.kad,
    };
    let known_peers = known_addresses(desk, &desk.network())?;
    Ok(MeshConfig {
        discovery,
        known_peers,
        ..identity(desk, listen, peers)
    })
}

fn known_addresses(desk: &Desk, network: &NetworkId) -> anyhow::Result<Vec<String>> {
    /// Enough to find the rest through any one of them.
    const FIRST_DIALS: usize = 16;
    let mut known = desk.store.peers(network)?;
    known.sort_by_key(|(_, peer)| std::cmp::Reverse(peer.last_seen_ms));
    Ok(known
        .into_iter()
        .take(FIRST_DIALS)
        .flat_map(|(_, peer)| peer.addrs)
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_engine_class_is_what_the_worker_tells() {
        let told = "substrate-worker 0.1.0 (llama.cpp 0.6.0-dev+sys-0.1.161, cpu/x86-64-v3)\n";
        assert_eq!(
            parse_engine_class(told).as_deref(),
            Some("llama.cpp/0.6.0-dev+sys-0.1.161/cpu/x86-64-v3")
        );
        assert_eq!(parse_engine_class("something else"), None);
    }

    #[test]
    fn settings_that_change_the_numbers_are_in_the_class() {
        assert_eq!(class_of_cache(KvType::F16, true), "");
        assert_eq!(class_of_cache(KvType::Q8_0, true), "/kv-q8_0");
        assert_eq!(class_of_cache(KvType::Q4_0, true), "/kv-q4_0");
        assert_eq!(class_of_cache(KvType::F16, false), "/plain-attention");
    }
}
