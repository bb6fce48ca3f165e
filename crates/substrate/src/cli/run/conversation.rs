//! A conversation at a terminal.
//!
//! Invariants: what is typed stays in this process's memory and goes to nobody but the model;
//! Ctrl-C cancels the answer under way and never the conversation; Ctrl-D ends it.

use std::io::IsTerminal;

use rustix::termios::OptionalActions;
use rustyline::{DefaultEditor, error::ReadlineError};
use substrate_api::v1;

use crate::cli::{
    connect::Client,
    consent,
    plain::Scope,
    sampling::PARAMETERS,
    session::{Session, note, terminated},
    show,
    story::{Story, refused},
};

use super::{
    Run,
    line::{Command, Gather, Part, Typed},
    turn,
};

const HELP: &str = r#"/set parameter NAME VALUE   how tokens are drawn; /set parameter lists the names
/set system TEXT            what the model is told first; between """ it may have several lines
/set think [HOW], /set nothink  think before the answer, or not; HOW is low, medium, high or max
/set verbose, /set quiet    tell who answered and how fast, or not
/show [info|template|license|system|parameters]
/load MODEL                 go on with another model
/clear                      forget what was said
/bye                        end; so does Ctrl-D
"""                         begins and ends a turn of several lines
Ctrl-C                      cancels the answer, not the conversation"#;

/// A conversation and what it runs on.
struct Talk<'s> {
    session: &'s Session,
    client: Client,
    run: Run,
    said: Vec<v1::Message>,
}

/// Converses until the person ends it, and leaves the terminal as it was.
pub async fn converse(session: &Session, client: Client, run: Run) -> anyhow::Result<()> {
    let before = rustix::termios::tcgetattr(std::io::stdin());
    tokio::select! {
        outcome = turns(session, client, run) => outcome,
        () = terminated() => {
            if let Ok(before) = before {
                // The program ends anyway; a terminal that is gone needs nothing.
                let _ = rustix::termios::tcsetattr(std::io::stdin(), OptionalActions::Now, &before);
            }
            Err(Story::interrupted().into())
        }
    }
}

async fn turns(session: &Session, client: Client, run: Run) -> anyhow::Result<()> {
    let mut editor = DefaultEditor::new()
        .map_err(|error| Story::new("cannot use this terminal").because(error))?;
    let mut talk = Talk {
        session,
        client,
        run,
        said: Vec::new(),
    };
    // What is not known of the model may still be asked: the first turn tells.
    if let Err(error) = talk.load().await {
        crate::cli::story::tell(&error);
    }
    let mut gather = Gather::default();
    loop {
        let prompt = if gather.is_open() { "... " } else { ">>> " };
        let read = read(editor, prompt).await?;
        editor = read.0;
        match read.1 {
            Ok(line) => match gather.line(&line) {
                None | Some(Typed::Nothing) => {}
                Some(Typed::Turn(text)) => {
                    let _ = editor.add_history_entry(text.trim_end());
                    talk.answer(text).await?;
                }
                Some(Typed::Command(Command::Bye)) => return Ok(()),
                Some(Typed::Command(command)) => talk.obey(command).await,
                Some(Typed::Wrong(why)) => note(why),
            },
            Err(ReadlineError::Interrupted) if gather.is_open() => gather.reset(),
            Err(ReadlineError::Interrupted) => note("Ctrl-D or /bye ends the conversation"),
            Err(ReadlineError::Eof) => return Ok(()),
            Err(error) => return Err(Story::new("cannot read the terminal").because(error).into()),
        }
    }
}

/// Reads a line on a thread that may block.
async fn read(
    mut editor: DefaultEditor,
    prompt: &'static str,
) -> anyhow::Result<(DefaultEditor, rustyline::Result<String>)> {
    let reading = tokio::task::spawn_blocking(move || {
        let line = editor.readline(prompt);
        (editor, line)
    });
    Ok(reading.await?)
}

impl Talk<'_> {
    /// Puts the model in memory while the person still types. A model elsewhere needs none of it.
    async fn load(&mut self) -> anyhow::Result<()> {
        let model = self.run.model.clone();
        let known = self
            .client
            .show(v1::ShowRequest {
                model: model.clone(),
                context: None,
            })
            .await
            .map_err(refused)?;
        if known.into_inner().model.is_some_and(|model| model.own) && !self.run.elsewhere {
            let mut client = self.client.clone();
            // A failure shows again, with its reason, at the first turn.
            tokio::spawn(async move { client.load(v1::LoadRequest { model }).await });
        }
        Ok(())
    }

    /// Answers one turn. A failed or cancelled turn is forgotten, so that it can be said again.
    async fn answer(&mut self, text: String) -> anyhow::Result<()> {
        let before = self.said.len();
        let typed = text.len();
        match self.run.users_turn(&mut self.client, text, typed).await {
            Ok(turn) => self.said.push(turn),
            Err(error) => {
                crate::cli::story::tell(&error);
                return Ok(());
            }
        }
        let mut messages: Vec<_> = self
            .run
            .system
            .iter()
            .map(|system| turn("system", system.clone()))
            .collect();
        messages.extend(self.said.iter().cloned());
        let outcome = tokio::select! {
            outcome = self.run.ask(self.session, &mut self.client, messages) => Some(outcome),
            // Dropping the stream cancels the job.
            _ = tokio::signal::ctrl_c() => None,
        };
        match outcome {
            Some(Ok(answer)) => {
                self.said.push(v1::Message {
                    thinking: Some(answer.thoughts).filter(|thoughts| !thoughts.is_empty()),
                    ..turn("assistant", answer.text)
                });
                self.run.keep(&mut self.client).await;
            }
            Some(Err(error)) if error.chain().any(|cause| cause.is::<std::io::Error>()) => {
                return Err(error);
            }
            Some(Err(error)) => {
                self.said.truncate(before);
                crate::cli::story::tell(&error);
            }
            None => {
                self.said.truncate(before);
                note("\ncancelled");
            }
        }
        Ok(())
    }

    async fn obey(&mut self, command: Command) {
        match command {
            Command::Bye => {}
            Command::Help => note(HELP),
            Command::Clear => self.said.clear(),
            Command::Parameters => list_parameters(),
            Command::SetParameter(name, value) => match self.run.sampling.set(&name, &value) {
                Ok(()) => note(format_args!("{name} is {value}")),
                Err(why) => note(why),
            },
            Command::SetSystem(text) => self.run.system = (!text.is_empty()).then_some(text),
            Command::SetThink(think) => self.run.think = Some(think),
            Command::SetVerbose(verbose) => self.run.verbose = verbose,
            Command::Show(part) => self.show(part).await,
            Command::Load(model) => self.go_on_with(model).await,
        }
    }

    /// Changes the model. A consent that strangers read prompts was given for one model only.
    async fn go_on_with(&mut self, model: String) {
        if let Err(error) = self.consent(&model).await {
            return crate::cli::story::tell(&error);
        }
        let before = std::mem::replace(&mut self.run.model, model);
        match self.load().await {
            Ok(()) => note(format_args!("going on with '{}'", self.run.model)),
            Err(error) => {
                self.run.model = before;
                crate::cli::story::tell(&error);
            }
        }
    }

    /// Asks on a thread that may block; the line editor has given the terminal back by now.
    async fn consent(&self, model: &str) -> anyhow::Result<()> {
        if self.run.scope != Some(Scope::Commons) {
            return Ok(());
        }
        let (home, model) = (self.session.prepared_home()?, model.to_owned());
        tokio::task::spawn_blocking(move || consent::require(&home, &model, false)).await?
    }

    async fn show(&mut self, part: Part) {
        if part == Part::System
            && let Some(system) = &self.run.system
        {
            return note(system);
        }
        let known = match self
            .client
            .show(v1::ShowRequest {
                model: self.run.model.clone(),
                context: None,
            })
            .await
        {
            Ok(known) => known.into_inner(),
            Err(status) => return crate::cli::story::tell(&refused(status)),
        };
        let Some(model) = known.model.clone() else {
            return;
        };
        match part {
            Part::Template => note(
                model
                    .template
                    .as_deref()
                    .unwrap_or("no template is known here"),
            ),
            Part::License => note(&model.licence),
            Part::System => {
                let own = known.recipe.and_then(|recipe| recipe.system);
                note(own.as_deref().unwrap_or("no system text is set"));
            }
            Part::Parameters => {
                list_parameters();
                let own = known.recipe.map(|recipe| recipe.parameters);
                own.filter(|own| !own.is_empty())
                    .into_iter()
                    .for_each(|own| note(format_args!("\nthe model's own:\n{own}")));
            }
            _ => note(show::page(&known, &model)),
        }
    }
}

fn list_parameters() {
    for (name, words) in PARAMETERS {
        note(format_args!("{name:<20}{words}"));
    }
}

/// Whether a conversation is possible: somebody types and somebody reads.
pub fn possible() -> bool {
    std::io::stdin().is_terminal() && std::io::stdout().is_terminal()
}
