//! Where a model comes from, as people type it.

use std::fmt;
use std::path::{Path, PathBuf};

use super::PullError;
use crate::models::names::ModelName;

/// A place to get a model from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source(Kind);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    Hub {
        user: String,
        repo: String,
        quant: Option<String>,
    },
    File(PathBuf),
}

/// How a repository of the hub may be introduced.
const HUB_PREFIXES: [&str; 5] = [
    "hf:",
    "hf.co/",
    "huggingface.co/",
    "https://hf.co/",
    "https://huggingface.co/",
];

impl Source {
    /// A source in the web: `hf:USER/REPO[:QUANT]`, `hf.co/…`, `huggingface.co/…`. Never a file of this
    /// machine: whoever may ask for a download may not thereby read the owner's disk.
    pub fn parse(text: &str) -> Result<Self, PullError> {
        let wrong = |why| PullError::Source {
            text: text.chars().take(200).collect(),
            why,
        };
        let bare = text.trim();
        if bare.starts_with("file:") {
            return Err(wrong("files of this machine are imported, not pulled"));
        }
        let rest = HUB_PREFIXES
            .iter()
            .find_map(|prefix| bare.strip_prefix(prefix));
        let rest = rest.ok_or_else(|| wrong("use hf:USER/REPO or hf:USER/REPO:QUANT"))?;
        let (path, quant) = match rest.split_once(':') {
            Some((path, quant)) => (path, Some(quant)),
            None => (rest, None),
        };
        let (user, repo) = path
            .split_once('/')
            .ok_or_else(|| wrong("a repository is USER/REPO"))?;
        if ![user, repo].iter().all(|part| plain(part)) || !quant.is_none_or(plain) {
            return Err(wrong(
                "user, repository and quantisation are letters, digits, '-', '_' and '.'",
            ));
        }
        let [user, repo] = [user, repo].map(str::to_owned);
        Ok(Self(Kind::Hub {
            user,
            repo,
            quant: quant.filter(|quant| *quant != "latest").map(str::to_owned),
        }))
    }

    /// As [`Self::parse`], and `file:/absolute/path`. For the owner alone.
    pub fn parse_owner(text: &str) -> Result<Self, PullError> {
        let Some(path) = text.trim().strip_prefix("file:") else {
            return Self::parse(text);
        };
        let path = PathBuf::from(path.strip_prefix("//").unwrap_or(path));
        if !path.is_absolute() {
            return Err(PullError::Source {
                text: text.to_owned(),
                why: "the path must be absolute",
            });
        }
        Ok(Self(Kind::File(path)))
    }

    /// What the model is called if nobody says: `hf.co/USER/REPO:QUANT`, or the file's own name.
    pub fn default_name(&self) -> ModelName {
        let [host, namespace, model, tag] = match &self.0 {
            Kind::Hub { user, repo, quant } => {
                let tag = quant.clone().unwrap_or_else(|| "latest".to_owned());
                [
                    "hf.co".to_owned(),
                    user.replace('.', "-"),
                    repo.clone(),
                    tag,
                ]
            }
            Kind::File(path) => {
                let stem = path.file_stem().unwrap_or_default().to_string_lossy();
                let model: String = stem
                    .chars()
                    .filter(|c| c.is_ascii_alphanumeric() || "-_.".contains(*c))
                    .collect();
                let model = model.trim_start_matches(['-', '.']);
                let model = if model.is_empty() { "model" } else { model };
                ["registry.ollama.ai", "library", model, "latest"].map(str::to_owned)
            }
        };
        ModelName {
            host,
            namespace,
            model,
            tag,
        }
    }

    pub(super) fn local_file(&self) -> Option<&Path> {
        match &self.0 {
            Kind::File(path) => Some(path),
            Kind::Hub { .. } => None,
        }
    }

    /// User/repository and quantisation.
    pub(super) fn repository(&self) -> Option<(String, Option<&str>)> {
        match &self.0 {
            Kind::Hub { user, repo, quant } => Some((format!("{user}/{repo}"), quant.as_deref())),
            Kind::File(_) => None,
        }
    }
}

/// A part of a path that cannot lead anywhere else.
fn plain(part: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    !part.is_empty() && part.len() <= 96 && part != "." && part != ".." && part.chars().all(allowed)
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Hub {
                user,
                repo,
                quant: None,
            } => write!(f, "hf:{user}/{repo}"),
            Kind::Hub {
                user,
                repo,
                quant: Some(quant),
            } => write!(f, "hf:{user}/{repo}:{quant}"),
            Kind::File(path) => write!(f, "file:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_read_in_every_spelling() {
        for text in [
            "hf:a/b:Q4_1",
            "hf.co/a/b:Q4_1",
            "https://huggingface.co/a/b:Q4_1",
        ] {
            let source = Source::parse(text).unwrap();
            assert_eq!(source.to_string(), "hf:a/b:Q4_1");
            assert_eq!(source.default_name().to_string(), "hf.co/a/b:Q4_1");
        }
        assert_eq!(
            Source::parse("hf:a/b").unwrap().default_name().to_string(),
            "hf.co/a/b:latest"
        );
        assert_eq!(
            Source::parse_owner("file:/m/x.gguf")
                .unwrap()
                .default_name()
                .to_string(),
            "x:latest"
        );
    }

    #[test]
    fn what_is_no_source_says_why() {
        for (text, why) in [
            ("smollm2:135m", "use hf:USER/REPO"),
            ("hf:a", "a repository is USER/REPO"),
            ("hf:a/../b", "letters, digits"),
            ("hf:../b", "letters, digits"),
            ("hf:a/b?x", "letters, digits"),
            ("file:/etc/passwd", "imported, not pulled"),
        ] {
            let error = Source::parse(text).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
        assert!(Source::parse_owner("file:x").is_err());
    }
}
