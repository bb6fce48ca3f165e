//! `batch`: many requests in one file, answered when there is time.
//!
//! Invariant: of `output`, stdout has the lines of the file and nothing else.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};
use substrate_api::v1::{self, submit_batch_step::Step};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::{
    connect,
    plain::{Scope, scope_code},
    session::{Session, note, watched},
    story::{Story, refused},
    table::Table,
    words,
};
use crate::batches::lines::{MAX_ROW, Rows};

/// Read and sent at a time: below the largest piece that a daemon takes.
const PIECE: usize = 256 << 10;

/// Pieces under way: one being sent, one being read.
const PIECES: usize = 2;

/// How often a batch that is waited for is looked at.
const LOOK: Duration = Duration::from_millis(500);

/// Faults told one by one; `--json` has them all.
const FAULTS_TOLD: usize = 5;

/// Ask many requests in one file, when there is time.
#[derive(Debug, Args)]
#[command(
    after_help = "Each line of the file is one request, as OpenAI's batches have them:\n\
    {\"custom_id\": \"1\", \"method\": \"POST\", \"url\": \"/v1/chat/completions\",\n \
     \"body\": {\"model\": \"NAME\", \"messages\": [{\"role\": \"user\", \"content\": \"hello\"}]}}\n\
    A batch has 24 hours and goes on after a restart. Its files stay on this machine, unencrypted and for your user only."
)]
pub struct Batch {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a batch of a file's lines
    Submit(Submit),
    /// List batches, newest first
    #[command(visible_alias = "ls")]
    List,
    /// Show one batch
    Show {
        /// Its name, or the beginning of it
        batch: String,
    },
    /// Wait for the end of a batch
    Wait {
        /// Its name, or the beginning of it
        batch: String,
    },
    /// Stop a batch; answers that came stay
    Cancel {
        /// Its name, or the beginning of it
        batch: String,
    },
    /// Print what came of a batch that is over
    Output {
        /// Its name, or the beginning of it
        batch: String,
        /// The errors instead of the good answers
        #[arg(long)]
        errors: bool,
    },
}

#[derive(Debug, Args)]
struct Submit {
    /// The file of its lines
    file: PathBuf,

    /// Where its lines go, such as /v1/chat/completions [default: what its first line says]
    #[arg(long, value_name = "PATH")]
    endpoint: Option<String>,

    /// How far the prompts may travel [default: mine, then circle]
    #[arg(long)]
    scope: Option<Scope>,

    /// Wait for its end
    #[arg(long)]
    wait: bool,
}

impl Batch {
    /// Does what is asked.
    pub async fn run(self, session: &Session) -> anyhow::Result<()> {
        match self.command {
            Command::Submit(submit) => submit.run(session).await,
            Command::List => list(session).await,
            Command::Show { batch } => show(session, batch).await,
            Command::Wait { batch } => {
                let mut client = connect::required(session).await?;
                let batch = one(&mut client, &batch).await?;
                wait(session, &mut client, batch).await
            }
            Command::Cancel { batch } => cancel(session, batch).await,
            Command::Output { batch, errors } => output(session, batch, errors).await,
        }
    }
}

impl Submit {
    async fn run(self, session: &Session) -> anyhow::Result<()> {
        if self.scope == Some(Scope::Commons) {
            return Err(
                Story::usage("a batch from the command line does not go to strangers")
                    .hint("`substrate key add NAME --scope commons` makes a key whose batches do")
                    .into(),
            );
        }
        let shown = self.file.display().to_string();
        let unreadable = |error| Story::new(format!("cannot read {shown}")).because(error);
        let mut file = File::open(&self.file).map_err(unreadable)?;
        let endpoint = match self.endpoint {
            Some(endpoint) => endpoint,
            None => first_url(&mut file, &shown)?,
        };
        let mut client = connect::or_started(session).await?;
        let filename = self.file.file_name().unwrap_or_default();
        let begin = v1::BatchBegin {
            filename: filename.to_string_lossy().into_owned(),
            endpoint,
            scope: scope_code(self.scope),
        };
        let (say, said) = mpsc::channel(PIECES);
        let reading = tokio::task::spawn_blocking(move || read(file, begin, &say));
        let batch = client.submit_batch(ReceiverStream::new(said)).await;
        reading
            .await?
            .map_err(|error| Story::new(format!("cannot read {shown}")).because(error))?;
        let batch = batch.map_err(refused)?.into_inner();
        if self.wait {
            return wait(session, &mut client, batch).await;
        }
        if session.json {
            return Ok(session.json(&as_json(&batch))?);
        }
        session.line(&batch.id)?;
        note(format_args!(
            "its lines are being read; `substrate batch wait {}` shows how far it is",
            batch.id
        ));
        Ok(())
    }
}

/// Sends a file in pieces. Whoever takes them may end early, and says why.
fn read(
    mut file: File,
    begin: v1::BatchBegin,
    say: &mpsc::Sender<v1::SubmitBatchStep>,
) -> std::io::Result<()> {
    let step = |step| v1::SubmitBatchStep { step: Some(step) };
    if say.blocking_send(step(Step::Begin(begin))).is_err() {
        return Ok(());
    }
    loop {
        let mut piece = Vec::with_capacity(PIECE);
        file.by_ref().take(PIECE as u64).read_to_end(&mut piece)?;
        if piece.is_empty() || say.blocking_send(step(Step::Piece(piece))).is_err() {
            return Ok(());
        }
    }
}

/// Where the first line of a file goes.
fn first_url(file: &mut File, shown: &str) -> anyhow::Result<String> {
    let unreadable = |error| Story::new(format!("cannot read {shown}")).because(error);
    let url = first_line_url(BufReader::new(&*file)).map_err(unreadable)?;
    file.rewind().map_err(unreadable)?;
    Ok(url.ok_or_else(|| {
        Story::new(format!(
            "the first line of {shown} is no request with a url"
        ))
        .hint("`substrate batch --help` shows what a line looks like")
    })?)
}

fn first_line_url(from: impl BufRead) -> std::io::Result<Option<String>> {
    let mut rows = Rows::new(from, MAX_ROW);
    let Some(row) = rows.next_row()? else {
        return Ok(None);
    };
    let line: Option<Value> = row.bytes.and_then(|row| serde_json::from_slice(row).ok());
    Ok(line.and_then(|line| Some(line.get("url")?.as_str()?.to_owned())))
}

async fn one(client: &mut connect::Client, id: &str) -> anyhow::Result<v1::Batch> {
    let request = v1::BatchRequest { id: id.to_owned() };
    let batch = client.show_batch(request).await;
    batch
        .map(tonic::Response::into_inner)
        .map_err(|status| unknown(id, status))
}

/// A refused call about one batch.
fn unknown(id: &str, status: tonic::Status) -> anyhow::Error {
    if status.code() == tonic::Code::NotFound {
        return Story::new(format!("no batch '{id}'"))
            .hint("`substrate batch list` shows which there are")
            .into();
    }
    refused(status)
}

async fn list(session: &Session) -> anyhow::Result<()> {
    let mut client = connect::required(session).await?;
    let listed = client.batches(v1::BatchesRequest {}).await;
    let batches = listed.map_err(refused)?.into_inner().batches;
    if session.json {
        let batches: Vec<_> = batches.iter().map(as_json).collect();
        return Ok(session.json(&json!({ "batches": batches }))?);
    }
    let mut table = Table::new([
        "BATCH", "ENDPOINT", "STATUS", "DONE", "FAILED", "SCOPE", "CLIENT", "MADE",
    ]);
    let now = words::now_ms();
    for batch in &batches {
        table.row([
            batch.id.clone(),
            batch.endpoint.clone(),
            batch.status.clone(),
            format!("{}/{}", batch.completed, batch.total),
            batch.failed.to_string(),
            words::scope(batch.scope).to_owned(),
            batch.client.clone(),
            words::moment(batch.created_s.saturating_mul(1_000), now),
        ]);
    }
    Ok(session.line(table)?)
}

async fn show(session: &Session, id: String) -> anyhow::Result<()> {
    let mut client = connect::required(session).await?;
    let batch = one(&mut client, &id).await?;
    tell(session, &batch)
}

async fn cancel(session: &Session, id: String) -> anyhow::Result<()> {
    let mut client = connect::required(session).await?;
    let stopped = client
        .cancel_batch(v1::BatchRequest { id: id.clone() })
        .await;
    let batch = stopped.map_err(|status| unknown(&id, status))?.into_inner();
    if session.json {
        return Ok(session.json(&as_json(&batch))?);
    }
    note(format_args!("{} is {}", batch.id, batch.status));
    Ok(())
}

async fn output(session: &Session, id: String, errors: bool) -> anyhow::Result<()> {
    let mut client = connect::required(session).await?;
    let batch = one(&mut client, &id).await?;
    if !batch.over {
        return Err(Story::new(format!("{} is {}", batch.id, batch.status))
            .hint(format!(
                "`substrate batch wait {}` waits for its end",
                batch.id
            ))
            .into());
    }
    let request = v1::BatchOutputRequest {
        id: batch.id.clone(),
        errors,
    };
    let mut pieces = client
        .batch_output(request)
        .await
        .map_err(refused)?
        .into_inner();
    while let Some(piece) = pieces.message().await.map_err(refused)? {
        session.bytes(&piece.bytes)?;
    }
    if !errors && batch.failed > 0 {
        note(format_args!(
            "{} failed; `substrate batch output {} --errors` shows why",
            words::count(batch.failed, "request"),
            batch.id
        ));
    }
    Ok(())
}

/// A batch that is waited for: a bar for who watches.
const FILL: &str = "{msg} {wide_bar} {pos}/{len} {eta}";

/// Waits for the end of a batch, and tells it.
async fn wait(
    session: &Session,
    client: &mut connect::Client,
    mut batch: v1::Batch,
) -> anyhow::Result<()> {
    let bar = (watched() && !session.json).then(|| {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        let style = ProgressStyle::with_template(FILL);
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar
    });
    let mut last = String::new();
    while !batch.over {
        match &bar {
            Some(bar) => {
                bar.set_message(batch.status.clone());
                bar.set_length(u64::from(batch.total));
                bar.set_position(u64::from(batch.completed) + u64::from(batch.failed));
            }
            None if last != batch.status => note(format_args!("{} is {}", batch.id, batch.status)),
            None => {}
        }
        last.clone_from(&batch.status);
        tokio::time::sleep(LOOK).await;
        batch = one(client, &batch.id).await?;
    }
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    if batch.status == "failed" {
        return Err(failed(&batch).into());
    }
    tell(session, &batch)
}

/// A batch whose lines are wrong, or that could not go on.
fn failed(batch: &v1::Batch) -> Story {
    let mut told: Vec<String> = batch.faults.iter().take(FAULTS_TOLD).map(fault).collect();
    let more = batch.faults.len().saturating_sub(FAULTS_TOLD);
    if more > 0 {
        told.push(format!("and {more} more"));
    }
    let story = Story::new(format!("{} failed", batch.id));
    let story = if told.is_empty() {
        story
    } else {
        story.because(anyhow::anyhow!(told.join("; ")))
    };
    story.hint(format!(
        "`substrate batch show {} --json` has all of it",
        batch.id
    ))
}

fn fault(fault: &v1::BatchFault) -> String {
    match fault.line {
        Some(line) => format!("line {line}: {}", fault.message),
        None => fault.message.clone(),
    }
}

fn tell(session: &Session, batch: &v1::Batch) -> anyhow::Result<()> {
    if session.json {
        return Ok(session.json(&as_json(batch))?);
    }
    let mut table = Table::new(["BATCH", &batch.id]);
    let mut row = |name: &str, value: String| table.row([name.to_owned(), value]);
    row("status", batch.status.clone());
    row("endpoint", batch.endpoint.clone());
    row("scope", words::scope(batch.scope).to_owned());
    row("client", batch.client.clone());
    row("requests", batch.total.to_string());
    row("answered", batch.completed.to_string());
    row("failed", batch.failed.to_string());
    if !batch.over {
        let ends = words::moment(batch.expires_s.saturating_mul(1_000), words::now_ms());
        row("given up", ends);
    }
    for (name, file) in [
        ("output", &batch.output_file),
        ("errors", &batch.error_file),
    ] {
        if let Some(file) = file {
            row(name, file.clone());
        }
    }
    for wrong in &batch.faults {
        row("wrong", fault(wrong));
    }
    Ok(session.line(table)?)
}

fn as_json(batch: &v1::Batch) -> Value {
    let faults = batch.faults.iter().map(|fault| {
        json!({
            "code": fault.code,
            "message": fault.message,
            "param": fault.param,
            "line": fault.line,
        })
    });
    json!({
        "id": batch.id,
        "endpoint": batch.endpoint,
        "status": batch.status,
        "over": batch.over,
        "total": batch.total,
        "completed": batch.completed,
        "failed": batch.failed,
        "errors": faults.collect::<Vec<_>>(),
        "input_file_id": batch.input_file,
        "output_file_id": batch.output_file,
        "error_file_id": batch.error_file,
        "created_at": batch.created_s,
        "expires_at": batch.expires_s,
        "client": batch.client,
        "scope": words::scope(batch.scope),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_that_is_one_says_where_all_go() {
        let url = |text: &str| first_line_url(text.as_bytes()).unwrap();
        let line = "{\"url\":\"/v1/embeddings\",\"body\":{}}";
        assert_eq!(
            url(&format!("\n  \n{line}\nx")).as_deref(),
            Some("/v1/embeddings")
        );
        assert_eq!(url(line).as_deref(), Some("/v1/embeddings"));
        for wrong in ["", "nonsense", "{}", "{\"url\":7}"] {
            assert_eq!(url(wrong), None, "{wrong}");
        }
    }
}
