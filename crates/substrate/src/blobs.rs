//! Content-addressed files: `sha256-<hex>`, written beside, forced to disk, then renamed.
//!
//! Invariant: a file under its digest's name had that digest when it was put there, whole. One that
//! turns out to lie is moved to `quarantine/`, where nothing looks for models.
//!
//! Absent by design: looking into the files, and touching a file of the user's: an import never
//! moves, changes or deletes what it was given.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, BufReader, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use sha2::{Digest, Sha256};
use substrate_record::ContentHash;

use crate::files::{FileError, free_bytes, sync_folder};

mod import;
mod writer;

pub use import::{How, Imported};
pub use writer::BlobWriter;

/// Left free on the disk whatever is imported: the store's own transactions must still fit.
pub const RESERVE: u64 = 64 << 20;

/// Read and hashed at a time. Large enough that system calls cost nothing beside hashing.
const CHUNK: usize = 1 << 20;

/// Blobs are never written again.
const BLOB_MODE: u32 = 0o444;

/// Names of files that a crash may leave and the next start removes.
const TEMPORARY: &str = ".tmp-";

/// Why a file is not in the blob store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BlobError {
    /// It would not fit.
    #[error("not enough space in {}: {need} bytes are needed, {free} are free", folder.display())]
    NoSpace {
        /// The blob folder.
        folder: PathBuf,
        /// Bytes to write, with the reserve.
        need: u64,
        /// Bytes free.
        free: u64,
    },
    /// The bytes are not those promised.
    #[error("the bytes have digest {found}, promised was {promised}")]
    Digest {
        /// What was asked for.
        promised: ContentHash,
        /// What came.
        found: ContentHash,
    },
    /// The file ended early or grew.
    #[error("{} changed while it was read", path.display())]
    Changed {
        /// The user's file.
        path: PathBuf,
    },
    /// A folder, a pipe, a device.
    #[error("{} is not a regular file", path.display())]
    NotAFile {
        /// As given.
        path: PathBuf,
    },
    /// There is no such blob.
    #[error("no blob {0}")]
    Absent(ContentHash),
    /// The disk said no.
    #[error(transparent)]
    File(#[from] FileError),
}

/// The blob folder. Clones share it.
#[derive(Debug, Clone)]
pub struct Blobs {
    folder: Arc<PathBuf>,
    /// What each blob looked like when this process last found its digest right.
    sound: Arc<Mutex<BTreeMap<ContentHash, Sight>>>,
}

impl Blobs {
    /// Opens a blob folder, and makes it if there is none. Left-overs of a crash are removed.
    pub fn open(folder: &Path) -> Result<Self, BlobError> {
        let quarantine = folder.join("quarantine");
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&quarantine)
            .map_err(FileError::at("create", &quarantine))?;
        for entry in std::fs::read_dir(folder).map_err(FileError::at("read", folder))? {
            let entry = entry.map_err(FileError::at("read", folder))?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.starts_with(TEMPORARY) || name.ends_with(".tmp") {
                let path = entry.path();
                std::fs::remove_file(&path).map_err(FileError::at("remove", &path))?;
            }
        }
        Ok(Self {
            folder: Arc::new(folder.to_path_buf()),
            sound: Arc::default(),
        })
    }

    /// Where the blobs are.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where a blob is, or would be.
    pub fn path(&self, digest: &ContentHash) -> PathBuf {
        self.folder.join(format!("sha256-{digest}"))
    }

    /// Whether a blob is here.
    pub fn has(&self, digest: &ContentHash) -> bool {
        self.path(digest).is_file()
    }

    /// A blob's size.
    pub fn size(&self, digest: &ContentHash) -> Option<u64> {
        std::fs::metadata(self.path(digest))
            .ok()
            .map(|found| found.len())
    }

    /// All blobs with their sizes, by digest.
    pub fn list(&self) -> Result<Vec<(ContentHash, u64)>, BlobError> {
        let folder = self.folder();
        let mut blobs = Vec::new();
        for entry in std::fs::read_dir(folder).map_err(FileError::at("read", folder))? {
            let entry = entry.map_err(FileError::at("read", folder))?;
            let name = entry.file_name();
            let digest = name
                .to_str()
                .and_then(|name| name.strip_prefix("sha256-"))
                .and_then(|hex| hex.parse().ok());
            if let (Some(digest), Ok(found)) = (digest, entry.metadata()) {
                blobs.push((digest, found.len()));
            }
        }
        blobs.sort_unstable();
        Ok(blobs)
    }

    /// Removes a blob; `false` if there was none.
    pub fn remove(&self, digest: &ContentHash) -> Result<bool, BlobError> {
        let path = self.path(digest);
        self.sound().remove(digest);
        match std::fs::remove_file(&path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(FileError::at("remove", &path)(error).into()),
        }
    }

    /// Makes sure of a blob before it is used: its digest is computed the first time, and again once anything
    /// about the file has changed. Disks rot, and a blob that was linked is still its owner's to write.
    ///
    /// Blocks for as long as reading the file takes.
    pub fn check(&self, digest: &ContentHash) -> Result<(), BlobError> {
        let seen = self.look(digest)?;
        let known = self.sound().get(digest).is_some_and(|sound| *sound == seen);
        if known {
            return Ok(());
        }
        self.verify(digest)?;
        // Only what stood still while it was read is known by its looks.
        if self.look(digest)? == seen {
            self.sound().insert(*digest, seen);
        }
        Ok(())
    }

    fn look(&self, digest: &ContentHash) -> Result<Sight, BlobError> {
        let path = self.path(digest);
        match std::fs::metadata(&path) {
            Ok(found) => Ok(Sight::of(&found)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(BlobError::Absent(*digest))
            }
            Err(error) => Err(FileError::at("read", &path)(error).into()),
        }
    }

    /// Nothing panics while holding this lock, so a poisoned one still guards whole state.
    fn sound(&self) -> std::sync::MutexGuard<'_, BTreeMap<ContentHash, Sight>> {
        self.sound.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads a blob again; one that lies is quarantined.
    pub fn verify(&self, digest: &ContentHash) -> Result<(), BlobError> {
        let path = self.path(digest);
        let (found, _) = match hash_file(&path, &mut |_| {}) {
            Err(FileError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Err(BlobError::Absent(*digest));
            }
            hashed => hashed?,
        };
        if found == *digest {
            return Ok(());
        }
        self.quarantine(digest, "its bytes have another digest")?;
        Err(BlobError::Digest {
            promised: *digest,
            found,
        })
    }

    /// Moves a blob to where no one looks for models, and says where.
    pub fn quarantine(&self, digest: &ContentHash, why: &str) -> Result<PathBuf, BlobError> {
        let from = self.path(digest);
        let to = self.quarantine_place(digest);
        self.sound().remove(digest);
        std::fs::rename(&from, &to).map_err(FileError::at("quarantine", &from))?;
        sync_folder(&self.folder)?;
        tracing::warn!(%digest, why, path = %to.display(), "blob quarantined");
        Ok(to)
    }

    fn quarantine_place(&self, digest: &ContentHash) -> PathBuf {
        self.folder
            .join("quarantine")
            .join(format!("sha256-{digest}"))
    }

    /// Refuses what would fill the disk.
    pub(crate) fn check_room(&self, bytes: u64) -> Result<(), BlobError> {
        let free = free_bytes(&self.folder)?;
        let need = bytes.saturating_add(RESERVE);
        if need > free {
            return Err(BlobError::NoSpace {
                folder: self.folder.to_path_buf(),
                need,
                free,
            });
        }
        Ok(())
    }

    /// Puts a file of our own under its digest's name. The caller has just hashed exactly these bytes.
    pub(crate) fn adopt(&self, own: &Path, digest: &ContentHash) -> Result<(), BlobError> {
        let file = File::open(own).map_err(FileError::at("open", own))?;
        file.set_permissions(Permissions::from_mode(BLOB_MODE))
            .map_err(FileError::at("protect", own))?;
        file.sync_all().map_err(FileError::at("sync", own))?;
        std::fs::rename(own, self.path(digest)).map_err(FileError::at("rename", own))?;
        Ok(sync_folder(&self.folder)?)
    }

    /// A fresh file of our own in the blob folder.
    fn temporary(&self) -> Result<(PathBuf, File), BlobError> {
        let path = self
            .folder
            .join(format!("{TEMPORARY}{:016x}", rand::random::<u64>()));
        let open = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path);
        Ok((path.clone(), open.map_err(FileError::at("create", &path))?))
    }
}

/// SHA-256 and length of a file; `seen` hears how many bytes were read so far.
pub(crate) fn hash_file(
    path: &Path,
    seen: &mut dyn FnMut(u64),
) -> Result<(ContentHash, u64), FileError> {
    let file = File::open(path).map_err(FileError::at("read", path))?;
    hash(BufReader::with_capacity(CHUNK, file), seen).map_err(FileError::at("read", path))
}

fn hash(mut from: impl Read, seen: &mut dyn FnMut(u64)) -> io::Result<(ContentHash, u64)> {
    let mut hasher = Sha256::new();
    let mut chunk = vec![0; CHUNK];
    let mut total = 0;
    loop {
        let read = match from.read(&mut chunk) {
            Ok(0) => return Ok((ContentHash::from_bytes(hasher.finalize().into()), total)),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        hasher.update(&chunk[..read]);
        total += read as u64;
        seen(total);
    }
}

/// What must not change while a file is read.
#[derive(Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

impl Stamp {
    fn of(found: &std::fs::Metadata) -> Self {
        Self {
            device: found.dev(),
            inode: found.ino(),
            size: found.size(),
            modified: (found.mtime(), found.mtime_nsec()),
        }
    }
}

/// What changes when a file's bytes do: its [`Stamp`], and the time the system noted, which no program can set back.
///
/// A new name for the file changes that time too, which is why imports do not compare it.
#[derive(Debug, PartialEq, Eq)]
struct Sight {
    stamp: Stamp,
    noted: (i64, i64),
}

impl Sight {
    fn of(found: &std::fs::Metadata) -> Self {
        Self {
            stamp: Stamp::of(found),
            noted: (found.ctime(), found.ctime_nsec()),
        }
    }
}

#[cfg(test)]
mod tests;
