//! One network's records: storing, appending to an own stream, and reading in pages.
//!
//! Invariant: what is read back was verified again; a record points only to manifests that are here.

use std::ops::Bound;

use redb::ReadTransaction;
use substrate_record::{
    AnyRecord, ContentHash, JobId, ModelEntry, NetworkId, NodeId, Place, RecordId, RecordType,
    SignError, Stream, Verified,
};

use super::describe::describe;
use super::index::{
    code, head, id_of, job_of, next_place, number, place_behind, put_all, record_key, stream_prefix,
};
use super::keyed::keys_below;
use super::tables::{BY_DIGEST, BY_JOB, BY_STREAM, BY_TYPE, JOBS, RECORDS, after, key};
use super::{Store, StoreError};

/// The most rows one page may have, whatever a caller asks.
const MAX_PAGE: usize = 1024;

/// The most records read of one job: attempts are few, acks one per 256 tokens.
const MAX_JOB_RECORDS: usize = 4096;

/// The most model entries read at once; a registry that outgrows this needs the index of names.
const MAX_ENTRIES: usize = 16 * 1024;

/// Bytes of an id.
const ID: usize = 32;

/// Which part of a list to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Page {
    /// Rows that arrived after this one; 0 = from the first.
    pub after: u64,
    /// At most so many.
    pub limit: usize,
}

/// Records of one type in the order of their arrival.
#[derive(Debug, Clone)]
pub struct TypePage {
    /// The records.
    pub records: Vec<AnyRecord>,
    /// Give this as `after` for the rest; `None` at the end.
    pub next: Option<u64>,
}

/// Jobs, newest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobPage {
    /// Cursor and job.
    pub jobs: Vec<(u64, JobId)>,
    /// Give this as `before` for the rest; `None` at the end.
    pub next: Option<u64>,
}

/// The records of one network.
#[derive(Clone)]
pub struct Records {
    store: Store,
    network: NetworkId,
}

impl Store {
    /// The records of one network.
    pub fn records(&self, network: NetworkId) -> Records {
        Records {
            store: self.clone(),
            network,
        }
    }
}

impl Records {
    /// The network they belong to.
    pub fn network(&self) -> &NetworkId {
        &self.network
    }

    /// The store they are in.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Stores records in one transaction and says how many were new. A record that is there already
    /// changes nothing; one about a manifest needs that manifest here or in the same call.
    pub fn put(&self, records: &[AnyRecord]) -> Result<u32, StoreError> {
        self.store.write(|tx| put_all(tx, &self.network, records))
    }

    /// Signs the next record of an own stream and stores it, both in one transaction.
    pub fn append(
        &self,
        author: NodeId,
        stream: Stream,
        sign: impl FnOnce(Place) -> Result<AnyRecord, SignError>,
    ) -> Result<AnyRecord, StoreError> {
        self.append_with(author, stream, &[], sign)
    }

    /// As [`Self::append`], and stores further records (a manifest, its accept, acks) in the same transaction.
    pub fn append_with(
        &self,
        author: NodeId,
        stream: Stream,
        beside: &[AnyRecord],
        sign: impl FnOnce(Place) -> Result<AnyRecord, SignError>,
    ) -> Result<AnyRecord, StoreError> {
        self.store.write(|tx| {
            let place = next_place(tx, &self.network, &author, stream)?;
            let record = sign(place).map_err(StoreError::Sign)?;
            let facts = describe(&record);
            if facts.author != author || facts.place != Some((place.stream, place.seq)) {
                return Err(StoreError::Unexpected {
                    record: facts.id,
                    why: "it was signed for another place",
                });
            }
            put_all(tx, &self.network, beside)?;
            put_all(tx, &self.network, std::slice::from_ref(&record))?;
            Ok(record)
        })
    }

    /// One record.
    pub fn get(&self, id: &RecordId) -> Result<Option<AnyRecord>, StoreError> {
        self.store
            .read(|tx| Reader::new(tx, &self.network)?.get(id))
    }

    /// Whether a record is here, without reading it.
    pub fn contains(&self, id: &RecordId) -> Result<bool, StoreError> {
        self.store.read(|tx| {
            Ok(tx
                .open_table(RECORDS)?
                .get(record_key(&self.network, id).as_slice())?
                .is_some())
        })
    }

    /// The last record of a stream: its number and id.
    pub fn head(
        &self,
        author: &NodeId,
        stream: Stream,
    ) -> Result<Option<(u64, RecordId)>, StoreError> {
        self.store
            .read(|tx| head(&tx.open_table(BY_STREAM)?, &self.network, author, stream))
    }

    /// Where the next record of an own stream stands. For a signer outside the daemon; the daemon itself appends.
    pub fn next_place(&self, author: &NodeId, stream: Stream) -> Result<Place, StoreError> {
        let head = self.head(author, stream)?;
        Ok(place_behind(stream, head))
    }

    /// Records of one type.
    pub fn of_type(&self, kind: RecordType, page: Page) -> Result<TypePage, StoreError> {
        let prefix = key(&[self.network.as_bytes(), &code(kind)]);
        self.store.read(|tx| {
            let reader = Reader::new(tx, &self.network)?;
            let start = key(&[&prefix, &page.after.saturating_add(1).to_be_bytes()]);
            let end = after(&prefix);
            let upper = end.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
            let limit = page.limit.min(MAX_PAGE);
            let (mut records, mut next, mut last) = (Vec::new(), None, page.after);
            for row in tx
                .open_table(BY_TYPE)?
                .range::<&[u8]>((Bound::Included(start.as_slice()), upper))?
            {
                if records.len() == limit {
                    next = Some(last);
                    break;
                }
                let (row_key, id) = row?;
                last = number(&row_key.value()[prefix.len()..])?;
                records.push(reader.must_get(&id_of(id.value())?)?);
            }
            Ok(TypePage { records, next })
        })
    }

    /// A stream's records from a number on, forks included.
    pub fn stream(
        &self,
        author: &NodeId,
        stream: Stream,
        from_seq: u64,
        limit: usize,
    ) -> Result<Vec<AnyRecord>, StoreError> {
        let prefix = stream_prefix(&self.network, author, stream);
        self.store.read(|tx| {
            let reader = Reader::new(tx, &self.network)?;
            let start = key(&[&prefix, &from_seq.to_be_bytes()]);
            let end = after(&prefix);
            let upper = end.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
            let mut records = Vec::new();
            for row in tx
                .open_table(BY_STREAM)?
                .range::<&[u8]>((Bound::Included(start.as_slice()), upper))?
                .take(limit.min(MAX_PAGE))
            {
                let (row_key, _) = row?;
                records.push(reader.must_get(&id_of(&row_key.value()[prefix.len() + 8..])?)?);
            }
            Ok(records)
        })
    }

    /// All records of a job, in the order of their arrival.
    pub fn job(&self, job: &JobId) -> Result<Vec<AnyRecord>, StoreError> {
        let prefix = key(&[self.network.as_bytes(), job.as_bytes()]);
        self.store.read(|tx| {
            let reader = Reader::new(tx, &self.network)?;
            let ids = keys_below(
                &tx.open_table(BY_JOB)?,
                &prefix,
                MAX_JOB_RECORDS,
                |_, id| id_of(id),
            )?;
            ids.iter().map(|id| reader.must_get(id)).collect()
        })
    }

    /// Jobs, newest first; `before` is a cursor of an earlier page.
    pub fn jobs(&self, before: Option<u64>, limit: usize) -> Result<JobPage, StoreError> {
        let start = key(&[self.network.as_bytes()]);
        let end = match before {
            Some(before) => Some(key(&[self.network.as_bytes(), &before.to_be_bytes()])),
            None => after(self.network.as_bytes()),
        };
        let upper = end.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        self.store.read(|tx| {
            let (mut jobs, mut next) = (Vec::new(), None);
            for row in tx
                .open_table(JOBS)?
                .range::<&[u8]>((Bound::Included(start.as_slice()), upper))?
                .rev()
            {
                if jobs.len() == limit.min(MAX_PAGE) {
                    next = jobs.last().map(|(cursor, _)| *cursor);
                    break;
                }
                let (row_key, job) = row?;
                jobs.push((number(&row_key.value()[ID..])?, job_of(job.value())?));
            }
            Ok(JobPage { jobs, next })
        })
    }

    /// All model entries, oldest first.
    pub fn entries(&self) -> Result<Vec<Verified<ModelEntry>>, StoreError> {
        let prefix = key(&[self.network.as_bytes(), &code(RecordType::ModelEntry)]);
        self.store.read(|tx| {
            let ids = keys_below(&tx.open_table(BY_TYPE)?, &prefix, MAX_ENTRIES, |_, id| {
                id_of(id)
            })?;
            Reader::new(tx, &self.network)?.entries(&ids)
        })
    }

    /// The model entries that name a file.
    pub fn entries_by_digest(
        &self,
        digest: &ContentHash,
    ) -> Result<Vec<Verified<ModelEntry>>, StoreError> {
        let prefix = key(&[self.network.as_bytes(), digest.as_bytes()]);
        self.store.read(|tx| {
            let ids = keys_below(&tx.open_table(BY_DIGEST)?, &prefix, MAX_PAGE, |id, _| {
                id_of(id)
            })?;
            Reader::new(tx, &self.network)?.entries(&ids)
        })
    }

    /// One model entry.
    pub fn entry(&self, id: &RecordId) -> Result<Option<Verified<ModelEntry>>, StoreError> {
        match self.get(id)? {
            Some(AnyRecord::ModelEntry(entry)) => Ok(Some(entry)),
            _ => Ok(None),
        }
    }
}

/// Reads records of one network in one transaction, verifying each.
struct Reader<'a> {
    table: redb::ReadOnlyTable<&'static [u8], (u64, &'static [u8])>,
    network: &'a NetworkId,
}

impl<'a> Reader<'a> {
    fn new(tx: &ReadTransaction, network: &'a NetworkId) -> Result<Self, StoreError> {
        Ok(Self {
            table: tx.open_table(RECORDS)?,
            network,
        })
    }

    fn get(&self, id: &RecordId) -> Result<Option<AnyRecord>, StoreError> {
        let Some(row) = self.table.get(record_key(self.network, id).as_slice())? else {
            return Ok(None);
        };
        let (_, bytes) = row.value();
        Ok(Some(AnyRecord::open(bytes, self.network)?))
    }

    fn must_get(&self, id: &RecordId) -> Result<AnyRecord, StoreError> {
        self.get(id)?.ok_or_else(|| StoreError::Corrupt {
            detail: format!("an index names record {id}, which is not there"),
        })
    }

    fn entries(&self, ids: &[RecordId]) -> Result<Vec<Verified<ModelEntry>>, StoreError> {
        let mut entries = Vec::with_capacity(ids.len());
        for id in ids {
            if let AnyRecord::ModelEntry(entry) = self.must_get(id)? {
                entries.push(entry);
            }
        }
        Ok(entries)
    }
}
