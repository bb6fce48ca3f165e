//! `embed`: vectors of texts, one line of numbers each.
//!
//! Invariants: stdout has one line for each text, in their order, and nothing else; a text is never cut silently.

use std::io::{self, BufRead, IsTerminal, Read};

use clap::Args;
use serde_json::json;
use substrate_api::v1::{self, job_event::Event};

use super::{
    connect, consent,
    plain::{Scope, scope_code},
    session::{Session, note},
    story::{Story, refusal_story, refused},
    words,
};

/// Longest piped input: the longest input that a job may have (PROTOCOL.md 4).
const MAX_PIPED: u64 = 8 * 1024 * 1024;

/// Turn texts into vectors.
#[derive(Debug, Args)]
#[command(
    after_help = "Without a text, each line of the input is one: cut -f2 notes.tsv | substrate embed NAME\n\
    Each vector is a line of JSON on stdout, of length 1 (L2). With --json, each line is an object that also has the\n\
    text's number, and a last one tells who answered."
)]
pub struct Embed {
    /// The model's name
    model: String,

    /// The texts, each one argument
    texts: Vec<String>,

    /// Cut texts that are longer than the model's context at their end, instead of refusing them
    #[arg(long)]
    truncate: bool,

    /// How far the texts may travel [default: mine, then circle]
    #[arg(long)]
    scope: Option<Scope>,

    /// A fresh worker that does nothing else and is destroyed afterwards; costs a load of the model
    #[arg(long)]
    isolated: bool,

    /// Consent that strangers' machines read texts for this model; remembered
    #[arg(long)]
    consent: bool,
}

impl Embed {
    /// Embeds.
    pub async fn run(self, session: &Session) -> anyhow::Result<()> {
        let texts = if self.texts.is_empty() {
            piped()?
        } else {
            self.texts
        };
        let home = session.prepared_home()?;
        if self.scope == Some(Scope::Commons) {
            consent::require(&home, &self.model, self.consent)?;
        }
        let mut client = connect::or_started(session).await?;
        let truncate = self.truncate;
        let request = v1::RunRequest {
            model: self.model,
            prompt: Some(v1::run_request::Prompt::Texts(v1::Texts {
                texts,
                truncate,
            })),
            scope: scope_code(self.scope),
            isolated: self.isolated,
            ..Default::default()
        };
        let mut events = client.run(request).await.map_err(refused)?.into_inner();
        let (mut row, mut job) = (0, String::new());
        while let Some(event) = events.message().await.map_err(refused)? {
            match event.event {
                Some(Event::Taken(taken)) => job = words::hex(&taken.job),
                Some(Event::Row(v1::Row { components })) => {
                    if session.json {
                        session.json_line(&json!({ "index": row, "embedding": components }))?;
                    } else {
                        session.json_line(&components)?;
                    }
                    row += 1;
                }
                Some(Event::Moved(moved)) => note(format_args!(
                    "node {} is gone after {} ({}); the rest is asked of another",
                    words::short_node(&moved.from),
                    words::count(moved.after_tokens, "text"),
                    moved.why
                )),
                Some(Event::Finished(finished)) => {
                    if session.json {
                        let mut end = super::run::finished_json(&finished);
                        end["job"] = job.into();
                        session.json_line(&end)?;
                    }
                    return Ok(());
                }
                Some(Event::Failed(refusal)) => return Err(refusal_story(refusal).into()),
                _ => {}
            }
        }
        Err(Story::new("the daemon ended the answer early")
            .hint("run `substrate doctor`")
            .into())
    }
}

/// The lines of what is piped in.
fn piped() -> anyhow::Result<Vec<String>> {
    let stdin = io::stdin();
    let nothing = || {
        Story::usage("there is no text")
            .hint("give texts after the model's name, or pipe one per line in")
    };
    if stdin.is_terminal() {
        return Err(nothing().into());
    }
    let mut input = stdin.lock().take(MAX_PIPED + 1);
    let lines: Result<Vec<String>, io::Error> = input.by_ref().lines().collect();
    let lines =
        lines.map_err(|error| Story::new("the piped input is not text in UTF-8").because(error))?;
    if input.limit() == 0 {
        return Err(Story::new("the piped input is larger than 8 MiB")
            .hint("send less of it")
            .into());
    }
    if lines.is_empty() {
        return Err(nothing().into());
    }
    Ok(lines)
}
