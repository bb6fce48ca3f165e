//! A daemon's life in a test: a home in a temporary folder, a mesh on loopback, and no worker.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use substrate_record::{ContentHash, Genesis, Verified, WallTier};
use tokio_util::sync::CancellationToken;

use super::context::Context;
use super::pool::{Pool, WorkerSettings};
use super::{DaemonOptions, Opened, start};
use crate::blobs::Blobs;
use crate::door::Door;
use crate::home::Home;
use crate::http::ApiKeys;
use crate::keys::DeviceKey;
use crate::store::Store;

/// The engine every test's provider claims.
pub const ENGINE: &str = "llama.cpp/test/cpu/x86-64-v3";

/// How long a test waits for what must happen.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// One machine. Its folder goes with it.
pub struct Machine {
    _folder: tempfile::TempDir,
    pub device: Arc<DeviceKey>,
    pub store: Store,
    options: DaemonOptions,
}

impl Machine {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let home = Home::at(folder.path().join("home"));
        home.prepare().expect("a home");
        std::fs::write(home.config_file(), "[mesh]\nmdns = false\nkad = false\n")
            .expect("settings");
        let device = Arc::new(DeviceKey::open_or_create(&home).expect("a key"));
        let store = Store::open(&home.store()).expect("a store");
        let options = DaemonOptions {
            home,
            listen: vec!["/ip4/127.0.0.1/tcp/0".to_owned()],
            peers: Vec::new(),
            api: Vec::new(),
        };
        Self {
            _folder: folder,
            device,
            store,
            options,
        }
    }

    /// Puts the machine into a network.
    pub fn enter(&self, genesis: &Verified<Genesis>) {
        self.store.add_network(genesis).expect("stored");
        self.store
            .set_current_network(&genesis.network())
            .expect("stored");
    }

    /// A life that does not run yet.
    pub async fn life(&self, peers: Vec<String>) -> (start::Ready, Arc<Context>) {
        let blobs = Blobs::open(&self.options.home.blobs()).expect("blobs");
        let opened = Opened {
            store: self.store.clone(),
            blobs: blobs.clone(),
            device: self.device.clone(),
            pool: Pool::new(no_worker(), blobs),
            api: Vec::new(),
            keys: ApiKeys::new(Vec::new()),
            started: Instant::now(),
        };
        let desk = Arc::new(opened.desk(&self.options.home).expect("a desk"));
        let options = DaemonOptions {
            peers,
            ..self.options.clone()
        };
        let mut ready = start::life(&options, &opened, desk, CancellationToken::new())
            .await
            .expect("a life");
        let context = ready.life().context.clone();
        (ready, context)
    }

    /// A life that runs until the test ends.
    pub async fn run(&self, peers: Vec<String>) -> (Door, Arc<Context>) {
        let (ready, context) = self.life(peers).await;
        let (door, calls) = Door::new();
        tokio::spawn(ready.run(calls));
        (door, context)
    }
}

/// Settings of a machine whose worker cannot be started.
pub fn no_worker() -> WorkerSettings {
    WorkerSettings {
        binary: PathBuf::from("/nonexistent/substrate-worker"),
        sha256: ContentHash::of(b"worker"),
        wall: Ok(WallTier::Process),
        engine_class: ENGINE.to_owned(),
        cores: 1,
        threads: 1,
        fixed_threads: None,
        slots: 1,
        context: None,
        memory_limit: 1 << 30,
        owner_limit: None,
        load_timeout: Duration::from_secs(1),
        keep_alive: None,
        max_loaded: 3,
        kv: Default::default(),
        flash_attention: true,
        own_cells: None,
        prompt_lookup: true,
    }
}

/// Waits until something holds.
pub async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(tokio::time::Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
