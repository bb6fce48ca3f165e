//! The records of an attempt at its provider: the requester's Acks and half, and our own half.
//!
//! Invariant: our half is durable before it is sent, and names nothing that was not counted here.

use substrate_mesh::Offence;
use substrate_mesh::job::JobFrame;
use substrate_record::{
    Ack, AnyRecord, Finish, ReceiptR, ReceiptW, RecordId, Signed, Timings, Verified,
};
use tokio::time::Instant;

use super::{RECEIPT_DEADLINE, Session, Stage, Step};
use crate::daemon::session::closing::{self, Closing};
use crate::daemon::session::work;

impl Session {
    /// Signs and stores the worker's half, sends it, and waits for the other.
    pub(super) async fn finish(&mut self, finish: Finish) -> Step {
        let Some(receipt) = self.receipt(finish) else {
            return Step::End;
        };
        let closing = Closing {
            manifests: vec![self.manifest.clone()],
            accept: self.accept.clone(),
            acks: self.acks.clone(),
            receipt: None,
        };
        match closing.append_worker_half(&self.context, receipt).await {
            Ok(receipt) => {
                let frame = JobFrame::Finished {
                    receipt_w: receipt.bytes().to_vec(),
                    fingerprints: Vec::new(),
                };
                self.stage = Stage::Settling(Box::new(receipt), Instant::now() + RECEIPT_DEADLINE);
                self.forget_text();
                self.send(frame).await
            }
            Err(error) => {
                tracing::error!(attempt = %self.attempt, %error, "the receipt could not be stored");
                Step::End
            }
        }
    }

    pub(super) fn receipt(&self, finish: Finish) -> Option<ReceiptW> {
        let accept = self.accept.as_ref()?;
        let input = self.input.as_ref()?;
        let mut all = input.resumed.clone();
        all.extend_from_slice(&self.ids);
        Some(ReceiptW {
            manifest: self.manifest.id(),
            accept: accept.id(),
            model_sha256: closing::weights(self.entry.as_ref()?)?,
            input_commitment: self.manifest.body().input_commitment,
            output_commitment: work::commit_output(&input.output_salt, &all),
            n_in: accept.body().n_in,
            n_out: self.own_tokens(),
            grant: None,
            microcredits: 0,
            last_ack: self.acks.last().map(Verified::id),
            finish,
            timings_ms: Timings {
                queue: self.spent.queue_ms(),
                prefill: self.spent.prefill_ms(),
                decode: self.spent.decode_ms(),
            },
            audit: None,
        })
    }

    pub(super) async fn on_receipt(&mut self, bytes: &[u8]) -> Step {
        let Stage::Settling(receipt, _) = &self.stage else {
            // A partial half of a requester that closed first: worth keeping, and the end.
            self.keep(bytes, None).await;
            return Step::On;
        };
        let id = receipt.id();
        if self.keep(bytes, Some(id)).await {
            self.send(JobFrame::Stored).await;
        }
        Step::End
    }

    /// Stores the requester's half if it is one of this attempt.
    pub(super) async fn keep(&mut self, bytes: &[u8], receipt: Option<RecordId>) -> bool {
        let half = match Signed::<ReceiptR>::decode(bytes)
            .map_err(|e| e.to_string())
            .and_then(|signed| {
                signed
                    .verify(&self.context.network)
                    .map_err(|e| e.to_string())
            }) {
            Ok(half) => half,
            Err(why) => {
                self.report_offence(Offence::BadRecord, format!("its receipt: {why}"))
                    .await;
                return false;
            }
        };
        if half.author() != self.attempt.peer || half.body().manifest != self.manifest.id() {
            self.report_offence(
                Offence::BadRecord,
                "a receipt for something else".to_owned(),
            )
            .await;
            return false;
        }
        let mut records = vec![AnyRecord::JobManifest(self.manifest.clone())];
        records.extend(
            self.accept
                .clone()
                .filter(|_| receipt.is_none())
                .map(AnyRecord::Accept),
        );
        records.push(AnyRecord::ReceiptR(half));
        match self.context.put(records).await {
            Ok(()) => true,
            Err(error) => {
                tracing::error!(attempt = %self.attempt, %error, "the requester's half could not be stored");
                false
            }
        }
    }

    pub(super) async fn on_ack(&mut self, bytes: &[u8]) -> Step {
        let Some(accept) = &self.accept else {
            return self
                .offend(Offence::OutOfOrder, "an Ack before the Accept".to_owned())
                .await;
        };
        let ack = match Signed::<Ack>::decode(bytes)
            .map_err(|e| e.to_string())
            .and_then(|signed| {
                signed
                    .verify(&self.context.network)
                    .map_err(|e| e.to_string())
            }) {
            Ok(ack) => ack,
            Err(why) => {
                return self
                    .offend(Offence::BadRecord, format!("its Ack: {why}"))
                    .await;
            }
        };
        let body = ack.body();
        if ack.author() != self.attempt.peer
            || body.manifest != self.manifest.id()
            || body.accept != accept.id()
        {
            return self
                .offend(Offence::BadRecord, "an Ack for something else".to_owned())
                .await;
        }
        if body.tokens > self.own_tokens() {
            return self
                .offend(
                    Offence::BadRecord,
                    "an Ack for tokens that were not sent".to_owned(),
                )
                .await;
        }
        self.tail.acked(body.tokens);
        self.acks.push(ack);
        closing::thin(&mut self.acks);
        Step::On
    }

    /// After the end, the ids that were not acknowledged stay only for a resume, which ends with this session.
    pub(super) fn forget_text(&mut self) {
        self.ids = Vec::new();
        self.input = None;
    }
}
