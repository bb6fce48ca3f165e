//! Files that clients of this machine asked it to keep: what batches read, and what came of them.
//!
//! A file is its bytes under its name, and beside it a description in JSON. Both are only this user's to read; they are not
//! encrypted, as whoever asked for them is to have them back.
//!
//! Invariants: a file is listed only when its bytes and its description are on disk, whole; a client sees its own files and
//! nobody else's, the machine's owner sees all; bytes and numbers are bounded, for each client and in all.
//! Absent by design: looking into the files; async (calls wait for the disk, a caller in a runtime wraps them).

mod ids;
mod writer;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

pub use ids::{BadName, BatchId, FileId};
pub use writer::KeptWriter;

use crate::door::Client;
use crate::files::{FileError, sync_folder, write_atomically};

/// Largest file: OpenAI's own limit for the input of a batch, 200 MB.
pub const FILE_BYTES: u64 = 200 << 20;

/// Most files of one client: a year of a batch a day, each with its output and its errors.
pub const FILES_OF_ONE: usize = 1_100;

/// Most bytes of one client: an input and an output of the largest size, twenty times.
pub const BYTES_OF_ONE: u64 = 8 << 30;

/// Most files in all. Their descriptions are held in memory, at less than 1 KiB each.
pub const FILES: usize = 8_192;

/// Most bytes in all, so that clients with keys cannot fill the owner's disk.
pub const BYTES: u64 = 32 << 30;

/// How long a file may be told to live, in seconds: from an hour to 30 days, as OpenAI's API has it.
pub const LIFE_SECONDS: (u64, u64) = (3_600, 2_592_000);

/// Longest file name: what file systems allow.
pub const NAME_BYTES: usize = 255;

/// A description is a few hundred bytes; more was not written here.
const DESCRIPTION_BYTES: u64 = 16 << 10;

/// Behind a file's name: what it is.
const DESCRIPTION: &str = "json";

/// Behind the name of a file that is not whole yet.
const UNFINISHED: &str = "tmp";

/// What a file is for, by OpenAI's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    /// The lines of a batch.
    Batch,
    /// What came of a batch.
    BatchOutput,
    /// The client's own business.
    UserData,
}

impl Purpose {
    /// As clients write it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Batch => "batch",
            Self::BatchOutput => "batch_output",
            Self::UserData => "user_data",
        }
    }
}

/// A kept file, without its bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptFile {
    /// Its name here.
    pub id: FileId,
    /// Whose it is.
    pub owner: Client,
    /// Its name at its owner's.
    pub filename: String,
    /// What it is for.
    pub purpose: Purpose,
    /// Its length.
    pub bytes: u64,
    /// Unix milliseconds.
    pub created_ms: u64,
    /// Unix milliseconds; after that it is gone.
    pub expires_ms: Option<u64>,
}

/// Why a file is not kept, or not given.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeptError {
    /// There is none, or it is another client's.
    #[error("no such file: {0}")]
    Unknown(String),
    /// A batch reads it.
    #[error("{0} is read by a batch that runs; cancel the batch first, or wait for its end")]
    InUse(FileId),
    /// Over the limit of one file.
    #[error("a file may have at most {FILE_BYTES} bytes")]
    TooLarge,
    /// Over a limit of one client, or of all.
    #[error("{0}: delete files that are not needed any more")]
    Full(String),
    /// The disk's.
    #[error(transparent)]
    File(#[from] FileError),
}

/// The kept files of one home. Clones share them.
#[derive(Clone)]
pub struct KeptFiles {
    shared: Arc<Shared>,
}

struct Shared {
    folder: PathBuf,
    index: Mutex<Index>,
}

#[derive(Default)]
struct Index {
    files: BTreeMap<FileId, KeptFile>,
    /// How many batches read a file.
    readers: BTreeMap<FileId, u32>,
    /// Files on their way, and their bytes so far.
    writing: BTreeMap<FileId, (Client, u64)>,
}

impl KeptFiles {
    /// Opens the folder. What a crash left half is removed.
    ///
    /// # Errors
    /// The disk's.
    pub fn open(folder: &Path) -> Result<Self, KeptError> {
        let mut found: BTreeMap<FileId, KeptFile> = BTreeMap::new();
        let mut names = Vec::new();
        for entry in std::fs::read_dir(folder).map_err(FileError::at("read", folder))? {
            names.push(entry.map_err(FileError::at("read", folder))?.path());
        }
        for path in &names {
            let Some(id) = id_of(path) else { continue };
            let is_description = path.extension().is_some_and(|end| end == DESCRIPTION);
            if !is_description || !path.with_extension("").is_file() {
                continue;
            }
            match read_description(path) {
                Some(file) if file.id == id => drop(found.insert(id, file)),
                _ => {
                    tracing::warn!(path = %path.display(), "a kept file's description cannot be read; it is left alone")
                }
            }
        }
        for path in names.iter().filter(|path| is_left_over(path)) {
            std::fs::remove_file(path).map_err(FileError::at("remove", path))?;
        }
        let index = Index {
            files: found,
            ..Index::default()
        };
        let shared = Shared {
            folder: folder.to_path_buf(),
            index: Mutex::new(index),
        };
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    /// The files a client may see, oldest first.
    pub fn list(&self, viewer: &Client, now_ms: u64) -> Vec<KeptFile> {
        self.expire(now_ms);
        let index = self.index();
        let seen = index
            .files
            .values()
            .filter(|file| sees(viewer, &file.owner));
        let mut files: Vec<KeptFile> = seen.cloned().collect();
        files.sort_by_key(|file| (file.created_ms, file.id));
        files
    }

    /// One file that a client may see.
    ///
    /// # Errors
    /// There is none of that name for it.
    pub fn get(&self, viewer: &Client, id: FileId, now_ms: u64) -> Result<KeptFile, KeptError> {
        self.expire(now_ms);
        let index = self.index();
        let file = index.files.get(&id);
        let seen = file.filter(|file| sees(viewer, &file.owner));
        seen.cloned()
            .ok_or_else(|| KeptError::Unknown(id.to_string()))
    }

    /// The bytes of a file that a client may see.
    ///
    /// # Errors
    /// There is none of that name for it, or the disk's.
    pub fn read(
        &self,
        viewer: &Client,
        id: FileId,
        now_ms: u64,
    ) -> Result<(KeptFile, File), KeptError> {
        let file = self.get(viewer, id, now_ms)?;
        Ok((file, self.bytes_of(id)?))
    }

    /// The bytes of a file, whoever asks.
    pub(crate) fn bytes_of(&self, id: FileId) -> Result<File, KeptError> {
        let path = self.path(id);
        Ok(File::open(&path).map_err(FileError::at("read", &path))?)
    }

    /// Takes a file away.
    ///
    /// # Errors
    /// There is none of that name for this client, a batch reads it, or the disk's.
    pub fn delete(&self, viewer: &Client, id: FileId, now_ms: u64) -> Result<(), KeptError> {
        self.get(viewer, id, now_ms)?;
        let mut index = self.index();
        if index.readers.contains_key(&id) {
            return Err(KeptError::InUse(id));
        }
        index.files.remove(&id);
        self.remove(id)
    }

    /// Keeps a file from being deleted, and from expiring, as long as the answer is held.
    pub(crate) fn hold(&self, id: FileId) -> Held {
        *self.index().readers.entry(id).or_default() += 1;
        Held {
            files: self.clone(),
            id,
        }
    }

    /// Takes a file of this machine's own making under the name planned for it. Done twice, it is done once.
    pub(crate) fn adopt(&self, own: &Path, mut file: KeptFile) -> Result<(), KeptError> {
        if self.index().files.contains_key(&file.id) {
            return Ok(());
        }
        let found = std::fs::metadata(own).map_err(FileError::at("read", own))?;
        file.bytes = found.len();
        // The description first: without bytes beside it the next start removes it, and the bytes are still where they were.
        self.describe(&file)?;
        let path = self.path(file.id);
        std::fs::rename(own, &path).map_err(FileError::at("keep", &path))?;
        sync_folder(&self.shared.folder)?;
        self.index().files.insert(file.id, file);
        Ok(())
    }

    fn describe(&self, file: &KeptFile) -> Result<(), KeptError> {
        let path = self.path(file.id).with_extension(DESCRIPTION);
        let text = serde_json::to_vec(file).expect("a description has no map with odd keys");
        Ok(write_atomically(&path, 0o600, &text)?)
    }

    /// The description first: bytes without one are removed at the next start.
    fn remove(&self, id: FileId) -> Result<(), KeptError> {
        let path = self.path(id);
        for path in [path.with_extension(DESCRIPTION), path] {
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(FileError::at("remove", &path)(error).into());
                }
                _ => {}
            }
        }
        Ok(sync_folder(&self.shared.folder)?)
    }

    /// Forgets what is past its time and read by nobody.
    fn expire(&self, now_ms: u64) {
        let mut index = self.index();
        let past = |file: &&KeptFile| file.expires_ms.is_some_and(|at| at <= now_ms);
        let past = index.files.values().filter(past).map(|file| file.id);
        let past: Vec<FileId> = past.filter(|id| !index.readers.contains_key(id)).collect();
        for id in past {
            index.files.remove(&id);
            if let Err(error) = self.remove(id) {
                tracing::warn!(%error, %id, "an expired file stays on the disk until the next start");
            }
        }
    }

    fn path(&self, id: FileId) -> PathBuf {
        self.shared.folder.join(id.to_string())
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        self.shared
            .index
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Index {
    /// Whether a client may have so many bytes more; a file on its way counts with what it has.
    fn room(&self, owner: &Client, more: u64) -> Result<(), KeptError> {
        let kept = self.files.values().map(|file| (&file.owner, file.bytes));
        let written = self.writing.values().map(|(owner, bytes)| (owner, *bytes));
        let (mut of_one, mut of_all) = (more, more);
        for (other, bytes) in kept.chain(written) {
            of_all = of_all.saturating_add(bytes);
            if other == owner {
                of_one = of_one.saturating_add(bytes);
            }
        }
        if of_one > BYTES_OF_ONE {
            let why = format!("your files may have at most {BYTES_OF_ONE} bytes together");
            return Err(KeptError::Full(why));
        }
        if of_all > BYTES {
            let why = format!("this machine keeps at most {BYTES} bytes of files");
            return Err(KeptError::Full(why));
        }
        Ok(())
    }

    /// Whether a client may begin one more file.
    fn place(&self, owner: &Client) -> Result<(), KeptError> {
        let kept = self.files.values().map(|file| &file.owner);
        let owners = kept.chain(self.writing.values().map(|(owner, _)| owner));
        if owners.filter(|other| *other == owner).count() >= FILES_OF_ONE {
            let why = format!("you may have at most {FILES_OF_ONE} files");
            return Err(KeptError::Full(why));
        }
        if self.files.len() + self.writing.len() >= FILES {
            let why = format!("this machine keeps at most {FILES} files");
            return Err(KeptError::Full(why));
        }
        Ok(())
    }
}

/// A file that is being read by a batch.
pub(crate) struct Held {
    files: KeptFiles,
    id: FileId,
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut index = self.files.index();
        let Some(readers) = index.readers.get_mut(&self.id) else {
            return;
        };
        *readers -= 1;
        if *readers == 0 {
            index.readers.remove(&self.id);
        }
    }
}

/// Whether what is one client's may be shown to another: to itself, and to the owner of the machine it lies on.
pub fn sees(viewer: &Client, owner: &Client) -> bool {
    *viewer == Client::Owner || viewer == owner
}

/// When something made now and told to live so long is gone.
///
/// # Errors
/// Why it may not live so long, or so shortly.
pub fn expiry(now_ms: u64, seconds: i64) -> Result<u64, String> {
    let (least, most) = LIFE_SECONDS;
    match u64::try_from(seconds) {
        Ok(seconds) if (least..=most).contains(&seconds) => Ok(now_ms + seconds * 1_000),
        _ => Err(format!(
            "seconds must be between {least} and {most}, not {seconds}"
        )),
    }
}

/// The name in a path of ours.
fn id_of(path: &Path) -> Option<FileId> {
    path.file_stem()?.to_str()?.parse().ok()
}

/// Bytes without a description, a description without bytes, or something that never became whole.
fn is_left_over(path: &Path) -> bool {
    match path.extension().and_then(|end| end.to_str()) {
        Some(UNFINISHED) => true,
        Some(DESCRIPTION) => id_of(path).is_some() && !path.with_extension("").exists(),
        None => id_of(path).is_some() && !path.with_extension(DESCRIPTION).exists(),
        Some(_) => false,
    }
}

fn read_description(path: &Path) -> Option<KeptFile> {
    let file = File::open(path).ok()?;
    let mut text = Vec::new();
    file.take(DESCRIPTION_BYTES).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

#[cfg(test)]
mod tests;
