//! `man`: the manual, one page per command, for packages.

use std::path::PathBuf;

use clap::{Args, CommandFactory};

use super::{Cli, session::Session, story::Story};

/// Write the man pages into a folder.
#[derive(Debug, Args)]
pub struct Man {
    /// The folder; it is made if need be
    folder: PathBuf,
}

impl Man {
    /// Writes the pages.
    pub fn run(self, _: &Session) -> anyhow::Result<()> {
        let cannot = |error| {
            Story::new(format!(
                "cannot write man pages into {}",
                self.folder.display()
            ))
            .because(error)
        };
        std::fs::create_dir_all(&self.folder).map_err(cannot)?;
        clap_mangen::generate_to(Cli::command(), &self.folder).map_err(cannot)?;
        Ok(())
    }
}
