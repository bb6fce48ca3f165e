//! The store on a disk that dies: at any write, with any part of what was not yet synced lost.
//!
//! After each death the file is opened again. It must open, every acknowledged record must be there
//! and verify, nothing of a failed call may be there in part, and the store must take new records.

use std::io;
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use redb::StorageBackend;
use substrate::store::{Store, StoreError};
use substrate_record::{
    AnyRecord, Capability, ContentHash, Hardware, NetworkId, NodeId, Record, RecordId, SigningKey,
    Stream,
};

/// What a disk holds: what is safe, and what a power cut may take.
#[derive(Debug, Default)]
struct Platter {
    safe: Vec<u8>,
    seen: Vec<u8>,
    unsynced: Vec<Change>,
    operations: u32,
    dies_at: Option<u32>,
    full_at: Option<u64>,
}

#[derive(Debug, Clone)]
enum Change {
    Write(u64, Vec<u8>),
    Length(u64),
}

impl Platter {
    fn step(&mut self) -> io::Result<()> {
        self.operations += 1;
        match self.dies_at {
            Some(last) if self.operations > last => Err(io::Error::other("the disk died")),
            _ => Ok(()),
        }
    }

    /// The machine comes back: of each unsynced change, `survives` says whether it had reached the disk;
    /// the last one that did may be torn.
    fn power_cut(&mut self, mut survives: impl FnMut() -> bool) {
        let mut bytes = std::mem::take(&mut self.safe);
        for change in std::mem::take(&mut self.unsynced) {
            if survives() {
                let torn = if survives() { usize::MAX } else { 512 };
                apply(&mut bytes, &change, torn);
            }
        }
        self.seen = bytes.clone();
        self.safe = bytes;
        self.dies_at = None;
        self.operations = 0;
    }
}

fn apply(bytes: &mut Vec<u8>, change: &Change, at_most: usize) {
    match change {
        Change::Length(length) => bytes.resize(*length as usize, 0),
        Change::Write(at, data) => {
            let (at, data) = (*at as usize, &data[..data.len().min(at_most)]);
            if bytes.len() < at + data.len() {
                bytes.resize(at + data.len(), 0);
            }
            bytes[at..at + data.len()].copy_from_slice(data);
        }
    }
}

/// One disk, given to the store again at each start.
#[derive(Debug, Clone, Default)]
struct Disk(Arc<Mutex<Platter>>);

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().seen.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let platter = self.0.lock().unwrap();
        let from = offset as usize;
        let bytes = platter
            .seen
            .get(from..from + out.len())
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(bytes);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut platter = self.0.lock().unwrap();
        platter.step()?;
        if platter.full_at.is_some_and(|full| len > full) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        platter.seen.resize(len as usize, 0);
        platter.unsynced.push(Change::Length(len));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut platter = self.0.lock().unwrap();
        platter.step()?;
        platter.unsynced.clear();
        platter.safe = platter.seen.clone();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut platter = self.0.lock().unwrap();
        platter.step()?;
        let change = Change::Write(offset, data.to_vec());
        apply(&mut platter.seen, &change, usize::MAX);
        platter.unsynced.push(change);
        Ok(())
    }
}

impl Disk {
    fn store(&self) -> Result<Store, StoreError> {
        let disk = self.clone();
        Store::with_backend(move || disk.clone())
    }
}

fn network() -> NetworkId {
    NetworkId::from_bytes([9; 32])
}

fn key() -> SigningKey {
    SigningKey::from_bytes(&[1; 32])
}

fn me() -> NodeId {
    NodeId::from_bytes(key().verifying_key().to_bytes())
}

/// A capability that differs in nothing but `queue` and its place.
fn append(store: &Store, queue: u32) -> Result<RecordId, StoreError> {
    let body = Capability {
        hardware: Hardware {
            cpu: "x".into(),
            cores: 1,
            memory: 1,
            gpus: Vec::new(),
            storage: 1,
            bandwidth: None,
        },
        models: Vec::new(),
        free_memory: 0,
        slots: 1,
        queue,
        walls: Vec::new(),
        tee: None,
        build: "test".into(),
        worker_sha256: ContentHash::of(b""),
    };
    let record = store
        .records(network())
        .append(me(), Stream::Cap, |place| {
            let mut record = Record::new(me(), 0, body);
            record.place = Some(place);
            Ok(AnyRecord::Capability(record.sign(&key(), &network())?))
        })?;
    Ok(record.id())
}

/// Everything acknowledged is there, the stream has no hole, and the indexes agree with the records.
fn intact(store: &Store, acknowledged: &[RecordId]) {
    let records = store.records(network());
    for id in acknowledged {
        assert!(
            records.get(id).unwrap().is_some(),
            "acknowledged record {id} is gone"
        );
    }
    let chain = records.stream(&me(), Stream::Cap, 1, 1000).unwrap();
    assert!(
        chain.len() >= acknowledged.len() && chain.len() <= acknowledged.len() + 1,
        "{} of {}",
        chain.len(),
        acknowledged.len()
    );
    assert_eq!(store.len().unwrap(), chain.len() as u64);
    assert_eq!(store.check().unwrap().broken, 0);
    let head = records.head(&me(), Stream::Cap).unwrap();
    assert_eq!(
        head,
        chain.last().map(|last| (chain.len() as u64, last.id()))
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn a_disk_that_dies_at_any_write_loses_nothing_acknowledged(
        deaths in proptest::collection::vec((1_u32..120, any::<u64>()), 1..5),
    ) {
        let disk = Disk::default();
        // An empty store is made beside and renamed; here it begins whole.
        drop(disk.store().unwrap());
        disk.0.lock().unwrap().power_cut(|| true);
        let mut acknowledged = Vec::new();
        for (dies_after, luck) in deaths {
            disk.0.lock().unwrap().dies_at = Some(dies_after);
            if let Ok(store) = disk.store() {
                for queue in 0..30 {
                    match append(&store, queue) {
                        Ok(id) => acknowledged.push(id),
                        Err(_) => break,
                    }
                }
            }
            let mut luck = luck;
            disk.0.lock().unwrap().power_cut(|| {
                luck = luck.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                luck >> 63 == 1
            });
            let store = disk.store().expect("opens after a power cut");
            intact(&store, &acknowledged);
            acknowledged = store.records(network()).stream(&me(), Stream::Cap, 1, 1000).unwrap().iter().map(AnyRecord::id).collect();
            acknowledged.push(append(&store, 99).expect("takes new records"));
            drop(store);
            disk.0.lock().unwrap().power_cut(|| true);
        }
    }
}

#[test]
fn a_full_disk_is_told_and_the_store_goes_on_when_there_is_room() {
    let disk = Disk::default();
    let store = disk.store().unwrap();
    let mut acknowledged = vec![append(&store, 0).unwrap()];
    let size = disk.len().unwrap();
    disk.0.lock().unwrap().full_at = Some(size);
    let full = loop {
        match append(&store, 1) {
            Ok(id) => acknowledged.push(id),
            Err(error) => break error,
        }
        assert!(acknowledged.len() < 100_000, "the disk never filled up");
    };
    assert!(matches!(full, StoreError::DiskFull), "{full}");
    assert!(full.to_string().contains("the disk is full"));
    // Still full: reading works, writing says so again, nothing is lost.
    assert!(
        store
            .records(network())
            .get(&acknowledged[0])
            .unwrap()
            .is_some()
    );
    assert!(append(&store, 2).is_err());
    disk.0.lock().unwrap().full_at = None;
    acknowledged.push(append(&store, 3).expect("goes on without a restart"));
    for id in &acknowledged {
        assert!(store.records(network()).contains(id).unwrap());
    }
    assert_eq!(store.check().unwrap().broken, 0);
}
