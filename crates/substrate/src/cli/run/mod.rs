//! `run`: a question and its answer, or a conversation.
//!
//! Invariants: the answer alone goes to stdout; Ctrl-C cancels the answer everywhere; a prompt is
//! never cut off silently, never kept on disk, and never leaves its scope.

use std::io::{self, IsTerminal, Read};

use clap::{Args, ValueEnum};
use substrate_api::v1;
use substrate_record::NodeId;
use substrate_sandbox::wire::Thinking;

use super::{
    connect::{self, Client},
    consent,
    plain::{self, Scope, Wall, scope_code},
    sampling::Sampling,
    session::{Session, interrupted, note},
    story::{self, Story},
};
use crate::config::KeepAlive;
use crate::grpc::convert::thinking_out;
use crate::thoughts::{self, Settled};

mod answer;
pub use answer::finished_json;
mod conversation;
mod line;
mod pictures;

/// Longest piped input: the longest input that a job may have (PROTOCOL.md 4).
const MAX_PIPED: u64 = 8 * 1024 * 1024;

/// Ask a model, once or in a conversation.
#[derive(Debug, Args)]
#[command(
    after_help = "Without a prompt, at a terminal, this starts a conversation: /? shows its commands.\n\
    Piped input is added after the prompt: git diff | substrate run NAME 'Review this:'\n\
    A path in the prompt, such as ./cat.png, is shown to a model that sees images.\n\
    A daemon is started if none runs."
)]
pub struct Run {
    /// The model's name
    model: String,

    /// The prompt; words are joined
    prompt: Vec<String>,

    /// What the model is told before the prompt
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,

    #[command(flatten)]
    sampling: Sampling,

    /// How far the prompt may travel [default: mine, then circle]
    #[arg(long, help_heading = "Where it runs")]
    scope: Option<Scope>,

    /// Consent that strangers' machines read prompts for this model; remembered
    #[arg(long, help_heading = "Where it runs")]
    consent: bool,

    /// Never on this machine
    #[arg(long, conflicts_with = "node", help_heading = "Where it runs")]
    elsewhere: bool,

    /// On the node with this key or nowhere
    #[arg(long, value_parser = plain::node, value_name = "KEY", help_heading = "Where it runs")]
    node: Option<NodeId>,

    /// The wall the answering worker must be behind
    #[arg(long, value_name = "TIER", help_heading = "Where it runs")]
    demand_wall: Option<Wall>,

    /// A fresh worker that does nothing else and is destroyed afterwards; costs a load of the model
    #[arg(long, help_heading = "Where it runs")]
    isolated: bool,

    /// Give up after this long
    #[arg(long, value_parser = plain::span, value_name = "SPAN", help_heading = "Where it runs")]
    deadline: Option<std::time::Duration>,

    /// Think before the answer, or not: true, false, low, medium, high or max [default: true, where the model can]
    #[arg(long, value_name = "HOW", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = thinking)]
    think: Option<Thinking>,

    /// Do not show what the model thinks; it is shown on stderr
    #[arg(long)]
    hidethinking: bool,

    /// Tell on stderr who answered, how fast, and the receipt
    #[arg(long)]
    verbose: bool,

    /// How long the model stays in this machine's memory afterwards, such as 10m; 0 unloads it, -1 keeps it
    #[arg(long, value_name = "DURATION", value_parser = KeepAlive::parse, allow_hyphen_values = true)]
    keepalive: Option<KeepAlive>,

    /// Shape of the answer
    #[arg(long, default_value = "text", hide_possible_values = true)]
    format: Format,
}

/// Shapes an answer can be asked in.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    /// As the model writes
    Text,
    /// JSON and nothing else
    Json,
}

impl Run {
    /// Answers, or converses.
    pub async fn run(self, session: &Session) -> anyhow::Result<()> {
        if let Format::Json = self.format {
            return Err(Story::usage("answers that are sure to be JSON are not there yet")
                .hint("ask for JSON in the prompt and check it; `--json` is about this program's own words")
                .into());
        }
        let prompt = self.prompt.join(" ");
        let typed = prompt.len();
        let talk = prompt.is_empty() && !session.json && conversation::possible();
        let question = if talk {
            String::new()
        } else {
            with_piped(prompt)?
        };
        if !talk && question.trim().is_empty() {
            return Err(Story::usage("there is no prompt")
                .hint("give one after the model's name, pipe one in, or run at a terminal to converse")
                .into());
        }
        let home = session.prepared_home()?;
        if self.scope == Some(Scope::Commons) {
            consent::require(&home, &self.model, self.consent)?;
        }
        let client = tokio::select! {
            client = connect::or_started(session) => client?,
            () = interrupted() => return Err(Story::interrupted().into()),
        };
        if talk {
            conversation::converse(session, client, self).await
        } else {
            self.once(session, client, question, typed).await
        }
    }

    async fn once(
        self,
        session: &Session,
        mut client: Client,
        question: String,
        typed: usize,
    ) -> anyhow::Result<()> {
        let mut messages = Vec::new();
        messages.extend(self.system.clone().map(|system| turn("system", system)));
        messages.push(self.users_turn(&mut client, question, typed).await?);
        tokio::select! {
            answer = self.ask(session, &mut client, messages) => drop(answer?),
            // Ending the program closes the stream, which cancels the job.
            () = interrupted() => return Err(Story::interrupted().into()),
        }
        self.keep(&mut client).await;
        Ok(())
    }

    /// Asks and shows the answer as it comes.
    async fn ask(
        &self,
        session: &Session,
        client: &mut Client,
        messages: Vec<v1::Message>,
    ) -> anyhow::Result<answer::Answer> {
        let settled = self.settled(client).await?;
        let request = v1::RunRequest {
            thinking: thinking_out(settled.told).into(),
            ..self.request(messages)
        };
        let manner = answer::Manner {
            json: session.json,
            verbose: self.verbose,
            begins: settled.begins,
            hides_thoughts: self.hidethinking,
        };
        answer::stream(session, client, request, manner).await
    }

    /// What a person says, with the images whose paths are in its first `typed` bytes, if the model sees any.
    async fn users_turn(
        &self,
        client: &mut Client,
        text: String,
        typed: usize,
    ) -> anyhow::Result<v1::Message> {
        if !pictures::are_named(&text[..typed.min(text.len())]) {
            return Ok(turn("user", text));
        }
        let model = self.model.clone();
        let shown = client
            .show(v1::ShowRequest {
                model,
                context: None,
            })
            .await;
        // A model that is not there is told by the job.
        let sees = shown.is_ok_and(|shown| super::show::sees(shown.get_ref()));
        if sees {
            pictures::shown(text, typed)
        } else {
            Ok(turn("user", text))
        }
    }

    /// Settles thinking from the model's template, where this machine has it. A model that is not there is told by the job.
    async fn settled(&self, client: &mut Client) -> anyhow::Result<Settled> {
        let model = self.model.clone();
        let shown = client
            .show(v1::ShowRequest {
                model,
                context: None,
            })
            .await
            .ok();
        let model = shown.and_then(|shown| shown.into_inner().model);
        let template = model.and_then(|model| model.template);
        let settled = thoughts::settle(template.as_deref(), self.think, false);
        settled.map_err(|error| {
            Story::new(format!("'{}' {error}", self.model))
                .hint("leave out --think; `substrate show NAME --template` shows what it knows of")
                .into()
        })
    }

    /// Says how long the model stays loaded, once it is. An answer that came is not undone by a failure here.
    async fn keep(&self, client: &mut Client) {
        let Some(stay) = self.keepalive else { return };
        let request = v1::KeepAliveRequest {
            model: self.model.clone(),
            seconds: stay.seconds(),
        };
        match client.keep_alive(request).await {
            Ok(reply) if !reply.get_ref().loaded => note(format_args!(
                "--keepalive changes nothing: '{}' is not in this machine's memory",
                self.model
            )),
            Ok(_) => {}
            Err(status) => story::tell(&story::refused(status)),
        }
    }

    /// A request with everything the flags chose.
    fn request(&self, messages: Vec<v1::Message>) -> v1::RunRequest {
        let placement = match (&self.node, self.elsewhere) {
            (Some(node), _) => Some(v1::run_request::Placement::Node(node.as_bytes().to_vec())),
            (None, true) => Some(v1::run_request::Placement::Elsewhere(v1::Elsewhere {})),
            (None, false) => None,
        };
        let deadline = self.deadline.map_or(0, |span| {
            u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
        });
        let mut request = v1::RunRequest {
            model: self.model.clone(),
            prompt: Some(v1::run_request::Prompt::Chat(v1::Chat { messages })),
            scope: scope_code(self.scope),
            placement,
            wall: self
                .demand_wall
                .map_or(v1::Wall::Unspecified.into(), Wall::code),
            isolated: self.isolated,
            deadline_ms: deadline,
            ..Default::default()
        };
        self.sampling.apply(&mut request);
        request
    }
}

fn thinking(word: &str) -> Result<Thinking, &'static str> {
    Thinking::from_word(word).ok_or("must be true, false, low, medium, high or max")
}

/// One turn of a conversation.
fn turn(role: &str, content: String) -> v1::Message {
    v1::Message {
        role: role.to_owned(),
        content,
        ..Default::default()
    }
}

/// The prompt with what is piped in after it.
fn with_piped(prompt: String) -> anyhow::Result<String> {
    let stdin = io::stdin();
    if stdin.is_terminal() {
        return Ok(prompt);
    }
    let mut piped = Vec::new();
    let cannot = |error: io::Error| Story::new("cannot read the piped input").because(error);
    stdin
        .lock()
        .take(MAX_PIPED + 1)
        .read_to_end(&mut piped)
        .map_err(cannot)?;
    if piped.len() as u64 > MAX_PIPED {
        return Err(Story::new("the piped input is larger than 8 MiB")
            .hint("send less of it")
            .into());
    }
    let piped = String::from_utf8(piped).map_err(|_| {
        Story::new("the piped input is not text in UTF-8").hint("convert it first, as with iconv")
    })?;
    Ok(match (prompt.is_empty(), piped.trim().is_empty()) {
        (_, true) => prompt,
        (true, false) => piped,
        (false, false) => format!("{prompt}\n\n{piped}"),
    })
}
