//! The model's own chat template (Jinja), or one that came with an input, rendered as Hugging Face's transformers does.
//!
//! A template comes with a model file or from a stranger, so it is hostile until proven otherwise: it runs with a
//! budget of steps, of output and (in the worker program) of memory, inside the wall.
//!
//! Invariant: one input and one template give one text, but for `strftime_now`.
//! Absent by design: includes, imports, files, the environment; any part of a prompt in an error.

use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::value::Kwargs;
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Output, State, Value, syntax};
use substrate_sandbox::wire::{Message, Thinking};
use zeroize::Zeroizing;

use crate::conversation::{Conversation, json_to_value};
use crate::ffi::allocator;
use crate::json::{self, Layout};
use crate::strftime::strftime;

/// The longest template source; the longest known are 20 KiB.
const MAX_SOURCE: usize = 256 * 1024;
/// Steps a template may take at all, and per message. Real templates take 30 to 300 per message.
const STEPS: u64 = 400_000;
const STEPS_PER_MESSAGE: u64 = 4_000;
/// The longest rendered prompt: the longest input (8 MiB) and its markers.
const MAX_RENDERED: usize = 12 * 1024 * 1024;
/// Memory a template may allocate in all, freed or not: a hundred times the longest input.
const MEMORY: usize = 1 << 30;
/// The one template of the environment.
const NAME: &str = "chat_template";

/// Why a template could not be used. Holds nothing of the prompt.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum TemplateError {
    /// The model has none.
    #[error("the model has no chat template")]
    None,
    /// The source is too long.
    #[error("the chat template is {0} bytes long")]
    TooLong(usize),
    /// The template took too many steps.
    #[error("the chat template takes too many steps")]
    TooManySteps,
    /// The template wrote too much.
    #[error("the chat template writes more than {MAX_RENDERED} bytes")]
    TooMuchOutput,
    /// The template refused the conversation in its own words.
    #[error("the chat template refuses the conversation: {0}")]
    Refused(String),
    /// Any other error, by kind and line.
    #[error("the chat template fails in line {line}: {kind}")]
    Failed {
        /// Line of the template.
        line: usize,
        /// What kind of error.
        kind: String,
    },
    /// Tools or tool calls are not JSON.
    #[error("{0} is not valid json")]
    BadJson(&'static str),
}

impl TemplateError {
    /// The same without words of the template: one that came with a prompt is told of as little as the prompt.
    pub fn without_words(self) -> Self {
        match self {
            Self::Refused(_) => Self::Failed {
                line: 0,
                kind: RAISED.into(),
            },
            other => other,
        }
    }
}

/// What is told of an exception.
const RAISED: &str = "it raised an exception";

/// A compiled chat template.
pub struct Template {
    env: Environment<'static>,
    bos: String,
    eos: String,
    object_arguments: bool,
    content_in_parts: bool,
    takes_tools: bool,
}

impl Template {
    /// Compiles `source`; `bos` and `eos` are the texts of the model's special tokens.
    pub fn compile(source: &str, bos: &str, eos: &str) -> Result<Template, TemplateError> {
        if source.len() > MAX_SOURCE {
            return Err(TemplateError::TooLong(source.len()));
        }
        let mut env = environment();
        let source = without_generation_tags(source);
        let takes_tools = source.contains("tools");
        env.add_template_owned(NAME, source)
            .map_err(|error| explain(&error, ""))?;
        let mut template = Template {
            env,
            bos: bos.into(),
            eos: eos.into(),
            object_arguments: true,
            content_in_parts: false,
            takes_tools,
        };
        template.content_in_parts = template.reads_content_in_parts();
        template.object_arguments = template.reads_object_arguments();
        Ok(template)
    }

    /// Whether the model's makers thought of tools.
    pub fn takes_tools(&self) -> bool {
        self.takes_tools
    }

    /// Renders a conversation. The text is overwritten when dropped.
    pub fn render(
        &self,
        messages: &[Message],
        tools: Option<&str>,
        thinking: Option<Thinking>,
        add_generation_prompt: bool,
    ) -> Result<Zeroizing<Vec<u8>>, TemplateError> {
        let conversation = Conversation {
            messages,
            tools,
            thinking,
            add_generation_prompt,
            object_arguments: self.object_arguments,
            content_in_parts: self.content_in_parts,
        };
        self.run(conversation.context(&self.bos, &self.eos)?, messages)
    }

    fn run(
        &self,
        context: Value,
        messages: &[Message],
    ) -> Result<Zeroizing<Vec<u8>>, TemplateError> {
        let mut env = self.env.clone();
        env.set_fuel(Some(STEPS + STEPS_PER_MESSAGE * messages.len() as u64));
        let template = env
            .get_template(NAME)
            .map_err(|error| explain(&error, ""))?;
        let expected: usize = messages.iter().map(|m| m.content.len() + 64).sum();
        // One allocation for the usual case, so that no outgrown copy of the prompt is left behind.
        let room = MAX_RENDERED.min(expected * 2 + 4096);
        let mut output = Bounded {
            bytes: Zeroizing::new(Vec::with_capacity(room)),
            full: false,
        };
        let render = || template.render_captured_to(context, &mut output).map(drop);
        let rendered = allocator::within(MEMORY, render);
        match rendered {
            _ if output.full => Err(TemplateError::TooMuchOutput),
            Ok(()) => Ok(output.bytes),
            Err(error) => Err(explain(&error, template.source())),
        }
    }

    /// Whether the template passes over what is said if it is a text, and reads it if it is a list of parts, as those of
    /// models that see images may: tried on a small conversation, as llama.cpp does.
    fn reads_content_in_parts(&self) -> bool {
        let messages = [Message::new("user", "probe_text")];
        let shows = |content_in_parts| {
            let conversation = Conversation {
                messages: &messages,
                tools: None,
                thinking: None,
                add_generation_prompt: false,
                object_arguments: true,
                content_in_parts,
            };
            let context = conversation.context(&self.bos, &self.eos).ok()?;
            let text = self.run(context, &messages).ok()?;
            Some(String::from_utf8_lossy(&text).contains("probe_text"))
        };
        !shows(false).unwrap_or(false) && shows(true).unwrap_or(false)
    }

    /// Whether the template wants a tool call's arguments as an object (Hugging Face's form) or as
    /// JSON text (OpenAI's): tried on a small conversation, as llama.cpp does.
    fn reads_object_arguments(&self) -> bool {
        let call = r#"[{"id":"call00001","type":"function","function":{"name":"probe","arguments":{"probe_key":"probe_value"}}}]"#;
        let messages = [
            Message::new("user", "probe"),
            Message {
                tool_calls: Some(call.into()),
                ..Message::new("assistant", "")
            },
        ];
        let tools = r#"[{"type":"function","function":{"name":"probe","description":"","parameters":{"type":"object","properties":{}}}}]"#;
        let shows_json = |object_arguments| {
            let conversation = Conversation {
                messages: &messages,
                tools: Some(tools),
                thinking: None,
                add_generation_prompt: false,
                object_arguments,
                content_in_parts: self.content_in_parts,
            };
            let context = conversation.context(&self.bos, &self.eos).ok()?;
            let text = String::from_utf8_lossy(&self.run(context, &messages).ok()?).into_owned();
            let quoted = text.contains("\"probe_value\"") || !text.contains("probe_value");
            Some(quoted && !text.contains("\\\"probe_value"))
        };
        shows_json(true).unwrap_or(false) || !shows_json(false).unwrap_or(false)
    }
}

fn environment() -> Environment<'static> {
    let mut env = Environment::new();
    let syntax = syntax::SyntaxConfig::builder()
        .trim_blocks(true)
        .lstrip_blocks(true)
        .build();
    env.set_syntax(syntax.expect("changes no delimiter"));
    env.set_auto_escape_callback(|_| AutoEscape::None);
    env.set_debug(false);
    env.set_formatter(write_as_python);
    env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    env.add_filter("tojson", tojson);
    env.add_function("raise_exception", |why: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, why).with_source(Raised))
    });
    env.add_function("strftime_now", |format: String| {
        strftime(&format, seconds_now())
    });
    env
}

/// Marks an error as the template's own words.
#[derive(Debug, thiserror::Error)]
#[error("raised by the template")]
struct Raised;

fn seconds_now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// `{{ true }}` is `True` and `{{ none }}` is `None`, as in Python.
fn write_as_python(out: &mut Output, state: &mut State, value: &Value) -> Result<(), Error> {
    let python = match (value.is_none(), value.kind()) {
        (true, _) => Value::from("None"),
        (_, minijinja::value::ValueKind::Bool) => {
            Value::from(if value.is_true() { "True" } else { "False" })
        }
        _ => value.clone(),
    };
    minijinja::escape_formatter(out, state, &python)
}

/// `json.dumps` with the defaults that transformers sets.
fn tojson(value: &Value, indent: Option<Value>, kwargs: Kwargs) -> Result<String, Error> {
    let named: Option<Value> = kwargs.get("indent")?;
    let indent = named.or(indent).and_then(|indent| indent.as_usize());
    let separators: Option<Value> = kwargs.get("separators")?;
    let part = |index| {
        let separators = separators.as_ref().filter(|s| !s.is_none())?;
        separators
            .get_item_by_index(index)
            .ok()?
            .as_str()
            .map(str::to_owned)
    };
    let layout = Layout {
        indent: indent.map(|n| n.min(16)),
        item: part(0).unwrap_or_else(|| if indent.is_some() { "," } else { ", " }.into()),
        key: part(1).unwrap_or_else(|| ": ".into()),
        ascii: kwargs.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        sort: kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
    };
    kwargs.assert_all_used()?;
    json::write(value, &layout)
}

/// transformers marks the assistant's text with `{% generation %}`; rendering ignores the mark.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let Some(length) = rest[start..].find("%}") else {
            break;
        };
        let tag = &rest[start..start + length];
        let word = tag
            .trim_start_matches("{%")
            .trim_matches(['-', '+', ' ', '\n', '\t']);
        out.push_str(&rest[..start]);
        match word {
            "generation" => out.push_str(&tag.replace("generation", "if true")),
            "endgeneration" => out.push_str(&tag.replace("endgeneration", "endif")),
            _ => out.push_str(tag),
        }
        rest = &rest[start + length..];
    }
    out.push_str(rest);
    out
}

/// An error without the prompt: the kind, the line, and words only if the template wrote them.
fn explain(error: &Error, source: &str) -> TemplateError {
    let raised = std::error::Error::source(error).is_some_and(|source| source.is::<Raised>());
    match (error.kind(), error.detail()) {
        (ErrorKind::OutOfFuel, _) => TemplateError::TooManySteps,
        (_, Some(why)) if raised && source.contains(why) => TemplateError::Refused(why.into()),
        (kind, _) => {
            let line = error.line().unwrap_or(0);
            let kind = if raised {
                RAISED.into()
            } else {
                kind.to_string()
            };
            TemplateError::Failed { line, kind }
        }
    }
}

/// A writer that refuses what is over the limit.
struct Bounded {
    bytes: Zeroizing<Vec<u8>>,
    full: bool,
}

impl io::Write for &mut Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > MAX_RENDERED {
            self.full = true;
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Parses JSON text that came with an input.
pub(crate) fn parse_json(text: &str, what: &'static str) -> Result<Value, TemplateError> {
    let parsed = serde_json::from_str(text).map_err(|_| TemplateError::BadJson(what))?;
    Ok(json_to_value(parsed))
}

#[cfg(test)]
mod tests;
