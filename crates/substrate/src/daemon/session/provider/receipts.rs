//! The records of an attempt at its provider: the requester's Acks and half, and our own half.
//!
//! Invariant: our half is durable before it is sent, and names nothing that was not counted here.

use substrate_mesh::Offence;
use substrate_mesh::job::JobFrame;
use substrate_record::{
    Ack, AnyRecord, Commitment, Finish, ReceiptR, ReceiptW, Signed, Timings, Verified,
};
use tokio::time::Instant;
use zeroize::Zeroize;

use super::{RECEIPT_DEADLINE, Session, Stage, Step};
use crate::daemon::session::checks::{self, Sent};
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
        let output_commitment = match &self.rows {
            Some(rows) => rows.whole(),
            None => {
                let all = [input.resumed.as_slice(), &self.ids].concat();
                work::commit_output(&input.output_salt, &all)
            }
        };
        Some(ReceiptW {
            manifest: self.manifest.id(),
            accept: accept.id(),
            model_sha256: closing::weights(self.entry.as_ref()?)?,
            input_commitment: self.manifest.body().input_commitment,
            output_commitment,
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
        let settling = match &self.stage {
            Stage::Settling(receipt, _) => Some(Verified::clone(receipt)),
            _ => None,
        };
        let stored = self.keep(bytes, settling.as_ref()).await;
        if settling.is_none() {
            // A partial half of a requester that closed first: worth keeping, and the end will come.
            return Step::On;
        }
        if stored {
            self.send(JobFrame::Stored).await;
        }
        Step::End
    }

    /// Stores the requester's half if it answers ours, or our Accept. There is one of an attempt.
    async fn keep(&mut self, bytes: &[u8], receipt: Option<&Verified<ReceiptW>>) -> bool {
        let half = match self.open_half(bytes, receipt) {
            Ok(half) => half,
            Err(what) => {
                let what = format!("its receipt: {what}");
                self.report_offence(Offence::BadRecord, what).await;
                return false;
            }
        };
        if std::mem::replace(&mut self.answered, true) {
            self.report_offence(Offence::OutOfOrder, "a second receipt".to_owned())
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

    fn open_half(
        &self,
        bytes: &[u8],
        receipt: Option<&Verified<ReceiptW>>,
    ) -> Result<Verified<ReceiptR>, String> {
        let signed = Signed::<ReceiptR>::decode(bytes).map_err(|error| error.to_string())?;
        let half = signed
            .verify(&self.context.network)
            .map_err(|error| error.to_string())?;
        let accept = self.accept.as_ref().ok_or("nothing was accepted")?;
        checks::requester_half(&self.manifest, accept, receipt, &half, self.own_tokens())
            .map_err(|fault| fault.to_string())?;
        Ok(half)
    }

    pub(super) async fn on_ack(&mut self, bytes: &[u8]) -> Step {
        let ack = match self.open_ack(bytes) {
            Ok(ack) => ack,
            Err((kind, what)) => return self.offend(kind, format!("its Ack: {what}")).await,
        };
        self.tail.acked(ack.body().tokens);
        if !matches!(self.stage, Stage::Settling(..)) {
            self.acks.push(ack);
            closing::thin(&mut self.acks);
        }
        Step::On
    }

    fn open_ack(&self, bytes: &[u8]) -> Result<Verified<Ack>, (Offence, String)> {
        let bad = |what: &dyn std::fmt::Display| (Offence::BadRecord, what.to_string());
        let signed = Signed::<Ack>::decode(bytes).map_err(|error| bad(&error))?;
        let ack = signed
            .verify(&self.context.network)
            .map_err(|error| bad(&error))?;
        let Some(accept) = &self.accept else {
            return Err((Offence::OutOfOrder, "nothing was accepted".to_owned()));
        };
        let sent = Sent {
            tokens: self.own_tokens(),
            prefilled: self.prefilled,
            output: &|tokens| self.committed(tokens, ack.body()),
        };
        checks::ack(&self.manifest, accept, self.acks.last(), &ack, &sent)
            .map_err(|fault| bad(&fault))?;
        Ok(ack)
    }

    /// Commitment to resumed and that many own ids. An Ack that crossed the end is believed: our half is signed, its
    /// ids are gone, and it is not kept.
    fn committed(&self, tokens: u32, claimed: &Ack) -> Option<Commitment> {
        if matches!(self.stage, Stage::Settling(..)) {
            return Some(claimed.output_commitment);
        }
        if let Some(rows) = &self.rows {
            return rows.after(tokens);
        }
        let input = self.input.as_ref()?;
        let own = self.ids.get(..tokens as usize)?;
        let all = [input.resumed.as_slice(), own].concat();
        Some(work::commit_output(&input.output_salt, &all))
    }

    /// After the end, the ids that were not acknowledged stay only for a resume, which ends with this session.
    pub(super) fn forget_text(&mut self) {
        self.ids.zeroize();
        self.rows = None;
        self.input = None;
    }
}
