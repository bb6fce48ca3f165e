//! `POST /api/pull`, `POST /api/copy`, `DELETE /api/delete`: what changes the models on this machine.
//!
//! Invariant: none of them does anything for a caller without a key, and only a key with the admin
//! right signs, copies or deletes (DESIGN 10).

use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use futures::Stream;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::sync::mpsc;

use super::types::{CopyRequest, PullRequest, ShowRequest, asked_model};
use crate::door::Call;
use crate::http::actions::{ActionError, PullProgress, PullRights, PullStream};
use crate::http::error::{OllamaError, Refusal, Shape};
use crate::http::guard::Caller;
use crate::http::names::model_name;
use crate::http::{Shared, body, lists, ndjson};

pub(super) async fn pull(
    State(app): State<Shared>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response, OllamaError> {
    caller.must_have_key("pull models")?;
    let PullRequest {
        model,
        name,
        stream,
    } = json_body(request).await?;
    let model = asked_model(model, name)?;
    let rights = if caller.admin {
        PullRights::MaySign
    } else {
        PullRights::AdoptOnly
    };
    let progress = match app.models.pull(model.clone(), rights).await {
        Ok(progress) => progress,
        Err(error) => of_another_node(&app, &caller, &model)
            .await
            .ok_or_else(|| Refusal::from(error))?,
    };
    Ok(told(app, progress, stream, BROKE_OFF).await?)
}

/// Steps as lines, or only their end. `broke_off` is told where they end without success.
pub(super) async fn told(
    app: Shared,
    progress: PullStream,
    stream: Option<bool>,
    broke_off: &'static str,
) -> Result<Response, Refusal> {
    if stream.unwrap_or(true) {
        return Ok(ndjson::response(lines(app, progress, broke_off)));
    }
    to_its_end(&app, progress, broke_off).await?;
    Ok(Json(json!({ "status": SUCCESS })).into_response())
}

/// A model that cannot be pulled and need not be: another node in the caller's scope holds it. Clients pull before they
/// ask, so the pull ends well, and says why there was nothing to do.
async fn of_another_node(app: &Shared, caller: &Caller, model: &str) -> Option<PullStream> {
    let listed = lists::model(app, caller, model).await.ok()?;
    if listed.own {
        return None;
    }
    let (sender, progress) = mpsc::channel(2);
    let status = format!(
        "{} is held by another node and usable as it is; nothing is fetched",
        listed.name
    );
    for status in [status, SUCCESS.to_owned()] {
        let line = PullProgress {
            status,
            digest: None,
            total: None,
            completed: None,
        };
        // Both fit the channel.
        let _ = sender.try_send(Ok(line));
    }
    Some(progress)
}

async fn to_its_end(
    app: &Shared,
    mut progress: PullStream,
    broke_off: &'static str,
) -> Result<(), Refusal> {
    let mut succeeded = false;
    while let Some(step) = progress.recv().await {
        succeeded = step?.status == SUCCESS;
    }
    changed(app).await;
    if succeeded {
        Ok(())
    } else {
        Err(Refusal::internal(broke_off))
    }
}

/// The last status of what went well.
pub(super) const SUCCESS: &str = "success";

const BROKE_OFF: &str = "the pull broke off; ask again and it goes on where it stopped";

fn lines(
    app: Shared,
    mut progress: PullStream,
    broke_off: &'static str,
) -> impl Stream<Item = String> + Send {
    async_stream::stream! {
        let mut told_end = false;
        while let Some(step) = progress.recv().await {
            let line = match step {
                Ok(step) => {
                    told_end = step.status == SUCCESS;
                    if told_end {
                        changed(&app).await;
                    }
                    ndjson::line(&step)
                }
                Err(error) => {
                    told_end = true;
                    ndjson::line(&Refusal::from(error).body(Shape::Ollama))
                }
            };
            yield line;
        }
        if !told_end {
            yield ndjson::line(&Refusal::internal(broke_off).body(Shape::Ollama));
        }
    }
}

pub(super) async fn copy(
    State(app): State<Shared>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<StatusCode, OllamaError> {
    caller.must_be_admin("copy models")?;
    let CopyRequest {
        source,
        destination,
    } = json_body(request).await?;
    let (source, destination) = (
        model_name("source", &source)?,
        model_name("destination", &destination)?,
    );
    app.models
        .copy(source, destination)
        .await
        .map_err(Refusal::from)?;
    changed(&app).await;
    Ok(StatusCode::OK)
}

pub(super) async fn delete(
    State(app): State<Shared>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<StatusCode, OllamaError> {
    caller.must_be_admin("delete models")?;
    let ShowRequest { model, name } = json_body(request).await?;
    app.models
        .delete(asked_model(model, name)?)
        .await
        .map_err(Refusal::from)?;
    changed(&app).await;
    Ok(StatusCode::OK)
}

/// A body that a web page cannot send without asking first.
pub(super) async fn json_body<T: DeserializeOwned>(request: Request) -> Result<T, Refusal> {
    let kind = request
        .headers()
        .get(header::CONTENT_TYPE)
        .and_then(|kind| kind.to_str().ok())
        .unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    if !kind.eq_ignore_ascii_case("application/json") {
        return Err(Refusal::not_json());
    }
    body::json(request).await
}

/// Tells the daemon to read its list again. If it is stopping it will read it when it starts.
async fn changed(app: &Shared) {
    if app
        .door
        .call(|reply| Call::ModelsChanged { reply })
        .await
        .is_err()
    {
        tracing::debug!("the daemon stopped before it read the changed list of models");
    }
}

impl From<ActionError> for Refusal {
    fn from(error: ActionError) -> Self {
        let why = error.to_string();
        match error {
            ActionError::Unknown { model, similar } => Self::unknown_model(&model, similar),
            ActionError::NotFound { .. } => Self::not_found(why),
            ActionError::BadName { .. } => Self::invalid("model", why),
            ActionError::Invalid { param, .. } => Self::invalid(param, why),
            ActionError::NoSpace { .. } => Self::no_room(why),
            ActionError::Forbidden { .. } => Self::forbidden(why),
            ActionError::Failed { .. } => Self::internal(why),
        }
    }
}
