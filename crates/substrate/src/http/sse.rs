//! Server-sent events: framing only (WHATWG HTML 9.2).
//!
//! Invariant: data and comments are single lines, because JSON text has no raw line break.

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use futures::Stream;
use serde::Serialize;

/// The last event of a good stream.
pub(super) const DONE: &str = "data: [DONE]\n\n";

/// Keeps proxies and clients from taking a thinking model for a dead connection.
pub(super) const PING: &str = ": ping\n\n";

pub(super) fn data(value: &impl Serialize) -> String {
    format!("data: {}\n\n", json(value))
}

/// An event with a name.
pub(super) fn event(name: &str, value: &impl Serialize) -> String {
    format!("event: {name}\ndata: {}\n\n", json(value))
}

/// A line that clients skip: `: queue {…}`.
pub(super) fn comment(kind: &str, value: &impl Serialize) -> String {
    format!(": {kind} {}\n\n", json(value))
}

pub(super) fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("own types have string keys and serialise without failing")
}

/// An answer that streams `lines` as they come.
pub(super) fn response(lines: impl Stream<Item = String> + Send + 'static) -> Response {
    streamed(lines, "text/event-stream")
}

pub(super) fn streamed(
    lines: impl Stream<Item = String> + Send + 'static,
    kind: &'static str,
) -> Response {
    use futures::StreamExt;
    let body =
        Body::from_stream(lines.map(|line| Ok::<_, std::convert::Infallible>(Bytes::from(line))));
    let mut response = body.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // nginx would otherwise hold tokens back until its buffer is full.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}
