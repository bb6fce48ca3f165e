//! A file on its way: its bytes are written as they come, and it is listed when all of them are on disk.
//!
//! Invariant: dropped before [`KeptWriter::commit`], nothing of it is left; no more of it is held in memory than the piece
//! at hand.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use super::{FILE_BYTES, FileId, KeptError, KeptFile, KeptFiles, Purpose, UNFINISHED};
use crate::blobs::RESERVE;
use crate::door::Client;
use crate::files::{FileError, free_bytes, sync_folder};

/// A file on its way.
pub struct KeptWriter {
    files: KeptFiles,
    file: KeptFile,
    own: PathBuf,
    out: File,
    is_kept: bool,
}

impl KeptFiles {
    /// Begins a file. It gets its name at its owner's, its purpose and its end with [`KeptWriter::commit`], as a form may
    /// tell them after the bytes.
    ///
    /// # Errors
    /// There are too many, or the disk's.
    pub fn writer(&self, owner: &Client, now_ms: u64) -> Result<KeptWriter, KeptError> {
        self.expire(now_ms);
        let id = FileId::draw();
        let mut index = self.index();
        index.place(owner)?;
        index.writing.insert(id, (owner.clone(), 0));
        drop(index);
        let own = self.path(id).with_extension(UNFINISHED);
        let open = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&own);
        let out = match open {
            Ok(out) => out,
            Err(error) => {
                self.index().writing.remove(&id);
                return Err(FileError::at("create", &own)(error).into());
            }
        };
        let file = KeptFile {
            id,
            owner: owner.clone(),
            filename: String::new(),
            purpose: Purpose::UserData,
            bytes: 0,
            created_ms: now_ms,
            expires_ms: None,
        };
        Ok(KeptWriter {
            files: self.clone(),
            file,
            own,
            out,
            is_kept: false,
        })
    }
}

impl KeptWriter {
    /// Writes a piece.
    ///
    /// # Errors
    /// The file, its owner's files or the disk have no room for it.
    pub fn append(&mut self, piece: &[u8]) -> Result<(), KeptError> {
        let more = piece.len() as u64;
        if self.file.bytes.saturating_add(more) > FILE_BYTES {
            return Err(KeptError::TooLarge);
        }
        let mut index = self.files.index();
        index.room(&self.file.owner, more)?;
        if let Some((_, bytes)) = index.writing.get_mut(&self.file.id) {
            *bytes += more;
        }
        drop(index);
        self.file.bytes += more;
        if free_bytes(&self.own)? < RESERVE.saturating_add(more) {
            let path = self.own.clone();
            return Err(FileError::DiskFull { path }.into());
        }
        self.out
            .write_all(piece)
            .map_err(FileError::at("write", &self.own))?;
        Ok(())
    }

    /// As if so many bytes had been written.
    #[cfg(test)]
    pub(super) fn pretend(&mut self, bytes: u64) {
        self.file.bytes = bytes;
    }

    /// Keeps it. When this returns, it is on disk.
    ///
    /// # Errors
    /// The disk's.
    pub fn commit(
        mut self,
        filename: String,
        purpose: Purpose,
        expires_ms: Option<u64>,
    ) -> Result<KeptFile, KeptError> {
        self.file.filename = filename;
        self.file.purpose = purpose;
        self.file.expires_ms = expires_ms;
        self.out
            .sync_all()
            .map_err(FileError::at("sync", &self.own))?;
        let path = self.files.path(self.file.id);
        std::fs::rename(&self.own, &path).map_err(FileError::at("keep", &path))?;
        sync_folder(&self.files.shared.folder)?;
        // Bytes without a description are removed at the next start.
        self.files.describe(&self.file)?;
        self.is_kept = true;
        let mut index = self.files.index();
        index.files.insert(self.file.id, self.file.clone());
        drop(index);
        Ok(self.file.clone())
    }
}

impl Drop for KeptWriter {
    fn drop(&mut self) {
        self.files.index().writing.remove(&self.file.id);
        if self.is_kept {
            return;
        }
        for path in [self.own.clone(), self.files.path(self.file.id)] {
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    tracing::warn!(%error, path = %path.display(), "a left-over stays until the next start");
                }
                _ => {}
            }
        }
    }
}
