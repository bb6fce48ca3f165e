//! `receipts`: who did what for whom, and the proof of it.
//!
//! Invariant: `verify` reads its file and nothing else: no home, no daemon, no network.

use std::{
    io::Read,
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use substrate_api::v1;
use substrate_record::{
    JobId,
    export::{AttemptReport, Report},
};

use crate::receipts;

use super::{
    connect, plain,
    session::{Session, note},
    story::{Story, refused},
    table::Table,
    words,
};

/// Largest export that is read: far above any real one, far below what would hurt.
const MAX_EXPORT: u64 = 64 * 1024 * 1024;

/// Prove who did what for whom.
#[derive(Debug, Args)]
pub struct Receipts {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the receipts kept here, newest first
    #[command(visible_alias = "ls")]
    List {
        /// How many
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=200))]
        limit: u32,
        /// Go on after this cursor, as the last page told
        #[arg(long)]
        before: Option<u64>,
    },
    /// Tell the story of one job
    Show {
        /// Its id
        #[arg(value_parser = plain::job)]
        job: JobId,
    },
    /// Write the proof of one job into a file
    Export {
        /// Its id
        #[arg(value_parser = plain::job)]
        job: JobId,
        /// Where to; `-` is stdout [default: JOB.receipt]
        #[arg(short, long)]
        output: Option<PathBuf>,
    },
    /// Check a proof offline
    Verify {
        /// The file; `-` is stdin
        file: PathBuf,
    },
}

impl Receipts {
    /// Does what was asked.
    pub async fn run(self, session: &Session) -> anyhow::Result<()> {
        match self.command {
            Command::List { limit, before } => list(session, limit, before).await,
            Command::Show { job } => show(session, job).await,
            Command::Export { job, output } => export(session, job, output).await,
            Command::Verify { file } => verify(session, &file),
        }
    }
}

async fn list(session: &Session, limit: u32, before: Option<u64>) -> anyhow::Result<()> {
    let mut client = connect::or_desk(session).await?;
    let page = client
        .receipts(v1::ReceiptsRequest { before, limit })
        .await
        .map_err(refused)?
        .into_inner();
    if session.json {
        let rows: Vec<Value> = page.rows.iter().map(as_json).collect();
        return Ok(session.json(&json!({ "receipts": rows, "next": page.next }))?);
    }
    let now = words::now_ms();
    let mut table = Table::new([
        "JOB", "ATTEMPT", "ROLE", "NODE", "MODEL", "TOKENS", "VERDICT", "WHEN",
    ]);
    for row in &page.rows {
        table.row([
            words::hex(&row.job),
            row.attempt.to_string(),
            role(row.role).to_owned(),
            words::short_node(&row.other),
            row.model.clone(),
            row.tokens.to_string(),
            row.verdict.clone(),
            words::moment(row.claimed_ms, now),
        ]);
    }
    session.line(table)?;
    if let Some(next) = page.next {
        note(format_args!(
            "more: `substrate receipts list --before {next}`"
        ));
    }
    Ok(())
}

fn role(code: i32) -> &'static str {
    match v1::ReceiptRole::try_from(code) {
        Ok(v1::ReceiptRole::Requested) => "asked",
        Ok(v1::ReceiptRole::Served) => "served",
        Ok(v1::ReceiptRole::Both) => "both",
        _ => "unknown",
    }
}

fn as_json(row: &v1::ReceiptRow) -> Value {
    json!({
        "job": words::hex(&row.job),
        "attempt": row.attempt,
        "role": role(row.role),
        "node": words::hex(&row.other),
        "model": row.model,
        "tokens": row.tokens,
        "verdict": row.verdict,
        "claimed_ms": row.claimed_ms,
    })
}

async fn show(session: &Session, job: JobId) -> anyhow::Result<()> {
    let mut client = connect::or_desk(session).await?;
    let request = v1::ReceiptRequest {
        job: job.as_bytes().to_vec(),
    };
    let text = client
        .receipt(request)
        .await
        .map_err(refused)?
        .into_inner()
        .text;
    if session.json {
        return Ok(session.json(&json!({ "job": job.to_string(), "text": text }))?);
    }
    Ok(session.line(text.trim_end())?)
}

async fn export(session: &Session, job: JobId, output: Option<PathBuf>) -> anyhow::Result<()> {
    let mut client = connect::or_desk(session).await?;
    let request = v1::ExportReceiptRequest {
        job: job.as_bytes().to_vec(),
    };
    let export = client
        .export_receipt(request)
        .await
        .map_err(refused)?
        .into_inner()
        .export;
    let path = output.unwrap_or_else(|| PathBuf::from(format!("{job}.receipt")));
    if path.as_os_str() == "-" {
        return Ok(session.bytes(&export)?);
    }
    std::fs::write(&path, &export)
        .map_err(|error| Story::new(format!("cannot write {}", path.display())).because(error))?;
    if session.json {
        return Ok(session
            .json(&json!({ "job": job.to_string(), "file": path, "bytes": export.len() }))?);
    }
    note(format_args!(
        "wrote {}; `substrate receipts verify {}` checks it anywhere",
        path.display(),
        path.display()
    ));
    Ok(())
}

fn verify(session: &Session, file: &Path) -> anyhow::Result<()> {
    let bytes = read(file)
        .map_err(|error| Story::new(format!("cannot read {}", file.display())).because(error))?;
    match receipts::verify(&bytes) {
        Ok(story) if session.json => Ok(session.json(&proof(&story.report))?),
        Ok(story) => Ok(story.lines.iter().try_for_each(|line| session.line(line))?),
        Err(failure) => {
            if session.json {
                let place = json!({ "attempt": failure.attempt, "byte": failure.offset });
                session
                    .json(&json!({ "verified": false, "what": failure.what, "where": place }))?;
            }
            let what = format!("{} does not verify: {}", file.display(), failure.what);
            Err(Story::new(what)
                .hint("ask for the file again; if it stays so, do not rely on it")
                .into())
        }
    }
}

/// What a proof shows, for programs.
fn proof(report: &Report) -> Value {
    let attempt = |attempt: &AttemptReport| {
        json!({
            "attempt": attempt.attempt,
            "manifest": attempt.manifest.to_string(),
            "entry": attempt.entry.to_string(),
            "node": attempt.provider.to_string(),
            "verdict": attempt.verdict.to_string(),
            "tokens": attempt.tokens,
            "follows_unseen": attempt.follows_unseen,
        })
    };
    json!({
        "verified": true,
        "network": { "name": report.network_name, "id": report.network.to_string() },
        "job": report.job.to_string(),
        "requester": report.requester.to_string(),
        "attempts": report.attempts.iter().map(attempt).collect::<Vec<_>>(),
    })
}

fn read(file: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if file.as_os_str() == "-" {
        std::io::stdin()
            .lock()
            .take(MAX_EXPORT + 1)
            .read_to_end(&mut bytes)?;
    } else {
        std::fs::File::open(file)?
            .take(MAX_EXPORT + 1)
            .read_to_end(&mut bytes)?;
    }
    if bytes.len() as u64 > MAX_EXPORT {
        return Err(std::io::Error::other("larger than any export"));
    }
    Ok(bytes)
}
