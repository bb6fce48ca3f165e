//! Hashing behind a download: the digest is known when the last byte is there.

use std::fs::File;
use std::os::unix::fs::FileExt;

use sha2::{Digest, Sha256};
use substrate_record::ContentHash;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::PullError;
use super::partial::Partial;
use crate::files::FileError;

/// Read at a time for hashing.
const HASH_CHUNK: usize = 1 << 20;

/// Hashes the beginning of the file as it grows, so that the digest is known when the last byte is.
pub(super) fn hash_behind(
    partial: &Partial,
    size: u64,
) -> JoinHandle<Result<ContentHash, PullError>> {
    let (file, prefix) = partial.follow();
    let runtime = Handle::current();
    tokio::task::spawn_blocking(move || hash(&file, prefix, size, &runtime))
}

fn hash(
    file: &File,
    mut prefix: watch::Receiver<u64>,
    size: u64,
    runtime: &Handle,
) -> Result<ContentHash, PullError> {
    let (mut hasher, mut at, mut chunk) = (Sha256::new(), 0_u64, vec![0; HASH_CHUNK]);
    while at < size {
        let here = *prefix.borrow_and_update();
        if here < at {
            // The download began anew from the first byte.
            (hasher, at) = (Sha256::new(), 0);
            continue;
        }
        if here == at {
            // The download was dropped if nobody can grow the file any more.
            runtime
                .block_on(prefix.changed())
                .map_err(|_| PullError::Stopped)?;
            continue;
        }
        let take = usize::try_from(here - at)
            .unwrap_or(usize::MAX)
            .min(HASH_CHUNK);
        file.read_exact_at(&mut chunk[..take], at)
            .map_err(FileError::at("read", "the download".as_ref()))?;
        hasher.update(&chunk[..take]);
        at += take as u64;
    }
    Ok(ContentHash::from_bytes(hasher.finalize().into()))
}
