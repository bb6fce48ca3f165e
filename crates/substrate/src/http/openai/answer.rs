//! Answers of both completion routes, whole; and what their chunks share.

use std::time::SystemTime;

use axum::Json;
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::logprobs::{self, ChatLogprobs, TextLogprobs};
use crate::door::{FinishReason, Summary};
use crate::http::error::Refusal;
use crate::http::job::{Answer, tell_finished};
use crate::http::names::unix_seconds;

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
            Self::Text => refusal.of_plain_text(),
        }
    }
}

pub(super) fn finish_reason(summary: &Summary) -> &'static str {
    match summary.finish {
        FinishReason::Length => "length",
        FinishReason::Stop | FinishReason::Cancelled => "stop",
    }
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
    content: String,
    refusal: Option<()>,
}

#[derive(Serialize)]
struct TextChoice {
    index: usize,
    text: String,
    logprobs: Option<TextLogprobs>,
    finish_reason: &'static str,
}

/// The answer to a request that does not stream.
pub(super) fn whole(
    kind: Kind,
    answers: Vec<Answer>,
    per_prompt: usize,
    now: SystemTime,
) -> Response {
    let usage = Usage::of(answers.iter().map(|answer| &answer.summary), per_prompt);
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
                .map(|(index, answer)| chat_choice(index, answer))
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

fn chat_choice(index: usize, answer: Answer) -> ChatChoice {
    ChatChoice {
        index,
        logprobs: logprobs::chat(&answer.logprobs),
        finish_reason: finish_reason(&answer.summary),
        message: Said {
            role: "assistant",
            content: answer.text,
            refusal: None,
        },
    }
}

fn text_choice(index: usize, answer: Answer) -> TextChoice {
    TextChoice {
        index,
        logprobs: logprobs::completion(&answer.logprobs, &mut 0),
        finish_reason: finish_reason(&answer.summary),
        text: answer.text,
    }
}
