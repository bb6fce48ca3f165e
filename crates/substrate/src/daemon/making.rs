//! Models made over HTTP, and the uploads they are made from.
//!
//! Invariants: an upload holds a chunk in memory and leaves the disk's reserve free however long it is; one that breaks
//! off, or has another digest, leaves nothing behind.

use std::io::Write;
use std::sync::Arc;

use axum::body::Bytes;
use substrate_record::ContentHash;
use tokio::sync::mpsc;

use super::actions::action_error;
use super::context::blocking;
use crate::blobs::{BlobError, Blobs};
use crate::door::{Call, Door};
use crate::grpc::desk::{Desk, now_ms};
use crate::http::actions::PullStream;
use crate::http::{ActionError, PullProgress};
use crate::models::create::{Adapter, Base, CreateError, Order};
use crate::models::import::{ImportError, Signer};

/// Steps that may wait for a client. A making has fewer.
const PROGRESS_DEPTH: usize = 16;

/// Bytes written between two looks at the disk's room: the reserve is as much.
const LOOK_EVERY: u64 = 64 << 20;

/// Makes a model, and tells its steps.
pub async fn create(desk: Arc<Desk>, door: Door, order: Order) -> Result<PullStream, ActionError> {
    let looked_at = desk.clone();
    let order = blocking(move || is_here(&looked_at, &order).map(|()| order)).await?;
    let (tell, steps) = mpsc::channel(PROGRESS_DEPTH);
    tokio::spawn(async move {
        let telling = tell.clone();
        let made = blocking(move || {
            let signer = Signer::Device(desk.device.clone());
            // A client that went away misses the steps and nothing else.
            let mut step = |status: &str| drop(telling.try_send(Ok(line(status))));
            desk.importer.create(order, &signer, now_ms(), &mut step)
        });
        let last = match made.await {
            Ok(_) => {
                // A daemon that is stopping reads the list again when it starts.
                let _ = door.call(|reply| Call::ModelsChanged { reply }).await;
                Ok(line("success"))
            }
            Err(error) => Err(create_error(error)),
        };
        let _ = tell.send(last).await;
    });
    Ok(steps)
}

/// What is not here is told before anything else.
fn is_here(desk: &Desk, order: &Order) -> Result<(), ActionError> {
    if let Base::Model(name) = &order.base {
        desk.catalogue.find(name).map_err(action_error)?;
    }
    if let Base::Blob(digest) = &order.base {
        blob_is_here(desk, "files", digest)?;
    }
    if let Some(Adapter::Blob(digest)) = &order.adapter {
        blob_is_here(desk, "adapters", digest)?;
    }
    Ok(())
}

fn blob_is_here(desk: &Desk, param: &'static str, digest: &ContentHash) -> Result<(), ActionError> {
    if desk.blobs.has(digest) {
        return Ok(());
    }
    let why =
        format!("no blob sha256:{digest} is here: send it to /api/blobs/sha256:{digest} first");
    Err(ActionError::Invalid { param, why })
}

fn line(status: &str) -> PullProgress {
    PullProgress {
        status: status.to_owned(),
        digest: None,
        total: None,
        completed: None,
    }
}

/// Keeps an upload.
pub fn keep(
    blobs: &Blobs,
    digest: ContentHash,
    total: Option<u64>,
    mut bytes: mpsc::Receiver<Bytes>,
) -> Result<(), ActionError> {
    let mut writer = blobs.writer(Some(digest), total).map_err(blob_error)?;
    let mut unlooked = 0;
    while let Some(chunk) = bytes.blocking_recv() {
        unlooked += chunk.len() as u64;
        if unlooked >= LOOK_EVERY {
            blobs.check_room(0).map_err(blob_error)?;
            unlooked = 0;
        }
        let written = writer.write_all(&chunk);
        written.map_err(|error| ActionError::Failed {
            why: format!("the upload could not be written: {error}"),
        })?;
    }
    writer.commit().map(drop).map_err(blob_error)
}

fn blob_error(error: BlobError) -> ActionError {
    let why = error.to_string();
    match error {
        BlobError::Digest { .. } => ActionError::Invalid {
            param: "digest",
            why,
        },
        BlobError::NoSpace { need, free, .. } => ActionError::NoSpace {
            // Where the blobs lie is nobody's business over HTTP.
            why: format!("not enough space on the disk: {need} bytes are needed, {free} are free"),
        },
        _ => ActionError::Failed { why },
    }
}

fn create_error(error: CreateError) -> ActionError {
    let why = error.to_string();
    match error {
        CreateError::Base(error) => action_error(error),
        CreateError::Recipe(_) => ActionError::Invalid {
            param: "model",
            why,
        },
        CreateError::Import(ImportError::Refused { why, .. }) => ActionError::Invalid {
            param: "files",
            why,
        },
        CreateError::Blob(error) => blob_error(error),
        CreateError::Import(_) | CreateError::Store(_) => ActionError::Failed { why },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upload(blobs: &Blobs, promised: &[u8], chunks: &[&'static [u8]]) -> Result<(), ActionError> {
        let (send, bytes) = mpsc::channel(chunks.len().max(1));
        for chunk in chunks {
            send.try_send(Bytes::from_static(chunk)).unwrap();
        }
        drop(send);
        keep(blobs, ContentHash::of(promised), None, bytes)
    }

    #[test]
    fn an_upload_is_kept_if_it_is_what_was_promised_and_leaves_nothing_otherwise() {
        let folder = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(folder.path()).unwrap();
        upload(&blobs, b"weights", &[b"wei", b"", b"ghts"]).unwrap();
        assert!(blobs.has(&ContentHash::of(b"weights")));
        let cut = upload(&blobs, b"more weights", &[b"more"]);
        assert!(matches!(
            cut,
            Err(ActionError::Invalid {
                param: "digest",
                ..
            })
        ));
        let files = std::fs::read_dir(folder.path()).unwrap();
        assert_eq!(files.count(), 2, "the blob and the quarantine");
    }

    #[test]
    fn an_upload_that_says_it_is_larger_than_the_disk_is_refused_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(folder.path()).unwrap();
        let (_send, bytes) = mpsc::channel(1);
        let kept = keep(&blobs, ContentHash::of(b"x"), Some(u64::MAX), bytes);
        let Err(ActionError::NoSpace { why }) = kept else {
            panic!("it was taken");
        };
        assert!(!why.contains(&*folder.path().to_string_lossy()));
    }
}
