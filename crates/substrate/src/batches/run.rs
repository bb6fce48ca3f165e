//! The life of one batch: its lines are checked, asked, and what came of them becomes its files.
//!
//! Invariants: how a batch ends is written down before its files are made, and making them twice makes them once, so that
//! it goes on after a crash at any point; what is given up at a halt goes on at the next start.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use futures::stream;
use tokio_util::sync::CancellationToken;

use super::asker::{Asked, Reply, Told};
use super::check::{self, Lines};
use super::parts::{OutputError, OutputResponse, OutputRow, PartError, Parts};
use super::record::{Batch, Ending, Status, Wrong};
use super::{BAD, BatchError, Batches, GOOD, LINES_AT_ONCE, lines};
use crate::door::Client;
use crate::files::FileError;
use crate::grpc::desk::now_ms;
use crate::kept::{BatchId, FileId, KeptFile, Purpose};

/// Before the files of a batch are tried again: a full disk is not mended sooner.
const FINISH_PAUSE: Duration = Duration::from_secs(60);

/// What OpenAI's API calls a line that was not asked in time.
const LATE_CODE: &str = "batch_expired";
const LATE_WHY: &str = "this request could not be answered before the batch's time was up";

/// Runs a batch to its end, or until the halt.
pub(super) async fn run(batches: &Batches, id: BatchId, token: CancellationToken) {
    let Ok(batch) = batches.get(&Client::Owner, id) else {
        return;
    };
    let _held = batches.kept().hold(batch.input);
    if batch.status == Status::Cancelling {
        // It was being stopped when the last daemon ended.
        token.cancel();
    }
    let ended = match batch.ending {
        Some(ending) => Some((ending, Vec::new())),
        None => live(batches, batch, &token).await,
    };
    let Some((ending, wrong)) = ended else { return };
    loop {
        let (ending_batches, wrong) = (batches.clone(), wrong.clone());
        let finished = blocking(move || finish(&ending_batches, id, ending, wrong)).await;
        let Err(error) = finished else { return };
        tracing::error!(%error, %id, "the files of a batch could not be made; they are tried again");
        tokio::select! {
            () = batches.shared.halt.cancelled() => return,
            () = tokio::time::sleep(FINISH_PAUSE) => {}
        }
    }
}

/// A batch under way.
struct Run {
    batches: Batches,
    batch: Batch,
    lines: Lines,
    came: Mutex<Came>,
}

/// What came so far.
struct Came {
    parts: Parts,
    /// Line by line, whether it has its row.
    done: Vec<bool>,
}

/// Until it is known how it ends; `None` at a halt.
async fn live(
    batches: &Batches,
    batch: Batch,
    token: &CancellationToken,
) -> Option<(Ending, Vec<Wrong>)> {
    let id = batch.id;
    let own = batches.clone();
    let run = match blocking(move || begin(own, batch)).await {
        Ok(run) => Arc::new(run),
        Err(wrong) => return Some((Ending::Broken, wrong)),
    };
    let left = (run.batch.stamps.expires_at * 1_000).saturating_sub(now_ms());
    let ended = tokio::select! {
        biased;
        () = token.cancelled() => {
            if batches.shared.halt.is_cancelled() {
                return None;
            }
            (Ending::Stopped, Vec::new())
        }
        () = tokio::time::sleep(Duration::from_millis(left)) => (Ending::Late, Vec::new()),
        answered = answer_all(&run) => match answered {
            Ok(()) => (Ending::Done, Vec::new()),
            Err(wrong) => (Ending::Broken, vec![wrong]),
        },
    };
    let late = ended.0 == Ending::Late;
    let closed = blocking(move || run.close(late)).await;
    if let Err(error) = closed {
        tracing::error!(%error, %id, "what was not asked in time could not be written down");
    }
    Some(ended)
}

/// Reads all lines and what came of them before.
fn begin(batches: Batches, batch: Batch) -> Result<Run, Vec<Wrong>> {
    let file = batches.kept().bytes_of(batch.input);
    let file = file.map_err(|error| vec![of_disk(batch.id, &error)])?;
    let lines = check::check(file, batch.endpoint)?;
    let disk = |error: &dyn std::fmt::Display| vec![of_disk(batch.id, error)];
    let mut done = vec![false; lines.count() as usize];
    let parts = Parts::open(
        &batches.path(batch.id, GOOD),
        &batches.path(batch.id, BAD),
        lines.count(),
        |name| {
            if let Some(line) = lines.named(name) {
                done[line as usize] = true;
            }
        },
    );
    let parts = parts.map_err(|error| disk(&error))?;
    let counts = parts.counts();
    let batch = batches
        .change(batch.id, |batch| {
            if batch.status == Status::Validating {
                batch.status = Status::InProgress;
                batch.stamps.in_progress_at = Some(now_ms() / 1_000);
            }
            batch.counts = counts;
        })
        .map_err(|error| disk(&error))?;
    Ok(Run {
        batches,
        batch,
        lines,
        came: Mutex::new(Came { parts, done }),
    })
}

/// Asks every line that has no row.
///
/// # Errors
/// Why it cannot go on.
async fn answer_all(run: &Arc<Run>) -> Result<(), Wrong> {
    let mut answers = stream::iter(run.open())
        .map(|line| answer(run.clone(), line))
        .buffer_unordered(LINES_AT_ONCE);
    while let Some(answered) = answers.next().await {
        answered?;
    }
    Ok(())
}

/// Has one line answered, however often that takes, and keeps its row.
async fn answer(run: Arc<Run>, line: u32) -> Result<(), Wrong> {
    let reader = run.clone();
    let (custom_id, body) = blocking(move || reader.request(line)).await?;
    let (mut tries, mut pause) = (0, run.batches.shared.first_pause);
    loop {
        let asked = Asked {
            client: run.batch.owner.clone(),
            scope: run.batch.scope.clone(),
            network: run.batch.network.clone(),
            endpoint: run.batch.endpoint,
            body: body.clone(),
        };
        let shared = &run.batches.shared;
        let seat = shared.seats.acquire().await;
        let told = shared.asker.ask(asked).await;
        drop(seat);
        match told {
            Told::Answer(reply) => return keep(run, line, custom_id, reply).await,
            Told::MayPass {
                reply,
                after,
                tries: most,
            } => {
                tries += 1;
                if tries >= most {
                    return keep(run, line, custom_id, reply).await;
                }
                tokio::time::sleep(pause.max(after.unwrap_or_default())).await;
                pause *= 2;
            }
            Told::NotNow { after } => tokio::time::sleep(after).await,
            Told::Never { why } => return Err(Wrong::whole("not_allowed", why)),
        }
    }
}

async fn keep(run: Arc<Run>, line: u32, custom_id: String, reply: Reply) -> Result<(), Wrong> {
    blocking(move || run.keep(line, &custom_id, &reply)).await
}

impl Run {
    fn open(&self) -> Vec<u32> {
        let came = self.came();
        let numbered = (0..).zip(&came.done);
        numbered
            .filter(|(_, done)| !**done)
            .map(|(line, _)| line)
            .collect()
    }

    /// The name and the body of a line, which were right when all lines were checked.
    fn request(&self, line: u32) -> Result<(String, String), Wrong> {
        let unreadable = |why: String| Wrong::whole("input_unreadable", why);
        let row = self
            .lines
            .row(line)
            .map_err(|error| unreadable(format!("the input file cannot be read: {error}")))?;
        let read = lines::read(&row, self.batch.endpoint.path());
        let read =
            read.map_err(|fault| unreadable(format!("the input file changed: {}", fault.message)))?;
        Ok((read.custom_id.into_owned(), read.body.to_owned()))
    }

    fn keep(&self, line: u32, custom_id: &str, reply: &Reply) -> Result<(), Wrong> {
        let row = OutputRow {
            id: row_id(),
            custom_id,
            response: Some(OutputResponse {
                status_code: reply.status,
                request_id: reply.request_id.as_deref().unwrap_or_default(),
                body: &reply.body,
            }),
            error: None,
        };
        let mut came = self.came();
        match came.parts.append(&row) {
            Ok(counts) => {
                came.done[line as usize] = true;
                self.batches.tell_counts(self.batch.id, counts);
                Ok(())
            }
            // Too late: how it ends is decided.
            Err(PartError::Closed) => Ok(()),
            Err(error @ PartError::TooMuch) => {
                Err(Wrong::whole("output_too_large", error.to_string()))
            }
            Err(error @ PartError::File(_)) => Err(of_disk(self.batch.id, &error)),
        }
    }

    /// Takes no more rows; lines that were not asked in time get one that says so.
    fn close(&self, late: bool) -> Result<(), PartError> {
        let open = if late { self.open() } else { Vec::new() };
        let mut came = self.came();
        let written = self.write_late(&mut came, &open);
        came.parts.close();
        self.batches.tell_counts(self.batch.id, came.parts.counts());
        written
    }

    fn write_late(&self, came: &mut Came, open: &[u32]) -> Result<(), PartError> {
        for line in open {
            let Ok((custom_id, _)) = self.request(*line) else {
                continue;
            };
            came.parts.write(&OutputRow {
                id: row_id(),
                custom_id: &custom_id,
                response: None,
                error: Some(OutputError {
                    code: LATE_CODE,
                    message: LATE_WHY,
                }),
            })?;
        }
        came.parts.sync()
    }

    fn came(&self) -> std::sync::MutexGuard<'_, Came> {
        self.came.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A failure of the disk. A path of this machine is nobody else's business: the log has it.
fn of_disk(id: BatchId, error: &dyn std::fmt::Display) -> Wrong {
    tracing::error!(%error, %id, "a batch cannot go on");
    let why = "the disk of this machine is full or failed; its log has more";
    Wrong::whole("disk_failed", why)
}

fn row_id() -> String {
    format!("batch_req_{}", hex::encode(rand::random::<[u8; 16]>()))
}

/// Writes down how it ends, makes its files, and writes down that it is over.
fn finish(
    batches: &Batches,
    id: BatchId,
    ending: Ending,
    wrong: Vec<Wrong>,
) -> Result<(), BatchError> {
    let now = now_ms();
    let batch = batches.change(id, |batch| {
        batch.ending = Some(ending);
        batch.wrong.extend(wrong);
        if ending == Ending::Done {
            batch.status = Status::Finalizing;
            batch.stamps.finalizing_at.get_or_insert(now / 1_000);
        }
    })?;
    let output = take(batches, &batch, GOOD, batch.planned.output, now)?;
    let errors = take(batches, &batch, BAD, batch.planned.errors, now)?;
    batches.change(id, |batch| {
        over(batch, ending, now_ms() / 1_000);
        batch.output = output;
        batch.errors = errors;
    })?;
    Ok(())
}

fn over(batch: &mut Batch, ending: Ending, now: u64) {
    let stamps = &mut batch.stamps;
    let (status, stamp) = match ending {
        Ending::Done => (Status::Completed, &mut stamps.completed_at),
        Ending::Late => (Status::Expired, &mut stamps.expired_at),
        Ending::Stopped => (Status::Cancelled, &mut stamps.cancelled_at),
        Ending::Broken => (Status::Failed, &mut stamps.failed_at),
    };
    batch.status = status;
    *stamp = Some(now);
}

/// Puts a part among the kept files; nothing if nothing came.
fn take(
    batches: &Batches,
    batch: &Batch,
    what: &str,
    planned: FileId,
    now_ms: u64,
) -> Result<Option<FileId>, BatchError> {
    let part = batches.path(batch.id, what);
    let is_kept = batches.kept().get(&Client::Owner, planned, 0).is_ok();
    let is_empty = std::fs::metadata(&part).map_or(true, |found| found.len() == 0);
    if is_empty && !is_kept {
        return match std::fs::remove_file(&part) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(FileError::at("remove", &part)(error).into())
            }
            _ => Ok(None),
        };
    }
    let word = if what == GOOD { "output" } else { "error" };
    let file = KeptFile {
        id: planned,
        owner: batch.owner.clone(),
        filename: format!("{}_{word}.jsonl", batch.id),
        purpose: Purpose::BatchOutput,
        bytes: 0,
        created_ms: now_ms,
        expires_ms: batch.files_live.map(|seconds| now_ms + seconds * 1_000),
    };
    batches.kept().adopt(&part, file)?;
    Ok(Some(planned))
}

/// Runs what waits for the disk away from the tasks that must not wait.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
