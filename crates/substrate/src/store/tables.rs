//! The tables, and how their keys are put together.
//!
//! Every key begins with the network's id, so a machine that joins another network keeps what it had
//! without ever mixing the two. Numbers in keys are big-endian: byte order is number order.

use redb::{TableDefinition, WriteTransaction};

use super::StoreError;

/// Table of opaque keys and values.
pub(crate) type Bytes = TableDefinition<'static, &'static [u8], &'static [u8]>;

/// network ‖ record id → (arrival, canonical bytes). The truth; all other tables of records follow from it.
pub(crate) const RECORDS: TableDefinition<'static, &[u8], (u64, &[u8])> =
    TableDefinition::new("records");

/// arrival → network ‖ record id. Index.
pub(crate) const ARRIVALS: TableDefinition<'static, u64, &[u8]> = TableDefinition::new("arrivals");

/// network ‖ type ‖ arrival → record id. Index.
pub(crate) const BY_TYPE: Bytes = TableDefinition::new("by_type");

/// network ‖ author ‖ stream ‖ seq ‖ record id → nothing. Two ids at one seq are a fork, kept as evidence. Index.
pub(crate) const BY_STREAM: Bytes = TableDefinition::new("by_stream");

/// network ‖ job ‖ arrival → record id. Index.
pub(crate) const BY_JOB: Bytes = TableDefinition::new("by_job");

/// network ‖ arrival of the job's first record → job. Index.
pub(crate) const JOBS: Bytes = TableDefinition::new("jobs");

/// network ‖ SHA-256 of a file ‖ record id of an entry → nothing. Index.
pub(crate) const BY_DIGEST: Bytes = TableDefinition::new("by_digest");

/// network → Genesis bytes.
pub(crate) const NETWORKS: Bytes = TableDefinition::new("networks");

/// network ‖ circle name ‖ 0 ‖ node → member.
pub(crate) const CIRCLES: Bytes = TableDefinition::new("circles");

/// network ‖ node → addresses.
pub(crate) const PEERS: Bytes = TableDefinition::new("peers");

/// network ‖ model name in its folded form → the entry it is bound to.
pub(crate) const MODELS: Bytes = TableDefinition::new("models");

/// network ‖ SHA-256 of an invite's secret → invite.
pub(crate) const INVITES: Bytes = TableDefinition::new("invites");

/// Layout number and the current network.
pub(crate) const META: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("meta");

/// What can be thrown away and rebuilt.
pub(super) const INDEXES: [Bytes; 5] = [BY_TYPE, BY_STREAM, BY_JOB, JOBS, BY_DIGEST];

/// This machine's own lists.
const LISTS: [Bytes; 5] = [NETWORKS, CIRCLES, PEERS, MODELS, INVITES];

pub(super) fn create_all(tx: &WriteTransaction) -> Result<(), StoreError> {
    tx.open_table(RECORDS)?;
    tx.open_table(ARRIVALS)?;
    for table in INDEXES.into_iter().chain(LISTS) {
        tx.open_table(table)?;
    }
    tx.open_table(META)?;
    Ok(())
}

/// A key from its parts.
pub(crate) fn key(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

/// The first key behind all that begin with `prefix`; `None` if there is no such key.
pub(crate) fn after(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|byte| *byte != u8::MAX)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_prefix_is_behind_all_its_keys() {
        assert_eq!(after(b"ab"), Some(b"ac".to_vec()));
        assert_eq!(after(&[1, 255, 255]), Some(vec![2]));
        assert_eq!(after(&[255]), None);
    }
}
