//! Refusals: one type for everything that can be wrong, rendered in the shape of the API called.
//!
//! Invariant: no answer of this listener is an error without a body that its own clients parse.
//! Absent by design: stack traces, paths and internal types in texts that leave.

use axum::Json;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use substrate_record::JobId;

use super::job::JOB;
use super::names::scope_name;
use crate::door::{AskError, DoorClosed};

/// Whose error shape a path speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    OpenAi,
    Ollama,
    Anthropic,
}

impl Shape {
    pub(super) fn of(path: &str) -> Self {
        let below = |prefix: &str| {
            path.strip_prefix(prefix)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        if below("/v1/messages") {
            Self::Anthropic
        } else if below("/v1") {
            Self::OpenAi
        } else {
            Self::Ollama
        }
    }
}

/// When a daemon that stops may be back: an update's restart, with what it finishes before, takes seconds.
const RESTART_MS: u64 = 10_000;

/// Where a chat's prompt is.
const MESSAGES: &str = "messages";

/// Client closed the request, as Ollama and nginx number it.
const CLIENT_CLOSED: u16 = 499;

/// Overloaded, as Anthropic numbers it.
const OVERLOADED: u16 = 529;

/// What is wrong, where the words differ between the APIs.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Wrong {
    Plain(String),
    UnknownModel { model: String, similar: Vec<String> },
    Busy { waiting: u32 },
}

/// An answer that is not the one asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    status: StatusCode,
    wrong: Wrong,
    param: Option<Box<str>>,
    code: Option<&'static str>,
    retry_after_ms: Option<u64>,
    /// The job that failed, if one had been taken.
    job: Option<JobId>,
}

impl Refusal {
    fn plain(status: StatusCode, code: Option<&'static str>, why: impl Into<String>) -> Self {
        Self {
            status,
            wrong: Wrong::Plain(why.into()),
            param: None,
            code,
            retry_after_ms: None,
            job: None,
        }
    }

    /// The same, about a job that had been taken.
    pub(super) fn of_job(mut self, job: JobId) -> Self {
        self.job = Some(job);
        self
    }

    /// The same, with the parameter at fault.
    pub(super) fn at(mut self, param: impl Into<String>) -> Self {
        self.param = Some(param.into().into_boxed_str());
        self
    }

    /// A parameter that cannot be right.
    pub(super) fn invalid(param: impl Into<String>, why: impl Into<String>) -> Self {
        Self::plain(StatusCode::BAD_REQUEST, Some("invalid_value"), why).at(param)
    }

    /// A request that cannot be read.
    pub(super) fn unreadable(why: impl Into<String>) -> Self {
        Self::plain(StatusCode::BAD_REQUEST, Some("invalid_request"), why)
    }

    /// A parameter of an API that is served, whose meaning is not there yet.
    pub(super) fn not_yet(param: impl Into<String>, what: &str) -> Self {
        Self::plain(
            StatusCode::BAD_REQUEST,
            Some("not_implemented"),
            format!("{what} is not there yet"),
        )
        .at(param)
    }

    /// A route of the API that is not there yet.
    pub(super) fn not_there(path: &str) -> Self {
        Self::plain(
            StatusCode::NOT_IMPLEMENTED,
            Some("not_implemented"),
            format!("{path} is not there yet"),
        )
    }

    pub(super) fn unknown_route(method: &Method, path: &str) -> Self {
        Self::plain(
            StatusCode::NOT_FOUND,
            Some("unknown_url"),
            format!("unknown request: {method} {}", clipped(path)),
        )
    }

    pub(super) fn wrong_method(method: &Method, path: &str) -> Self {
        let why = format!("{} does not answer {method}", clipped(path));
        Self::plain(
            StatusCode::METHOD_NOT_ALLOWED,
            Some("method_not_allowed"),
            why,
        )
    }

    pub(super) fn too_large(limit: usize) -> Self {
        let why = format!("the request body is larger than {limit} bytes");
        Self::plain(
            StatusCode::PAYLOAD_TOO_LARGE,
            Some("request_too_large"),
            why,
        )
    }

    /// A file over its limit.
    pub(super) fn too_large_file(why: impl Into<String>) -> Self {
        Self::plain(
            StatusCode::PAYLOAD_TOO_LARGE,
            Some("request_too_large"),
            why,
        )
    }

    pub(super) fn too_slow() -> Self {
        Self::plain(
            StatusCode::REQUEST_TIMEOUT,
            Some("timeout"),
            "the request body did not arrive in time",
        )
    }

    /// Content of another type than JSON where that is demanded.
    pub(super) fn not_json() -> Self {
        let why = "this request must carry content-type: application/json";
        Self::plain(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Some("unsupported_media_type"),
            why,
        )
    }

    /// No valid key where one is demanded.
    pub(super) fn unauthorised(why: impl Into<String>) -> Self {
        Self::plain(StatusCode::UNAUTHORIZED, Some("invalid_api_key"), why)
    }

    pub(super) fn forbidden(why: impl Into<String>) -> Self {
        Self::plain(StatusCode::FORBIDDEN, Some("forbidden"), why)
    }

    /// A key that asked more often than it may.
    pub(super) fn too_often(why: impl Into<String>, retry_after_ms: u64) -> Self {
        let mut refusal = Self::plain(
            StatusCode::TOO_MANY_REQUESTS,
            Some("rate_limit_exceeded"),
            why,
        );
        refusal.retry_after_ms = Some(retry_after_ms);
        refusal
    }

    pub(super) fn unknown_model(model: &str, similar: Vec<String>) -> Self {
        let wrong = Wrong::UnknownModel {
            model: clipped(model),
            similar,
        };
        let status = StatusCode::NOT_FOUND;
        Self {
            status,
            wrong,
            param: Some("model".into()),
            code: Some("model_not_found"),
            retry_after_ms: None,
            job: None,
        }
    }

    /// The daemon takes nothing new.
    fn stopping(why: String) -> Self {
        let mut refusal = Self::plain(StatusCode::SERVICE_UNAVAILABLE, Some("stopping"), why);
        refusal.retry_after_ms = Some(RESTART_MS);
        refusal
    }

    /// The same about a prompt that came in this field: where the parameter at fault is the prompt, `messages` is not it.
    pub(super) fn of_prompt_in(mut self, field: &str) -> Self {
        if self.param.as_deref() == Some(MESSAGES) {
            self.param = Some(field.into());
        }
        self
    }

    /// What was asked for is not where it was said to be.
    pub(super) fn not_found(why: impl Into<String>) -> Self {
        Self::plain(StatusCode::NOT_FOUND, Some("not_found"), why)
    }

    /// What was asked for cannot be done to something that is as it is now.
    pub(super) fn not_now(code: &'static str, why: impl Into<String>) -> Self {
        Self::plain(StatusCode::BAD_REQUEST, Some(code), why)
    }

    /// There is no room for what the caller wants kept.
    pub(super) fn no_room(why: impl Into<String>) -> Self {
        Self::plain(StatusCode::INSUFFICIENT_STORAGE, Some("no_space"), why)
    }

    /// A fault of this side.
    pub(super) fn internal(why: impl Into<String>) -> Self {
        Self::plain(
            StatusCode::INTERNAL_SERVER_ERROR,
            Some("internal_error"),
            why,
        )
    }

    fn message(&self, shape: Shape) -> String {
        match (&self.wrong, shape) {
            (Wrong::Plain(why), _) => why.clone(),
            (Wrong::UnknownModel { model, similar }, Shape::Ollama) => {
                format!(
                    "model \"{model}\" not found, try pulling it first{}",
                    hint(similar)
                )
            }
            (Wrong::UnknownModel { model, similar }, _) => {
                format!(
                    "the model '{model}' does not exist or is not usable in this scope{}",
                    hint(similar)
                )
            }
            // Ollama's own words, two spaces and all: clients compare them.
            (Wrong::Busy { .. }, Shape::Ollama) => {
                "server busy, please try again.  maximum pending requests exceeded".into()
            }
            (Wrong::Busy { waiting }, _) => {
                format!(
                    "server busy, please try again: {waiting} jobs wait; retry in {} s",
                    self.retry_after_s()
                )
            }
        }
    }

    /// The status, which differs only for a full list: 429 for OpenAI's clients, 503 for Ollama's, 529 for Anthropic's.
    fn status_in(&self, shape: Shape) -> StatusCode {
        match (&self.wrong, shape) {
            (Wrong::Busy { .. }, Shape::Ollama) => StatusCode::SERVICE_UNAVAILABLE,
            (Wrong::Busy { .. }, Shape::Anthropic) => {
                StatusCode::from_u16(OVERLOADED).expect("529 is a three-digit status")
            }
            _ => self.status,
        }
    }

    fn retry_after_s(&self) -> u64 {
        self.retry_after_ms.unwrap_or(0).div_ceil(1_000).max(1)
    }

    /// The error as that API's body, also used for mid-stream errors.
    pub(super) fn body(&self, shape: Shape) -> Value {
        let message = self.message(shape);
        let kind = kind(self.status_in(shape));
        match shape {
            Shape::Ollama => json!({ "error": message }),
            Shape::OpenAi => {
                json!({ "error": { "message": message, "type": kind, "param": self.param, "code": self.code } })
            }
            Shape::Anthropic => {
                let kind = anthropics_kind(self.status_in(shape)).unwrap_or(kind);
                json!({ "type": "error", "error": { "type": kind, "message": message } })
            }
        }
    }

    /// The whole answer.
    pub(super) fn render(&self, shape: Shape) -> Response {
        let mut response = (self.status_in(shape), Json(self.body(shape))).into_response();
        let headers = response.headers_mut();
        if self.retry_after_ms.is_some() {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(self.retry_after_s()));
        }
        if let Some(job) = self
            .job
            .and_then(|job| HeaderValue::from_str(&job.to_string()).ok())
        {
            headers.insert(JOB, job);
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// API.md 5's types by status.
fn kind(status: StatusCode) -> &'static str {
    match status.as_u16() {
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        429 => "rate_limit_error",
        400..=499 => "invalid_request_error",
        _ => "api_error",
    }
}

/// What Anthropic calls otherwise.
fn anthropics_kind(status: StatusCode) -> Option<&'static str> {
    match status.as_u16() {
        413 => Some("request_too_large"),
        504 => Some("timeout_error"),
        OVERLOADED => Some("overloaded_error"),
        _ => None,
    }
}

fn hint(similar: &[String]) -> String {
    if similar.is_empty() {
        String::new()
    } else {
        format!("; usable now: {}", similar.join(", "))
    }
}

/// Longest piece of a caller's own words that an error repeats.
const ECHO_CHARS: usize = 120;

/// A caller's words, short and without control characters.
pub(super) fn clipped(words: &str) -> String {
    let mut clipped: String = words
        .chars()
        .filter(|c| !c.is_control())
        .take(ECHO_CHARS)
        .collect();
    if words.chars().count() > ECHO_CHARS {
        clipped.push('…');
    }
    clipped
}

impl From<DoorClosed> for Refusal {
    fn from(closed: DoorClosed) -> Self {
        Self::stopping(closed.to_string())
    }
}

impl From<AskError> for Refusal {
    fn from(error: AskError) -> Self {
        let why = error.to_string();
        match error {
            AskError::UnknownModel { model, similar } => Self::unknown_model(&model, similar),
            AskError::NoNode { model, scope, why } => {
                let why = format!(
                    "no node in scope '{}' can answer with '{model}': {why}",
                    scope_name(scope)
                );
                Self::plain(StatusCode::SERVICE_UNAVAILABLE, Some("no_node"), why).at("model")
            }
            AskError::BadRequest { param, .. } => {
                let refusal = Self::plain(StatusCode::BAD_REQUEST, Some("invalid_value"), why);
                Self {
                    param: param.map(String::into_boxed_str),
                    ..refusal
                }
            }
            AskError::ContextOverflow { .. } => Self::plain(
                StatusCode::BAD_REQUEST,
                Some("context_length_exceeded"),
                why,
            )
            .at(MESSAGES),
            AskError::Stopping => Self::stopping(why),
            AskError::Forbidden { .. } => Self::forbidden(why),
            AskError::Busy {
                waiting,
                retry_after_ms,
            } => Self {
                status: StatusCode::TOO_MANY_REQUESTS,
                wrong: Wrong::Busy { waiting },
                param: None,
                code: Some("queue_full"),
                retry_after_ms: Some(retry_after_ms),
                job: None,
            },
            AskError::Deadline { .. } => {
                Self::plain(StatusCode::GATEWAY_TIMEOUT, Some("deadline_exceeded"), why)
            }
            AskError::Cancelled { .. } => {
                let status =
                    StatusCode::from_u16(CLIENT_CLOSED).expect("499 is a three-digit status");
                Self::plain(status, Some("cancelled"), why)
            }
            AskError::Internal { .. } => Self::internal(why),
        }
    }
}

/// A refusal on its way out of an OpenAI handler.
pub(super) struct OpenAiError(Refusal);

/// A refusal on its way out of an Ollama handler.
pub(super) struct OllamaError(Refusal);

/// A refusal on its way out of an Anthropic handler.
pub(super) struct AnthropicError(Refusal);

impl<E: Into<Refusal>> From<E> for AnthropicError {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl IntoResponse for AnthropicError {
    fn into_response(self) -> Response {
        self.0.render(Shape::Anthropic)
    }
}

impl<E: Into<Refusal>> From<E> for OpenAiError {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl<E: Into<Refusal>> From<E> for OllamaError {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl IntoResponse for OpenAiError {
    fn into_response(self) -> Response {
        self.0.render(Shape::OpenAi)
    }
}

impl IntoResponse for OllamaError {
    fn into_response(self) -> Response {
        self.0.render(Shape::Ollama)
    }
}
