//! `show`: everything known of one model.

use std::num::NonZeroU32;

use clap::Args;
use serde_json::json;
use substrate_api::v1;

use super::{
    connect, list,
    session::Session,
    story::{Story, refused},
    words,
};

/// Show everything known of a model.
#[derive(Debug, Args)]
pub struct Show {
    /// Its name, entry id or digest
    model: String,

    /// Reckon its memory for a context of so many tokens
    #[arg(long, value_name = "TOKENS")]
    context: Option<NonZeroU32>,

    /// Only the chat template
    #[arg(long, group = "part")]
    template: bool,

    /// Only the licence
    #[arg(long, visible_alias = "licence", group = "part")]
    license: bool,

    /// Only a Modelfile that makes it again
    #[arg(long, group = "part")]
    modelfile: bool,

    /// Only the parameters it has defaults for
    #[arg(long, group = "part")]
    parameters: bool,

    /// Only what it is told first
    #[arg(long, group = "part")]
    system: bool,
}

impl Show {
    /// Prints what is known.
    pub async fn run(self, session: &Session) -> anyhow::Result<()> {
        let mut client = connect::or_desk(session).await?;
        let known = client
            .show(v1::ShowRequest {
                model: self.model,
                context: self.context.map(NonZeroU32::get),
            })
            .await
            .map_err(refused)?
            .into_inner();
        let model = known
            .model
            .clone()
            .ok_or_else(|| Story::new("the daemon's answer has no model in it"))?;
        if self.template {
            let template = model
                .template
                .ok_or_else(|| Story::new(format!("'{}' has no chat template here", model.name)))?;
            return one(session, &model.name, "template", template);
        }
        if self.license {
            return one(session, &model.name, "licence", licences(&known, &model));
        }
        if self.modelfile {
            return one(session, &model.name, "modelfile", known.modelfile);
        }
        let recipe = known.recipe.clone().unwrap_or_default();
        if self.parameters {
            return one(session, &model.name, "parameters", recipe.parameters);
        }
        if self.system {
            return one(
                session,
                &model.name,
                "system",
                recipe.system.unwrap_or_default(),
            );
        }
        if session.json {
            return Ok(session.json(&as_json(&known, &model))?);
        }
        Ok(session.text(&page(&known, &model))?)
    }
}

/// What the file says, and the texts that were added.
fn licences(known: &v1::ShowReply, model: &v1::Model) -> String {
    let added = known.recipe.iter().flat_map(|recipe| &recipe.licences);
    let said = Some(&model.licence).filter(|said| !said.is_empty());
    let texts: Vec<&str> = said.into_iter().chain(added).map(String::as_str).collect();
    texts.join("\n\n")
}

/// One thing known of a model, alone.
fn one(session: &Session, model: &str, what: &str, text: String) -> anyhow::Result<()> {
    if session.json {
        return Ok(session.json(&json!({ "name": model, what: text }))?);
    }
    Ok(session.line(text)?)
}

fn as_json(known: &v1::ShowReply, model: &v1::Model) -> serde_json::Value {
    let files = known.files.iter().map(|file| {
        json!({ "role": role(file.role), "sha256": words::hex(&file.sha256), "size": file.size })
    });
    let mut value = list::as_json(model);
    value["template"] = json!(model.template);
    value["files"] = files.collect();
    value["sources"] = json!(known.sources);
    value["signer"] = json!(known.signer.as_deref().map(words::hex));
    value["vision"] = json!(sees(known));
    value["vocabulary"] = json!(known.n_vocab);
    value["modelfile"] = json!(known.modelfile);
    if let Some(recipe) = &known.recipe {
        value["recipe"] = recipe_json(recipe);
    }
    if let Some(fit) = &known.fit {
        value["memory"] = fit_json(fit);
    }
    if let Some(rates) = &known.reference_rates {
        value["reference_rates"] = json!({ "prefill": rates.prefill, "decode": rates.decode });
    }
    value
}

fn recipe_json(recipe: &v1::Recipe) -> serde_json::Value {
    let turns = recipe.messages.iter();
    let turns = turns.map(|turn| json!({ "role": turn.role, "content": turn.content }));
    json!({
        "from": recipe.from,
        "parameters": recipe.parameters,
        "system": recipe.system,
        "messages": turns.collect::<Vec<_>>(),
        "licences": recipe.licences,
    })
}

fn fit_json(fit: &v1::Fit) -> serde_json::Value {
    json!({
        "context": fit.context,
        "slots": fit.slots,
        "kv_cache_type": fit.kv_cache_type,
        "flash_attention": fit.flash_attention,
        "weights": fit.weights,
        "kv_cache": fit.kv_cache,
        "prefixes": fit.prefixes,
        "buffers": fit.buffers,
        "engine": fit.engine,
        "total": fit.total,
        "mapped": fit.mapped,
        "place": fit.place,
        "why": fit.why,
    })
}

/// Whether it has a projector, which sees images for it.
pub fn sees(known: &v1::ShowReply) -> bool {
    known
        .files
        .iter()
        .any(|file| role(file.role) == "projector")
}

fn role(code: u32) -> &'static str {
    match code {
        1 => "weights",
        2 => "projector",
        3 => "adapter",
        4 => "tokenizer",
        _ => "unknown",
    }
}

/// What is known, as paragraphs of aligned lines.
pub fn page(known: &v1::ShowReply, model: &v1::Model) -> String {
    let mut page = String::new();
    let mut heading = |title: &str, lines: &[(&str, String)]| {
        page.push_str(&format!("  {title}\n"));
        for (name, value) in lines.iter().filter(|(_, value)| !value.is_empty()) {
            page.push_str(&format!("    {name:<18}{value}\n"));
        }
        page.push('\n');
    };
    heading(
        "Model",
        &[
            ("name", model.name.clone()),
            ("architecture", model.arch.clone()),
            ("parameters", words::parameters(model.n_params)),
            ("context length", model.context.to_string()),
            ("quantization", model.quant.clone()),
            (
                "vocabulary",
                if known.n_vocab == 0 {
                    String::new()
                } else {
                    known.n_vocab.to_string()
                },
            ),
            ("size", words::size(model.size)),
            ("licence", model.licence.clone()),
        ],
    );
    heading(
        "Identity",
        &[
            ("digest", format!("sha256:{}", words::hex(&model.digest))),
            ("entry", words::hex(&model.entry)),
            (
                "signed by",
                known.signer.as_deref().map(words::hex).unwrap_or_default(),
            ),
            ("sources", known.sources.join(", ")),
        ],
    );
    if let Some(recipe) = &known.recipe {
        heading("Made here", &made(recipe));
    }
    if let Some(fit) = &known.fit {
        heading("Memory", &memory(fit));
    }
    let chat = if model.template.is_some() {
        "yes, by the model's own template"
    } else {
        "no template known here"
    };
    heading(
        "Use",
        &[
            (
                "on this machine",
                if model.own { "yes" } else { "no" }.to_owned(),
            ),
            (
                "nodes",
                model
                    .nodes
                    .iter()
                    .map(|node| words::short_node(node))
                    .collect::<Vec<_>>()
                    .join(", "),
            ),
            (
                "in memory",
                if model.loaded { "yes" } else { "no" }.to_owned(),
            ),
            ("chat", chat.to_owned()),
            ("images", if sees(known) { "yes" } else { "" }.to_owned()),
        ],
    );
    page.truncate(page.trim_end().len());
    page.push('\n');
    page
}

/// What is added to what it was made from; `--modelfile` tells all of it.
fn made(recipe: &v1::Recipe) -> [(&'static str, String); 4] {
    let lines = recipe.parameters.lines();
    let words = lines.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
    let system = recipe
        .system
        .as_deref()
        .and_then(|text| text.lines().next());
    let turns = match recipe.messages.len() {
        0 => String::new(),
        turns => turns.to_string(),
    };
    [
        ("from", recipe.from.clone()),
        ("parameters", words.collect::<Vec<_>>().join(", ")),
        ("system", system.unwrap_or_default().to_owned()),
        ("first turns", turns),
    ]
}

/// What it takes, part by part.
fn memory(fit: &v1::Fit) -> [(&'static str, String); 9] {
    let cache = format!(
        "{} ({}, {} tokens for {} answers at a time)",
        words::size(fit.kv_cache),
        fit.kv_cache_type,
        fit.context,
        fit.slots
    );
    let mapped = match fit.mapped {
        0 => String::new(),
        bytes => format!("{} more while nothing else needs it", words::size(bytes)),
    };
    [
        ("weights", words::size(fit.weights)),
        ("cache", cache),
        ("kept prefixes", words::size(fit.prefixes)),
        ("buffers", words::size(fit.buffers)),
        ("engine", words::size(fit.engine)),
        ("in all", words::size(fit.total)),
        ("mapped", mapped),
        ("would run on", fit.place.clone().unwrap_or_default()),
        ("does not fit", fit.why.clone().unwrap_or_default()),
    ]
}
