//! `pull`: a model from where it is published.

use std::path::PathBuf;

use clap::Args;
use substrate_api::v1::import_begin::Source;

use super::{bring, session::Session};

/// Fetch a model from where it is published.
#[derive(Debug, Args)]
#[command(
    after_help = "Sources: hf:USER/REPO[:QUANT], hf.co/USER/REPO[:QUANT], file:/absolute/path.\n\
    An interrupted pull goes on where it was."
)]
pub struct Pull {
    /// Where from, such as hf:USER/REPO:Q4_K_M
    source: String,

    /// Its name here [default: the source's own]
    #[arg(long = "as", value_name = "NAME")]
    name: Option<String>,

    /// File whose first line opens the network's registry key
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
}

impl Pull {
    /// Pulls the model.
    pub async fn run(self, session: &Session) -> anyhow::Result<()> {
        let name = self.name.unwrap_or_default();
        bring::bring(
            session,
            Source::Pull(self.source),
            None,
            name,
            self.passphrase_file,
        )
        .await
    }
}
