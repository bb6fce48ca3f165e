//! What a person types in a conversation: a turn, maybe over several lines, or a command.
//!
//! Invariant: pure. Lines go in, and a complete [`Typed`] comes out or more is wanted.

use substrate_sandbox::wire::Thinking;

/// Opens and closes a turn of several lines.
const FENCE: &str = "\"\"\"";

/// Something complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Typed {
    /// A turn.
    Turn(String),
    /// A command.
    Command(Command),
    /// A command that cannot be, and why.
    Wrong(String),
    /// Nothing.
    Nothing,
}

/// A command of the conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// `/bye`
    Bye,
    /// `/?`
    Help,
    /// `/clear`
    Clear,
    /// `/set parameter NAME VALUE`
    SetParameter(String, String),
    /// `/set parameter`
    Parameters,
    /// `/set system TEXT`
    SetSystem(String),
    /// `/set think`, with how hard, and `/set nothink`
    SetThink(Thinking),
    /// `/set verbose` and `/set quiet`
    SetVerbose(bool),
    /// `/show`, with its part
    Show(Part),
    /// `/load MODEL`
    Load(String),
}

/// What `/show` shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// What is known of the model.
    Info,
    /// Its template.
    Template,
    /// Its licence.
    License,
    /// The system text.
    System,
    /// The parameters that can be set.
    Parameters,
}

/// Lines between fences that are not complete yet.
#[derive(Debug, Default)]
pub struct Gather {
    open: Option<Open>,
}

/// What was gathered so far, and what it will be.
#[derive(Debug)]
struct Open {
    text: String,
    becomes: fn(String) -> Typed,
}

impl Gather {
    /// Whether a fence is open.
    pub fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// Forgets what was gathered, as Ctrl-C wants.
    pub fn reset(&mut self) {
        self.open = None;
    }

    /// Takes a line; `None` wants more.
    pub fn line(&mut self, line: &str) -> Option<Typed> {
        if let Some(mut open) = self.open.take() {
            if let Some(last) = line.trim_end().strip_suffix(FENCE) {
                open.text.push_str(last);
                return Some((open.becomes)(open.text));
            }
            open.text.push_str(line);
            open.text.push('\n');
            self.open = Some(open);
            return None;
        }
        let begun = line.trim_start();
        if let Some(rest) = begun.strip_prefix(FENCE) {
            return self.fenced(rest, said);
        }
        if let Some(rest) = system_fence(begun) {
            return self.fenced(rest, system);
        }
        Some(if begun.starts_with('/') {
            command(line.trim())
        } else {
            said(line.to_owned())
        })
    }

    /// What stands behind an opening fence: the whole of it, or its first line.
    fn fenced(&mut self, rest: &str, becomes: fn(String) -> Typed) -> Option<Typed> {
        if let Some(whole) = rest.trim_end().strip_suffix(FENCE) {
            return Some(becomes(whole.to_owned()));
        }
        let text = if rest.is_empty() {
            String::new()
        } else {
            format!("{rest}\n")
        };
        self.open = Some(Open { text, becomes });
        None
    }
}

/// What stands behind the fence of `/set system """`.
fn system_fence(line: &str) -> Option<&str> {
    let rest = line.strip_prefix("/set")?.trim_start();
    rest.strip_prefix("system")?
        .trim_start()
        .strip_prefix(FENCE)
}

fn system(text: String) -> Typed {
    Typed::Command(Command::SetSystem(text))
}

fn said(text: String) -> Typed {
    if text.trim().is_empty() {
        Typed::Nothing
    } else {
        Typed::Turn(text)
    }
}

fn command(line: &str) -> Typed {
    let (head, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    let rest = rest.trim();
    let command = match (head, rest) {
        ("/bye" | "/exit" | "/quit", _) => Command::Bye,
        ("/?" | "/help", _) => Command::Help,
        ("/clear", _) => Command::Clear,
        ("/set", rest) => return set(rest),
        ("/show", "" | "info") => Command::Show(Part::Info),
        ("/show", "template") => Command::Show(Part::Template),
        ("/show", "license" | "licence") => Command::Show(Part::License),
        ("/show", "system") => Command::Show(Part::System),
        ("/show", "parameters") => Command::Show(Part::Parameters),
        ("/show", "modelfile") => {
            return Typed::Wrong(
                "/show modelfile is not there yet; /show tells what is known".to_owned(),
            );
        }
        ("/save", _) => {
            return Typed::Wrong(
                "/save is not there yet: a conversation is kept nowhere".to_owned(),
            );
        }
        ("/show", part) => return Typed::Wrong(format!("nothing to show called '{part}'")),
        ("/load", "") => return Typed::Wrong("/load needs a model's name".to_owned()),
        ("/load", model) => Command::Load(model.to_owned()),
        (head, _) => return Typed::Wrong(format!("no command '{head}'; /? shows them")),
    };
    Typed::Command(command)
}

fn set(rest: &str) -> Typed {
    let (what, value) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    let value = value.trim();
    let command = match (what, value) {
        ("parameter", "") => Command::Parameters,
        ("parameter", value) => match value.split_once(char::is_whitespace) {
            Some((name, value)) => {
                Command::SetParameter(name.to_owned(), unquoted(value.trim()).to_owned())
            }
            None => return Typed::Wrong(format!("/set parameter {value} needs a value")),
        },
        ("system", text) => Command::SetSystem(unquoted(text).to_owned()),
        ("think", "") => Command::SetThink(Thinking::On),
        ("think", how) => match Thinking::from_word(how) {
            Some(think) => Command::SetThink(think),
            None => {
                return Typed::Wrong("/set think takes low, medium, high or max".to_owned());
            }
        },
        ("nothink", _) => Command::SetThink(Thinking::Off),
        ("verbose", _) => Command::SetVerbose(true),
        ("quiet", _) => Command::SetVerbose(false),
        _ => {
            return Typed::Wrong(
                "/set takes parameter, system, think, nothink, verbose or quiet".to_owned(),
            );
        }
    };
    Typed::Command(command)
}

/// The text inside a pair of quotes around all of it; quotes within it are the text's own.
fn unquoted(text: &str) -> &str {
    text.strip_prefix('"')
        .and_then(|text| text.strip_suffix('"'))
        .filter(|inside| !inside.contains('"'))
        .unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a conversation makes of these lines.
    fn typed(lines: &[&str]) -> Vec<Typed> {
        let mut gather = Gather::default();
        lines.iter().filter_map(|line| gather.line(line)).collect()
    }

    #[test]
    fn a_fence_gathers_lines() {
        assert_eq!(typed(&["hello"]), [Typed::Turn("hello".into())]);
        assert_eq!(
            typed(&["\"\"\"", "one", "two", "\"\"\""]),
            [Typed::Turn("one\ntwo\n".into())]
        );
        assert_eq!(
            typed(&["\"\"\"one", "two\"\"\""]),
            [Typed::Turn("one\ntwo".into())]
        );
        assert_eq!(
            typed(&["\"\"\"all in one\"\"\""]),
            [Typed::Turn("all in one".into())]
        );
        assert_eq!(
            typed(&["\"\"\"", "/bye stays text", "\"\"\""]),
            [Typed::Turn("/bye stays text\n".into())]
        );
        assert_eq!(typed(&["", "   "]), [Typed::Nothing, Typed::Nothing]);
    }

    #[test]
    fn commands_are_understood_as_ollamas() {
        let is =
            |line: &str, command: Command| assert_eq!(typed(&[line]), [Typed::Command(command)]);
        is("/bye", Command::Bye);
        is("/?", Command::Help);
        is(
            "/set parameter temperature 0.2",
            Command::SetParameter("temperature".into(), "0.2".into()),
        );
        is(
            "/set parameter stop \"\\n\"",
            Command::SetParameter("stop".into(), "\\n".into()),
        );
        is(
            "/set system \"\"\"Be brief.\"\"\"",
            Command::SetSystem("Be brief.".into()),
        );
        is("/set verbose", Command::SetVerbose(true));
        is("/set think", Command::SetThink(Thinking::On));
        is("/set think high", Command::SetThink(Thinking::High));
        is("/set nothink", Command::SetThink(Thinking::Off));
        is("/show", Command::Show(Part::Info));
        is("/show template", Command::Show(Part::Template));
    }

    #[test]
    fn a_system_text_may_have_several_lines() {
        let system = |text: &str| Typed::Command(Command::SetSystem(text.into()));
        assert_eq!(
            typed(&["/set system \"\"\"Be brief.", "Be kind.\"\"\"", "hello"]),
            [system("Be brief.\nBe kind."), Typed::Turn("hello".into())]
        );
        assert_eq!(
            typed(&["/set system \"\"\"", "/bye stays text", "\"\"\""]),
            [system("/bye stays text\n")]
        );
    }

    #[test]
    fn only_quotes_around_the_whole_text_are_taken_off() {
        for (typed_text, text) in [
            ("Say \"hi\"", "Say \"hi\""),
            ("\"Be brief.\"", "Be brief."),
            ("\"Say\" and \"go\"", "\"Say\" and \"go\""),
            ("\"", "\""),
            ("", ""),
        ] {
            let line = format!("/set system {typed_text}");
            let expected = Typed::Command(Command::SetSystem(text.into()));
            assert_eq!(typed(&[&line]), [expected]);
        }
    }

    #[test]
    fn what_is_not_there_yet_says_so() {
        for line in ["/save mine", "/show modelfile"] {
            let [Typed::Wrong(why)] = &typed(&[line])[..] else {
                panic!("{line} is a command");
            };
            assert!(why.contains("not there yet"), "{why}");
        }
    }

    #[test]
    fn a_wrong_command_says_why_and_is_never_sent_to_the_model() {
        for line in [
            "/wat",
            "/set",
            "/set parameter top_k",
            "/set think hard",
            "/show secrets",
            "/load",
        ] {
            assert!(matches!(typed(&[line])[..], [Typed::Wrong(_)]), "{line}");
        }
    }
}
