//! What is stored when an attempt ends: the half signed here and everything it rests on, in one transaction.
//!
//! Invariant: a receipt never stands in the store without its manifest and its Accept.

use std::sync::Arc;

use substrate_node::CloseReason;
use substrate_record::{
    Accept, Ack, AnyRecord, ContentHash, FileRole, JobManifest, ModelEntry, ReceiptR, ReceiptW,
    Stream, Verified,
};

use crate::daemon::context::Context;
use crate::store::StoreError;

/// Acks kept per attempt. Past that the older half is thinned out: the last one says the most.
const MAX_ACKS: usize = 64;

/// The records of an attempt that ends.
pub struct Closing {
    /// Manifests of this attempt and the ones before it.
    pub manifests: Vec<Verified<JobManifest>>,
    /// The provider's Accept.
    pub accept: Option<Verified<Accept>>,
    /// Acks of this attempt.
    pub acks: Vec<Verified<Ack>>,
    /// The worker's half.
    pub receipt: Option<Verified<ReceiptW>>,
}

impl Closing {
    /// Signs and stores the requester's half.
    ///
    /// # Errors
    /// The store's; then nothing was stored and the half must not be sent.
    pub async fn append(
        self,
        context: &Arc<Context>,
        half: ReceiptR,
    ) -> Result<Verified<ReceiptR>, StoreError> {
        let before = self.records();
        context
            .append(Stream::Work, half, AnyRecord::ReceiptR, before)
            .await
    }

    /// Signs and stores the worker's half.
    ///
    /// # Errors
    /// As [`Closing::append`].
    pub async fn append_worker_half(
        self,
        context: &Arc<Context>,
        half: ReceiptW,
    ) -> Result<Verified<ReceiptW>, StoreError> {
        let before = self.records();
        context
            .append(Stream::Work, half, AnyRecord::ReceiptW, before)
            .await
    }

    fn records(self) -> Vec<AnyRecord> {
        let manifests = self.manifests.into_iter().map(AnyRecord::JobManifest);
        let accept = self.accept.into_iter().map(AnyRecord::Accept);
        let acks = self.acks.into_iter().map(AnyRecord::Ack);
        let receipt = self.receipt.into_iter().map(AnyRecord::ReceiptW);
        manifests.chain(accept).chain(acks).chain(receipt).collect()
    }
}

/// Keeps the list of Acks bounded.
pub fn thin(acks: &mut Vec<Verified<Ack>>) {
    if acks.len() > MAX_ACKS {
        acks.drain(1..MAX_ACKS / 2);
    }
}

/// Digest of an entry's weights.
pub fn weights(entry: &Verified<ModelEntry>) -> Option<ContentHash> {
    entry
        .body()
        .files
        .iter()
        .find(|file| file.role == FileRole::Weights)
        .map(|file| file.sha256)
}

/// The reason written into ReceiptR.
pub fn words(why: CloseReason) -> &'static str {
    match why {
        CloseReason::Cancelled => "cancelled by the client",
        CloseReason::Deadline => "the client's deadline passed",
        CloseReason::Lost => "the node vanished",
        CloseReason::Stalled => "the node made no progress",
        CloseReason::Misbehaved => "the node broke the protocol",
        CloseReason::GaveUp => "the node gave the job back",
        CloseReason::Refused => "the node refused",
        CloseReason::OutOfScope => "the node is in scope no more",
    }
}
