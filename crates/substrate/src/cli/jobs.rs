//! `jobs`: live and recent jobs, and cancelling one.

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use substrate_api::v1;
use substrate_record::JobId;

use super::{
    connect, plain,
    session::{Session, note},
    story::{Story, refused},
    table::Table,
    words,
};

/// List jobs, or cancel one.
#[derive(Debug, Args)]
pub struct Jobs {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List live and recent jobs
    #[command(visible_alias = "ls")]
    List,
    /// Cancel a job
    Cancel {
        /// Its id
        #[arg(value_parser = plain::job)]
        job: JobId,
    },
}

impl Jobs {
    /// Lists or cancels.
    pub async fn run(self, session: &Session) -> anyhow::Result<()> {
        match self.command {
            None | Some(Command::List) => list(session).await,
            Some(Command::Cancel { job }) => cancel(session, job).await,
        }
    }
}

async fn list(session: &Session) -> anyhow::Result<()> {
    let mut client = connect::required(session).await?;
    let jobs = client
        .jobs(v1::JobsRequest {})
        .await
        .map_err(refused)?
        .into_inner()
        .jobs;
    if session.json {
        return Ok(session.json(&json!({ "jobs": jobs.iter().map(as_json).collect::<Vec<_>>() }))?);
    }
    let mut table = Table::new([
        "JOB", "ROLE", "MODEL", "SCOPE", "STATE", "NODE", "TOKENS", "AGE", "WHY",
    ]);
    for job in &jobs {
        table.row(columns(job));
    }
    Ok(session.line(table)?)
}

fn columns(job: &v1::Job) -> [String; 9] {
    [
        words::hex(&job.job),
        role(job.role).to_owned(),
        job.model.clone(),
        words::scope(job.scope).to_owned(),
        job.state.clone(),
        job.peer
            .as_deref()
            .map_or_else(|| "-".to_owned(), words::short_node),
        job.tokens.to_string(),
        words::span(job.age_ms),
        job.queue.as_ref().map(waiting).unwrap_or_default(),
    ]
}

/// A place in a queue, in words.
pub fn waiting(news: &v1::Queued) -> String {
    format!(
        "{} ahead, about {}: {}",
        news.position,
        words::wait(news.expected_wait_ms),
        news.why
    )
}

fn role(code: i32) -> &'static str {
    match v1::JobRole::try_from(code) {
        Ok(v1::JobRole::Requested) => "asked",
        Ok(v1::JobRole::Serving) => "serving",
        _ => "unknown",
    }
}

fn as_json(job: &v1::Job) -> Value {
    let queue = job.queue.as_ref().map(|news| {
        json!({ "position": news.position, "expected_wait_ms": news.expected_wait_ms, "why": news.why })
    });
    json!({
        "job": words::hex(&job.job),
        "role": role(job.role),
        "model": job.model,
        "scope": words::scope(job.scope),
        "state": job.state,
        "node": job.peer.as_deref().map(words::hex),
        "queue": queue,
        "tokens": job.tokens,
        "attempt": job.attempt,
        "age_ms": job.age_ms,
    })
}

async fn cancel(session: &Session, job: JobId) -> anyhow::Result<()> {
    let mut client = connect::required(session).await?;
    let request = v1::CancelRequest {
        job: job.as_bytes().to_vec(),
    };
    if !client
        .cancel(request)
        .await
        .map_err(refused)?
        .into_inner()
        .found
    {
        return Err(Story::new(format!("no live job {job}"))
            .hint("`substrate jobs` shows which there are")
            .into());
    }
    if session.json {
        return Ok(session.json(&json!({ "cancelled": job.to_string() }))?);
    }
    note(format_args!("cancelled {job}"));
    Ok(())
}
