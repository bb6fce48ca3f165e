//! The work itself: prepared, accepted, begun, and every frame of the worker passed on.
//!
//! Invariant: no work begins on a stream that closed before the Accept went out.

use substrate_mesh::job::JobFrame;
use substrate_node::{Event, StopReason, WorkFailure};
use substrate_record::{Accept, Finish, JobKind, ModelEntry, Verified};
use substrate_sandbox::wire::FromWorker;
use tokio::time::sleep_until;
use tokio_util::sync::CancellationToken;

use super::believed::{self, Asked};
use super::{InputCommitment, Preparing, Report, Session, Stage, Step};
use crate::daemon::engine::WorkError;
use crate::daemon::pool::Whose;
use crate::daemon::session::output::Rows;
use crate::daemon::session::work::{self, Running};
use crate::models::parts::Parts;

/// When to ask again a node that stopped a job before it began: its reasons last longer than a moment.
const RETRY_LATER_MS: u64 = 5_000;

impl Session {
    pub(super) async fn on_work(&mut self, event: WorkEvent) -> Step {
        match event {
            WorkEvent::Prepared(Ok(running)) => self.accept_and_begin(running).await,
            WorkEvent::Prepared(Err(error)) => {
                if let Some(tokens) = error.overflow.filter(|_| self.is_own()) {
                    let job = self.attempt.job;
                    self.report(Report::Overflow { job, tokens }).await;
                }
                if error.no_room && self.is_own() {
                    let (job, why) = (self.attempt.job, error.detail.clone());
                    self.report(Report::NoRoom { job, why }).await;
                }
                match error.private {
                    true => self.fail_quietly(error.why, error.detail).await,
                    false => self.fail(error.why, error.detail).await,
                }
            }
            WorkEvent::Frame(Ok(frame)) => self.on_worker_frame(frame).await,
            WorkEvent::Frame(Err(error)) => {
                self.fail(WorkFailure::Crashed, error.to_string()).await
            }
            WorkEvent::NoReceipt => Step::End,
        }
    }

    pub(super) async fn accept_and_begin(&mut self, running: Running) -> Step {
        // Whatever comes of it, the task that prepared it is done.
        self.stage = Stage::Offered;
        let Some(io) = self.io.as_mut() else {
            // PROTOCOL.md 5: a stream that closed before the Accept must not start.
            return Step::End;
        };
        let n_in = running.n_in;
        let settings = self.context.pool.settings();
        let accept = self.context.sign(Accept {
            manifest: self.manifest.id(),
            engine_class: settings.engine_class.clone(),
            worker_sha256: running.lease.worker,
            wall: running.lease.wall,
            n_in,
        });
        let accept = match accept {
            Ok(accept) => accept,
            Err(error) => return self.fail(WorkFailure::Crashed, error.to_string()).await,
        };
        let frame = JobFrame::Started {
            accept: accept.bytes().to_vec(),
        };
        if io.send(&frame).await.is_err() {
            return self.lose().await;
        }
        self.accept = Some(accept);
        self.spent.started();
        self.tell(Event::WorkStarted {
            attempt: self.attempt,
            n_in,
        })
        .await;
        if let Err(error) = running.sequence.begin().await {
            return self.fail(WorkFailure::Crashed, error.to_string()).await;
        }
        self.stage = Stage::Working(Box::new(running));
        Step::On
    }

    pub(super) async fn on_worker_frame(&mut self, frame: FromWorker) -> Step {
        let attempt = self.attempt;
        if let Err(why) = believed::check(&self.asked(), &frame) {
            return self.condemn(why).await;
        }
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
                // The worker counts resumed ids too; the requester is told of its prompt.
                let prompt = self.accept.as_ref().map_or(0, |accept| accept.body().n_in);
                self.prefilled = n.min(prompt).max(self.prefilled);
                let n = self.prefilled;
                self.send(JobFrame::Prefilled { n }).await
            }
            FromWorker::Tokens {
                ids,
                bytes,
                logprobs,
                ..
            } => {
                self.ids.extend_from_slice(&ids);
                self.tokens = self
                    .tokens
                    .saturating_add(u32::try_from(ids.len()).unwrap_or(u32::MAX));
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
            FromWorker::Row { row, bytes, .. } => self.on_row(row, bytes).await,
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
            FromWorker::Failed { why, .. } => {
                let detail = format!("the worker could not go on ({why:?})");
                self.fail(work::failure_of(why), detail).await
            }
            // Nothing else is believed.
            _ => Step::On,
        }
    }

    /// What the worker may send now.
    fn asked(&self) -> Asked {
        let body = self.manifest.body();
        Asked {
            kind: body.kind,
            most: body.max_tokens.saturating_sub(body.resume_tokens),
            made: self.tokens,
            top: body.sampler.top_logprobs,
        }
    }

    /// Kills a worker that sent what no honest one does, and fails the work.
    async fn condemn(&mut self, why: &'static str) -> Step {
        if let Stage::Working(running) = &self.stage {
            running.sequence.condemn(why);
        }
        self.fail(WorkFailure::Crashed, format!("the worker sent {why}"))
            .await
    }

    /// A row is a token whose id is its number.
    async fn on_row(&mut self, row: u32, bytes: Vec<u8>) -> Step {
        let length = *self.row_length.get_or_insert(bytes.len());
        let Some(rows) = self.rows.as_mut().filter(|_| bytes.len() == length) else {
            return self.condemn("vectors of two lengths").await;
        };
        rows.push(&bytes);
        self.ids.push(row);
        self.tokens = self.tokens.saturating_add(1);
        let frame = JobFrame::Token {
            ids: vec![row],
            bytes,
            logprobs: Vec::new(),
        };
        self.tail.push(1, frame.clone());
        if let Some(tokens) = self.spent.worth_telling(self.ids.len()) {
            let attempt = self.attempt;
            self.tell(Event::WorkProgress {
                attempt,
                prefilled: 0,
                tokens,
            })
            .await;
        }
        self.send(frame).await
    }

    pub(super) fn start(&mut self, entry: Verified<ModelEntry>) -> Step {
        let Stage::Held(input) = std::mem::replace(&mut self.stage, Stage::Offered) else {
            return Step::On;
        };
        self.input = Some(InputCommitment {
            output_salt: input.salts.output,
            resumed: input.resume.clone(),
        });
        let pool = self.context.pool.clone();
        let manifest = self.manifest.body().clone();
        self.rows = (manifest.kind == JobKind::Embed).then(|| Rows::new(&input.salts.output));
        let parts = Parts::of(entry.body());
        self.entry = Some(entry);
        let whose = if self.is_own() {
            Whose::Owners
        } else {
            Whose::Others
        };
        let alone = manifest.isolated;
        let gone = CancellationToken::new();
        let task = tokio::spawn(work::prepare(
            pool,
            self.attempt.peer,
            whose,
            parts,
            manifest,
            input,
            gone.clone(),
        ));
        self.stage = Stage::Preparing(Preparing {
            task,
            alone,
            _gone: gone.drop_guard(),
        });
        Step::On
    }

    pub(super) async fn fail(&mut self, why: WorkFailure, detail: String) -> Step {
        tracing::info!(attempt = %self.attempt, ?why, %detail, "work failed");
        self.fail_quietly(why, detail).await
    }

    /// For details that are the requester's alone.
    async fn fail_quietly(&mut self, why: WorkFailure, detail: String) -> Step {
        self.stage = Stage::Offered;
        self.failure = Some(detail);
        self.tell(Event::WorkFailed {
            attempt: self.attempt,
            why,
        })
        .await;
        Step::On
    }

    /// Ends the attempt; what was sampled is signed for if an Accept went out.
    pub(super) async fn stop(&mut self, why: StopReason) -> Step {
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
        match (self.accept.is_some(), why.refusal()) {
            (true, _) => self.finish(finish).await,
            (false, Some(refusal)) => self.refuse(refusal, RETRY_LATER_MS).await,
            (false, None) => Step::End,
        }
    }
}

/// What the worker's side of a session can bring.
pub(super) enum WorkEvent {
    Prepared(Result<Running, work::StartError>),
    Frame(Result<FromWorker, WorkError>),
    NoReceipt,
}

pub(super) async fn work_event(stage: &mut Stage, may_work: bool) -> WorkEvent {
    match stage {
        Stage::Preparing(preparing) => WorkEvent::Prepared(
            (&mut preparing.task)
                .await
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
