//! Whole answers, and what their streams share with them.

use axum::Json;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::door::{FinishReason, Summary};
use crate::http::hearing::{Hearing, Told};
use crate::http::job::{Answer, tell_finished};
use crate::http::tools::ToolCall;

/// An answer, or the beginning of one.
#[derive(Serialize)]
pub(super) struct Message {
    id: String,
    #[serde(rename = "type")]
    kind: &'static str,
    role: &'static str,
    model: String,
    content: Vec<Block>,
    stop_reason: Option<&'static str>,
    stop_sequence: Option<()>,
    usage: Usage,
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum Block {
    Thinking {
        thinking: String,
        signature: &'static str,
    },
    Text {
        text: String,
    },
    ToolUse {
        id: String,
        name: String,
        input: Map<String, Value>,
    },
}

#[derive(Clone, Copy, Serialize)]
pub(super) struct Usage {
    pub(super) input_tokens: u32,
    pub(super) output_tokens: u32,
}

impl Usage {
    pub(super) fn of(summary: &Summary) -> Self {
        Self {
            input_tokens: summary.n_in,
            output_tokens: summary.n_out,
        }
    }
}

impl Message {
    /// Nothing is said yet.
    pub(super) fn begun(job: &str, model: String, usage: Usage) -> Self {
        Self {
            id: format!("msg_{job}"),
            kind: "message",
            role: "assistant",
            model,
            content: Vec::new(),
            stop_reason: None,
            stop_sequence: None,
            usage,
        }
    }
}

/// Why an answer ended; `max_tokens` stays even if it `called`.
pub(super) fn stop_reason(summary: &Summary, called: bool) -> &'static str {
    match summary.finish {
        FinishReason::Length => "max_tokens",
        FinishReason::Stop if called => "tool_use",
        FinishReason::Stop | FinishReason::Cancelled => "end_turn",
    }
}

/// The id of a call, by its place among those of the answer.
pub(super) fn call_id(job: &str, at: usize) -> String {
    format!("toolu_{job}_{at}")
}

/// The answer to a request that does not stream.
pub(super) fn whole(answer: Answer, hearing: &Hearing) -> Response {
    let mut headers = HeaderMap::new();
    tell_finished(&mut headers, std::slice::from_ref(&answer));
    let job = answer.job.to_string();
    let told = hearing.hear_all(answer.text);
    let message = Message {
        stop_reason: Some(stop_reason(&answer.summary, !told.calls.is_empty())),
        content: blocks(&job, told),
        ..Message::begun(&job, answer.model, Usage::of(&answer.summary))
    };
    (headers, Json(message)).into_response()
}

fn blocks(job: &str, told: Told) -> Vec<Block> {
    let mut blocks = Vec::new();
    if !told.thoughts.is_empty() {
        blocks.push(Block::Thinking {
            thinking: told.thoughts,
            signature: "",
        });
    }
    if !told.text.is_empty() {
        blocks.push(Block::Text { text: told.text });
    }
    let called = |(at, call): (usize, ToolCall)| Block::ToolUse {
        id: call_id(job, at),
        name: call.name,
        input: call.arguments,
    };
    blocks.extend(told.calls.into_iter().enumerate().map(called));
    blocks
}
