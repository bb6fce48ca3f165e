//! The store: signed records by id, what is indexed from them, and this machine's own lists.
//!
//! Invariants: a call that returned `Ok` is on disk; a call that failed left nothing behind; every
//! index can be thrown away and rebuilt from the records; one author's own stream never forks,
//! because number, link and signature are made inside the transaction that stores them.
//!
//! Absent by design: weights and prompts, clocks (times are arguments), async (calls block for one
//! disk write; a caller in a runtime wraps them), and any read without a bound.

use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};

use redb::{
    Database, Durability, ReadTransaction, ReadableDatabase, StorageBackend, WriteTransaction,
};

mod circles;
mod describe;
mod error;
mod index;
pub(crate) mod keyed;
mod networks;
mod peers;
mod rebuild;
mod records;
pub(crate) mod tables;

pub(crate) use circles::add_member;
pub use circles::{Member, valid_circle_name};
pub use error::StoreError;
pub use peers::PeerAddrs;
pub use rebuild::{Checked, Rebuilt};
pub use records::{JobPage, Page, Records, TypePage};

use tables::META;

/// The layout of the tables. A store with a higher number was written by a later release.
const SCHEMA: u64 = 1;

/// Memory redb may use for its pages. The daemon's own limit is 80 MiB in all; the store's hot set is small.
const CACHE_BYTES: usize = 8 << 20;

/// The store of one home. Clones share it.
#[derive(Clone)]
pub struct Store {
    shared: Arc<Shared>,
}

struct Shared {
    /// Opens the file again after a failed write: redb refuses everything from then on, rightly, but a
    /// full disk must not outlive its cause.
    open: Box<dyn Fn() -> Result<Database, StoreError> + Send + Sync>,
    database: RwLock<Option<Database>>,
}

impl Store {
    /// Opens the store, and makes it if there is none.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        if !path.exists() {
            create(path)?;
        }
        let path: PathBuf = path.to_path_buf();
        Self::with_opener(move || Ok(builder().open(&path)?))
    }

    /// A store over another kind of storage; each call of `backend` must give the same bytes.
    pub fn with_backend<B: StorageBackend>(
        backend: impl Fn() -> B + Send + Sync + 'static,
    ) -> Result<Self, StoreError> {
        Self::with_opener(move || Ok(builder().create_with_backend(backend())?))
    }

    fn with_opener(
        open: impl Fn() -> Result<Database, StoreError> + Send + Sync + 'static,
    ) -> Result<Self, StoreError> {
        let database = open()?;
        prepare(&database)?;
        let shared = Shared {
            open: Box::new(open),
            database: RwLock::new(Some(database)),
        };
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    /// Runs `look` on one consistent state.
    pub(crate) fn read<T>(
        &self,
        look: impl FnOnce(&ReadTransaction) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let seen = {
            let database = self
                .shared
                .database
                .read()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            match database.as_ref() {
                Some(database) => database
                    .begin_read()
                    .map_err(StoreError::from)
                    .and_then(|tx| look(&tx)),
                None => Err(StoreError::Closed),
            }
        };
        self.recover(seen.as_ref().err());
        seen
    }

    /// Runs `change` in one transaction; all of it is on disk when this returns `Ok`, none of it otherwise.
    pub(crate) fn write<T>(
        &self,
        change: impl FnOnce(&WriteTransaction) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let done = {
            let database = self
                .shared
                .database
                .read()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            match database.as_ref() {
                Some(database) => transact(database, change),
                None => Err(StoreError::Closed),
            }
        };
        self.recover(done.as_ref().err());
        done
    }

    /// After an error of the disk, opens the file anew, so that the next call finds the last good state.
    fn recover(&self, error: Option<&StoreError>) {
        if !error.is_some_and(StoreError::needs_reopening) {
            return;
        }
        let mut database = self
            .shared
            .database
            .write()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        // The old one must let go of its file lock before the new one takes it.
        *database = None;
        match (self.shared.open)() {
            Ok(again) => *database = Some(again),
            Err(error) => tracing::warn!(%error, "the record store cannot be opened again yet"),
        }
    }
}

/// Makes an empty store beside its name and renames it, so that a half-made one is never found there.
fn create(path: &Path) -> Result<(), StoreError> {
    let beside = path.with_extension("new");
    match std::fs::remove_file(&beside) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(StoreError::of_io(error));
        }
        _ => {}
    }
    let database = builder().create(&beside)?;
    prepare(&database)?;
    drop(database);
    std::fs::rename(&beside, path).map_err(StoreError::of_io)?;
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    std::fs::File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(StoreError::of_io)
}

fn builder() -> redb::Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES);
    builder
}

fn transact<T>(
    database: &Database,
    change: impl FnOnce(&WriteTransaction) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    let mut tx = database.begin_write()?;
    tx.set_durability(Durability::Immediate)?;
    // An error drops the transaction, which undoes it.
    let value = change(&tx)?;
    tx.commit()?;
    Ok(value)
}

/// Makes all tables, so that reading one that was never written is no error, and checks the layout's number.
fn prepare(database: &Database) -> Result<(), StoreError> {
    let found = {
        let tx = database.begin_read()?;
        match tx.open_table(META) {
            Ok(meta) => meta.get("schema")?.map(|value| value.value().to_vec()),
            Err(redb::TableError::TableDoesNotExist(_)) => None,
            Err(error) => return Err(error.into()),
        }
    };
    match found.as_deref().map(<[u8; 8]>::try_from) {
        Some(Ok(number)) if u64::from_be_bytes(number) == SCHEMA => Ok(()),
        Some(Ok(number)) => Err(StoreError::TooNew {
            found: u64::from_be_bytes(number),
            known: SCHEMA,
        }),
        Some(Err(_)) => Err(StoreError::Corrupt {
            detail: "the layout's number is not a number".to_owned(),
        }),
        None => transact(database, |tx| {
            tables::create_all(tx)?;
            tx.open_table(META)?
                .insert("schema", SCHEMA.to_be_bytes().as_slice())?;
            Ok(())
        }),
    }
}
