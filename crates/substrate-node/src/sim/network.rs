//! Job streams between simulated daemons, and what the daemons' session tasks do with them.
//!
//! Frames of one direction of one stream arrive in order; streams break, nodes on the far side of a cut go silent.
//! Invariant: a frame of a broken line is never delivered; a requester's daemon drops frames of a stream it closed.
//! Absent by design: what the frames contain. Counts are enough.

use substrate_record::{Finish, JobId, RecordId, SessionNonce};

use crate::event::Event;
use crate::terms::{AttemptId, Refusal, Terms};

use super::plan::{Conduct, Flaw};
use super::run::{Due, Sim};

/// Asker, job, number of the attempt.
pub(crate) type StreamKey = (usize, JobId, u32);

/// A job stream.
#[derive(Debug)]
pub(crate) struct Stream {
    pub provider: usize,
    pub manifest: RecordId,
    pub session: SessionNonce,
    pub terms: Terms,
    /// The asker's daemon has not closed it.
    pub asker_open: bool,
    /// The provider's daemon holds its end.
    pub provider_open: bool,
    pub accepted: bool,
    /// Counts breaks; frames of an earlier line are void.
    line: u32,
    /// When the last frame of each direction arrives.
    last: [u64; 2],
}

/// What travels on a stream.
#[derive(Debug, Clone)]
pub(crate) enum Frame {
    Offer,
    Input,
    Cancel,
    Resume,
    Queued {
        position: u32,
        expected_wait_ms: u64,
    },
    Ready,
    Refused {
        why: Refusal,
        retry_after_ms: u64,
    },
    Started {
        n_in: u32,
    },
    Tokens {
        prefilled: u32,
        tokens: u32,
    },
    Finished {
        tokens: u32,
        finish: Finish,
    },
    Resumed,
    ResumeRefused,
    Heartbeat,
}

impl Frame {
    fn to_provider(&self) -> bool {
        matches!(
            self,
            Self::Offer | Self::Input | Self::Cancel | Self::Resume
        )
    }
}

impl Stream {
    pub fn new(provider: usize, manifest: RecordId, session: SessionNonce, terms: Terms) -> Self {
        Self {
            provider,
            manifest,
            session,
            terms,
            asker_open: true,
            provider_open: false,
            accepted: false,
            line: 0,
            last: [0; 2],
        }
    }
}

impl Sim<'_> {
    /// The attempt as its asker names it.
    pub fn as_asked(&self, key: StreamKey) -> Option<AttemptId> {
        let provider = self.streams.get(&key)?.provider;
        Some(AttemptId {
            job: key.1,
            number: key.2,
            peer: self.ids[provider],
        })
    }

    /// The attempt as its provider names it.
    pub fn as_served(&self, key: StreamKey) -> AttemptId {
        AttemptId {
            job: key.1,
            number: key.2,
            peer: self.ids[key.0],
        }
    }

    pub fn send(&mut self, key: StreamKey, frame: Frame) {
        let up = frame.to_provider();
        self.send_to(key, frame, up);
    }

    fn send_to(&mut self, key: StreamKey, frame: Frame, to_provider: bool) {
        let Some(provider) = self.streams.get(&key).map(|stream| stream.provider) else {
            return;
        };
        let travel = self.latency(key.0, provider);
        let now = self.now;
        let Some(stream) = self.streams.get_mut(&key) else {
            return;
        };
        let last = &mut stream.last[usize::from(to_provider)];
        // Bytes of one direction keep their order.
        *last = (now + travel).max(*last);
        let (at, line) = (*last, stream.line);
        self.at(
            at,
            Due::Frame {
                key,
                line,
                to_provider,
                frame,
            },
        );
    }

    /// Milliseconds from one machine to another: a path of their own, and jitter.
    pub fn latency(&mut self, a: usize, b: usize) -> u64 {
        if a == b {
            return 0;
        }
        let path = (a.min(b) * 7_919 + a.max(b) * 104_729) as u64 % 76 + 5;
        path + self.draws.below(10)
    }

    pub fn severed(&self, a: usize, b: usize) -> bool {
        self.cut && self.plan.side(a) != self.plan.side(b)
    }

    /// Both ends live and can reach each other.
    pub fn reachable(&self, a: usize, b: usize) -> bool {
        self.machines[a].node.is_some() && self.machines[b].node.is_some() && !self.severed(a, b)
    }

    pub fn on_frame(&mut self, key: StreamKey, line: u32, to_provider: bool, frame: Frame) {
        let Some(stream) = self.streams.get(&key) else {
            return;
        };
        let remote = stream.provider != key.0;
        if line != stream.line || !self.reachable(key.0, stream.provider) {
            return;
        }
        // A stream breaks now and then under a frame that matters.
        let fragile = matches!(frame, Frame::Tokens { .. } | Frame::Input);
        if remote && fragile && self.draws.below(1_000) < self.plan.loss_permille {
            return self.break_stream(key);
        }
        if to_provider {
            self.at_provider(key, frame)
        } else {
            self.at_asker(key, frame)
        }
    }

    fn at_provider(&mut self, key: StreamKey, frame: Frame) {
        let attempt = self.as_served(key);
        let Some(stream) = self.streams.get_mut(&key) else {
            return;
        };
        let to = stream.provider;
        match frame {
            Frame::Offer => self.on_offer(key),
            Frame::Input => {
                let scope = stream.terms.scope;
                self.rules.shown(&key.1, scope, to);
                self.tell(to, Event::InputArrived { attempt });
            }
            Frame::Cancel => {
                stream.provider_open = false;
                self.tell(to, Event::RequesterCancelled { attempt });
            }
            Frame::Resume => {
                if self.machines[to].runs.contains_key(&key) {
                    self.tell(to, Event::RequesterResumed { attempt });
                } else {
                    self.send(key, Frame::ResumeRefused);
                }
            }
            Frame::Heartbeat if stream.provider_open => {
                self.tell(to, Event::RequesterHeartbeat { attempt })
            }
            _ => {}
        }
    }

    fn on_offer(&mut self, key: StreamKey) {
        let Some(stream) = self.streams.get_mut(&key) else {
            return;
        };
        let (to, scope) = (stream.provider, stream.terms.scope);
        stream.provider_open = true;
        self.rules.shown(&key.1, scope, to);
        if self.machines[to].conduct == Conduct::Refuser && to != key.0 {
            return self.send(
                key,
                Frame::Refused {
                    why: Refusal::QueueFull,
                    retry_after_ms: 500,
                },
            );
        }
        self.report_offer(key, false);
        if self.draws.below(1_000) < self.plan.repeat_permille {
            let later = 1_000 + self.draws.below(30_000);
            self.after(later, Due::Replay(key));
        }
    }

    fn report_offer(&mut self, key: StreamKey, disguised: bool) {
        let attempt = self.as_served(key);
        let Some(stream) = self.streams.get(&key) else {
            return;
        };
        let to = stream.provider;
        let (mut manifest, mut session) = (stream.manifest, stream.session);
        if disguised {
            manifest = RecordId::from_bytes([0xff; 32]);
            session = self.machines[to].session();
        }
        let terms = stream.terms.clone();
        self.tell(
            to,
            Event::OfferArrived {
                attempt,
                manifest,
                session,
                terms,
            },
        );
    }

    /// Someone sends an old manifest again. A daemon refuses it by itself while the first stream is held.
    pub fn on_replay(&mut self, key: StreamKey) {
        let disguised = self.plan.flaw == Some(Flaw::ReplayUnseen);
        let Some(stream) = self
            .streams
            .get_mut(&key)
            .filter(|stream| !stream.provider_open)
        else {
            return;
        };
        stream.provider_open = true;
        stream.line += 1;
        stream.asker_open = false;
        let to = stream.provider;
        if self.machines[to].node.is_some() && !self.machines[to].runs.contains_key(&key) {
            self.report_offer(key, disguised);
        }
    }

    fn at_asker(&mut self, key: StreamKey, frame: Frame) {
        let Some(stream) = self.streams.get_mut(&key) else {
            return;
        };
        let late = self.plan.flaw == Some(Flaw::LateSettled);
        if !stream.asker_open {
            if let (Frame::Finished { tokens, .. }, true) = (frame, late) {
                let manifest = stream.manifest;
                self.rules.settled(&key.1, manifest, tokens);
            }
            return;
        }
        let Some(attempt) = self.as_asked(key) else {
            return;
        };
        let event = match frame {
            Frame::Queued {
                position,
                expected_wait_ms,
            } => Event::PeerQueued {
                attempt,
                position,
                expected_wait_ms,
            },
            Frame::Ready => {
                self.send(key, Frame::Input);
                Event::PeerReady { attempt }
            }
            Frame::Refused {
                why,
                retry_after_ms,
            } => Event::PeerRefused {
                attempt,
                why,
                retry_after_ms,
            },
            Frame::Started { n_in } => Event::PeerStarted { attempt, n_in },
            Frame::Tokens { prefilled, tokens } => Event::PeerProgress {
                attempt,
                prefilled,
                tokens,
            },
            Frame::Finished { tokens, finish } => Event::PeerFinished {
                attempt,
                tokens,
                finish,
            },
            Frame::Resumed => {
                self.rules.figures.resumed += 1;
                Event::PeerResumed { attempt }
            }
            Frame::ResumeRefused => Event::ResumeFailed { attempt },
            _ => Event::PeerHeartbeat { attempt },
        };
        // Reports may be repeated late: the node must not care.
        if self.draws.below(1_000) < self.plan.repeat_permille {
            let (to, life, again) = (key.0, self.machines[key.0].life, event.clone());
            let later = self.draws.below(5_000);
            self.after(
                later,
                Due::Report {
                    to,
                    life,
                    event: again,
                },
            );
        }
        self.tell(key.0, event);
    }

    /// Both ends see the stream go while the connection stands.
    fn break_stream(&mut self, key: StreamKey) {
        let (asked, served) = (self.as_asked(key), self.as_served(key));
        let (Some(stream), Some(asked)) = (self.streams.get_mut(&key), asked) else {
            return;
        };
        stream.line += 1;
        let (to, asker_open) = (stream.provider, stream.asker_open);
        // Before the Accept there is nothing to resume: the provider's end is gone for good.
        stream.provider_open = stream.accepted;
        self.tell(to, Event::RequesterLost { attempt: served });
        if asker_open {
            self.tell(
                key.0,
                Event::StreamLost {
                    attempt: asked,
                    connected: true,
                },
            );
        }
    }

    /// Both ends' heartbeats, every 500 ms, for as long as either holds the stream.
    pub fn on_beat(&mut self, key: StreamKey) {
        let Some(stream) = self.streams.get(&key) else {
            return;
        };
        let provider = stream.provider;
        let (asker_beats, provider_holds) = (stream.asker_open, stream.provider_open);
        let frozen = self.machines[provider]
            .runs
            .get(&key)
            .is_some_and(|run| run.frozen);
        let vanished = frozen && self.machines[provider].conduct == Conduct::Vanisher;
        if asker_beats && self.machines[key.0].node.is_some() {
            self.send_to(key, Frame::Heartbeat, true);
        }
        if provider_holds && !vanished && self.machines[provider].node.is_some() {
            self.send_to(key, Frame::Heartbeat, false);
        }
        if asker_beats || provider_holds {
            self.after(crate::limits::HEARTBEAT_MS, Due::Beat(key));
        }
    }

    /// A machine died. Its connections close, or, if it died silently, nobody hears anything.
    pub fn streams_of_the_dead(&mut self, dead: usize, loud: bool) {
        let touched: Vec<_> = (self.streams.iter())
            .filter(|(key, stream)| key.0 == dead || stream.provider == dead)
            .map(|(key, _)| *key)
            .collect();
        for key in touched {
            let (asked, served) = (self.as_asked(key), self.as_served(key));
            let (Some(stream), Some(asked)) = (self.streams.get_mut(&key), asked) else {
                continue;
            };
            stream.line += 1;
            let (other, event) = if key.0 == dead {
                stream.asker_open = false;
                (stream.provider, Event::RequesterLost { attempt: served })
            } else {
                stream.provider_open = false;
                (
                    key.0,
                    Event::StreamLost {
                        attempt: asked,
                        connected: false,
                    },
                )
            };
            if loud && other != dead {
                let life = self.machines[other].life;
                self.after(
                    100,
                    Due::Report {
                        to: other,
                        life,
                        event,
                    },
                );
            }
        }
    }
}
