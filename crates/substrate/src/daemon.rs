//! The daemon: one process per home, which answers its owner, lends what its owner lends, and holds no more
//! than the expendable device key.
//!
//! Reading order: [`life`] (the loop), `perform` (actions), `calls` and `stock` (the door), `world` (the mesh),
//! [`session`] (job streams), [`engine`] and [`pool`] (workers), [`start`] (what a life is made of).
//!
//! Invariant: what a stranger sends is parsed here only as far as frames, canonical CBOR and signatures.
//! Weights, templates, prompts and grammars are parsed inside the wall.

mod actions;
mod calls;
mod context;
mod defaults;
mod drain;
pub mod engine;
mod exchange;
mod joining;
mod lending;
pub mod life;
mod making;
mod owner;
mod perform;
pub mod pool;
mod publish;
mod road;
pub mod root;
pub mod session;
mod settings;
mod shelf;
pub mod start;
mod stock;
#[cfg(test)]
mod testing;
mod threads;
mod ticks;
mod topup;
mod unlisted;
mod views;
mod world;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::batches::Batches;
use crate::blobs::Blobs;
use crate::config::Config;
use crate::door::Door;
use crate::grpc;
use crate::grpc::desk::Desk;
use crate::home::{DaemonLock, Home};
use crate::http::{self, ApiKey, ApiKeys, HttpState, ListenerPolicy};
use crate::kept::KeptFiles;
use crate::keys::DeviceKey;
use crate::models::import::Inspect;
use crate::store::Store;

use life::Ending;

/// How long the mesh may take to get its ports back from the network it just left.
const REBIND_DEADLINE: Duration = Duration::from_secs(5);
/// Between two tries.
const REBIND_PAUSE: Duration = Duration::from_millis(50);

/// How a daemon is started; what is absent comes from the settings file.
#[derive(Debug, Clone)]
pub struct DaemonOptions {
    /// Keys, store, blobs and settings.
    pub home: Home,
    /// Multiaddresses to listen on, instead of the settings'.
    pub listen: Vec<String>,
    /// Peers to dial, besides the settings'.
    pub peers: Vec<String>,
    /// Addresses of the HTTP listeners, instead of the settings'.
    pub api: Vec<SocketAddr>,
}

/// A reader of model headers behind the wall, for imports without a daemon.
///
/// # Errors
/// There is no worker to be found, or it is not the one this build trusts.
pub fn inspector(home: &Home) -> anyhow::Result<Arc<dyn Inspect>> {
    let config = Config::load(home)?;
    let pool = start::pool(home, &config, Blobs::open(&home.blobs())?)?;
    Ok(Arc::new(pool::WalledInspector::new(pool)))
}

/// Runs until told to stop, and then as long as what runs takes to finish or to be handed over. Told a second time
/// it ends at once.
///
/// # Errors
/// Why it could not start: another daemon holds the home, a port is taken, settings are wrong.
pub async fn run(options: DaemonOptions) -> anyhow::Result<()> {
    refuse_root()?;
    stay_out_of_cores()?;
    // Before anything is started: whatever runs beside this process in its cgroup stands in the way.
    tracing::info!(hard_limits = %substrate_sandbox::launch::set_hard_limits());
    let home = options.home.clone();
    home.prepare()?;
    let _lock = DaemonLock::take(&home)?;
    let (drain, at_once) = (CancellationToken::new(), CancellationToken::new());
    watch_signals(drain.clone(), at_once.clone());
    tokio::select! {
        biased;
        // The store is whole at every moment, and peers and clients notice by themselves.
        () = at_once.cancelled() => Ok(()),
        outcome = serve(options, home, drain) => outcome,
    }
}

/// Opens everything, and lives in one network after the other without letting go of its listeners, until `drain`.
async fn serve(options: DaemonOptions, home: Home, drain: CancellationToken) -> anyhow::Result<()> {
    let config = Config::load(&home)?;
    let mut opened = Opened::open(&home, &config)?;
    let (place, settings) = (home.clone(), config.clone());
    let machines = context::blocking(move || start::machines(&place, &settings)).await;
    if let Err(why) = &machines {
        tracing::info!(%why, "no virtual machines");
    }
    opened.pool = opened.pool.with_machines(machines);
    let (door, mut calls) = Door::new();
    // The listeners' own end: they answer, if only to refuse, until the last life has drained.
    let stop = CancellationToken::new();
    let (desks, desk) = watch::channel(Arc::new(opened.desk(&home)?));
    let listeners = listeners(&options, &config, &opened.keys)?;
    opened.api = listeners.iter().map(|(_, bound)| *bound).collect();
    let socket = grpc::bind(&home.socket()?).await?;
    let keys = opened.keys.clone();
    let batches = batches(&home, &door, &config, &keys, desk.clone(), stop.clone())?;
    let mut served = tokio::task::JoinSet::new();
    for listener in listeners {
        served.spawn(http::serve(
            listener.0,
            HttpState {
                door: door.clone(),
                keys: keys.clone(),
                policy: policy(&config, listener.1),
                models: Arc::new(actions::DeskActions::new(door.clone(), desk.clone())),
                batches: batches.clone(),
            },
            stop.clone(),
        ));
    }
    let (stopped, owners) = (stop.clone().cancelled_owned(), Some(batches.clone()));
    served.spawn(async move {
        if let Err(error) = grpc::serve(socket, door, desk, owners, stopped).await {
            tracing::error!(%error, "the owner's socket failed");
        }
    });
    let mut life = start::life(
        &options,
        &opened,
        desks.borrow().clone(),
        drain.child_token(),
    )
    .await?;
    batches.resume();
    loop {
        let (ending, inbox) = life.run(calls).await;
        let Ending::Moved(arrival) = ending else {
            break;
        };
        calls = inbox;
        let desk = Arc::new(opened.desk(&home)?);
        desks.send_replace(desk.clone());
        life = start_again(&options, &opened, &desk, &drain).await?;
        // An asker that went away sees the network by itself.
        let _ = arrival.reply.send(Ok(arrival.joined));
    }
    stop.cancel();
    while served.join_next().await.is_some() {}
    batches.ended().await;
    Ok(())
}

/// Starts the next life on the ports of the last. The system may take a moment to give them back.
async fn start_again(
    options: &DaemonOptions,
    opened: &Opened,
    desk: &Arc<Desk>,
    drain: &CancellationToken,
) -> anyhow::Result<start::Ready> {
    let deadline = Instant::now() + REBIND_DEADLINE;
    loop {
        match start::life(options, opened, desk.clone(), drain.child_token()).await {
            Err(error) if Instant::now() < deadline => {
                tracing::debug!(%error, "the mesh does not start yet")
            }
            started => return started,
        }
        tokio::time::sleep(REBIND_PAUSE).await;
    }
}

/// What stays open when the network changes.
pub struct Opened {
    store: Store,
    blobs: Blobs,
    device: Arc<DeviceKey>,
    pool: pool::Pool,
    api: Vec<SocketAddr>,
    keys: ApiKeys,
    started: Instant,
}

impl Opened {
    fn open(home: &Home, config: &Config) -> anyhow::Result<Self> {
        let device = Arc::new(DeviceKey::open_or_create(home)?);
        let store = Store::open(&home.store())?;
        let blobs = Blobs::open(&home.blobs())?;
        let pool = start::pool(home, config, blobs.clone())?;
        Ok(Self {
            store,
            blobs,
            device,
            pool,
            api: Vec::new(),
            keys: ApiKeys::new(http_keys(config)),
            started: Instant::now(),
        })
    }

    fn desk(&self, home: &Home) -> anyhow::Result<Desk> {
        let inspect = Arc::new(pool::WalledInspector::new(self.pool.clone()));
        Desk::new(
            home.clone(),
            self.store.clone(),
            self.blobs.clone(),
            self.device.clone(),
            inspect,
        )
    }
}

/// A worker's wall maps it to the daemon's own user, which must not be root.
///
/// # Errors
/// This process is root.
pub fn refuse_root() -> anyhow::Result<()> {
    if root::is_root() {
        bail!(
            "the daemon does not run as root: a worker behind its wall must be nobody to this machine\nhint: run it as an ordinary user, or name one that it shall become: `substrate --home DIR serve --user NAME`"
        );
    }
    Ok(())
}

/// No memory of this process, and of none it starts, is written to a core or shown to another process of the same user:
/// it holds keys, and the prompts of others pass through it. The limit alone would not do: where cores are piped to a
/// program (`core_pattern` with `|`), the kernel does not ask it.
fn stay_out_of_cores() -> anyhow::Result<()> {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    setrlimit(Resource::Core, none).context("cannot switch core dumps off")?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .context("cannot keep this process out of cores")
}

fn listeners(
    options: &DaemonOptions,
    config: &Config,
    keys: &ApiKeys,
) -> anyhow::Result<Vec<(TcpListener, SocketAddr)>> {
    let addrs = if options.api.is_empty() {
        &config.api.listen
    } else {
        &options.api
    };
    let mut listeners = Vec::with_capacity(addrs.len());
    for addr in addrs.iter().copied() {
        ListenerPolicy::check(addr, keys)?;
        let listener = http::listen(addr).with_context(|| {
            format!("cannot listen on {addr}\nhint: another program uses the port; choose one with `--api 127.0.0.1:PORT`")
        })?;
        let bound = listener.local_addr()?;
        listeners.push((listener, bound));
    }
    Ok(listeners)
}

/// The settings' API keys as the listeners take them.
fn http_keys(config: &Config) -> Vec<ApiKey> {
    let keys = config.api.keys.iter().map(|key| ApiKey {
        name: key.name.clone(),
        sha256: key.sha256,
        scope: key.scope.into(),
        admin: key.admin,
        per_minute: key.per_minute,
        concurrent: key.concurrent,
    });
    keys.collect()
}

/// What clients keep here, and what is asked in it. Nothing runs yet.
fn batches(
    home: &Home,
    door: &Door,
    config: &Config,
    keys: &ApiKeys,
    desk: watch::Receiver<Arc<Desk>>,
    halt: CancellationToken,
) -> anyhow::Result<Batches> {
    let models = Arc::new(actions::DeskActions::new(door.clone(), desk));
    let keyless = config.api.default_scope.into();
    let asker = http::lines(door.clone(), keys.clone(), keyless, models);
    let kept = KeptFiles::open(&home.kept_files()).context("cannot open the files of clients")?;
    Batches::open(&home.batches(), kept, asker, halt).context("cannot open the batches")
}

/// What the settings let a listener answer to.
fn policy(config: &Config, bound: SocketAddr) -> ListenerPolicy {
    ListenerPolicy {
        bound,
        keyless: config.api.default_scope.into(),
        names: config.api.names.clone().into(),
        origins: config.api.origins.clone().into(),
    }
}

/// The first signal drains, the second ends at once.
fn watch_signals(drain: CancellationToken, at_once: CancellationToken) {
    use tokio::signal::unix::{SignalKind, signal};
    tokio::spawn(async move {
        let (mut terminate, mut interrupt) = match (
            signal(SignalKind::terminate()),
            signal(SignalKind::interrupt()),
        ) {
            (Ok(terminate), Ok(interrupt)) => (terminate, interrupt),
            (Err(error), _) | (_, Err(error)) => {
                tracing::error!(%error, "no handler for SIGTERM and SIGINT");
                return;
            }
        };
        for (told, token) in [
            (
                "stopping: running answers finish or are handed over; a second signal ends at once",
                drain,
            ),
            ("stopping at once: running answers are cut off", at_once),
        ] {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            tracing::info!("{told}");
            token.cancel();
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_answers_to_the_names_of_the_settings() {
        let text = "[api]\nnames = ['box.lan']\norigins = ['https://chat.example']\n";
        let config = Config::parse(text, std::path::Path::new("config.toml")).unwrap();
        let policy = policy(&config, SocketAddr::from(([127, 0, 0, 1], 11535)));
        assert_eq!(*policy.names, ["box.lan"]);
        assert_eq!(*policy.origins, ["https://chat.example"]);
    }
}
