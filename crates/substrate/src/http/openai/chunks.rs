//! A streamed answer, chunk for chunk as OpenAI's servers write it (API.md 5).
//!
//! Per choice: the role alone, its thoughts, the text, its calls of tools in one piece, the finish reason alone. Then usage, if asked for, then what
//! answered (as a comment), then `[DONE]`. A failure is an `error` event and the end, without
//! `[DONE]`.
//!
//! [`ChunkWriter`] is pure: events in, text out. Times come from [`news::stream`].

use std::time::Duration;

use serde::Serialize;
use substrate_record::JobId;

use super::answer::{Kind, Usage, called, fingerprint, finish_reason};
use super::ask::Plan;
use super::chunk::{ChatDelta, Chunk, Delta, TextDelta};
use super::logprobs;
use crate::door::{JobEvent, QueueNews, Started, Summary, TextPiece, TokenLogprob};
use crate::http::error::Shape;
use crate::http::hearing::{Ear, Told};
use crate::http::job::{Facts, Feed};
use crate::http::news::{self, PING_EVERY, QUEUE_EVERY, Writer};
use crate::http::sse;

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
    /// Tells thoughts, text and calls apart.
    ear: Ear,
    /// Of tokens that were heard and not told yet.
    logprobs: Vec<TokenLogprob>,
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
                    ear: plan.hearing.ear(),
                    ..ChoiceState::default()
                })
                .collect(),
            waiting: None,
            over: false,
        }
    }

    fn on_started(&mut self, index: usize, started: &Started) -> String {
        self.waiting = None;
        news::started(started) + &self.begin(index)
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
        let choice = &mut self.choices[index];
        choice.logprobs.extend(piece.logprobs);
        let told = choice.ear.hear(&String::from_utf8_lossy(&piece.bytes));
        if told.is_empty() && (choice.ear.holds() || choice.logprobs.is_empty()) {
            return begun;
        }
        begun + &self.tell(index, told)
    }

    /// Thoughts, text and calls, each in a chunk of its own; the first has the log-probabilities of all that was heard.
    fn tell(&mut self, index: usize, told: Told) -> String {
        let heard = std::mem::take(&mut self.choices[index].logprobs);
        if self.kind == Kind::Text {
            let logprobs = logprobs::completion(&heard, &mut self.choices[index].offset);
            let choice = TextDelta {
                index,
                text: told.text,
                logprobs,
                finish_reason: None,
            };
            return self.text(choice, None);
        }
        let mut logprobs = logprobs::chat(&heard);
        let chunks = deltas(&self.job, index, told).into_iter().map(|delta| {
            let choice = ChatDelta {
                index,
                delta,
                logprobs: logprobs.take(),
                finish_reason: None,
            };
            self.chat(choice, None)
        });
        chunks.collect()
    }

    fn on_finished(&mut self, index: usize, summary: Summary) -> String {
        self.waiting = None;
        let mut told = self.begin(index);
        let rest = self.choices[index].ear.end();
        let has_called = !rest.calls.is_empty();
        if !rest.is_empty() || !self.choices[index].logprobs.is_empty() {
            told += &self.tell(index, rest);
        }
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

impl Writer for ChunkWriter {
    fn is_over(&self) -> bool {
        self.over
    }

    fn patience(&self) -> Duration {
        if self.waiting.is_some() {
            QUEUE_EVERY
        } else {
            PING_EVERY
        }
    }

    fn on_quiet(&self) -> String {
        self.waiting
            .as_ref()
            .map_or_else(|| sse::PING.to_owned(), news::queue)
    }

    fn on(&mut self, index: usize, event: JobEvent) -> String {
        match event {
            JobEvent::Queued(queued) => {
                let told = news::queue(&queued);
                self.waiting = Some(queued);
                told
            }
            JobEvent::Started(started) => self.on_started(index, &started),
            JobEvent::Moved {
                from,
                after_tokens,
                why,
            } => news::moved(from, after_tokens, &why),
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

    /// Usage, what answered, `[DONE]`.
    fn close(&self, feed: &Feed) -> String {
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
            told += &sse::comment("substrate", &Facts::new(feed.job(index), summary));
        }
        told + sse::DONE
    }
}

/// What was told of a choice, as deltas; at least one.
fn deltas(job: &str, index: usize, told: Told) -> Vec<Delta> {
    let said = |text: String| Some(text).filter(|text| !text.is_empty());
    let thoughts = Delta {
        reasoning_content: said(told.thoughts),
        ..Delta::default()
    };
    let text = Delta {
        content: said(told.text),
        ..Delta::default()
    };
    let calls = Delta {
        tool_calls: called(job, index, told.calls, true),
        ..Delta::default()
    };
    let mut deltas = vec![thoughts, text, calls];
    deltas.retain(|delta| {
        delta.reasoning_content.is_some() || delta.content.is_some() || !delta.tool_calls.is_empty()
    });
    if deltas.is_empty() {
        deltas.push(Delta {
            content: Some(String::new()),
            ..Delta::default()
        });
    }
    deltas
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::door::Route;
    use crate::http::hearing::Hearing;
    use substrate_record::NodeId;

    fn writer() -> ChunkWriter {
        let plan = Plan {
            asks: vec![],
            per_prompt: 1,
            stream: true,
            include_usage: false,
            thinking: None,
            hearing: Hearing::default(),
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
