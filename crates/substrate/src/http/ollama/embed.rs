//! `POST /api/embed`, and `POST /api/embeddings` as it was before: vectors of texts.

use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};

use super::lines::keep;
use super::types::{KeepAlive, asked_model};
use crate::door::Call;
use crate::http::embed::{Texts, Wanted, embed as embedded};
use crate::http::error::{OllamaError, Refusal};
use crate::http::guard::Caller;
use crate::http::job::{Answer, Facts, tell_finished};
use crate::http::{Shared, body};

#[derive(Deserialize)]
struct Wish {
    model: Option<String>,
    name: Option<String>,
    #[serde(default)]
    input: Texts,
    truncate: Option<bool>,
    dimensions: Option<i64>,
    keep_alive: Option<KeepAlive>,
}

#[derive(Serialize)]
struct Told {
    model: String,
    embeddings: Vec<Vec<f32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    total_duration: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    load_duration: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_eval_count: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    substrate: Option<Facts>,
}

#[derive(Deserialize)]
struct OldWish {
    model: Option<String>,
    name: Option<String>,
    prompt: Option<String>,
    keep_alive: Option<KeepAlive>,
}

#[derive(Serialize)]
struct OldTold {
    embedding: Vec<f32>,
}

pub(super) async fn embed(
    State(app): State<Shared>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response, OllamaError> {
    let wish: Wish = body::json(request).await?;
    let model = asked_model(wish.model, wish.name)?;
    let texts = wish.input.0;
    if texts.is_empty() {
        load(&app, &model, wish.keep_alive).await?;
        return Ok(Json(Told {
            model,
            embeddings: Vec::new(),
            total_duration: None,
            load_duration: None,
            prompt_eval_count: None,
            substrate: None,
        })
        .into_response());
    }
    let wanted = Wanted {
        model,
        texts,
        truncate: wish.truncate.unwrap_or(true),
        dimensions: wish.dimensions,
    };
    let (answer, embeddings) = vectors(&app, &caller, wanted, wish.keep_alive).await?;
    let nanoseconds = |ms: u64| Some(ms.saturating_mul(1_000_000));
    let told = Told {
        model: answer.model.clone(),
        embeddings,
        total_duration: nanoseconds(answer.summary.timings.total),
        load_duration: nanoseconds(answer.summary.timings.load),
        prompt_eval_count: Some(answer.summary.n_in),
        substrate: Some(Facts::new(answer.job, &answer.summary)),
    };
    Ok(with_headers(Json(told).into_response(), answer))
}

pub(super) async fn embeddings(
    State(app): State<Shared>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response, OllamaError> {
    let wish: OldWish = body::json(request).await?;
    let model = asked_model(wish.model, wish.name)?;
    let Some(prompt) = wish.prompt.filter(|prompt| !prompt.is_empty()) else {
        load(&app, &model, wish.keep_alive).await?;
        let embedding = Vec::new();
        return Ok(Json(OldTold { embedding }).into_response());
    };
    let wanted = Wanted {
        model,
        texts: vec![prompt],
        truncate: true,
        dimensions: None,
    };
    let (answer, mut rows) = vectors(&app, &caller, wanted, wish.keep_alive).await?;
    let embedding = rows.pop().unwrap_or_default();
    let response = Json(OldTold { embedding }).into_response();
    Ok(with_headers(response, answer))
}

fn with_headers(mut response: Response, answer: Answer) -> Response {
    tell_finished(response.headers_mut(), &[answer]);
    response
}

async fn vectors(
    app: &Shared,
    caller: &Caller,
    wanted: Wanted,
    keep_alive: Option<KeepAlive>,
) -> Result<(Answer, Vec<Vec<f32>>), Refusal> {
    let told = embedded(app, caller, wanted).await?;
    keep(app, &told.0.model, keep_alive).await;
    Ok(told)
}

/// A request without a text only loads the model.
async fn load(app: &Shared, model: &str, keep_alive: Option<KeepAlive>) -> Result<(), Refusal> {
    let name = model.to_owned();
    app.door
        .call(|reply| Call::Load { model: name, reply })
        .await??;
    keep(app, model, keep_alive).await;
    Ok(())
}
