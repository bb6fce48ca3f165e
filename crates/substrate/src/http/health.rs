//! `/healthz` and `/metrics`: whether the daemon answers, and how often it was asked.
//!
//! Invariant: labels are bounded; a route's label is its pattern, never a path that a caller chose.
//! Absent by design: models, keys, nodes and prompts as labels.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::json;

use super::Shared;
use super::error::{OllamaError, Refusal};
use crate::door::Call;

/// A daemon that does not answer its own door within this is not healthy.
const PATIENCE: Duration = Duration::from_secs(2);

pub(super) fn routes() -> Router<Shared> {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/metrics", get(metrics))
}

/// Requests answered, by route pattern and status.
#[derive(Default)]
pub(super) struct Counters(Mutex<BTreeMap<(String, u16), u64>>);

impl Counters {
    fn add(&self, route: &str, status: u16) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *counts.entry((route.to_owned(), status)).or_default() += 1;
    }
}

/// The middleware that counts.
pub(super) async fn count(State(app): State<Shared>, request: Request, next: Next) -> Response {
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or("other".to_owned(), |path| path.as_str().to_owned());
    let response = next.run(request).await;
    app.counters.add(&route, response.status().as_u16());
    response
}

async fn healthz(State(app): State<Shared>) -> Response {
    let status =
        tokio::time::timeout(PATIENCE, app.door.call(|reply| Call::Status { reply })).await;
    match status {
        Ok(Ok(status)) if !status.stopping => Json(json!({ "status": "ok" })).into_response(),
        // A balancer must not send anybody here any more.
        Ok(_) => unwell("stopping"),
        Err(_) => unwell("not answering"),
    }
}

fn unwell(status: &str) -> Response {
    let told = Json(json!({ "status": status }));
    (StatusCode::SERVICE_UNAVAILABLE, told).into_response()
}

async fn metrics(State(app): State<Shared>) -> Result<Response, OllamaError> {
    let status = app
        .door
        .call(|reply| Call::Status { reply })
        .await
        .map_err(Refusal::from)?;
    let mut text = String::new();
    gauge(
        &mut text,
        "substrate_num_requests_running",
        "Jobs running.",
        u64::from(status.running),
    );
    gauge(
        &mut text,
        "substrate_num_requests_waiting",
        "Jobs waiting.",
        u64::from(status.waiting),
    );
    gauge(
        &mut text,
        "substrate_peers",
        "Connected peers.",
        u64::from(status.peers),
    );
    gauge(
        &mut text,
        "substrate_resident_bytes",
        "Resident bytes of the daemon.",
        status.rss,
    );
    text.push_str("# HELP substrate_http_requests_total Requests answered.\n# TYPE substrate_http_requests_total counter\n");
    for ((route, status), count) in app
        .counters
        .0
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .iter()
    {
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "substrate_http_requests_total{{route=\"{route}\",status=\"{status}\"}} {count}"
        );
    }
    let kind = HeaderValue::from_static("text/plain; version=0.0.4");
    Ok(([(header::CONTENT_TYPE, kind)], text).into_response())
}

fn gauge(text: &mut String, name: &str, help: &str, value: u64) {
    // Writing to a string cannot fail.
    let _ = writeln!(
        text,
        "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}"
    );
}
