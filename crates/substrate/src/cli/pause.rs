//! `pause` and `resume`: the owner keeps the machine to itself by hand.

use std::time::Duration;

use clap::Args;
use serde_json::json;

use crate::{config::When, pause};

use super::{
    connect, plain,
    session::{Session, note},
    start,
    story::Story,
    words,
};

/// Keep this machine to yourself.
#[derive(Debug, Args)]
#[command(
    after_help = "Your own prompts go on. A pause outlives the daemon; `substrate resume` ends it."
)]
pub struct Pause {
    /// For how long, such as 1h; without it, until `substrate resume`
    #[arg(value_parser = plain::span, value_name = "SPAN")]
    span: Option<Duration>,
}

/// End a pause.
#[derive(Debug, Args)]
pub struct Resume {}

impl Pause {
    /// Begins one, in place of any other.
    pub async fn run(self, session: &Session) -> anyhow::Result<()> {
        let home = session.prepared_home()?;
        let lending = start::check_config(&home)?.lending;
        let until = self.span.map(|span| {
            let span = u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
            words::now_ms().saturating_add(span)
        });
        let pause = until.map_or(pause::Pause::UntilResumed, pause::Pause::Until);
        pause.write(&home).map_err(|error| {
            Story::new("the pause cannot be kept")
                .because(error)
                .hint("run `substrate doctor`")
        })?;
        connect::tell_settings(&home).await?;
        if lending.when == When::Off {
            note("this machine lends nothing anyway: `substrate node lend` shows what it would");
        }
        if session.json {
            return Ok(session.json(&json!({ "paused": true, "until_ms": until }))?);
        }
        let how_long = match self.span {
            Some(span) => {
                let ms = u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
                format!("for {}", words::span(ms))
            }
            None => "until `substrate resume`".to_owned(),
        };
        note(format_args!("nothing is lent {how_long}"));
        Ok(())
    }
}

impl Resume {
    /// Ends the pause, if there is one.
    pub async fn run(self, session: &Session) -> anyhow::Result<()> {
        let home = session.prepared_home()?;
        let was_paused = pause::Pause::end(&home).map_err(|error| {
            Story::new("the pause cannot be ended")
                .because(error)
                .hint("run `substrate doctor`")
        })?;
        connect::tell_settings(&home).await?;
        if session.json {
            return Ok(session.json(&json!({ "paused": false, "was_paused": was_paused }))?);
        }
        note(if was_paused {
            "the pause is over"
        } else {
            "there was no pause; `substrate status` tells why nothing is lent"
        });
        Ok(())
    }
}
