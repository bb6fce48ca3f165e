//! What the provider sends that counts: its Accept, its tokens, its half of the receipt.
//!
//! Invariant: each is checked against what was asked and what came before it, and nothing that fails is used.

use substrate_mesh::Offence;
use substrate_mesh::token::TokenLogprob;
use substrate_node::Event;
use substrate_record::{Accept, Finish, JobKind, ReceiptW, Signed};

use super::{ACK_TOKENS, Dial, PREFILLED_EVERY, Session, Step, for_client};
use crate::daemon::session::answer::millis;
use crate::daemon::session::checks::{self, Fault, Received};
use crate::daemon::session::closing;
use crate::daemon::session::io::JobIo;
use crate::daemon::session::output::is_vector;
use crate::door::{JobEvent, Started, TextPiece};

impl<D: Dial> Session<D> {
    pub(super) async fn on_started(&mut self, accept: &[u8], io: &mut Option<JobIo>) -> Step {
        let attempt = self.offer.attempt;
        let accept = match Signed::<Accept>::decode(accept)
            .map_err(|e| e.to_string())
            .and_then(|signed| {
                signed
                    .verify(&self.context.network)
                    .map_err(|e| e.to_string())
            }) {
            Ok(accept) => accept,
            Err(why) => {
                return self
                    .misbehaved(Offence::BadRecord, &format!("its Accept: {why}"))
                    .await;
            }
        };
        let body = accept.body();
        if accept.author() != attempt.peer
            || body.manifest != self.manifest.id()
            || self.accept.is_some()
        {
            return self
                .misbehaved(Offence::BadRecord, "its Accept is for something else")
                .await;
        }
        if !body.wall.satisfies(self.answer.wall) {
            return self
                .misbehaved(Offence::BadRecord, "its wall is weaker than demanded")
                .await;
        }
        let asked = &self.manifest.body().engine_class;
        if !asked.is_empty() && *asked != body.engine_class {
            return self
                .misbehaved(Offence::BadRecord, "its engine is not the one asked for")
                .await;
        }
        let n_in = body.n_in;
        // A later attempt at vectors reads only the texts that are left.
        if self.answer.kind == JobKind::Generate || self.answer.ids.is_empty() {
            self.answer.n_in = n_in;
        }
        self.answer.timings.load = self.answer.ready.map_or(0, millis);
        self.accept = Some(accept);
        self.tell(Event::PeerStarted { attempt, n_in }).await;
        self.pending.push_back(JobEvent::Started(Started {
            node: attempt.peer,
            route: self.offer.route,
            n_in,
            attempt: attempt.number,
        }));
        self.ack(io).await
    }

    /// The count grows up to the prompt's length; resumed ids, which are read after it, only repeat that.
    pub(super) async fn on_prefilled(&mut self, n: u32, io: &mut Option<JobIo>) -> Step {
        if let Err(fault) = checks::prefilled(self.accept.as_ref(), self.prefilled, n) {
            return self
                .misbehaved(Offence::OutOfOrder, &fault.to_string())
                .await;
        }
        if n == self.prefilled && self.read_on <= self.resumed_tokens() / PREFILLED_EVERY {
            self.read_on += 1;
        }
        self.prefilled = n;
        self.tell_progress().await;
        self.ack(io).await
    }

    pub(super) async fn on_tokens(
        &mut self,
        ids: Vec<u32>,
        bytes: Vec<u8>,
        logprobs: Vec<TokenLogprob>,
        io: &mut Option<JobIo>,
    ) -> Step {
        if self.accept.is_none()
            || self.answer.ids.len() + ids.len() > self.answer.max_tokens as usize
        {
            return self
                .misbehaved(Offence::OutOfOrder, "tokens nobody asked for")
                .await;
        }
        if self.answer.kind == JobKind::Embed {
            return self.on_row(&ids, bytes, io).await;
        }
        if std::str::from_utf8(&bytes).is_err() {
            return self
                .misbehaved(Offence::BadRecord, "text that is not whole UTF-8")
                .await;
        }
        // A frame without tokens is the text held back until the end; after a resume it may come twice.
        if ids.is_empty() && std::mem::replace(&mut self.has_last_text, true) {
            return Step::On;
        }
        self.answer.ids.extend_from_slice(&ids);
        self.answer.fed = Some(std::time::Instant::now());
        let logprobs = logprobs.into_iter().map(for_client).collect();
        self.pending.push_back(JobEvent::Text(TextPiece {
            bytes,
            ids,
            logprobs,
        }));
        self.tell_progress().await;
        if self.own_tokens() - self.last_acked() >= ACK_TOKENS {
            return self.ack(io).await;
        }
        Step::On
    }

    /// One row: its number within the attempt, and its components.
    async fn on_row(&mut self, ids: &[u32], bytes: Vec<u8>, io: &mut Option<JobIo>) -> Step {
        let length = *self.row_length.get_or_insert(bytes.len());
        if ids != [self.own_tokens()] || bytes.len() != length || !is_vector(&bytes) {
            return self
                .misbehaved(Offence::BadRecord, "a row that is none, or not the next")
                .await;
        }
        self.rows.push(&bytes);
        let row = u32::try_from(self.answer.ids.len()).unwrap_or(u32::MAX);
        self.answer.ids.push(row);
        self.answer.fed = Some(std::time::Instant::now());
        self.pending.push_back(JobEvent::Row(bytes));
        self.tell_progress().await;
        if self.own_tokens() - self.last_acked() >= ACK_TOKENS {
            return self.ack(io).await;
        }
        Step::On
    }

    pub(super) async fn on_finished(&mut self, receipt: &[u8]) -> Step {
        let attempt = self.offer.attempt;
        let receipt = match Signed::<ReceiptW>::decode(receipt)
            .map_err(|e| e.to_string())
            .and_then(|signed| {
                signed
                    .verify(&self.context.network)
                    .map_err(|e| e.to_string())
            }) {
            Ok(receipt) => receipt,
            Err(why) => {
                return self
                    .misbehaved(Offence::BadRecord, &format!("its receipt: {why}"))
                    .await;
            }
        };
        let received = Received {
            tokens: self.own_tokens(),
            output: self.output(),
            weights: closing::weights(&self.offer.entry),
        };
        let accept = self.accept.as_ref();
        if let Err(fault) = checks::worker_half(&self.manifest, accept, &receipt, &received) {
            if matches!(fault, Fault::False(_)) {
                // Its author's own word, kept and rejected when the attempt is closed.
                self.receipt = Some(receipt);
            }
            return self
                .misbehaved(Offence::BadRecord, &fault.to_string())
                .await;
        }
        let finish = receipt.body().finish;
        let missing = self.answer.ids.len() != self.answer.max_tokens as usize;
        if self.answer.kind == JobKind::Embed && finish == Finish::Stop && missing {
            self.receipt = Some(receipt);
            return self
                .misbehaved(Offence::BadRecord, "fewer rows than there are texts")
                .await;
        }
        self.receipt = Some(receipt);
        self.tell(Event::PeerFinished {
            attempt,
            tokens: self.own_tokens(),
            finish,
        })
        .await;
        Step::On
    }
}
