//! A requester's session against a provider that is played frame by frame.

use std::time::Duration;

use substrate_mesh::job::RefusalCode;
use substrate_record::{
    Body, Commitment, ContentHash, FileRole, Finish, Half, InNetwork, JobId, ModelFile, ReceiptR,
    ReceiptVerdict, Record, RecordId, Sampler, Signed, SigningKey, Timings, WallTier,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::time::{Instant as Clock, sleep};

use substrate_node::Action;

use super::*;
use crate::daemon::life::Requested;
use crate::daemon::session::closing;
use crate::daemon::testing::{ENGINE, Machine, PATIENCE};
use crate::door::{Client, Timings as Spent};

/// The provider's key.
const KEY: [u8; 32] = [7; 32];

/// Bytes a second of a line at the end of what is lent over: 128 kbit/s.
const SLOW_LINE: usize = 16_000;

/// Hands out one prepared stream.
struct OneStream(Mutex<Option<JobIo>>);

impl Dial for OneStream {
    async fn dial(&self, _: NodeId) -> Option<JobIo> {
        self.0.lock().await.take()
    }
}

/// A session under test: the provider's end of its stream, what it reports, and where it takes orders.
struct Stage {
    _machine: Machine,
    context: Arc<Context>,
    attempt: AttemptId,
    entry: Verified<ModelEntry>,
    io: JobIo,
    reports: mpsc::Receiver<Report>,
    orders: mpsc::Sender<RequesterOrder>,
    answer: Arc<Mutex<Answer>>,
    events: mpsc::Receiver<JobEvent>,
}

fn provider() -> SigningKey {
    SigningKey::from_bytes(&KEY)
}

fn node(key: &SigningKey) -> NodeId {
    NodeId::from_bytes(key.verifying_key().to_bytes())
}

fn sign<B: Body + InNetwork>(context: &Context, body: B) -> Verified<B> {
    let record = Record::new(node(&provider()), 0, body).after(None);
    record
        .sign(&provider(), &context.network)
        .expect("within bounds")
}

fn answer(input: Vec<u8>, events: mpsc::Sender<JobEvent>) -> Answer {
    Answer {
        events,
        kind: JobKind::Generate,
        input,
        seed: vec![0; 8],
        client: None,
        sampler: SAMPLER,
        max_tokens: 100,
        wall: WallTier::Basic,
        isolated: false,
        deadline_ms: 60_000,
        ids: Vec::new(),
        manifests: VecDeque::new(),
        n_in: 0,
        last_refusal: None,
        fed: None,
        since: Instant::now(),
        offered: None,
        ready: None,
        timings: Spent::default(),
        unsettled: None,
    }
}

const SAMPLER: Sampler = Sampler {
    temperature: 0,
    top_k: 0,
    top_p: 1_000_000,
    min_p: 0,
    typical_p: 1_000_000,
    repeat_last_n: 0,
    repeat: 1_000_000,
    presence: 0,
    frequency: 0,
    n: 1,
    top_logprobs: None,
};

impl Stage {
    async fn new(input: Vec<u8>, ours: JobIo, io: JobIo) -> Self {
        let machine = Machine::new();
        let (_, context) = machine.life(Vec::new()).await;
        let attempt = AttemptId {
            job: JobId::from_bytes([1; 16]),
            number: 1,
            peer: node(&provider()),
        };
        let entry = sign(
            &context,
            ModelEntry {
                name: "m".to_owned(),
                files: vec![ModelFile {
                    role: FileRole::Weights,
                    sha256: ContentHash::of(b"weights"),
                    size: 7,
                }],
                arch: String::new(),
                quant: String::new(),
                context: 8,
                licence: String::new(),
                template_sha256: None,
                sources: Vec::new(),
                reference_rates: None,
                base: None,
            },
        );
        let offer = Offer {
            attempt,
            entry: entry.clone(),
            engine_class: ENGINE.to_owned(),
            session: SessionNonce::from_bytes([0; 16]),
            scope: Scope::Circle,
            route: Route::Direct,
            moved: None,
        };
        let (events, inbox) = mpsc::channel(64);
        let answer = Arc::new(Mutex::new(answer(input, events)));
        let (report, reports) = mpsc::channel(1024);
        let (orders, order_inbox) = mpsc::channel(8);
        let dial = Arc::new(OneStream(Mutex::new(Some(ours))));
        tokio::spawn(run(
            context.clone(),
            offer,
            answer.clone(),
            dial,
            report,
            order_inbox,
        ));
        Self {
            _machine: machine,
            context,
            attempt,
            entry,
            io,
            reports,
            orders,
            answer,
            events: inbox,
        }
    }

    async fn on_pair(input: &[u8]) -> Self {
        let (ours, theirs) = JobIo::pair();
        Self::new(input.to_vec(), ours, theirs).await
    }

    /// Reads up to the offer and answers `Ready`.
    async fn ready(&mut self) -> Verified<JobManifest> {
        let JobFrame::Offer { manifest } = self.frame().await else {
            panic!("an offer comes first");
        };
        let manifest = Signed::<JobManifest>::decode(&manifest)
            .expect("decodes")
            .verify(&self.context.network)
            .expect("verifies");
        self.io.send(&JobFrame::Ready).await.expect("read");
        manifest
    }

    /// Sends an Accept for a prompt of five tokens.
    async fn start(&mut self, manifest: &Verified<JobManifest>) -> RecordId {
        let accept = sign(
            &self.context,
            Accept {
                manifest: manifest.id(),
                engine_class: ENGINE.to_owned(),
                worker_sha256: ContentHash::of(b"worker"),
                wall: WallTier::Basic,
                n_in: 5,
            },
        );
        let bytes = accept.bytes().to_vec();
        self.io
            .send(&JobFrame::Started { accept: bytes })
            .await
            .expect("read");
        accept.id()
    }

    async fn frame(&mut self) -> JobFrame {
        loop {
            match timeout(PATIENCE, self.io.next()).await.expect("in time") {
                Ok(JobFrame::Heartbeat) => {}
                Ok(frame) => return frame,
                Err(end) => panic!("the stream ended: {end}"),
            }
        }
    }

    /// The first report that is wanted.
    async fn report<T>(&mut self, wanted: impl Fn(&Report) -> Option<T>) -> T {
        loop {
            let report = timeout(PATIENCE, self.reports.recv()).await;
            let report = report.expect("in time").expect("a session that lives");
            if let Some(found) = wanted(&report) {
                return found;
            }
        }
    }

    async fn misbehaved(&mut self) {
        let attempt = self.attempt;
        self.report(|report| match report {
            Report::Event(Event::PeerMisbehaved { attempt: of }) if *of == attempt => Some(()),
            _ => None,
        })
        .await;
    }
}

/// Carries bytes at a slow line's pace, and what comes back at once.
async fn slow_line(mut from: DuplexStream, mut to: DuplexStream) {
    const STEP: usize = 800;
    let pause = Duration::from_millis((1_000 * STEP / SLOW_LINE) as u64);
    let (mut up, mut down) = ([0; STEP], [0; 4096]);
    let mut free = Clock::now();
    loop {
        tokio::select! {
            n = async { tokio::time::sleep_until(free).await; from.read(&mut up).await } => {
                let Ok(n @ 1..) = n else { return };
                free = Clock::now() + pause;
                if to.write_all(&up[..n]).await.is_err() { return }
            }
            n = to.read(&mut down) => {
                let Ok(n @ 1..) = n else { return };
                if from.write_all(&down[..n]).await.is_err() { return }
            }
        }
    }
}

#[tokio::test]
async fn an_upload_over_a_slow_line_keeps_both_ends_alive() {
    let (ours, near) = tokio::io::duplex(1024);
    let (far, theirs) = tokio::io::duplex(1024);
    tokio::spawn(slow_line(near, far));
    let input = vec![b'x'; 4 * SLOW_LINE];
    let mut stage = Stage::new(input.clone(), JobIo::new(ours), JobIo::new(theirs)).await;
    stage.ready().await;
    let begun = Clock::now();
    let (mut arrived, mut last, mut longest) = (0, begun, Duration::ZERO);
    let (mut heard, mut silence) = (begun, Duration::ZERO);
    while arrived < input.len() {
        tokio::select! {
            frame = stage.io.next() => {
                longest = longest.max(last.elapsed());
                last = Clock::now();
                match frame.expect("the stream lives") {
                    JobFrame::Input { chunk } => arrived += chunk.len(),
                    JobFrame::InputHeader(_) | JobFrame::Heartbeat => {}
                    other => panic!("{}", other.name()),
                }
            }
            report = stage.reports.recv() => match report.expect("a session that lives") {
                Report::Event(Event::PeerHeartbeat { .. } | Event::PeerReady { .. }) => {
                    silence = silence.max(heard.elapsed());
                    heard = Clock::now();
                }
                Report::Event(event) => panic!("{event:?}"),
                _ => panic!("another report"),
            },
            () = sleep(Duration::from_millis(500)) => {
                stage.io.send(&JobFrame::Heartbeat).await.expect("read");
            }
        }
    }
    assert!(begun.elapsed() >= Duration::from_secs(3), "a slow line");
    assert!(
        longest < WRITE_DEADLINE,
        "the provider heard nothing for {longest:?}"
    );
    assert!(
        silence < Duration::from_secs(3),
        "the node heard nothing for {silence:?}"
    );
}

/// What the client is told next.
async fn told(events: &mut mpsc::Receiver<JobEvent>) -> JobEvent {
    let event = timeout(PATIENCE, events.recv()).await;
    event.expect("in time").expect("a client that is told")
}

/// There is no attempt after it that could tell the client so.
#[tokio::test]
async fn an_answer_that_was_whole_when_its_node_vanished_ends_for_its_client() {
    let mut stage = Stage::on_pair(b"hello").await;
    let manifest = stage.ready().await;
    stage.start(&manifest).await;
    let token = JobFrame::Token {
        ids: vec![7],
        bytes: b"x".to_vec(),
        logprobs: Vec::new(),
    };
    stage.io.send(&token).await.expect("read");
    while !matches!(told(&mut stage.events).await, JobEvent::Text(_)) {}
    let lost = RequesterOrder::Close(CloseReason::Lost);
    stage.orders.send(lost).await.expect("a session that lives");

    let machine = Machine::new();
    let (mut ready, _) = machine.life(Vec::new()).await;
    let life = ready.life();
    let job = stage.attempt.job;
    let events = stage.answer.lock().await.events.clone();
    life.jobs.insert(
        job,
        Requested {
            answer: stage.answer.clone(),
            events,
            client: Client::Owner,
            model: "m".to_owned(),
            entries: vec![stage.entry.id()],
            scope: Scope::Circle,
            deadline_ms: 60_000,
            overflow: None,
            hopeless: false,
            no_room: None,
            moved: None,
        },
    );
    life.perform(Action::FinishJob { job });
    let summary = loop {
        if let JobEvent::Finished(summary) = told(&mut stage.events).await {
            break summary;
        }
    };
    assert_eq!((summary.n_in, summary.n_out), (5, 1));
    assert_eq!(summary.model_sha256, ContentHash::of(b"weights"));
    assert!(summary.receipt.is_some(), "the half that was signed");
}

#[tokio::test]
async fn more_prompt_tokens_than_there_are_end_the_attempt_and_not_the_session() {
    let mut stage = Stage::on_pair(b"hello").await;
    let manifest = stage.ready().await;
    stage.start(&manifest).await;
    stage
        .io
        .send(&JobFrame::Prefilled { n: 6 })
        .await
        .expect("read");
    stage.misbehaved().await;
}

#[tokio::test]
async fn prompt_tokens_that_become_fewer_are_misbehaviour() {
    let mut stage = Stage::on_pair(b"hello").await;
    let manifest = stage.ready().await;
    stage.start(&manifest).await;
    for n in [5, 5, 4] {
        stage
            .io
            .send(&JobFrame::Prefilled { n })
            .await
            .expect("read");
    }
    stage.misbehaved().await;
}

#[tokio::test]
async fn a_refusal_after_the_accept_is_misbehaviour_and_is_answered() {
    let mut stage = Stage::on_pair(b"hello").await;
    let manifest = stage.ready().await;
    let accept = stage.start(&manifest).await;
    let refused = JobFrame::Refused {
        why: RefusalCode::QueueFull,
        retry_after_ms: 0,
        detail: String::new(),
    };
    stage.io.send(&refused).await.expect("read");
    stage.misbehaved().await;
    let half = closed(&mut stage).await;
    assert_eq!(half.half, Half::Accept(accept));
    assert_eq!(half.verdict, ReceiptVerdict::Reject);
}

#[tokio::test]
async fn a_receipt_over_another_output_is_kept_and_rejected() {
    let mut stage = Stage::on_pair(b"hello").await;
    let manifest = stage.ready().await;
    let accept = stage.start(&manifest).await;
    let receipt = sign(
        &stage.context,
        ReceiptW {
            manifest: manifest.id(),
            accept,
            model_sha256: closing::weights(&stage.entry).expect("it names weights"),
            input_commitment: manifest.body().input_commitment,
            output_commitment: Commitment::from_bytes([1; 32]),
            n_in: 5,
            n_out: 0,
            grant: None,
            microcredits: 0,
            last_ack: None,
            finish: Finish::Stop,
            timings_ms: Timings {
                queue: 0,
                prefill: 0,
                decode: 0,
            },
            audit: None,
        },
    );
    let finished = JobFrame::Finished {
        receipt_w: receipt.bytes().to_vec(),
        fingerprints: Vec::new(),
    };
    stage.io.send(&finished).await.expect("read");
    stage.misbehaved().await;
    let half = closed(&mut stage).await;
    assert_eq!(half.half, Half::ReceiptW(receipt.id()));
    assert_eq!(half.verdict, ReceiptVerdict::Reject);
    let kept = stage.context.desk.records.get(&receipt.id());
    assert!(kept.expect("readable").is_some(), "it proves what was said");
}

#[tokio::test]
async fn an_input_that_no_stream_carries_is_not_offered() {
    let mut stage = Stage::on_pair(&vec![0; MAX_INPUT + 1]).await;
    let why = stage
        .report(|report| match report {
            Report::Event(Event::OfferImpossible { why, .. }) => Some(*why),
            Report::Event(event) => panic!("{event:?}"),
            _ => None,
        })
        .await;
    assert_eq!(why, Refusal::TooLarge);
}

/// Orders the end of a misbehaving attempt and reads the half that answers it.
async fn closed(stage: &mut Stage) -> ReceiptR {
    let close = RequesterOrder::Close(CloseReason::Misbehaved);
    stage
        .orders
        .send(close)
        .await
        .expect("a session that lives");
    loop {
        if let JobFrame::ReceiptR { bytes } = stage.frame().await {
            let half = Signed::<ReceiptR>::decode(&bytes).expect("decodes");
            let half = half.verify(&stage.context.network).expect("verifies");
            return half.body().clone();
        }
    }
}
