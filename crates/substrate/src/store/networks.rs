//! The networks this machine founded or joined, and the one it is in now.
//!
//! Absent by design: leaving. An old network's records stay; they are evidence.

use redb::ReadableTable;
use substrate_record::{Genesis, NetworkId, Signed, Verified};

use super::keyed::keys_below;
use super::tables::{META, NETWORKS};
use super::{Store, StoreError};

/// The key of the current network.
const CURRENT: &str = "current_network";

/// The most networks one machine remembers.
const MAX_NETWORKS: usize = 256;

impl Store {
    /// Remembers a network.
    pub fn add_network(&self, genesis: &Verified<Genesis>) -> Result<(), StoreError> {
        self.write(|tx| {
            let mut networks = tx.open_table(NETWORKS)?;
            let known = keys_below(&networks, &[], MAX_NETWORKS, |key, _| Ok(key.to_vec()))?;
            if known.len() == MAX_NETWORKS
                && !known.iter().any(|key| key == genesis.network().as_bytes())
            {
                return Err(StoreError::TooMany {
                    what: "the list of networks",
                    limit: MAX_NETWORKS,
                });
            }
            networks.insert(genesis.network().as_bytes().as_slice(), genesis.bytes())?;
            Ok(())
        })
    }

    /// All networks known here.
    pub fn networks(&self) -> Result<Vec<Verified<Genesis>>, StoreError> {
        self.read(|tx| {
            keys_below(&tx.open_table(NETWORKS)?, &[], MAX_NETWORKS, |_, bytes| {
                open(bytes)
            })
        })
    }

    /// One network's Genesis.
    pub fn network(&self, network: &NetworkId) -> Result<Option<Verified<Genesis>>, StoreError> {
        self.read(|tx| {
            let networks = tx.open_table(NETWORKS)?;
            networks
                .get(network.as_bytes().as_slice())?
                .map(|bytes| open(bytes.value()))
                .transpose()
        })
    }

    /// The network this machine is in; `None` before the first start.
    pub fn current_network(&self) -> Result<Option<Verified<Genesis>>, StoreError> {
        let current = self.read(|tx| {
            let meta = tx.open_table(META)?;
            let value = meta.get(CURRENT)?;
            value
                .map(|id| <[u8; 32]>::try_from(id.value()).map(NetworkId::from_bytes))
                .transpose()
                .map_err(|_| StoreError::Corrupt {
                    detail: "the current network is not an id".to_owned(),
                })
        })?;
        match current {
            Some(id) => self.network(&id),
            None => Ok(None),
        }
    }

    /// Moves this machine into a network it knows.
    pub fn set_current_network(&self, network: &NetworkId) -> Result<(), StoreError> {
        self.write(|tx| {
            if tx
                .open_table(NETWORKS)?
                .get(network.as_bytes().as_slice())?
                .is_none()
            {
                return Err(StoreError::UnknownNetwork(*network));
            }
            tx.open_table(META)?
                .insert(CURRENT, network.as_bytes().as_slice())?;
            Ok(())
        })
    }
}

fn open(bytes: &[u8]) -> Result<Verified<Genesis>, StoreError> {
    let signed = Signed::<Genesis>::decode(bytes).map_err(substrate_record::RecordError::from)?;
    Ok(signed
        .verify_genesis()
        .map_err(substrate_record::RecordError::from)?)
}
