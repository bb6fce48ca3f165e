//! A client of the OpenAI-shaped stream that keeps the time of every piece.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// Best tokens told of each place: as many as were ever seen within a near-tie of the best, and some.
const BEST: u32 = 5;

/// One greedy request.
#[derive(Debug, Clone)]
pub struct Chat {
    /// Where to ask.
    pub api: SocketAddr,
    /// Model name.
    pub model: String,
    /// The user's message, or raw text.
    pub prompt: String,
    /// Tokens at most.
    pub max_tokens: u32,
    /// `mine`, `circle` or `commons`; `None` = the listener's default.
    pub scope: Option<String>,
    /// Ask for every token's two best, which [`crate::seam`] judges by.
    pub two_best: bool,
    /// The prompt is raw text to go on with: no template adds tokens to it.
    pub raw: bool,
    /// An image before the user's message, as a `data:` URI.
    pub image: Option<String>,
}

/// One token and the model's best where it was chosen.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Token {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// (bytes, log-probability), best first.
    pub best: Vec<(Vec<u8>, f64)>,
}

/// What came back.
#[derive(Debug, Clone, Default)]
pub struct Answer {
    /// The whole text.
    pub text: String,
    /// When each piece of text came, from the request on.
    pub times: Vec<Duration>,
    /// Its tokens, if asked for.
    pub tokens: Vec<Token>,
    /// Tokens the client had at each move to another node.
    pub moved_after: Vec<usize>,
    /// The `: substrate {json}` comment.
    pub substrate: Value,
    /// `usage`.
    pub usage: Value,
    /// `finish_reason`.
    pub finish: Option<String>,
    /// The job's id, from the header.
    pub job: String,
}

impl Answer {
    /// Time to the first piece of text.
    pub fn first(&self) -> Option<Duration> {
        self.times.first().copied()
    }

    /// The longest wait between two pieces.
    pub fn longest_gap(&self) -> Duration {
        self.times
            .windows(2)
            .map(|pair| pair[1] - pair[0])
            .max()
            .unwrap_or_default()
    }

    /// How long the answering node read the input, by its own clock.
    ///
    /// # Errors
    /// The stream did not tell.
    pub fn prefill(&self) -> Result<Duration> {
        let told = self.substrate["timings_ms"]["prefill"].as_u64();
        Ok(Duration::from_millis(told.context("no time of prefill")?))
    }

    /// A number of `usage`.
    ///
    /// # Errors
    /// The stream did not tell.
    pub fn used(&self, key: &str) -> Result<u64> {
        self.usage[key]
            .as_u64()
            .with_context(|| format!("no {key} in the usage"))
    }

    /// Mean time per piece after the first.
    pub fn per_token(&self) -> Option<Duration> {
        let (first, last) = (self.times.first()?, self.times.last()?);
        let gaps = u32::try_from(self.times.len().checked_sub(1)?)
            .ok()
            .filter(|gaps| *gaps > 0)?;
        Some((*last - *first) / gaps)
    }
}

impl Chat {
    /// A greedy request with the listener's defaults.
    pub fn new(api: SocketAddr, model: &str, prompt: &str, max_tokens: u32) -> Self {
        Self {
            api,
            model: model.to_owned(),
            prompt: prompt.to_owned(),
            max_tokens,
            scope: None,
            two_best: false,
            raw: false,
            image: None,
        }
    }

    /// About this image.
    #[must_use]
    pub fn with_image(mut self, uri: &str) -> Self {
        self.image = Some(uri.to_owned());
        self
    }

    /// The prompt as raw text.
    #[must_use]
    pub fn raw(mut self) -> Self {
        self.raw = true;
        self
    }

    /// In this scope.
    #[must_use]
    pub fn in_scope(mut self, scope: &str) -> Self {
        self.scope = Some(scope.to_owned());
        self
    }

    /// With every token's two best.
    #[must_use]
    pub fn with_two_best(mut self) -> Self {
        self.two_best = true;
        self
    }

    /// Asks and reads to the end.
    ///
    /// # Errors
    /// The request failed, or the stream ended with an error or without `[DONE]`.
    pub fn run(&self) -> Result<Answer> {
        self.run_with(|_| Ok(()))
    }

    /// Asks and reads to the end; `on_piece` is called after every piece of text with what came so far.
    ///
    /// # Errors
    /// As [`Chat::run`], and `on_piece`'s own.
    pub fn run_with(&self, mut on_piece: impl FnMut(&Answer) -> Result<()>) -> Result<Answer> {
        let start = Instant::now();
        let path = if self.raw { "" } else { "chat/" };
        let mut request = ureq::post(&format!("http://{}/v1/{path}completions", self.api))
            .config()
            .http_status_as_error(false)
            .build();
        if let Some(scope) = &self.scope {
            request = request.header("x-substrate-scope", scope);
        }
        let response = request.send_json(self.body())?;
        let status = response.status();
        let job = header(&response, "x-substrate-job");
        if !status.is_success() {
            bail!("{status}: {}", response.into_body().read_to_string()?);
        }
        let mut answer = Answer {
            job,
            ..Answer::default()
        };
        for line in BufReader::new(response.into_body().into_reader()).lines() {
            if answer.take_line(&line?, start)? {
                on_piece(&answer)?;
            }
        }
        answer.close()
    }

    fn body(&self) -> Value {
        let mut body = json!({
            "model": self.model,
            "max_tokens": self.max_tokens,
            "temperature": 0,
            // Read whole every time: what is compared must not depend on what was asked before.
            "seed": 1,
            "stream": true,
            "stream_options": { "include_usage": true },
        });
        if self.raw {
            body["prompt"] = json!(self.prompt);
        } else {
            body["messages"] = json!([{ "role": "user", "content": self.content() }]);
        }
        if self.two_best {
            body["logprobs"] = json!(true);
            body["top_logprobs"] = json!(BEST);
        }
        body
    }
}

impl Chat {
    fn content(&self) -> Value {
        match &self.image {
            None => json!(self.prompt),
            Some(url) => json!([
                { "type": "image_url", "image_url": { "url": url } },
                { "type": "text", "text": self.prompt },
            ]),
        }
    }
}

impl Token {
    fn of(told: &Value) -> Self {
        let best = told["top_logprobs"].as_array();
        let best = best.into_iter().flatten();
        Self {
            bytes: bytes(&told["bytes"]),
            best: best
                .map(|one| {
                    (
                        bytes(&one["bytes"]),
                        one["logprob"].as_f64().unwrap_or(f64::NEG_INFINITY),
                    )
                })
                .collect(),
        }
    }
}

fn bytes(told: &Value) -> Vec<u8> {
    let numbers = told.as_array().into_iter().flatten();
    numbers
        .filter_map(|byte| u8::try_from(byte.as_u64()?).ok())
        .collect()
}

impl Answer {
    /// Takes one line of the stream; `true` if it brought text.
    fn take_line(&mut self, line: &str, start: Instant) -> Result<bool> {
        if let Some(comment) = line.strip_prefix(": substrate ") {
            self.substrate = serde_json::from_str(comment)?;
            return Ok(false);
        }
        if let Some(comment) = line.strip_prefix(": moved ") {
            let moved: Value = serde_json::from_str(comment)?;
            let after = moved["after_tokens"].as_u64().context("moved after what")?;
            self.moved_after.push(usize::try_from(after)?);
            return Ok(false);
        }
        let Some(payload) = line.strip_prefix("data: ") else {
            return Ok(false);
        };
        if payload == "[DONE]" {
            self.usage["done"] = json!(true);
            return Ok(false);
        }
        let chunk: Value = serde_json::from_str(payload)?;
        if let Some(error) = chunk.get("error") {
            bail!("the stream ended with an error: {error}");
        }
        if let Some(usage) = chunk.get("usage").filter(|usage| usage.is_object()) {
            self.usage = usage.clone();
        }
        let choice = &chunk["choices"][0];
        if let Some(finish) = choice["finish_reason"].as_str() {
            self.finish = Some(finish.to_owned());
        }
        if let Some(tokens) = choice["logprobs"]["content"].as_array() {
            self.tokens.extend(tokens.iter().map(Token::of));
        }
        let text = choice["delta"]["content"].as_str();
        let Some(text) = text
            .or(choice["text"].as_str())
            .filter(|text| !text.is_empty())
        else {
            return Ok(false);
        };
        self.text.push_str(text);
        self.times.push(start.elapsed());
        Ok(true)
    }

    fn close(self) -> Result<Self> {
        if self.usage["done"] != json!(true) {
            bail!(
                "the stream ended without [DONE] after {} pieces",
                self.times.len()
            );
        }
        Ok(self)
    }
}

fn header<B>(response: &ureq::http::Response<B>, name: &str) -> String {
    response
        .headers()
        .get(name)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
        .to_owned()
}

/// The value at quantile `q` of a sample.
///
/// # Errors
/// The sample is empty.
pub fn quantile(sample: &[Duration], q: f64) -> Result<Duration> {
    let mut sorted = sample.to_vec();
    sorted.sort_unstable();
    let last = sorted.len().checked_sub(1).context("an empty sample")?;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "an index into a small sample"
    )]
    let index = (last as f64 * q).round() as usize;
    Ok(sorted[index.min(last)])
}

/// One raw completion that is not streamed: the shortest whole job. Returns the body and the headers that tell who answered.
///
/// # Errors
/// Any status but 200, with its body.
pub fn complete(
    api: SocketAddr,
    model: &str,
    prompt: &str,
    max_tokens: u32,
    scope: &str,
) -> Result<Completed> {
    let response = ureq::post(&format!("http://{api}/v1/completions"))
        .config()
        .http_status_as_error(false)
        .build()
        .header("x-substrate-scope", scope)
        .send_json(
            json!({ "model": model, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0 }),
        )?;
    let status = response.status();
    let completed = Completed {
        job: header(&response, "x-substrate-job"),
        node: header(&response, "x-substrate-node"),
        route: header(&response, "x-substrate-route"),
        scope: header(&response, "x-substrate-scope"),
        body: Value::Null,
    };
    let text = response.into_body().read_to_string()?;
    if !status.is_success() {
        bail!("{status}: {text}");
    }
    Ok(Completed {
        body: serde_json::from_str(&text)?,
        ..completed
    })
}

/// A finished completion.
#[derive(Debug, Clone)]
pub struct Completed {
    /// Job id.
    pub job: String,
    /// Key of the node that answered.
    pub node: String,
    /// `local`, `direct` or `relayed`.
    pub route: String,
    /// Signed scope.
    pub scope: String,
    /// The response's JSON.
    pub body: Value,
}
