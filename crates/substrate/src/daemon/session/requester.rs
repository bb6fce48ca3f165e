//! The requester's end of one attempt: manifest out, tokens in, the receipt's second half at the end.
//!
//! Invariant: nothing reaches the client that is not covered by the ids this end commits to; a record that does
//! not verify, or a commitment that differs, ends the attempt as misbehaviour and is never settled.
//! Absent by design: choosing nodes, retrying, and any text kept past the answer's end.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use substrate_mesh::input::{InputHeader, input_frames};
use substrate_mesh::job::JobFrame;
use substrate_node::{AttemptId, CloseReason, Event, MoveReason};
use substrate_record::{
    Accept, Ack, Finish, Half, JobKind, JobManifest, ModelEntry, NodeId, Policy, ReceiptR,
    ReceiptVerdict, ReceiptW, Scope, SessionNonce, Signed, Verified, commit, output_bytes,
};
use tokio::sync::{Mutex, OwnedMutexGuard, mpsc};
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::answer::{Answer, Salts, millis};
use super::io::{HEARTBEAT, IoEnd, JobIo, WRITE_DEADLINE};
use super::{Report, RequesterOrder, refusal};
use crate::daemon::context::Context;
use crate::daemon::session::closing::{self, Closing};
use crate::door::{FinishReason, JobEvent, Route, Started, Summary, TextPiece, TokenLogprob};

/// Tokens between two Acks, PROTOCOL.md 4.
const ACK_TOKENS: u32 = 256;
/// Longest time between two Acks while tokens come, PROTOCOL.md 4.
const ACK_INTERVAL: Duration = Duration::from_secs(10);
/// How long the provider may take to store both halves before we stop waiting for `Stored`.
const STORED_DEADLINE: Duration = Duration::from_secs(10);
/// Fixed point of log-probabilities on the stream, PROTOCOL.md 1.
const LOGPROB_ONE: f32 = 65536.0;

/// One attempt, as the node ordered it and the loop filled it in.
pub struct Offer {
    /// Job, number, provider.
    pub attempt: AttemptId,
    /// What the provider holds.
    pub entry: Verified<ModelEntry>,
    /// By the provider's capability.
    pub engine_class: String,
    /// The provider's session nonce.
    pub session: SessionNonce,
    /// What the manifest signs: the client's scope or a narrower one.
    pub scope: Scope,
    /// How it is reached.
    pub route: Route,
    /// The node this answer left, if it had started there.
    pub moved: Option<(NodeId, MoveReason)>,
}

/// Opens the stream an offer goes over; again for a resume.
pub trait Dial: Send + Sync {
    /// A fresh job stream to the provider.
    fn dial(&self, to: NodeId) -> impl Future<Output = Option<JobIo>> + Send;
}

struct Session<D> {
    context: Arc<Context>,
    offer: Offer,
    answer: OwnedMutexGuard<Answer>,
    dial: Arc<D>,
    reports: mpsc::Sender<Report>,
    manifest: Verified<JobManifest>,
    salts: Salts,
    /// Tokens the answer had when this attempt began.
    resumed: usize,
    accept: Option<Verified<Accept>>,
    acks: Vec<Verified<Ack>>,
    prefilled: u32,
    acked_at: Instant,
    receipt: Option<Verified<ReceiptW>>,
    /// For the client, in order. Frames are read only while this is empty.
    pending: VecDeque<JobEvent>,
    /// The provider broke the protocol: nothing it sends counts any more.
    condemned: bool,
    /// The text held back until the end has come.
    has_last_text: bool,
}

/// Whether the session goes on after something happened.
enum Step {
    On,
    End,
}

/// Runs one attempt to its end. Waits for the attempt before it to let go of the answer.
pub async fn run<D: Dial + 'static>(
    context: Arc<Context>,
    offer: Offer,
    answer: Arc<Mutex<Answer>>,
    dial: Arc<D>,
    reports: mpsc::Sender<Report>,
    mut orders: mpsc::Receiver<RequesterOrder>,
) {
    let attempt = offer.attempt;
    let answer = answer.lock_owned().await;
    let salts = Salts::draw();
    let manifest = sign_manifest(&context, &offer, &answer, &salts);
    let resumed = answer.ids.len();
    let mut session = Session {
        context,
        offer,
        answer,
        dial,
        reports: reports.clone(),
        manifest,
        salts,
        resumed,
        accept: None,
        acks: Vec::new(),
        prefilled: 0,
        acked_at: Instant::now(),
        receipt: None,
        pending: VecDeque::new(),
        condemned: false,
        has_last_text: false,
    };
    session.answer.remember(session.manifest.clone());
    session.answer.offered = Some(Instant::now());
    session.drive(&mut orders).await;
    drop(session);
    let _ = reports.send(Report::RequesterClosed(attempt)).await;
}

fn sign_manifest(
    context: &Context,
    offer: &Offer,
    answer: &Answer,
    salts: &Salts,
) -> Verified<JobManifest> {
    let resumed = u32::try_from(answer.ids.len()).unwrap_or(u32::MAX);
    context.sign(JobManifest {
        job: offer.attempt.job,
        attempt: offer.attempt.number,
        provider: offer.attempt.peer,
        provider_session: offer.session,
        kind: JobKind::Generate,
        scope: offer.scope,
        entry: offer.entry.id(),
        adapter: None,
        engine_class: offer.engine_class.clone(),
        sampler: answer.sampler,
        seed_commitment: commit(&salts.seed, &answer.seed),
        max_tokens: answer.max_tokens,
        deadline_ms: answer.deadline_left_ms(),
        input_commitment: commit(&salts.input, &answer.input),
        wall: answer.wall,
        isolated: false,
        parents: answer.parent().into_iter().collect(),
        policy: Policy {
            rules_hash: context.desk.genesis.body().rules_hash,
            audit_consent: false,
        },
        resume_tokens: resumed,
        resume_commitment: (resumed > 0).then(|| commit(&salts.resume, &output_bytes(&answer.ids))),
    })
}

impl<D: Dial> Session<D> {
    async fn drive(&mut self, orders: &mut mpsc::Receiver<RequesterOrder>) {
        if let Some((from, why)) = self.offer.moved.take() {
            let after_tokens = self.resumed_tokens();
            self.pending.push_back(JobEvent::Moved {
                from,
                after_tokens,
                why: why.to_string(),
            });
        }
        let Some(mut io) = self.dial.dial(self.offer.attempt.peer).await else {
            self.tell(Event::DialFailed {
                attempt: self.offer.attempt,
            })
            .await;
            return;
        };
        let offer = JobFrame::Offer {
            manifest: self.manifest.bytes().to_vec(),
        };
        if io.send(&offer).await.is_err() {
            self.tell(Event::DialFailed {
                attempt: self.offer.attempt,
            })
            .await;
            return;
        }
        let mut io = Some(io);
        let mut beat = interval(HEARTBEAT);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let step = tokio::select! {
                biased;
                order = orders.recv() => self.on_order(order, &mut io).await,
                permit = self.answer.events.clone().reserve_owned(), if !self.pending.is_empty() => {
                    if let (Ok(permit), Some(event)) = (permit, self.pending.pop_front()) { permit.send(event); }
                    else { self.pending.clear(); }
                    Step::On
                }
                frame = next(&mut io), if self.pending.is_empty() && !self.condemned => self.on_frame(frame, &mut io).await,
                _ = beat.tick() => self.on_beat(&mut io).await,
            };
            if matches!(step, Step::End) {
                return;
            }
        }
    }

    async fn on_order(&mut self, order: Option<RequesterOrder>, io: &mut Option<JobIo>) -> Step {
        match order {
            Some(RequesterOrder::Settle) => {
                self.settle(io).await;
                Step::End
            }
            Some(RequesterOrder::Resume) => self.resume(io).await,
            Some(RequesterOrder::Close(why)) => {
                self.close(why, io).await;
                Step::End
            }
            None => {
                self.close(CloseReason::Cancelled, io).await;
                Step::End
            }
        }
    }

    /// A beat shows the provider that we live, and stands in for its signs of life while our own client blocks the reading.
    async fn on_beat(&mut self, io: &mut Option<JobIo>) -> Step {
        let attempt = self.offer.attempt;
        if io.is_some() && !self.pending.is_empty() {
            self.tell(Event::PeerHeartbeat { attempt }).await;
        }
        let lost = match io.as_mut() {
            Some(stream) => stream.send(&JobFrame::Heartbeat).await.is_err(),
            None => false,
        };
        if lost {
            return self.lose(io).await;
        }
        if self.own_tokens() > self.last_acked() && self.acked_at.elapsed() >= ACK_INTERVAL {
            return self.ack(io).await;
        }
        Step::On
    }

    async fn on_frame(&mut self, frame: Result<JobFrame, IoEnd>, io: &mut Option<JobIo>) -> Step {
        let attempt = self.offer.attempt;
        match frame {
            Ok(JobFrame::Heartbeat) => self.tell(Event::PeerHeartbeat { attempt }).await,
            Ok(JobFrame::Queued {
                position,
                expected_wait_ms,
                ..
            }) => {
                self.tell(Event::PeerQueued {
                    attempt,
                    position,
                    expected_wait_ms,
                })
                .await;
            }
            Ok(JobFrame::Refused {
                why,
                retry_after_ms,
                detail,
            }) => {
                tracing::debug!(%attempt, ?why, %detail, "offer refused");
                self.answer.last_refusal = Some(detail);
                let why = refusal::from_code(why);
                self.tell(Event::PeerRefused {
                    attempt,
                    why,
                    retry_after_ms,
                })
                .await;
                return Step::End;
            }
            Ok(JobFrame::Ready) => {
                self.answer.timings.route = self.answer.offered.map_or(0, millis);
                self.tell(Event::PeerReady { attempt }).await;
                return self.send_input(io).await;
            }
            Ok(JobFrame::Started { accept }) => return self.on_started(&accept, io).await,
            Ok(JobFrame::Prefilled { n }) => {
                self.prefilled = n;
                self.tell_progress().await;
                return self.ack(io).await;
            }
            Ok(JobFrame::Token {
                ids,
                bytes,
                logprobs,
            }) => return self.on_tokens(ids, bytes, logprobs, io).await,
            Ok(JobFrame::Finished { receipt_w, .. }) => return self.on_finished(&receipt_w).await,
            Ok(other) => {
                return self
                    .misbehaved(&format!("a frame out of turn: {}", other.name()))
                    .await;
            }
            Err(IoEnd::Malformed(why)) => return self.misbehaved(&why).await,
            Err(IoEnd::Closed | IoEnd::Stuck) => return self.lose(io).await,
        }
        Step::On
    }

    async fn send_input(&mut self, io: &mut Option<JobIo>) -> Step {
        let header = InputHeader {
            seed_salt: self.salts.seed,
            input_salt: self.salts.input,
            resume_salt: self.salts.resume,
            output_salt: self.salts.output,
            seed: self.answer.seed.clone(),
            input_len: u32::try_from(self.answer.input.len()).unwrap_or(u32::MAX),
            resume_len: self.resumed_tokens(),
        };
        let Some(stream) = io.as_mut() else {
            return Step::On;
        };
        let chunks = input_frames(&self.answer.input, &self.answer.ids);
        for frame in std::iter::once(JobFrame::InputHeader(header)).chain(chunks) {
            if stream.send(&frame).await.is_err() {
                return self.lose(io).await;
            }
        }
        Step::On
    }

    async fn on_started(&mut self, accept: &[u8], io: &mut Option<JobIo>) -> Step {
        let attempt = self.offer.attempt;
        let accept = match Signed::<Accept>::decode(accept)
            .map_err(|e| e.to_string())
            .and_then(|signed| {
                signed
                    .verify(&self.context.network)
                    .map_err(|e| e.to_string())
            }) {
            Ok(accept) => accept,
            Err(why) => return self.misbehaved(&format!("its Accept: {why}")).await,
        };
        let body = accept.body();
        if accept.author() != attempt.peer
            || body.manifest != self.manifest.id()
            || self.accept.is_some()
        {
            return self.misbehaved("its Accept is for something else").await;
        }
        if !body.wall.satisfies(self.answer.wall) {
            return self.misbehaved("its wall is weaker than demanded").await;
        }
        let n_in = body.n_in;
        self.answer.n_in = n_in;
        self.answer.timings.queue = self
            .answer
            .offered
            .map_or(0, millis)
            .saturating_sub(self.answer.timings.route);
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

    async fn on_tokens(
        &mut self,
        ids: Vec<u32>,
        bytes: Vec<u8>,
        logprobs: Vec<substrate_mesh::token::TokenLogprob>,
        io: &mut Option<JobIo>,
    ) -> Step {
        if self.accept.is_none()
            || self.answer.ids.len() + ids.len() > self.answer.max_tokens as usize
        {
            return self.misbehaved("tokens nobody asked for").await;
        }
        if std::str::from_utf8(&bytes).is_err() {
            return self.misbehaved("text that is not whole UTF-8").await;
        }
        // A frame without tokens is the text held back until the end; after a resume it may come twice.
        if ids.is_empty() && std::mem::replace(&mut self.has_last_text, true) {
            return Step::On;
        }
        self.answer.ids.extend_from_slice(&ids);
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

    async fn on_finished(&mut self, receipt: &[u8]) -> Step {
        let attempt = self.offer.attempt;
        let receipt = match Signed::<ReceiptW>::decode(receipt)
            .map_err(|e| e.to_string())
            .and_then(|signed| {
                signed
                    .verify(&self.context.network)
                    .map_err(|e| e.to_string())
            }) {
            Ok(receipt) => receipt,
            Err(why) => return self.misbehaved(&format!("its receipt: {why}")).await,
        };
        if let Err(why) = self.check_receipt(&receipt) {
            return self.misbehaved(why).await;
        }
        let finish = receipt.body().finish;
        self.receipt = Some(receipt);
        self.tell(Event::PeerFinished {
            attempt,
            tokens: self.own_tokens(),
            finish,
        })
        .await;
        Step::On
    }

    fn check_receipt(&self, receipt: &Verified<ReceiptW>) -> Result<(), &'static str> {
        let body = receipt.body();
        let Some(accept) = &self.accept else {
            return Err("a receipt before its Accept");
        };
        if receipt.author() != self.offer.attempt.peer
            || body.manifest != self.manifest.id()
            || body.accept != accept.id()
        {
            return Err("its receipt is for something else");
        }
        if body.input_commitment != self.manifest.body().input_commitment {
            return Err("its receipt names another input");
        }
        if body.n_out != self.own_tokens() || body.n_in != accept.body().n_in {
            return Err("its receipt counts other tokens than came");
        }
        if body.output_commitment != self.salts.commit_output(&self.answer.ids) {
            return Err("its receipt commits to another output");
        }
        if Some(body.model_sha256) != closing::weights(&self.offer.entry) {
            return Err("its receipt names other weights");
        }
        Ok(())
    }

    /// Both halves durable here, then the client's end of the answer, then the provider's `Stored`.
    async fn settle(&mut self, io: &mut Option<JobIo>) {
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
                let why = format!("the receipt could not be stored: {error}");
                let _ = self
                    .answer
                    .events
                    .send(JobEvent::Failed(crate::door::AskError::Internal { why }))
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
        let summary = self.summary(&receipt, &half);
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

    /// Hands the client what is still pending; a client that went away loses it.
    async fn flush(&self) {
        for event in &self.pending {
            if self.answer.events.send(event.clone()).await.is_err() {
                return;
            }
        }
    }

    fn summary(&self, receipt: &Verified<ReceiptW>, half: &Verified<ReceiptR>) -> Summary {
        let body = receipt.body();
        let mut timings = self.answer.timings;
        timings.prefill += body.timings_ms.prefill;
        timings.decode += body.timings_ms.decode;
        timings.total = millis(self.answer.since);
        Summary {
            finish: if body.finish == Finish::Stop {
                FinishReason::Stop
            } else {
                FinishReason::Length
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
            attempts: self.offer.attempt.number,
            receipt: Some(half.id()),
            model_sha256: body.model_sha256,
            timings,
        }
    }

    async fn close(&mut self, why: CloseReason, io: &mut Option<JobIo>) {
        if let Some(stream) = io.as_mut() {
            let _ = stream.send(&JobFrame::Cancel).await;
        }
        // What came but was not handed over yet belongs to the client: the next attempt resumes after it.
        if why != CloseReason::Cancelled {
            self.flush().await;
        }
        let (half, verdict) = match (&self.receipt, &self.accept) {
            (Some(receipt), _) => (Half::ReceiptW(receipt.id()), ReceiptVerdict::Partial),
            (None, Some(accept)) if why == CloseReason::Misbehaved => {
                (Half::Accept(accept.id()), ReceiptVerdict::Reject)
            }
            (None, Some(accept)) => (Half::Accept(accept.id()), ReceiptVerdict::Partial),
            (None, None) => return,
        };
        let body = self.verdict(half, verdict, closing::words(why).to_owned());
        let stored = self
            .closing(self.receipt.clone())
            .append(&self.context, body)
            .await;
        match (stored, io.as_mut()) {
            (Ok(half), Some(stream)) => {
                let _ = stream
                    .send(&JobFrame::ReceiptR {
                        bytes: half.bytes().to_vec(),
                    })
                    .await;
            }
            (Err(error), _) => {
                tracing::error!(attempt = %self.offer.attempt, %error, "the partial receipt could not be stored")
            }
            (Ok(_), None) => {}
        }
    }

    fn closing(&self, receipt: Option<Verified<ReceiptW>>) -> Closing {
        Closing {
            manifests: self.answer.manifests.iter().cloned().collect(),
            accept: self.accept.clone(),
            acks: self.acks.clone(),
            receipt,
        }
    }

    fn verdict(&self, half: Half, verdict: ReceiptVerdict, reason: String) -> ReceiptR {
        ReceiptR {
            manifest: self.manifest.id(),
            half,
            verdict,
            tokens: self.own_tokens(),
            reason,
        }
    }

    async fn ack(&mut self, io: &mut Option<JobIo>) -> Step {
        let Some(accept) = &self.accept else {
            return Step::On;
        };
        let ack = self.context.sign(Ack {
            manifest: self.manifest.id(),
            accept: accept.id(),
            n_in: accept.body().n_in,
            prefilled: self.prefilled,
            tokens: self.own_tokens(),
            output_commitment: self.salts.commit_output(&self.answer.ids),
        });
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

    async fn resume(&mut self, io: &mut Option<JobIo>) -> Step {
        let attempt = self.offer.attempt;
        let ask = JobFrame::Resume {
            manifest: self.manifest.id(),
            n: self.own_tokens(),
        };
        let resumed = timeout(WRITE_DEADLINE, async {
            let mut stream = self.dial.dial(attempt.peer).await?;
            stream.send(&ask).await.ok()?;
            match stream.next().await {
                Ok(JobFrame::Heartbeat) => Some(stream),
                _ => None,
            }
        });
        match resumed.await.ok().flatten() {
            Some(stream) => {
                *io = Some(stream);
                self.tell(Event::PeerResumed { attempt }).await;
            }
            None => self.tell(Event::ResumeFailed { attempt }).await,
        }
        Step::On
    }

    /// The stream is gone; the node decides whether to resume or to move on.
    async fn lose(&mut self, io: &mut Option<JobIo>) -> Step {
        *io = None;
        let attempt = self.offer.attempt;
        let connected =
            attempt.peer == self.context.me || self.context.is_connected(attempt.peer).await;
        self.tell(Event::StreamLost { attempt, connected }).await;
        Step::On
    }

    async fn misbehaved(&mut self, what: &str) -> Step {
        let attempt = self.offer.attempt;
        self.condemned = true;
        tracing::warn!(%attempt, what, "peer misbehaved");
        let report = Report::Offence {
            node: attempt.peer,
            what: what.to_owned(),
        };
        let _ = self.reports.send(report).await;
        self.tell(Event::PeerMisbehaved { attempt }).await;
        Step::On
    }

    async fn tell_progress(&self) {
        let event = Event::PeerProgress {
            attempt: self.offer.attempt,
            prefilled: self.prefilled,
            tokens: self.own_tokens(),
        };
        self.tell(event).await;
    }

    async fn tell(&self, event: Event) {
        // The loop outlives its sessions except at the very end, when nobody needs the event.
        let _ = self.reports.send(Report::Event(event)).await;
    }

    fn own_tokens(&self) -> u32 {
        u32::try_from(self.answer.ids.len() - self.resumed).unwrap_or(u32::MAX)
    }

    fn resumed_tokens(&self) -> u32 {
        u32::try_from(self.resumed).unwrap_or(u32::MAX)
    }

    fn last_acked(&self) -> u32 {
        self.acks.last().map_or(0, |ack| ack.body().tokens)
    }
}

/// Waits for nothing while there is no stream: orders and beats go on.
async fn next(io: &mut Option<JobIo>) -> Result<JobFrame, IoEnd> {
    match io {
        Some(stream) => stream.next().await,
        None => std::future::pending().await,
    }
}

async fn await_stored(stream: &mut JobIo) {
    let stored = async {
        while let Ok(frame) = stream.next().await {
            if matches!(frame, JobFrame::Stored) {
                return;
            }
        }
    };
    if timeout(STORED_DEADLINE, stored).await.is_err() {
        tracing::debug!("the provider did not say that it stored the receipt");
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "2^16 fixed point fits a f32's 24 bits for any real log-probability"
)]
fn for_client(token: substrate_mesh::token::TokenLogprob) -> TokenLogprob {
    let real = |fixed: i32| fixed as f32 / LOGPROB_ONE;
    TokenLogprob {
        id: token.id,
        bytes: token.bytes,
        logprob: real(token.logprob),
        top: token
            .top
            .into_iter()
            .map(|other| (other.id, real(other.logprob), other.bytes))
            .collect(),
    }
}
