//! Why the store could not answer.

use substrate_record::{RecordError, RecordId, SignError};

use crate::files::is_full;

/// Why the store could not answer. After any of these nothing of the failed call is in the store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// No space, or the user's quota is used up. What was stored before is intact.
    #[error("the disk is full: nothing was stored, what was stored before is intact")]
    DiskFull,
    /// Another process has the file.
    #[error("the store is in use by another process (a running daemon?)")]
    InUse,
    /// The file is not a store, or is damaged.
    #[error("the store is damaged: {detail}")]
    Corrupt {
        /// What was found.
        detail: String,
    },
    /// A later release wrote it.
    #[error("the store has layout {found}, this release knows {known}: use the newer release")]
    TooNew {
        /// As found.
        found: u64,
        /// What this release writes.
        known: u64,
    },
    /// A receipt, an accept or an ack of a job whose manifest is not there.
    #[error("record {record} belongs to manifest {manifest}, which is not in the store")]
    UnknownManifest {
        /// The record.
        record: RecordId,
        /// What it points to.
        manifest: RecordId,
    },
    /// The record does not name its own place or type as the call says.
    #[error("record {record} is not what the call says: {why}")]
    Unexpected {
        /// The record.
        record: RecordId,
        /// In plain words.
        why: &'static str,
    },
    /// A list of this machine is full.
    #[error("{what} may have at most {limit} entries")]
    TooMany {
        /// The list.
        what: &'static str,
        /// Its limit.
        limit: usize,
    },
    /// A name that the lists cannot hold.
    #[error("'{name}' cannot name a circle: use 1 to 64 letters, digits, '-', '_' and '.'")]
    BadCircleName {
        /// As given.
        name: String,
    },
    /// The network was never added.
    #[error("network {0} is not known here")]
    UnknownNetwork(substrate_record::NetworkId),
    /// A stored record no longer verifies.
    #[error("a stored record does not verify: {0}")]
    Record(#[from] RecordError),
    /// The record could not be signed.
    #[error("the record cannot be signed: {0}")]
    Sign(#[source] SignError),
    /// The disk failed earlier and the file is not open again yet.
    #[error("the store is closed after a disk error")]
    Closed,
    /// The disk failed.
    #[error("the disk failed: {0}")]
    Io(#[source] std::io::Error),
    /// The engine's own words for anything else.
    #[error("the store failed: {0}")]
    Engine(#[source] Box<redb::Error>),
}

impl StoreError {
    /// Errors after which redb refuses all further work on the open file.
    pub(super) fn needs_reopening(&self) -> bool {
        matches!(self, Self::DiskFull | Self::Io(_) | Self::Closed)
    }

    pub(super) fn of_io(error: std::io::Error) -> Self {
        if is_full(&error) {
            Self::DiskFull
        } else {
            Self::Io(error)
        }
    }

    fn of_engine(error: redb::Error) -> Self {
        match error {
            redb::Error::Io(error) => Self::of_io(error),
            redb::Error::PreviousIo => Self::Closed,
            redb::Error::DatabaseAlreadyOpen => Self::InUse,
            redb::Error::Corrupted(detail) => Self::Corrupt { detail },
            other => Self::Engine(Box::new(other)),
        }
    }
}

macro_rules! from_engine {
    ($($kind:ty),+) => {
        $(impl From<$kind> for StoreError {
            fn from(error: $kind) -> Self {
                Self::of_engine(error.into())
            }
        })+
    };
}

from_engine!(
    redb::DatabaseError,
    redb::TransactionError,
    redb::TableError,
    redb::StorageError,
    redb::CommitError,
    redb::SetDurabilityError
);
