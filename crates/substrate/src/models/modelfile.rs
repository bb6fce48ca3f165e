//! Modelfiles, as Ollama's people write them: read, and written again.
//!
//! Instructions in any case, `#` comments between them, and texts of several lines between `"""`.
//!
//! Invariants: linear in the text, and no text panics; what [`write`] gives for a recipe reads back as that recipe, unless
//! a line within one of its texts ends in three quotes.
//! Absent by design: files. Whoever reads a Modelfile knows where it lies.

use std::fmt::Write as _;

use substrate_record::ContentHash;

use super::parameters::{ParameterError, clipped};
use super::recipe::{MAX_RECIPE, Recipe, RecipeError, Turn};

/// The longest Modelfile: its recipe and some room for comments.
pub const MAX_MODELFILE: usize = 2 * MAX_RECIPE;

/// Opens and closes a text of several lines.
const FENCE: &str = "\"\"\"";

/// A Modelfile that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Modelfile {
    /// What to make, from what.
    pub recipe: Recipe,
    /// A LoRA to be applied, by its path.
    pub adapter: Option<String>,
    /// What is in it and changes nothing, and why.
    pub warnings: Vec<String>,
}

/// Why a Modelfile is refused.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("line {line}: {wrong}")]
pub struct ModelfileError {
    /// From 1.
    pub line: usize,
    /// What is wrong there.
    pub wrong: Wrong,
}

/// What is wrong in a line.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Wrong {
    /// Not an instruction.
    #[error(
        "'{0}' is not an instruction: there are FROM, PARAMETER, TEMPLATE, SYSTEM, ADAPTER, MESSAGE, LICENSE and REQUIRES"
    )]
    Unknown(String),
    /// An instruction with nothing after it.
    #[error("{0} needs a value")]
    Empty(&'static str),
    /// No FROM.
    #[error("there is no FROM, which names the model or the file to start from")]
    NoFrom,
    /// A second FROM or ADAPTER.
    #[error("a second {0}: a model of several files cannot be made here")]
    Second(&'static str),
    /// A text that does not end.
    #[error("the text that begins here has no closing quotes")]
    Unclosed,
    /// Of a parameter.
    #[error(transparent)]
    Parameter(#[from] ParameterError),
    /// Of all of it.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    /// The file.
    #[error("the Modelfile has {0} bytes, {MAX_MODELFILE} may be")]
    TooLong(usize),
}

impl Modelfile {
    /// Reads a Modelfile.
    ///
    /// # Errors
    /// The first line that is wrong.
    pub fn parse(text: &str) -> Result<Self, ModelfileError> {
        let last_line = text.lines().count().max(1);
        let at_end = |wrong: Wrong| ModelfileError {
            line: last_line,
            wrong,
        };
        if text.len() > MAX_MODELFILE {
            return Err(at_end(Wrong::TooLong(text.len())));
        }
        let mut modelfile = Self {
            recipe: Recipe::default(),
            adapter: None,
            warnings: Vec::new(),
        };
        let mut lines = Lines {
            rest: text.strip_prefix('\u{feff}').unwrap_or(text),
            line: 0,
        };
        while let Some(found) = lines.instruction() {
            let line = lines.begun(&found);
            let done = found.and_then(|instruction| modelfile.obey(instruction, &mut lines));
            done.map_err(|wrong| ModelfileError { line, wrong })?;
        }
        if modelfile.recipe.from.is_empty() {
            return Err(at_end(Wrong::NoFrom));
        }
        let checked = modelfile.recipe.check();
        checked.map_err(|error| at_end(error.into()))?;
        Ok(modelfile)
    }

    fn obey(&mut self, instruction: Instruction<'_>, lines: &mut Lines<'_>) -> Result<(), Wrong> {
        let Instruction { word, rest, .. } = instruction;
        let recipe = &mut self.recipe;
        match word {
            "FROM" if !recipe.from.is_empty() => return Err(Wrong::Second(word)),
            "FROM" => recipe.from = lines.value(word, rest)?,
            "ADAPTER" if self.adapter.is_some() => return Err(Wrong::Second(word)),
            "ADAPTER" => self.adapter = Some(lines.value(word, rest)?),
            "SYSTEM" => recipe.system = Some(lines.text(rest)?),
            "TEMPLATE" => recipe.template = Some(lines.text(rest)?),
            "LICENSE" => recipe.licences.push(lines.value(word, rest)?),
            "PARAMETER" => {
                let (name, rest) = first_word(rest);
                let value = lines.value(word, rest)?;
                self.warnings.extend(recipe.parameters.set(name, &value)?);
            }
            "MESSAGE" => {
                let (role, rest) = first_word(rest);
                let (role, content) = (role.to_ascii_lowercase(), lines.value(word, rest)?);
                let turn = Turn { role, content };
                recipe.messages.push(turn);
            }
            // Words of Ollama's that change nothing here. Their values are read as any other's.
            word => {
                let value = lines.value(word, rest)?;
                let why = match word {
                    "REQUIRES" => "is about a release of Ollama's",
                    _ => "names a part of Ollama's; the template is used",
                };
                let shown = clipped(&value);
                self.warnings.push(format!("{word} {shown} {why}: ignored"));
            }
        }
        Ok(())
    }
}

/// An instruction's word and the rest of its first line.
struct Instruction<'a> {
    word: &'static str,
    rest: &'a str,
    line: usize,
}

/// The words that begin an instruction.
const WORDS: [&str; 10] = [
    "FROM",
    "PARAMETER",
    "TEMPLATE",
    "SYSTEM",
    "ADAPTER",
    "MESSAGE",
    "LICENSE",
    "REQUIRES",
    "RENDERER",
    "PARSER",
];

/// What is left to be read, and how many lines were.
struct Lines<'a> {
    rest: &'a str,
    line: usize,
}

impl<'a> Lines<'a> {
    fn next(&mut self) -> Option<&'a str> {
        if self.rest.is_empty() {
            return None;
        }
        let (line, rest) = self.rest.split_once('\n').unwrap_or((self.rest, ""));
        self.rest = rest;
        self.line += 1;
        Some(line)
    }

    /// The next line that is neither empty nor a comment, as an instruction.
    fn instruction(&mut self) -> Option<Result<Instruction<'a>, Wrong>> {
        loop {
            let line = self.next()?.trim_start();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (typed, rest) = first_word(line);
            let known = WORDS.iter().find(|word| word.eq_ignore_ascii_case(typed));
            return Some(match known {
                Some(word) => Ok(Instruction {
                    word,
                    rest,
                    line: self.line,
                }),
                None => Err(Wrong::Unknown(clipped(typed))),
            });
        }
    }

    /// The line an instruction begins in.
    fn begun(&self, found: &Result<Instruction<'_>, Wrong>) -> usize {
        found.as_ref().map_or(self.line, |found| found.line)
    }

    /// A value that must be there.
    fn value(&mut self, word: &'static str, begin: &str) -> Result<String, Wrong> {
        let value = self.text(begin)?;
        if value.is_empty() {
            return Err(Wrong::Empty(word));
        }
        Ok(value)
    }

    /// A text: the rest of the line, or, if that begins with quotes, all up to the line that ends with them.
    fn text(&mut self, begin: &str) -> Result<String, Wrong> {
        let begin = begin.trim_start();
        let quotes = match begin {
            text if text.starts_with(FENCE) => FENCE,
            text if text.starts_with('"') => "\"",
            text => return Ok(text.trim_end().to_owned()),
        };
        let inside = &begin[quotes.len()..];
        if let Some(text) = inside.trim_end().strip_suffix(quotes) {
            return Ok(text.to_owned());
        }
        let mut text = inside.to_owned();
        while let Some(line) = self.next() {
            text.push('\n');
            if let Some(last) = line.trim_end().strip_suffix(quotes) {
                text.push_str(last);
                return Ok(text);
            }
            text.push_str(line);
        }
        Err(Wrong::Unclosed)
    }
}

/// However many spaces are before it.
fn first_word(text: &str) -> (&str, &str) {
    let text = text.trim_start();
    text.split_once(char::is_whitespace).unwrap_or((text, ""))
}

/// The Modelfile of a recipe, starting from `from`.
pub fn write(recipe: &Recipe, from: &str, adapter: Option<&ContentHash>) -> String {
    let mut file = format!("FROM {}\n", quoted(from));
    let mut line = |words: &str, value: &str| {
        // A string takes everything.
        let _ = writeln!(file, "{words} {}", quoted(value));
    };
    if let Some(adapter) = adapter {
        line("ADAPTER", &format!("sha256:{adapter}"));
    }
    if let Some(template) = &recipe.template {
        line("TEMPLATE", template);
    }
    if let Some(system) = &recipe.system {
        line("SYSTEM", system);
    }
    for (name, value) in recipe.parameters.lines() {
        line(&format!("PARAMETER {name}"), &value);
    }
    for turn in &recipe.messages {
        line(&format!("MESSAGE {}", turn.role), &turn.content);
    }
    for licence in &recipe.licences {
        line("LICENSE", licence);
    }
    file
}

/// A value as it must stand in the file.
fn quoted(value: &str) -> String {
    let plain = !value.is_empty()
        && value.trim() == value
        && !value.starts_with('"')
        && !value.contains('\n');
    if plain {
        value.to_owned()
    } else {
        format!("{FENCE}{value}{FENCE}")
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> String {
        match Modelfile::parse(text) {
            Err(error) => error.to_string(),
            Ok(Modelfile {
                recipe,
                adapter,
                warnings,
            }) => {
                let mut told = write(&recipe, &recipe.from, None);
                told.extend(adapter.map(|path| format!("adapter: {path}\n")));
                told.extend(
                    warnings
                        .iter()
                        .map(|warning| format!("warning: {warning}\n")),
                );
                told
            }
        }
    }

    fn check(text: &str, expect: &Expect) {
        expect.assert_eq(&read(text));
    }

    #[test]
    fn a_modelfile_is_read_as_ollama_reads_it() {
        check(
            "# a pirate\n\nfrom smollm2:135m\n  Parameter \t temperature   0.70\nPARAMETER stop \"<|user|>\"\nPARAMETER stop ;\n\
             SYSTEM \"\"\"You are a pirate.\n  # no comment\nTalk like one.\"\"\"\n\
             message  USER hello there\r\nMESSAGE assistant \"Ahoy \"\nLICENSE CC0\nLICENSE \"\"\"\nMIT\n\"\"\"\n",
            &expect![[r#"
                FROM smollm2:135m
                SYSTEM """You are a pirate.
                  # no comment
                Talk like one."""
                PARAMETER temperature 0.7
                PARAMETER stop <|user|>
                PARAMETER stop ;
                MESSAGE user hello there
                MESSAGE assistant """Ahoy """
                LICENSE CC0
                LICENSE """
                MIT
                """
            "#]],
        );
    }

    #[test]
    fn what_changes_nothing_is_told() {
        check(
            "FROM m\nPARAMETER mirostat 1\nPARAMETER num_gpu 99\nREQUIRES 0.14.0\nRENDERER qwen3\nADAPTER ./a.gguf",
            &expect![[r#"
                FROM m
                adapter: ./a.gguf
                warning: mirostat is obsolete: ignored
                warning: num_gpu is a setting of the machine that answers, and its owner's: ignored
                warning: REQUIRES 0.14.0 is about a release of Ollama's: ignored
                warning: RENDERER qwen3 names a part of Ollama's; the template is used: ignored
            "#]],
        );
    }

    #[test]
    fn a_wrong_line_is_named() {
        for (text, why) in [
            (
                "",
                "line 1: there is no FROM, which names the model or the file to start from",
            ),
            (
                "\n# x\nSYSTEM hi",
                "line 3: there is no FROM, which names the model or the file to start from",
            ),
            (
                "FROM m\nFORM n",
                "line 2: 'FORM' is not an instruction: there are FROM, PARAMETER, TEMPLATE, SYSTEM, ADAPTER, MESSAGE, LICENSE and REQUIRES",
            ),
            ("FROM", "line 1: FROM needs a value"),
            (
                "FROM m\nFROM n",
                "line 2: a second FROM: a model of several files cannot be made here",
            ),
            (
                "FROM m\n\nPARAMETER temperature\n",
                "line 3: PARAMETER needs a value",
            ),
            (
                "FROM m\nPARAMETER temperature hot",
                "line 2: temperature must be a number, not 'hot'",
            ),
            (
                "FROM m\nPARAMETER warmth 1",
                "line 2: there is no parameter 'warmth'",
            ),
            (
                "FROM m\nSYSTEM \"\"\"one\ntwo\n",
                "line 2: the text that begins here has no closing quotes",
            ),
            (
                "FROM m\nMESSAGE robot beep",
                "line 2: a message's role must be system, user or assistant, not 'robot'",
            ),
            (
                "FROM m\nTEMPLATE {{ .Prompt }}",
                "line 2: the template is one of Go's, as Ollama writes them, and those are not run here: write it in Jinja, as `tokenizer.chat_template` of GGUF files is, or leave it out to use the file's own",
            ),
        ] {
            assert_eq!(read(text), why, "{text}");
        }
        let long = format!("FROM m\nSYSTEM {}", "x".repeat(MAX_MODELFILE));
        assert!(read(&long).contains("bytes, 1048576 may be"));
    }

    fn text() -> impl Strategy<Value = String> {
        "[a-z \"#\n]{1,30}".prop_filter("three quotes end a text", |text| !text.contains(FENCE))
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(
            system in proptest::option::of(text()), template in proptest::option::of(text()),
            messages in proptest::collection::vec((0..3usize, text()), 0..4),
            licences in proptest::collection::vec(text(), 0..3), stop in proptest::collection::vec(text(), 0..3),
            temperature in 0..20u32,
        ) {
            let mut recipe = Recipe { from: "a/b:c".into(), system, template, licences, ..Recipe::default() };
            recipe.parameters.set("temperature", &format!("{}", f64::from(temperature) / 8.0)).unwrap();
            for text in stop {
                recipe.parameters.set("stop", &text).unwrap();
            }
            let role = |at: usize| ["system", "user", "assistant"][at].to_owned();
            recipe.messages = messages.into_iter().map(|(at, content)| Turn { role: role(at), content }).collect();
            let read = Modelfile::parse(&write(&recipe, "a/b:c", None)).unwrap();
            prop_assert_eq!(read.recipe, recipe);
        }

        #[test]
        fn no_text_breaks_the_reader(text in "(?i:(from|system|parameter|message|\"\"\"|\"|#|[a-z]{1,4}|\\PC|[ \n\r]){0,60})") {
            if let Ok(read) = Modelfile::parse(&text) {
                prop_assert!(!read.recipe.from.is_empty());
            }
        }
    }
}
