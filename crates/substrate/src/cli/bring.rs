//! Bringing a model, whichever way: the conversation of an import, its progress bar, its signature.

use std::{path::PathBuf, time::Duration};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;
use substrate_api::v1::{self, import_begin::Source, import_event::Event, import_step::Step};
use substrate_record::NetworkId;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::keys::RegistryKey;

use super::{
    connect,
    session::{Session, note, watched},
    sign,
    story::{Story, refused},
    words,
};

/// Brings a model and says what it is called here.
pub async fn bring(
    session: &Session,
    source: Source,
    projector: Option<String>,
    name: String,
    passphrase_file: Option<PathBuf>,
) -> anyhow::Result<()> {
    let mut client = connect::or_desk(session).await?;
    let network = client
        .network(v1::NetworkRequest {})
        .await
        .map_err(refused)?
        .into_inner()
        .network;
    let network = network
        .as_slice()
        .try_into()
        .map_err(|_| Story::new("the daemon named no network"))?;
    let network = NetworkId::from_bytes(network);
    let home = session.home()?;
    let key = sign::registry_key(&home, &network, passphrase_file)?;
    let signer = key
        .as_ref()
        .map_or_else(Vec::new, |key| key.node().as_bytes().to_vec());

    // At most `begin` and one signature are ever under way.
    let (say, said) = mpsc::channel(2);
    let begin = v1::ImportBegin {
        source: Some(source),
        name,
        signer,
        projector,
    };
    let _ = say
        .send(v1::ImportStep {
            step: Some(Step::Begin(begin)),
        })
        .await;
    let mut events = client
        .import(ReceiverStream::new(said))
        .await
        .map_err(refused)?
        .into_inner();
    let mut bar = Bar::new(session);
    while let Some(event) = events.message().await.map_err(refused)? {
        match event.event {
            Some(Event::Progress(progress)) => bar.show(session, &progress)?,
            Some(Event::Draft(draft)) => {
                bar.clear();
                let signed = signed(draft, key.as_ref(), &network)?;
                let _ = say
                    .send(v1::ImportStep {
                        step: Some(Step::Signed(signed)),
                    })
                    .await;
            }
            Some(Event::Imported(imported)) => {
                bar.clear();
                told(session, &imported)?;
                if key.is_none() && !imported.adopted && RegistryKey::exists(&home, &network) {
                    note(
                        "signed by this device only: valid for you and your circles; --passphrase-file signs for everyone",
                    );
                }
                return Ok(());
            }
            None => {}
        }
    }
    Err(Story::new("the import ended without a result")
        .hint("run it again: it goes on where it was")
        .into())
}

fn signed(
    draft: v1::Draft,
    key: Option<&RegistryKey>,
    network: &NetworkId,
) -> anyhow::Result<v1::SignedEntry> {
    let key =
        key.ok_or_else(|| Story::new("the daemon asked for a signature that was not offered"))?;
    Ok(v1::SignedEntry {
        record: sign::entry(draft, key, network)?,
    })
}

fn told(session: &Session, imported: &v1::Imported) -> anyhow::Result<()> {
    if session.json {
        return Ok(session.json_line(&record(imported))?);
    }
    let how = if imported.adopted {
        "its entry was known already"
    } else {
        "a new entry was signed"
    };
    note(format_args!(
        "'{}' is here ({}); {how}",
        imported.name,
        words::size(imported.size)
    ));
    note(format_args!("try: substrate run {}", imported.name));
    Ok(())
}

/// The last line for a program.
pub fn record(imported: &v1::Imported) -> serde_json::Value {
    json!({
        "status": "success",
        "name": imported.name,
        "entry": words::hex(&imported.entry),
        "digest": words::hex(&imported.digest),
        "size": imported.size,
        "adopted": imported.adopted,
        "signer": words::hex(&imported.signer),
    })
}

/// A step of known size.
const FILL: &str = "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}";

/// A step of unknown size.
const SPIN: &str = "{spinner} {msg}";

/// How fast the spinner turns: slow enough for a line over ssh, fast enough to be seen alive.
const TURN: Duration = Duration::from_millis(120);

/// Progress: a bar for who watches, a line per step for a log, a line of JSON for a program.
pub struct Bar {
    bar: Option<ProgressBar>,
    last: String,
}

impl Bar {
    /// A bar, if somebody watches.
    pub fn new(session: &Session) -> Self {
        let bar = (watched() && !session.json).then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            bar.set_style(style(SPIN));
            bar.enable_steady_tick(TURN);
            bar
        });
        Self {
            bar,
            last: String::new(),
        }
    }

    /// Shows a step.
    pub fn show(
        &mut self,
        session: &Session,
        progress: &v1::ImportProgress,
    ) -> std::io::Result<()> {
        if session.json {
            return session.json_line(&line_of(progress));
        }
        let news = progress.status != self.last;
        self.last.clone_from(&progress.status);
        match &self.bar {
            None if news => note(&progress.status),
            None => {}
            Some(bar) => draw(bar, progress),
        }
        Ok(())
    }

    /// Takes the bar away.
    pub fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// A step with a total fills a bar; one without, such as a check, turns until it is over.
fn draw(bar: &ProgressBar, progress: &v1::ImportProgress) {
    bar.set_message(progress.status.clone());
    match progress.total {
        Some(total) if bar.length() != Some(total) => {
            // A new thing is counted from its own beginning, as its speed is.
            bar.reset();
            bar.disable_steady_tick();
            bar.set_length(total);
            bar.set_style(style(FILL));
        }
        Some(_) => {}
        None if bar.length().is_some() => {
            bar.unset_length();
            bar.set_style(style(SPIN));
            bar.enable_steady_tick(TURN);
        }
        None => {}
    }
    if let Some(completed) = progress.completed {
        bar.set_position(completed);
    }
}

fn style(template: &str) -> ProgressStyle {
    // A template that does not parse shows the default bar.
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// One line, in the shape that Ollama's clients parse.
fn line_of(progress: &v1::ImportProgress) -> serde_json::Value {
    let mut line = json!({ "status": progress.status });
    if let Some(digest) = &progress.digest {
        line["digest"] = json!(digest);
    }
    if let Some(total) = progress.total {
        line["total"] = json!(total);
    }
    if let Some(completed) = progress.completed {
        line["completed"] = json!(completed);
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_without_a_total_turns_and_does_not_empty_the_bar() {
        let bar = ProgressBar::hidden();
        let step = |status: &str, total, completed| v1::ImportProgress {
            status: status.to_owned(),
            total,
            completed,
            ..Default::default()
        };
        draw(&bar, &step("reading", Some(200), Some(200)));
        assert_eq!((bar.length(), bar.position()), (Some(200), 200));
        draw(&bar, &step("checking", None, None));
        assert_eq!((bar.length(), bar.position()), (None, 200));
        draw(&bar, &step("reading the second", Some(50), Some(10)));
        assert_eq!((bar.length(), bar.position()), (Some(50), 10));
    }
}
