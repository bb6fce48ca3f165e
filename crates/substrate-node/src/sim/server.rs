//! The provider's side of a simulated daemon, and its worker: sixteen tokens at a time, at the machine's speed.
//!
//! Invariant: what its node ordered stopped makes no more tokens.
//! Absent by design: models. Every answer is as long as its job asked for.

use substrate_record::Finish;

use crate::event::{Action, Event};
use crate::terms::{AttemptId, StopReason, WorkFailure};

use super::machine::Run;
use super::network::{Frame, StreamKey};
use super::plan::{Conduct, Flaw};
use super::run::{Due, Sim};

/// Prompt tokens of every simulated job.
const PROMPT: u32 = 64;

/// Tokens between two reports.
const STRIDE: u32 = 16;

impl Sim<'_> {
    pub fn perform_as_provider(&mut self, by: usize, action: Action) {
        let key = |attempt: AttemptId, sim: &Self| {
            (sim.index[&attempt.peer], attempt.job, attempt.number)
        };
        match action {
            Action::ReplyQueued { attempt, news } => {
                let frame = Frame::Queued {
                    position: news.position,
                    expected_wait_ms: news.expected_wait_ms,
                };
                self.send(key(attempt, self), frame);
            }
            Action::ReplyReady { attempt } => self.reply_ready(by, key(attempt, self), attempt),
            Action::ReplyRefused {
                attempt,
                why,
                retry_after_ms,
            } => {
                self.rules.figures.refused += 1;
                self.hang_up(
                    key(attempt, self),
                    Frame::Refused {
                        why,
                        retry_after_ms,
                    },
                );
            }
            Action::Run { attempt, .. } => self.start_run(by, key(attempt, self), attempt),
            Action::PauseWork { attempt } => self.pause(by, key(attempt, self), true),
            Action::ResumeWork { attempt } => {
                self.pause(by, key(attempt, self), false);
                self.send(key(attempt, self), Frame::Resumed);
            }
            Action::StopWork { attempt, why } => self.stop_work(by, key(attempt, self), why),
            Action::Publish {
                audience,
                models,
                slots,
                queue,
            } => self.publish(by, audience, models, slots, queue),
            Action::WakeAt(at) => {
                let at = self.machines[by].virtual_time(at).max(self.now + 1);
                self.machines[by].wake = Some(at);
                let life = self.machines[by].life;
                self.at(at, Due::Wake { to: by, life });
            }
            _ => {}
        }
    }

    fn reply_ready(&mut self, by: usize, key: StreamKey, attempt: AttemptId) {
        let replayed = self
            .streams
            .get(&key)
            .is_some_and(|stream| !stream.asker_open);
        if replayed && self.plan.flaw == Some(Flaw::ReplayUnseen) {
            // Whoever replayed the manifest sends the old input too.
            let life = self.machines[by].life;
            return self.after(
                10,
                Due::Report {
                    to: by,
                    life,
                    event: Event::InputArrived { attempt },
                },
            );
        }
        self.send(key, Frame::Ready);
    }

    fn start_run(&mut self, by: usize, key: StreamKey, attempt: AttemptId) {
        let Some(stream) = self.streams.get(&key) else {
            return;
        };
        let goal = stream
            .terms
            .max_tokens
            .saturating_sub(stream.terms.resume_tokens);
        let run = Run {
            attempt,
            tokens: 0,
            goal,
            paused: false,
            frozen: false,
        };
        self.machines[by].runs.insert(key, run);
        let life = self.machines[by].life;
        let prepare = 20 + self.draws.below(200);
        self.after(prepare, Due::Begin { at: by, life, key });
    }

    pub fn on_begin(&mut self, by: usize, key: StreamKey) {
        let Some(attempt) = self.machines[by].runs.get(&key).map(|run| run.attempt) else {
            return;
        };
        if self.crashes(by, key, attempt) {
            return;
        }
        let Some(stream) = self.streams.get_mut(&key) else {
            return;
        };
        stream.accepted = true;
        let (manifest, stands) = (stream.manifest, stream.provider_open);
        self.rules.accepted(manifest, stands);
        self.tell(
            by,
            Event::WorkStarted {
                attempt,
                n_in: PROMPT,
            },
        );
        self.send(key, Frame::Started { n_in: PROMPT });
        if self.machines[by].conduct == Conduct::Staller && key.0 != by {
            return self.freeze(by, key);
        }
        self.next_stride(by, key);
    }

    fn next_stride(&mut self, by: usize, key: StreamKey) {
        let pace = u64::from(STRIDE) * 1_000 / self.machines[by].speed();
        let life = self.machines[by].life;
        self.after(pace, Due::Stride { at: by, life, key });
    }

    pub fn on_stride(&mut self, by: usize, key: StreamKey) {
        let vanisher = self.machines[by].conduct == Conduct::Vanisher && key.0 != by;
        let Some(run) = self.machines[by].runs.get_mut(&key) else {
            return;
        };
        if run.paused || run.frozen {
            return;
        }
        run.tokens = (run.tokens + STRIDE).min(run.goal);
        let (attempt, tokens, goal) = (run.attempt, run.tokens, run.goal);
        if vanisher && tokens >= goal / 2 {
            return self.freeze(by, key);
        }
        if self.crashes(by, key, attempt) {
            return;
        }
        self.tell(
            by,
            Event::WorkProgress {
                attempt,
                prefilled: PROMPT,
                tokens,
            },
        );
        self.send(
            key,
            Frame::Tokens {
                prefilled: PROMPT,
                tokens,
            },
        );
        if tokens < goal {
            return self.next_stride(by, key);
        }
        self.machines[by].runs.remove(&key);
        self.tell(by, Event::WorkFinished { attempt, tokens });
        self.hang_up(
            key,
            Frame::Finished {
                tokens,
                finish: Finish::Length,
            },
        );
    }

    fn freeze(&mut self, by: usize, key: StreamKey) {
        if let Some(run) = self.machines[by].runs.get_mut(&key) {
            run.frozen = true;
        }
    }

    fn crashes(&mut self, by: usize, key: StreamKey, attempt: AttemptId) -> bool {
        if self.draws.below(1_000) >= self.plan.crash_permille {
            return false;
        }
        // The run stays known until the node orders its end, so that its tokens can be signed for.
        self.freeze(by, key);
        self.tell(
            by,
            Event::WorkFailed {
                attempt,
                why: WorkFailure::Crashed,
            },
        );
        true
    }

    fn pause(&mut self, by: usize, key: StreamKey, paused: bool) {
        let Some(run) = self.machines[by].runs.get_mut(&key) else {
            return;
        };
        let was = std::mem::replace(&mut run.paused, paused);
        if was && !paused {
            self.next_stride(by, key);
        }
    }

    fn stop_work(&mut self, by: usize, key: StreamKey, why: StopReason) {
        if self.plan.flaw == Some(Flaw::StartUnasked) {
            return;
        }
        let tokens = self.machines[by]
            .runs
            .remove(&key)
            .map_or(0, |run| run.tokens);
        let accepted = self.streams.get(&key).is_some_and(|stream| stream.accepted);
        let finish = if why == StopReason::WorkerFailed {
            Finish::Failed
        } else {
            Finish::Cancelled
        };
        match why.refusal() {
            _ if accepted => self.hang_up(key, Frame::Finished { tokens, finish }),
            Some(why) => self.hang_up(
                key,
                Frame::Refused {
                    why,
                    retry_after_ms: 5_000,
                },
            ),
            None => {
                if let Some(stream) = self.streams.get_mut(&key) {
                    stream.provider_open = false;
                }
            }
        }
    }

    /// The provider's last frame on a stream.
    fn hang_up(&mut self, key: StreamKey, frame: Frame) {
        self.send(key, frame);
        if let Some(stream) = self.streams.get_mut(&key) {
            stream.provider_open = false;
        }
        self.machines_forget(key);
    }

    fn machines_forget(&mut self, key: StreamKey) {
        if let Some(provider) = self.streams.get(&key).map(|stream| stream.provider) {
            self.machines[provider].runs.remove(&key);
        }
    }
}
