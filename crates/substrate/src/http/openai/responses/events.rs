//! A streamed answer, event for event as OpenAI's servers write it.
//!
//! `response.created`, `response.in_progress`; per item `output_item.added`, what is in it, `output_item.done`; then
//! `response.completed`, `.incomplete` or `.failed` with the whole response.
//!
//! Invariants: events are numbered without a gap; at most one item is open; what the last event says is what the events
//! before it said.

use std::time::Duration;

use serde_json::{Value, json};

use super::INPUT;
use super::answer::{COMPLETED, FAILED, Frame, IN_PROGRESS, Item, Items, Part, status};
use crate::door::{JobEvent, QueueNews, Summary};
use crate::http::error::{Refusal, Shape};
use crate::http::hearing::{Ear, Hearing, Told};
use crate::http::job::{Facts, Feed, MAX_ANSWER_BYTES};
use crate::http::news::{self, PING_EVERY, QUEUE_EVERY, Writer};
use crate::http::sse;
use crate::http::tools::ToolCall;

/// Writes one request's stream.
pub(super) struct EventWriter {
    frame: Frame,
    ear: Ear,
    number: u64,
    begun: bool,
    open: Option<Open>,
    items: usize,
    /// All of the answer so far.
    said: Told,
    waiting: Option<QueueNews>,
    ended: Option<Summary>,
    over: bool,
}

/// The item that is open.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Open {
    Reasoning,
    Message,
}

impl EventWriter {
    pub(super) fn new(frame: Frame, hearing: &Hearing) -> Self {
        Self {
            frame,
            ear: hearing.ear(),
            number: 0,
            begun: false,
            open: None,
            items: 0,
            said: Told::default(),
            waiting: None,
            ended: None,
            over: false,
        }
    }

    /// An event with its type and number.
    fn event(&mut self, kind: &str, mut fields: Value) -> String {
        fields["type"] = kind.into();
        fields["sequence_number"] = self.number.into();
        self.number += 1;
        sse::event(kind, &fields)
    }

    fn response(&mut self, kind: &str, status: &'static str, error: Option<Value>) -> String {
        let output = match status {
            IN_PROGRESS => Vec::new(),
            FAILED if self.said.is_empty() => Vec::new(),
            _ => Items(&self.frame.job).of(&self.said, item_status(status)),
        };
        let summary = self.ended.as_ref();
        let response = self.frame.response(status, output, summary, error);
        let fields = json!({ "response": response });
        self.event(kind, fields)
    }

    fn begin(&mut self) -> String {
        if std::mem::replace(&mut self.begun, true) {
            return String::new();
        }
        let created = self.response("response.created", IN_PROGRESS, None);
        created + &self.response("response.in_progress", IN_PROGRESS, None)
    }

    fn tell(&mut self, told: Told) -> String {
        let mut out = self.say(Open::Reasoning, told.thoughts);
        out += &self.say(Open::Message, told.text);
        for call in told.calls {
            out += &self.close_item(COMPLETED);
            out += &self.call(call);
        }
        out
    }

    /// Text of an item, which is opened if it is not.
    fn say(&mut self, kind: Open, text: String) -> String {
        if text.is_empty() {
            return String::new();
        }
        let mut out = String::new();
        if self.open != Some(kind) {
            out += &self.close_item(COMPLETED);
            out += &self.open_item(kind);
        }
        let mut fields = self.place(kind);
        fields["delta"] = text.as_str().into();
        match kind {
            Open::Reasoning => self.said.thoughts += &text,
            Open::Message => {
                self.said.text += &text;
                fields["logprobs"] = json!([]);
            }
        }
        out + &self.event(kind.event("delta"), fields)
    }

    /// Where the open item's only part is.
    fn place(&self, kind: Open) -> Value {
        let items = Items(&self.frame.job);
        let id = match kind {
            Open::Reasoning => items.reasoning_id(),
            Open::Message => items.message_id(),
        };
        json!({ "item_id": id, "output_index": self.items, "content_index": 0 })
    }

    fn item(&mut self, kind: &str, item: &Item) -> String {
        let fields = json!({ "output_index": self.items, "item": item });
        self.event(kind, fields)
    }

    fn open_item(&mut self, kind: Open) -> String {
        self.open = Some(kind);
        let item = kind.item(Items(&self.frame.job), Vec::new(), IN_PROGRESS);
        let added = self.item("response.output_item.added", &item);
        let mut fields = self.place(kind);
        fields["part"] = json!(kind.part(String::new()));
        added + &self.event("response.content_part.added", fields)
    }

    fn close_item(&mut self, status: &'static str) -> String {
        let Some(kind) = self.open.take() else {
            return String::new();
        };
        let text = match kind {
            Open::Reasoning => self.said.thoughts.clone(),
            Open::Message => self.said.text.clone(),
        };
        let mut done = self.place(kind);
        done["text"] = text.as_str().into();
        if kind == Open::Message {
            done["logprobs"] = json!([]);
        }
        let mut part = self.place(kind);
        part["part"] = json!(kind.part(text.clone()));
        let item = kind.item(Items(&self.frame.job), vec![kind.part(text)], status);
        let mut out = self.event(kind.event("done"), done);
        out += &self.event("response.content_part.done", part);
        out += &self.item("response.output_item.done", &item);
        self.items += 1;
        out
    }

    fn call(&mut self, call: ToolCall) -> String {
        let at = self.said.calls.len();
        let arguments = Value::Object(call.arguments.clone()).to_string();
        let items = Items(&self.frame.job);
        let begun = items.call(at, &call.name, String::new(), IN_PROGRESS);
        let whole = items.call(at, &call.name, arguments.clone(), COMPLETED);
        let place = json!({ "item_id": items.call_item_id(at), "output_index": self.items });
        let (mut delta, mut done) = (place.clone(), place);
        delta["delta"] = arguments.as_str().into();
        done["arguments"] = arguments.into();
        done["name"] = call.name.as_str().into();
        let mut out = self.item("response.output_item.added", &begun);
        out += &self.event("response.function_call_arguments.delta", delta);
        out += &self.event("response.function_call_arguments.done", done);
        out += &self.item("response.output_item.done", &whole);
        self.items += 1;
        self.said.calls.push(call);
        out
    }

    fn finish(&mut self, summary: Summary) -> String {
        let mut out = self.begin();
        let rest = self.ear.end();
        out += &self.tell(rest);
        let status = status(&summary);
        if self.said.text.is_empty() && self.said.calls.is_empty() {
            out += &self.close_item(status);
            out += &self.open_item(Open::Message);
        }
        out += &self.close_item(status);
        self.ended = Some(summary);
        self.over = true;
        let kind = match status {
            COMPLETED => "response.completed",
            _ => "response.incomplete",
        };
        out + &self.response(kind, status, None)
    }

    fn fail(&mut self, refusal: Refusal) -> String {
        self.over = true;
        let begun = self.begin();
        let refusal = refusal.of_prompt_in(INPUT).body(Shape::OpenAi);
        let error = json!({ "code": "server_error", "message": refusal["error"]["message"] });
        begun + &self.response("response.failed", FAILED, Some(error))
    }
}

/// The state of items in a response of this state.
fn item_status(status: &'static str) -> &'static str {
    match status {
        COMPLETED => COMPLETED,
        _ => super::answer::INCOMPLETE,
    }
}

impl Open {
    fn event(self, what: &'static str) -> &'static str {
        match (self, what) {
            (Self::Reasoning, "delta") => "response.reasoning_text.delta",
            (Self::Reasoning, _) => "response.reasoning_text.done",
            (Self::Message, "delta") => "response.output_text.delta",
            (Self::Message, _) => "response.output_text.done",
        }
    }

    fn part(self, text: String) -> Part {
        match self {
            Self::Reasoning => Part::ReasoningText { text },
            Self::Message => Part::text(text),
        }
    }

    fn item(self, items: Items<'_>, content: Vec<Part>, status: &'static str) -> Item {
        match self {
            Self::Reasoning => items.reasoning(content, status),
            Self::Message => items.message(content, status),
        }
    }
}

impl Writer for EventWriter {
    fn on(&mut self, _: usize, event: JobEvent) -> String {
        let waited = self.waiting.take();
        match event {
            JobEvent::Queued(queued) => {
                let told = self.begin() + &news::queue(&queued);
                self.waiting = Some(queued);
                told
            }
            JobEvent::Started(started) => news::started(&started) + &self.begin(),
            JobEvent::Moved {
                from,
                after_tokens,
                why,
            } => {
                self.waiting = waited;
                news::moved(from, after_tokens, &why)
            }
            JobEvent::Text(piece) => {
                let begun = self.begin();
                let told = self.ear.hear(&String::from_utf8_lossy(&piece.bytes));
                let out = begun + &self.tell(told);
                if self.said.thoughts.len() + self.said.text.len() > MAX_ANSWER_BYTES {
                    let why = format!("the answer is larger than {MAX_ANSWER_BYTES} bytes");
                    return out + &self.fail(Refusal::internal(why));
                }
                out
            }
            // No request for words has any.
            JobEvent::Row(_) => String::new(),
            JobEvent::Finished(summary) => self.finish(*summary),
            JobEvent::Failed(error) => self.fail(error.into()),
        }
    }

    fn on_quiet(&self) -> String {
        let ping = || sse::PING.to_owned();
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

    /// What answered, as a comment.
    fn close(&self, feed: &Feed) -> String {
        let facts = |summary| sse::comment("substrate", &Facts::new(feed.job(0), summary));
        self.ended.as_ref().map_or_else(String::new, facts)
    }
}
