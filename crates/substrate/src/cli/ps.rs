//! `ps`: the models in memory, in Ollama's columns.

use clap::Args;
use serde_json::{Value, json};
use substrate_api::v1;

use super::{connect, session::Session, story::refused, table::Table, words};

/// List the models in memory.
#[derive(Debug, Args)]
pub struct Ps {}

impl Ps {
    /// Prints the list.
    pub async fn run(self, session: &Session) -> anyhow::Result<()> {
        let mut client = connect::required(session).await?;
        let workers = client
            .workers(v1::WorkersRequest {})
            .await
            .map_err(refused)?
            .into_inner()
            .workers;
        if session.json {
            return Ok(session.json(&both(&workers))?);
        }
        let now = words::now_ms();
        let mut table = Table::new(["NAME", "ID", "SIZE", "PROCESSOR", "CONTEXT", "UNTIL"]);
        for worker in workers {
            table.row([
                worker.model,
                words::short_digest(&worker.digest),
                words::size(worker.memory),
                "100% CPU".to_owned(),
                worker.context.to_string(),
                match worker.loading {
                    Some(stage) => stage,
                    None if worker.isolated => "its one job ends".to_owned(),
                    None => until(worker.busy, worker.expires_ms, now),
                },
            ]);
        }
        Ok(session.line(table)?)
    }
}

fn until(busy: u32, expires_ms: Option<u64>, now: u64) -> String {
    match expires_ms {
        _ if busy > 0 => "in use".to_owned(),
        None => "Forever".to_owned(),
        Some(at) if at <= now => "Stopping...".to_owned(),
        Some(at) => words::moment(at, now),
    }
}

/// Those that answer, and apart from them those that do not yet: a script counts what is loaded.
fn both(workers: &[v1::Worker]) -> Value {
    let (coming, ready): (Vec<&v1::Worker>, Vec<&v1::Worker>) =
        workers.iter().partition(|worker| worker.loading.is_some());
    let all = |list: Vec<&v1::Worker>| list.into_iter().map(as_json).collect::<Vec<_>>();
    json!({ "models": all(ready), "loading": all(coming) })
}

fn as_json(worker: &v1::Worker) -> Value {
    json!({
        "name": worker.model,
        "digest": words::hex(&worker.digest),
        "size": worker.memory,
        "processor": "cpu",
        "context": worker.context,
        "pid": worker.pid,
        "wall": words::wall(worker.wall),
        "busy": worker.busy,
        "isolated": worker.isolated,
        "expires_ms": worker.expires_ms,
        "arch": worker.arch,
        "quant": worker.quant,
        "loading": worker.loading,
    })
}
