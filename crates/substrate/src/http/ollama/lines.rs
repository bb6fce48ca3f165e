//! Answers of chat and generate: lines of a stream, or one object.
//!
//! Durations are integer nanoseconds, times RFC 3339 (API.md 1). A failure inside a stream is its
//! last line, `{"error": …}`, with the status unchanged.

use std::time::{Duration, SystemTime};

use axum::Json;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use futures::Stream;
use serde::Serialize;
use substrate_record::JobId;

use super::ask::{Plan, Wanted};
use super::types::KeepAlive;
use crate::door::{Call, FinishReason, JobEvent, Summary, TextPiece, TokenLogprob};
use crate::http::error::{Refusal, Shape};
use crate::http::guard::Caller;
use crate::http::hearing::{Ear, Hearing, Told};
use crate::http::job::{Answer, Beat, Facts, Feed, submit, tell_finished, tell_running};
use crate::http::names::rfc3339;
use crate::http::{Shared, lists, ndjson};

/// NDJSON has no comments, so a stream has nothing to say while nothing happens; it only looks again.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// Which of the two routes answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Chat,
    Generate,
}

/// One line of a stream, or the whole answer.
#[derive(Debug, Default, Serialize)]
struct Line {
    model: String,
    created_at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<Said>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response: Option<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    thinking: String,
    done: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    done_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    logprobs: Vec<Logprob>,
    #[serde(flatten)]
    totals: Option<Totals>,
    #[serde(skip_serializing_if = "Option::is_none")]
    substrate: Option<Facts>,
}

#[derive(Debug, Serialize)]
struct Said {
    role: &'static str,
    content: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    thinking: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<serde_json::Value>,
}

#[derive(Debug, Serialize)]
struct Totals {
    total_duration: u64,
    load_duration: u64,
    prompt_eval_count: u32,
    prompt_eval_duration: u64,
    eval_count: u32,
    eval_duration: u64,
}

#[derive(Debug, Serialize)]
struct Logprob {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    top_logprobs: Vec<Alternative>,
}

#[derive(Debug, Serialize)]
struct Alternative {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
}

/// Carries out a plan and answers.
pub(super) async fn answer(
    app: Shared,
    caller: Caller,
    kind: Kind,
    plan: Plan,
) -> Result<Response, Refusal> {
    let Plan {
        model,
        wanted,
        keep_alive,
        stream,
        thinking,
        mut hearing,
    } = plan;
    let reason = match wanted {
        Wanted::Answer(mut ask) => {
            let asks = std::slice::from_mut(&mut *ask);
            hearing.settle(&app, &caller, asks, thinking).await?;
            let jobs = submit(&app, &caller, vec![*ask]).await?;
            let running = jobs
                .into_iter()
                .next()
                .ok_or_else(|| Refusal::internal("no job was taken"))?;
            if stream {
                let mut headers = HeaderMap::new();
                tell_running(&mut headers, std::slice::from_ref(&running));
                let writer = LineWriter {
                    kind,
                    model: running.model.clone(),
                    over: false,
                    ear: hearing.ear(),
                    logprobs: Vec::new(),
                };
                let mut response = ndjson::response(lines(
                    writer,
                    Feed::new(vec![running]),
                    app,
                    model,
                    keep_alive,
                ));
                response.headers_mut().extend(headers);
                return Ok(response);
            }
            let answer = running.whole().await?;
            keep(&app, &model, keep_alive).await;
            return Ok(whole(kind, answer, &hearing));
        }
        Wanted::Load => {
            let name = model.clone();
            app.door
                .call(|reply| Call::Load { model: name, reply })
                .await??;
            "load"
        }
        Wanted::Unload => {
            lists::model(&app, &caller, &model).await?;
            "unload"
        }
    };
    keep(&app, &model, keep_alive).await;
    Ok(Json(
        kind.line(model, SystemTime::now(), Told::default())
            .last(reason),
    )
    .into_response())
}

/// Sets how long the worker stays. A model that no worker here has loaded has nothing to keep.
pub(super) async fn keep(app: &Shared, model: &str, keep_alive: Option<KeepAlive>) {
    let Some(KeepAlive { seconds }) = keep_alive else {
        return;
    };
    let model = model.to_owned();
    let known = app
        .door
        .call(|reply| Call::KeepAlive {
            model,
            seconds,
            reply,
        })
        .await;
    tracing::debug!(?known, seconds, "keep-alive set");
}

impl Kind {
    /// Arguments of calls are objects here.
    fn line(self, model: String, now: SystemTime, told: Told) -> Line {
        let line = Line {
            model,
            created_at: rfc3339(now),
            ..Line::default()
        };
        let calls = told.calls.into_iter().map(|call| {
            serde_json::json!({ "function": { "name": call.name, "arguments": call.arguments } })
        });
        match self {
            Self::Chat => Line {
                message: Some(Said {
                    role: "assistant",
                    content: told.text,
                    thinking: told.thoughts,
                    tool_calls: calls.collect(),
                }),
                ..line
            },
            Self::Generate => Line {
                response: Some(told.text),
                thinking: told.thoughts,
                ..line
            },
        }
    }
}

impl Line {
    fn last(self, reason: &'static str) -> Self {
        Self {
            done: true,
            done_reason: Some(reason),
            ..self
        }
    }

    fn finished(self, job: JobId, summary: &Summary) -> Self {
        let reason = match summary.finish {
            FinishReason::Length => "length",
            FinishReason::Stop | FinishReason::Cancelled => "stop",
        };
        let line = self.last(reason);
        Self {
            totals: Some(Totals::of(summary)),
            substrate: Some(Facts::new(job, summary)),
            ..line
        }
    }
}

impl Totals {
    fn of(summary: &Summary) -> Self {
        let ns = |ms: u64| ms.saturating_mul(1_000_000);
        let times = summary.timings;
        Self {
            total_duration: ns(times.total),
            load_duration: ns(times.load),
            prompt_eval_count: summary.n_in,
            prompt_eval_duration: ns(times.prefill),
            eval_count: summary.n_out,
            eval_duration: ns(times.decode),
        }
    }
}

impl Logprob {
    fn of(told: &TokenLogprob) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let alternative = |(_, logprob, bytes): &(u32, f32, Vec<u8>)| Alternative {
            token: text(bytes),
            logprob: logprob.max(f32::MIN),
            bytes: bytes.clone(),
        };
        Self {
            token: text(&told.bytes),
            // JSON has no infinity.
            logprob: told.logprob.max(f32::MIN),
            bytes: told.bytes.clone(),
            top_logprobs: told.top.iter().map(alternative).collect(),
        }
    }
}

fn whole(kind: Kind, answer: Answer, hearing: &Hearing) -> Response {
    let mut headers = HeaderMap::new();
    tell_finished(&mut headers, std::slice::from_ref(&answer));
    let logprobs = answer.logprobs.iter().map(Logprob::of).collect();
    let line = kind
        .line(
            answer.model,
            SystemTime::now(),
            hearing.hear_all(answer.text),
        )
        .finished(answer.job, &answer.summary);
    (headers, Json(Line { logprobs, ..line })).into_response()
}

/// Writes one request's stream. Pure: events and times in, lines out.
struct LineWriter {
    kind: Kind,
    model: String,
    over: bool,
    /// Tells thoughts, text and calls apart.
    ear: Ear,
    /// Of tokens that were heard and not told yet.
    logprobs: Vec<TokenLogprob>,
}

impl LineWriter {
    fn on(&mut self, job: JobId, event: JobEvent, now: SystemTime) -> Option<String> {
        match event {
            JobEvent::Queued(_)
            | JobEvent::Started(_)
            | JobEvent::Moved { .. }
            | JobEvent::Row(_) => None,
            JobEvent::Text(piece) => self.on_text(piece, now),
            JobEvent::Finished(summary) => {
                self.over = true;
                let rest = self.ear.end();
                let mut told = if rest.is_empty() && self.logprobs.is_empty() {
                    String::new()
                } else {
                    self.tell(rest, now)
                };
                let line = self.kind.line(self.model.clone(), now, Told::default());
                told += &ndjson::line(&line.finished(job, &summary));
                Some(told)
            }
            JobEvent::Failed(error) => {
                self.over = true;
                Some(ndjson::line(&Refusal::from(error).body(Shape::Ollama)))
            }
        }
    }

    fn on_text(&mut self, piece: TextPiece, now: SystemTime) -> Option<String> {
        if piece.bytes.is_empty() && piece.logprobs.is_empty() {
            return None;
        }
        self.logprobs.extend(piece.logprobs);
        let told = self.ear.hear(&String::from_utf8_lossy(&piece.bytes));
        if told.is_empty() && (self.ear.holds() || self.logprobs.is_empty()) {
            return None;
        }
        Some(self.tell(told, now))
    }

    /// One line, with the log-probabilities of all that was heard.
    fn tell(&mut self, told: Told, now: SystemTime) -> String {
        let heard = std::mem::take(&mut self.logprobs);
        let line = self.kind.line(self.model.clone(), now, told);
        ndjson::line(&Line {
            logprobs: heard.iter().map(Logprob::of).collect(),
            ..line
        })
    }
}

/// Follows the job to its end. Dropping the stream drops the feed, which cancels the job.
fn lines(
    mut writer: LineWriter,
    mut feed: Feed,
    app: Shared,
    model: String,
    keep_alive: Option<KeepAlive>,
) -> impl Stream<Item = String> + Send {
    async_stream::stream! {
        while let Some(beat) = feed.next(LOOK_AGAIN).await {
            let Beat::Event(index, event) = beat else { continue };
            let told = writer.on(feed.job(index), event, SystemTime::now());
            if writer.over {
                // Before the last line, so that a client which then asks `ps` sees what it asked for.
                keep(&app, &model, keep_alive).await;
            }
            if let Some(line) = told {
                yield line;
            }
            if writer.over {
                break;
            }
        }
    }
}
