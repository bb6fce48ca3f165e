//! Newline-delimited JSON, as Ollama streams it.

use axum::response::Response;
use futures::Stream;
use serde::Serialize;

use super::sse;

/// One value on its own line.
pub(super) fn line(value: &impl Serialize) -> String {
    let mut line = sse::json(value);
    line.push('\n');
    line
}

/// An answer that streams `lines` as they come.
pub(super) fn response(lines: impl Stream<Item = String> + Send + 'static) -> Response {
    sse::streamed(lines, "application/x-ndjson")
}
