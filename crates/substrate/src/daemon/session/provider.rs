//! The provider's end of one attempt: offer in, tokens out, the receipt's first half at the end.
//!
//! Invariant: no byte of input is read before `Ready`, nothing is prepared that does not open its commitments,
//! and no work begins on a stream that closed before the Accept went out.
//! Absent by design: text, ids and salts after the end of the attempt, here or anywhere on this machine.

use std::sync::Arc;
use std::time::Duration;

use substrate_mesh::input::{InputAssembler, InputHeader};
use substrate_mesh::job::{JobFrame, RefusalCode};
use substrate_node::{AttemptId, Event, Refusal, StopReason, Terms, WorkFailure};
use substrate_record::{
    Accept, Ack, AnyRecord, Finish, JobManifest, ModelEntry, NodeId, ReceiptR, ReceiptW, Signed,
    Timings, Verified,
};
use substrate_sandbox::wire::FromWorker;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};

use super::closing::{self, Closing};
use super::io::{HEARTBEAT, IoEnd, JobIo};
use super::tail::Tail;
use super::work::{self, Input, Running, Spent};
use super::{ORDER_DEPTH, ProviderOrder, Report, refusal};
use crate::daemon::context::Context;

/// How long a stream may take to show its first frame.
const OFFER_DEADLINE: Duration = Duration::from_secs(10);
/// How long the requester may take to send its half of the receipt.
const RECEIPT_DEADLINE: Duration = Duration::from_secs(10);

/// Takes an inbound job stream: an offer begins a session, a resume is handed to the one it names.
pub async fn accept(
    context: Arc<Context>,
    from: NodeId,
    mut io: JobIo,
    reports: mpsc::Sender<Report>,
) {
    let Ok(Ok(first)) = timeout(OFFER_DEADLINE, first_frame(&mut io)).await else {
        return;
    };
    match first {
        JobFrame::Offer { manifest } => match open_offer(&context, from, &manifest) {
            Ok(manifest) => Session::run(context, from, manifest, io, reports).await,
            Err(what) => {
                refuse(&mut io, RefusalCode::BadManifest, what.clone()).await;
                let _ = reports.send(Report::Offence { node: from, what }).await;
            }
        },
        JobFrame::Resume { manifest, n } => {
            let _ = reports
                .send(Report::Reattach {
                    from,
                    manifest,
                    tokens: n,
                    io,
                })
                .await;
        }
        other => {
            let what = format!("a stream that begins with {}", other.name());
            let _ = reports.send(Report::Offence { node: from, what }).await;
        }
    }
}

async fn first_frame(io: &mut JobIo) -> Result<JobFrame, IoEnd> {
    loop {
        match io.next().await? {
            JobFrame::Heartbeat => {}
            frame => return Ok(frame),
        }
    }
}

fn open_offer(
    context: &Context,
    from: NodeId,
    bytes: &[u8],
) -> Result<Verified<JobManifest>, String> {
    let signed =
        Signed::<JobManifest>::decode(bytes).map_err(|error| format!("its manifest: {error}"))?;
    let manifest = signed
        .verify(&context.network)
        .map_err(|error| format!("its manifest: {error}"))?;
    if manifest.author() != from {
        return Err("a manifest of another author than the connection's".to_owned());
    }
    if manifest.body().provider != context.me {
        return Err("a manifest for another provider".to_owned());
    }
    Ok(manifest)
}

/// Refuses a stream that has no session.
pub async fn refuse(io: &mut JobIo, why: RefusalCode, detail: String) {
    let _ = io
        .send(&JobFrame::Refused {
            why,
            retry_after_ms: 0,
            detail,
        })
        .await;
}

/// Where an attempt stands here.
enum Stage {
    /// The node has not said `Ready`.
    Offered,
    /// The input is on its way.
    Reading(Option<InputAssembler>),
    /// All of it is here and opens its commitments.
    Held(Input),
    /// The worker reads it.
    Preparing(JoinHandle<Result<Running, work::StartError>>),
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
    /// Own tokens of this attempt.
    ids: Vec<u32>,
    input: Option<InputCommitment>,
    spent: Spent,
    paused: bool,
    /// Words for the requester when the worker could not start.
    failure: Option<String>,
}

/// What is needed to commit to the output: the salt and the resumed ids.
struct InputCommitment {
    output_salt: substrate_record::Salt,
    resumed: Vec<u32>,
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
        let (orders, mut inbox) = mpsc::channel(ORDER_DEPTH);
        let event = Event::OfferArrived {
            attempt,
            manifest: manifest.id(),
            session: body.provider_session,
            terms: terms(body),
        };
        if reports
            .send(Report::Offered {
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
            input: None,
            spent: Spent::begin(),
            paused: false,
            failure: None,
        };
        session.drive(&mut inbox).await;
        drop(session);
        let _ = reports.send(Report::ProviderClosed(attempt)).await;
    }

    async fn drive(&mut self, orders: &mut mpsc::Receiver<ProviderOrder>) {
        let mut beat = interval(HEARTBEAT);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let may_work = !self.paused && !self.tail.is_full() && self.io.is_some();
            let step = tokio::select! {
                biased;
                order = orders.recv() => match order {
                    Some(order) => self.on_order(order).await,
                    None => self.stop(StopReason::Cancelled).await,
                },
                frame = next(&mut self.io) => self.on_frame(frame).await,
                event = work_event(&mut self.stage, may_work) => self.on_work(event).await,
                _ = beat.tick() => self.send(JobFrame::Heartbeat).await,
            };
            if matches!(step, Step::End) {
                return;
            }
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
        let detail = self.failure.take().unwrap_or_else(|| why.to_string());
        let frame = JobFrame::Refused {
            why: refusal::to_code(why),
            retry_after_ms,
            detail,
        };
        self.send(frame).await;
        Step::End
    }

    fn start(&mut self, entry: Verified<ModelEntry>) -> Step {
        let Stage::Held(input) = std::mem::replace(&mut self.stage, Stage::Offered) else {
            return Step::On;
        };
        self.input = Some(InputCommitment {
            output_salt: input.salts.output,
            resumed: input.resume.clone(),
        });
        let pool = self.context.pool.clone();
        let manifest = self.manifest.body().clone();
        let weights = closing::weights(&entry);
        self.entry = Some(entry);
        self.stage = Stage::Preparing(tokio::spawn(work::prepare(pool, weights, manifest, input)));
        Step::On
    }

    async fn on_frame(&mut self, frame: Result<JobFrame, IoEnd>) -> Step {
        let attempt = self.attempt;
        match frame {
            Ok(JobFrame::Heartbeat) => self.tell(Event::RequesterHeartbeat { attempt }).await,
            Ok(JobFrame::Cancel) => self.tell(Event::RequesterCancelled { attempt }).await,
            Ok(JobFrame::InputHeader(header)) => return self.on_header(header).await,
            Ok(JobFrame::Input { chunk }) => return self.on_chunk(&chunk).await,
            Ok(JobFrame::Ack { bytes }) => return self.on_ack(&bytes).await,
            Ok(JobFrame::ReceiptR { bytes }) => return self.on_receipt(&bytes).await,
            Ok(other) => {
                return self
                    .offend(format!("a frame out of turn: {}", other.name()))
                    .await;
            }
            Err(IoEnd::Malformed(why)) => return self.offend(why).await,
            Err(IoEnd::Closed | IoEnd::Stuck) => return self.lose().await,
        }
        Step::On
    }

    async fn on_header(&mut self, header: InputHeader) -> Step {
        if !matches!(self.stage, Stage::Reading(None)) {
            return self.offend("an input nobody asked for".to_owned()).await;
        }
        match InputAssembler::new(header) {
            Ok(assembler) => self.stage = Stage::Reading(Some(assembler)),
            Err(error) => return self.offend(error.to_string()).await,
        }
        Step::On
    }

    async fn on_chunk(&mut self, chunk: &[u8]) -> Step {
        let Stage::Reading(Some(assembler)) = &mut self.stage else {
            return self.offend("an input nobody asked for".to_owned()).await;
        };
        if let Err(error) = assembler.push(chunk) {
            return self.offend(error.to_string()).await;
        }
        if assembler.is_complete() {
            self.check_input().await
        } else {
            Step::On
        }
    }

    /// Once all announced bytes are here, they must open what the manifest committed to.
    async fn check_input(&mut self) -> Step {
        let Stage::Reading(Some(assembler)) = std::mem::replace(&mut self.stage, Stage::Offered)
        else {
            return Step::On;
        };
        let Some(whole) = assembler.finish() else {
            return Step::On;
        };
        match Input::open(self.manifest.body(), whole) {
            Ok(input) => {
                self.stage = Stage::Held(input);
                self.tell(Event::InputArrived {
                    attempt: self.attempt,
                })
                .await;
                Step::On
            }
            Err(why) => self.offend(why.to_owned()).await,
        }
    }

    async fn on_work(&mut self, event: WorkEvent) -> Step {
        match event {
            WorkEvent::Prepared(Ok(running)) => self.accept_and_begin(running).await,
            WorkEvent::Prepared(Err(error)) => self.fail(error.why, error.detail).await,
            WorkEvent::Frame(Ok(frame)) => self.on_worker_frame(frame).await,
            WorkEvent::Frame(Err(error)) => {
                self.fail(WorkFailure::Crashed, error.to_string()).await
            }
            WorkEvent::NoReceipt => Step::End,
        }
    }

    async fn accept_and_begin(&mut self, running: Running) -> Step {
        if self.io.is_none() {
            // PROTOCOL.md 5: a stream that closed before the Accept must not start.
            return Step::End;
        }
        let n_in = running.n_in;
        let settings = self.context.pool.settings();
        let accept = self.context.sign(Accept {
            manifest: self.manifest.id(),
            engine_class: self.manifest.body().engine_class.clone(),
            worker_sha256: settings.sha256,
            wall: self.context.pool.wall(),
            n_in,
        });
        let frame = JobFrame::Started {
            accept: accept.bytes().to_vec(),
        };
        self.accept = Some(accept);
        self.spent.started();
        if let Err(error) = running.sequence.begin().await {
            return self.fail(WorkFailure::Crashed, error.to_string()).await;
        }
        self.stage = Stage::Working(Box::new(running));
        self.tell(Event::WorkStarted {
            attempt: self.attempt,
            n_in,
        })
        .await;
        self.send(frame).await
    }

    async fn on_worker_frame(&mut self, frame: FromWorker) -> Step {
        let attempt = self.attempt;
        match frame {
            FromWorker::Prefilled { n, .. } => {
                let Some(n) = self.spent.prefilled(n) else {
                    return Step::On;
                };
                self.tell(Event::WorkProgress {
                    attempt,
                    prefilled: n,
                    tokens: 0,
                })
                .await;
                self.send(JobFrame::Prefilled { n }).await
            }
            FromWorker::Tokens {
                ids,
                bytes,
                logprobs,
                ..
            } => {
                self.ids.extend_from_slice(&ids);
                let count = ids.len();
                let logprobs = logprobs.into_iter().map(work::for_stream).collect();
                let frame = JobFrame::Token {
                    ids,
                    bytes,
                    logprobs,
                };
                self.tail.push(count, frame.clone());
                if let Some(tokens) = self.spent.worth_telling(self.ids.len()) {
                    let prefilled = self.spent.prefilled_so_far();
                    self.tell(Event::WorkProgress {
                        attempt,
                        prefilled,
                        tokens,
                    })
                    .await;
                }
                self.send(frame).await
            }
            FromWorker::Finished(done) => {
                self.spent.finished(done.prefill_us, done.decode_us);
                self.tell(Event::WorkFinished {
                    attempt,
                    tokens: self.own_tokens(),
                })
                .await;
                let finish = match done.finish {
                    1 => Finish::Stop,
                    2 => Finish::Length,
                    3 => Finish::Cancelled,
                    _ => Finish::Failed,
                };
                if !done.tail.is_empty() && matches!(finish, Finish::Stop | Finish::Length) {
                    let frame = JobFrame::Token {
                        ids: Vec::new(),
                        bytes: done.tail,
                        logprobs: Vec::new(),
                    };
                    self.tail.end(frame.clone());
                    self.send(frame).await;
                }
                self.finish(finish).await
            }
            FromWorker::Failed { why, detail, .. } => {
                self.fail(work::failure_of(why), detail).await
            }
            _ => {
                self.fail(
                    WorkFailure::Crashed,
                    "the worker answered something else".to_owned(),
                )
                .await
            }
        }
    }

    /// Signs and stores the worker's half, sends it, and waits for the other.
    async fn finish(&mut self, finish: Finish) -> Step {
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

    fn receipt(&self, finish: Finish) -> Option<ReceiptW> {
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

    async fn on_receipt(&mut self, bytes: &[u8]) -> Step {
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
    async fn keep(&mut self, bytes: &[u8], receipt: Option<substrate_record::RecordId>) -> bool {
        let half = match Signed::<ReceiptR>::decode(bytes)
            .map_err(|e| e.to_string())
            .and_then(|signed| {
                signed
                    .verify(&self.context.network)
                    .map_err(|e| e.to_string())
            }) {
            Ok(half) => half,
            Err(why) => {
                self.report_offence(format!("its receipt: {why}")).await;
                return false;
            }
        };
        if half.author() != self.attempt.peer || half.body().manifest != self.manifest.id() {
            self.report_offence("a receipt for something else".to_owned())
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

    async fn on_ack(&mut self, bytes: &[u8]) -> Step {
        let Some(accept) = &self.accept else {
            return self.offend("an Ack before the Accept".to_owned()).await;
        };
        let ack = match Signed::<Ack>::decode(bytes)
            .map_err(|e| e.to_string())
            .and_then(|signed| {
                signed
                    .verify(&self.context.network)
                    .map_err(|e| e.to_string())
            }) {
            Ok(ack) => ack,
            Err(why) => return self.offend(format!("its Ack: {why}")).await,
        };
        let body = ack.body();
        if ack.author() != self.attempt.peer
            || body.manifest != self.manifest.id()
            || body.accept != accept.id()
        {
            return self.offend("an Ack for something else".to_owned()).await;
        }
        if body.tokens > self.own_tokens() {
            return self
                .offend("an Ack for tokens that were not sent".to_owned())
                .await;
        }
        self.tail.acked(body.tokens);
        self.acks.push(ack);
        closing::thin(&mut self.acks);
        Step::On
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

    /// Ends the attempt; what was sampled is signed for if an Accept went out.
    async fn stop(&mut self, why: StopReason) -> Step {
        if matches!(self.stage, Stage::Settling(..)) {
            return Step::On;
        }
        let finish = if why == StopReason::WorkerFailed {
            Finish::Failed
        } else {
            Finish::Cancelled
        };
        // Dropping the sequence cancels it inside the worker.
        self.stage = Stage::Offered;
        if self.accept.is_none() {
            return Step::End;
        }
        self.finish(finish).await
    }

    async fn fail(&mut self, why: WorkFailure, detail: String) -> Step {
        tracing::info!(attempt = %self.attempt, ?why, %detail, "work failed");
        self.stage = Stage::Offered;
        self.failure = Some(detail);
        self.tell(Event::WorkFailed {
            attempt: self.attempt,
            why,
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

    async fn offend(&mut self, what: String) -> Step {
        self.report_offence(what).await;
        self.lose().await
    }

    fn report_offence(&self, what: String) -> impl Future<Output = ()> + Send + use<> {
        tracing::warn!(attempt = %self.attempt, %what, "peer misbehaved");
        self.report(Report::Offence {
            node: self.attempt.peer,
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

    /// After the end, the ids that were not acknowledged stay only for a resume, which ends with this session.
    fn forget_text(&mut self) {
        self.ids = Vec::new();
        self.input = None;
    }

    fn own_tokens(&self) -> u32 {
        u32::try_from(self.ids.len()).unwrap_or(u32::MAX)
    }
}

/// What the worker's side of a session can bring.
enum WorkEvent {
    Prepared(Result<Running, work::StartError>),
    Frame(Result<FromWorker, crate::daemon::engine::WorkError>),
    NoReceipt,
}

async fn work_event(stage: &mut Stage, may_work: bool) -> WorkEvent {
    match stage {
        Stage::Preparing(task) => WorkEvent::Prepared(
            task.await
                .unwrap_or_else(|_| Err(work::StartError::internal())),
        ),
        Stage::Working(running) if may_work => WorkEvent::Frame(running.sequence.next().await),
        Stage::Settling(_, until) => {
            sleep_until(*until).await;
            WorkEvent::NoReceipt
        }
        _ => std::future::pending().await,
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
