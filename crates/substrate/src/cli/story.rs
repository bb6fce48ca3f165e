//! A failure as people read it: what happened, why, and a `hint:` what to do next.
//!
//! Invariant: one failure, one exit code; a closed pipe is no failure. docs/messages.md says how to word one.

use std::{fmt, io, process::ExitCode};

use substrate_api::v1::{self, refusal::Cause};
use tonic::{Code, Status};

use crate::grpc::refusal::refusal_in;

/// Exit code of wrong usage, as clap's.
pub const USAGE: u8 = 2;
/// Exit code of a failure.
const FAILURE: u8 = 1;
/// Exit code after Ctrl-C: 128 + SIGINT, as shells count.
const INTERRUPTED: u8 = 130;

/// A failure that knows what to do next.
#[derive(Debug)]
pub struct Story {
    what: String,
    hint: Option<String>,
    code: u8,
    cause: Option<anyhow::Error>,
}

impl Story {
    /// A failure, in one sentence without a full stop.
    pub fn new(what: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            hint: None,
            code: FAILURE,
            cause: None,
        }
    }

    /// Wrong usage that the parser could not see.
    pub fn usage(what: impl Into<String>) -> Self {
        Self {
            code: USAGE,
            ..Self::new(what)
        }
    }

    /// Ctrl-C.
    pub fn interrupted() -> Self {
        Self {
            code: INTERRUPTED,
            ..Self::new("")
        }
    }

    /// Why it happened.
    pub fn because(mut self, cause: impl Into<anyhow::Error>) -> Self {
        self.cause = Some(cause.into());
        self
    }

    /// What to do next: a command, or a place to look.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for Story {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for Story {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.cause.as_ref().map(AsRef::as_ref)
    }
}

/// A refused call, told with the hint that fits its cause.
pub fn refused(status: Status) -> anyhow::Error {
    if let Some(refusal) = refusal_in(&status) {
        return refusal_story(refusal).into();
    }
    if std::error::Error::source(&status)
        .is_some_and(|source| source.is::<tonic::transport::Error>())
    {
        return Story::new("the daemon went away while it was asked")
            .hint("run `substrate doctor`")
            .into();
    }
    let story = Story::new(status.message().to_owned());
    match status.code() {
        Code::Unavailable => {
            story.hint("the daemon's log may say why: `substrate doctor` tells where it is")
        }
        Code::Internal | Code::Unknown => story.hint("run `substrate doctor`"),
        _ => story,
    }
    .into()
}

/// A refusal of the daemon, with its hint.
pub fn refusal_story(refusal: v1::Refusal) -> Story {
    let story = Story::new(refusal.message);
    match refusal.cause {
        Some(cause) => match hint_for(&cause) {
            Some(hint) => story.hint(hint),
            None => story,
        },
        None => story,
    }
}

fn hint_for(cause: &Cause) -> Option<String> {
    Some(match cause {
        Cause::UnknownModel(unknown) => match unknown.similar.as_slice() {
            [] => "`substrate list` shows what can be used now; `substrate pull` and `substrate import` bring more".into(),
            similar => format!("did you mean {}? `substrate list` shows all", similar.join(" or ")),
        },
        Cause::NoNode(no_node) => match v1::Scope::try_from(no_node.scope) {
            Ok(v1::Scope::Mine) => "`--scope circle` also asks the machines of your circles".into(),
            Ok(v1::Scope::Commons) => "`substrate peers` shows which nodes are in sight and what they hold".into(),
            _ => "`substrate peers` shows which nodes are in sight; `substrate circle invite` brings more".into(),
        },
        Cause::ContextOverflow(_) => "shorten the prompt, or start anew with /clear; nothing is ever cut off silently".into(),
        Cause::Busy(busy) => format!("try again in {} s", busy.retry_after_ms.div_ceil(1000).max(1)),
        Cause::Deadline(_) => "`substrate jobs` and `substrate peers` show where it waited".into(),
        Cause::Internal(_) => "run `substrate doctor`".into(),
        Cause::BadRequest(_) | Cause::Forbidden(_) | Cause::Cancelled(_) => return None,
    })
}

/// Tells a failure on stderr, as the last line of JSON if that was asked for, and gives its exit code.
pub fn exit(outcome: anyhow::Result<()>, json: bool) -> ExitCode {
    let Err(error) = outcome else {
        return ExitCode::SUCCESS;
    };
    if closed_pipe(&error) {
        return ExitCode::SUCCESS;
    }
    let story = error
        .chain()
        .find_map(|cause| cause.downcast_ref::<Story>());
    let code = story.map_or(FAILURE, |story| story.code);
    if code != INTERRUPTED {
        write(if json {
            as_json(&error)
        } else {
            as_text(&error)
        });
    }
    ExitCode::from(code)
}

/// Tells a failure on stderr.
pub fn tell(error: &anyhow::Error) {
    write(as_text(error));
}

fn write(text: String) {
    use io::Write;
    // Without a stderr there is nobody to tell.
    let _ = io::stderr().write_all(text.as_bytes());
}

/// What happened, each cause of it, outermost first, and what to do next.
fn parts(error: &anyhow::Error) -> (Vec<String>, Option<String>) {
    // Libraries and the daemon carry a hint as the last line of their message.
    let mut hint = error
        .chain()
        .find_map(|cause| cause.downcast_ref::<Story>()?.hint.clone());
    let mut causes = Vec::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        let (cause, carried) = cause.split_once("\nhint: ").unwrap_or((&cause, ""));
        if hint.is_none() && !carried.is_empty() {
            hint = Some(carried.to_owned());
        }
        causes.push(cause.to_owned());
    }
    (causes, hint)
}

fn as_text(error: &anyhow::Error) -> String {
    let (causes, hint) = parts(error);
    let mut text = String::new();
    for (depth, cause) in causes.iter().enumerate() {
        let mark = if depth == 0 { "error: " } else { "  because: " };
        text.push_str(&format!("{mark}{cause}\n"));
    }
    if let Some(hint) = hint {
        text.push_str(&format!("hint: {hint}\n"));
    }
    text
}

fn as_json(error: &anyhow::Error) -> String {
    let (causes, hint) = parts(error);
    let (what, because) = causes.split_first().expect("an error has a message");
    let line = serde_json::json!({ "error": what, "because": because, "hint": hint });
    format!("{line}\n")
}

fn closed_pipe(error: &anyhow::Error) -> bool {
    let is_closed = |error: &io::Error| error.kind() == io::ErrorKind::BrokenPipe;
    error
        .chain()
        .any(|cause| cause.downcast_ref::<io::Error>().is_some_and(is_closed))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::door::AskError;
    use crate::grpc::refusal::status_of;

    #[test]
    fn a_refusal_becomes_a_message_and_a_hint() {
        let error = AskError::UnknownModel {
            model: "smollm3".into(),
            similar: vec!["smollm2:135m".into()],
        };
        let told = refused(status_of(&error));
        let story = told.downcast_ref::<Story>().unwrap();
        assert_eq!(story.to_string(), "model 'smollm3' not found");
        assert_eq!(
            story.hint.as_deref(),
            Some("did you mean smollm2:135m? `substrate list` shows all")
        );
    }

    #[test]
    fn a_failure_in_json_has_the_same_parts() {
        let error = anyhow::Error::from(
            Story::new("cannot do it")
                .because(anyhow::anyhow!("the port is taken\nhint: choose another")),
        );
        assert_eq!(
            as_text(&error),
            "error: cannot do it\n  because: the port is taken\nhint: choose another\n"
        );
        assert_eq!(
            as_json(&error),
            "{\"because\":[\"the port is taken\"],\"error\":\"cannot do it\",\"hint\":\"choose another\"}\n"
        );
    }

    #[test]
    fn a_closed_pipe_is_no_failure_however_deep() {
        let error =
            anyhow::Error::from(io::Error::from(io::ErrorKind::BrokenPipe)).context("cannot write");
        assert!(closed_pipe(&error));
        assert!(!closed_pipe(&anyhow::anyhow!("something else")));
    }
}
