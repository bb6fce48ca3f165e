//! The one plain consent before a prompt may reach strangers, remembered per model.
//!
//! Invariant: without it, nothing is sent with scope `commons` from the command line. The file is
//! a list of model names, one per line, for people to read and edit.

use std::{
    io::{self, BufRead, IsTerminal, Write},
    path::PathBuf,
};

use crate::{files::write_atomically, home::Home};

use super::story::Story;

/// What is consented to (DESIGN.md 5).
const PLAIN_WORDS: &str = "a stranger's machine will read this prompt";

/// Where consents are kept.
fn file(home: &Home) -> PathBuf {
    home.config_file().with_file_name("consent-commons")
}

fn given(home: &Home) -> Vec<String> {
    let text = std::fs::read_to_string(file(home)).unwrap_or_default();
    text.lines()
        .map(|line| line.trim().to_owned())
        .filter(|line| !line.is_empty())
        .collect()
}

/// Lets a prompt for `model` go to strangers if that was consented to before, now by flag, or now by answer.
pub fn require(home: &Home, model: &str, flag: bool) -> anyhow::Result<()> {
    let mut consents = given(home);
    if consents
        .iter()
        .any(|consent| consent.eq_ignore_ascii_case(model))
    {
        return Ok(());
    }
    if !flag && !answered_yes()? {
        return Err(Story::new(format!("scope 'commons' needs your consent: {PLAIN_WORDS}"))
            .hint(format!("--consent gives it once and for all for '{model}'; --scope circle stays among those you know"))
            .into());
    }
    consents.push(model.to_owned());
    let text = consents.join("\n") + "\n";
    write_atomically(&file(home), 0o600, text.as_bytes())
        .map_err(|error| Story::new("cannot remember your consent").because(error))?;
    Ok(())
}

fn answered_yes() -> io::Result<bool> {
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Ok(false);
    }
    let mut err = io::stderr();
    write!(
        err,
        "{PLAIN_WORDS}. Is that fine for this model, now and later? [y/N] "
    )?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes" | "Yes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_consent_is_remembered_for_its_model_only() {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::at(folder.path());
        assert!(require(&home, "smollm2:135m", false).is_err());
        require(&home, "smollm2:135m", true).unwrap();
        require(&home, "SmolLM2:135m", false).unwrap();
        assert!(require(&home, "other:1b", false).is_err());
    }
}
