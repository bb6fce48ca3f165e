//! The requester's side of a simulated daemon: performs what its node orders for its own clients.
//!
//! Invariant: whatever shows a job to another machine is reported to the rules first.
//! Absent by design: what the provider does (`server`).

use substrate_record::{JobId, RecordId, Scope};

use crate::event::{Action, Event};
use crate::terms::{AttemptId, Terms, Want};

use super::network::{Frame, Stream};
use super::run::{Due, Sim};

impl Sim<'_> {
    pub fn perform(&mut self, by: usize, action: Action) {
        match action {
            Action::Offer {
                attempt,
                entry,
                scope,
                resume_tokens,
                ..
            } => {
                let Some(truth) = self.rules.job(&attempt.job) else {
                    return;
                };
                let terms = terms(&truth.want, scope, entry, resume_tokens);
                self.offer(by, attempt, terms);
            }
            Action::Resume { attempt } => self.resume(by, attempt),
            Action::CloseAttempt {
                attempt, tokens, ..
            } => {
                let key = (by, attempt.job, attempt.number);
                self.rules.closed(&attempt.job, attempt.number, tokens);
                self.send(key, Frame::Cancel);
                if let Some(stream) = self.streams.get_mut(&key) {
                    stream.asker_open = false;
                }
            }
            Action::Settle { attempt, tokens } => {
                let key = (by, attempt.job, attempt.number);
                let manifest = self.streams.get(&key).map(|stream| stream.manifest);
                if let Some(manifest) = manifest {
                    self.rules.settled(&attempt.job, manifest, tokens);
                }
                let life = self.machines[by].life;
                self.after(
                    5,
                    Due::Report {
                        to: by,
                        life,
                        event: Event::ReceiptStored { attempt },
                    },
                );
            }
            Action::TellQueued { job, .. } => self.rules.told(&job),
            Action::TellStarted { attempt, .. } => self.rules.started(&attempt.job),
            Action::TellMoved { job, .. } => {
                self.rules.figures.moved += 1;
                self.rules.told(&job);
            }
            Action::FailJob { job, why } => self.rules.failed(&job, &why),
            Action::FinishJob { job } => {
                self.rules.finished(&job);
                self.close_all(by, job);
            }
            other => self.perform_as_provider(by, other),
        }
    }

    fn offer(&mut self, by: usize, attempt: AttemptId, terms: Terms) {
        let to = self.index[&attempt.peer];
        let key = (by, attempt.job, attempt.number);
        self.rules.offered(&attempt.job, attempt.number);
        self.rules.shown(&attempt.job, terms.scope, to);
        self.manifests += 1;
        let mut id = [0; 32];
        id[..8].copy_from_slice(&self.manifests.to_be_bytes());
        let stream = Stream::new(
            to,
            RecordId::from_bytes(id),
            self.machines[to].session(),
            terms,
        );
        self.streams.insert(key, stream);
        if self.reachable(by, to) {
            self.send(key, Frame::Offer);
        } else {
            let life = self.machines[by].life;
            self.after(
                1_000,
                Due::Report {
                    to: by,
                    life,
                    event: Event::DialFailed { attempt },
                },
            );
        }
        if to != by {
            self.after(crate::limits::HEARTBEAT_MS, Due::Beat(key));
        }
    }

    fn resume(&mut self, by: usize, attempt: AttemptId) {
        if self.reachable(by, self.index[&attempt.peer]) {
            self.send((by, attempt.job, attempt.number), Frame::Resume);
        } else {
            let life = self.machines[by].life;
            self.after(
                500,
                Due::Report {
                    to: by,
                    life,
                    event: Event::ResumeFailed { attempt },
                },
            );
        }
    }

    /// The job is over: whatever is left of its streams closes. Replays of them may still come.
    fn close_all(&mut self, by: usize, job: JobId) {
        let range = (by, job, 0)..=(by, job, u32::MAX);
        for (_, stream) in self.streams.range_mut(range) {
            stream.asker_open = false;
        }
    }
}

fn terms(want: &Want, scope: Scope, entry: RecordId, resume_tokens: u32) -> Terms {
    Terms {
        scope,
        entry,
        wall: want.wall,
        isolated: want.isolated,
        kind: want.kind,
        max_tokens: want.max_tokens,
        resume_tokens,
        deadline_ms: want.deadline_ms,
    }
}
