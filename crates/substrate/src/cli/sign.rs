//! Signing a model entry with the network's registry key, after showing it to the person who signs.
//!
//! Invariant: the registry key lives in this process only, as long as one signature takes; the
//! daemon gets a signed record, never the key or its passphrase.

use std::{
    io::{self, BufRead, IsTerminal, Write},
    path::PathBuf,
};

use substrate_api::v1;
use substrate_record::{
    ContentHash, FileRole, ModelEntry, ModelFile, NetworkId, Record, RecordId, ReferenceRates,
};

use crate::{
    home::Home,
    keys::{Passphrase, RegistryKey},
};

use super::{session::note, story::Story, words};

/// The passphrase from a file, or from the person at the terminal; `None` if there is neither.
pub fn passphrase(
    file: Option<PathBuf>,
    question: &str,
    twice: bool,
) -> anyhow::Result<Option<Passphrase>> {
    if let Some(file) = file {
        let read = Passphrase::from_file(&file);
        let cannot = |error| {
            Story::new(format!("cannot read the passphrase in {}", file.display())).because(error)
        };
        return Ok(Some(read.map_err(cannot)?));
    }
    if !io::stdin().is_terminal() {
        return Ok(None);
    }
    let typed = ask_unseen(question)?;
    if twice && ask_unseen("The same again")? != typed {
        return Err(Story::new("the two passphrases differ").into());
    }
    Ok((!typed.is_empty()).then(|| Passphrase::new(typed)))
}

/// Asks on the terminal without showing what is typed.
fn ask_unseen(question: &str) -> anyhow::Result<String> {
    use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
    let terminal = io::stdin();
    let before = tcgetattr(&terminal)?;
    let mut unseen = before.clone();
    unseen.local_modes.remove(LocalModes::ECHO);
    tcsetattr(&terminal, OptionalActions::Flush, &unseen)?;
    let mut typed = String::new();
    let _ = write!(io::stderr(), "{question}: ");
    let read = terminal.lock().read_line(&mut typed);
    tcsetattr(&terminal, OptionalActions::Flush, &before)?;
    note("");
    read?;
    typed.truncate(typed.trim_end_matches(['\r', '\n']).len());
    Ok(typed)
}

/// The registry key of a network, if this home has it and its passphrase can be had.
pub fn registry_key(
    home: &Home,
    network: &NetworkId,
    file: Option<PathBuf>,
) -> anyhow::Result<Option<RegistryKey>> {
    if !RegistryKey::exists(home, network) {
        return match file {
            None => Ok(None),
            Some(_) => Err(Story::new("this home has no registry key for its network")
                .hint("only who founded a network can sign for everyone in it; leave --passphrase-file out")
                .into()),
        };
    }
    let Some(passphrase) = passphrase(
        file,
        "Passphrase of the registry key (empty: sign with this device)",
        false,
    )?
    else {
        return Ok(None);
    };
    let key = RegistryKey::open(home, network, &passphrase).map_err(|error| {
        Story::new("cannot open the registry key")
            .because(error)
            .hint("check the passphrase")
    })?;
    Ok(Some(key))
}

/// Shows a drafted entry, signs it and gives its canonical bytes.
pub fn entry(draft: v1::Draft, key: &RegistryKey, network: &NetworkId) -> anyhow::Result<Vec<u8>> {
    show(&draft);
    let prev = match draft.prev.as_deref() {
        Some(prev) => Some((
            draft.seq.saturating_sub(1),
            RecordId::from_bytes(fixed(prev)?),
        )),
        None => None,
    };
    let body = body(draft)?;
    let signed = Record::new(key.node(), words::now_ms(), body)
        .after(prev)
        .sign(key.signing(), network);
    let signed =
        signed.map_err(|error| Story::new("cannot sign the model entry").because(error))?;
    Ok(signed.bytes().to_vec())
}

fn show(draft: &v1::Draft) {
    note("signing this entry for everyone in the network:");
    note(format_args!("  name      {}", draft.name));
    for file in &draft.files {
        note(format_args!(
            "  file      sha256:{} ({})",
            words::hex(&file.sha256),
            words::size(file.size)
        ));
    }
    note(format_args!(
        "  model     {} {}, context {}",
        draft.arch, draft.quant, draft.context
    ));
    note(format_args!(
        "  licence   {}",
        if draft.licence.is_empty() {
            "not stated"
        } else {
            &draft.licence
        }
    ));
}

fn body(draft: v1::Draft) -> anyhow::Result<ModelEntry> {
    let rates = |rates: v1::ReferenceRates| ReferenceRates {
        prefill: rates.prefill,
        decode: rates.decode,
    };
    Ok(ModelEntry {
        name: draft.name,
        files: draft
            .files
            .iter()
            .map(file)
            .collect::<anyhow::Result<_>>()?,
        arch: draft.arch,
        quant: draft.quant,
        context: draft.context,
        licence: draft.licence,
        template_sha256: draft
            .template_sha256
            .as_deref()
            .map(fixed)
            .transpose()?
            .map(ContentHash::from_bytes),
        sources: draft.sources,
        reference_rates: draft.reference_rates.map(rates),
        base: draft
            .base
            .as_deref()
            .map(fixed)
            .transpose()?
            .map(RecordId::from_bytes),
    })
}

fn file(file: &v1::ModelFile) -> anyhow::Result<ModelFile> {
    let role = match file.role {
        1 => FileRole::Weights,
        2 => FileRole::Projector,
        3 => FileRole::Adapter,
        4 => FileRole::Tokenizer,
        other => return Err(malformed(format!("file role {other}"))),
    };
    Ok(ModelFile {
        role,
        sha256: ContentHash::from_bytes(fixed(&file.sha256)?),
        size: file.size,
    })
}

fn fixed(bytes: &[u8]) -> anyhow::Result<[u8; 32]> {
    bytes
        .try_into()
        .map_err(|_| malformed(format!("{} bytes where 32 belong", bytes.len())))
}

fn malformed(what: String) -> anyhow::Error {
    Story::new(format!("the daemon drafted an entry that cannot be: {what}"))
        .hint("daemon and command line may be of different releases: `substrate stop --daemon`, then try again")
        .into()
}
