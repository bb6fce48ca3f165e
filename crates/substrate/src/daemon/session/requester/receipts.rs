//! The records of an attempt at its requester: Acks on the way, and the half that settles or closes it.
//!
//! Invariant: our half is durable before it is sent and before the client is told of the end.

use std::time::Instant;

use substrate_mesh::Offence;
use substrate_mesh::job::JobFrame;
use substrate_node::{CloseReason, Event};
use substrate_record::{
    Ack, ContentHash, Finish, Half, ReceiptR, ReceiptVerdict, ReceiptW, Verified,
};

use super::{Dial, Session, Step, await_stored};
use crate::daemon::session::answer::millis;
use crate::daemon::session::closing::{self, Closing};
use crate::daemon::session::io::JobIo;
use crate::door::{AskError, FinishReason, JobEvent, Summary};
use crate::models::parts::Parts;

impl<D: Dial> Session<D> {
    /// Both halves durable here, then the client's end of the answer, then the provider's `Stored`.
    pub(super) async fn settle(&mut self, io: &mut Option<JobIo>) {
        let attempt = self.offer.attempt;
        let Some(receipt) = self.receipt.clone() else {
            return;
        };
        let verdict = self.verdict(
            Half::ReceiptW(receipt.id()),
            ReceiptVerdict::Ok,
            String::new(),
        );
        let half = match self
            .closing(Some(receipt.clone()))
            .append(&self.context, verdict)
            .await
        {
            Ok(half) => half,
            Err(error) => {
                tracing::error!(%attempt, %error, "the receipt could not be stored");
                self.flush().await;
                self.fail(format!("the receipt could not be stored: {error}"))
                    .await;
                self.tell(Event::ReceiptStored { attempt }).await;
                return;
            }
        };
        self.tell(Event::ReceiptStored { attempt }).await;
        let send = async {
            let half = JobFrame::ReceiptR {
                bytes: half.bytes().to_vec(),
            };
            if let Some(stream) = io.as_mut()
                && stream.send(&half).await.is_ok()
            {
                await_stored(stream).await;
            }
        };
        let summary = self.summary(Some(&receipt), &half);
        let finish = async {
            self.flush().await;
            let _ = self
                .answer
                .events
                .send(JobEvent::Finished(Box::new(summary)))
                .await;
        };
        tokio::join!(send, finish);
    }

    /// Tells the client that this machine cannot go on with its job, which ends when the client lets go of it. Another
    /// node could answer, but what it answers could not be settled here either.
    async fn fail(&self, why: String) {
        let failed = JobEvent::Failed(AskError::Internal { why });
        let _ = self.answer.events.send(failed).await;
    }

    /// Hands the client what is still pending; a client that went away loses it.
    pub(super) async fn flush(&self) {
        for event in &self.pending {
            if self.answer.events.send(event.clone()).await.is_err() {
                return;
            }
        }
    }

    /// What the client is told at the end; of an attempt that was closed before its receipt came, as far as it is known here.
    pub(super) fn summary(
        &self,
        receipt: Option<&Verified<ReceiptW>>,
        half: &Verified<ReceiptR>,
    ) -> Summary {
        let told = receipt.map(Verified::body);
        let mut timings = self.answer.timings;
        if let Some(told) = told {
            // Its wait is a part of what passed here before it was ready, whatever it says.
            timings.queue = told.timings_ms.queue.min(timings.route);
            timings.route -= timings.queue;
            timings.prefill = timings.prefill.saturating_add(told.timings_ms.prefill);
            timings.decode = timings.decode.saturating_add(told.timings_ms.decode);
        }
        timings.total = millis(self.answer.since);
        let named = || Parts::of(self.offer.entry.body()).map(|parts| parts.weights);
        let model = told.map(|told| told.model_sha256).or_else(named);
        Summary {
            finish: match told {
                Some(told) if told.finish == Finish::Stop => FinishReason::Stop,
                _ => FinishReason::Length,
            },
            n_in: self.answer.n_in,
            n_out: u32::try_from(self.answer.ids.len()).unwrap_or(u32::MAX),
            node: self.offer.attempt.peer,
            route: self.offer.route,
            scope: self.offer.scope,
            wall: self
                .accept
                .as_ref()
                .map_or(self.answer.wall, |accept| accept.body().wall),
            isolated: self.answer.isolated,
            attempts: self.offer.attempt.number,
            receipt: Some(half.id()),
            model_sha256: model.unwrap_or(ContentHash::from_bytes([0; 32])),
            timings,
        }
    }

    pub(super) async fn close(&mut self, why: CloseReason, io: &mut Option<JobIo>) {
        if let Some(stream) = io.as_mut() {
            let _ = stream.send(&JobFrame::Cancel).await;
        }
        // What came but was not handed over yet belongs to the client: the next attempt resumes after it.
        if why != CloseReason::Cancelled {
            self.flush().await;
        }
        let half = match (&self.receipt, &self.accept) {
            (Some(receipt), _) => Half::ReceiptW(receipt.id()),
            (None, Some(accept)) => Half::Accept(accept.id()),
            (None, None) => return,
        };
        let verdict = if why == CloseReason::Misbehaved {
            ReceiptVerdict::Reject
        } else {
            ReceiptVerdict::Partial
        };
        let body = self.verdict(half, verdict, closing::words(why).to_owned());
        let stored = self
            .closing(self.receipt.clone())
            .append(&self.context, body)
            .await;
        if let Ok(half) = &stored {
            self.answer.unsettled = Some(Box::new(self.summary(self.receipt.as_ref(), half)));
        }
        match (stored, io.as_mut()) {
            (Ok(half), Some(stream)) => {
                let _ = stream
                    .send(&JobFrame::ReceiptR {
                        bytes: half.bytes().to_vec(),
                    })
                    .await;
            }
            (Err(error), _) => {
                tracing::error!(attempt = %self.offer.attempt, %error, "the partial receipt could not be stored");
                self.fail(format!("the receipt could not be stored: {error}"))
                    .await;
            }
            (Ok(_), None) => {}
        }
    }

    pub(super) fn closing(&self, receipt: Option<Verified<ReceiptW>>) -> Closing {
        Closing {
            manifests: self.answer.manifests.iter().cloned().collect(),
            accept: self.accept.clone(),
            acks: self.acks.clone(),
            receipt,
        }
    }

    pub(super) fn verdict(&self, half: Half, verdict: ReceiptVerdict, reason: String) -> ReceiptR {
        ReceiptR {
            manifest: self.manifest.id(),
            half,
            verdict,
            tokens: self.own_tokens(),
            reason,
        }
    }

    pub(super) async fn ack(&mut self, io: &mut Option<JobIo>) -> Step {
        let Some(accept) = &self.accept else {
            return Step::On;
        };
        let ack = self.context.sign(Ack {
            manifest: self.manifest.id(),
            accept: accept.id(),
            n_in: accept.body().n_in,
            prefilled: self.prefilled,
            tokens: self.own_tokens(),
            output_commitment: self.output(),
        });
        let ack = match ack {
            Ok(ack) => ack,
            Err(error) => {
                return self
                    .misbehaved(Offence::BadRecord, &format!("its counts: {error}"))
                    .await;
            }
        };
        let frame = JobFrame::Ack {
            bytes: ack.bytes().to_vec(),
        };
        self.acks.push(ack);
        closing::thin(&mut self.acks);
        self.acked_at = Instant::now();
        let lost = match io.as_mut() {
            Some(stream) => stream.send(&frame).await.is_err(),
            None => false,
        };
        if lost { self.lose(io).await } else { Step::On }
    }
}
