//! A streamed answer, chunk for chunk as OpenAI's servers write it (API.md 5).
//!
//! Per choice: the role alone, the text, its calls of tools in one piece, the finish reason alone. Then usage, if asked for, then what
//! answered (as a comment), then `[DONE]`. A failure is an `error` event and the end, without
//! `[DONE]`.
//!
//! [`ChunkWriter`] is pure: events in, text out. Times come from [`stream`].

use std::time::Duration;

use futures::Stream;
use serde::Serialize;
use substrate_record::JobId;

use super::answer::{Kind, Usage, called, fingerprint, finish_reason};
use super::ask::Plan;
use super::chunk::{ChatDelta, Chunk, Delta, Moved, Queue, TextDelta};
use super::logprobs;
use crate::door::{JobEvent, QueueNews, Started, Summary, TextPiece};
use crate::http::error::Shape;
use crate::http::job::{Beat, Facts, Feed};
use crate::http::names::route_name;
use crate::http::sse;
use crate::http::tools::{Ear, Tools};

/// How often a waiting client is told where it stands (DESIGN 5).
const QUEUE_EVERY: Duration = Duration::from_secs(2);

/// How often an idle stream shows that it lives.
const PING_EVERY: Duration = Duration::from_secs(10);

/// Writes one request's stream.
pub(super) struct ChunkWriter {
    kind: Kind,
    job: String,
    id: String,
    created: u64,
    model: String,
    include_usage: bool,
    per_prompt: usize,
    choices: Vec<ChoiceState>,
    waiting: Option<QueueNews>,
    over: bool,
}

#[derive(Default)]
struct ChoiceState {
    begun: bool,
    /// Characters told, for completions' text offsets.
    offset: usize,
    /// Tells calls from text, where there are tools.
    ear: Option<Ear>,
    ended: Option<Summary>,
}

impl ChunkWriter {
    pub(super) fn new(
        kind: Kind,
        first_job: JobId,
        created: u64,
        model: String,
        choices: usize,
        plan: &Plan,
    ) -> Self {
        Self {
            kind,
            job: first_job.to_string(),
            id: kind.id(&first_job.to_string()),
            created,
            model,
            include_usage: plan.include_usage,
            per_prompt: plan.per_prompt,
            choices: (0..choices)
                .map(|_| ChoiceState {
                    ear: plan.tools.as_ref().map(Tools::ear),
                    ..ChoiceState::default()
                })
                .collect(),
            waiting: None,
            over: false,
        }
    }

    /// Nothing may follow.
    pub(super) fn is_over(&self) -> bool {
        self.over
    }

    /// How long the stream may stay silent.
    pub(super) fn patience(&self) -> Duration {
        if self.waiting.is_some() {
            QUEUE_EVERY
        } else {
            PING_EVERY
        }
    }

    /// What is told after that.
    pub(super) fn on_quiet(&self) -> String {
        self.waiting
            .as_ref()
            .map_or_else(|| sse::PING.to_owned(), queue)
    }

    pub(super) fn on(&mut self, index: usize, event: JobEvent) -> String {
        match event {
            JobEvent::Queued(news) => {
                let told = queue(&news);
                self.waiting = Some(news);
                told
            }
            JobEvent::Started(started) => self.on_started(index, &started),
            JobEvent::Moved {
                from,
                after_tokens,
                why,
            } => sse::comment(
                "moved",
                &Moved {
                    from: from.to_string(),
                    after_tokens,
                    why: &why,
                },
            ),
            JobEvent::Text(piece) => self.on_text(index, piece),
            // No request for words has any.
            JobEvent::Row(_) => String::new(),
            JobEvent::Finished(summary) => self.on_finished(index, *summary),
            JobEvent::Failed(error) => {
                self.over = true;
                sse::data(&self.kind.refusal(error.into()).body(Shape::OpenAi))
            }
        }
    }

    fn on_started(&mut self, index: usize, started: &Started) -> String {
        self.waiting = None;
        let (node, route) = (started.node.to_string(), route_name(started.route));
        let told = sse::comment(
            "started",
            &serde_json::json!({ "attempt": started.attempt, "node": node, "route": route }),
        );
        told + &self.begin(index)
    }

    /// The role, once. Completions have none.
    fn begin(&mut self, index: usize) -> String {
        if std::mem::replace(&mut self.choices[index].begun, true) || self.kind == Kind::Text {
            return String::new();
        }
        let delta = Delta {
            role: Some("assistant"),
            content: Some(String::new()),
            ..Delta::default()
        };
        self.chat(
            ChatDelta {
                index,
                delta,
                logprobs: None,
                finish_reason: None,
            },
            None,
        )
    }

    fn on_text(&mut self, index: usize, piece: TextPiece) -> String {
        self.waiting = None;
        let begun = self.begin(index);
        if piece.bytes.is_empty() && piece.logprobs.is_empty() {
            return begun;
        }
        let mut text = String::from_utf8_lossy(&piece.bytes).into_owned();
        if let Some(ear) = &mut self.choices[index].ear {
            text = ear.hear(&text);
            if text.is_empty() {
                return begun;
            }
        }
        let told = match self.kind {
            Kind::Chat => {
                let delta = Delta {
                    content: Some(text),
                    ..Delta::default()
                };
                let logprobs = logprobs::chat(&piece.logprobs);
                self.chat(
                    ChatDelta {
                        index,
                        delta,
                        logprobs,
                        finish_reason: None,
                    },
                    None,
                )
            }
            Kind::Text => {
                let logprobs =
                    logprobs::completion(&piece.logprobs, &mut self.choices[index].offset);
                self.text(
                    TextDelta {
                        index,
                        text,
                        logprobs,
                        finish_reason: None,
                    },
                    None,
                )
            }
        };
        begun + &told
    }

    fn on_finished(&mut self, index: usize, summary: Summary) -> String {
        self.waiting = None;
        let mut told = self.begin(index);
        let (heard, has_called) = self.end_of_ear(index);
        told += &heard;
        let finish_reason = Some(finish_reason(&summary, has_called));
        let print = Some(fingerprint(&summary));
        told += &match self.kind {
            Kind::Chat => self.chat(
                ChatDelta {
                    index,
                    delta: Delta::default(),
                    logprobs: None,
                    finish_reason,
                },
                print,
            ),
            Kind::Text => self.text(
                TextDelta {
                    index,
                    text: String::new(),
                    logprobs: None,
                    finish_reason,
                },
                print,
            ),
        };
        self.choices[index].ended = Some(summary);
        if self.choices.iter().all(|choice| choice.ended.is_some()) {
            self.over = true;
        }
        told
    }

    /// What was held back of a choice, as the text or the calls it has turned out to be; and whether it has called.
    fn end_of_ear(&mut self, index: usize) -> (String, bool) {
        let Some(ear) = &mut self.choices[index].ear else {
            return (String::new(), false);
        };
        let (text, calls) = ear.end();
        let has_called = !calls.is_empty();
        let text = Delta {
            content: Some(text).filter(|text| !text.is_empty()),
            ..Delta::default()
        };
        let calls = Delta {
            tool_calls: called(&self.job, index, calls, true),
            ..Delta::default()
        };
        let told = [text, calls]
            .into_iter()
            .filter(|delta| delta.content.is_some() || !delta.tool_calls.is_empty())
            .map(|delta| {
                let choice = ChatDelta {
                    index,
                    delta,
                    logprobs: None,
                    finish_reason: None,
                };
                self.chat(choice, None)
            });
        (told.collect(), has_called)
    }

    /// The end of a good stream: usage, what answered, `[DONE]`. Empty for a failed one.
    pub(super) fn close(&self, jobs: impl Fn(usize) -> JobId) -> String {
        let Some(summaries) = self
            .choices
            .iter()
            .map(|choice| choice.ended.as_ref())
            .collect::<Option<Vec<_>>>()
        else {
            return String::new();
        };
        let mut told = String::new();
        if self.include_usage {
            let usage = Usage::of(summaries.iter().copied(), self.per_prompt);
            told += &self.chunk(Vec::<()>::new(), None, Some(usage));
        }
        for (index, summary) in summaries.into_iter().enumerate() {
            told += &sse::comment("substrate", &Facts::new(jobs(index), summary));
        }
        told + sse::DONE
    }

    fn chat(&self, choice: ChatDelta, fingerprint: Option<String>) -> String {
        self.chunk(vec![choice], fingerprint, None)
    }

    fn text(&self, choice: TextDelta, fingerprint: Option<String>) -> String {
        self.chunk(vec![choice], fingerprint, None)
    }

    fn chunk<C: Serialize>(
        &self,
        choices: Vec<C>,
        system_fingerprint: Option<String>,
        usage: Option<Usage>,
    ) -> String {
        let object = match self.kind {
            Kind::Chat => "chat.completion.chunk",
            Kind::Text => "text_completion",
        };
        sse::data(&Chunk {
            id: &self.id,
            object,
            created: self.created,
            model: &self.model,
            system_fingerprint,
            choices,
            usage: self.include_usage.then_some(usage),
        })
    }
}

fn queue(news: &QueueNews) -> String {
    let QueueNews {
        position,
        expected_wait_ms,
        why,
    } = news;
    sse::comment(
        "queue",
        &Queue {
            position: *position,
            expected_wait_ms: *expected_wait_ms,
            why,
        },
    )
}

/// Follows the jobs to their end. Dropping the stream drops the feed, which cancels them.
pub(super) fn stream(mut writer: ChunkWriter, mut feed: Feed) -> impl Stream<Item = String> + Send {
    async_stream::stream! {
        while let Some(beat) = feed.next(writer.patience()).await {
            let told = match beat {
                Beat::Event(index, event) => writer.on(index, event),
                Beat::Quiet => writer.on_quiet(),
            };
            if !told.is_empty() {
                yield told;
            }
            if writer.is_over() {
                break;
            }
        }
        let end = writer.close(|index| feed.job(index));
        if !end.is_empty() {
            yield end;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::door::Route;
    use substrate_record::NodeId;

    fn writer() -> ChunkWriter {
        let plan = Plan {
            asks: vec![],
            per_prompt: 1,
            stream: true,
            include_usage: false,
            tools: None,
        };
        ChunkWriter::new(
            Kind::Chat,
            JobId::from_bytes([1; 16]),
            0,
            "m".into(),
            1,
            &plan,
        )
    }

    #[test]
    fn silence_is_filled_with_the_place_in_the_queue_or_a_ping() {
        let mut writer = writer();
        assert_eq!(
            (writer.patience(), writer.on_quiet().as_str()),
            (PING_EVERY, sse::PING)
        );
        let news = QueueNews {
            position: 4,
            expected_wait_ms: 70,
            why: "4 jobs are ahead".into(),
        };
        let told = writer.on(0, JobEvent::Queued(news));
        assert_eq!(
            told,
            ": queue {\"position\":4,\"expected_wait_ms\":70,\"why\":\"4 jobs are ahead\"}\n\n"
        );
        assert_eq!((writer.patience(), writer.on_quiet()), (QUEUE_EVERY, told));
        let node = NodeId::from_bytes([2; 32]);
        writer.on(
            0,
            JobEvent::Started(Started {
                node,
                route: Route::Local,
                n_in: 1,
                attempt: 1,
            }),
        );
        assert_eq!(
            (writer.patience(), writer.on_quiet().as_str()),
            (PING_EVERY, sse::PING)
        );
    }

    #[test]
    fn a_token_that_completes_nothing_is_not_a_chunk() {
        let mut writer = writer();
        assert!(
            writer
                .on(
                    0,
                    JobEvent::Text(TextPiece {
                        ids: vec![7],
                        ..TextPiece::default()
                    })
                )
                .contains("\"role\"")
        );
        assert_eq!(
            writer.on(
                0,
                JobEvent::Text(TextPiece {
                    ids: vec![8],
                    ..TextPiece::default()
                })
            ),
            ""
        );
    }
}
