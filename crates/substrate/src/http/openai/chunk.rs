//! One chunk of a streamed answer, and the comments between chunks, as JSON.

use serde::Serialize;

use super::answer::{Called, Usage};
use super::logprobs::{ChatLogprobs, TextLogprobs};

#[derive(Serialize)]
pub(super) struct Chunk<'a, C> {
    pub(super) id: &'a str,
    pub(super) object: &'static str,
    pub(super) created: u64,
    pub(super) model: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) system_fingerprint: Option<String>,
    pub(super) choices: Vec<C>,
    /// `null` before the last chunk if usage was asked for, else absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) usage: Option<Option<Usage>>,
}

#[derive(Serialize)]
pub(super) struct ChatDelta {
    pub(super) index: usize,
    pub(super) delta: Delta,
    pub(super) logprobs: Option<ChatLogprobs>,
    pub(super) finish_reason: Option<&'static str>,
}

#[derive(Default, Serialize)]
pub(super) struct Delta {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) content: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) tool_calls: Vec<Called>,
}

#[derive(Serialize)]
pub(super) struct TextDelta {
    pub(super) index: usize,
    pub(super) text: String,
    pub(super) logprobs: Option<TextLogprobs>,
    pub(super) finish_reason: Option<&'static str>,
}

/// Where a waiting job stands, as a comment.
#[derive(Serialize)]
pub(super) struct Queue<'a> {
    pub(super) position: u32,
    pub(super) expected_wait_ms: u64,
    pub(super) why: &'a str,
}

/// A node that took over, as a comment.
#[derive(Serialize)]
pub(super) struct Moved<'a> {
    pub(super) from: String,
    pub(super) after_tokens: u32,
    pub(super) why: &'a str,
}
