//! A raw completion over the OpenAI-shaped stream that both sides speak, with the time of every piece.
//!
//! Invariant: both sides get the same bytes but for the field that forbids the end token, which each names
//! in its own way, so that every answer has the tokens asked for.
//! Absent by design: judging the text.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use xtask::trio::MODEL;

/// Ids that end an answer of the demo model, forbidden by a bias no logit outweighs.
const ENDS: [&str; 2] = ["0", "2"];

/// Which server is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The whole path: HTTP, daemon, node, pipe, worker.
    Ours,
    /// llama-server.
    Reference,
}

/// One request.
#[derive(Debug, Clone)]
pub struct Ask {
    /// Raw text.
    pub prompt: String,
    /// Tokens to make.
    pub tokens: u32,
}

/// What came.
#[derive(Debug, Clone, Default)]
pub struct Came {
    /// When each piece came, from the request on.
    pub times: Vec<Duration>,
    /// Prompt tokens as the side counts them.
    pub prompt_tokens: u64,
    /// Tokens made as the side counts them.
    pub tokens: u64,
    /// The text.
    pub text: String,
}

impl Came {
    /// Time to the first piece.
    pub fn first(&self) -> Result<Duration> {
        self.times.first().copied().context("an empty answer")
    }

    /// Tokens per second after the first.
    pub fn decode_rate(&self) -> Result<f64> {
        let (first, last) = (
            self.first()?,
            *self.times.last().context("an empty answer")?,
        );
        let tokens = self.tokens.checked_sub(1).filter(|tokens| *tokens > 0);
        Ok(tokens.context("a single token")? as f64 / (last - first).as_secs_f64())
    }
}

impl Side {
    /// Asks and reads to the end; `on_piece` hears of every piece.
    ///
    /// # Errors
    /// The request failed, or the stream broke off.
    pub fn ask(self, api: SocketAddr, ask: &Ask, mut on_piece: impl FnMut()) -> Result<Came> {
        let start = Instant::now();
        let response = ureq::post(&format!("http://{api}/v1/completions"))
            .config()
            .http_status_as_error(false)
            .build()
            .send_json(self.body(ask))?;
        let status = response.status();
        if !status.is_success() {
            bail!(
                "{self:?}: {status}: {}",
                response.into_body().read_to_string()?
            );
        }
        let mut came = Came::default();
        for line in BufReader::new(response.into_body().into_reader()).lines() {
            let line = line?;
            let Some(payload) = line.strip_prefix("data: ") else {
                continue;
            };
            if payload == "[DONE]" {
                return Ok(came);
            }
            if came.take(payload, start)? {
                on_piece();
            }
        }
        bail!(
            "{self:?}: the stream broke off after {} pieces",
            came.times.len()
        )
    }

    fn body(self, ask: &Ask) -> Value {
        let mut body = json!({
            "model": MODEL,
            "prompt": ask.prompt,
            "max_tokens": ask.tokens,
            "temperature": 0,
            "stream": true,
            "stream_options": { "include_usage": true },
        });
        match self {
            Self::Ours => {
                body["logit_bias"] = ENDS
                    .iter()
                    .map(|id| ((*id).to_owned(), json!(-100)))
                    .collect();
            }
            Self::Reference => body["ignore_eos"] = json!(true),
        }
        body
    }
}

impl Came {
    /// True if the chunk was a piece of the answer.
    fn take(&mut self, payload: &str, start: Instant) -> Result<bool> {
        let chunk: Value = serde_json::from_str(payload)?;
        if let Some(error) = chunk.get("error") {
            bail!("the stream ended with an error: {error}");
        }
        if let Some(usage) = chunk.get("usage").filter(|usage| usage.is_object()) {
            self.prompt_tokens = usage["prompt_tokens"].as_u64().unwrap_or_default();
            self.tokens = usage["completion_tokens"].as_u64().unwrap_or_default();
        }
        let Some(text) = chunk["choices"][0]["text"].as_str() else {
            return Ok(false);
        };
        // The last chunk tells why it ended and brings nothing.
        if text.is_empty() && chunk["choices"][0]["finish_reason"].is_string() {
            return Ok(false);
        }
        self.text.push_str(text);
        self.times.push(start.elapsed());
        Ok(true)
    }
}
