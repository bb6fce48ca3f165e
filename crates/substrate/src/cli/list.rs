//! `list`: the models that can be used now, own first.

use clap::Args;
use serde_json::{Value, json};
use substrate_api::v1;

use super::{
    connect,
    plain::{Scope, scope_code},
    session::Session,
    story::refused,
    table::Table,
    words,
};

/// List the models that can be used now.
#[derive(Debug, Args)]
pub struct List {
    /// Only names that begin like this
    prefix: Option<String>,

    /// How far to look [default: circle]
    #[arg(long)]
    scope: Option<Scope>,
}

impl List {
    /// Prints the list.
    pub async fn run(self, session: &Session) -> anyhow::Result<()> {
        let mut client = connect::or_desk(session).await?;
        let request = v1::ModelsRequest {
            scope: scope_code(self.scope),
        };
        let mut models = client
            .models(request)
            .await
            .map_err(refused)?
            .into_inner()
            .models;
        if let Some(prefix) = &self.prefix {
            let prefix = prefix.to_lowercase();
            models.retain(|model| model.name.to_lowercase().starts_with(&prefix));
        }
        if session.json {
            return Ok(session
                .json(&json!({ "models": models.iter().map(as_json).collect::<Vec<_>>() }))?);
        }
        Ok(session.line(table(&models, words::now_ms()))?)
    }
}

/// Ollama's columns; one more if a model is not on this machine.
fn table(models: &[v1::Model], now: u64) -> String {
    if models.iter().all(|model| model.own) {
        let mut table = Table::new(["NAME", "ID", "SIZE", "MODIFIED"]);
        for model in models {
            table.row(columns(model, now));
        }
        return table.to_string();
    }
    let mut table = Table::new(["NAME", "ID", "SIZE", "MODIFIED", "WHERE"]);
    for model in models {
        let [name, id, size, modified] = columns(model, now);
        table.row([name, id, size, modified, place(model)]);
    }
    table.to_string()
}

fn columns(model: &v1::Model, now: u64) -> [String; 4] {
    let id = words::short_digest(&model.digest);
    [
        model.name.clone(),
        id,
        words::size(model.size),
        words::moment(model.modified_ms, now),
    ]
}

fn place(model: &v1::Model) -> String {
    let others = match model.nodes.len() {
        0 => String::new(),
        1 => format!("node {}", words::short_node(&model.nodes[0])),
        count => format!("{count} nodes"),
    };
    match (model.own, others.is_empty()) {
        (true, true) => "here".to_owned(),
        (true, false) => format!("here, {others}"),
        (false, _) => others,
    }
}

/// A model as JSON.
pub fn as_json(model: &v1::Model) -> Value {
    json!({
        "name": model.name,
        "entry": words::hex(&model.entry),
        "digest": words::hex(&model.digest),
        "size": model.size,
        "arch": model.arch,
        "quant": model.quant,
        "parameters": model.n_params,
        "context": model.context,
        "licence": model.licence,
        "modified_ms": model.modified_ms,
        "own": model.own,
        "loaded": model.loaded,
        "nodes": model.nodes.iter().map(|node| words::hex(node)).collect::<Vec<_>>(),
    })
}
