//! `completions`: what a shell needs to complete our commands.

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::{Cli, session::Session};

/// Print completions for a shell.
#[derive(Debug, Args)]
#[command(
    after_help = "For bash: substrate completions bash > ~/.local/share/bash-completion/completions/substrate"
)]
pub struct Completions {
    /// Which shell
    shell: Shell,
}

impl Completions {
    /// Writes the script to stdout.
    pub fn run(self, session: &Session) -> anyhow::Result<()> {
        // Into memory first: the generator panics on a closed pipe.
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "substrate", &mut script);
        Ok(session.bytes(&script)?)
    }
}
