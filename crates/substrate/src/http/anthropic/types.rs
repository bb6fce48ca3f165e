//! Requests as Anthropic's clients write them. Unknown fields are ignored.
//!
//! Invariants: every list is bounded while it is read, not after; what holds a prompt has no `Debug`, so that no log can
//! show it.

use serde::Deserialize;
use serde_json::value::RawValue;
use substrate_sandbox::wire::input::MAX_MESSAGES;

use crate::http::body::{Texts, at_most};
use crate::http::content::{Content, MAX_PARTS, TextOr};
use crate::http::images::Source;

/// Tools of one request, as OpenAI's limit is.
const MAX_TOOLS: usize = 128;

/// `POST /v1/messages`
#[derive(Deserialize)]
pub(super) struct MessagesRequest {
    #[serde(default)]
    pub(super) model: String,
    #[serde(default, deserialize_with = "at_most::<_, _, MAX_MESSAGES>")]
    pub(super) messages: Vec<Turn>,
    #[serde(default)]
    pub(super) system: Content,
    pub(super) max_tokens: Option<i64>,
    #[serde(default)]
    pub(super) stop_sequences: Texts,
    pub(super) temperature: Option<f64>,
    pub(super) top_p: Option<f64>,
    pub(super) top_k: Option<f64>,
    pub(super) stream: Option<bool>,
    #[serde(default, deserialize_with = "at_most::<_, _, MAX_TOOLS>")]
    pub(super) tools: Vec<Tool>,
    pub(super) tool_choice: Option<ToolChoice>,
    pub(super) thinking: Option<ThinkingWish>,
}

/// One turn.
#[derive(Deserialize)]
#[serde(expecting = "an object")]
pub(super) struct Turn {
    pub(super) role: String,
    #[serde(default)]
    pub(super) content: TextOr<Block, MAX_PARTS>,
}

/// A part of a turn. Which fields it has depends on its type.
#[derive(Deserialize)]
#[serde(expecting = "an object with a type")]
pub(super) struct Block {
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) text: Option<String>,
    pub(super) thinking: Option<String>,
    /// Of a call.
    pub(super) id: Option<String>,
    pub(super) name: Option<String>,
    pub(super) input: Option<Box<RawValue>>,
    /// Of a call's result.
    pub(super) tool_use_id: Option<String>,
    pub(super) content: Option<Content>,
    /// Of an image.
    pub(super) source: Option<Source>,
}

/// A tool that may be called.
#[derive(Deserialize)]
#[serde(expecting = "an object")]
pub(super) struct Tool {
    #[serde(rename = "type")]
    pub(super) kind: Option<String>,
    pub(super) name: Option<String>,
    pub(super) description: Option<String>,
    pub(super) input_schema: Option<Box<RawValue>>,
}

#[derive(Deserialize)]
#[serde(expecting = "an object with a type")]
pub(super) struct ToolChoice {
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) name: Option<String>,
}

/// Whether to think; how many tokens it may take is the model's own affair.
#[derive(Debug, Deserialize)]
#[serde(expecting = "an object with a type")]
pub(super) struct ThinkingWish {
    #[serde(rename = "type")]
    pub(super) kind: String,
}
