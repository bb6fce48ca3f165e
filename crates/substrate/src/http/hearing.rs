//! What is heard in an answer: its thoughts first, then its text and its calls of tools.
//!
//! Invariant: streamed or whole, the same is told. What the template is told of thinking and how the answer is heard are
//! settled together, before a job is made of the request.

use substrate_sandbox::wire::Thinking;
use substrate_sandbox::wire::input::Prompt;

use super::error::Refusal;
use super::guard::Caller;
use super::tools::{self, ToolCall, Tools};
use super::{App, lists};
use crate::door::Ask;
use crate::thoughts::{self, Begins, ThinkError};

/// How the answers of one request are heard.
#[derive(Debug, Clone, Default)]
pub(super) struct Hearing {
    begins: Option<Begins>,
    tools: Option<Tools>,
}

impl Hearing {
    /// For answers that may call these tools.
    pub(super) fn of(tools: Option<Tools>) -> Self {
        Self {
            begins: None,
            tools,
        }
    }

    /// Settles thinking for the jobs of one request, which differ in nothing that matters here.
    ///
    /// # Errors
    /// The model is asked to think and cannot.
    pub(super) async fn settle(
        &mut self,
        app: &App,
        caller: &Caller,
        asks: &mut [Ask],
        asked: Option<Thinking>,
    ) -> Result<(), Refusal> {
        let Some(first) = asks.first() else {
            return Ok(());
        };
        if let Prompt::Text { .. } = first.input.prompt {
            return Ok(());
        }
        // A model that is not there is told by the job.
        let view = lists::model(app, caller, &first.model).await.ok();
        let template = view.and_then(|view| view.template);
        let bound = first.input.schema.is_some();
        let settled = thoughts::settle(template.as_deref(), asked, bound)
            .map_err(|error| cannot(&first.model, error))?;
        for ask in asks {
            ask.input.thinking = settled.told;
        }
        self.begins = settled.begins;
        Ok(())
    }

    /// Hears one answer as it comes.
    pub(super) fn ear(&self) -> Ear {
        Ear {
            thoughts: self.begins.map(thoughts::Ear::new),
            calls: self.tools.as_ref().map(Tools::ear),
        }
    }

    /// Hears one answer that is whole.
    pub(super) fn hear_all(&self, answer: String) -> Told {
        let (thoughts, text) = match self.begins.map(thoughts::Ear::new) {
            Some(ear) => {
                let heard = ear.hear_all(&answer);
                (heard.thoughts, heard.text)
            }
            None => (String::new(), answer),
        };
        let (text, calls) = match &self.tools {
            Some(tools) => tools.ear().hear_all(&text),
            None => (text, Vec::new()),
        };
        Told {
            thoughts,
            text,
            calls,
        }
    }
}

fn cannot(model: &str, error: ThinkError) -> Refusal {
    // Only OpenAI's clients are told the field, and this is theirs.
    Refusal::invalid("reasoning_effort", format!("\"{model}\" {error}"))
}

/// Hears one answer.
#[derive(Default)]
pub(super) struct Ear {
    thoughts: Option<thoughts::Ear>,
    calls: Option<tools::Ear>,
}

/// A piece of an answer, told apart; or all of it.
#[derive(Default)]
pub(super) struct Told {
    pub(super) thoughts: String,
    pub(super) text: String,
    /// Only at the end.
    pub(super) calls: Vec<ToolCall>,
}

impl Told {
    pub(super) fn is_empty(&self) -> bool {
        self.thoughts.is_empty() && self.text.is_empty() && self.calls.is_empty()
    }
}

impl Ear {
    /// Hears more. Returns what is sure.
    pub(super) fn hear(&mut self, piece: &str) -> Told {
        let (thoughts, text) = match &mut self.thoughts {
            Some(ear) => {
                let heard = ear.hear(piece);
                (heard.thoughts, heard.text)
            }
            None => (String::new(), piece.to_owned()),
        };
        Told {
            thoughts,
            text: self.sure(text),
            calls: Vec::new(),
        }
    }

    /// The answer is over: what was held back.
    pub(super) fn end(&mut self) -> Told {
        let heard = self.thoughts.as_mut().map(thoughts::Ear::end);
        let heard = heard.unwrap_or_default();
        let mut text = self.sure(heard.text);
        let (rest, calls) = self.calls.as_mut().map(tools::Ear::end).unwrap_or_default();
        text += &rest;
        Told {
            thoughts: heard.thoughts,
            text,
            calls,
        }
    }

    /// Whether something is held back until more is heard.
    pub(super) fn holds(&self) -> bool {
        self.thoughts.as_ref().is_some_and(thoughts::Ear::holds)
            || self.calls.as_ref().is_some_and(tools::Ear::holds)
    }

    fn sure(&mut self, text: String) -> String {
        match &mut self.calls {
            Some(ear) if !text.is_empty() => ear.hear(&text),
            _ => text,
        }
    }
}
