//! Storing a record and entering it into every index, inside a transaction of the caller's.
//!
//! Invariant: a record and its index rows are written together; a record points only to manifests
//! that are in the store.

use std::ops::Bound;

use redb::{ReadableTable, Table, WriteTransaction};
use substrate_record::{AnyRecord, JobId, NetworkId, NodeId, Place, RecordId, RecordType, Stream};

use super::StoreError;
use super::describe::{Facts, Link, describe};
use super::keyed::keys_below;
use super::tables::{ARRIVALS, BY_DIGEST, BY_JOB, BY_STREAM, BY_TYPE, JOBS, RECORDS, after, key};

/// Stores records, manifests first, so that the order inside one call does not matter.
pub(super) fn put_all(
    tx: &WriteTransaction,
    network: &NetworkId,
    records: &[AnyRecord],
) -> Result<u32, StoreError> {
    let is_manifest = |record: &&AnyRecord| matches!(record, AnyRecord::JobManifest(_));
    let manifests = records.iter().filter(is_manifest);
    let others = records.iter().filter(|record| !is_manifest(record));
    let mut new = 0;
    for record in manifests.chain(others) {
        new += u32::from(put_one(tx, network, &describe(record))?);
    }
    Ok(new)
}

pub(super) fn put_one(
    tx: &WriteTransaction,
    network: &NetworkId,
    facts: &Facts<'_>,
) -> Result<bool, StoreError> {
    let id_key = record_key(network, &facts.id);
    let mut records = tx.open_table(RECORDS)?;
    if records.get(id_key.as_slice())?.is_some() {
        return Ok(false);
    }
    let arrival = next_arrival(&tx.open_table(ARRIVALS)?)?;
    let job = job_of_link(&records, network, facts)?;
    records.insert(id_key.as_slice(), (arrival, facts.bytes))?;
    index(tx, network, facts, arrival, job)?;
    Ok(true)
}

/// Enters a record into every index. Also what a rebuild calls.
pub(super) fn index(
    tx: &WriteTransaction,
    network: &NetworkId,
    facts: &Facts<'_>,
    arrival: u64,
    job: Option<JobId>,
) -> Result<(), StoreError> {
    let (net, id, at) = (
        network.as_bytes().as_slice(),
        facts.id.as_bytes().as_slice(),
        arrival.to_be_bytes(),
    );
    tx.open_table(ARRIVALS)?
        .insert(arrival, key(&[net, id]).as_slice())?;
    tx.open_table(BY_TYPE)?
        .insert(key(&[net, &facts.kind.to_be_bytes(), &at]).as_slice(), id)?;
    if let Some((stream, seq)) = facts.place {
        let place = stream_prefix(network, &facts.author, stream);
        tx.open_table(BY_STREAM)?.insert(
            key(&[&place, &seq.to_be_bytes(), id]).as_slice(),
            [].as_slice(),
        )?;
    }
    if let Link::Files(digests) = &facts.link {
        let mut by_digest = tx.open_table(BY_DIGEST)?;
        for digest in digests {
            by_digest.insert(key(&[net, digest.as_bytes(), id]).as_slice(), [].as_slice())?;
        }
    }
    if let Some(job) = job {
        let mut by_job = tx.open_table(BY_JOB)?;
        let prefix = key(&[net, job.as_bytes()]);
        if keys_below(&by_job, &prefix, 1, |_, _| Ok(()))?.is_empty() {
            tx.open_table(JOBS)?
                .insert(key(&[net, &at]).as_slice(), job.as_bytes().as_slice())?;
        }
        by_job.insert(key(&[&prefix, &at]).as_slice(), id)?;
    }
    Ok(())
}

/// The job a record belongs to, by its own word or its manifest's.
pub(super) fn job_of_link(
    records: &Table<'_, &'static [u8], (u64, &'static [u8])>,
    network: &NetworkId,
    facts: &Facts<'_>,
) -> Result<Option<JobId>, StoreError> {
    let manifest = match &facts.link {
        Link::Nothing | Link::Files(_) => return Ok(None),
        Link::Job(job) => return Ok(Some(*job)),
        Link::Manifest(manifest) => manifest,
    };
    let unknown = || StoreError::UnknownManifest {
        record: facts.id,
        manifest: *manifest,
    };
    let row = records
        .get(record_key(network, manifest).as_slice())?
        .ok_or_else(unknown)?;
    let (_, bytes) = row.value();
    match AnyRecord::open(bytes, network)? {
        AnyRecord::JobManifest(manifest) => Ok(Some(manifest.body().job)),
        _ => Err(unknown()),
    }
}

pub(super) fn next_place(
    tx: &WriteTransaction,
    network: &NetworkId,
    author: &NodeId,
    stream: Stream,
) -> Result<Place, StoreError> {
    let head = head(&tx.open_table(BY_STREAM)?, network, author, stream)?;
    Ok(place_behind(stream, head))
}

pub(super) fn place_behind(stream: Stream, head: Option<(u64, RecordId)>) -> Place {
    match head {
        Some((seq, id)) => Place {
            stream,
            seq: seq + 1,
            prev: Some(id),
        },
        None => Place {
            stream,
            seq: 1,
            prev: None,
        },
    }
}

pub(super) fn head(
    by_stream: &impl ReadableTable<&'static [u8], &'static [u8]>,
    network: &NetworkId,
    author: &NodeId,
    stream: Stream,
) -> Result<Option<(u64, RecordId)>, StoreError> {
    let prefix = stream_prefix(network, author, stream);
    let end = after(&prefix);
    let upper = end.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
    let Some(row) = by_stream
        .range::<&[u8]>((Bound::Included(prefix.as_slice()), upper))?
        .next_back()
    else {
        return Ok(None);
    };
    let (row_key, _) = row?;
    let rest = &row_key.value()[prefix.len()..];
    Ok(Some((number(&rest[..8])?, id_of(&rest[8..])?)))
}

pub(super) fn next_arrival(
    arrivals: &impl ReadableTable<u64, &'static [u8]>,
) -> Result<u64, StoreError> {
    // From 1, so that `Page::after` 0 means the beginning.
    Ok(arrivals.last()?.map_or(1, |(last, _)| last.value() + 1))
}

pub(super) fn stream_prefix(network: &NetworkId, author: &NodeId, stream: Stream) -> Vec<u8> {
    key(&[network.as_bytes(), author.as_bytes(), &[stream as u8]])
}

pub(super) fn record_key(network: &NetworkId, id: &RecordId) -> Vec<u8> {
    key(&[network.as_bytes(), id.as_bytes()])
}

pub(super) fn code(kind: RecordType) -> [u8; 8] {
    (kind as u64).to_be_bytes()
}

pub(super) fn number(bytes: &[u8]) -> Result<u64, StoreError> {
    bytes
        .try_into()
        .map(u64::from_be_bytes)
        .map_err(|_| odd_key())
}

pub(super) fn id_of(bytes: &[u8]) -> Result<RecordId, StoreError> {
    bytes
        .try_into()
        .map(RecordId::from_bytes)
        .map_err(|_| odd_key())
}

pub(super) fn job_of(bytes: &[u8]) -> Result<JobId, StoreError> {
    bytes
        .try_into()
        .map(JobId::from_bytes)
        .map_err(|_| odd_key())
}

pub(super) fn odd_key() -> StoreError {
    StoreError::Corrupt {
        detail: "a key of an index has another length".to_owned(),
    }
}
