//! `GET /api/tags` (models usable now, own first) and `GET /api/ps` (what is loaded here, and what waits).

use axum::extract::State;
use axum::{Extension, Json};
use serde::Serialize;

use crate::door::{Call, Client, JobRole, JobView, ModelView, WorkerView};
use crate::http::error::OllamaError;
use crate::http::guard::Caller;
use crate::http::names::{parameter_size, rfc3339_ms, scope_name};
use crate::http::{Shared, lists};
use crate::thoughts::capabilities;

#[derive(Serialize)]
pub(super) struct Tags {
    models: Vec<Tag>,
}

#[derive(Serialize)]
struct Tag {
    name: String,
    model: String,
    modified_at: String,
    size: u64,
    digest: String,
    details: ModelDetails,
    capabilities: Vec<String>,
    substrate: Where,
}

/// Where a model is; clients that do not know the field skip it.
#[derive(Serialize)]
struct Where {
    own: bool,
    loaded: bool,
    nodes: usize,
}

#[derive(Serialize)]
pub(super) struct ModelDetails {
    parent_model: String,
    format: &'static str,
    family: String,
    families: Vec<String>,
    parameter_size: String,
    quantization_level: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    context_length: Option<u32>,
}

impl ModelDetails {
    fn new(arch: &str, quant: &str, n_params: u64, context: Option<u32>) -> Self {
        Self {
            parent_model: String::new(),
            format: "gguf",
            family: arch.to_owned(),
            families: vec![arch.to_owned()],
            parameter_size: parameter_size(n_params),
            quantization_level: quant.to_owned(),
            context_length: context,
        }
    }

    /// The same, of a model that was made from another.
    pub(super) fn made_from(self, parent_model: String) -> Self {
        Self {
            parent_model,
            ..self
        }
    }

    pub(super) fn of(view: &ModelView) -> Self {
        Self::new(&view.arch, &view.quant, view.n_params, Some(view.context))
    }
}

impl From<ModelView> for Tag {
    fn from(view: ModelView) -> Self {
        Self {
            details: ModelDetails::of(&view),
            model: view.name.clone(),
            name: view.name,
            modified_at: rfc3339_ms(view.modified_ms),
            size: view.size,
            digest: view.digest.to_string(),
            capabilities: capabilities(
                &view.arch,
                view.template.as_deref().unwrap_or_default(),
                view.sees,
            ),
            substrate: Where {
                own: view.own,
                loaded: view.loaded,
                nodes: view.nodes.len(),
            },
        }
    }
}

pub(super) async fn tags(
    State(app): State<Shared>,
    Extension(caller): Extension<Caller>,
) -> Result<Json<Tags>, OllamaError> {
    let models = lists::models(&app, &caller).await?;
    Ok(Json(Tags {
        models: models.into_iter().map(Tag::from).collect(),
    }))
}

#[derive(Serialize)]
pub(super) struct Loaded {
    models: Vec<Worker>,
    /// Models being loaded, apart: Ollama's clients take those of `models` for ready.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    loading: Vec<Coming>,
    /// Jobs of this daemon: all of them for callers on this machine and for holders of an admin key, its own for
    /// any other key.
    substrate: Vec<Job>,
}

#[derive(Serialize)]
struct Worker {
    name: String,
    model: String,
    size: u64,
    digest: String,
    details: ModelDetails,
    expires_at: String,
    size_vram: u64,
    context_length: u32,
}

#[derive(Serialize)]
struct Coming {
    name: String,
    digest: String,
    state: &'static str,
}

#[derive(Serialize)]
struct Job {
    job: String,
    role: &'static str,
    model: String,
    scope: &'static str,
    state: String,
    node: Option<String>,
    position: Option<u32>,
    expected_wait_ms: Option<u64>,
    why: Option<String>,
    tokens: u32,
    attempt: u32,
    age_ms: u64,
}

impl From<WorkerView> for Worker {
    fn from(view: WorkerView) -> Self {
        Self {
            details: ModelDetails::new(&view.arch, &view.quant, view.n_params, None),
            model: view.model.clone(),
            name: view.model,
            size: view.memory,
            digest: view.digest.to_string(),
            expires_at: view.expires_ms.map_or_else(|| NEVER.to_owned(), rfc3339_ms),
            size_vram: 0,
            context_length: view.context,
        }
    }
}

/// A time for "never" that every client's calendar can still shift to its own zone.
const NEVER: &str = "2999-12-31T23:59:59.000000000Z";

impl From<JobView> for Job {
    fn from(view: JobView) -> Self {
        let queue = view.queue;
        Self {
            job: view.job.to_string(),
            role: match view.role {
                JobRole::Requested => "requested",
                JobRole::Serving => "serving",
            },
            model: view.model,
            scope: scope_name(view.scope),
            state: view.state,
            node: view.peer.map(|peer| peer.to_string()),
            position: queue.as_ref().map(|news| news.position),
            expected_wait_ms: queue.as_ref().map(|news| news.expected_wait_ms),
            why: queue.map(|news| news.why),
            tokens: view.tokens,
            attempt: view.attempt,
            age_ms: view.age_ms,
        }
    }
}

pub(super) async fn ps(
    State(app): State<Shared>,
    Extension(caller): Extension<Caller>,
) -> Result<Json<Loaded>, OllamaError> {
    let workers = app.door.call(|reply| Call::Workers { reply }).await?;
    let mut jobs = app.door.call(|reply| Call::Jobs { reply }).await?;
    if !caller.admin && caller.client != Client::Anonymous {
        jobs.retain(|job| job.client.as_ref() == Some(&caller.client));
    }
    let (ready, coming): (Vec<_>, Vec<_>) = workers
        .into_iter()
        .partition(|worker| worker.loading.is_none());
    let coming = coming.into_iter().filter_map(|worker| {
        Some(Coming {
            state: worker.loading?,
            digest: worker.digest.to_string(),
            name: worker.model,
        })
    });
    Ok(Json(Loaded {
        models: ready.into_iter().map(Worker::from).collect(),
        loading: coming.collect(),
        substrate: jobs.into_iter().map(Job::from).collect(),
    }))
}
