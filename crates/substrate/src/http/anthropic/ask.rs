//! From an Anthropic request to the job it asks for: pure, and the only place where the two meet.
//!
//! A turn of blocks becomes the turns that chat templates know: text, thoughts and calls of the assistant are one; every
//! result of a call is a turn of its own. What is not there yet is refused by name, never quietly left out.

use std::collections::BTreeMap;

use serde_json::value::RawValue;
use substrate_sandbox::wire::input::{Image, Input, MAX_LABEL, Message, Prompt, Thinking};

use super::types::{Block, MessagesRequest, ThinkingWish, Tool, ToolChoice, Turn};
use crate::door::{Ask, Placement};
use crate::http::content::TextOr;
use crate::http::error::{Refusal, clipped};
use crate::http::guard::Caller;
use crate::http::hearing::Hearing;
use crate::http::images::{self, Sent, Source};
use crate::http::job::DEADLINE_MS;
use crate::http::names::model_name;
use crate::http::notation::{Called, Offered, raw};
use crate::http::sampling::{self, Usual, Wishes, max_tokens, stops};
use crate::http::sse::json;
use crate::http::tools::Tools;
use crate::models::parameters::Setting;

/// Anthropic's defaults: the model's own distribution.
const USUAL: Usual = Usual {
    temperature: 1.0,
    top_k: 0.0,
    top_p: 1.0,
    repeat_last_n: -1.0,
    hottest: 1.0,
};

/// The job of one request and how its answer is to be written.
pub(super) struct Plan {
    pub(super) ask: Ask,
    pub(super) stream: bool,
    /// What was asked of thinking.
    pub(super) thinking: Option<Thinking>,
    /// How the answer is heard.
    pub(super) hearing: Hearing,
}

/// Plans an answer.
pub(super) fn messages(request: MessagesRequest, caller: &Caller) -> Result<Plan, Refusal> {
    let model = model_name("model", &request.model)?;
    let Some(limit) = request.max_tokens else {
        return Err(Refusal::invalid("max_tokens", "max_tokens is required"));
    };
    let limit = max_tokens("max_tokens", Some(limit))?;
    let thinking = thinking(request.thinking)?;
    let image = (!request.system.images.is_empty()).then(|| "image".to_owned());
    if let Some(kind) = request.system.other.or(image) {
        return Err(not_yet("system".into(), &kind));
    }
    let mut messages = Vec::new();
    if !request.system.text.is_empty() {
        messages.push(Message::new("system", request.system.text));
    }
    turns(request.messages, &mut messages)?;
    let mut input = Input::from_prompt(Prompt::Chat(messages));
    input.stop = stops(request.stop_sequences.0)?;
    let tools = tools(&request.tools, request.tool_choice)?;
    if let Some(tools) = &tools {
        tools.put_into(&mut input)?;
    }
    let wishes = Wishes {
        temperature: request.temperature,
        top_k: request.top_k,
        top_p: request.top_p,
        ..Wishes::none(USUAL)
    };
    let mut said = wishes.said();
    said.extend(sampling::said([
        (Setting::NumPredict, true),
        (Setting::Stop, !input.stop.is_empty()),
    ]));
    Ok(Plan {
        ask: Ask {
            model,
            input,
            sampler: wishes.sampler()?,
            said,
            seed: None,
            choice: 0,
            max_tokens: limit,
            scope: Some(caller.scope),
            placement: Placement::Any,
            wall: None,
            isolated: caller.isolated,
            deadline_ms: DEADLINE_MS,
            client: caller.client.clone(),
            patient: caller.patient,
        },
        stream: request.stream.unwrap_or(false),
        thinking,
        hearing: Hearing::of(tools),
    })
}

/// Anthropic's models think only if they are asked to.
fn thinking(wish: Option<ThinkingWish>) -> Result<Option<Thinking>, Refusal> {
    match wish.as_ref().map(|wish| wish.kind.as_str()) {
        None | Some("disabled") => Ok(Some(Thinking::Off)),
        Some("enabled") => Ok(Some(Thinking::On)),
        Some("adaptive") => Ok(None),
        Some(kind) => {
            let why = format!(
                "thinking.type must be enabled, disabled or adaptive, not '{}'",
                clipped(kind)
            );
            Err(Refusal::invalid("thinking", why))
        }
    }
}

fn not_yet(place: String, kind: &str) -> Refusal {
    let what = format!("{place}: a content block of type '{}'", clipped(kind));
    Refusal::not_yet(place, &what)
}

/// The turns of a conversation. Names of calls are told again with their results, as some templates want it.
fn turns(turns: Vec<Turn>, into: &mut Vec<Message>) -> Result<(), Refusal> {
    let Some(last) = turns.last() else {
        return Err(Refusal::invalid("messages", "messages must not be empty"));
    };
    if last.role == "assistant" {
        return Err(Refusal::not_yet(
            "messages",
            "an answer that the client begins (the last turn is the assistant's)",
        ));
    }
    let mut called = BTreeMap::new();
    for (at, turn) in turns.into_iter().enumerate() {
        let blocks = match turn.content {
            TextOr::Text(text) => vec![Block::of_text(text)],
            TextOr::Parts(blocks) => blocks,
        };
        match turn.role.as_str() {
            "user" => users(at, blocks, &called, into)?,
            "assistant" => into.push(assistants(at, blocks, &mut called)?),
            role => {
                let why = format!("role '{}' is not one of user, assistant", clipped(role));
                return Err(Refusal::invalid(format!("messages[{at}].role"), why));
            }
        }
    }
    Ok(())
}

impl Block {
    fn of_text(text: String) -> Self {
        Self {
            kind: "text".into(),
            text: Some(text),
            thinking: None,
            id: None,
            name: None,
            input: None,
            tool_use_id: None,
            content: None,
            source: None,
        }
    }
}

/// Texts are lines of one turn, with the images between them; results are turns.
fn users(
    at: usize,
    blocks: Vec<Block>,
    called: &BTreeMap<String, String>,
    into: &mut Vec<Message>,
) -> Result<(), Refusal> {
    let mut said: Option<String> = None;
    let mut seen: Vec<Image> = Vec::new();
    let mut after_image = false;
    for (part, block) in blocks.into_iter().enumerate() {
        let place = format!("messages[{at}].content[{part}]");
        match block.kind.as_str() {
            "text" => {
                let text = block.text.unwrap_or_default();
                match &mut said {
                    Some(said) if after_image => said.push_str(&text),
                    _ => join(&mut said, text),
                }
                after_image = false;
            }
            "image" => {
                let Some(what) = block.source.and_then(Source::given) else {
                    let why = format!("{place}.source must have data (base64)");
                    return Err(Refusal::invalid(place, why));
                };
                let at = said.get_or_insert_default().len();
                seen.extend(images::all(vec![Sent { at, what }], &place)?);
                after_image = true;
            }
            "tool_result" => {
                into.extend(users_turn(&mut said, &mut seen));
                into.push(result(place, block, called)?);
                after_image = false;
            }
            kind => return Err(not_yet(place, kind)),
        }
    }
    into.extend(users_turn(&mut said, &mut seen));
    Ok(())
}

/// What was said and shown so far, if anything was.
fn users_turn(said: &mut Option<String>, seen: &mut Vec<Image>) -> Option<Message> {
    let text = said.take()?;
    Some(Message {
        images: std::mem::take(seen),
        ..Message::new("user", text)
    })
}

fn result(
    place: String,
    block: Block,
    called: &BTreeMap<String, String>,
) -> Result<Message, Refusal> {
    let id = label(&place, "tool_use_id", block.tool_use_id)?;
    let content = block.content.unwrap_or_default();
    if let Some(kind) = content.other {
        return Err(not_yet(format!("{place}.content"), &kind));
    }
    Ok(Message {
        name: called.get(&id).cloned(),
        tool_call_id: Some(id),
        images: images::all(content.images, &format!("{place}.content"))?,
        ..Message::new("tool", content.text)
    })
}

fn assistants(
    at: usize,
    blocks: Vec<Block>,
    called: &mut BTreeMap<String, String>,
) -> Result<Message, Refusal> {
    let (mut said, mut thoughts, mut calls) = (None, None, Vec::new());
    for (part, block) in blocks.into_iter().enumerate() {
        let place = format!("messages[{at}].content[{part}]");
        match block.kind.as_str() {
            "text" => join(&mut said, block.text.unwrap_or_default()),
            "thinking" => join(&mut thoughts, block.thinking.unwrap_or_default()),
            // Nobody here could read them.
            "redacted_thinking" => {}
            "tool_use" => {
                let id = label(&place, "id", block.id)?;
                let name = label(&place, "name", block.name)?;
                called.insert(id.clone(), name.clone());
                let input = block.input.unwrap_or_else(|| raw(&serde_json::Map::new()));
                calls.push(Called::new(id, name, input));
            }
            kind => return Err(not_yet(place, kind)),
        }
    }
    let calls = (!calls.is_empty()).then(|| json(&calls));
    Ok(Message {
        thinking: thoughts,
        tool_calls: calls,
        ..Message::new("assistant", said.unwrap_or_default())
    })
}

fn join(said: &mut Option<String>, text: String) {
    match said {
        Some(said) => {
            said.push('\n');
            said.push_str(&text);
        }
        None => *said = Some(text),
    }
}

fn label(place: &str, field: &str, label: Option<String>) -> Result<String, Refusal> {
    let place = format!("{place}.{field}");
    match label {
        Some(label) if label.len() <= MAX_LABEL => Ok(label),
        Some(_) => {
            let why = format!("{place} must have at most {MAX_LABEL} bytes");
            Err(Refusal::invalid(place, why))
        }
        None => {
            let why = format!("{place} is required");
            Err(Refusal::invalid(place, why))
        }
    }
}

fn tools(tools: &[Tool], choice: Option<ToolChoice>) -> Result<Option<Tools>, Refusal> {
    let offered = tools.iter().enumerate().map(|(at, tool)| {
        if let Some(kind) = tool.kind.as_ref().filter(|kind| *kind != "custom") {
            let what = format!("a tool of type '{}'", clipped(kind));
            return Err(Refusal::not_yet(format!("tools[{at}].type"), &what));
        }
        let description = tool.description.as_deref();
        Ok(Offered::new(
            tool.name.as_deref(),
            description,
            tool.input_schema.as_deref(),
        ))
    });
    let offered = offered.collect::<Result<Vec<_>, _>>()?;
    let choice = choice.map(chosen).transpose()?;
    Tools::of(Some(&raw(&offered)), choice.as_deref())
}

fn chosen(choice: ToolChoice) -> Result<Box<RawValue>, Refusal> {
    let chosen = match choice.kind.as_str() {
        "tool" => serde_json::json!({ "function": { "name": choice.name.unwrap_or_default() } }),
        "auto" | "any" | "none" => choice.kind.into(),
        kind => {
            let why = format!(
                "tool_choice.type must be auto, any, tool or none, not '{}'",
                clipped(kind)
            );
            return Err(Refusal::invalid("tool_choice", why));
        }
    };
    Ok(raw(&chosen))
}

#[cfg(test)]
#[path = "ask_tests.rs"]
mod tests;
