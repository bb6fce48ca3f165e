//! Sampling parameters: a client's decimal fractions become PROTOCOL.md 1's integers, or a refusal
//! that names the parameter.
//!
//! Invariant: nothing that is not a finite number within its range reaches a job.

use std::ops::RangeInclusive;

use substrate_record::Sampler;
use substrate_sandbox::wire::input::MAX_STOP;

use super::error::Refusal;
use crate::models::parameters::{MAX_NEW_TOKENS, MICRO, Said, Setting};

/// Most alternatives told per token, as OpenAI's and Ollama's references say.
const MAX_TOP_LOGPROBS: i64 = 20;

/// Fixed point of logits and their biases.
const LOGIT: f64 = 65_536.0;

/// The schema of "some JSON object": OpenAI's `json_object`, Ollama's `"json"`.
pub(super) const ANY_OBJECT: &str = r#"{"type":"object"}"#;

/// What holds where a client says nothing: its API's defaults.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Usual {
    pub(super) temperature: f64,
    pub(super) top_k: f64,
    pub(super) top_p: f64,
    pub(super) repeat_last_n: f64,
    /// The hottest temperature of its reference.
    pub(super) hottest: f64,
}

/// What a client wishes itself.
#[derive(Debug, Clone)]
pub(super) struct Wishes {
    pub(super) usual: Usual,
    pub(super) temperature: Option<f64>,
    pub(super) top_k: Option<f64>,
    pub(super) top_p: Option<f64>,
    pub(super) min_p: Option<f64>,
    pub(super) typical_p: Option<f64>,
    pub(super) repeat_last_n: Option<f64>,
    pub(super) repeat_penalty: Option<f64>,
    pub(super) presence_penalty: Option<f64>,
    pub(super) frequency_penalty: Option<f64>,
    /// Alternatives told per token; `None` = no log-probabilities at all. See [`top_logprobs`].
    pub(super) top_logprobs: Option<u32>,
}

impl Wishes {
    /// None, of an API with these defaults.
    pub(super) fn none(usual: Usual) -> Self {
        Self {
            usual,
            temperature: None,
            top_k: None,
            top_p: None,
            min_p: None,
            typical_p: None,
            repeat_last_n: None,
            repeat_penalty: None,
            presence_penalty: None,
            frequency_penalty: None,
            top_logprobs: None,
        }
    }

    /// The wishes with the API's defaults for the rest.
    pub(super) fn sampler(&self) -> Result<Sampler, Refusal> {
        let usual = self.usual;
        let temperature = self.temperature.unwrap_or(usual.temperature);
        let top_k = self.top_k.unwrap_or(usual.top_k);
        let last_n = self.repeat_last_n.unwrap_or(usual.repeat_last_n);
        let repeat = self.repeat_penalty.unwrap_or(1.0);
        let fraction = |setting: Setting, value| micros(setting.name(), value, setting.range());
        let count = |setting: Setting, value| whole(setting.name(), value, setting.range());
        let presence = self.presence_penalty.unwrap_or(0.0);
        let frequency = self.frequency_penalty.unwrap_or(0.0);
        Ok(Sampler {
            temperature: micros("temperature", temperature, 0.0..=usual.hottest)?.unsigned_abs(),
            top_k: count(Setting::TopK, top_k)?.max(0).unsigned_abs() as u32,
            top_p: fraction(Setting::TopP, self.top_p.unwrap_or(usual.top_p))?.unsigned_abs(),
            min_p: fraction(Setting::MinP, self.min_p.unwrap_or(0.0))?.unsigned_abs(),
            typical_p: fraction(Setting::TypicalP, self.typical_p.unwrap_or(1.0))?.unsigned_abs(),
            repeat_last_n: count(Setting::RepeatLastN, last_n)? as i32,
            repeat: fraction(Setting::RepeatPenalty, repeat)?.unsigned_abs(),
            presence: fraction(Setting::PresencePenalty, presence)?,
            frequency: fraction(Setting::FrequencyPenalty, frequency)?,
            n: 1,
            top_logprobs: self.top_logprobs,
        })
    }

    /// Which parameters are wished, so that no model's default takes their place.
    pub(super) fn said(&self) -> Said {
        said([
            (Setting::Temperature, self.temperature.is_some()),
            (Setting::TopK, self.top_k.is_some()),
            (Setting::TopP, self.top_p.is_some()),
            (Setting::MinP, self.min_p.is_some()),
            (Setting::TypicalP, self.typical_p.is_some()),
            (Setting::RepeatLastN, self.repeat_last_n.is_some()),
            (Setting::RepeatPenalty, self.repeat_penalty.is_some()),
            (Setting::PresencePenalty, self.presence_penalty.is_some()),
            (Setting::FrequencyPenalty, self.frequency_penalty.is_some()),
        ])
    }
}

/// Those that are said.
pub(super) fn said<const N: usize>(settings: [(Setting, bool); N]) -> Said {
    let said = settings.into_iter().filter(|(_, said)| *said);
    said.map(|(setting, _)| setting).collect()
}

/// A number of alternatives within its bound.
pub(super) fn top_logprobs(param: &str, asked: i64) -> Result<u32, Refusal> {
    match u32::try_from(asked) {
        Ok(top) if asked <= MAX_TOP_LOGPROBS => Ok(top),
        _ => Err(out_of_range(
            param,
            asked as f64,
            &(0.0..=MAX_TOP_LOGPROBS as f64),
        )),
    }
}

/// `value` in range, as millionths. The range bounds the cast.
fn micros(param: &str, value: f64, range: RangeInclusive<f64>) -> Result<i64, Refusal> {
    if range.contains(&value) {
        Ok((value * MICRO).round() as i64)
    } else {
        Err(out_of_range(param, value, &range))
    }
}

/// `value` in range without a fraction. The range bounds the cast.
fn whole(param: &str, value: f64, range: RangeInclusive<f64>) -> Result<i64, Refusal> {
    if !range.contains(&value) {
        return Err(out_of_range(param, value, &range));
    }
    if value.fract() != 0.0 {
        return Err(Refusal::invalid(
            param,
            format!("{param} must be a whole number, not {value}"),
        ));
    }
    Ok(value as i64)
}

fn out_of_range(param: &str, value: f64, range: &RangeInclusive<f64>) -> Refusal {
    let (low, high) = (range.start(), range.end());
    Refusal::invalid(
        param,
        format!("{param} must be between {low} and {high}, not {value}"),
    )
}

/// OpenAI's limit of new tokens: at least one.
pub(super) fn max_tokens(param: &str, asked: Option<i64>) -> Result<Option<u32>, Refusal> {
    match asked {
        None => Ok(None),
        Some(n) if n < 1 => Err(Refusal::invalid(
            param,
            format!("{param} must be at least 1, not {n}"),
        )),
        Some(n) => Ok(Some(n.min(MAX_NEW_TOKENS) as u32)),
    }
}

/// Stop strings within their bound; the count is bounded where they are read.
pub(super) fn stops(stop: Vec<String>) -> Result<Vec<String>, Refusal> {
    for text in &stop {
        if text.is_empty() || text.len() > MAX_STOP {
            let why = format!(
                "every stop string must have 1 to {MAX_STOP} bytes, not {}",
                text.len()
            );
            return Err(Refusal::invalid("stop", why));
        }
    }
    Ok(stop)
}

/// OpenAI's map of token id to bias (−100 to 100), in id order. It was bounded where it was read.
pub(super) fn logit_bias(asked: Vec<(String, f64)>) -> Result<Vec<(u32, i32)>, Refusal> {
    let mut biases = Vec::with_capacity(asked.len());
    for (token, bias) in asked {
        let id = token.parse().map_err(|_| {
            Refusal::invalid("logit_bias", "logit_bias must map token ids to numbers")
        })?;
        let range = -100.0..=100.0;
        if !range.contains(&bias) {
            return Err(out_of_range("logit_bias", bias, &range));
        }
        biases.push((id, (bias * LOGIT).round() as i32));
    }
    biases.sort_unstable();
    if biases.windows(2).any(|pair| pair[0].0 == pair[1].0) {
        return Err(Refusal::invalid(
            "logit_bias",
            "logit_bias names a token twice",
        ));
    }
    Ok(biases)
}
