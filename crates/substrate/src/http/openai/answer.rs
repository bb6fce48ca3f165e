//! Answers of both completion routes, whole; and what their chunks share.

use std::time::SystemTime;

use axum::Json;
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::ask::Plan;
use super::logprobs::{self, ChatLogprobs, TextLogprobs};
use crate::door::{FinishReason, Summary};
use crate::http::error::Refusal;
use crate::http::hearing::{Hearing, Told};
use crate::http::job::{Answer, tell_finished};
use crate::http::names::unix_seconds;
use crate::http::tools::ToolCall;

/// Which of the two routes answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Chat,
    Text,
}

impl Kind {
    pub(super) fn id(self, job: &str) -> String {
        match self {
            Self::Chat => format!("chatcmpl-{job}"),
            Self::Text => format!("cmpl-{job}"),
        }
    }

    /// A refusal in this route's own field names.
    pub(super) fn refusal(self, refusal: Refusal) -> Refusal {
        match self {
            Self::Chat => refusal,
            Self::Text => refusal.of_prompt_in("prompt"),
        }
    }
}

/// Why an answer ended; `length` stays even if it `called`.
pub(super) fn finish_reason(summary: &Summary, called: bool) -> &'static str {
    match summary.finish {
        FinishReason::Length => "length",
        FinishReason::Stop if called => "tool_calls",
        FinishReason::Stop | FinishReason::Cancelled => "stop",
    }
}

/// A call of a tool.
#[derive(Serialize)]
pub(super) struct Called {
    /// In streams only.
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<usize>,
    id: String,
    #[serde(rename = "type")]
    kind: &'static str,
    function: CalledFunction,
}

#[derive(Serialize)]
struct CalledFunction {
    name: String,
    /// JSON text, as OpenAI's are.
    arguments: String,
}

/// The calls of one choice of the answer of `job`.
pub(super) fn called(
    job: &str,
    choice: usize,
    calls: Vec<ToolCall>,
    streamed: bool,
) -> Vec<Called> {
    let called = |(at, call): (usize, ToolCall)| Called {
        index: streamed.then_some(at),
        id: format!("call_{job}_{choice}_{at}"),
        kind: "function",
        function: CalledFunction {
            name: call.name,
            arguments: serde_json::Value::Object(call.arguments).to_string(),
        },
    };
    calls.into_iter().enumerate().map(called).collect()
}

/// The weights that answered, in the field OpenAI keeps for "the backend configuration".
pub(super) fn fingerprint(summary: &Summary) -> String {
    format!("sha256:{}", summary.model_sha256)
}

#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Usage {
    prompt_tokens: u64,
    completion_tokens: u64,
    total_tokens: u64,
}

impl Usage {
    /// Every prompt once, every choice in full.
    pub(super) fn of<'a>(summaries: impl Iterator<Item = &'a Summary>, per_prompt: usize) -> Self {
        let (mut prompt_tokens, mut completion_tokens) = (0, 0);
        for (index, summary) in summaries.enumerate() {
            if index % per_prompt == 0 {
                prompt_tokens += u64::from(summary.n_in);
            }
            completion_tokens += u64::from(summary.n_out);
        }
        Self {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens + completion_tokens,
        }
    }
}

#[derive(Serialize)]
struct Completion<C> {
    id: String,
    object: &'static str,
    created: u64,
    model: String,
    system_fingerprint: Option<String>,
    choices: Vec<C>,
    usage: Usage,
}

#[derive(Serialize)]
struct ChatChoice {
    index: usize,
    message: Said,
    logprobs: Option<ChatLogprobs>,
    finish_reason: &'static str,
}

#[derive(Serialize)]
struct Said {
    role: &'static str,
    /// Absent where a call says it all.
    content: Option<String>,
    refusal: Option<()>,
    #[serde(skip_serializing_if = "String::is_empty")]
    reasoning_content: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<Called>,
}

#[derive(Serialize)]
struct TextChoice {
    index: usize,
    text: String,
    logprobs: Option<TextLogprobs>,
    finish_reason: &'static str,
}

/// The answer to a request that does not stream.
pub(super) fn whole(kind: Kind, answers: Vec<Answer>, plan: &Plan, now: SystemTime) -> Response {
    let usage = Usage::of(
        answers.iter().map(|answer| &answer.summary),
        plan.per_prompt,
    );
    let mut headers = axum::http::HeaderMap::new();
    tell_finished(&mut headers, &answers);
    let id = kind.id(&answers
        .first()
        .map(|answer| answer.job.to_string())
        .unwrap_or_default());
    let model = answers
        .first()
        .map(|answer| answer.model.clone())
        .unwrap_or_default();
    let system_fingerprint = answers.first().map(|answer| fingerprint(&answer.summary));
    let created = unix_seconds(now);
    let numbered = answers.into_iter().enumerate();
    match kind {
        Kind::Chat => {
            let choices = numbered
                .map(|(index, answer)| chat_choice(index, answer, &plan.hearing))
                .collect();
            let object = "chat.completion";
            (
                headers,
                Json(Completion {
                    id,
                    object,
                    created,
                    model,
                    system_fingerprint,
                    choices,
                    usage,
                }),
            )
                .into_response()
        }
        Kind::Text => {
            let choices = numbered
                .map(|(index, answer)| text_choice(index, answer))
                .collect();
            let object = "text_completion";
            (
                headers,
                Json(Completion {
                    id,
                    object,
                    created,
                    model,
                    system_fingerprint,
                    choices,
                    usage,
                }),
            )
                .into_response()
        }
    }
}

fn chat_choice(index: usize, answer: Answer, hearing: &Hearing) -> ChatChoice {
    let Told {
        thoughts,
        text,
        calls,
    } = hearing.hear_all(answer.text);
    ChatChoice {
        index,
        logprobs: logprobs::chat(&answer.logprobs),
        finish_reason: finish_reason(&answer.summary, !calls.is_empty()),
        message: Said {
            role: "assistant",
            content: (calls.is_empty() || !text.is_empty()).then_some(text),
            refusal: None,
            reasoning_content: thoughts,
            tool_calls: called(&answer.job.to_string(), index, calls, false),
        },
    }
}

fn text_choice(index: usize, answer: Answer) -> TextChoice {
    TextChoice {
        index,
        logprobs: logprobs::completion(&answer.logprobs, &mut 0),
        finish_reason: finish_reason(&answer.summary, false),
        text: answer.text,
    }
}
