//! Requests as Ollama's clients write them. Unknown fields and options are ignored.
//!
//! Invariants: every list is bounded while it is read, not after; what holds a prompt has no `Debug`,
//! so that no log can show it.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error, Visitor};
use serde_json::value::RawValue;
use substrate_sandbox::wire::image::MAX_IMAGES;
use substrate_sandbox::wire::input::MAX_MESSAGES;

use crate::http::body::{Texts, at_most};
use crate::http::error::Refusal;
use crate::http::names::{go_duration_ms, model_name};

/// `POST /api/chat`
#[derive(Deserialize)]
pub(super) struct ChatRequest {
    pub(super) model: Option<String>,
    pub(super) name: Option<String>,
    #[serde(default, deserialize_with = "at_most::<_, _, MAX_MESSAGES>")]
    pub(super) messages: Vec<ChatMessage>,
    pub(super) tools: Option<Box<RawValue>>,
    pub(super) format: Option<Box<RawValue>>,
    pub(super) think: Option<Box<RawValue>>,
    pub(super) options: Option<Options>,
    pub(super) stream: Option<bool>,
    pub(super) keep_alive: Option<KeepAlive>,
    pub(super) logprobs: Option<bool>,
    pub(super) top_logprobs: Option<i64>,
}

/// `POST /api/generate`
#[derive(Deserialize)]
pub(super) struct GenerateRequest {
    pub(super) model: Option<String>,
    pub(super) name: Option<String>,
    pub(super) prompt: Option<String>,
    pub(super) system: Option<String>,
    pub(super) suffix: Option<String>,
    pub(super) template: Option<String>,
    pub(super) raw: Option<bool>,
    pub(super) context: Option<Box<RawValue>>,
    #[serde(default, deserialize_with = "at_most::<_, _, MAX_IMAGES>")]
    pub(super) images: Vec<String>,
    pub(super) format: Option<Box<RawValue>>,
    pub(super) think: Option<Box<RawValue>>,
    pub(super) options: Option<Options>,
    pub(super) stream: Option<bool>,
    pub(super) keep_alive: Option<KeepAlive>,
    pub(super) logprobs: Option<bool>,
    pub(super) top_logprobs: Option<i64>,
}

/// One turn.
#[derive(Deserialize)]
#[serde(expecting = "an object")]
pub(super) struct ChatMessage {
    pub(super) role: String,
    pub(super) content: Option<String>,
    pub(super) thinking: Option<String>,
    #[serde(default, deserialize_with = "at_most::<_, _, MAX_IMAGES>")]
    pub(super) images: Vec<String>,
    pub(super) tool_calls: Option<Box<RawValue>>,
    pub(super) tool_name: Option<String>,
    pub(super) tool_call_id: Option<String>,
}

/// The options that reach the sampler. Others concern the engine, whose settings are the owner's.
#[derive(Default, Deserialize)]
#[serde(expecting = "an object")]
pub(super) struct Options {
    #[serde(default, deserialize_with = "whole")]
    pub(super) num_predict: Option<i64>,
    #[serde(default, deserialize_with = "whole")]
    pub(super) seed: Option<i64>,
    pub(super) temperature: Option<f64>,
    pub(super) top_k: Option<f64>,
    pub(super) top_p: Option<f64>,
    pub(super) min_p: Option<f64>,
    pub(super) typical_p: Option<f64>,
    pub(super) repeat_last_n: Option<f64>,
    pub(super) repeat_penalty: Option<f64>,
    pub(super) presence_penalty: Option<f64>,
    pub(super) frequency_penalty: Option<f64>,
    pub(super) stop: Option<Texts>,
}

/// `POST /api/show`
#[derive(Debug, Deserialize)]
pub(super) struct ShowRequest {
    pub(super) model: Option<String>,
    pub(super) name: Option<String>,
}

/// `POST /api/pull`
#[derive(Debug, Deserialize)]
pub(super) struct PullRequest {
    pub(super) model: Option<String>,
    pub(super) name: Option<String>,
    pub(super) stream: Option<bool>,
}

/// `POST /api/copy`
#[derive(Debug, Deserialize)]
pub(super) struct CopyRequest {
    #[serde(default)]
    pub(super) source: String,
    #[serde(default)]
    pub(super) destination: String,
}

/// The model asked for; `name` is the field's older name.
pub(super) fn asked_model(model: Option<String>, name: Option<String>) -> Result<String, Refusal> {
    let asked = model.filter(|model| !model.is_empty()).or(name);
    model_name("model", &asked.unwrap_or_default())
}

/// A whole number, also as languages without integers write it: `128.0`.
fn whole<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<i64>, D::Error> {
    /// Every whole number up to here is a float of its own; past it a float may mean its neighbour.
    const EXACT: f64 = 9_007_199_254_740_992.0;

    #[derive(Deserialize)]
    #[serde(untagged, expecting = "must be a whole number")]
    enum Number {
        Whole(i64),
        Float(f64),
    }
    match Option::<Number>::deserialize(deserializer)? {
        None => Ok(None),
        Some(Number::Whole(number)) => Ok(Some(number)),
        Some(Number::Float(number)) if number.fract() == 0.0 && number.abs() <= EXACT => {
            Ok(Some(number as i64))
        }
        Some(Number::Float(number)) => Err(D::Error::custom(format_args!(
            "must be a whole number, not {number}"
        ))),
    }
}

/// How long a model stays loaded after its last job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct KeepAlive {
    /// 0 = unload, negative = for ever.
    pub(super) seconds: i64,
}

impl KeepAlive {
    /// Part of a second rounds up, so that only zero unloads.
    fn from_ms(ms: i64) -> Self {
        let seconds = if ms < 0 {
            -1
        } else {
            ms.unsigned_abs().div_ceil(1_000) as i64
        };
        Self { seconds }
    }
}

impl<'de> Deserialize<'de> for KeepAlive {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(SecondsOrDuration)
    }
}

struct SecondsOrDuration;

impl Visitor<'_> for SecondsOrDuration {
    type Value = KeepAlive;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number of seconds or a duration such as \"5m\"")
    }

    fn visit_i64<E: Error>(self, seconds: i64) -> Result<KeepAlive, E> {
        Ok(KeepAlive::from_ms(seconds.saturating_mul(1_000)))
    }

    fn visit_u64<E: Error>(self, seconds: u64) -> Result<KeepAlive, E> {
        self.visit_i64(i64::try_from(seconds).unwrap_or(i64::MAX))
    }

    fn visit_f64<E: Error>(self, seconds: f64) -> Result<KeepAlive, E> {
        // `as` saturates.
        Ok(KeepAlive::from_ms((seconds * 1_000.0) as i64))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<KeepAlive, E> {
        go_duration_ms(text)
            .map(KeepAlive::from_ms)
            .ok_or_else(|| E::custom(format_args!("invalid duration \"{text}\"")))
    }
}
