//! Model names as Ollama's: `[host/][namespace/]model[:tag]`.
//!
//! Invariant: two names that differ only in case, or in parts that are the defaults, are one name.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;

/// Where an unqualified name comes from, as in Ollama.
const DEFAULT_HOST: &str = "registry.ollama.ai";

/// The namespace of models that have none.
const DEFAULT_NAMESPACE: &str = "library";

/// The tag of names without one.
const DEFAULT_TAG: &str = "latest";

/// Ollama's limits.
const MAX_HOST: usize = 350;
const MAX_PART: usize = 80;

/// A model's full name.
#[derive(Debug, Clone)]
pub struct ModelName {
    /// `registry.ollama.ai`, `hf.co`.
    pub host: String,
    /// `library`, a user.
    pub namespace: String,
    /// `smollm2`, a repository.
    pub model: String,
    /// `135m`, a quantisation.
    pub tag: String,
}

/// Which part of a name is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{name}' is not a model name: its {part} {why}")]
pub struct NameError {
    /// As typed, cut to a line.
    pub name: String,
    /// `host`, `namespace`, `model` or `tag`.
    pub part: &'static str,
    /// What is wrong with it.
    pub why: &'static str,
}

impl ModelName {
    /// All four parts, defaults spelled out.
    pub fn full(&self) -> String {
        format!(
            "{}/{}/{}:{}",
            self.host, self.namespace, self.model, self.tag
        )
    }

    /// The form by which names are compared and stored.
    pub fn folded(&self) -> String {
        self.full().to_ascii_lowercase()
    }
}

impl FromStr for ModelName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let bare = text.split_once("://").map_or(text, |(_, rest)| rest);
        // A colon before the last slash belongs to a host's port.
        let (path, tag) = match bare.rsplit_once(':') {
            Some((path, tag)) if !tag.contains('/') => (path, tag),
            _ => (bare, DEFAULT_TAG),
        };
        let mut parts = path.rsplitn(3, '/');
        let model = parts.next().unwrap_or_default();
        let namespace = parts.next().unwrap_or(DEFAULT_NAMESPACE);
        let host = parts.next().unwrap_or(DEFAULT_HOST);
        check(text, "host", host, MAX_HOST, |c| {
            c.is_ascii_alphanumeric() || "-_.:".contains(c)
        })?;
        check(text, "namespace", namespace, MAX_PART, |c| {
            c.is_ascii_alphanumeric() || "-_".contains(c)
        })?;
        check(text, "model", model, MAX_PART, |c| {
            c.is_ascii_alphanumeric() || "-_.".contains(c)
        })?;
        check(text, "tag", tag, MAX_PART, |c| {
            c.is_ascii_alphanumeric() || "-_.".contains(c)
        })?;
        let [host, namespace, model, tag] = [host, namespace, model, tag].map(str::to_owned);
        Ok(Self {
            host,
            namespace,
            model,
            tag,
        })
    }
}

fn check(
    name: &str,
    part: &'static str,
    value: &str,
    longest: usize,
    allowed: impl Fn(char) -> bool,
) -> Result<(), NameError> {
    let wrong = |why| {
        Err(NameError {
            name: name.chars().take(100).collect(),
            part,
            why,
        })
    };
    let Some(first) = value.chars().next() else {
        return wrong("is empty");
    };
    if value.len() > longest {
        return wrong("is too long");
    }
    if !first.is_ascii_alphanumeric() && first != '_' {
        return wrong("must begin with a letter, a digit or '_'");
    }
    if !value.chars().all(allowed) {
        return wrong("holds a character that names cannot have");
    }
    Ok(())
}

impl fmt::Display for ModelName {
    /// The shortest form that reads back to the same name; the tag is always shown, as in Ollama's lists.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let default_host = self.host.eq_ignore_ascii_case(DEFAULT_HOST);
        if !default_host {
            write!(f, "{}/", self.host)?;
        }
        if !default_host || !self.namespace.eq_ignore_ascii_case(DEFAULT_NAMESPACE) {
            write!(f, "{}/", self.namespace)?;
        }
        write!(f, "{}:{}", self.model, self.tag)
    }
}

impl PartialEq for ModelName {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for ModelName {}

impl PartialOrd for ModelName {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ModelName {
    fn cmp(&self, other: &Self) -> Ordering {
        self.folded().cmp(&other.folded())
    }
}

impl Hash for ModelName {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.folded().hash(state);
    }
}

/// How many characters must change to turn one name into another, ignoring case (Levenshtein).
pub(crate) fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.to_lowercase().chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, a) in left.to_lowercase().chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in right.iter().enumerate() {
            let substituted = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[right.len()]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn full(text: &str) -> String {
        text.parse::<ModelName>()
            .map_or_else(|error| error.to_string(), |name| name.full())
    }

    #[test]
    fn names_read_as_ollama_reads_them() {
        for (typed, read) in [
            ("smollm2", "registry.ollama.ai/library/smollm2:latest"),
            ("smollm2:135m", "registry.ollama.ai/library/smollm2:135m"),
            ("me/smollm2", "registry.ollama.ai/me/smollm2:latest"),
            ("hf.co/Bart/Smol-GGUF:Q4_K_M", "hf.co/Bart/Smol-GGUF:Q4_K_M"),
            ("localhost:5000/a/b", "localhost:5000/a/b:latest"),
            ("https://hf.co/a/b:c", "hf.co/a/b:c"),
        ] {
            assert_eq!(full(typed), read);
        }
    }

    #[test]
    fn a_wrong_name_says_which_part() {
        for (typed, part) in [
            ("", "model is empty"),
            ("a:", "tag is empty"),
            ("../../etc/passwd", "host must begin"),
            ("a.b/c", "namespace holds a character"),
            ("a b", "model holds a character"),
            ("-x", "model must begin"),
            ("x:é", "tag must begin"),
        ] {
            assert!(full(typed).contains(part), "{typed}: {}", full(typed));
        }
        assert!(full(&"x".repeat(81)).contains("too long"));
    }

    #[test]
    fn case_and_defaults_do_not_distinguish() {
        let short: ModelName = "SmolLM2".parse().unwrap();
        let long: ModelName = "registry.ollama.ai/library/smollm2:LATEST".parse().unwrap();
        assert_eq!(short, long);
        assert_eq!(short.to_string(), "SmolLM2:latest");
    }

    #[test]
    fn distances_count_single_changes() {
        assert_eq!(distance("smollm2", "SmolLM2"), 0);
        assert_eq!(distance("smolm", "smollm2"), 2);
        assert_eq!(distance("", "abc"), 3);
    }

    proptest! {
        #[test]
        fn what_is_shown_reads_back(
            host in "[a-z0-9_][a-z0-9._-]{0,20}", namespace in "[A-Za-z0-9_][A-Za-z0-9_-]{0,20}",
            model in "[A-Za-z0-9_][A-Za-z0-9._-]{0,20}", tag in "[A-Za-z0-9_][A-Za-z0-9._-]{0,20}",
        ) {
            let name = ModelName { host, namespace, model, tag };
            prop_assert_eq!(name.to_string().parse::<ModelName>().unwrap(), name.clone());
            prop_assert_eq!(name.full().parse::<ModelName>().unwrap(), name);
        }

        #[test]
        fn no_text_breaks_the_parser(text in ".{0,400}") {
            let _ = text.parse::<ModelName>();
        }
    }
}
