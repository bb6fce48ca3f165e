//! Tools: what a request offers, the schema that binds an answer to a call, and the calls found in an answer's text.
//!
//! Models call in a few notations: a JSON object with a name and arguments (Llama 3, and every model that is told in
//! words), the same between `<tool_call>` tags (Hermes, Qwen), a list after `[TOOL_CALLS]` (Mistral). A forced call is
//! the first of them, bound by a schema made of the tools' own, so that it cannot be malformed.
//!
//! Invariant: a call names a tool that was offered and carries an object; what does not is text, told as text. Text that
//! may become a call is held back until it is known; nothing is lost and nothing told twice.
//! Absent by design: carrying a call out, which is the client's; any look into parameters beyond their being a schema.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use substrate_sandbox::wire::Input;

use super::body::{at_most, non_empty_list};
use super::error::{Refusal, clipped};
use crate::thoughts::begun_at_end;

/// Tools of one request: OpenAI's own limit.
const MAX_TOOLS: usize = 128;

/// Bytes of a tool's name: OpenAI's own limit.
const MAX_NAME: usize = 64;

/// What opens a call, at the beginning of an answer.
const OPENINGS: [&str; 5] = ["{", "[{", "<tool_call>", "[TOOL_CALLS]", "<|python_tag|>"];

/// What opens a call anywhere, and what closes it.
const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";

/// Tools of a request whose use is not forbidden. Their descriptions are a prompt's: no log can show them.
#[derive(Clone)]
pub(super) struct Tools {
    /// As they were sent: what a chat template shows the model.
    list: String,
    offered: Vec<Tool>,
    names: Arc<BTreeSet<String>>,
    choice: Choice,
}

#[derive(Clone)]
struct Tool {
    name: String,
    parameters: Value,
}

#[derive(Clone, PartialEq, Eq)]
enum Choice {
    /// The model calls or answers.
    Auto,
    /// It must call one.
    Required,
    /// It must call this one.
    Named(String),
}

impl std::fmt::Debug for Tools {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tools").finish_non_exhaustive()
    }
}

#[derive(Deserialize)]
#[serde(transparent)]
struct List(#[serde(deserialize_with = "at_most::<_, _, MAX_TOOLS>")] Vec<Offered>);

#[derive(Deserialize)]
#[serde(expecting = "an object")]
struct Offered {
    #[serde(rename = "type")]
    kind: Option<String>,
    function: Option<Function>,
}

#[derive(Deserialize)]
#[serde(expecting = "an object")]
struct Function {
    name: Option<String>,
    parameters: Option<Value>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Chosen {
    Word(String),
    Function { function: Named },
}

#[derive(Deserialize)]
struct Named {
    name: String,
}

impl Tools {
    /// The tools of a request, if there are any that may be used.
    ///
    /// # Errors
    /// Tools or choice are not what the APIs say they are.
    pub(super) fn of(
        tools: Option<&RawValue>,
        choice: Option<&RawValue>,
    ) -> Result<Option<Self>, Refusal> {
        let choice = choice_of(choice)?;
        let raw = tools.filter(|raw| raw.get() != "null");
        if raw.is_some_and(|raw| !raw.get().trim_start().starts_with('[')) {
            return Err(Refusal::invalid("tools", "tools must be a list"));
        }
        let list = raw.and_then(non_empty_list);
        let (list, choice) = match (list, choice) {
            (_, Some(None)) | (None, None) => return Ok(None),
            (None, Some(Some(Choice::Auto))) => return Ok(None),
            (None, Some(Some(_))) => {
                return Err(Refusal::invalid(
                    "tool_choice",
                    "tool_choice asks for a call, and there are no tools",
                ));
            }
            (Some(list), choice) => (list, choice.flatten().unwrap_or(Choice::Auto)),
        };
        let offered: List = serde_json::from_str(&list)
            .map_err(|error| Refusal::invalid("tools", format!("tools: {error}")))?;
        let offered = offered.0.into_iter().enumerate();
        let offered: Vec<Tool> = offered
            .map(|(at, offered)| offered.tool(at))
            .collect::<Result<_, _>>()?;
        let names: BTreeSet<String> = offered.iter().map(|tool| tool.name.clone()).collect();
        if names.len() < offered.len() {
            return Err(Refusal::invalid("tools", "two tools have the same name"));
        }
        if let Choice::Named(name) = &choice
            && !names.contains(name)
        {
            let why = format!(
                "tool_choice names '{}', which is not offered",
                clipped(name)
            );
            return Err(Refusal::invalid("tool_choice", why));
        }
        Ok(Some(Self {
            list,
            offered,
            names: Arc::new(names),
            choice,
        }))
    }

    /// Shows the tools to the model, and binds the answer to a call if it must be one.
    ///
    /// # Errors
    /// The answer is bound to a schema already.
    pub(super) fn put_into(&self, input: &mut Input) -> Result<(), Refusal> {
        if input.schema.is_some() {
            return Err(Refusal::not_yet(
                "tools",
                "a schema for the answer beside tools",
            ));
        }
        input.tools = Some(self.list.clone());
        input.schema = match &self.choice {
            Choice::Auto => None,
            Choice::Required => Some(one_of(&self.offered.iter().collect::<Vec<_>>())),
            Choice::Named(name) => {
                let tool = self.offered.iter().filter(|tool| tool.name == *name);
                Some(one_of(&tool.collect::<Vec<_>>()))
            }
        };
        Ok(())
    }

    /// Hears one answer.
    pub(super) fn ear(&self) -> Ear {
        Ear {
            names: self.names.clone(),
            held: String::new(),
            state: match self.choice {
                Choice::Auto => State::Unknown,
                _ => State::Call,
            },
        }
    }
}

/// `Some(None)` forbids calls.
fn choice_of(raw: Option<&RawValue>) -> Result<Option<Option<Choice>>, Refusal> {
    let Some(raw) = raw.filter(|raw| raw.get() != "null") else {
        return Ok(None);
    };
    let refuse = || {
        Refusal::invalid(
            "tool_choice",
            "tool_choice must be auto, none, required or a function",
        )
    };
    let chosen: Chosen = serde_json::from_str(raw.get()).map_err(|_| refuse())?;
    Ok(Some(match chosen {
        Chosen::Function { function } => Some(Choice::Named(function.name)),
        Chosen::Word(word) => match word.as_str() {
            "none" => None,
            "auto" => Some(Choice::Auto),
            // What Mistral's and Anthropic's clients write.
            "required" | "any" => Some(Choice::Required),
            _ => return Err(refuse()),
        },
    }))
}

impl Offered {
    fn tool(self, at: usize) -> Result<Tool, Refusal> {
        let refuse =
            |field: &str, why: String| Refusal::invalid(format!("tools[{at}]{field}"), why);
        if let Some(kind) = self.kind.filter(|kind| kind != "function") {
            let why = format!("a tool of type '{}'", clipped(&kind));
            return Err(Refusal::not_yet(format!("tools[{at}].type"), &why));
        }
        let function = self
            .function
            .ok_or_else(|| refuse("", "a tool needs a function".into()))?;
        let name = function.name.unwrap_or_default();
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
        if name.is_empty() || name.len() > MAX_NAME || !name.bytes().all(allowed) {
            let why = format!(
                "a tool's name has 1 to {MAX_NAME} letters, digits, underscores, dashes or dots, unlike '{}'",
                clipped(&name)
            );
            return Err(refuse(".function.name", why));
        }
        let parameters = match function.parameters {
            None | Some(Value::Null) => json!({ "type": "object" }),
            Some(Value::Object(schema)) if schema.is_empty() => json!({ "type": "object" }),
            Some(schema @ Value::Object(_)) => schema,
            Some(_) => {
                let why = "a tool's parameters are a json schema, which is an object".into();
                return Err(refuse(".function.parameters", why));
            }
        };
        Ok(Tool { name, parameters })
    }
}

/// The schema of a call of one of the tools.
fn one_of(tools: &[&Tool]) -> String {
    let lone = tools.len() == 1;
    let call = |(at, tool): (usize, &&Tool)| {
        let mut parameters = tool.parameters.clone();
        let place = if lone {
            "#/properties/arguments".to_owned()
        } else {
            format!("#/anyOf/{at}/properties/arguments")
        };
        move_references(&mut parameters, &place);
        json!({
            "type": "object",
            "properties": { "name": { "const": tool.name }, "arguments": parameters },
            "required": ["name", "arguments"],
            "additionalProperties": false,
        })
    };
    let mut calls: Vec<Value> = tools.iter().enumerate().map(call).collect();
    if lone && let Some(call) = calls.pop() {
        return call.to_string();
    }
    json!({ "anyOf": calls }).to_string()
}

/// References within a schema that now lies at `place` of another.
fn move_references(schema: &mut Value, place: &str) {
    match schema {
        Value::Array(items) => items
            .iter_mut()
            .for_each(|item| move_references(item, place)),
        Value::Object(fields) => {
            for (key, value) in fields {
                match value {
                    Value::String(to) if key == "$ref" => {
                        if let Some(inside) = to.strip_prefix('#') {
                            *to = format!("{place}{inside}");
                        }
                    }
                    value => move_references(value, place),
                }
            }
        }
        _ => {}
    }
}

/// One call.
pub(super) struct ToolCall {
    /// An offered tool.
    pub(super) name: String,
    /// What it is called with.
    pub(super) arguments: Map<String, Value>,
}

/// Hears the text of one answer and tells calls from text.
pub(super) struct Ear {
    names: Arc<BTreeSet<String>>,
    held: String,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// Too little was heard.
    Unknown,
    /// It is text so far; a call may yet be opened by a tag.
    Text,
    /// It is, or may be, a call.
    Call,
}

impl Ear {
    /// Hears more. Returns what is surely text.
    pub(super) fn hear(&mut self, text: &str) -> String {
        self.held.push_str(text);
        if self.state == State::Unknown {
            let begun = self.held.trim_start();
            if OPENINGS.iter().any(|opening| begun.starts_with(opening)) {
                self.state = State::Call;
            } else if !OPENINGS.iter().any(|opening| opening.starts_with(begun)) {
                self.state = State::Text;
            }
        }
        if self.state != State::Text {
            return String::new();
        }
        if let Some(at) = self.held.find(OPEN) {
            self.state = State::Call;
            let call = self.held.split_off(at);
            return std::mem::replace(&mut self.held, call);
        }
        let kept = begun_at_end(&self.held, OPEN);
        let rest = self.held.split_off(self.held.len() - kept);
        std::mem::replace(&mut self.held, rest)
    }

    /// Whether something is held back until more is heard.
    pub(super) fn holds(&self) -> bool {
        !self.held.is_empty()
    }

    /// Hears a whole answer: its text, and the calls in it.
    pub(super) fn hear_all(mut self, text: &str) -> (String, Vec<ToolCall>) {
        let mut told = self.hear(text);
        let (rest, calls) = self.end();
        told += &rest;
        (told, calls)
    }

    /// The answer is over: the calls in what was held back, or its text.
    pub(super) fn end(&mut self) -> (String, Vec<ToolCall>) {
        let held = std::mem::take(&mut self.held);
        match calls(&held, &self.names).filter(|_| self.state == State::Call) {
            Some(calls) => (String::new(), calls),
            None => (held, Vec::new()),
        }
    }
}

/// The calls a text consists of. `None` if any part of it is something else.
fn calls(text: &str, names: &BTreeSet<String>) -> Option<Vec<ToolCall>> {
    let text = text.trim();
    if text.starts_with(OPEN) {
        let blocks = text.split(OPEN).skip(1);
        return blocks
            .map(|block| {
                let block = block.trim();
                one(parse(block.strip_suffix(CLOSE).unwrap_or(block))?, names)
            })
            .collect();
    }
    let text = text
        .strip_prefix("[TOOL_CALLS]")
        .or(text.strip_prefix("<|python_tag|>"))
        .unwrap_or(text);
    match parse(text)? {
        Value::Array(calls) if !calls.is_empty() => {
            calls.into_iter().map(|call| one(call, names)).collect()
        }
        call => Some(vec![one(call, names)?]),
    }
}

fn parse(text: &str) -> Option<Value> {
    serde_json::from_str(text.trim()).ok()
}

fn one(call: Value, names: &BTreeSet<String>) -> Option<ToolCall> {
    let Value::Object(mut call) = call else {
        return None;
    };
    if let Some(Value::Object(function)) = call.remove("function") {
        call = function;
    }
    let Some(Value::String(name)) = call.remove("name") else {
        return None;
    };
    let arguments = call.remove("arguments").or(call.remove("parameters"));
    let arguments = match arguments {
        None | Some(Value::Null) => Map::new(),
        Some(Value::Object(arguments)) => arguments,
        Some(Value::String(text)) => match parse(&text)? {
            Value::Object(arguments) => arguments,
            _ => return None,
        },
        Some(_) => return None,
    };
    names
        .contains(&name)
        .then_some(ToolCall { name, arguments })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO: &str = r##"[{"type":"function","function":{"name":"weather","parameters":{"type":"object","properties":{"city":{"$ref":"#/$defs/city"}},"required":["city"],"$defs":{"city":{"type":"string"}}}}},
        {"type":"function","function":{"name":"time"}}]"##;

    fn tools(tools: &str, choice: &str) -> Result<Option<Tools>, String> {
        let raw = |text: &str| RawValue::from_string(text.to_owned()).expect("json");
        let found = Tools::of(Some(&raw(tools)), Some(&raw(choice)));
        found.map_err(|refusal| refusal.body(crate::http::error::Shape::Ollama).to_string())
    }

    fn bound(choice: &str) -> Value {
        let mut input = Input::chat(vec![]);
        let tools = tools(TWO, choice).expect("sound").expect("some");
        tools.put_into(&mut input).expect("no schema yet");
        input.schema.map_or(Value::Null, |schema| {
            serde_json::from_str(&schema).expect("json")
        })
    }

    fn ear() -> Ear {
        tools(TWO, "\"auto\"").expect("sound").expect("some").ear()
    }

    /// What is told of an answer that comes in these pieces: its text, and each call.
    fn heard(pieces: &[&str]) -> (String, Vec<String>) {
        let mut ear = ear();
        let mut text: String = pieces.iter().map(|piece| ear.hear(piece)).collect();
        let (rest, calls) = ear.end();
        text += &rest;
        let told = |call: ToolCall| format!("{} {}", call.name, Value::Object(call.arguments));
        (text, calls.into_iter().map(told).collect())
    }

    #[test]
    fn a_forced_call_is_bound_to_the_schemas_of_the_tools() {
        let both = bound("\"required\"");
        assert_eq!(both["anyOf"][0]["properties"]["name"]["const"], "weather");
        assert_eq!(
            both["anyOf"][0]["properties"]["arguments"]["properties"]["city"]["$ref"],
            "#/anyOf/0/properties/arguments/$defs/city"
        );
        assert_eq!(
            both["anyOf"][1]["properties"]["arguments"]["type"],
            "object"
        );
        let one = bound(r#"{"type":"function","function":{"name":"weather"}}"#);
        assert_eq!(
            one["properties"]["arguments"]["properties"]["city"]["$ref"],
            "#/properties/arguments/$defs/city"
        );
        assert_eq!(bound("\"auto\""), Value::Null);
    }

    #[test]
    fn what_cannot_be_right_is_refused_by_name() {
        assert!(tools(TWO, "\"none\"").expect("sound").is_none());
        assert!(tools("[]", "\"auto\"").expect("sound").is_none());
        assert!(tools("null", "null").expect("sound").is_none());
        let twice = r#"[{"function":{"name":"f"}},{"function":{"name":"f"}}]"#;
        let many = format!("[{}]", vec![r#"{"function":{"name":"f"}}"#; 129].join(","));
        for (list, choice, why) in [
            (r#"{"a":1}"#, "null", "tools must be a list"),
            (r#"[{"function":{}}]"#, "null", "a tool's name has"),
            (
                r#"[{"type":"function"}]"#,
                "null",
                "a tool needs a function",
            ),
            (
                r#"[{"function":{"name":"a b"}}]"#,
                "null",
                "a tool's name has",
            ),
            (r#"[{"type":"web_search"}]"#, "null", "not there yet"),
            (
                r#"[{"function":{"name":"f","parameters":[]}}]"#,
                "null",
                "json schema",
            ),
            (twice, "null", "the same name"),
            (many.as_str(), "null", "128"),
            (TWO, "\"sometimes\"", "auto, none, required"),
            (TWO, r#"{"function":{"name":"g"}}"#, "not offered"),
            ("[]", "\"required\"", "there are no tools"),
        ] {
            let told = tools(list, choice).expect_err(list);
            assert!(told.contains(why), "{list} {choice}: {told}");
        }
    }

    #[test]
    fn calls_are_found_in_every_notation_however_they_are_cut() {
        let call = r#"weather {"city":"Rome"}"#;
        for text in [
            r#"{"name": "weather", "arguments": {"city": "Rome"}}"#,
            r#" {"name": "weather", "parameters": {"city": "Rome"}}"#,
            r#"{"function": {"name": "weather", "arguments": "{\"city\": \"Rome\"}"}}"#,
            "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Rome\"}}\n</tool_call>",
            r#"[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Rome"}}]"#,
        ] {
            let pieces: Vec<String> = text.chars().map(String::from).collect();
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            assert_eq!(heard(&pieces), (String::new(), vec![call.to_owned()]));
            assert_eq!(heard(&[text]), (String::new(), vec![call.to_owned()]));
        }
        let two = r#"Let me see. <tool_call>{"name":"time"}</tool_call><tool_call>{"name":"weather","arguments":{"city":"Oslo"}}</tool_call>"#;
        let (text, calls) = heard(&[two]);
        assert_eq!(text, "Let me see. ");
        assert_eq!(calls, ["time {}", r#"weather {"city":"Oslo"}"#]);
    }

    #[test]
    fn what_is_no_call_is_text_and_nothing_of_it_is_lost() {
        for text in [
            "It is sunny.",
            "<b>5 < 6</b>",
            r#"{"name": "rockets", "arguments": {}}"#,
            r#"{"name": "weather", "arguments": [1]}"#,
            r#"{"a": 1} and more"#,
            "[1, 2]",
            "<tool_call>never closed nor json",
            "  ",
            "",
        ] {
            let pieces: Vec<String> = text.chars().map(String::from).collect();
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            assert_eq!(heard(&pieces), (text.to_owned(), vec![]), "{text}");
        }
    }

    #[test]
    fn text_is_told_as_it_comes() {
        let mut ear = ear();
        assert_eq!(ear.hear("It"), "It");
        assert_eq!(ear.hear(" is <"), " is ");
        assert_eq!(ear.hear("b>"), "<b>");
    }
}
