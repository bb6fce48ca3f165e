//! Requests as clients of the responses API write them. Unknown fields are ignored.
//!
//! Invariants: every list is bounded while it is read, not after; what holds a prompt has no `Debug`, so that no log can
//! show it.

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use substrate_sandbox::wire::input::MAX_MESSAGES;

use crate::http::body::at_most;
use crate::http::content::{Content, TextOr};

/// Tools of one request: OpenAI's own limit.
const MAX_TOOLS: usize = 128;

/// What may be asked to be told besides: more than there are such things.
const MAX_INCLUDE: usize = 32;

/// `POST /v1/responses`
#[derive(Deserialize)]
pub(super) struct ResponsesRequest {
    #[serde(default)]
    pub(super) model: String,
    #[serde(default)]
    pub(super) input: TextOr<Item, MAX_MESSAGES>,
    pub(super) instructions: Option<String>,
    pub(super) max_output_tokens: Option<i64>,
    pub(super) temperature: Option<f64>,
    pub(super) top_p: Option<f64>,
    pub(super) top_logprobs: Option<i64>,
    #[serde(default, deserialize_with = "at_most::<_, _, MAX_INCLUDE>")]
    pub(super) include: Vec<String>,
    #[serde(default, deserialize_with = "at_most::<_, _, MAX_TOOLS>")]
    pub(super) tools: Vec<Tool>,
    pub(super) tool_choice: Option<Box<RawValue>>,
    pub(super) text: Option<TextWish>,
    pub(super) reasoning: Option<ReasoningWish>,
    pub(super) stream: Option<bool>,
    pub(super) background: Option<bool>,
    pub(super) truncation: Option<String>,
    pub(super) previous_response_id: Option<String>,
    pub(super) conversation: Option<Box<RawValue>>,
    pub(super) prompt: Option<Box<RawValue>>,
    pub(super) metadata: Option<Value>,
}

/// A part of the conversation. Which fields it has depends on its type; without one it is a message.
#[derive(Deserialize)]
#[serde(expecting = "an object")]
pub(super) struct Item {
    #[serde(rename = "type")]
    pub(super) kind: Option<String>,
    pub(super) role: Option<String>,
    #[serde(default)]
    pub(super) content: Content,
    /// Of a call and of its output.
    pub(super) call_id: Option<String>,
    pub(super) name: Option<String>,
    pub(super) arguments: Option<String>,
    #[serde(default)]
    pub(super) output: Content,
}

/// A tool that may be called.
#[derive(Deserialize)]
#[serde(expecting = "an object")]
pub(super) struct Tool {
    #[serde(rename = "type")]
    pub(super) kind: Option<String>,
    pub(super) name: Option<String>,
    pub(super) description: Option<String>,
    pub(super) parameters: Option<Box<RawValue>>,
    pub(super) strict: Option<bool>,
}

#[derive(Deserialize)]
#[serde(expecting = "an object")]
pub(super) struct TextWish {
    pub(super) format: Option<Box<RawValue>>,
}

/// A format, as far as it is looked at.
#[derive(Deserialize)]
#[serde(expecting = "an object")]
pub(super) struct Format {
    #[serde(rename = "type", default)]
    pub(super) kind: String,
    pub(super) schema: Option<Box<RawValue>>,
}

#[derive(Deserialize)]
#[serde(expecting = "an object")]
pub(super) struct ReasoningWish {
    pub(super) effort: Option<String>,
}

/// The one tool that must be called.
#[derive(Deserialize)]
pub(super) struct NamedChoice {
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) name: Option<String>,
}
