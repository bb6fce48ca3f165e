//! Commands that people know from Ollama and that are not here, each with a word on why and what there is instead.
//!
//! Absent by design: accounts. A machine is its key.

use clap::Args;

use super::story::Story;

/// Whatever was typed after it.
#[derive(Debug, Args)]
pub struct Absent {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    _rest: Vec<String>,
}

/// `push`: models for a registry.
pub fn push() -> anyhow::Error {
    Story::new("models are not pushed: there is no registry that would hold them for everyone")
        .hint("`substrate node lend always` lets others use a model where it is; `substrate import` signs one")
        .into()
}

/// `signin` and `signout`: accounts.
pub fn account() -> anyhow::Error {
    Story::new("nobody signs in or out here: there are no accounts, this machine is its key")
        .hint("`substrate node id` prints it; `substrate circle invite` and `join` make two machines know each other")
        .into()
}
