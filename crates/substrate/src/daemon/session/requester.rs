//! The requester's end of one attempt: manifest out, tokens in, the receipt's second half at the end.
//!
//! Invariant: nothing reaches the client that is not covered by the ids this end commits to; a record that does
//! not verify, or a commitment that differs, ends the attempt as misbehaviour and is never settled.
//! Absent by design: choosing nodes, retrying, and any text kept past the answer's end.

mod arrivals;
mod receipts;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use substrate_mesh::Offence;
use substrate_mesh::input::{InputHeader, MAX_INPUT, input_frames};
use substrate_mesh::job::JobFrame;
use substrate_node::{AttemptId, CloseReason, Event, MoveReason, Refusal};
use substrate_record::{
    Accept, Ack, Commitment, JobKind, JobManifest, ModelEntry, NodeId, Policy, ReceiptW, Scope,
    SessionNonce, Verified, commit, output_bytes,
};
use tokio::sync::{Mutex, OwnedMutexGuard, mpsc};
use tokio::time::{MissedTickBehavior, interval, timeout};
use zeroize::Zeroizing;

use super::answer::{Answer, Salts, millis};
use super::io::{HEARTBEAT, IoEnd, JobIo, Turn, WRITE_DEADLINE};
use super::output::Rows;
use super::{Report, RequesterOrder, refusal};
use crate::daemon::context::Context;
use crate::door::{JobEvent, Route, TokenLogprob};

/// Tokens between two Acks, PROTOCOL.md 4.
const ACK_TOKENS: u32 = 256;
/// Longest time between two Acks while tokens come, PROTOCOL.md 4.
const ACK_INTERVAL: Duration = Duration::from_secs(10);
/// How long the provider may take to store both halves before we stop waiting for `Stored`.
const STORED_DEADLINE: Duration = Duration::from_secs(10);
/// Prompt or resumed tokens between two `Prefilled`, PROTOCOL.md 4.
const PREFILLED_EVERY: u32 = 2048;
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
    /// What this attempt was asked.
    input: Zeroizing<Vec<u8>>,
    /// Commitments to the rows of this attempt, if it makes vectors.
    rows: Rows,
    /// Bytes of each row, by the first.
    row_length: Option<usize>,
    accept: Option<Verified<Accept>>,
    acks: Vec<Verified<Ack>>,
    /// Prompt tokens read there.
    prefilled: u32,
    /// `Prefilled` frames that came after the whole prompt was read: resumed ids are read then.
    read_on: u32,
    acked_at: Instant,
    /// The input on its way, one frame at a time.
    upload: Option<Upload>,
    /// `Ready` came: the input is asked for once.
    ready: bool,
    receipt: Option<Verified<ReceiptW>>,
    /// For the client, in order. Frames are read only while this is empty.
    pending: VecDeque<JobEvent>,
    /// The provider broke the protocol: nothing it sends counts any more.
    condemned: bool,
    /// The text held back until the end has come.
    has_last_text: bool,
}

/// The frames of an input that were not queued yet.
type Upload = Box<dyn Iterator<Item = JobFrame> + Send + Sync>;

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
    let mut answer = answer.lock_owned().await;
    answer.unsettled = None;
    let salts = Salts::draw();
    let input = Zeroizing::new(answer.asked_now().into_owned());
    let manifest = match sign_manifest(&context, &offer, &answer, &input, &salts) {
        Ok(manifest) => manifest,
        Err(detail) => {
            tracing::warn!(%attempt, %detail, "no offer can be made");
            answer.last_refusal = Some(detail);
            drop(answer);
            let why = Refusal::TooLarge;
            let impossible = Event::OfferImpossible { attempt, why };
            let _ = reports.send(Report::Event(impossible)).await;
            let _ = reports.send(Report::RequesterClosed(attempt)).await;
            return;
        }
    };
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
        input,
        rows: Rows::new(&salts.output),
        row_length: None,
        accept: None,
        acks: Vec::new(),
        prefilled: 0,
        read_on: 0,
        acked_at: Instant::now(),
        upload: None,
        ready: false,
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
    input: &[u8],
    salts: &Salts,
) -> Result<Verified<JobManifest>, String> {
    let ids = answer.resumed_now();
    let resumed = u32::try_from(ids.len()).unwrap_or(u32::MAX);
    let bytes = input.len() + output_bytes(ids).len();
    let rows = match answer.kind {
        JobKind::Generate => 0,
        JobKind::Embed => u32::try_from(answer.ids.len()).unwrap_or(u32::MAX),
    };
    if bytes > MAX_INPUT {
        return Err(format!(
            "the prompt and the answer so far are {bytes} bytes, and a job may have {MAX_INPUT}"
        ));
    }
    let manifest = JobManifest {
        job: offer.attempt.job,
        attempt: offer.attempt.number,
        provider: offer.attempt.peer,
        provider_session: offer.session,
        kind: answer.kind,
        scope: offer.scope,
        entry: offer.entry.id(),
        adapter: None,
        engine_class: offer.engine_class.clone(),
        sampler: answer.sampler,
        seed_commitment: commit(&salts.seed, &answer.seed),
        max_tokens: answer.max_tokens.saturating_sub(rows),
        deadline_ms: answer.deadline_left_ms(),
        input_commitment: commit(&salts.input, input),
        wall: answer.wall,
        isolated: answer.isolated,
        parents: answer.parent().into_iter().collect(),
        policy: Policy {
            rules_hash: context.desk.genesis.body().rules_hash,
            audit_consent: false,
        },
        resume_tokens: resumed,
        resume_commitment: (resumed > 0).then(|| commit(&salts.resume, &output_bytes(ids))),
    };
    context.sign(manifest).map_err(|error| error.to_string())
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
            let reading = self.pending.is_empty() && !self.condemned;
            let step = tokio::select! {
                biased;
                order = orders.recv() => self.on_order(order, &mut io).await,
                permit = self.answer.events.clone().reserve_owned(), if !self.pending.is_empty() => {
                    if let (Ok(permit), Some(event)) = (permit, self.pending.pop_front()) { permit.send(event); }
                    else { self.pending.clear(); }
                    Step::On
                }
                turn = turn(&mut io, reading) => match turn {
                    Turn::Frame(frame) => self.on_frame(frame, &mut io).await,
                    Turn::Gone => self.upload_next(&mut io).await,
                },
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
            // The input's own frames show that we live; a beat would have to wait behind one.
            Some(_) if self.upload.is_some() => false,
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
            Ok(JobFrame::Refused { .. }) if self.accept.is_some() => {
                return self
                    .misbehaved(Offence::OutOfOrder, "a refusal after its Accept")
                    .await;
            }
            Ok(JobFrame::Refused {
                why,
                retry_after_ms,
                detail,
            }) => {
                tracing::debug!(%attempt, ?why, "offer refused");
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
            Ok(JobFrame::Ready) if !self.ready => {
                self.ready = true;
                self.answer.timings.route = self.answer.offered.map_or(0, millis);
                self.answer.ready = Some(Instant::now());
                self.tell(Event::PeerReady { attempt }).await;
                self.begin_upload();
                return self.upload_next(io).await;
            }
            Ok(JobFrame::Started { accept }) => return self.on_started(&accept, io).await,
            Ok(JobFrame::Prefilled { n }) => return self.on_prefilled(n, io).await,
            Ok(JobFrame::Token {
                ids,
                bytes,
                logprobs,
            }) => return self.on_tokens(ids, bytes, logprobs, io).await,
            Ok(JobFrame::Finished { receipt_w, .. }) => return self.on_finished(&receipt_w).await,
            Ok(other) => {
                return self
                    .misbehaved(
                        Offence::OutOfOrder,
                        &format!("a frame out of turn: {}", other.name()),
                    )
                    .await;
            }
            Err(IoEnd::Broken { offence, what }) => return self.misbehaved(offence, &what).await,
            Err(IoEnd::Closed | IoEnd::Stuck) => return self.lose(io).await,
        }
        Step::On
    }

    fn begin_upload(&mut self) {
        let header = InputHeader {
            seed_salt: self.salts.seed,
            input_salt: self.salts.input,
            resume_salt: self.salts.resume,
            output_salt: self.salts.output,
            seed: self.answer.seed.clone(),
            input_len: u32::try_from(self.input.len()).unwrap_or(u32::MAX),
            resume_len: self.manifest.body().resume_tokens,
            partition: self.answer.partition_at(&self.offer.attempt.peer),
        };
        let chunks = input_frames(&self.input, self.answer.resumed_now());
        self.upload = Some(Box::new(
            std::iter::once(JobFrame::InputHeader(header)).chain(chunks),
        ));
    }

    /// Queues the next frame of the input; the loop goes on with everything else until it has gone out.
    async fn upload_next(&mut self, io: &mut Option<JobIo>) -> Step {
        let (Some(stream), Some(frames)) = (io.as_mut(), self.upload.as_mut()) else {
            return Step::On;
        };
        match frames.next().map(|frame| stream.queue(&frame)) {
            Some(Ok(())) => Step::On,
            Some(Err(_)) => self.lose(io).await,
            None => {
                self.upload = None;
                Step::On
            }
        }
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
        self.upload = None;
        let attempt = self.offer.attempt;
        let connected =
            attempt.peer == self.context.me || self.context.is_connected(attempt.peer).await;
        self.tell(Event::StreamLost { attempt, connected }).await;
        Step::On
    }

    async fn misbehaved(&mut self, kind: Offence, what: &str) -> Step {
        let attempt = self.offer.attempt;
        self.condemned = true;
        tracing::warn!(%attempt, what, "peer misbehaved");
        let report = Report::Offence {
            node: attempt.peer,
            kind,
            what: what.to_owned(),
        };
        let _ = self.reports.send(report).await;
        self.tell(Event::PeerMisbehaved { attempt }).await;
        Step::On
    }

    async fn tell_progress(&self) {
        let event = Event::PeerProgress {
            attempt: self.offer.attempt,
            prefilled: self.prefilled.saturating_add(self.read_on),
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

    /// Commitment to everything of this attempt that came.
    fn output(&self) -> Commitment {
        match self.answer.kind {
            JobKind::Generate => self.salts.commit_output(&self.answer.ids),
            JobKind::Embed => self.rows.whole(),
        }
    }

    fn last_acked(&self) -> u32 {
        self.acks.last().map_or(0, |ack| ack.body().tokens)
    }
}

/// Waits for nothing while there is no stream: orders and beats go on.
async fn turn(io: &mut Option<JobIo>, reading: bool) -> Turn {
    match io {
        Some(stream) => stream.turn(reading).await,
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
