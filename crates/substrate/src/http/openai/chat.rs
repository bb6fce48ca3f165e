//! `POST /v1/chat/completions`, and the walk that both completion routes share: plan, submit, answer.

use std::time::SystemTime;

use axum::Extension;
use axum::extract::{Request, State};
use axum::response::Response;
use futures::future::try_join_all;

use super::answer::{Kind, whole};
use super::ask::{self, Plan};
use super::chunks::ChunkWriter;
use crate::http::error::{OpenAiError, Refusal};
use crate::http::guard::Caller;
use crate::http::job::{Feed, Running, submit, tell_running};
use crate::http::names::unix_seconds;
use crate::http::news::stream;
use crate::http::{App, Shared, body, sse};

pub(super) async fn chat(
    State(app): State<Shared>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response, OpenAiError> {
    let mut plan = ask::chat(body::json(request).await?, &caller)?;
    let thinking = plan.thinking;
    plan.hearing
        .settle(&app, &caller, &mut plan.asks, thinking)
        .await?;
    Ok(answer(&app, &caller, Kind::Chat, plan).await?)
}

/// Plans are carried out here; a refusal names the field the prompt came in.
pub(super) async fn answer(
    app: &App,
    caller: &Caller,
    kind: Kind,
    plan: Plan,
) -> Result<Response, Refusal> {
    let answer = carry_out(app, caller, kind, plan).await;
    answer.map_err(|refusal| kind.refusal(refusal))
}

async fn carry_out(
    app: &App,
    caller: &Caller,
    kind: Kind,
    mut plan: Plan,
) -> Result<Response, Refusal> {
    let choices = plan.asks.len();
    let jobs = submit(app, caller, std::mem::take(&mut plan.asks)).await?;
    if !plan.stream {
        let answers = try_join_all(jobs.into_iter().map(Running::whole)).await?;
        return Ok(whole(kind, answers, &plan, SystemTime::now()));
    }
    let mut headers = axum::http::HeaderMap::new();
    tell_running(&mut headers, &jobs);
    let model = jobs
        .first()
        .map(|running| running.model.clone())
        .unwrap_or_default();
    let feed = Feed::new(jobs);
    let writer = ChunkWriter::new(
        kind,
        feed.job(0),
        unix_seconds(SystemTime::now()),
        model,
        choices,
        &plan,
    );
    let mut response = sse::response(stream(writer, feed));
    response.headers_mut().extend(headers);
    Ok(response)
}
