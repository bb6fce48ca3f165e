//! Taking in a file of the user's: sharing its blocks where the disk can, copying where it cannot.
//!
//! A copy-on-write clone costs nothing and cannot be changed through the original. A hard link costs
//! nothing either but shares the file itself: it is used only if the file is read-only to begin with
//! and ours; its bytes are checked again before every use like any blob's. Otherwise bytes are copied.

use std::fs::{File, Metadata};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use sha2::{Digest, Sha256};
use substrate_record::ContentHash;

use super::{BlobError, Blobs, CHUNK, Stamp, hash};
use crate::files::{FileError, sync_folder};

/// How a file came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// The bytes were here already.
    Present,
    /// A copy-on-write clone.
    Reflinked,
    /// A second name of the same read-only file.
    Linked,
    /// A copy.
    Copied,
}

/// A file that is in the blob store now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Imported {
    /// Its digest.
    pub digest: ContentHash,
    /// Its size.
    pub size: u64,
    /// How it came in.
    pub how: How,
}

/// Bytes done, bytes in all.
pub(crate) type Progress<'a> = &'a mut dyn FnMut(u64, u64);

impl Blobs {
    /// Takes in a file. The file itself is only read; with `expect`, other bytes are refused.
    pub fn import(
        &self,
        file: &Path,
        expect: Option<ContentHash>,
        progress: Progress<'_>,
    ) -> Result<Imported, BlobError> {
        let mut source = File::open(file).map_err(FileError::at("read", file))?;
        let found = source.metadata().map_err(FileError::at("read", file))?;
        if !found.is_file() {
            return Err(BlobError::NotAFile {
                path: file.to_path_buf(),
            });
        }
        if let Some(imported) = self.clone_blocks(&source, &found, expect, progress)? {
            return Ok(imported);
        }
        let linkable =
            found.mode() & 0o222 == 0 && found.uid() == rustix::process::geteuid().as_raw();
        if linkable
            && let Some(imported) = self.link(file, &mut source, &found, expect, progress)?
        {
            return Ok(imported);
        }
        self.copy(file, &mut source, &found, expect, progress)
    }

    /// A copy-on-write clone; `None` if the disk cannot.
    fn clone_blocks(
        &self,
        source: &File,
        found: &Metadata,
        expect: Option<ContentHash>,
        progress: Progress<'_>,
    ) -> Result<Option<Imported>, BlobError> {
        let (own, mut clone) = self.temporary()?;
        if rustix::fs::ioctl_ficlone(&clone, source).is_err() {
            let _ = std::fs::remove_file(&own);
            return Ok(None);
        }
        let size = found.len();
        let hashed = clone
            .seek(SeekFrom::Start(0))
            .and_then(|_| hash(&mut clone, &mut |done| progress(done, size)));
        let result = hashed
            .map_err(|error| FileError::at("read", &own)(error).into())
            .and_then(|(digest, size)| self.keep(&own, digest, size, expect, How::Reflinked));
        if result.is_err() {
            let _ = std::fs::remove_file(&own);
        }
        result.map(Some)
    }

    /// A second name; `None` if the file is on another disk.
    fn link(
        &self,
        file: &Path,
        source: &mut File,
        found: &Metadata,
        expect: Option<ContentHash>,
        progress: Progress<'_>,
    ) -> Result<Option<Imported>, BlobError> {
        let size = found.len();
        let (own, placeholder) = self.temporary()?;
        drop(placeholder);
        std::fs::remove_file(&own).map_err(FileError::at("remove", &own))?;
        if std::fs::hard_link(file, &own).is_err() {
            return Ok(None);
        }
        let result = (|| {
            let (digest, _) = hash(&mut *source, &mut |done| progress(done, size))
                .map_err(FileError::at("read", file))?;
            source
                .seek(SeekFrom::Start(0))
                .map_err(FileError::at("read", file))?;
            let linked = std::fs::metadata(&own).map_err(FileError::at("read", &own))?;
            if Stamp::of(&linked) != Stamp::of(found) {
                return Err(BlobError::Changed {
                    path: file.to_path_buf(),
                });
            }
            promised(expect, digest)?;
            if self.has(&digest) {
                std::fs::remove_file(&own).map_err(FileError::at("remove", &own))?;
                return Ok(Imported {
                    digest,
                    size,
                    how: How::Present,
                });
            }
            std::fs::rename(&own, self.path(&digest)).map_err(FileError::at("rename", &own))?;
            sync_folder(self.folder())?;
            Ok(Imported {
                digest,
                size,
                how: How::Linked,
            })
        })();
        if result.is_err() {
            let _ = std::fs::remove_file(&own);
        }
        result.map(Some)
    }

    /// A copy, hashed on the way.
    fn copy(
        &self,
        file: &Path,
        source: &mut File,
        found: &Metadata,
        expect: Option<ContentHash>,
        progress: Progress<'_>,
    ) -> Result<Imported, BlobError> {
        self.check_room(found.len())?;
        let (own, mut copy) = self.temporary()?;
        let result = copy_hashed(source, &mut copy, &own, found.len(), progress).and_then(
            |(digest, size)| {
                let now = source.metadata().map_err(FileError::at("read", file))?;
                if size != found.len() || Stamp::of(&now) != Stamp::of(found) {
                    return Err(BlobError::Changed {
                        path: file.to_path_buf(),
                    });
                }
                self.keep(&own, digest, size, expect, How::Copied)
            },
        );
        if result.is_err() {
            let _ = std::fs::remove_file(&own);
        }
        result
    }

    /// Gives an own file its name, unless the blob is here already or the bytes are others than promised.
    pub(super) fn keep(
        &self,
        own: &Path,
        digest: ContentHash,
        size: u64,
        expect: Option<ContentHash>,
        how: How,
    ) -> Result<Imported, BlobError> {
        promised(expect, digest)?;
        if self.has(&digest) {
            std::fs::remove_file(own).map_err(FileError::at("remove", own))?;
            return Ok(Imported {
                digest,
                size,
                how: How::Present,
            });
        }
        self.adopt(own, &digest)?;
        Ok(Imported { digest, size, how })
    }
}

fn promised(expect: Option<ContentHash>, found: ContentHash) -> Result<(), BlobError> {
    match expect {
        Some(promised) if promised != found => Err(BlobError::Digest { promised, found }),
        _ => Ok(()),
    }
}

fn copy_hashed(
    source: &mut File,
    copy: &mut File,
    own: &Path,
    total: u64,
    progress: Progress<'_>,
) -> Result<(ContentHash, u64), BlobError> {
    let mut hasher = Sha256::new();
    let mut chunk = vec![0; CHUNK];
    let mut done = 0;
    loop {
        let read = match source.read(&mut chunk) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(FileError::at("copy to", own)(error).into()),
        };
        hasher.update(&chunk[..read]);
        copy.write_all(&chunk[..read])
            .map_err(FileError::at("write", own))?;
        done += read as u64;
        progress(done, total);
    }
    Ok((ContentHash::from_bytes(hasher.finalize().into()), done))
}
