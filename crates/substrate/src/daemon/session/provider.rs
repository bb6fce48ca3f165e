//! The provider's end of one attempt: offer in, tokens out, the receipt's first half at the end.
//!
//! Invariant: no byte of input is read before `Ready`, nothing is prepared that does not open its commitments,
//! and no work begins on a stream that closed before the Accept went out.
//! Absent by design: text, ids and salts after the end of the attempt, here or anywhere on this machine.

mod believed;
mod input;
mod offer;
mod receipts;
#[cfg(test)]
mod tests;
mod working;

pub use offer::{accept, refuse};

use std::sync::Arc;
use std::time::Duration;

use substrate_mesh::Offence;
use substrate_mesh::input::InputAssembler;
use substrate_mesh::job::{JobFrame, MAX_REASON, RefusalCode};
use substrate_node::{AttemptId, Event, Refusal, StopReason, Terms};
use substrate_record::{Accept, Ack, JobManifest, ModelEntry, NodeId, ReceiptW, Verified};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::DropGuard;

use super::io::{HEARTBEAT, IoEnd, JobIo};
use super::output::Rows;
use super::tail::Tail;
use super::work::{self, Input, Running, Spent};
use super::{ORDER_DEPTH, ProviderOrder, Report, refusal};
use crate::daemon::context::{Context, draw};

/// How long the requester may take to send its half of the receipt.
const RECEIPT_DEADLINE: Duration = Duration::from_secs(10);
/// The node hears of a requester's signs of life this often at most: half a beat.
const LIFE_TOLD_EVERY: Duration = Duration::from_millis(250);

/// Where an attempt stands here.
enum Stage {
    /// The node has not said `Ready`.
    Offered,
    /// The input is on its way.
    Reading(Option<InputAssembler>),
    /// All of it is here and opens its commitments.
    Held(Input),
    /// The worker reads it.
    Preparing(Preparing),
    /// The Accept is out.
    Working(Box<Running>),
    /// The worker is done; the requester's half is awaited until then.
    Settling(Box<Verified<ReceiptW>>, Instant),
}

struct Session {
    context: Arc<Context>,
    attempt: AttemptId,
    manifest: Verified<JobManifest>,
    /// `None` while the requester's stream is lost.
    io: Option<JobIo>,
    reports: mpsc::Sender<Report>,
    stage: Stage,
    entry: Option<Verified<ModelEntry>>,
    accept: Option<Verified<Accept>>,
    acks: Vec<Verified<Ack>>,
    tail: Tail,
    /// Ids sampled in this attempt, until its receipt is signed.
    ids: Vec<u32>,
    /// Commitments to the rows made in this attempt, if it makes vectors.
    rows: Option<Rows>,
    /// Bytes of each row, by the first.
    row_length: Option<usize>,
    /// How many there were.
    tokens: u32,
    input: Option<InputCommitment>,
    spent: Spent,
    /// The node had the work paused.
    paused: bool,
    /// The worker was told to pause.
    held_back: bool,
    /// Prompt tokens the requester was told of.
    prefilled: u32,
    /// When the node was last told that the requester lives.
    heard: Option<Instant>,
    /// A half of the requester's is stored.
    answered: bool,
    /// Words for the requester when the worker could not start.
    failure: Option<String>,
}

/// What is needed to commit to the output: the salt and the resumed ids.
struct InputCommitment {
    output_salt: substrate_record::Salt,
    resumed: Vec<u32>,
}

/// The task that has the input read.
struct Preparing {
    task: JoinHandle<Result<Running, work::StartError>>,
    /// A worker loaded for this job alone is of no use to another: its load ends with the job.
    alone: bool,
    /// Tells it that the job is.
    _gone: DropGuard,
}

impl Drop for Preparing {
    fn drop(&mut self) {
        if self.alone {
            self.task.abort();
        }
    }
}

enum Step {
    On,
    End,
}

impl Session {
    async fn run(
        context: Arc<Context>,
        from: NodeId,
        manifest: Verified<JobManifest>,
        io: JobIo,
        reports: mpsc::Sender<Report>,
    ) {
        let body = manifest.body();
        let attempt = AttemptId {
            job: body.job,
            number: body.attempt,
            peer: from,
        };
        let id = u64::from_be_bytes(draw());
        let (orders, mut inbox) = mpsc::channel(ORDER_DEPTH);
        let event = Event::OfferArrived {
            attempt,
            manifest: manifest.id(),
            session: body.provider_session,
            terms: terms(body),
        };
        if reports
            .send(Report::Offered {
                session: id,
                attempt,
                manifest: manifest.id(),
                orders,
                event,
            })
            .await
            .is_err()
        {
            return;
        }
        let mut session = Self {
            context,
            attempt,
            manifest,
            io: Some(io),
            reports: reports.clone(),
            stage: Stage::Offered,
            entry: None,
            accept: None,
            acks: Vec::new(),
            tail: Tail::default(),
            ids: Vec::new(),
            rows: None,
            row_length: None,
            tokens: 0,
            input: None,
            spent: Spent::begin(),
            paused: false,
            held_back: false,
            prefilled: 0,
            heard: None,
            answered: false,
            failure: None,
        };
        session.drive(&mut inbox).await;
        drop(session);
        let _ = reports
            .send(Report::ProviderClosed {
                attempt,
                session: id,
            })
            .await;
    }

    async fn drive(&mut self, orders: &mut mpsc::Receiver<ProviderOrder>) {
        let mut beat = interval(HEARTBEAT);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let may_work = !self.paused && !self.tail.is_full() && self.io.is_some();
            self.steer(may_work).await;
            let step = tokio::select! {
                biased;
                order = orders.recv() => match order {
                    Some(order) => self.on_order(order).await,
                    None => self.stop(StopReason::Cancelled).await,
                },
                frame = next(&mut self.io) => self.on_frame(frame).await,
                event = working::work_event(&mut self.stage, may_work) => self.on_work(event).await,
                _ = beat.tick() => self.send(JobFrame::Heartbeat).await,
            };
            if matches!(step, Step::End) {
                return;
            }
        }
    }

    /// Stops the sampler while nobody takes its tokens, and lets it go on.
    async fn steer(&mut self, may_work: bool) {
        let Stage::Working(running) = &self.stage else {
            return;
        };
        let told = match (may_work, self.held_back) {
            (false, false) => running.sequence.pause().await,
            (true, true) => running.sequence.resume().await,
            _ => return,
        };
        self.held_back = !may_work;
        if let Err(error) = told {
            // Its next frame would say the same.
            tracing::debug!(attempt = %self.attempt, %error, "the worker is gone");
        }
    }

    async fn on_order(&mut self, order: ProviderOrder) -> Step {
        match order {
            ProviderOrder::Queued(news) => {
                let why = news.why.to_string();
                self.send(JobFrame::Queued {
                    position: news.position,
                    expected_wait_ms: news.expected_wait_ms,
                    why,
                })
                .await
            }
            ProviderOrder::Ready => {
                self.spent.ready();
                self.stage = Stage::Reading(None);
                self.send(JobFrame::Ready).await
            }
            ProviderOrder::Refuse {
                why,
                retry_after_ms,
            } => self.refuse(why, retry_after_ms).await,
            ProviderOrder::Run { entry } => self.start(*entry),
            ProviderOrder::Pause => {
                self.paused = true;
                Step::On
            }
            ProviderOrder::Resume => {
                self.paused = false;
                Step::On
            }
            ProviderOrder::Attach { io, tokens } => self.attach(io, tokens).await,
            ProviderOrder::Stop(why) => self.stop(why).await,
        }
    }

    async fn refuse(&mut self, why: Refusal, retry_after_ms: u64) -> Step {
        let mut detail = self.failure.take().unwrap_or_else(|| why.to_string());
        // A longer one is no frame of the protocol.
        detail.truncate(detail.floor_char_boundary(MAX_REASON));
        let frame = JobFrame::Refused {
            why: refusal::to_code(why),
            retry_after_ms,
            detail,
        };
        self.send(frame).await;
        Step::End
    }

    async fn on_frame(&mut self, frame: Result<JobFrame, IoEnd>) -> Step {
        let attempt = self.attempt;
        if frame.is_ok() {
            self.tell_life().await;
        }
        match frame {
            Ok(JobFrame::Heartbeat) => {}
            Ok(JobFrame::Cancel) => self.tell(Event::RequesterCancelled { attempt }).await,
            Ok(JobFrame::InputHeader(header)) => return self.on_header(header).await,
            Ok(JobFrame::Input { chunk }) => return self.on_chunk(&chunk).await,
            Ok(JobFrame::Ack { bytes }) => return self.on_ack(&bytes).await,
            Ok(JobFrame::ReceiptR { bytes }) => return self.on_receipt(&bytes).await,
            Ok(other) => {
                return self
                    .offend(
                        Offence::OutOfOrder,
                        format!("a frame out of turn: {}", other.name()),
                    )
                    .await;
            }
            Err(IoEnd::Broken { offence, what }) => return self.offend(offence, what).await,
            Err(IoEnd::Closed | IoEnd::Stuck) => return self.lose().await,
        }
        Step::On
    }

    /// Any frame shows that the requester lives, a chunk of a long input as well as a heartbeat.
    async fn tell_life(&mut self) {
        let now = Instant::now();
        if self
            .heard
            .is_none_or(|heard| now.duration_since(heard) >= LIFE_TOLD_EVERY)
        {
            self.heard = Some(now);
            let attempt = self.attempt;
            self.tell(Event::RequesterHeartbeat { attempt }).await;
        }
    }

    async fn attach(&mut self, io: JobIo, tokens: u32) -> Step {
        let mut io = io;
        let Some(again) = self.tail.after(tokens) else {
            refuse(
                &mut io,
                RefusalCode::NothingToResume,
                "this attempt cannot go on from there".to_owned(),
            )
            .await;
            return Step::On;
        };
        let mut frames = vec![JobFrame::Heartbeat];
        frames.extend(again.cloned());
        if let Stage::Settling(receipt, _) = &self.stage {
            frames.push(JobFrame::Finished {
                receipt_w: receipt.bytes().to_vec(),
                fingerprints: Vec::new(),
            });
        }
        self.io = Some(io);
        for frame in frames {
            if let Step::End = self.send(frame).await {
                return Step::End;
            }
        }
        self.tell(Event::RequesterResumed {
            attempt: self.attempt,
        })
        .await;
        Step::On
    }

    async fn lose(&mut self) -> Step {
        self.io = None;
        match self.stage {
            Stage::Settling(..) | Stage::Working(_) => {}
            // Nothing was accepted: the node forgets the attempt, and so do we.
            _ if self.accept.is_none() => {
                self.tell(Event::RequesterLost {
                    attempt: self.attempt,
                })
                .await;
                return Step::End;
            }
            _ => {}
        }
        self.tell(Event::RequesterLost {
            attempt: self.attempt,
        })
        .await;
        Step::On
    }

    async fn offend(&mut self, kind: Offence, what: String) -> Step {
        self.report_offence(kind, what).await;
        self.lose().await
    }

    fn report_offence(
        &self,
        kind: Offence,
        what: String,
    ) -> impl Future<Output = ()> + Send + use<> {
        tracing::warn!(attempt = %self.attempt, %what, "peer misbehaved");
        self.report(Report::Offence {
            node: self.attempt.peer,
            kind,
            what,
        })
    }

    async fn send(&mut self, frame: JobFrame) -> Step {
        let lost = match self.io.as_mut() {
            Some(io) => io.send(&frame).await.is_err(),
            None => false,
        };
        if lost { self.lose().await } else { Step::On }
    }

    fn tell(&self, event: Event) -> impl Future<Output = ()> + Send + use<> {
        self.report(Report::Event(event))
    }

    /// Borrows nothing while it waits: a stream's halves may be sent to another thread, but not shared.
    fn report(&self, report: Report) -> impl Future<Output = ()> + Send + use<> {
        let reports = self.reports.clone();
        async move {
            // The loop outlives its sessions except at the very end, when nobody needs the report.
            let _ = reports.send(report).await;
        }
    }

    fn own_tokens(&self) -> u32 {
        self.tokens
    }

    /// A client of this machine asked.
    fn is_own(&self) -> bool {
        self.attempt.peer == self.context.me
    }
}

async fn next(io: &mut Option<JobIo>) -> Result<JobFrame, IoEnd> {
    match io {
        Some(stream) => stream.next().await,
        None => std::future::pending().await,
    }
}

fn terms(body: &JobManifest) -> Terms {
    Terms {
        scope: body.scope,
        entry: body.entry,
        wall: body.wall,
        isolated: body.isolated,
        kind: body.kind,
        max_tokens: body.max_tokens,
        resume_tokens: body.resume_tokens,
        deadline_ms: body.deadline_ms,
    }
}
