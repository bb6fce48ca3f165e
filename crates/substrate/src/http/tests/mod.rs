//! The listener against a scripted daemon: shapes, order, limits, cancellation.
//!
//! Real answers are tested elsewhere; here the daemon is [`double::Double`], so that every event a
//! job can have is seen by a client in both APIs.

mod anthropic;
mod batches;
mod double;
mod errors;
mod guarded;
mod hands;
mod ollama;
mod openai;
mod own;
mod responses;
mod thinking;
mod views;
mod wire;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{HeaderMap, Request, StatusCode};
use tower::Service;

use super::guard::Caller;
use crate::door::{Ask, Client};
use double::Double;
use substrate_record::Scope;
use substrate_sandbox::wire::input::Prompt;

/// An answer, whole.
struct Heard {
    status: StatusCode,
    headers: HeaderMap,
    text: String,
}

impl Heard {
    /// Status and body without times.
    fn told(&self) -> String {
        format!("{}\n{}\n", self.status.as_u16(), timeless(&self.text))
    }

    fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().unwrap())
    }
}

fn request(
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: impl Into<Body>,
) -> Request<Body> {
    let mut request = Request::builder().method(method).uri(path);
    if !headers.iter().any(|(name, _)| *name == "host") {
        request = request.header("host", "localhost:11535");
    }
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(body.into()).unwrap()
}

async fn send(router: &mut Router, request: Request<Body>) -> Heard {
    let response = router.call(request).await.unwrap();
    let (head, body) = response.into_parts();
    let bytes = to_bytes(body, 64 << 20).await.unwrap();
    Heard {
        status: head.status,
        headers: head.headers,
        text: String::from_utf8(bytes.to_vec()).unwrap(),
    }
}

async fn post(path: &str, body: &str) -> Heard {
    let double = Double::start();
    send(
        &mut double.router(),
        request("POST", path, &[], body.to_owned()),
    )
    .await
}

async fn get(path: &str) -> Heard {
    let double = Double::start();
    send(&mut double.router(), request("GET", path, &[], "")).await
}

/// `text` with the values of its times replaced, so that it can be compared.
fn timeless(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((key, at)) = ["\"created\":", "\"created_at\":"]
        .iter()
        .filter_map(|key| Some((key, rest.find(key)?)))
        .min_by_key(|(_, at)| *at)
    {
        let value = at + key.len();
        let end = value + rest[value..].find([',', '}']).unwrap();
        out += &rest[..value];
        out.push('T');
        rest = &rest[end..];
    }
    out + rest
}

/// A caller without a key whose jobs may go to the circle.
pub(super) fn caller() -> Caller {
    Caller {
        client: Client::Anonymous,
        scope: Scope::Circle,
        admin: false,
        isolated: false,
        patient: false,
        seat: None,
    }
}

/// What a mapping made of a request, for snapshots.
pub(super) fn describe(ask: &Ask) -> String {
    let s = &ask.sampler;
    let mut out = format!(
        "model {} choice {} scope {:?} client {:?}\n",
        ask.model, ask.choice, ask.scope, ask.client
    );
    out += &format!(
        "temperature {} top_k {} top_p {} min_p {} typical_p {} repeat {}/{} presence {} frequency {} n {} logprobs {:?}\n",
        s.temperature,
        s.top_k,
        s.top_p,
        s.min_p,
        s.typical_p,
        s.repeat,
        s.repeat_last_n,
        s.presence,
        s.frequency,
        s.n,
        s.top_logprobs
    );
    let input = &ask.input;
    out += &format!(
        "seed {:?} max {:?} stop {:?} bias {:?} tools {:?}\n",
        ask.seed, ask.max_tokens, input.stop, input.logit_bias, input.tools
    );
    if let Some(thinking) = input.thinking {
        out += &format!("thinking {thinking:?}\n");
    }
    match &input.prompt {
        Prompt::Text { text, special } => out += &format!("text special={special} {text:?}\n"),
        Prompt::Texts { texts, truncate } => {
            out += &format!("texts truncate={truncate} {texts:?}\n");
        }
        Prompt::Chat(messages) => {
            for m in messages {
                out += &format!("{}: {:?}", m.role, m.content);
                let more = [
                    ("name", &m.name),
                    ("calls", &m.tool_calls),
                    ("answers", &m.tool_call_id),
                    ("thinking", &m.thinking),
                ];
                for (what, value) in more {
                    out += &value
                        .as_ref()
                        .map_or(String::new(), |value| format!(" {what}={value}"));
                }
                for image in &m.images {
                    out += &format!(" image@{}={}", image.at, image.bytes.len());
                }
                out.push('\n');
            }
        }
    }
    out
}

/// The smallest GIF, in base64: one point.
pub(crate) const DOT: &str = "R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7";
