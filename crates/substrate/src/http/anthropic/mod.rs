//! Anthropic's API under `/v1/messages`.
//!
//! Served: messages, whole and streamed, with tools and thinking. Counting tokens would need the model's tokenizer, which is
//! behind the wall and maybe on another machine: it answers 501, as batches do.
//! Where it differs from Anthropic's own: `stop_reason` is `end_turn` also where a stop sequence ended the answer, because
//! which of the two it was does not travel with an answer; a thinking block's signature is empty, because nobody needs it here.

mod answer;
mod ask;
mod events;
mod types;

use axum::extract::{Request, State};
use axum::http::HeaderMap;
use axum::response::Response;
use axum::routing::{any, post};
use axum::{Extension, Router};

use super::error::{AnthropicError, Refusal, Shape};
use super::guard::Caller;
use super::job::{Feed, submit, tell_running};
use super::{Shared, body, news, sse};

/// Routes of the API that are not there yet.
const NOT_THERE: [&str; 3] = [
    "/v1/messages/count_tokens",
    "/v1/messages/batches",
    "/v1/messages/batches/{*rest}",
];

pub(super) fn routes() -> Router<Shared> {
    let served = Router::new().route("/v1/messages", post(messages));
    NOT_THERE
        .iter()
        .fold(served, |routes, path| routes.route(path, any(not_there)))
}

async fn not_there(request: Request) -> Response {
    Refusal::not_there(request.uri().path()).render(Shape::Anthropic)
}

async fn messages(
    State(app): State<Shared>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response, AnthropicError> {
    let mut plan = ask::messages(body::json(request).await?, &caller)?;
    let asks = std::slice::from_mut(&mut plan.ask);
    plan.hearing
        .settle(&app, &caller, asks, plan.thinking)
        .await?;
    let mut jobs = submit(&app, &caller, vec![plan.ask]).await?;
    let Some(running) = jobs.pop() else {
        return Err(Refusal::internal("no job was taken").into());
    };
    if !plan.stream {
        return Ok(answer::whole(running.whole().await?, &plan.hearing));
    }
    let mut headers = HeaderMap::new();
    tell_running(&mut headers, std::slice::from_ref(&running));
    let model = running.model.clone();
    let feed = Feed::new(vec![running]);
    let writer = events::EventWriter::new(feed.job(0), model, &plan.hearing);
    let mut response = sse::response(news::stream(writer, feed));
    response.headers_mut().extend(headers);
    Ok(response)
}
