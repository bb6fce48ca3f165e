//! Batches for the machine's owner, who sees everybody's.
//!
//! Invariants: a file is written to disk as it comes; of one that breaks off nothing is left.

use std::io::Read;
use std::pin::Pin;

use futures::Stream;
use substrate_api::v1;
use substrate_record::Scope;
use tonic::{Status, Streaming};

use super::convert::{scope_in, scope_out};
use super::desk::now_ms;
use super::service::off_loop;
use crate::batches::{Batch, BatchError, Batches, Endpoint, Wanted, Wrong};
use crate::door::{Client, scope_word};
use crate::kept::{BatchId, FileId, KeptError, NAME_BYTES, Purpose};

/// A piece of a file on its way: far below the largest message.
const PIECE: usize = 256 << 10;

/// Takes a file and makes a batch of its lines. `usual` is the scope if none is said.
pub(super) async fn submit(
    batches: Batches,
    network: String,
    usual: Scope,
    mut steps: Streaming<v1::SubmitBatchStep>,
) -> Result<v1::Batch, Status> {
    use v1::submit_batch_step::Step;

    let first = steps.message().await?.and_then(|step| step.step);
    let Some(Step::Begin(begin)) = first else {
        return Err(Status::invalid_argument("a batch begins with what to do"));
    };
    let endpoint = Endpoint::of(&begin.endpoint).ok_or_else(|| {
        let all = Endpoint::ALL.map(Endpoint::path).join(", ");
        let why = format!("endpoint must be one of {all}, not '{}'", begin.endpoint);
        Status::invalid_argument(why)
    })?;
    let scope = scope_in(begin.scope)?.unwrap_or(usual);
    if begin.filename.len() > NAME_BYTES {
        let why = format!("the file's name is longer than {NAME_BYTES} bytes");
        return Err(Status::invalid_argument(why));
    }
    let kept = batches.kept().clone();
    let mut file = off_loop(move || {
        kept.writer(&Client::Owner, now_ms())
            .map_err(|error| kept_status(&error))
    })
    .await?;
    while let Some(step) = steps.message().await? {
        let Some(Step::Piece(piece)) = step.step else {
            return Err(Status::invalid_argument("a batch begins once"));
        };
        file = off_loop(move || {
            file.append(&piece).map_err(|error| kept_status(&error))?;
            Ok(file)
        })
        .await?;
    }
    off_loop(move || {
        let file = file.commit(begin.filename, Purpose::Batch, None);
        let file = file.map_err(|error| kept_status(&error))?;
        let made = batches.create(Wanted {
            owner: Client::Owner,
            scope: scope_word(scope).into(),
            network: network.into(),
            endpoint,
            input: file.id,
            metadata: None,
            files_live: None,
        });
        made.map(batch_out).map_err(|error| status(&error))
    })
    .await
}

/// All batches, newest first.
pub(super) async fn list(batches: Batches) -> Result<v1::BatchesReply, Status> {
    off_loop(move || {
        let listed = batches.list(&Client::Owner);
        Ok(v1::BatchesReply {
            batches: listed.into_iter().map(batch_out).collect(),
        })
    })
    .await
}

/// One batch.
pub(super) async fn one(batches: Batches, id: String) -> Result<v1::Batch, Status> {
    off_loop(move || found(&batches, &id).map(batch_out)).await
}

/// Stops one.
pub(super) async fn cancel(batches: Batches, id: String) -> Result<v1::Batch, Status> {
    off_loop(move || {
        let id = found(&batches, &id)?.id;
        let stopped = batches.cancel(&Client::Owner, id);
        stopped.map(batch_out).map_err(|error| status(&error))
    })
    .await
}

/// The pieces of a file.
pub(super) type Pieces = Pin<Box<dyn Stream<Item = Result<v1::FilePiece, Status>> + Send>>;

/// What came of one.
pub(super) async fn output(
    batches: Batches,
    request: v1::BatchOutputRequest,
) -> Result<Pieces, Status> {
    let file = off_loop(move || {
        let batch = found(&batches, &request.id)?;
        let wanted = match request.errors {
            true => batch.errors,
            false => batch.output,
        };
        wanted.map(|id| open(&batches, id)).transpose()
    })
    .await?;
    Ok(Box::pin(async_stream::try_stream! {
        let Some(mut file) = file else { return };
        loop {
            let (back, piece) = off_loop(move || {
                let mut piece = Vec::with_capacity(PIECE);
                let read = file.by_ref().take(PIECE as u64).read_to_end(&mut piece);
                read.map_err(|error| Status::internal(format!("cannot read the file: {error}")))?;
                Ok((file, piece))
            }).await?;
            if piece.is_empty() {
                return;
            }
            file = back;
            yield v1::FilePiece { bytes: piece };
        }
    }))
}

fn open(batches: &Batches, id: FileId) -> Result<std::fs::File, Status> {
    let opened = batches.kept().read(&Client::Owner, id, now_ms());
    opened
        .map(|(_, file)| file)
        .map_err(|error| kept_status(&error))
}

/// A batch by its name, or by the beginning of it that is no other's.
fn found(batches: &Batches, typed: &str) -> Result<Batch, Status> {
    if let Ok(id) = typed.parse::<BatchId>() {
        return batches
            .get(&Client::Owner, id)
            .map_err(|error| status(&error));
    }
    let all = batches.list(&Client::Owner);
    let mut like = all.into_iter().filter(|batch| {
        let name = batch.id.to_string();
        !typed.is_empty() && (name.starts_with(typed) || name["batch_".len()..].starts_with(typed))
    });
    match (like.next(), like.next()) {
        (Some(batch), None) => Ok(batch),
        (None, _) => Err(Status::not_found(format!("no such batch: {typed}"))),
        (Some(_), Some(_)) => {
            let why = format!("more than one batch begins with '{typed}'");
            Err(Status::invalid_argument(why))
        }
    }
}

fn batch_out(batch: Batch) -> v1::Batch {
    let scope = match &*batch.scope {
        "commons" => Scope::Commons,
        "circle" => Scope::Circle,
        _ => Scope::Mine,
    };
    v1::Batch {
        id: batch.id.to_string(),
        endpoint: batch.endpoint.path().to_owned(),
        status: batch.status.word().to_owned(),
        over: batch.status.is_over(),
        total: batch.counts.total,
        completed: batch.counts.completed,
        failed: batch.counts.failed,
        faults: batch.wrong.into_iter().map(fault_out).collect(),
        input_file: batch.input.to_string(),
        output_file: batch.output.map(|id| id.to_string()),
        error_file: batch.errors.map(|id| id.to_string()),
        created_s: batch.stamps.created_at,
        expires_s: batch.stamps.expires_at,
        client: match batch.owner {
            Client::Owner => "owner".to_owned(),
            Client::Anonymous => "anonymous".to_owned(),
            Client::Key(name) => format!("key {name}"),
        },
        scope: scope_out(scope).into(),
    }
}

fn fault_out(wrong: Wrong) -> v1::BatchFault {
    v1::BatchFault {
        code: wrong.code,
        message: wrong.message,
        param: wrong.param,
        line: wrong.line,
    }
}

fn status(error: &BatchError) -> Status {
    let why = error.to_string();
    match error {
        BatchError::Unknown(_) => Status::not_found(why),
        BatchError::Over { .. } | BatchError::NotABatch { .. } => Status::failed_precondition(why),
        BatchError::TooMany(_) => Status::resource_exhausted(why),
        BatchError::Kept(error) => kept_status(error),
        BatchError::File(_) => Status::internal(why),
    }
}

fn kept_status(error: &KeptError) -> Status {
    let why = error.to_string();
    match error {
        KeptError::Unknown(_) => Status::not_found(why),
        KeptError::InUse(_) => Status::failed_precondition(why),
        KeptError::TooLarge => Status::invalid_argument(why),
        KeptError::Full(_) => Status::resource_exhausted(why),
        KeptError::File(_) => Status::internal(why),
    }
}
