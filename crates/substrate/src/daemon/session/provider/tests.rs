//! A provider's session against a requester that is played frame by frame.

use substrate_mesh::input::InputHeader;
use substrate_record::{
    Commitment, JobId, JobKind, Policy, Record, RecordId, Salt, Sampler, Scope, SessionNonce,
    SigningKey, WallTier,
};
use tokio::time::{sleep, timeout};

use super::*;
use crate::daemon::testing::{ENGINE, Machine, PATIENCE};

/// The requester's key.
const KEY: [u8; 32] = [8; 32];

struct Stage {
    _machine: Machine,
    context: Arc<Context>,
    io: JobIo,
    reports: mpsc::Receiver<Report>,
}

fn requester() -> NodeId {
    let key = SigningKey::from_bytes(&KEY);
    NodeId::from_bytes(key.verifying_key().to_bytes())
}

fn manifest(context: &Context) -> JobManifest {
    let commitment = Commitment::from_bytes([1; 32]);
    JobManifest {
        job: JobId::from_bytes([1; 16]),
        attempt: 1,
        provider: context.me,
        provider_session: SessionNonce::from_bytes([0; 16]),
        kind: JobKind::Generate,
        scope: Scope::Commons,
        entry: RecordId::from_bytes([3; 32]),
        adapter: None,
        engine_class: ENGINE.to_owned(),
        sampler: Sampler {
            temperature: 0,
            top_k: 0,
            top_p: 0,
            min_p: 0,
            typical_p: 0,
            repeat_last_n: 0,
            repeat: 0,
            presence: 0,
            frequency: 0,
            n: 1,
            top_logprobs: None,
        },
        seed_commitment: commitment,
        max_tokens: 100,
        deadline_ms: 60_000,
        input_commitment: commitment,
        wall: WallTier::Process,
        isolated: false,
        parents: Vec::new(),
        policy: Policy {
            rules_hash: context.desk.genesis.body().rules_hash,
            audit_consent: false,
        },
        resume_tokens: 0,
        resume_commitment: None,
    }
}

impl Stage {
    /// Offers a job that was changed before it was signed.
    async fn offer(change: impl FnOnce(&mut JobManifest)) -> Self {
        let machine = Machine::new();
        let (_, context) = machine.life(Vec::new()).await;
        let (mut io, theirs) = JobIo::pair();
        let (report, reports) = mpsc::channel(1024);
        let mut body = manifest(&context);
        change(&mut body);
        let record = Record::new(requester(), 0, body);
        let manifest = record
            .sign(&SigningKey::from_bytes(&KEY), &context.network)
            .expect("within bounds");
        tokio::spawn(accept(context.clone(), requester(), theirs, report));
        let manifest = manifest.bytes().to_vec();
        io.send(&JobFrame::Offer { manifest }).await.expect("read");
        Self {
            _machine: machine,
            context,
            io,
            reports,
        }
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

    async fn refusal(&mut self) -> RefusalCode {
        match self.frame().await {
            JobFrame::Refused { why, .. } => why,
            other => panic!("{}", other.name()),
        }
    }

    /// Where the session takes orders, once it has reported the offer.
    async fn orders(&mut self) -> mpsc::Sender<ProviderOrder> {
        match timeout(PATIENCE, self.reports.recv()).await {
            Ok(Some(Report::Offered { orders, .. })) => orders,
            _ => panic!("no offer was reported"),
        }
    }
}

/// What is asked for beyond what is served, and how a manifest asks for it.
type Beyond = (&'static str, fn(&mut JobManifest));

#[tokio::test]
async fn what_is_not_served_is_refused_before_any_input_is_read() {
    let asked: [Beyond; 4] = [
        ("resumed vectors", |body| {
            body.kind = JobKind::Embed;
            body.resume_tokens = 1;
            body.resume_commitment = Some(Commitment::from_bytes([0; 32]));
        }),
        ("choices", |body| body.sampler.n = 2),
        ("an adapter", |body| {
            body.adapter = Some(RecordId::from_bytes([4; 32]));
        }),
        ("an engine", |body| {
            body.engine_class = "llama.cpp/old/cpu/x".to_owned()
        }),
    ];
    for (what, change) in asked {
        let mut stage = Stage::offer(change).await;
        assert_eq!(stage.refusal().await, RefusalCode::Unsupported, "{what}");
        assert!(
            stage.reports.recv().await.is_none(),
            "{what}: nobody decides"
        );
    }
    let mut stage = Stage::offer(|body| body.policy.rules_hash = [9; 32]).await;
    assert_eq!(stage.refusal().await, RefusalCode::BadManifest);
}

#[tokio::test]
async fn an_offer_without_an_engine_is_one_for_any() {
    let mut stage = Stage::offer(|body| body.engine_class = String::new()).await;
    let orders = stage.orders().await;
    orders.send(ProviderOrder::Ready).await.expect("it lives");
    assert!(matches!(stage.frame().await, JobFrame::Ready));
    assert_eq!(stage.context.pool.settings().engine_class, ENGINE);
}

#[tokio::test]
async fn every_frame_of_a_long_input_is_a_sign_of_life() {
    let mut stage = Stage::offer(|_| {}).await;
    let orders = stage.orders().await;
    orders.send(ProviderOrder::Ready).await.expect("it lives");
    assert!(matches!(stage.frame().await, JobFrame::Ready));
    let salt = Salt::from_bytes([0; 32]);
    let header = InputHeader {
        seed_salt: salt,
        input_salt: salt,
        resume_salt: salt,
        output_salt: salt,
        seed: vec![0; 8],
        input_len: 1_000,
        resume_len: 0,
        partition: None,
    };
    let chunks = (0..5).map(|_| JobFrame::Input {
        chunk: vec![0; 100],
    });
    for frame in std::iter::once(JobFrame::InputHeader(header)).chain(chunks) {
        stage.io.send(&frame).await.expect("read");
        match timeout(PATIENCE, stage.reports.recv()).await {
            Ok(Some(Report::Event(Event::RequesterHeartbeat { .. }))) => {}
            _ => panic!("something else was reported"),
        }
        sleep(LIFE_TOLD_EVERY).await;
    }
}

#[tokio::test]
async fn a_receipt_before_any_accept_is_an_offence_and_is_not_kept() {
    let mut stage = Stage::offer(|_| {}).await;
    let _orders = stage.orders().await;
    let bytes = vec![0x84, 0x40];
    stage
        .io
        .send(&JobFrame::ReceiptR { bytes })
        .await
        .expect("read");
    loop {
        match timeout(PATIENCE, stage.reports.recv()).await {
            Ok(Some(Report::Offence { kind, .. })) => break assert_eq!(kind, Offence::BadRecord),
            Ok(Some(Report::Event(_))) => {}
            _ => panic!("something else was reported"),
        }
    }
    let jobs = stage.context.desk.records.jobs(None, 8).expect("readable");
    assert!(jobs.jobs.is_empty());
}
