//! Jobs from the listener's side: handed to the daemon, followed, and told about in headers.
//!
//! Invariants: a [`Feed`] or [`Running`] that is dropped cancels its jobs, because it owns their
//! event channels; events are taken only as fast as the client reads; a channel that closes early is
//! told as a failure.

use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use futures::StreamExt;
use futures::future::try_join_all;
use futures::stream::{BoxStream, SelectAll};
use serde::Serialize;
use substrate_record::{JobId, Scope};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_stream::wrappers::ReceiverStream;

use super::App;
use super::error::Refusal;
use super::guard::{Caller, SCOPE};
use super::names::{route_name, scope_name};
use crate::door::{Ask, AskError, Call, FinishReason, JobEvent, Summary, TokenLogprob};

/// How long a client waits with nothing coming, in queues and while its prompt is read. The `openai` package's own
/// default timeout, which too counts from byte to byte: an answer that gets on may take as long as it is.
pub(super) const DEADLINE_MS: u64 = 600_000;

/// How long the answer's status line waits for the job's first event, so that a job that fails at
/// once is told with a status and not inside a stream. Waiting jobs are told about every 2 s.
const FIRST_EVENT: Duration = Duration::from_secs(2);

/// Largest answer kept for a client that does not stream: far above any context's worth of text.
pub(super) const MAX_ANSWER_BYTES: usize = 16 << 20;

/// Most vectors kept for one request: 2,048 of 1,024 components. Written as JSON they take three times as much.
const MAX_ROW_BYTES: usize = 8 << 20;

/// The answer's job, on every answer that has one.
pub(super) const JOB: HeaderName = HeaderName::from_static("x-substrate-job");
const NODE: HeaderName = HeaderName::from_static("x-substrate-node");
const ROUTE: HeaderName = HeaderName::from_static("x-substrate-route");
const RECEIPT: HeaderName = HeaderName::from_static("x-substrate-receipt");
const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

/// A job the daemon has taken.
pub(super) struct Running {
    job: JobId,
    scope: Scope,
    /// The model's full name.
    pub(super) model: String,
    first: Option<JobEvent>,
    events: mpsc::Receiver<JobEvent>,
    seat: Option<Arc<OwnedSemaphorePermit>>,
}

/// A whole answer.
pub(super) struct Answer {
    pub(super) job: JobId,
    pub(super) model: String,
    pub(super) text: String,
    pub(super) logprobs: Vec<TokenLogprob>,
    /// Vectors, if they were asked for: f32, little-endian.
    pub(super) rows: Vec<Vec<u8>>,
    pub(super) summary: Summary,
}

/// Hands in the jobs of one request. Either all are taken or none is left running.
pub(super) async fn submit(
    app: &App,
    caller: &Caller,
    asks: Vec<Ask>,
) -> Result<Vec<Running>, Refusal> {
    let mut taken = Vec::with_capacity(asks.len());
    for ask in asks {
        taken.push(hand_in(app, caller, ask).await?);
    }
    try_join_all(taken.iter_mut().map(Running::await_first)).await?;
    Ok(taken)
}

async fn hand_in(app: &App, caller: &Caller, ask: Ask) -> Result<Running, Refusal> {
    let ask = Box::new(ask);
    let stream = app.door.call(|reply| Call::Submit { ask, reply }).await??;
    let seat = caller.seat.clone();
    Ok(Running {
        job: stream.job,
        scope: stream.scope,
        model: stream.model,
        first: None,
        events: stream.events,
        seat,
    })
}

impl Running {
    async fn await_first(&mut self) -> Result<(), Refusal> {
        let refused = |error: AskError| Err(Refusal::from(error).of_job(self.job));
        match tokio::time::timeout(FIRST_EVENT, self.events.recv()).await {
            Err(_) => {}
            Ok(Some(JobEvent::Failed(error))) => return refused(error),
            Ok(Some(event)) => self.first = Some(event),
            Ok(None) => return refused(lost()),
        }
        Ok(())
    }

    /// Follows the job to its end. Dropping the future cancels the job.
    pub(super) async fn whole(self) -> Result<Answer, Refusal> {
        let job = self.job;
        self.follow().await.map_err(|refusal| refusal.of_job(job))
    }

    async fn follow(mut self) -> Result<Answer, Refusal> {
        let (mut text, mut logprobs) = (String::new(), Vec::new());
        let (mut rows, mut row_bytes) = (Vec::new(), 0);
        let mut next = self.first.take();
        loop {
            let event = match next.take() {
                Some(event) => event,
                None => self
                    .events
                    .recv()
                    .await
                    .unwrap_or_else(|| JobEvent::Failed(lost())),
            };
            match event {
                JobEvent::Queued(_) | JobEvent::Started(_) | JobEvent::Moved { .. } => {}
                JobEvent::Text(piece) => {
                    text.push_str(&String::from_utf8_lossy(&piece.bytes));
                    logprobs.extend(piece.logprobs);
                    if text.len() > MAX_ANSWER_BYTES {
                        return Err(Refusal::internal(format!(
                            "the answer is larger than {MAX_ANSWER_BYTES} bytes"
                        )));
                    }
                }
                JobEvent::Row(row) => {
                    row_bytes += row.len();
                    if row_bytes > MAX_ROW_BYTES {
                        return Err(Refusal::invalid(
                            "input",
                            format!(
                                "the vectors are larger than {MAX_ROW_BYTES} bytes: ask for fewer texts at once"
                            ),
                        ));
                    }
                    rows.push(row);
                }
                JobEvent::Finished(summary) => {
                    let summary = finished(*summary)?;
                    return Ok(Answer {
                        job: self.job,
                        model: self.model,
                        text,
                        logprobs,
                        rows,
                        summary,
                    });
                }
                JobEvent::Failed(error) => return Err(error.into()),
            }
        }
    }
}

/// An answer cut off by a cancellation is not an answer.
fn finished(summary: Summary) -> Result<Summary, AskError> {
    match summary.finish {
        FinishReason::Stop | FinishReason::Length => Ok(summary),
        FinishReason::Cancelled => Err(AskError::Cancelled {
            why: "its owner stopped it".into(),
        }),
    }
}

fn lost() -> AskError {
    AskError::Internal {
        why: "the daemon stopped before the answer was finished".into(),
    }
}

/// What a stream's next moment brings.
pub(super) enum Beat {
    /// Something happened to the choice with this index.
    Event(usize, JobEvent),
    /// Nothing happened for as long as was asked.
    Quiet,
}

/// The events of a request's jobs, interleaved as they come.
pub(super) struct Feed {
    events: SelectAll<BoxStream<'static, (usize, JobEvent)>>,
    ended: Vec<bool>,
    jobs: Vec<JobId>,
    _seats: Vec<Option<Arc<OwnedSemaphorePermit>>>,
}

impl Feed {
    pub(super) fn new(jobs: Vec<Running>) -> Self {
        let ended = vec![false; jobs.len()];
        let ids = jobs.iter().map(|running| running.job).collect();
        let seats = jobs.iter().map(|running| running.seat.clone()).collect();
        let events = jobs.into_iter().enumerate().map(|(index, running)| {
            let last_word = futures::stream::iter([JobEvent::Failed(lost())]);
            let events =
                futures::stream::iter(running.first).chain(ReceiverStream::new(running.events));
            events
                .chain(last_word)
                .map(move |event| (index, event))
                .boxed()
        });
        Self {
            events: futures::stream::select_all(events),
            ended,
            jobs: ids,
            _seats: seats,
        }
    }

    pub(super) fn job(&self, index: usize) -> JobId {
        self.jobs[index]
    }

    /// The next event, or [`Beat::Quiet`] after `patience`. `None` when every job has ended.
    pub(super) async fn next(&mut self, patience: Duration) -> Option<Beat> {
        loop {
            let (index, event) = match tokio::time::timeout(patience, self.events.next()).await {
                Err(_) => return Some(Beat::Quiet),
                Ok(next) => next?,
            };
            // The last word of a job that had its end is not needed.
            if self.ended[index] {
                continue;
            }
            let event = match event {
                JobEvent::Finished(summary) => match finished(*summary) {
                    Ok(summary) => JobEvent::Finished(Box::new(summary)),
                    Err(error) => JobEvent::Failed(error),
                },
                event => event,
            };
            self.ended[index] = matches!(event, JobEvent::Finished(_) | JobEvent::Failed(_));
            return Some(Beat::Event(index, event));
        }
    }
}

/// The facts of a finished job, as streams tell them.
#[derive(Debug, Serialize)]
pub(super) struct Facts {
    job: String,
    node: String,
    route: &'static str,
    scope: &'static str,
    wall: String,
    isolated: bool,
    attempts: u32,
    receipt: Option<String>,
    model_sha256: String,
    timings_ms: Times,
}

#[derive(Debug, Serialize)]
struct Times {
    queue: u64,
    route: u64,
    load: u64,
    prefill: u64,
    decode: u64,
    total: u64,
}

impl Facts {
    pub(super) fn new(job: JobId, summary: &Summary) -> Self {
        let t = summary.timings;
        Self {
            job: job.to_string(),
            node: summary.node.to_string(),
            route: route_name(summary.route),
            scope: scope_name(summary.scope),
            wall: format!("{:?}", summary.wall).to_ascii_lowercase(),
            isolated: summary.isolated,
            attempts: summary.attempts,
            receipt: summary.receipt.map(|receipt| receipt.to_string()),
            model_sha256: summary.model_sha256.to_string(),
            timings_ms: Times {
                queue: t.queue,
                route: t.route,
                load: t.load,
                prefill: t.prefill,
                decode: t.decode,
                total: t.total,
            },
        }
    }
}

/// Headers of an answer whose jobs still run.
pub(super) fn tell_running(headers: &mut HeaderMap, jobs: &[Running]) {
    insert(
        headers,
        JOB,
        &joined(jobs, |running| running.job.to_string()),
    );
    if let Some(running) = jobs.first() {
        headers.insert(SCOPE, HeaderValue::from_static(scope_name(running.scope)));
    }
}

/// Headers of a whole answer.
pub(super) fn tell_finished(headers: &mut HeaderMap, answers: &[Answer]) {
    insert(
        headers,
        JOB,
        &joined(answers, |answer| answer.job.to_string()),
    );
    insert(
        headers,
        NODE,
        &joined(answers, |answer| answer.summary.node.to_string()),
    );
    insert(
        headers,
        ROUTE,
        &joined(answers, |answer| {
            route_name(answer.summary.route).to_owned()
        }),
    );
    let receipts = joined(answers, |answer| {
        answer
            .summary
            .receipt
            .map_or_else(String::new, |id| id.to_string())
    });
    if receipts.bytes().any(|byte| byte != b',' && byte != b' ') {
        insert(headers, RECEIPT, &receipts);
    }
    if let Some(answer) = answers.first() {
        headers.insert(
            SCOPE,
            HeaderValue::from_static(scope_name(answer.summary.scope)),
        );
        insert(headers, SERVER_TIMING, &server_timing(&answer.summary));
    }
}

fn server_timing(summary: &Summary) -> String {
    let t = summary.timings;
    let parts = [
        ("queue", t.queue),
        ("route", t.route),
        ("load", t.load),
        ("prefill", t.prefill),
        ("decode", t.decode),
        ("total", t.total),
    ];
    let mut timing = String::new();
    for (name, ms) in parts {
        let comma = if timing.is_empty() { "" } else { ", " };
        // Writing to a string cannot fail.
        let _ = write!(timing, "{comma}{name};dur={ms}");
    }
    timing
}

fn joined<T>(list: &[T], text: impl Fn(&T) -> String) -> String {
    list.iter().map(text).collect::<Vec<_>>().join(", ")
}

fn insert(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}
