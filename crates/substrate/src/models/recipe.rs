//! What a model that was made here adds to the weights it stands on: defaults of its answers.
//!
//! Invariants: a recipe that is kept passed [`Recipe::check`]; a request's own settings win over it.
//! Absent by design: weights, and any running of templates. They run behind the wall.

use serde::{Deserialize, Serialize};
use substrate_sandbox::wire::input::MAX_TEMPLATE;

use super::parameters::{Parameters, clipped};

/// The most bytes of all texts of a recipe together: a long licence, a long template, and as much again.
pub const MAX_RECIPE: usize = 512 * 1024;

/// The most turns a conversation may begin with; they are read anew with every first prompt.
pub const MAX_TURNS: usize = 256;

/// The most texts of licences: a model, what it was made from, and what those were.
pub const MAX_LICENCES: usize = 64;

/// Who may have said a turn.
const ROLES: [&str; 3] = ["system", "user", "assistant"];

/// A turn that every conversation begins with.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Turn {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// What was said.
    pub content: String,
}

impl std::fmt::Debug for Turn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Turn({} bytes)", self.content.len())
    }
}

/// Defaults of a model that was made here.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recipe {
    /// What it was made from, as it was named then.
    pub from: String,
    /// Of sampling.
    #[serde(default, skip_serializing_if = "Parameters::is_empty")]
    pub parameters: Parameters,
    /// What the model is told first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    /// Chat template in place of the file's own (Jinja).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// What every conversation begins with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub messages: Vec<Turn>,
    /// Texts of licences, besides what the file says.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub licences: Vec<String>,
}

impl std::fmt::Debug for Recipe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recipe")
            .field("from", &self.from)
            .field("bytes", &self.bytes())
            .finish_non_exhaustive()
    }
}

/// Why a recipe is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecipeError {
    /// Too much text.
    #[error("its texts have {bytes} bytes, {MAX_RECIPE} may be")]
    TooLong {
        /// All texts together.
        bytes: usize,
    },
    /// Too long a template.
    #[error("the template has {bytes} bytes, {MAX_TEMPLATE} may be")]
    LongTemplate {
        /// Its length.
        bytes: usize,
    },
    /// Too many turns.
    #[error("it has {turns} messages, {MAX_TURNS} may be")]
    TooManyTurns {
        /// How many.
        turns: usize,
    },
    /// Too many licences.
    #[error("it has {licences} licences, {MAX_LICENCES} may be")]
    TooManyLicences {
        /// How many.
        licences: usize,
    },
    /// Somebody a conversation does not have.
    #[error("a message's role must be system, user or assistant, not '{role}'")]
    Role {
        /// As written, cut short.
        role: String,
    },
    /// One of Ollama's own templates.
    #[error(
        "the template is one of Go's, as Ollama writes them, and those are not run here: write it in Jinja, as \
         `tokenizer.chat_template` of GGUF files is, or leave it out to use the file's own"
    )]
    GoTemplate,
}

impl Recipe {
    /// Whether it may be kept.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self) -> Result<(), RecipeError> {
        let bytes = self.bytes();
        if bytes > MAX_RECIPE {
            return Err(RecipeError::TooLong { bytes });
        }
        let turns = self.messages.len();
        if turns > MAX_TURNS {
            return Err(RecipeError::TooManyTurns { turns });
        }
        let licences = self.licences.len();
        if licences > MAX_LICENCES {
            return Err(RecipeError::TooManyLicences { licences });
        }
        let stranger = |turn: &&Turn| !ROLES.contains(&turn.role.as_str());
        if let Some(turn) = self.messages.iter().find(stranger) {
            return Err(RecipeError::Role {
                role: clipped(&turn.role),
            });
        }
        self.template.as_deref().map_or(Ok(()), check_template)
    }

    /// Whether it adds anything to what it is made from.
    pub fn adds(&self) -> bool {
        let nothing = Self {
            from: self.from.clone(),
            ..Self::default()
        };
        *self != nothing
    }

    fn bytes(&self) -> usize {
        let said = self.messages.iter();
        let said = said.map(|turn| turn.role.len() + turn.content.len());
        let stops = self.parameters.stop().iter().map(String::len);
        let one = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        said.chain(stops)
            .chain(self.licences.iter().map(String::len))
            .chain([self.from.len(), one(&self.system), one(&self.template)])
            .sum()
    }

    /// What this does not say is taken from the recipe of the model it is made from; licences add up.
    pub fn lay_over(&mut self, base: &Self) {
        self.parameters.lay_over(&base.parameters);
        self.system = self.system.take().or_else(|| base.system.clone());
        self.template = self.template.take().or_else(|| base.template.clone());
        if self.messages.is_empty() {
            self.messages.clone_from(&base.messages);
        }
        let own = std::mem::take(&mut self.licences);
        self.licences.clone_from(&base.licences);
        let new = own.into_iter().filter(|text| !base.licences.contains(text));
        self.licences.extend(new);
    }
}

/// Whether a template may be sent to a worker.
///
/// # Errors
/// It is too long, or one of Go's.
pub fn check_template(template: &str) -> Result<(), RecipeError> {
    let bytes = template.len();
    if bytes > MAX_TEMPLATE {
        return Err(RecipeError::LongTemplate { bytes });
    }
    if is_go(template) {
        return Err(RecipeError::GoTemplate);
    }
    Ok(())
}

/// Whether a template is one of Go's (Ollama's): without statements of Jinja, and with fields or keywords of Go's in
/// double braces.
fn is_go(template: &str) -> bool {
    const WORDS: [&str; 8] = [
        "if", "range", "end", "else", "with", "define", "template", "block",
    ];
    if template.contains("{%") {
        return false;
    }
    template.split("{{").skip(1).any(|action| {
        let action = action.trim_start_matches('-').trim_start();
        let ends = |c: char| !c.is_alphanumeric() && c != '_';
        let word = action.split(ends).next().unwrap_or_default();
        action.starts_with(['.', '$']) || WORDS.contains(&word)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turn(role: &str, content: &str) -> Turn {
        Turn {
            role: role.into(),
            content: content.into(),
        }
    }

    #[test]
    fn what_is_made_from_a_made_model_inherits() {
        let base = Recipe {
            system: Some("Be brief.".into()),
            messages: vec![turn("user", "hi")],
            licences: vec!["MIT".into()],
            ..Recipe::default()
        };
        let mut recipe = Recipe {
            from: "base:1".into(),
            system: Some("Be long.".into()),
            licences: vec!["MIT".into(), "CC0".into()],
            ..Recipe::default()
        };
        recipe.lay_over(&base);
        assert_eq!(recipe.system.as_deref(), Some("Be long."));
        assert_eq!(recipe.messages, base.messages);
        assert_eq!(recipe.licences, ["MIT", "CC0"]);
        assert_eq!(recipe.from, "base:1");
    }

    #[test]
    fn templates_of_go_are_told_from_those_of_jinja() {
        for go in [
            "{{ .System }} {{ .Prompt }}",
            "{{- range .Messages }}x{{ end }}",
            "{{ if .System }}x{{ end }}",
            "{{- $last := 1 }}",
        ] {
            assert!(is_go(go), "{go}");
        }
        for jinja in [
            "{% for message in messages %}{{ message.content }}{% endfor %}",
            "{{ messages[0].content }}",
            "{{- messages | last }}",
            "{{ iffy }}",
            "plain",
            "",
        ] {
            assert!(!is_go(jinja), "{jinja}");
        }
    }

    #[test]
    fn what_is_too_much_is_refused() {
        let with = |change: fn(&mut Recipe)| {
            let mut recipe = Recipe::default();
            change(&mut recipe);
            recipe.check()
        };
        assert_eq!(with(|_| {}), Ok(()));
        let bytes = MAX_RECIPE + 1;
        assert_eq!(
            with(|recipe| recipe.system = Some("x".repeat(MAX_RECIPE + 1))),
            Err(RecipeError::TooLong { bytes })
        );
        assert!(matches!(
            with(|recipe| recipe.template = Some("x".repeat(MAX_TEMPLATE + 1))),
            Err(RecipeError::LongTemplate { .. })
        ));
        assert!(matches!(
            with(|recipe| recipe.messages = vec![turn("user", ""); MAX_TURNS + 1]),
            Err(RecipeError::TooManyTurns { .. })
        ));
        assert!(matches!(
            with(|recipe| recipe.licences = vec!["x".into(); MAX_LICENCES + 1]),
            Err(RecipeError::TooManyLicences { .. })
        ));
        assert!(matches!(
            with(|recipe| recipe.messages = vec![turn("tool", "x")]),
            Err(RecipeError::Role { .. })
        ));
    }
}
