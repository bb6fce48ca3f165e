//! A download that is not whole yet: the bytes, and which of them are there.
//!
//! The note of what is there is a hint that saves fetching; the digest over all bytes is what
//! decides, so a note that outlived its bytes costs a second download and nothing else.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use substrate_record::ContentHash;
use tokio::sync::watch;

use super::PullError;
use super::hub::Remote;
use crate::blobs::Blobs;
use crate::files::{FileError, write_atomically};

/// One file on its way, shared by its connections.
pub(super) struct Partial {
    data: PathBuf,
    note: PathBuf,
    file: Arc<File>,
    part: u64,
    size: u64,
    done: Mutex<Vec<u64>>,
    /// Held while the note is written, so that an older one never replaces a newer.
    saving: Mutex<()>,
    /// Bytes from the beginning without a gap, for whoever hashes behind.
    prefix: watch::Sender<u64>,
    /// Whether there were bytes of an earlier pull.
    pub resumed: bool,
}

#[derive(Serialize, Deserialize)]
struct Note {
    size: u64,
    part: u64,
    done: Vec<u64>,
}

impl Partial {
    /// Opens what an earlier pull left, or begins.
    pub(super) fn open(blobs: &Blobs, remote: &Remote, part: u64) -> Result<Self, PullError> {
        let key = remote
            .digest
            .unwrap_or_else(|| ContentHash::of(remote.url.as_bytes()));
        let data = blobs.folder().join(format!(".partial-{key}"));
        let note = blobs.folder().join(format!(".partial-{key}.json"));
        let size = remote.size;
        let kept = read_note(&note, &data).filter(|kept| kept.size == size && kept.fits());
        let resumed = kept
            .as_ref()
            .is_some_and(|kept| kept.done.iter().any(|done| *done > 0));
        let kept = kept.unwrap_or_else(|| Note {
            size,
            part,
            done: vec![0; size.div_ceil(part) as usize],
        });
        let missing = size - kept.done.iter().sum::<u64>();
        blobs.check_room(missing)?;
        let mut options = OpenOptions::new();
        let file = options
            .read(true)
            .write(true)
            .create(true)
            .truncate(!resumed)
            .mode(0o600)
            .open(&data);
        let file = file.map_err(FileError::at("open", &data))?;
        let partial = Self {
            data,
            note,
            file: Arc::new(file),
            part: kept.part,
            size,
            done: Mutex::new(kept.done),
            saving: Mutex::new(()),
            prefix: watch::Sender::new(0),
            resumed,
        };
        partial.prefix.send_replace(partial.contiguous());
        Ok(partial)
    }

    /// The parts that are not whole.
    pub(super) fn missing(&self) -> Vec<usize> {
        let done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        (0..done.len())
            .filter(|index| done[*index] < self.part_size(*index))
            .collect()
    }

    /// Number of parts.
    pub(super) fn parts(&self) -> usize {
        self.done
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .len()
    }

    /// First missing and last byte of a part; `None` when it is whole.
    pub(super) fn gap(&self, index: usize) -> Option<(u64, u64)> {
        let done = self.done.lock().unwrap_or_else(PoisonError::into_inner)[index];
        let begin = index as u64 * self.part;
        let size = self.part_size(index);
        (done < size).then(|| (begin + done, begin + size - 1))
    }

    /// Writes the next bytes of a part. More than the part holds are cut off.
    pub(super) fn write(&self, index: usize, bytes: &[u8]) -> Result<(), PullError> {
        let Some((at, last)) = self.gap(index) else {
            return Ok(());
        };
        let room = usize::try_from(last - at + 1).unwrap_or(usize::MAX);
        let bytes = &bytes[..bytes.len().min(room)];
        self.file
            .write_all_at(bytes, at)
            .map_err(FileError::at("write", &self.data))?;
        self.done.lock().unwrap_or_else(PoisonError::into_inner)[index] += bytes.len() as u64;
        self.prefix.send_replace(self.contiguous());
        if self.gap(index).is_none() {
            self.file
                .sync_data()
                .map_err(FileError::at("sync", &self.data))?;
            self.save()?;
        }
        Ok(())
    }

    /// Forgets everything: the server cannot go on from the middle.
    pub(super) fn restart(&self) {
        self.done
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .fill(0);
        self.prefix.send_replace(0);
    }

    /// Bytes that are here.
    pub(super) fn completed(&self) -> u64 {
        self.done
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .sum()
    }

    /// Follows the growing beginning of the file.
    pub(super) fn follow(&self) -> (Arc<File>, watch::Receiver<u64>) {
        (self.file.clone(), self.prefix.subscribe())
    }

    /// The file, whole, for the blob store; the note goes.
    pub(super) fn into_blob(self, blobs: &Blobs, digest: &ContentHash) -> Result<(), PullError> {
        blobs.adopt(&self.data, digest)?;
        remove(&self.note)
    }

    /// Throws away bytes that are not what they should be.
    pub(super) fn discard(self) -> Result<(), PullError> {
        self.restart();
        remove(&self.data)?;
        remove(&self.note)
    }

    /// Notes what is here, for the next pull.
    pub(super) fn save(&self) -> Result<(), PullError> {
        let _one_at_a_time = self.saving.lock().unwrap_or_else(PoisonError::into_inner);
        let done = self
            .done
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let note = serde_json::to_vec(&Note {
            size: self.size,
            part: self.part,
            done,
        })
        .unwrap_or_default();
        Ok(write_atomically(&self.note, 0o600, &note)?)
    }

    fn part_size(&self, index: usize) -> u64 {
        self.part.min(self.size - index as u64 * self.part)
    }

    fn contiguous(&self) -> u64 {
        let done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        let whole = (0..done.len())
            .take_while(|index| done[*index] == self.part_size(*index))
            .count();
        done.get(whole)
            .map_or(self.size, |begun| whole as u64 * self.part + begun)
    }
}

impl Note {
    fn fits(&self) -> bool {
        let parts = if self.part == 0 {
            return false;
        } else {
            self.size.div_ceil(self.part)
        };
        let bound = |index: usize| self.part.min(self.size - index as u64 * self.part);
        self.done.len() as u64 == parts
            && self
                .done
                .iter()
                .enumerate()
                .all(|(index, done)| *done <= bound(index))
    }
}

fn read_note(note: &Path, data: &Path) -> Option<Note> {
    if !data.is_file() {
        return None;
    }
    serde_json::from_slice(&std::fs::read(note).ok()?).ok()
}

fn remove(path: &Path) -> Result<(), PullError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(FileError::at("remove", path)(error).into())
        }
        _ => Ok(()),
    }
}
