//! A conversation as the values that chat templates expect.
//!
//! Invariant: keys and their order are those of transformers and llama.cpp: role, content, then
//! reasoning, tool calls, name, tool call id, each absent if not given.
//! Absent by design: any change to what was said, but for [`with_tools_in_words`].

use std::collections::BTreeMap;

use minijinja::Value;
use serde_json::Value as Json;
use substrate_sandbox::wire::{Message, Thinking};

use crate::template::{TemplateError, parse_json};

/// What is rendered.
pub struct Conversation<'a> {
    /// What was said.
    pub messages: &'a [Message],
    /// Tool definitions as JSON text.
    pub tools: Option<&'a str>,
    /// Whether the model is to think, if that is said.
    pub thinking: Option<Thinking>,
    /// Whether the assistant's turn is opened at the end.
    pub add_generation_prompt: bool,
    /// Whether arguments of tool calls are objects rather than JSON text.
    pub object_arguments: bool,
    /// Whether what is said is a list of parts rather than a text.
    pub content_in_parts: bool,
}

impl Conversation<'_> {
    /// The template's variables.
    pub fn context(&self, bos: &str, eos: &str) -> Result<Value, TemplateError> {
        let messages = self.messages.iter().map(|message| self.message(message));
        let messages = messages.collect::<Result<Vec<Value>, _>>()?;
        let mut context = BTreeMap::from([
            ("messages", Value::from(messages)),
            ("bos_token", Value::from(bos)),
            ("eos_token", Value::from(eos)),
            (
                "add_generation_prompt",
                Value::from(self.add_generation_prompt),
            ),
        ]);
        if let Some(tools) = self.tools {
            context.insert("tools", parse_json(tools, TOOLS)?);
        }
        if let Some(thinking) = self.thinking {
            let thinks = thinking != Thinking::Off;
            // Qwen's, GLM's and SmolLM3's name, and DeepSeek's and Granite's.
            context.insert("enable_thinking", Value::from(thinks));
            context.insert("thinking", Value::from(thinks));
            if let Some(effort) = thinking.effort() {
                context.insert("reasoning_effort", Value::from(effort));
            }
        }
        Ok(Value::from_pairs(context))
    }

    fn message(&self, message: &Message) -> Result<Value, TemplateError> {
        let mut pairs = vec![
            ("role", Value::from(message.role.as_str())),
            ("content", self.content(&message.content)),
        ];
        if let Some(thinking) = &message.thinking {
            pairs.push(("reasoning_content", Value::from(thinking.as_str())));
        }
        if let Some(calls) = &message.tool_calls {
            pairs.push(("tool_calls", self.tool_calls(calls)?));
        }
        for (key, value) in [
            ("name", &message.name),
            ("tool_call_id", &message.tool_call_id),
        ] {
            if let Some(value) = value {
                pairs.push((key, Value::from(value.as_str())));
            }
        }
        Ok(Value::from_pairs(pairs))
    }

    fn content(&self, text: &str) -> Value {
        if !self.content_in_parts {
            return Value::from(text);
        }
        let part = [("type", Value::from("text")), ("text", Value::from(text))];
        Value::from(vec![Value::from_pairs(part)])
    }

    fn tool_calls(&self, text: &str) -> Result<Value, TemplateError> {
        let bad = |_| TemplateError::BadJson("a message's list of tool calls");
        let mut calls: Json = serde_json::from_str(text).map_err(bad)?;
        for call in calls.as_array_mut().into_iter().flatten() {
            if let Some(arguments) = call.pointer_mut("/function/arguments") {
                self.shape(arguments);
            }
        }
        Ok(json_to_value(calls))
    }

    /// Arguments come as JSON text from OpenAI's clients and as objects from Ollama's.
    fn shape(&self, arguments: &mut Json) {
        match arguments {
            Json::String(text) if self.object_arguments => {
                if let Ok(object) = serde_json::from_str(text) {
                    *arguments = object;
                }
            }
            Json::Object(_) if !self.object_arguments => {
                *arguments = Json::String(crate::json::spaced(arguments));
            }
            _ => {}
        }
    }
}

/// What errors call the tools.
const TOOLS: &str = "the list of tools";

/// What a model is told whose template knows no tools.
const IN_WORDS: &str = "You can call these functions:";
const CALL_IN_WORDS: &str = r#"To call one, answer with nothing but a JSON object: {"name": "its name", "arguments": {"an argument": "its value"}}"#;

/// The conversation of a model whose template knows no tools: they are told in words, at the end of the system's turn.
///
/// # Errors
/// The tools are no JSON.
pub fn with_tools_in_words(
    messages: &[Message],
    tools: &str,
) -> Result<Vec<Message>, TemplateError> {
    parse_json(tools, TOOLS)?;
    let words = format!("{IN_WORDS}\n{tools}\n{CALL_IN_WORDS}");
    let mut messages = messages.to_vec();
    match messages.first_mut().filter(|first| first.role == "system") {
        Some(system) => {
            system.content.push_str("\n\n");
            system.content.push_str(&words);
        }
        None => messages.insert(0, Message::new("system", words)),
    }
    Ok(messages)
}

/// The conversation with a mark at the place of every image, and the mark. It is found in nothing that was said, so that
/// nobody can write one.
pub fn with_marks(messages: &[Message], others: &[Option<&str>]) -> (Vec<Message>, String) {
    let said = messages.iter().flat_map(|message| {
        let more = [&message.name, &message.tool_calls, &message.tool_call_id];
        let more = more.into_iter().chain([&message.thinking]);
        more.filter_map(|text| text.as_deref())
            .chain([message.role.as_str(), message.content.as_str()])
    });
    let said: Vec<&str> = said.chain(others.iter().copied().flatten()).collect();
    // A text holds fewer numbered marks than it has bytes, so this ends.
    let mark = (0u64..)
        .map(|number| format!("<__image_{number}__>"))
        .find(|mark| !said.iter().any(|text| text.contains(mark.as_str())))
        .unwrap_or_default();
    let marked = messages.iter().map(|message| marked(message, &mark));
    (marked.collect(), mark)
}

fn marked(message: &Message, mark: &str) -> Message {
    let Message {
        role,
        content,
        name,
        tool_calls,
        tool_call_id,
        thinking,
        images,
    } = message;
    let mut with_marks = String::with_capacity(content.len() + images.len() * mark.len());
    let mut from = 0;
    for image in images {
        let at = image.at as usize;
        with_marks.push_str(content.get(from..at).unwrap_or_default());
        with_marks.push_str(mark);
        from = at;
    }
    with_marks.push_str(content.get(from..).unwrap_or_default());
    Message {
        role: role.clone(),
        content: with_marks,
        name: name.clone(),
        tool_calls: tool_calls.clone(),
        tool_call_id: tool_call_id.clone(),
        thinking: thinking.clone(),
        images: Vec::new(),
    }
}

/// A template value of a JSON value, keys in their order.
pub fn json_to_value(json: Json) -> Value {
    match json {
        Json::Null => Value::from(()),
        Json::Bool(b) => Value::from(b),
        Json::Number(n) => match (n.as_i64(), n.as_u64()) {
            (Some(n), _) => Value::from(n),
            (_, Some(n)) => Value::from(n),
            _ => Value::from(n.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(text) => Value::from(text),
        Json::Array(items) => Value::from(items.into_iter().map(json_to_value).collect::<Vec<_>>()),
        Json::Object(map) => Value::from_pairs(
            map.into_iter()
                .map(|(key, value)| (key, json_to_value(value))),
        ),
    }
}

#[cfg(test)]
mod tests {
    use substrate_sandbox::wire::Image;

    use super::*;

    #[test]
    fn images_are_marked_where_they_stand_with_a_mark_that_nobody_wrote() {
        let image = |at| Image {
            at,
            bytes: Vec::new(),
        };
        let seen = Message {
            images: vec![image(0), image(4), image(4), image(9)],
            ..Message::new("user", "two <__image_0__>"[..9].to_owned())
        };
        let typed = Message::new("user", "I write <__image_0__> and <__image_1__>.");
        let (marked, mark) = with_marks(&[seen, typed.clone()], &[Some("<__image_2__>")]);
        assert_eq!(mark, "<__image_3__>");
        assert_eq!(
            marked[0].content.replace(&mark, "#"),
            "#two ##<__im#",
            "at the start, twice in the middle, at the end"
        );
        assert!(marked[0].images.is_empty() && marked[1] == typed);
    }

    #[test]
    fn tools_are_told_in_words_once_and_nothing_said_is_lost() {
        let asked = [Message::new("user", "hi")];
        let told = with_tools_in_words(&asked, "[]").expect("json");
        assert_eq!(told.len(), 2);
        assert_eq!(told[0].role, "system");
        assert!(told[0].content.starts_with(IN_WORDS) && told[0].content.ends_with(CALL_IN_WORDS));
        assert_eq!(told[1].content, "hi");
        let asked = [Message::new("system", "Be brief."), asked[0].clone()];
        let told = with_tools_in_words(&asked, "[]").expect("json");
        assert_eq!(told.len(), 2);
        assert!(
            told[0].content.starts_with("Be brief.\n\n"),
            "{}",
            told[0].content
        );
        assert!(told[0].content.contains("\n[]\n"));
        let broken = with_tools_in_words(&asked, "[");
        assert_eq!(broken.err(), Some(TemplateError::BadJson(TOOLS)));
    }
}
