//! Bytes that arrive in order (an upload, a peer's stream), hashed as they come.

use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;

use sha2::{Digest, Sha256};
use substrate_record::ContentHash;

use super::{BlobError, Blobs, How};
use crate::files::FileError;

/// A blob on its way. Dropping it without [`BlobWriter::commit`] leaves nothing behind.
pub struct BlobWriter {
    blobs: Blobs,
    own: PathBuf,
    file: File,
    hasher: Sha256,
    size: u64,
    expect: Option<ContentHash>,
}

impl Blobs {
    /// Starts a blob; `total`, if known, must fit on the disk.
    pub fn writer(
        &self,
        expect: Option<ContentHash>,
        total: Option<u64>,
    ) -> Result<BlobWriter, BlobError> {
        self.check_room(total.unwrap_or(0))?;
        let (own, file) = self.temporary()?;
        Ok(BlobWriter {
            blobs: self.clone(),
            own,
            file,
            hasher: Sha256::new(),
            size: 0,
            expect,
        })
    }
}

impl BlobWriter {
    /// Checks the digest and gives the blob its name.
    pub fn commit(self) -> Result<(ContentHash, u64), BlobError> {
        let digest = ContentHash::from_bytes(self.hasher.clone().finalize().into());
        let kept = self
            .blobs
            .keep(&self.own, digest, self.size, self.expect, How::Copied)?;
        Ok((kept.digest, kept.size))
    }
}

impl Write for BlobWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for BlobWriter {
    fn drop(&mut self) {
        // After a commit the name is gone already.
        if let Err(error) = std::fs::remove_file(&self.own)
            && error.kind() != io::ErrorKind::NotFound
        {
            let error = FileError::at("remove", &self.own)(error);
            tracing::warn!(%error, "a left-over stays until the next start");
        }
    }
}
