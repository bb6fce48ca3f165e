//! `/v1/batches`: many requests in one file, answered when there is time.

use std::collections::BTreeMap;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, Request, State};
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};

use super::files::{Page, file_id, limit, on_disk, query};
use crate::batches::{self, BatchError, Batches, Counts, Endpoint, Wanted, Wrong};
use crate::door::Call;
use crate::http::error::{OpenAiError, Refusal, clipped};
use crate::http::guard::{Caller, ISOLATED};
use crate::http::names::scope_name;
use crate::http::{Shared, body};
use crate::kept::{BatchId, expiry};

/// The one window that OpenAI's API knows.
const WINDOW: &str = "24h";

/// OpenAI's limits for the client's own words.
const MAX_PAIRS: usize = 16;
const MAX_KEY: usize = 64;
const MAX_WORDS: usize = 512;

/// Batches in a list if the caller does not say, and at most: OpenAI's.
const LISTED: usize = 20;
const MOST_LISTED: usize = 100;

#[derive(Deserialize)]
struct Wish {
    #[serde(default)]
    input_file_id: String,
    #[serde(default)]
    endpoint: String,
    #[serde(default)]
    completion_window: String,
    metadata: Option<BTreeMap<String, String>>,
    output_expires_after: Option<Life>,
}

#[derive(Deserialize)]
struct Life {
    #[serde(default)]
    anchor: String,
    #[serde(default)]
    seconds: i64,
}

/// A batch as OpenAI's clients read it.
#[derive(Serialize)]
pub(super) struct Batch {
    id: String,
    object: &'static str,
    endpoint: &'static str,
    errors: Option<Errors>,
    input_file_id: String,
    completion_window: &'static str,
    status: &'static str,
    output_file_id: Option<String>,
    error_file_id: Option<String>,
    created_at: u64,
    in_progress_at: Option<u64>,
    expires_at: u64,
    finalizing_at: Option<u64>,
    completed_at: Option<u64>,
    failed_at: Option<u64>,
    expired_at: Option<u64>,
    cancelling_at: Option<u64>,
    cancelled_at: Option<u64>,
    request_counts: Counts,
    metadata: Option<BTreeMap<String, String>>,
}

#[derive(Serialize)]
struct Errors {
    object: &'static str,
    data: Vec<Wrong>,
}

impl From<batches::Batch> for Batch {
    fn from(batch: batches::Batch) -> Self {
        let stamps = batch.stamps;
        Self {
            id: batch.id.to_string(),
            object: "batch",
            endpoint: batch.endpoint.path(),
            errors: (!batch.wrong.is_empty()).then_some(Errors {
                object: "list",
                data: batch.wrong,
            }),
            input_file_id: batch.input.to_string(),
            completion_window: WINDOW,
            status: batch.status.word(),
            output_file_id: batch.output.map(|id| id.to_string()),
            error_file_id: batch.errors.map(|id| id.to_string()),
            created_at: stamps.created_at,
            in_progress_at: stamps.in_progress_at,
            expires_at: stamps.expires_at,
            finalizing_at: stamps.finalizing_at,
            completed_at: stamps.completed_at,
            failed_at: stamps.failed_at,
            expired_at: stamps.expired_at,
            cancelling_at: stamps.cancelling_at,
            cancelled_at: stamps.cancelled_at,
            request_counts: batch.counts,
            metadata: batch.metadata,
        }
    }
}

pub(super) async fn create(
    State(app): State<Shared>,
    Extension(batches): Extension<Batches>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Json<Batch>, OpenAiError> {
    if caller.isolated {
        let why = "the lines of a batch share workers: ask for each answer by itself instead";
        return Err(Refusal::invalid(ISOLATED.as_str(), why).into());
    }
    let wish: Wish = body::json(request).await?;
    let status = app.door.call(|reply| Call::Status { reply });
    let network = status.await.map_err(Refusal::from)?.network.1;
    let wanted = Wanted {
        owner: caller.client.clone(),
        scope: scope_name(caller.scope).into(),
        network: network.to_string().into(),
        endpoint: endpoint(&wish.endpoint)?,
        input: file_id(&wish.input_file_id).map_err(|refusal| refusal.at("input_file_id"))?,
        metadata: metadata(wish.metadata)?,
        files_live: wish.output_expires_after.map(life).transpose()?,
    };
    if wish.completion_window != WINDOW {
        let why = format!(
            "completion_window must be {WINDOW}, not '{}'",
            clipped(&wish.completion_window)
        );
        return Err(Refusal::invalid("completion_window", why).into());
    }
    let made = on_disk(move || Ok(batches.create(wanted)?)).await?;
    Ok(Json(made.into()))
}

#[derive(Deserialize)]
pub(super) struct Which {
    limit: Option<i64>,
    after: Option<String>,
}

pub(super) async fn list(
    Extension(batches): Extension<Batches>,
    Extension(caller): Extension<Caller>,
    which: Result<Query<Which>, QueryRejection>,
) -> Result<Json<Page<Batch>>, OpenAiError> {
    let which = query(which)?;
    let limit = limit(which.limit, LISTED, MOST_LISTED)?;
    let listed = on_disk(move || Ok(batches.list(&caller.client))).await?;
    let listed = listed.into_iter().map(Batch::from).collect();
    let after = which.after.as_deref();
    Ok(Json(Page::of(
        listed,
        |batch| batch.id.clone(),
        after,
        limit,
    )?))
}

pub(super) async fn one(
    Extension(batches): Extension<Batches>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<Json<Batch>, OpenAiError> {
    let id = batch_id(&id)?;
    let batch = on_disk(move || Ok(batches.get(&caller.client, id)?)).await?;
    Ok(Json(batch.into()))
}

pub(super) async fn cancel(
    Extension(batches): Extension<Batches>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<Json<Batch>, OpenAiError> {
    let id = batch_id(&id)?;
    let batch = on_disk(move || Ok(batches.cancel(&caller.client, id)?)).await?;
    Ok(Json(batch.into()))
}

fn batch_id(asked: &str) -> Result<BatchId, Refusal> {
    asked
        .parse()
        .map_err(|_| Refusal::not_found(format!("no such batch: {}", clipped(asked))))
}

fn endpoint(asked: &str) -> Result<Endpoint, Refusal> {
    Endpoint::of(asked).ok_or_else(|| {
        let all = Endpoint::ALL.map(Endpoint::path).join(", ");
        let why = format!("endpoint must be one of {all}, not '{}'", clipped(asked));
        Refusal::invalid("endpoint", why)
    })
}

fn metadata(
    words: Option<BTreeMap<String, String>>,
) -> Result<Option<BTreeMap<String, String>>, Refusal> {
    let fits = |(key, value): (&String, &String)| {
        key.chars().count() <= MAX_KEY && value.chars().count() <= MAX_WORDS
    };
    match words {
        Some(words) if words.len() > MAX_PAIRS || !words.iter().all(fits) => {
            let why = format!(
                "metadata may have {MAX_PAIRS} pairs, with keys of {MAX_KEY} and values of {MAX_WORDS} letters"
            );
            Err(Refusal::invalid("metadata", why))
        }
        words => Ok(words),
    }
}

/// How long the files of a batch are to live, in seconds.
fn life(life: Life) -> Result<u64, Refusal> {
    let param = "output_expires_after";
    if life.anchor != "created_at" {
        return Err(Refusal::invalid(param, "the anchor must be created_at"));
    }
    expiry(0, life.seconds)
        .map(|ms| ms / 1_000)
        .map_err(|why| Refusal::invalid(param, why))
}

impl From<BatchError> for Refusal {
    fn from(error: BatchError) -> Self {
        let why = error.to_string();
        match error {
            BatchError::Unknown(_) => Self::not_found(why),
            BatchError::Over { .. } => Self::not_now("batch_over", why),
            BatchError::NotABatch { .. } => Self::invalid("input_file_id", why),
            BatchError::TooMany(_) => Self::not_now("too_many_batches", why),
            BatchError::Kept(error) => error.into(),
            BatchError::File(error) => error.into(),
        }
    }
}
