//! The daemon: one process per home, which answers its owner, lends what its owner lends, and holds no more
//! than the expendable device key.
//!
//! Reading order: [`life`] (the loop), `perform` (actions), `calls` (the door), `world` (the mesh),
//! [`session`] (job streams), [`engine`] and [`pool`] (workers), [`start`] (what a life is made of).
//!
//! Invariant: what a stranger sends is parsed here only as far as frames, canonical CBOR and signatures.
//! Weights, templates, prompts and grammars are parsed inside the wall.

mod actions;
mod calls;
mod context;
mod drain;
pub mod engine;
mod exchange;
mod joining;
pub mod life;
mod perform;
pub mod pool;
mod publish;
mod road;
pub mod session;
mod settings;
mod shelf;
mod threads;
pub mod start;
#[cfg(test)]
mod testing;
mod topup;
mod unlisted;
mod views;
mod world;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::blobs::Blobs;
use crate::config::Config;
use crate::door::Door;
use crate::grpc;
use crate::grpc::desk::Desk;
use crate::home::{DaemonLock, Home};
use crate::http::{self, ApiKey, ApiKeys, HttpState, ListenerPolicy};
use crate::keys::DeviceKey;
use crate::models::import::Inspect;
use crate::store::Store;

pub use start::worker_path;

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
    /// Address of the HTTP listener, instead of the settings'.
    pub api: Option<SocketAddr>,
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

/// Runs until told to stop. Moves to another network, when its owner joins one, without letting go of its listeners.
///
/// # Errors
/// Why it could not start: another daemon holds the home, a port is taken, settings are wrong.
pub async fn run(options: DaemonOptions) -> anyhow::Result<()> {
    refuse_root()?;
    let home = options.home.clone();
    home.prepare()?;
    let _lock = DaemonLock::take(&home)?;
    let config = Config::load(&home)?;
    let mut opened = Opened::open(&home, &config)?;
    let (door, mut calls) = Door::new();
    let stop = CancellationToken::new();
    let (desks, desk) = watch::channel(Arc::new(opened.desk(&home)?));
    let listeners = listeners(&options, &config, &opened.keys).await?;
    opened.api = listeners.iter().map(|(_, bound)| *bound).collect();
    let socket = grpc::bind(&home.socket()?).await?;
    let keys = opened.keys.clone();
    let mut served = tokio::task::JoinSet::new();
    for listener in listeners {
        served.spawn(http::serve(
            listener.0,
            http_state(&door, &keys, &config, listener.1, desk.clone()),
            stop.clone(),
        ));
    }
    let stopped = stop.clone().cancelled_owned();
    served.spawn(async move {
        if let Err(error) = grpc::serve(socket, door, desk, stopped).await {
            tracing::error!(%error, "the owner's socket failed");
        }
    });
    watch_signals(stop.clone());
    let mut life = start::life(
        &options,
        &opened,
        desks.borrow().clone(),
        stop.child_token(),
    )
    .await?;
    loop {
        let (ending, inbox) = life.run(calls).await;
        let Ending::Moved(arrival) = ending else {
            break;
        };
        calls = inbox;
        let desk = Arc::new(opened.desk(&home)?);
        desks.send_replace(desk.clone());
        life = start_again(&options, &opened, &desk, &stop).await?;
        // An asker that went away sees the network by itself.
        let _ = arrival.reply.send(Ok(arrival.network));
    }
    stop.cancel();
    while served.join_next().await.is_some() {}
    Ok(())
}

/// Starts the next life on the ports of the last. The system may take a moment to give them back.
async fn start_again(
    options: &DaemonOptions,
    opened: &Opened,
    desk: &Arc<Desk>,
    stop: &CancellationToken,
) -> anyhow::Result<start::Ready> {
    let deadline = Instant::now() + REBIND_DEADLINE;
    loop {
        match start::life(options, opened, desk.clone(), stop.child_token()).await {
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
fn refuse_root() -> anyhow::Result<()> {
    if rustix::process::geteuid().is_root() {
        bail!(
            "the daemon does not run as root: a worker behind its wall must be nobody to this machine\nhint: run it as an ordinary user, for example `sudo -u nobody env SUBSTRATE_HOME=/var/lib/substrate substrate serve`"
        );
    }
    Ok(())
}

async fn listeners(
    options: &DaemonOptions,
    config: &Config,
    keys: &ApiKeys,
) -> anyhow::Result<Vec<(TcpListener, SocketAddr)>> {
    let addrs = options
        .api
        .map_or_else(|| config.api.listen.clone(), |api| vec![api]);
    let mut listeners = Vec::with_capacity(addrs.len());
    for addr in addrs {
        ListenerPolicy::check(addr, keys)?;
        let listener = TcpListener::bind(addr).await.with_context(|| {
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

fn http_state(
    door: &Door,
    keys: &ApiKeys,
    config: &Config,
    bound: SocketAddr,
    desk: watch::Receiver<Arc<Desk>>,
) -> HttpState {
    HttpState {
        door: door.clone(),
        keys: keys.clone(),
        policy: ListenerPolicy {
            bound,
            keyless: config.api.default_scope.into(),
            names: Arc::from(Vec::new()),
            origins: config.api.origins.clone().into(),
        },
        models: Arc::new(actions::DeskActions::new(door.clone(), desk)),
    }
}

fn watch_signals(stop: CancellationToken) {
    tokio::spawn(async move {
        let mut terminate =
            match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
                Ok(terminate) => terminate,
                Err(error) => {
                    tracing::error!(%error, "no handler for SIGTERM");
                    return;
                }
            };
        tokio::select! {
            _ = tokio::signal::ctrl_c() => {}
            _ = terminate.recv() => {}
        }
        tracing::info!("stopping: running answers finish or are handed over");
        stop.cancel();
    });
}
