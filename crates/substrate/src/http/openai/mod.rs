//! OpenAI's API under `/v1`.
//!
//! Served: chat completions, completions, responses, embeddings, rerank, models, files, batches. Everything else that its clients may call answers
//! 501 and says so.

mod answer;
mod ask;
mod batches;
mod chat;
mod chunk;
mod chunks;
mod completions;
mod embeddings;
mod files;
mod lines;
mod logprobs;
mod models;
mod rerank;
mod responses;
mod types;

use axum::Router;
use axum::extract::Request;
use axum::response::Response;
use axum::routing::{any, get, post};

pub use lines::lines;

use super::Shared;
use super::error::{Refusal, Shape};

/// Routes of the API that are not there yet.
const NOT_THERE: &[&str] = &[
    "/v1/responses/{*rest}",
    "/v1/fine_tuning/{*rest}",
    "/v1/evals",
    "/v1/evals/{*rest}",
    "/v1/moderations",
    "/v1/audio/{*rest}",
    "/v1/images/{*rest}",
];

pub(super) fn routes() -> Router<Shared> {
    let served = Router::new()
        .route("/v1/chat/completions", post(chat::chat))
        .route("/v1/completions", post(completions::completions))
        .route("/v1/embeddings", post(embeddings::embeddings))
        .route("/v1/responses", post(responses::responses))
        .route("/v1/rerank", post(rerank::rerank))
        .route("/rerank", post(rerank::rerank))
        .route("/v1/files", get(files::list).post(files::upload))
        .route("/v1/files/{id}", get(files::one).delete(files::delete))
        .route("/v1/files/{id}/content", get(files::content))
        .route("/v1/batches", get(batches::list).post(batches::create))
        .route("/v1/batches/{id}", get(batches::one))
        .route("/v1/batches/{id}/cancel", post(batches::cancel))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*id}", get(models::one));
    NOT_THERE
        .iter()
        .fold(served, |routes, path| routes.route(path, any(not_there)))
}

async fn not_there(request: Request) -> Response {
    let path = request.uri().path();
    Refusal::not_there(path).render(Shape::of(path))
}
