//! The HTTP listener: OpenAI and Anthropic under `/v1`, Ollama under `/api`, and `/healthz` and `/metrics`.
//!
//! A stranger's bytes become one [`crate::door::Ask`] or a refusal in the shape of the API that was
//! called. Read in this order: `guard` (who may ask), `body` (how much is read), `openai`,
//! `anthropic` and `ollama` (what is asked), `job` (what comes back), `hearing` (what is in it), `sse` and `ndjson` (how it is framed).
//!
//! Invariants: everything that arrives is bounded before it is kept; a stream never ends silently,
//! it ends with its API's own last word or with an error in its API's own shape; dropping a response
//! drops its jobs, which cancels them.
//!
//! Absent by design: keys, records, the mesh, TLS, HTTP/2, and any cache of answers.

pub mod actions;
mod anthropic;
mod body;
mod content;
pub(crate) mod embed;
mod error;
mod guard;
mod health;
mod hearing;
mod images;
mod job;
pub mod keys;
mod lists;
mod multipart;
mod names;
mod ndjson;
mod news;
mod notation;
mod ollama;
mod openai;
mod policy;
mod sampling;
mod serve;
mod sse;
mod tools;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use axum::extract::Request;
use axum::middleware;
use axum::response::Response;
use axum::{Extension, Router};

pub use actions::{ActionError, Details, ModelActions, PullProgress, PullRights};
pub use keys::{ApiKey, ApiKeys};
pub use openai::lines;
pub use policy::{ListenerPolicy, ListenerRefused};
pub use serve::{listen, serve};

use crate::batches::Batches;
use crate::door::Door;
use error::{Refusal, Shape};
use health::Counters;

/// Everything a listener needs; one per bound address, sharing door, keys and models.
#[derive(Clone)]
pub struct HttpState {
    /// The daemon.
    pub door: Door,
    /// The keys that callers may show.
    pub keys: ApiKeys,
    /// What this listener lets in.
    pub policy: ListenerPolicy,
    /// What changes the list of models on disk.
    pub models: Arc<dyn ModelActions>,
    /// Files kept for clients, and what is asked in them.
    pub batches: Batches,
}

/// What handlers share.
struct App {
    door: Door,
    keys: ApiKeys,
    policy: ListenerPolicy,
    models: Arc<dyn ModelActions>,
    counters: Counters,
}

type Shared = Arc<App>;

/// All routes behind the guard.
pub fn router(state: HttpState) -> Router {
    let HttpState {
        door,
        keys,
        policy,
        models,
        batches,
    } = state;
    let app = Arc::new(App {
        door,
        keys,
        policy,
        models,
        counters: Counters::default(),
    });
    Router::new()
        .merge(health::routes())
        .merge(openai::routes())
        .merge(anthropic::routes())
        .merge(ollama::routes())
        .fallback(unknown_route)
        .method_not_allowed_fallback(wrong_method)
        .layer(Extension(batches))
        .layer(middleware::from_fn_with_state(app.clone(), guard::guard))
        .layer(middleware::from_fn_with_state(app.clone(), health::count))
        .with_state(app)
}

async fn unknown_route(request: Request) -> Response {
    let path = request.uri().path();
    Refusal::unknown_route(request.method(), path).render(Shape::of(path))
}

async fn wrong_method(request: Request) -> Response {
    let path = request.uri().path();
    Refusal::wrong_method(request.method(), path).render(Shape::of(path))
}
