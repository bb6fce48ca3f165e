//! What the owner may do on this machine's disk: the handles of one network's store, blobs and models.
//!
//! Invariant: everything here belongs to the same network. Joining another makes a new desk.
//! Absent by design: the node, the mesh, and keys other than the device's.

use std::{sync::Arc, time::SystemTime};

use anyhow::Context;
use substrate_record::{Genesis, NetworkId, NodeId, Verified};

use crate::{
    blobs::Blobs,
    home::Home,
    keys::{self, DeviceKey},
    models::{
        catalogue::Catalogue,
        import::{Importer, Inspect},
        pull::{PullSettings, Puller},
    },
    store::{Records, Store},
};

/// Name of the network a machine founds for itself when it has none.
const OWN_NETWORK: &str = "this machine";

/// The handles of one network.
pub struct Desk {
    /// Where everything is.
    pub home: Home,
    /// Networks, circles, peers and invites.
    pub store: Store,
    /// The network's genesis.
    pub genesis: Verified<Genesis>,
    /// The network's records.
    pub records: Records,
    /// Bytes of models.
    pub blobs: Blobs,
    /// Names of models.
    pub catalogue: Catalogue,
    /// Brings files.
    pub importer: Importer,
    /// Fetches them first.
    pub puller: Puller,
    /// The device's key.
    pub device: Arc<DeviceKey>,
}

impl Desk {
    /// The desk of the current network. A machine without a network founds one of its own, silently.
    pub fn new(
        home: Home,
        store: Store,
        blobs: Blobs,
        device: Arc<DeviceKey>,
        inspect: Arc<dyn Inspect>,
    ) -> anyhow::Result<Self> {
        let genesis = current_network(&store, &device)?;
        let network = genesis.network();
        let catalogue = Catalogue::new(store.clone(), network);
        let importer = Importer::new(blobs.clone(), catalogue.clone(), inspect);
        let puller = Puller::new(importer.clone(), Arc::new(now_ms), PullSettings::from_env());
        let records = store.records(network);
        Ok(Self {
            home,
            store,
            genesis,
            records,
            blobs,
            catalogue,
            importer,
            puller,
            device,
        })
    }

    /// The network's id.
    pub fn network(&self) -> NetworkId {
        self.genesis.network()
    }

    /// This node's key.
    pub fn node(&self) -> NodeId {
        self.device.node()
    }
}

fn current_network(store: &Store, device: &DeviceKey) -> anyhow::Result<Verified<Genesis>> {
    if let Some(genesis) = store
        .current_network()
        .context("cannot read the current network")?
    {
        return Ok(genesis);
    }
    let genesis = keys::genesis_of_one(device, OWN_NETWORK);
    store
        .add_network(&genesis)
        .context("cannot keep the network of this machine")?;
    store
        .set_current_network(&genesis.network())
        .context("cannot enter the network of this machine")?;
    Ok(genesis)
}

/// Unix milliseconds, for what people read; no rule depends on it.
pub fn now_ms() -> u64 {
    let since = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
