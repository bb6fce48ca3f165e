//! `create`: a model of one's own, from a Modelfile.

use std::{
    io::{self, Read},
    path::{Path, PathBuf},
};

use clap::Args;
use substrate_api::v1::{self, import_event::Event};

use crate::models::modelfile::{MAX_MODELFILE, Modelfile};

use super::{
    bring::{Bar, record},
    connect,
    session::{Session, note},
    story::{Story, refused},
};

/// The file that is read where none is named, as in Ollama.
const USUAL: &str = "Modelfile";

/// Stands for the standard input.
const STDIN: &str = "-";

/// Make a model of your own from a Modelfile.
#[derive(Debug, Args)]
#[command(
    after_help = "A Modelfile says what to start from, and what is added to each answer:\n\n  \
    FROM smollm2:135m\n  SYSTEM You are a pirate.\n  PARAMETER temperature 0.5\n  MESSAGE user Who are you?\n  \
    MESSAGE assistant Ahoy! A pirate.\n\n\
    FROM names a model that is here or a GGUF file. TEMPLATE (Jinja) and LICENSE are known too. The weights are shared,\n\
    not copied. What the Modelfile adds travels with each prompt, so other nodes that hold the same weights can answer."
)]
pub struct Create {
    /// Its name, such as pirate
    name: String,

    /// The Modelfile; - reads standard input [default: Modelfile]
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,

    /// Not here: models are not quantised
    #[arg(short, long, value_name = "TYPE", hide = true)]
    quantize: Option<String>,
}

impl Create {
    /// Makes the model.
    pub async fn run(self, session: &Session) -> anyhow::Result<()> {
        if self.quantize.is_some() {
            return Err(Story::usage("models are not quantised here")
                .hint("`substrate pull hf:USER/REPO:QUANT` fetches one that is")
                .into());
        }
        let file = self.file.unwrap_or_else(|| USUAL.into());
        let text = read(&file)?;
        let modelfile = Modelfile::parse(&text)
            .map_err(|error| Story::new(format!("{}: {error}", file.display())))?;
        for warning in &modelfile.warnings {
            note(format_args!("warning: {warning}"));
        }
        let request = v1::CreateRequest {
            name: self.name,
            modelfile: text,
            folder: folder(&file)?,
        };
        make(session, request).await
    }
}

async fn make(session: &Session, request: v1::CreateRequest) -> anyhow::Result<()> {
    let mut client = connect::or_desk(session).await?;
    let events = client.create(request).await.map_err(refused)?;
    let mut events = events.into_inner();
    let mut bar = Bar::new(session);
    while let Some(event) = events.message().await.map_err(refused)? {
        match event.event {
            Some(Event::Progress(progress)) => bar.show(session, &progress)?,
            Some(Event::Imported(made)) => {
                bar.clear();
                if session.json {
                    return Ok(session.json_line(&record(&made))?);
                }
                note(format_args!("'{}' is made", made.name));
                note(format_args!("try: substrate run {}", made.name));
                return Ok(());
            }
            Some(Event::Draft(_)) | None => {}
        }
    }
    Err(Story::new("the making ended without a result").into())
}

/// The text of a Modelfile.
fn read(file: &Path) -> anyhow::Result<String> {
    let shown = file.display();
    let cannot = |error: io::Error| Story::new(format!("cannot read {shown}")).because(error);
    let mut bytes = Vec::new();
    let most = MAX_MODELFILE as u64 + 1;
    if file == Path::new(STDIN) {
        let stdin = io::stdin().lock();
        stdin.take(most).read_to_end(&mut bytes).map_err(cannot)?;
    } else {
        let open = std::fs::File::open(file);
        let open = open.map_err(|error| cannot(error).hint("`-f FILE` names the Modelfile"))?;
        open.take(most).read_to_end(&mut bytes).map_err(cannot)?;
    }
    let not_text = |_| {
        Story::new(format!("{shown} is not text in UTF-8"))
            .hint("a model file is brought by `substrate import FILE --as NAME`")
    };
    Ok(String::from_utf8(bytes).map_err(not_text)?)
}

/// Where paths in the file start from: its own folder, or this one.
fn folder(file: &Path) -> anyhow::Result<String> {
    let folder = file.parent().filter(|_| file != Path::new(STDIN));
    let folder = match folder.filter(|folder| !folder.as_os_str().is_empty()) {
        Some(folder) => std::path::absolute(folder),
        None => std::env::current_dir(),
    };
    let folder = folder.map_err(|error| Story::new("cannot find the folder").because(error))?;
    let text = folder.to_str().map(str::to_owned);
    Ok(text.ok_or_else(|| {
        Story::new(format!("{} is not a name in UTF-8", folder.display())).hint("rename the folder")
    })?)
}
