//! A daemon in name only: it answers calls from a script chosen by the model's name.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use substrate_record::{ContentHash, JobId, RecordId, Scope, WallTier};
use substrate_sandbox::wire::input::{Prompt, Thinking};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::hands::Hands;
use super::views::{jobs, models, node, status, thinkers, worker};
use crate::batches::Batches;
use crate::door::*;
use crate::http::*;
use crate::kept::KeptFiles;

/// A key with the admin right; another that may only ask, twice a minute.
pub(crate) const ADMIN_KEY: &str = "sk-substrate-admin";
pub(crate) const PLAIN_KEY: &str = "sk-substrate-plain";

/// What happened behind the door.
#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) submitted: AtomicU32,
    pub(crate) cancelled: AtomicU32,
    pub(crate) pieces: AtomicU64,
    pub(crate) kept_alive: std::sync::Mutex<Vec<(String, i64)>>,
    pub(crate) changed: AtomicU32,
    /// What templates were told, job by job.
    pub(crate) thinking: std::sync::Mutex<Vec<Option<Thinking>>>,
    /// Whether jobs may wait behind others, job by job.
    pub(crate) patient: std::sync::Mutex<Vec<bool>>,
    /// Whether jobs want workers of their own, job by job.
    pub(crate) isolated: std::sync::Mutex<Vec<bool>>,
}

pub(crate) struct Double {
    pub(crate) state: HttpState,
    pub(crate) seen: Arc<Seen>,
    _folder: tempfile::TempDir,
}

impl Double {
    pub(crate) fn start() -> Self {
        Self::bound("127.0.0.1:11535")
    }

    /// With models that think, beside the others.
    pub(crate) fn thinking() -> Self {
        Self::with("127.0.0.1:11535", thinkers())
    }

    pub(crate) fn bound(addr: &str) -> Self {
        Self::with(addr, Vec::new())
    }

    fn with(addr: &str, thinkers: Vec<ModelView>) -> Self {
        let (door, calls) = Door::new();
        let seen = Arc::new(Seen::default());
        tokio::spawn(answer(calls, seen.clone(), thinkers));
        let key = |name: &str, secret: &str, scope, admin, per_minute| ApiKey {
            name: name.into(),
            sha256: ApiKey::digest(secret),
            scope,
            admin,
            per_minute,
            concurrent: None,
        };
        let keys = ApiKeys::new(vec![
            key("admin", ADMIN_KEY, Scope::Commons, true, None),
            key("plain", PLAIN_KEY, Scope::Mine, false, Some(2)),
        ]);
        let folder = tempfile::tempdir().unwrap();
        let batches = batches(&door, &keys, folder.path());
        let policy = ListenerPolicy {
            bound: addr.parse().unwrap(),
            keyless: Scope::Circle,
            names: Arc::from([]),
            origins: Arc::from([]),
        };
        Self {
            state: HttpState {
                door,
                keys,
                policy,
                models: Arc::new(Hands),
                batches,
            },
            seen,
            _folder: folder,
        }
    }

    pub(crate) fn router(&self) -> Router {
        router(self.state.clone())
    }
}

fn batches(door: &Door, keys: &ApiKeys, folder: &Path) -> Batches {
    let asker = lines(door.clone(), keys.clone(), Scope::Circle, Arc::new(Hands));
    for name in ["files", "batches"] {
        std::fs::create_dir(folder.join(name)).unwrap();
    }
    let kept = KeptFiles::open(&folder.join("files")).unwrap();
    let halt = CancellationToken::new();
    let at_once = Duration::from_micros(100);
    Batches::open_at(&folder.join("batches"), kept, asker, halt, at_once).unwrap()
}

async fn answer(mut calls: mpsc::Receiver<Call>, seen: Arc<Seen>, thinkers: Vec<ModelView>) {
    while let Some(call) = calls.recv().await {
        match call {
            Call::Submit { ask, reply } => drop(reply.send(submit(*ask, &seen))),
            Call::Models { reply, .. } => {
                let here = models().into_iter().chain(thinkers.clone());
                drop(reply.send(here.collect()));
            }
            Call::Load { model, reply } => drop(reply.send(known(&model))),
            Call::KeepAlive {
                model,
                seconds,
                reply,
            } => {
                seen.kept_alive.lock().unwrap().push((model, seconds));
                let _ = reply.send(true);
            }
            Call::ModelsChanged { reply } => {
                seen.changed.fetch_add(1, Ordering::SeqCst);
                let _ = reply.send(());
            }
            Call::Workers { reply } => drop(reply.send(vec![worker()])),
            Call::Jobs { reply } => drop(reply.send(jobs())),
            Call::Fit { model, reply, .. } => drop(reply.send(fit(model))),
            Call::Status { reply } => drop(reply.send(status())),
            _ => {}
        }
    }
}

/// Only what is here can be reckoned.
fn fit(model: String) -> Result<FitView, AskError> {
    if model != "tiny:1" {
        let similar = Vec::new();
        return Err(AskError::UnknownModel { model, similar });
    }
    Ok(FitView {
        context: 4_096,
        slots: 8,
        kv_cache_type: "f16",
        flash_attention: true,
        weights: 98,
        kv_cache: 188,
        prefixes: 188,
        buffers: 20,
        engine: 30,
        total: 524,
        mapped: 0,
        place: Some("cpu".to_owned()),
        why: None,
    })
}

fn known(model: &str) -> Result<(), AskError> {
    let similar = vec!["tiny:1".to_owned()];
    let unknown = AskError::UnknownModel {
        model: model.to_owned(),
        similar,
    };
    if models()
        .iter()
        .any(|view| view.name == model || view.name == format!("{model}:1"))
    {
        Ok(())
    } else {
        Err(unknown)
    }
}

fn submit(ask: Ask, seen: &Arc<Seen>) -> Result<JobStream, AskError> {
    let (model, scope) = (ask.model.clone(), ask.scope.unwrap());
    match model.as_str() {
        "busy:1" => {
            return Err(AskError::Busy {
                waiting: 1_024,
                retry_after_ms: 4_200,
            });
        }
        "nowhere:1" => {
            return Err(AskError::NoNode {
                model,
                scope,
                why: "it needs 40 GiB".into(),
            });
        }
        "stopping:1" => return Err(AskError::Stopping),
        "closed:1" => {
            return Err(AskError::Forbidden {
                why: "this model is for its owner".into(),
            });
        }
        "refuses:1" => {
            return Err(AskError::BadRequest {
                param: Some("logit_bias".into()),
                why: "no such token".into(),
            });
        }
        _ => {}
    }
    let scripted = [
        "overflow:1",
        "far-overflow:1",
        "late:1",
        "stopped:1",
        "lost:1",
        "fails:1",
        "moves:1",
        "queued:1",
        "endless:1",
        "bytes:1",
        "calls:1",
        "thinks:1",
        "ponders:1",
        "strange:1",
        "plain:1",
    ];
    if !scripted.contains(&model.as_str()) {
        known(&model)?;
    }
    seen.thinking.lock().unwrap().push(ask.input.thinking);
    seen.patient.lock().unwrap().push(ask.patient);
    seen.isolated.lock().unwrap().push(ask.isolated);
    let number = seen.submitted.fetch_add(1, Ordering::SeqCst);
    let mut id = [0; 16];
    id[12..].copy_from_slice(&(number + 1).to_be_bytes());
    let (sender, events) = mpsc::channel(JOB_EVENT_DEPTH);
    tokio::spawn(play(ask, sender, seen.clone()));
    let full = if model.contains(':') {
        model
    } else {
        format!("{model}:1")
    };
    Ok(JobStream {
        job: JobId::from_bytes(id),
        scope,
        model: full,
        events,
    })
}

/// Sends a job's events; a client that is gone ends it.
async fn play(ask: Ask, sender: mpsc::Sender<JobEvent>, seen: Arc<Seen>) {
    let tell = async |event: JobEvent| {
        if matches!(event, JobEvent::Text(_)) {
            seen.pieces.fetch_add(1, Ordering::SeqCst);
        }
        if sender.send(event).await.is_err() {
            seen.cancelled.fetch_add(1, Ordering::SeqCst);
            return Err(());
        }
        Ok(())
    };
    let failed = |error| JobEvent::Failed(error);
    let script = async {
        match ask.model.as_str() {
            "overflow:1" => {
                return tell(failed(AskError::ContextOverflow {
                    tokens: Some(Overflow {
                        used: 9_000,
                        limit: 2_048,
                    }),
                }))
                .await;
            }
            "far-overflow:1" => {
                return tell(failed(AskError::ContextOverflow { tokens: None })).await;
            }
            "late:1" => {
                return tell(failed(AskError::Deadline {
                    deadline_ms: 5,
                    why: "two nodes refused".into(),
                }))
                .await;
            }
            "queued:1" => {
                tell(JobEvent::Queued(QueueNews {
                    position: 3,
                    expected_wait_ms: 900,
                    why: "3 jobs are ahead".into(),
                }))
                .await?;
                tell(JobEvent::Queued(QueueNews {
                    position: 0,
                    expected_wait_ms: 100,
                    why: "next".into(),
                }))
                .await?;
            }
            _ => {}
        }
        tell(started(1, 7)).await?;
        if ask.model == "endless:1" {
            loop {
                tell(text(" and on")).await?;
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        if ask.model == "bytes:1" {
            loop {
                tell(text(&"x".repeat(16 << 10))).await?;
            }
        }
        if let Prompt::Texts { texts, .. } = &ask.input.prompt {
            for (number, _) in (0u8..).zip(texts) {
                tell(row(number)).await?;
            }
            let rows = texts.len() as u32;
            return tell(finished(FinishReason::Stop, prompt_tokens(&ask), rows)).await;
        }
        let words = words(&ask);
        for (index, word) in words.iter().enumerate() {
            if index == 1 {
                match ask.model.as_str() {
                    "lost:1" => return Ok(()),
                    "fails:1" => {
                        return tell(failed(AskError::Internal {
                            why: "the worker broke".into(),
                        }))
                        .await;
                    }
                    "stopped:1" => return tell(finished(FinishReason::Cancelled, 5, 1)).await,
                    "moves:1" => {
                        let why = "no heartbeat for 1.8 s".to_owned();
                        tell(JobEvent::Moved {
                            from: node(2),
                            after_tokens: 1,
                            why,
                        })
                        .await?;
                        tell(started(2, 8)).await?;
                    }
                    _ => {}
                }
            }
            tell(piece(word, index, ask.sampler.top_logprobs)).await?;
        }
        let whole = ask.max_tokens.is_none_or(|max| words.len() < max as usize);
        let reason = if whole {
            FinishReason::Stop
        } else {
            FinishReason::Length
        };
        tell(finished(reason, prompt_tokens(&ask), words.len() as u32)).await
    };
    // A client that went away has been counted; there is nobody left to tell.
    let _ = script.await;
}

/// `Hello`, ` world`, `!` and then words that depend on the seed and the choice, up to eight in all.
fn words(ask: &Ask) -> Vec<String> {
    if ask.model == "calls:1" {
        let call = [
            "I look. ",
            "<tool",
            "_call>{\"name\":\"f\",",
            "\"arguments\":{\"x\":1}}</tool_call>",
        ];
        return call.map(str::to_owned).to_vec();
    }
    let scripted: Option<&[&str]> = match ask.model.as_str() {
        "thinks:1" | "strange:1" => {
            Some(&["<thi", "nk>\nHm, ", "so.\n</th", "ink>\n\n", "Yes", "."])
        }
        "ponders:1" => Some(&[
            "Hm",
            ".\n</think>",
            "\n\n<tool_call>",
            "{\"name\":\"f\",\"arguments\":{\"x\":1}}</tool_call>",
        ]),
        _ => None,
    };
    if let Some(pieces) = scripted {
        return pieces.iter().map(|piece| (*piece).to_owned()).collect();
    }
    let pick = |seed: i64, at: usize| {
        ["red", "blue", "green"][(seed as usize + ask.choice as usize + at) % 3]
    };
    let mut words = vec!["Hello".to_owned(), " world".to_owned(), "!".to_owned()];
    if let Some(seed) = ask.seed {
        words.extend((0..5).map(|at| format!(" {}", pick(seed, at))));
    }
    words.truncate(ask.max_tokens.unwrap_or(u32::MAX) as usize);
    let whole = words.concat();
    match ask
        .input
        .stop
        .iter()
        .filter_map(|stop| whole.find(stop.as_str()))
        .min()
    {
        Some(at) => vec![whole[..at].to_owned()],
        None => words,
    }
}

/// A template adds two tokens.
fn prompt_tokens(ask: &Ask) -> u32 {
    match ask.input.prompt {
        Prompt::Chat(_) => 5,
        Prompt::Text { .. } => 3,
        Prompt::Texts { ref texts, .. } => 3 * texts.len() as u32,
    }
}

fn started(attempt: u32, by: u8) -> JobEvent {
    JobEvent::Started(Started {
        node: node(by),
        route: Route::Direct,
        n_in: 5,
        attempt,
    })
}

fn text(text: &str) -> JobEvent {
    JobEvent::Text(TextPiece {
        bytes: text.as_bytes().to_vec(),
        ..TextPiece::default()
    })
}

/// A vector of length 1 whose direction is the text's number.
fn row(number: u8) -> JobEvent {
    let components = [0.6, 0.8, 0.0f32].map(|x| if number.is_multiple_of(2) { x } else { -x });
    JobEvent::Row(components.iter().flat_map(|x| x.to_le_bytes()).collect())
}

fn piece(word: &str, index: usize, top: Option<u32>) -> JobEvent {
    let bytes = word.as_bytes().to_vec();
    let other = (0..top.unwrap_or(0)).map(|rank| match rank {
        0 => (index as u32, -0.5, bytes.clone()),
        _ => (9, f32::NEG_INFINITY, b"zz".to_vec()),
    });
    let told = TokenLogprob {
        id: index as u32,
        bytes: bytes.clone(),
        logprob: -0.5,
        top: other.collect(),
    };
    let logprobs = if top.is_some() { vec![told] } else { vec![] };
    JobEvent::Text(TextPiece {
        bytes,
        ids: vec![index as u32],
        logprobs,
    })
}

fn finished(finish: FinishReason, n_in: u32, n_out: u32) -> JobEvent {
    JobEvent::Finished(Box::new(Summary {
        finish,
        n_in,
        n_out,
        node: node(7),
        route: Route::Direct,
        scope: Scope::Circle,
        wall: WallTier::Basic,
        isolated: false,
        attempts: 1,
        receipt: Some(RecordId::from_bytes([3; 32])),
        model_sha256: ContentHash::from_bytes([4; 32]),
        timings: Timings {
            queue: 1,
            route: 2,
            load: 0,
            prefill: 30,
            decode: 400,
            total: 433,
        },
    }))
}
