//! `GET /v1/models`: every model usable now in the caller's scope, own first.

use axum::extract::{Path, State};
use axum::{Extension, Json};
use serde::Serialize;

use crate::door::ModelView;
use crate::http::error::OpenAiError;
use crate::http::guard::Caller;
use crate::http::names::model_name;
use crate::http::{Shared, lists};

#[derive(Serialize)]
pub(super) struct ModelList {
    object: &'static str,
    data: Vec<Model>,
}

#[derive(Serialize)]
pub(super) struct Model {
    id: String,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
    substrate: Where,
}

/// Where a model is; clients that do not know the field skip it.
#[derive(Serialize)]
struct Where {
    own: bool,
    loaded: bool,
    nodes: usize,
    sha256: String,
}

impl From<ModelView> for Model {
    fn from(view: ModelView) -> Self {
        Self {
            id: view.name,
            object: "model",
            created: view.modified_ms / 1_000,
            owned_by: if view.own { "this-machine" } else { "mesh" },
            substrate: Where {
                own: view.own,
                loaded: view.loaded,
                nodes: view.nodes.len(),
                sha256: view.digest.to_string(),
            },
        }
    }
}

pub(super) async fn list(
    State(app): State<Shared>,
    Extension(caller): Extension<Caller>,
) -> Result<Json<ModelList>, OpenAiError> {
    let models = lists::models(&app, &caller).await?;
    Ok(Json(ModelList {
        object: "list",
        data: models.into_iter().map(Model::from).collect(),
    }))
}

pub(super) async fn one(
    State(app): State<Shared>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<Json<Model>, OpenAiError> {
    let view = lists::model(&app, &caller, &model_name("model", &id)?).await?;
    Ok(Json(view.into()))
}
