//! `POST /v1/responses`, without a memory: what a request does not say is not known.
//!
//! Nothing is stored, whatever `store` asks for, and the answer says so (`store: false`); a request that goes on from what
//! would have been stored is refused.

mod answer;
mod ask;
mod events;
mod types;

use std::time::SystemTime;

use axum::Extension;
use axum::extract::{Request, State};
use axum::http::HeaderMap;
use axum::response::Response;

use crate::http::error::{OpenAiError, Refusal};
use crate::http::guard::Caller;
use crate::http::job::{Feed, submit, tell_running};
use crate::http::names::unix_seconds;
use crate::http::{App, Shared, body, news, sse};

/// Where the prompt is.
const INPUT: &str = "input";

pub(super) async fn responses(
    State(app): State<Shared>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response, OpenAiError> {
    let plan = ask::responses(body::json(request).await?, &caller)?;
    let answer = carry_out(&app, &caller, plan).await;
    Ok(answer.map_err(|refusal| refusal.of_prompt_in(INPUT))?)
}

async fn carry_out(app: &App, caller: &Caller, mut plan: ask::Plan) -> Result<Response, Refusal> {
    let asks = std::slice::from_mut(&mut plan.ask);
    plan.hearing
        .settle(app, caller, asks, plan.thinking)
        .await?;
    let mut jobs = submit(app, caller, vec![plan.ask]).await?;
    let Some(running) = jobs.pop() else {
        return Err(Refusal::internal("no job was taken"));
    };
    let now = unix_seconds(SystemTime::now());
    if !plan.stream {
        let answer = running.whole().await?;
        return Ok(answer::whole(answer, &plan.hearing, plan.echo, now));
    }
    let mut headers = HeaderMap::new();
    tell_running(&mut headers, std::slice::from_ref(&running));
    let model = running.model.clone();
    let feed = Feed::new(vec![running]);
    let frame = answer::Frame::new(feed.job(0), model, now, plan.echo);
    let writer = events::EventWriter::new(frame, &plan.hearing);
    let mut response = sse::response(news::stream(writer, feed));
    response.headers_mut().extend(headers);
    Ok(response)
}
