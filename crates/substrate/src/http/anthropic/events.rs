//! A streamed answer, event for event as Anthropic's servers write it.
//!
//! `message_start`, then per block `content_block_start`, its deltas, `content_block_stop`; then `message_delta` with the
//! reason of the end and the usage, and `message_stop`. An idle stream says `ping`. A failure is an `error` event and the end.
//!
//! Invariant: at most one block is open, and blocks are numbered in their order.

use std::time::Duration;

use serde_json::{Value, json};
use substrate_record::JobId;

use super::answer::{Block, Message, Usage, call_id, stop_reason};
use crate::door::{JobEvent, QueueNews, Summary};
use crate::http::error::{Refusal, Shape};
use crate::http::hearing::{Ear, Hearing, Told};
use crate::http::job::{Facts, Feed};
use crate::http::news::{self, PING_EVERY, QUEUE_EVERY, Writer};
use crate::http::sse;
use crate::http::tools::ToolCall;

/// Writes one request's stream.
pub(super) struct EventWriter {
    job: String,
    model: String,
    ear: Ear,
    begun: bool,
    open: Option<Open>,
    blocks: usize,
    waiting: Option<QueueNews>,
    ended: Option<Summary>,
    over: bool,
}

/// The block that is open.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Open {
    Thinking,
    Text,
}

impl EventWriter {
    pub(super) fn new(job: JobId, model: String, hearing: &Hearing) -> Self {
        Self {
            job: job.to_string(),
            model,
            ear: hearing.ear(),
            begun: false,
            open: None,
            blocks: 0,
            waiting: None,
            ended: None,
            over: false,
        }
    }

    /// The message and a sign of life, once.
    fn begin(&mut self, input_tokens: u32) -> String {
        if std::mem::replace(&mut self.begun, true) {
            return String::new();
        }
        let usage = Usage {
            input_tokens,
            output_tokens: 0,
        };
        let message = Message::begun(&self.job, self.model.clone(), usage);
        let start = json!({ "type": "message_start", "message": message });
        sse::event("message_start", &start) + &ping()
    }

    fn tell(&mut self, told: Told) -> String {
        let mut out = self.say(Open::Thinking, told.thoughts);
        out += &self.say(Open::Text, told.text);
        for (at, call) in told.calls.into_iter().enumerate() {
            out += &self.close_block();
            out += &self.call(at, call);
        }
        out
    }

    /// Text of a block, which is opened if it is not.
    fn say(&mut self, kind: Open, text: String) -> String {
        if text.is_empty() {
            return String::new();
        }
        let mut out = String::new();
        if self.open != Some(kind) {
            out += &self.close_block();
            out += &self.start_block(match kind {
                Open::Thinking => Block::Thinking {
                    thinking: String::new(),
                    signature: "",
                },
                Open::Text => Block::Text {
                    text: String::new(),
                },
            });
            self.open = Some(kind);
        }
        out + &self.delta(match kind {
            Open::Thinking => json!({ "type": "thinking_delta", "thinking": text }),
            Open::Text => json!({ "type": "text_delta", "text": text }),
        })
    }

    fn call(&mut self, at: usize, call: ToolCall) -> String {
        let arguments = Value::Object(call.arguments).to_string();
        let start = self.start_block(Block::ToolUse {
            id: call_id(&self.job, at),
            name: call.name,
            input: serde_json::Map::new(),
        });
        let delta = json!({ "type": "input_json_delta", "partial_json": arguments });
        start + &self.delta(delta) + &self.stop_block()
    }

    fn start_block(&self, block: Block) -> String {
        sse::event(
            "content_block_start",
            &json!({ "type": "content_block_start", "index": self.blocks, "content_block": block }),
        )
    }

    fn delta(&self, delta: Value) -> String {
        sse::event(
            "content_block_delta",
            &json!({ "type": "content_block_delta", "index": self.blocks, "delta": delta }),
        )
    }

    fn stop_block(&mut self) -> String {
        let index = self.blocks;
        self.blocks += 1;
        sse::event(
            "content_block_stop",
            &json!({ "type": "content_block_stop", "index": index }),
        )
    }

    fn close_block(&mut self) -> String {
        match self.open.take() {
            None => String::new(),
            Some(Open::Text) => self.stop_block(),
            Some(Open::Thinking) => {
                let signature = json!({ "type": "signature_delta", "signature": "" });
                self.delta(signature) + &self.stop_block()
            }
        }
    }

    fn finish(&mut self, summary: Summary) -> String {
        let mut out = self.begin(summary.n_in);
        let rest = self.ear.end();
        let called = !rest.calls.is_empty();
        out += &self.tell(rest);
        out += &self.close_block();
        let delta = json!({
            "type": "message_delta",
            "delta": { "stop_reason": stop_reason(&summary, called), "stop_sequence": null },
            "usage": Usage::of(&summary),
        });
        self.ended = Some(summary);
        self.over = true;
        out + &sse::event("message_delta", &delta)
    }
}

impl Writer for EventWriter {
    fn on(&mut self, _: usize, event: JobEvent) -> String {
        let waited = self.waiting.take();
        match event {
            JobEvent::Queued(queued) => {
                let told = news::queue(&queued);
                self.waiting = Some(queued);
                told
            }
            JobEvent::Started(started) => news::started(&started) + &self.begin(started.n_in),
            JobEvent::Moved {
                from,
                after_tokens,
                why,
            } => {
                self.waiting = waited;
                news::moved(from, after_tokens, &why)
            }
            JobEvent::Text(piece) => {
                let begun = self.begin(0);
                let told = self.ear.hear(&String::from_utf8_lossy(&piece.bytes));
                begun + &self.tell(told)
            }
            // No request for words has any.
            JobEvent::Row(_) => String::new(),
            JobEvent::Finished(summary) => self.finish(*summary),
            JobEvent::Failed(error) => {
                self.over = true;
                sse::event("error", &Refusal::from(error).body(Shape::Anthropic))
            }
        }
    }

    fn on_quiet(&self) -> String {
        self.waiting.as_ref().map_or_else(ping, news::queue)
    }

    fn patience(&self) -> Duration {
        match self.waiting {
            Some(_) => QUEUE_EVERY,
            None => PING_EVERY,
        }
    }

    fn is_over(&self) -> bool {
        self.over
    }

    /// What answered, as a comment, and the last word.
    fn close(&self, feed: &Feed) -> String {
        let Some(summary) = &self.ended else {
            return String::new();
        };
        let facts = sse::comment("substrate", &Facts::new(feed.job(0), summary));
        facts + &sse::event("message_stop", &json!({ "type": "message_stop" }))
    }
}

fn ping() -> String {
    sse::event("ping", &json!({ "type": "ping" }))
}
