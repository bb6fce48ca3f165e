//! Ollama's API under `/api`, and its greeting at `/`.
//!
//! Served: version, tags, ps, show, chat, generate, embed, pull, create, blobs, copy, delete. Everything else that its
//! clients may call answers 501 and says so.

mod ask;
mod blobs;
mod chat;
mod create;
mod embed;
mod generate;
mod lines;
mod pull;
mod show;
mod tags;
mod types;

use axum::Router;
use axum::extract::Request;
use axum::response::Response;
use axum::routing::{any, delete, get, head, post};
use axum::{Json, http::header};
use serde_json::{Value, json};

use super::Shared;
use super::error::{Refusal, Shape};

/// Routes of the API that are not there yet.
const NOT_THERE: &[&str] = &["/api/push"];

pub(super) fn routes() -> Router<Shared> {
    let served = Router::new()
        .route("/", get(greeting))
        .route("/api/version", get(version))
        .route("/api/tags", get(tags::tags))
        .route("/api/ps", get(tags::ps))
        .route("/api/show", post(show::show))
        .route("/api/chat", post(chat::chat))
        .route("/api/generate", post(generate::generate))
        .route("/api/embed", post(embed::embed))
        .route("/api/embeddings", post(embed::embeddings))
        .route("/api/pull", post(pull::pull))
        .route("/api/create", post(create::create))
        .route("/api/blobs/{digest}", head(blobs::head).post(blobs::upload))
        .route("/api/copy", post(pull::copy))
        .route("/api/delete", delete(pull::delete));
    NOT_THERE
        .iter()
        .fold(served, |routes, path| routes.route(path, any(not_there)))
}

/// Clients look for these very words to find a server.
async fn greeting() -> ([(header::HeaderName, &'static str); 1], &'static str) {
    (
        [(header::CONTENT_TYPE, "text/plain; charset=utf-8")],
        "Ollama is running",
    )
}

/// Three integers with dots: Open WebUI compares them as numbers.
async fn version() -> Json<Value> {
    Json(json!({ "version": env!("CARGO_PKG_VERSION") }))
}

async fn not_there(request: Request) -> Response {
    let path = request.uri().path();
    Refusal::not_there(path).render(Shape::of(path))
}
