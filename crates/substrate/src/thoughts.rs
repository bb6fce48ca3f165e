//! Thoughts: whether a model thinks before it answers, and its thoughts told apart from its answer.
//!
//! Models of the Qwen3 and DeepSeek-R1 kind write `<think>…</think>` before the answer. Some templates write the opening
//! tag themselves, at the end of the prompt, so that the answer begins inside. Which of them a model has is read off its
//! template's text, where this machine has it: a template is a program of strangers, and is run behind the wall only.
//!
//! Invariants: however an answer is cut, the same is told; of its letters only the tags are left out, and the white space
//! around them. Absent by design: other notations (harmony's channels, `[THINK]`), which stay text.

use substrate_sandbox::wire::Thinking;

use crate::models::purpose::capability;

const OPEN: &str = "<think>";
const CLOSE: &str = "</think>";

/// What the end of a template is found by: the condition under which it opens the answer's turn.
const LAST_TURN: &str = "add_generation_prompt";

/// Bytes of a template that are looked at: what a worker takes of one. A longer one is not known.
const MAX_LOOK: usize = 256 * 1024;

/// How a request's thinking was settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settled {
    /// What the template is told.
    pub told: Option<Thinking>,
    /// How the answer begins; `None` if there are no thoughts in it to be told apart.
    pub begins: Option<Begins>,
}

/// Where an answer begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begins {
    /// Before the thoughts, if there are any: their tag opens them.
    Outside,
    /// In its thoughts: the template has opened them.
    Inside,
}

/// Why a model cannot be made to think.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ThinkError {
    /// Its template knows nothing of thoughts.
    #[error("does not support thinking")]
    Unable,
    /// The answer is bound to a schema from its first letter on.
    #[error("cannot think before an answer that is bound to a schema")]
    Bound,
}

/// Settles thinking from the model's template, if it is known here, and from what was asked.
///
/// Nothing asked is asking a model that can think to do so, as Ollama has it. `bound` says that a schema binds the answer:
/// it leaves no room for thoughts.
pub fn settle(
    template: Option<&str>,
    asked: Option<Thinking>,
    bound: bool,
) -> Result<Settled, ThinkError> {
    let wanted = asked.is_some_and(|asked| asked != Thinking::Off);
    let template = template.filter(|template| template.len() <= MAX_LOOK);
    let known = template.map(can_think);
    if known == Some(false) {
        let nothing = Settled {
            told: None,
            begins: None,
        };
        return if wanted {
            Err(ThinkError::Unable)
        } else {
            Ok(nothing)
        };
    }
    if bound {
        let told = asked.or(known.map(|_| Thinking::Off));
        let begins = None;
        return if wanted {
            Err(ThinkError::Bound)
        } else {
            Ok(Settled { told, begins })
        };
    }
    let told = asked.or(known.map(|_| Thinking::On));
    let begins = template.map_or(Begins::Outside, |template| beginning(template, told));
    Ok(Settled {
        told,
        begins: Some(begins),
    })
}

/// What a model can do, in Ollama's words, as far as its architecture and its template tell.
pub fn capabilities(arch: &str, template: &str, sees: bool) -> Vec<String> {
    let known = [
        (capability(arch), true),
        ("vision", sees),
        ("tools", template.contains("tools")),
        ("thinking", can_think(template)),
    ];
    let able = known.into_iter().filter(|(_, able)| *able);
    able.map(|(word, _)| word.to_owned()).collect()
}

fn can_think(template: &str) -> bool {
    template.contains(OPEN) || template.contains(CLOSE)
}

fn beginning(template: &str, told: Option<Thinking>) -> Begins {
    let Some((_, last_turn)) = template.rsplit_once(LAST_TURN) else {
        return Begins::Outside;
    };
    let opens = last_turn.split(OPEN).skip(1).any(|rest| !is_closed(rest));
    let can_be_switched = last_turn.contains("thinking");
    if opens && (told != Some(Thinking::Off) || !can_be_switched) {
        Begins::Inside
    } else {
        Begins::Outside
    }
}

/// Whether what stands behind an opening tag closes it at once; line breaks are escapes in a template's literals.
fn is_closed(rest: &str) -> bool {
    let mut rest = rest.trim_start();
    while let Some(after) = rest.strip_prefix("\\n") {
        rest = after.trim_start();
    }
    rest.starts_with(CLOSE)
}

/// A piece of an answer, told apart.
#[derive(Default, PartialEq, Eq)]
pub struct Heard {
    /// Of its thoughts.
    pub thoughts: String,
    /// Of the answer itself.
    pub text: String,
}

/// Hears one answer and tells thoughts from text.
pub struct Ear {
    held: String,
    state: State,
    begins: Begins,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// Too little was heard.
    Unknown,
    /// In the thoughts, and none of them heard.
    Opened,
    /// In the thoughts.
    Thoughts,
    /// Behind the thoughts, and nothing of the answer heard.
    Closed,
    /// In the answer.
    Text,
}

impl Ear {
    /// For an answer that begins like this.
    pub fn new(begins: Begins) -> Self {
        Self {
            held: String::new(),
            state: State::Unknown,
            begins,
        }
    }

    /// Whether something is held back until more is heard.
    pub fn holds(&self) -> bool {
        !self.held.is_empty()
    }

    /// Hears more. Returns what is sure.
    pub fn hear(&mut self, piece: &str) -> Heard {
        self.held.push_str(piece);
        let mut heard = Heard::default();
        while self.step(&mut heard) {}
        heard
    }

    /// The answer is over: what was held back.
    pub fn end(&mut self) -> Heard {
        let held = std::mem::take(&mut self.held);
        let in_thoughts = match self.state {
            State::Unknown => self.begins == Begins::Inside,
            State::Opened | State::Thoughts => true,
            State::Closed | State::Text => false,
        };
        let (thoughts, text) = match in_thoughts {
            true => (held, String::new()),
            false => (String::new(), held),
        };
        Heard { thoughts, text }
    }

    /// Hears a whole answer. One that closes its thoughts without opening them began inside, whatever was known.
    pub fn hear_all(mut self, answer: &str) -> Heard {
        if !answer.contains(OPEN) && answer.contains(CLOSE) {
            self.begins = Begins::Inside;
        }
        let mut heard = self.hear(answer);
        let rest = self.end();
        heard.thoughts += &rest.thoughts;
        heard.text += &rest.text;
        heard
    }

    /// Goes from one state to the next, if enough was heard.
    fn step(&mut self, heard: &mut Heard) -> bool {
        match self.state {
            State::Unknown => self.open(),
            State::Opened => self.skip_space(State::Thoughts),
            State::Thoughts => self.think(heard),
            State::Closed => self.skip_space(State::Text),
            State::Text => {
                heard.text += &std::mem::take(&mut self.held);
                false
            }
        }
    }

    /// Also a template that has opened the thoughts may be followed by a model that opens them again.
    fn open(&mut self) -> bool {
        let begun = self.held.trim_start();
        if let Some(rest) = begun.strip_prefix(OPEN) {
            self.held = rest.to_owned();
            self.state = State::Opened;
        } else if OPEN.starts_with(begun) {
            return false;
        } else {
            self.state = match self.begins {
                Begins::Inside => State::Opened,
                Begins::Outside => State::Text,
            };
        }
        true
    }

    fn skip_space(&mut self, next: State) -> bool {
        self.held = self.held.trim_start().to_owned();
        if self.held.is_empty() {
            return false;
        }
        self.state = next;
        true
    }

    /// Holds back what may be the closing tag, and the white space before it.
    fn think(&mut self, heard: &mut Heard) -> bool {
        if let Some((thoughts, rest)) = self.held.split_once(CLOSE) {
            heard.thoughts += thoughts.trim_end();
            self.held = rest.to_owned();
            self.state = State::Closed;
            return true;
        }
        let sure = self.held.len() - begun_at_end(&self.held, CLOSE);
        let sure = self.held[..sure].trim_end().len();
        let rest = self.held.split_off(sure);
        heard.thoughts += &std::mem::replace(&mut self.held, rest);
        false
    }
}

/// Bytes at the end of `text` that may be the beginning of `word`.
pub(crate) fn begun_at_end(text: &str, word: &str) -> usize {
    (1..word.len())
        .rev()
        .find(|&count| text.ends_with(&word[..count]))
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PLAIN: &str = "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
    const QWEN3: &str = "{{ content.split('</think>')[-1] }}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}{%- endif %}";
    const QWEN3_THINKING: &str =
        "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n<think>\\n' }}{%- endif %}";
    const GLM: &str = "{%- if add_generation_prompt -%}<|assistant|>{{- '</think>' if (enable_thinking is defined and not enable_thinking) else '<think>' -}}{%- endif -%}";
    const R1: &str = "{% if add_generation_prompt and not ns.is_tool %}{{'<｜Assistant｜><think>\\n'}}{% endif %}";

    #[test]
    fn a_template_tells_where_an_answer_begins() {
        use Begins::{Inside, Outside};
        let begins = |template, asked| settle(Some(template), asked, false).map(|s| s.begins);
        for (template, by_default, off) in [
            (PLAIN, None, None),
            (QWEN3, Some(Outside), Some(Outside)),
            (QWEN3_THINKING, Some(Inside), Some(Inside)),
            (GLM, Some(Inside), Some(Outside)),
            (R1, Some(Inside), Some(Inside)),
        ] {
            assert_eq!(begins(template, None), Ok(by_default), "{template}");
            assert_eq!(begins(template, Some(Thinking::Off)), Ok(off), "{template}");
        }
        assert_eq!(begins(PLAIN, Some(Thinking::On)), Err(ThinkError::Unable));
        let elsewhere = settle(None, Some(Thinking::High), false).expect("nothing is known");
        assert_eq!(
            elsewhere,
            Settled {
                told: Some(Thinking::High),
                begins: Some(Outside)
            }
        );
    }

    #[test]
    fn who_can_think_does_unless_told_otherwise_or_bound() {
        let told = |asked, bound| settle(Some(QWEN3), asked, bound).map(|s| s.told);
        assert_eq!(told(None, false), Ok(Some(Thinking::On)));
        assert_eq!(told(Some(Thinking::Off), false), Ok(Some(Thinking::Off)));
        assert_eq!(told(Some(Thinking::Low), false), Ok(Some(Thinking::Low)));
        assert_eq!(told(None, true), Ok(Some(Thinking::Off)));
        assert_eq!(told(Some(Thinking::On), true), Err(ThinkError::Bound));
        assert_eq!(settle(None, None, false).map(|s| s.told), Ok(None));
        assert_eq!(settle(Some(R1), None, true).map(|s| s.begins), Ok(None));
        assert_eq!(settle(Some(PLAIN), None, false).map(|s| s.told), Ok(None));
    }

    #[test]
    fn a_template_tells_what_its_model_can() {
        assert_eq!(capabilities("llama", PLAIN, false), ["completion"]);
        assert_eq!(
            capabilities("qwen3", QWEN3, true),
            ["completion", "vision", "thinking"]
        );
        assert_eq!(
            capabilities("llama", "{% if tools %}{{ tools }}{% endif %}", false),
            ["completion", "tools"]
        );
    }

    fn heard(begins: Begins, pieces: &[&str]) -> (String, String) {
        let mut ear = Ear::new(begins);
        let (mut thoughts, mut text) = (String::new(), String::new());
        let mut add = |heard: Heard| {
            thoughts += &heard.thoughts;
            text += &heard.text;
        };
        pieces.iter().for_each(|piece| add(ear.hear(piece)));
        add(ear.end());
        (thoughts, text)
    }

    #[test]
    fn thoughts_are_told_apart_however_they_are_cut() {
        use Begins::{Inside, Outside};
        for (begins, answer, thoughts, text) in [
            (
                Outside,
                "<think>\nHm, so.\n</think>\n\nYes.",
                "Hm, so.",
                "Yes.",
            ),
            (
                Outside,
                " \n<think>a < b </thin c</think>d",
                "a < b </thin c",
                "d",
            ),
            (Outside, "<think>\n\n</think>\n\nYes.", "", "Yes."),
            (Outside, "<think>never closed ", "never closed ", ""),
            (Outside, "<think>cut in </thi", "cut in </thi", ""),
            (
                Outside,
                "A <think>b</think> c ",
                "",
                "A <think>b</think> c ",
            ),
            (Outside, " <b>", "", " <b>"),
            (Outside, "<thin", "", "<thin"),
            (Outside, "", "", ""),
            (Inside, "Hm.\n</think>\n\n<tool_call>", "Hm.", "<tool_call>"),
            (Inside, "<think>Hm.</think>Yes", "Hm.", "Yes"),
            (Inside, "still thinking", "still thinking", ""),
            (Inside, "</think>Yes", "", "Yes"),
            (Inside, "é\u{a0}ü</think>ß", "é\u{a0}ü", "ß"),
        ] {
            let letters: Vec<String> = answer.chars().map(String::from).collect();
            let letters: Vec<&str> = letters.iter().map(String::as_str).collect();
            let expected = (thoughts.to_owned(), text.to_owned());
            assert_eq!(heard(begins, &letters), expected, "{answer}");
            assert_eq!(heard(begins, &[answer]), expected, "{answer}");
        }
    }

    #[test]
    fn what_is_sure_is_told_at_once() {
        let mut ear = Ear::new(Begins::Outside);
        let mut hear = |piece| {
            let heard = ear.hear(piece);
            (heard.thoughts, heard.text)
        };
        let told = |thoughts: &str, text: &str| (thoughts.to_owned(), text.to_owned());
        assert_eq!(hear("<think>"), told("", ""));
        assert_eq!(hear("\nHm"), told("Hm", ""));
        assert_eq!(hear(" so"), told(" so", ""));
        assert_eq!(hear(".\n</th"), told(".", ""));
        assert_eq!(hear("ink>\n\nYes"), told("", "Yes"));
        assert_eq!(hear(" <"), told("", " <"));
    }

    #[test]
    fn a_whole_answer_that_only_closes_its_thoughts_began_inside() {
        let heard = Ear::new(Begins::Outside).hear_all("Hm.</think>Yes.");
        assert_eq!((&*heard.thoughts, &*heard.text), ("Hm.", "Yes."));
    }

    proptest! {
        #[test]
        fn cuts_change_nothing(
            parts in prop::collection::vec(prop_oneof![
                Just("<think>"), Just("</think>"), Just("\n"), Just(" "), Just("<"), Just("/th"), Just("ab"), Just("é"),
            ], 0..12),
            inside: bool,
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
        ) {
            let begins = if inside { Begins::Inside } else { Begins::Outside };
            let letters: Vec<char> = parts.concat().chars().collect();
            let mut places: Vec<usize> = cuts.iter().map(|cut| cut.index(letters.len() + 1)).collect();
            places.extend([0, letters.len()]);
            places.sort_unstable();
            let pieces: Vec<String> = places.windows(2).map(|cut| letters[cut[0]..cut[1]].iter().collect()).collect();
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            prop_assert_eq!(heard(begins, &pieces), heard(begins, &[&parts.concat()]));
        }
    }
}
