//! `import`: a model file on this machine, under a name.

use std::path::{Path, PathBuf};

use clap::Args;
use substrate_api::v1::import_begin::Source;

use super::{bring, session::Session, story::Story};

/// Bring a model file under a name.
#[derive(Debug, Args)]
#[command(
    after_help = "The file is hashed and its header is read inside the wall. If its digest belongs to a known\n\
    entry, that entry is adopted. Otherwise the network's registry key signs a new one, if it is here\n\
    and its passphrase can be had, or else this device does, for its owner and the circles."
)]
pub struct Import {
    /// A GGUF file
    file: PathBuf,

    /// Its projector, the GGUF file that sees images for it (`mmproj`)
    #[arg(long, value_name = "FILE")]
    projector: Option<PathBuf>,

    /// Its name, such as smollm2:135m
    #[arg(long = "as", value_name = "NAME")]
    name: String,

    /// File whose first line opens the network's registry key
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
}

impl Import {
    /// Imports the file.
    pub async fn run(self, session: &Session) -> anyhow::Result<()> {
        let path = whole(&self.file)?;
        let projector = self.projector.as_deref().map(whole).transpose()?;
        bring::bring(
            session,
            Source::File(path),
            projector,
            self.name,
            self.passphrase_file,
        )
        .await
    }
}

/// The whole path of a file, as the daemon is told it.
fn whole(file: &Path) -> anyhow::Result<String> {
    let path = file
        .canonicalize()
        .map_err(|error| Story::new(format!("cannot open {}", file.display())).because(error))?;
    let Some(path) = path.to_str() else {
        return Err(
            Story::new(format!("{} is not a name in UTF-8", path.display()))
                .hint("rename the file")
                .into(),
        );
    };
    Ok(path.to_owned())
}
