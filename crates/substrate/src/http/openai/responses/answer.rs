//! The response object, and the items of an answer, whole or on their way.

use axum::Json;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response as HttpResponse};
use serde::Serialize;
use serde_json::Value;
use substrate_record::JobId;

use crate::door::{FinishReason, Summary};
use crate::http::hearing::{Hearing, Told};
use crate::http::job::{Answer, tell_finished};

/// What an answer tells again of its request.
pub(super) struct Echo {
    pub(super) instructions: Option<String>,
    pub(super) max_output_tokens: Option<u32>,
    pub(super) temperature: f64,
    pub(super) top_p: f64,
    pub(super) effort: Option<String>,
    pub(super) format: Value,
    pub(super) tool_choice: Value,
    pub(super) tools: Vec<Value>,
    pub(super) metadata: Value,
}

/// A part of an answer.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum Item {
    Reasoning {
        id: String,
        summary: [(); 0],
        content: Vec<Part>,
        status: &'static str,
    },
    Message {
        id: String,
        status: &'static str,
        role: &'static str,
        content: Vec<Part>,
    },
    FunctionCall {
        id: String,
        call_id: String,
        name: String,
        /// JSON text.
        arguments: String,
        status: &'static str,
    },
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum Part {
    ReasoningText {
        text: String,
    },
    OutputText {
        text: String,
        annotations: [(); 0],
        logprobs: [(); 0],
    },
}

impl Part {
    pub(super) fn text(text: String) -> Self {
        Self::OutputText {
            text,
            annotations: [],
            logprobs: [],
        }
    }
}

/// The job of an answer names its items.
pub(super) struct Items<'a>(pub(super) &'a str);

impl Items<'_> {
    pub(super) fn reasoning_id(&self) -> String {
        format!("rs_{}", self.0)
    }

    pub(super) fn message_id(&self) -> String {
        format!("msg_{}", self.0)
    }

    pub(super) fn reasoning(&self, content: Vec<Part>, status: &'static str) -> Item {
        Item::Reasoning {
            id: self.reasoning_id(),
            summary: [],
            content,
            status,
        }
    }

    pub(super) fn message(&self, content: Vec<Part>, status: &'static str) -> Item {
        Item::Message {
            id: self.message_id(),
            status,
            role: "assistant",
            content,
        }
    }

    pub(super) fn call_item_id(&self, at: usize) -> String {
        format!("fc_{}_{at}", self.0)
    }

    pub(super) fn call(
        &self,
        at: usize,
        name: &str,
        arguments: String,
        status: &'static str,
    ) -> Item {
        Item::FunctionCall {
            id: self.call_item_id(at),
            call_id: format!("call_{}_{at}", self.0),
            name: name.to_owned(),
            arguments,
            status,
        }
    }

    /// All of an answer, in the order in which a stream tells it. What neither thinks nor calls says something, if only nothing.
    pub(super) fn of(&self, told: &Told, status: &'static str) -> Vec<Item> {
        let mut items = Vec::new();
        let last = |is_last| if is_last { status } else { COMPLETED };
        if !told.thoughts.is_empty() {
            let text = told.thoughts.clone();
            let status = last(told.text.is_empty() && told.calls.is_empty());
            items.push(self.reasoning(vec![Part::ReasoningText { text }], status));
        }
        if !told.text.is_empty() || told.calls.is_empty() {
            let status = last(told.calls.is_empty());
            items.push(self.message(vec![Part::text(told.text.clone())], status));
        }
        for (at, call) in told.calls.iter().enumerate() {
            let arguments = Value::Object(call.arguments.clone()).to_string();
            items.push(self.call(at, &call.name, arguments, COMPLETED));
        }
        items
    }
}

pub(super) const IN_PROGRESS: &str = "in_progress";
pub(super) const COMPLETED: &str = "completed";
pub(super) const INCOMPLETE: &str = "incomplete";
pub(super) const FAILED: &str = "failed";

/// How an answer ended.
pub(super) fn status(summary: &Summary) -> &'static str {
    match summary.finish {
        FinishReason::Length => INCOMPLETE,
        FinishReason::Stop | FinishReason::Cancelled => COMPLETED,
    }
}

/// A response object but for what happens to it.
pub(super) struct Frame {
    pub(super) job: String,
    model: String,
    created_at: u64,
    echo: Echo,
}

#[derive(Serialize)]
pub(super) struct Response<'a> {
    id: String,
    object: &'static str,
    created_at: u64,
    status: &'static str,
    background: bool,
    error: Option<Value>,
    incomplete_details: Option<Incomplete>,
    instructions: Option<&'a str>,
    max_output_tokens: Option<u32>,
    model: &'a str,
    output: Vec<Item>,
    parallel_tool_calls: bool,
    previous_response_id: Option<()>,
    reasoning: Reasoning<'a>,
    store: bool,
    temperature: f64,
    text: Text<'a>,
    tool_choice: &'a Value,
    tools: &'a [Value],
    top_p: f64,
    truncation: &'static str,
    usage: Option<Usage>,
    user: Option<()>,
    metadata: &'a Value,
}

#[derive(Serialize)]
struct Incomplete {
    reason: &'static str,
}

#[derive(Serialize)]
struct Reasoning<'a> {
    effort: Option<&'a str>,
    summary: Option<()>,
}

#[derive(Serialize)]
struct Text<'a> {
    format: &'a Value,
}

/// Details are nought: of what was read again and of what was thought, tokens are not counted apart.
#[derive(Serialize)]
struct Usage {
    input_tokens: u32,
    input_tokens_details: InputDetails,
    output_tokens: u32,
    output_tokens_details: OutputDetails,
    total_tokens: u64,
}

#[derive(Default, Serialize)]
struct InputDetails {
    cached_tokens: u32,
}

#[derive(Default, Serialize)]
struct OutputDetails {
    reasoning_tokens: u32,
}

impl Usage {
    fn of(summary: &Summary) -> Self {
        Self {
            input_tokens: summary.n_in,
            input_tokens_details: InputDetails::default(),
            output_tokens: summary.n_out,
            output_tokens_details: OutputDetails::default(),
            total_tokens: u64::from(summary.n_in) + u64::from(summary.n_out),
        }
    }
}

impl Frame {
    pub(super) fn new(job: JobId, model: String, created_at: u64, echo: Echo) -> Self {
        Self {
            job: job.to_string(),
            model,
            created_at,
            echo,
        }
    }

    /// The response at this moment.
    pub(super) fn response(
        &self,
        status: &'static str,
        output: Vec<Item>,
        summary: Option<&Summary>,
        error: Option<Value>,
    ) -> Response<'_> {
        let echo = &self.echo;
        let reason = "max_output_tokens";
        Response {
            id: format!("resp_{}", self.job),
            object: "response",
            created_at: self.created_at,
            status,
            background: false,
            error,
            incomplete_details: (status == INCOMPLETE).then_some(Incomplete { reason }),
            instructions: echo.instructions.as_deref(),
            max_output_tokens: echo.max_output_tokens,
            model: &self.model,
            output,
            parallel_tool_calls: true,
            previous_response_id: None,
            reasoning: Reasoning {
                effort: echo.effort.as_deref(),
                summary: None,
            },
            store: false,
            temperature: echo.temperature,
            text: Text {
                format: &echo.format,
            },
            tool_choice: &echo.tool_choice,
            tools: &echo.tools,
            top_p: echo.top_p,
            truncation: "disabled",
            usage: summary.map(Usage::of),
            user: None,
            metadata: &echo.metadata,
        }
    }
}

/// The answer to a request that does not stream.
pub(super) fn whole(answer: Answer, hearing: &Hearing, echo: Echo, now: u64) -> HttpResponse {
    let mut headers = HeaderMap::new();
    tell_finished(&mut headers, std::slice::from_ref(&answer));
    let frame = Frame::new(answer.job, answer.model, now, echo);
    let told = hearing.hear_all(answer.text);
    let status = status(&answer.summary);
    let output = Items(&frame.job).of(&told, status);
    let response = frame.response(status, output, Some(&answer.summary), None);
    (headers, Json(response)).into_response()
}
