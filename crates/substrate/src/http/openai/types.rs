//! Requests as OpenAI's clients write them. Unknown fields are ignored.
//!
//! Invariants: every list is bounded while it is read, not after; what holds a prompt has no `Debug`,
//! so that no log can show it.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, Visitor};
use serde_json::value::RawValue;
use substrate_sandbox::wire::input::{MAX_LOGIT_BIAS, MAX_MESSAGES};

use crate::http::body::{Texts, at_most};
use crate::http::content::Content;

/// `POST /v1/chat/completions`
#[derive(Deserialize)]
pub(super) struct ChatRequest {
    #[serde(default)]
    pub(super) model: String,
    #[serde(default, deserialize_with = "at_most::<_, _, MAX_MESSAGES>")]
    pub(super) messages: Vec<ChatMessage>,
    pub(super) max_tokens: Option<i64>,
    pub(super) max_completion_tokens: Option<i64>,
    pub(super) logprobs: Option<bool>,
    pub(super) top_logprobs: Option<i64>,
    pub(super) response_format: Option<ResponseFormat>,
    pub(super) tools: Option<Box<RawValue>>,
    pub(super) tool_choice: Option<Box<RawValue>>,
    pub(super) functions: Option<Box<RawValue>>,
    pub(super) reasoning_effort: Option<String>,
    pub(super) chat_template_kwargs: Option<TemplateWishes>,
    pub(super) stream: Option<bool>,
    pub(super) stream_options: Option<StreamOptions>,
    pub(super) n: Option<i64>,
    pub(super) seed: Option<i64>,
    pub(super) stop: Option<Texts>,
    #[serde(default)]
    pub(super) logit_bias: Biases,
    pub(super) temperature: Option<f64>,
    pub(super) top_p: Option<f64>,
    pub(super) top_k: Option<f64>,
    pub(super) min_p: Option<f64>,
    pub(super) presence_penalty: Option<f64>,
    pub(super) frequency_penalty: Option<f64>,
}

/// `POST /v1/completions`
#[derive(Deserialize)]
pub(super) struct CompletionRequest {
    #[serde(default)]
    pub(super) model: String,
    #[serde(default)]
    pub(super) prompt: Texts,
    pub(super) max_tokens: Option<i64>,
    pub(super) logprobs: Option<i64>,
    pub(super) suffix: Option<String>,
    pub(super) echo: Option<bool>,
    pub(super) best_of: Option<i64>,
    pub(super) stream: Option<bool>,
    pub(super) stream_options: Option<StreamOptions>,
    pub(super) n: Option<i64>,
    pub(super) seed: Option<i64>,
    pub(super) stop: Option<Texts>,
    #[serde(default)]
    pub(super) logit_bias: Biases,
    pub(super) temperature: Option<f64>,
    pub(super) top_p: Option<f64>,
    pub(super) top_k: Option<f64>,
    pub(super) min_p: Option<f64>,
    pub(super) presence_penalty: Option<f64>,
    pub(super) frequency_penalty: Option<f64>,
}

/// One turn.
#[derive(Deserialize)]
#[serde(expecting = "an object")]
pub(super) struct ChatMessage {
    pub(super) role: String,
    #[serde(default)]
    pub(super) content: Content,
    pub(super) name: Option<String>,
    pub(super) tool_calls: Option<Box<RawValue>>,
    pub(super) tool_call_id: Option<String>,
    /// Ollama's name for an assistant's thoughts.
    pub(super) reasoning: Option<String>,
    /// DeepSeek's and LM Studio's.
    pub(super) reasoning_content: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(expecting = "an object")]
pub(super) struct ResponseFormat {
    #[serde(rename = "type", default)]
    pub(super) kind: String,
    pub(super) json_schema: Option<NamedSchema>,
}

/// A schema and its name; `strict` and the description change nothing here, as every answer is bound.
#[derive(Debug, Deserialize)]
#[serde(expecting = "an object")]
pub(super) struct NamedSchema {
    pub(super) schema: Option<Box<RawValue>>,
}

/// What clients of vLLM and llama.cpp tell a template; other variables of it are not theirs to set.
#[derive(Debug, Deserialize)]
#[serde(expecting = "an object")]
pub(super) struct TemplateWishes {
    pub(super) enable_thinking: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(expecting = "an object")]
pub(super) struct StreamOptions {
    pub(super) include_usage: Option<bool>,
}

/// Token ids as written, and their biases, in the order written.
#[derive(Debug, Default)]
pub(super) struct Biases(pub(super) Vec<(String, f64)>);

impl<'de> Deserialize<'de> for Biases {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(BoundedMap)
    }
}

struct BoundedMap;

impl<'de> Visitor<'de> for BoundedMap {
    type Value = Biases;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a map of at most {MAX_LOGIT_BIAS} token ids to numbers")
    }

    fn visit_unit<E: Error>(self) -> Result<Biases, E> {
        Ok(Biases::default())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Biases, A::Error> {
        let mut biases = Vec::new();
        while let Some(entry) = map.next_entry()? {
            if biases.len() == MAX_LOGIT_BIAS {
                return Err(A::Error::custom(format_args!(
                    "more than {MAX_LOGIT_BIAS} entries"
                )));
            }
            biases.push(entry);
        }
        Ok(Biases(biases))
    }
}
