//! Mending: indexes from the records, and a check of every stored signature.
//!
//! Invariant: a rebuild reads only the table of records, and never drops one.

use redb::{ReadableTable, ReadableTableMetadata};
use substrate_record::{AnyRecord, NetworkId};

use super::describe::describe;
use super::index::{index, job_of_link};
use super::tables::{ARRIVALS, INDEXES, RECORDS};
use super::{Store, StoreError};

/// What a rebuild found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rebuilt {
    /// Records entered into the indexes.
    pub records: u64,
    /// Records that no longer verify, or whose manifest is gone: kept, but in no index.
    pub broken: u64,
}

/// What a check found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checked {
    /// Records that verify.
    pub records: u64,
    /// Records that do not.
    pub broken: u64,
}

impl Store {
    /// Throws the indexes away and makes them anew, in one transaction.
    pub fn rebuild_indexes(&self) -> Result<Rebuilt, StoreError> {
        self.write(|tx| {
            tx.delete_table(ARRIVALS)?;
            for table in INDEXES {
                tx.delete_table(table)?;
            }
            super::tables::create_all(tx)?;
            let records = tx.open_table(RECORDS)?;
            let mut rebuilt = Rebuilt {
                records: 0,
                broken: 0,
            };
            // By arrival, so that manifests come before what points to them and lists keep their order.
            let mut order = Vec::new();
            for row in records.iter()? {
                let (key, value) = row?;
                order.push((value.value().0, key.value().to_vec()));
            }
            order.sort_unstable();
            for (arrival, key) in order {
                let Some(row) = records.get(key.as_slice())? else {
                    continue;
                };
                let Some((network, record)) = open(&key, row.value().1) else {
                    rebuilt.broken += 1;
                    continue;
                };
                let facts = describe(&record);
                match job_of_link(&records, &network, &facts) {
                    Ok(job) => index(tx, &network, &facts, arrival, job)?,
                    Err(StoreError::UnknownManifest { .. } | StoreError::Record(_)) => {
                        rebuilt.broken += 1;
                        continue;
                    }
                    Err(error) => return Err(error),
                }
                rebuilt.records += 1;
            }
            Ok(rebuilt)
        })
    }

    /// Verifies every stored record again.
    pub fn check(&self) -> Result<Checked, StoreError> {
        self.read(|tx| {
            let mut checked = Checked {
                records: 0,
                broken: 0,
            };
            for row in tx.open_table(RECORDS)?.iter()? {
                let (key, value) = row?;
                match open(key.value(), value.value().1) {
                    Some(_) => checked.records += 1,
                    None => checked.broken += 1,
                }
            }
            Ok(checked)
        })
    }

    /// Number of stored records, of all networks.
    pub fn len(&self) -> Result<u64, StoreError> {
        self.read(|tx| Ok(tx.open_table(RECORDS)?.len()?))
    }

    /// Whether nothing was ever stored.
    pub fn is_empty(&self) -> Result<bool, StoreError> {
        Ok(self.len()? == 0)
    }
}

fn open(key: &[u8], bytes: &[u8]) -> Option<(NetworkId, AnyRecord)> {
    let network = NetworkId::from_bytes(key.get(..32)?.try_into().ok()?);
    let record = AnyRecord::open(bytes, &network).ok()?;
    (record.id().as_bytes() == key.get(32..)?).then_some((network, record))
}
