//! A daemon by script: the real service on a real socket, over a door that answers from fixed data.

use std::sync::Arc;

use futures::future::BoxFuture;
use substrate::{
    batches::{Asked, Asker, Batches, Reply, Told},
    blobs::Blobs,
    door::*,
    grpc::{self, Desk},
    home::{DaemonLock, Home},
    kept::KeptFiles,
    keys::DeviceKey,
    models::import::{Inspect, InspectError, ModelFacts},
    store::Store,
};
use substrate_record::{ContentHash, JobId, NetworkId, NodeId, RecordId, Scope, WallTier};
use substrate_sandbox::wire::input::Prompt;
use tokio::sync::{mpsc, oneshot, watch};

/// A scripted daemon, alive until it is stopped or dropped.
pub struct Daemon {
    pub home: crate::program::Home,
    /// Told when the client of the endless answer went away.
    pub cancelled: std::sync::mpsc::Receiver<()>,
    /// Told when the settings are to be read again.
    pub reread: std::sync::mpsc::Receiver<()>,
    /// Told which model is to stay for how many seconds.
    pub kept: std::sync::mpsc::Receiver<(String, i64)>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Daemon {
    pub fn start() -> Self {
        Self::on(crate::program::Home::new())
    }

    pub fn on(home: crate::program::Home) -> Self {
        let at = Home::at(home.path());
        let (stop, stopped) = oneshot::channel();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let (tell_cancelled, cancelled) = std::sync::mpsc::channel();
        let (tell_reread, reread) = std::sync::mpsc::channel();
        let (tell_kept, kept) = std::sync::mpsc::channel();
        let tell = Tell {
            cancelled: tell_cancelled,
            reread: tell_reread,
            kept: tell_kept,
        };
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(serve(at, ready, stopped, tell));
        });
        is_ready.recv().unwrap();
        Self {
            home,
            cancelled,
            reread,
            kept,
            stop: Some(stop),
            thread: Some(thread),
        }
    }
}

/// What the script tells the test.
struct Tell {
    cancelled: std::sync::mpsc::Sender<()>,
    reread: std::sync::mpsc::Sender<()>,
    kept: std::sync::mpsc::Sender<(String, i64)>,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn serve(
    home: Home,
    ready: std::sync::mpsc::Sender<()>,
    stopped: oneshot::Receiver<()>,
    tell: Tell,
) {
    home.prepare().unwrap();
    let lock = DaemonLock::take(&home).unwrap();
    let socket = grpc::bind(&home.socket().unwrap()).await.unwrap();
    let (door, calls) = Door::new();
    let (_keep, desk) = watch::channel(Arc::new(desk(&home)));
    let (end, ended) = oneshot::channel::<()>();
    let batches = batches(&home);
    let script = tokio::spawn(async move {
        let lock = answer(calls, tell, lock).await;
        let _ = end.send(());
        lock
    });
    ready.send(()).unwrap();
    // As a real daemon does: open calls end, the reply to `Stop` among them; then the socket goes, then the lock.
    let end = async { _ = ended.await };
    tokio::select! {
        served = grpc::serve(socket, door, desk, Some(batches), end) => {
            served.unwrap();
            drop(script.await.unwrap());
        }
        _ = stopped => {}
    }
}

/// Real batches, whose lines are answered at once: those that say `wrong` with an error.
fn batches(home: &Home) -> Batches {
    let kept = KeptFiles::open(&home.kept_files()).unwrap();
    let halt = tokio_util::sync::CancellationToken::new();
    Batches::open(&home.batches(), kept, Arc::new(Echo), halt).unwrap()
}

struct Echo;

impl Asker for Echo {
    fn ask(&self, asked: Asked) -> BoxFuture<'_, Told> {
        let status = if asked.body.contains("wrong") {
            400
        } else {
            200
        };
        let reply = Reply {
            status,
            request_id: Some(JobId::from_bytes([0xab; 16]).to_string()),
            body: serde_json::value::RawValue::from_string(asked.body).unwrap(),
        };
        Box::pin(std::future::ready(Told::Answer(reply)))
    }
}

fn desk(home: &Home) -> Desk {
    let device = Arc::new(DeviceKey::open_or_create(home).unwrap());
    let store = Store::open(&home.store()).unwrap();
    let blobs = Blobs::open(&home.blobs()).unwrap();
    Desk::new(home.clone(), store, blobs, device, Arc::new(FakeHeader)).unwrap()
}

/// Says the same of every file that has enough bytes; files that start with `lie` are refused.
struct FakeHeader;

impl Inspect for FakeHeader {
    fn inspect(&self, model: &std::path::Path) -> Result<ModelFacts, InspectError> {
        let bytes = std::fs::read(model).unwrap();
        if bytes.starts_with(b"lie") {
            return Err(InspectError::BadModel("its header lies about sizes".into()));
        }
        Ok(ModelFacts {
            arch: "llama".into(),
            quant: "Q4_1".into(),
            name: "tiny".into(),
            n_params: 134_515_008,
            n_ctx_train: 8192,
            n_vocab: 49_152,
            template: Some("{{ messages }}".into()),
            licence: Some("apache-2.0".into()),
            size: bytes.len() as u64,
            is_adapter: false,
        })
    }
}

/// Answers calls until `Stop`, which gives the lock back.
async fn answer(mut calls: mpsc::Receiver<Call>, tell: Tell, lock: DaemonLock) -> DaemonLock {
    while let Some(call) = calls.recv().await {
        match call {
            Call::Submit { ask, reply } => {
                let _ = reply.send(submit(*ask, tell.cancelled.clone()));
            }
            Call::Cancel { job, reply } => _ = reply.send(job == JOB),
            Call::Models { scope, reply } => _ = reply.send(models(scope)),
            Call::Jobs { reply } => _ = reply.send(jobs()),
            Call::Workers { reply } => _ = reply.send(workers()),
            Call::KeepAlive {
                model,
                seconds,
                reply,
            } => {
                let _ = reply.send(model == "smollm2:135m");
                let _ = tell.kept.send((model, seconds));
            }
            Call::Load { reply, .. } => _ = reply.send(Ok(())),
            Call::Fit { context, reply, .. } => _ = reply.send(Ok(fit(context))),
            Call::Peers { reply } => _ = reply.send(peers()),
            Call::Status { reply } => _ = reply.send(status()),
            Call::ModelsChanged { reply } => _ = reply.send(()),
            Call::SettingsChanged { reply } => {
                let _ = reply.send(Ok(()));
                let _ = tell.reread.send(());
            }
            Call::Join { code, reply } => {
                let joined = if code == "substrate1good" {
                    Ok(Joined {
                        network: "friends".into(),
                        left: Some("this machine".into()),
                    })
                } else {
                    Err("the code is mistyped at position 3".into())
                };
                let _ = reply.send(joined);
            }
            Call::Invite {
                circle,
                valid_ms,
                reply,
            } => _ = reply.send(Ok(format!("substrate1{circle}{valid_ms}"))),
            Call::Bench { reply, .. } => _ = reply.send(Ok((512_300, 41_200))),
            Call::Stop { reply } => {
                let _ = reply.send(());
                return lock;
            }
        }
    }
    lock
}

pub const JOB: JobId = JobId::from_bytes([0xab; 16]);
const NEAR: NodeId = NodeId::from_bytes([0x11; 32]);
const FAR: NodeId = NodeId::from_bytes([0x22; 32]);

fn submit(ask: Ask, cancelled: std::sync::mpsc::Sender<()>) -> Result<JobStream, AskError> {
    let script = match ask.model.as_str() {
        "smollm2:135m" if said(&ask).ends_with("user: go on and on\n") => {
            return Ok(stream(endless(cancelled)));
        }
        "smollm2:135m" => told_well(),
        "echo" => vec![text(&said(&ask)), JobEvent::Finished(Box::new(summary(1)))],
        "flags" => vec![text(&flags(&ask)), JobEvent::Finished(Box::new(summary(1)))],
        "ponder" => vec![
            text("Hm"),
            text(", so.\n</thi"),
            text("nk>\n\n"),
            text(&format!("Told {:?}.", ask.input.thinking)),
            JobEvent::Finished(Box::new(summary(1))),
        ],
        "plain" => vec![text("<think>"), JobEvent::Finished(Box::new(summary(1)))],
        "endless" => return Ok(stream(endless(cancelled))),
        "doomed" => vec![
            text("So far"),
            JobEvent::Failed(AskError::Deadline {
                deadline_ms: 900,
                why: "its node was too slow".into(),
            }),
        ],
        "elsewhere" => {
            return Err(AskError::NoNode {
                model: ask.model,
                scope: Scope::Mine,
                why: "this machine does not hold it".into(),
            });
        }
        _ => {
            return Err(AskError::UnknownModel {
                model: ask.model,
                similar: vec!["smollm2:135m".into()],
            });
        }
    };
    let (tell, events) = mpsc::channel(JOB_EVENT_DEPTH);
    tokio::spawn(async move {
        for event in script {
            if tell.send(event).await.is_err() {
                return;
            }
        }
    });
    Ok(stream(events))
}

fn stream(events: mpsc::Receiver<JobEvent>) -> JobStream {
    JobStream {
        job: JOB,
        scope: Scope::Circle,
        model: "smollm2:135m".into(),
        events,
    }
}

/// An answer with everything in it.
fn told_well() -> Vec<JobEvent> {
    let started = |node, attempt| {
        JobEvent::Started(Started {
            node,
            route: Route::Direct,
            n_in: 12,
            attempt,
        })
    };
    vec![
        JobEvent::Queued(QueueNews {
            position: 1,
            expected_wait_ms: 2_400,
            why: "one answer is under way there".into(),
        }),
        started(NEAR, 1),
        text("Hello"),
        JobEvent::Moved {
            from: NEAR,
            after_tokens: 1,
            why: "its connection was lost".into(),
        },
        started(FAR, 2),
        text(", wörld."),
        JobEvent::Finished(Box::new(summary(2))),
    ]
}

fn endless(cancelled: std::sync::mpsc::Sender<()>) -> mpsc::Receiver<JobEvent> {
    let (tell, events) = mpsc::channel(JOB_EVENT_DEPTH);
    tokio::spawn(async move {
        while tell.send(text("word ")).await.is_ok() {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        let _ = cancelled.send(());
    });
    events
}

fn text(text: &str) -> JobEvent {
    JobEvent::Text(TextPiece {
        bytes: text.as_bytes().to_vec(),
        ids: vec![7],
        logprobs: Vec::new(),
    })
}

fn said(ask: &Ask) -> String {
    match &ask.input.prompt {
        Prompt::Chat(messages) => messages
            .iter()
            .map(|turn| format!("{}: {}\n", turn.role, turn.content))
            .collect(),
        Prompt::Text { text, .. } => text.clone(),
        Prompt::Texts { texts, truncate } => format!("truncate {truncate} {texts:?}"),
    }
}

fn flags(ask: &Ask) -> String {
    let sampler = &ask.sampler;
    format!(
        "scope {:?}\nplacement {:?}\nwall {:?}\ntemperature {} top_k {} top_p {} min_p {}\nseed {:?} max {:?} stop {:?} deadline {}\n",
        ask.scope,
        ask.placement,
        ask.wall,
        sampler.temperature,
        sampler.top_k,
        sampler.top_p,
        sampler.min_p,
        ask.seed,
        ask.max_tokens,
        ask.input.stop,
        ask.deadline_ms,
    )
}

fn summary(attempts: u32) -> Summary {
    Summary {
        finish: FinishReason::Stop,
        n_in: 12,
        n_out: 50,
        node: FAR,
        route: Route::Direct,
        scope: Scope::Circle,
        wall: WallTier::Process,
        isolated: false,
        attempts,
        receipt: Some(RecordId::from_bytes([0xcd; 32])),
        model_sha256: ContentHash::from_bytes([0xb1; 32]),
        timings: Timings {
            queue: 100,
            route: 20,
            load: 0,
            prefill: 80,
            decode: 2_000,
            total: 2_210,
        },
    }
}

fn models(scope: Scope) -> Vec<ModelView> {
    let model = |name: &str, own: bool, nodes| ModelView {
        name: name.into(),
        entry: RecordId::from_bytes([0xe1; 32]),
        digest: ContentHash::from_bytes([0xb1; 32]),
        size: 98_765_432,
        arch: "llama".into(),
        quant: "Q4_1".into(),
        n_params: 134_515_008,
        context: 8192,
        served_context: own.then_some(4096),
        licence: "apache-2.0".into(),
        modified_ms: 0,
        own,
        nodes,
        sees: false,
        loaded: own,
        template: None,
    };
    let own = model("smollm2:135m", true, vec![]);
    let theirs = model("qwen3:4b", false, vec![FAR, NEAR]);
    let with = |name: &str, template: &str| ModelView {
        template: Some(template.into()),
        ..model(name, true, vec![])
    };
    match scope {
        Scope::Mine => vec![own],
        Scope::Circle => vec![own, theirs],
        // Where the program looks for what it is to show: one whose template opens its thoughts, and one that cannot think.
        Scope::Commons => vec![
            own,
            theirs,
            with(
                "ponder",
                "{% if add_generation_prompt %}{% if enable_thinking %}<think>{% endif %}{% endif %}",
            ),
            with("plain", "{{ messages }}"),
        ],
    }
}

fn jobs() -> Vec<JobView> {
    let job = |role, state: &str, queue| JobView {
        job: JOB,
        role,
        model: "smollm2:135m".into(),
        scope: Scope::Circle,
        state: state.into(),
        client: None,
        peer: Some(FAR),
        queue,
        tokens: 5,
        attempt: 1,
        age_ms: 61_000,
    };
    let news = QueueNews {
        position: 2,
        expected_wait_ms: 3_200,
        why: "two answers are before it".into(),
    };
    vec![
        job(JobRole::Requested, "queued", Some(news)),
        job(JobRole::Serving, "running", None),
    ]
}

/// What every model here takes: a megabyte for each token of context, and it fits up to 4,096.
fn fit(context: Option<u32>) -> FitView {
    let context = context.unwrap_or(4096);
    let kv_cache = u64::from(context) * 1_000_000;
    let fits = context <= 4096;
    FitView {
        context,
        slots: 8,
        kv_cache_type: "f16",
        flash_attention: true,
        weights: 98_000_000,
        kv_cache,
        prefixes: kv_cache,
        buffers: 20_000_000,
        engine: 30_000_000,
        total: 148_000_000 + 2 * kv_cache,
        mapped: 0,
        place: fits.then(|| "cpu".to_owned()),
        why: (!fits).then(|| "it needs more than there is".to_owned()),
    }
}

fn workers() -> Vec<WorkerView> {
    let worker = |busy, expires_ms, loading| WorkerView {
        model: "smollm2:135m".into(),
        digest: ContentHash::from_bytes([0xb1; 32]),
        memory: 212_000_000,
        context: 4096,
        pid: 4711,
        wall: Some(WallTier::Process),
        busy,
        isolated: false,
        expires_ms,
        arch: "llama".into(),
        quant: "Q4_1".into(),
        n_params: 134_515_008,
        loading,
    };
    vec![
        worker(0, None, None),
        worker(1, Some(1), None),
        worker(0, None, Some("loading")),
    ]
}

fn peers() -> Vec<PeerView> {
    let peer = |node, connected, circle, skew_ms| PeerView {
        node,
        addrs: vec!["/ip4/192.0.2.7/udp/11536/quic-v1".into()],
        connected,
        circle,
        rtt_ms: connected.then_some(12),
        skew_ms,
        build: "substrate/0.1.0".into(),
        models: if circle {
            vec!["smollm2:135m".into()]
        } else {
            Vec::new()
        },
        slots: 1,
        queue: 0,
        walls: vec![WallTier::Process],
        rates: if circle { (180_000, 61_700) } else { (0, 0) },
    };
    vec![
        peer(NEAR, true, true, Some(-172_800_000)),
        peer(FAR, false, false, Some(3)),
    ]
}

fn status() -> Status {
    Status {
        node: NEAR,
        network: ("friends".into(), NetworkId::from_bytes([0x99; 32])),
        version: env!("CARGO_PKG_VERSION").into(),
        listen: vec!["/ip4/127.0.0.1/udp/11536/quic-v1".into()],
        api: Some("127.0.0.1:11535".into()),
        lending: "off".into(),
        withheld: None,
        peers: 1,
        running: 1,
        waiting: 2,
        wall: Some(WallTier::Process),
        rss: 42_000_000,
        uptime_ms: 3_700_000,
        stopping: false,
        warnings: vec!["the clock is 2 days off".into()],
    }
}
