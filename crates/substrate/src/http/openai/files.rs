//! `/v1/files`: files that a client wants kept on this machine, for its batches and for itself.
//!
//! Invariant: a caller sees its own files only. Whether one exists that is another's is not told.
//! Absent by design: uses that this machine has none for (`fine-tune`, `evals`, `assistants`, `vision`).

mod upload;

use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use tokio_util::io::ReaderStream;

use crate::batches::Batches;
use crate::files::FileError;
use crate::grpc::desk::now_ms;
use crate::http::error::{OpenAiError, Refusal, clipped};
use crate::http::guard::Caller;
use crate::kept::{FileId, KeptError, KeptFile, Purpose};

/// Most files in one list, and as many as there are if the caller does not say: OpenAI's 10,000.
const MOST_LISTED: usize = 10_000;

/// Read from the disk and sent at a time.
const PIECE: usize = 64 << 10;

/// A file as OpenAI's clients read it.
#[derive(Serialize)]
pub(super) struct File {
    id: String,
    object: &'static str,
    bytes: u64,
    created_at: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<u64>,
    filename: String,
    purpose: &'static str,
    /// Deprecated there, and still expected.
    status: &'static str,
}

impl From<KeptFile> for File {
    fn from(file: KeptFile) -> Self {
        Self {
            id: file.id.to_string(),
            object: "file",
            bytes: file.bytes,
            created_at: file.created_ms / 1_000,
            expires_at: file.expires_ms.map(|at| at / 1_000),
            filename: file.filename,
            purpose: file.purpose.word(),
            status: "processed",
        }
    }
}

/// A page of a list.
#[derive(Serialize)]
pub(super) struct Page<T> {
    object: &'static str,
    data: Vec<T>,
    first_id: Option<String>,
    last_id: Option<String>,
    has_more: bool,
}

impl<T> Page<T> {
    /// The part of `all` after the element with the name `after`, at most `limit` of it. A name that is not there begins
    /// nothing: it was deleted meanwhile, or was never the caller's.
    pub(super) fn of(
        all: Vec<T>,
        name: impl Fn(&T) -> String,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Self, Refusal> {
        let from = match after {
            None => 0,
            Some(after) => {
                let at = all.iter().position(|one| name(one) == after);
                let unknown = || {
                    let why = format!("after names nothing in this list: '{}'", clipped(after));
                    Refusal::invalid("after", why)
                };
                at.ok_or_else(unknown)? + 1
            }
        };
        let has_more = all.len() - from > limit;
        let data: Vec<T> = all.into_iter().skip(from).take(limit).collect();
        Ok(Self {
            object: "list",
            first_id: data.first().map(&name),
            last_id: data.last().map(&name),
            data,
            has_more,
        })
    }
}

#[derive(Deserialize)]
pub(super) struct Which {
    limit: Option<i64>,
    after: Option<String>,
    order: Option<String>,
    purpose: Option<String>,
}

pub(super) use upload::upload;

pub(super) async fn list(
    Extension(batches): Extension<Batches>,
    Extension(caller): Extension<Caller>,
    which: Result<Query<Which>, QueryRejection>,
) -> Result<Json<Page<File>>, OpenAiError> {
    let which = query(which)?;
    let limit = limit(which.limit, MOST_LISTED, MOST_LISTED)?;
    let newest_first = match which.order.as_deref() {
        None | Some("desc") => true,
        Some("asc") => false,
        Some(other) => {
            let why = format!("order must be asc or desc, not '{}'", clipped(other));
            return Err(Refusal::invalid("order", why).into());
        }
    };
    let mut files = on_disk(move || Ok(batches.kept().list(&caller.client, now_ms()))).await?;
    if newest_first {
        files.reverse();
    }
    if let Some(purpose) = &which.purpose {
        files.retain(|file| file.purpose.word() == purpose);
    }
    let files = files.into_iter().map(File::from).collect();
    let after = which.after.as_deref();
    Ok(Json(Page::of(files, |file| file.id.clone(), after, limit)?))
}

pub(super) async fn one(
    Extension(batches): Extension<Batches>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<Json<File>, OpenAiError> {
    let id = file_id(&id)?;
    let file = on_disk(move || Ok(batches.kept().get(&caller.client, id, now_ms())?)).await?;
    Ok(Json(file.into()))
}

#[derive(Serialize)]
pub(super) struct Deleted {
    id: String,
    object: &'static str,
    deleted: bool,
}

pub(super) async fn delete(
    Extension(batches): Extension<Batches>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<Json<Deleted>, OpenAiError> {
    let id = file_id(&id)?;
    on_disk(move || Ok(batches.kept().delete(&caller.client, id, now_ms())?)).await?;
    Ok(Json(Deleted {
        id: id.to_string(),
        object: "file",
        deleted: true,
    }))
}

/// The bytes, as the client reads them.
pub(super) async fn content(
    Extension(batches): Extension<Batches>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<Response, OpenAiError> {
    let id = file_id(&id)?;
    let (file, bytes) =
        on_disk(move || Ok(batches.kept().read(&caller.client, id, now_ms())?)).await?;
    let bytes = ReaderStream::with_capacity(tokio::fs::File::from_std(bytes), PIECE);
    let kind = HeaderValue::from_static("application/octet-stream");
    let length = HeaderValue::from(file.bytes);
    let headers = [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_LENGTH, length),
    ];
    Ok((headers, Body::from_stream(bytes)).into_response())
}

/// A file's name as asked for.
pub(super) fn file_id(asked: &str) -> Result<FileId, Refusal> {
    asked
        .parse()
        .map_err(|_| Refusal::not_found(format!("no such file: {}", clipped(asked))))
}

/// What a URL asks for.
pub(super) fn query<T>(asked: Result<Query<T>, QueryRejection>) -> Result<T, Refusal> {
    asked
        .map(|Query(asked)| asked)
        .map_err(|error| Refusal::unreadable(error.body_text()))
}

/// How many of a list are wanted.
pub(super) fn limit(asked: Option<i64>, usual: usize, most: usize) -> Result<usize, Refusal> {
    let Some(asked) = asked else { return Ok(usual) };
    match usize::try_from(asked) {
        Ok(asked) if (1..=most).contains(&asked) => Ok(asked),
        _ => Err(Refusal::invalid(
            "limit",
            format!("limit must be between 1 and {most}, not {asked}"),
        )),
    }
}

/// Runs what waits for the disk where it may wait.
pub(super) async fn on_disk<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Refusal> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => Err(Refusal::internal(format!("a task ended early: {error}"))),
    }
}

impl From<KeptError> for Refusal {
    fn from(error: KeptError) -> Self {
        let why = error.to_string();
        match error {
            KeptError::Unknown(_) => Self::not_found(why),
            KeptError::InUse(_) => Self::not_now("file_in_use", why),
            KeptError::TooLarge => Self::too_large_file(why),
            KeptError::Full(_) => Self::no_room(why),
            KeptError::File(error) => error.into(),
        }
    }
}

impl From<FileError> for Refusal {
    fn from(error: FileError) -> Self {
        match error {
            FileError::DiskFull { .. } => Self::no_room(
                "the disk of this machine is full: delete files that are not needed any more",
            ),
            error => {
                // A path of this machine is nobody else's business.
                tracing::error!(%error, "a client's file could not be used");
                Self::internal("the disk of this machine failed; its log has more")
            }
        }
    }
}

/// What a file may be for, by the word that clients write.
fn purpose(word: &str) -> Result<Purpose, Refusal> {
    match word {
        "batch" => Ok(Purpose::Batch),
        "user_data" => Ok(Purpose::UserData),
        "fine-tune" | "evals" | "assistants" | "vision" => {
            let what = format!("the purpose '{word}' (there are batch and user_data)");
            Err(Refusal::not_yet("purpose", &what))
        }
        other => {
            let why = format!(
                "purpose must be batch or user_data, not '{}'",
                clipped(other)
            );
            Err(Refusal::invalid("purpose", why))
        }
    }
}
