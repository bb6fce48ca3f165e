//! From a request of the responses API to the job it asks for: pure, and the only place where the two meet.
//!
//! Calls that follow one another are one turn of the assistant, with the text before them, as chat templates know it.

use std::collections::BTreeMap;

use serde_json::value::RawValue;
use serde_json::{Value, json};
use substrate_sandbox::wire::input::{Input, MAX_LABEL, MAX_MESSAGES, Message, Prompt, Thinking};

use super::INPUT;
use super::answer::Echo;
use super::types::{Format, Item, NamedChoice, ResponsesRequest, Tool};
use crate::door::{Ask, Placement};
use crate::http::content::TextOr;
use crate::http::error::{Refusal, clipped};
use crate::http::guard::Caller;
use crate::http::hearing::Hearing;
use crate::http::images;
use crate::http::job::DEADLINE_MS;
use crate::http::names::model_name;
use crate::http::notation::{Called, Offered, raw};
use crate::http::openai::ask::{USUAL, effort, wishes};
use crate::http::sampling::{self, ANY_OBJECT, max_tokens};
use crate::http::sse;
use crate::http::tools::Tools;
use crate::models::parameters::Setting;

/// The job of one request and how its answer is to be written.
pub(super) struct Plan {
    pub(super) ask: Ask,
    pub(super) stream: bool,
    /// What was asked of thinking.
    pub(super) thinking: Option<Thinking>,
    /// How the answer is heard.
    pub(super) hearing: Hearing,
    /// What the answer tells again of its request.
    pub(super) echo: Echo,
}

/// Plans an answer.
pub(super) fn responses(request: ResponsesRequest, caller: &Caller) -> Result<Plan, Refusal> {
    refuse(&request)?;
    let model = model_name("model", &request.model)?;
    let wanted = request.reasoning.and_then(|wish| wish.effort);
    let thinking = effort("reasoning.effort", wanted.as_deref())?;
    let format = request.text.and_then(|text| text.format);
    let given = format.as_deref().map(|format| value("text.format", format));
    let given_choice = request.tool_choice.as_deref();
    let given_choice = given_choice.map(|choice| value("tool_choice", choice));
    let mut messages = Vec::new();
    let instructions = request.instructions.filter(|text| !text.is_empty());
    messages.extend(
        instructions
            .clone()
            .map(|text| Message::new("system", text)),
    );
    turns(request.input, &mut messages)?;
    let mut input = Input::from_prompt(Prompt::Chat(messages));
    input.schema = format.as_deref().map(schema).transpose()?.flatten();
    let choice = request.tool_choice.as_deref().map(chosen).transpose()?;
    let tools = tools(&request.tools, choice.flatten().as_deref())?;
    if let Some(tools) = &tools {
        tools.put_into(&mut input)?;
    }
    let wishes = wishes(request.temperature, request.top_p, None, None, None, None);
    let limit = max_tokens("max_output_tokens", request.max_output_tokens)?;
    let mut said = wishes.said();
    said.extend(sampling::said([(Setting::NumPredict, limit.is_some())]));
    let echo = Echo {
        instructions,
        max_output_tokens: limit,
        temperature: wishes.temperature.unwrap_or(USUAL.temperature),
        top_p: wishes.top_p.unwrap_or(USUAL.top_p),
        effort: wanted,
        format: given.transpose()?.unwrap_or(json!({ "type": "text" })),
        tool_choice: given_choice.transpose()?.unwrap_or("auto".into()),
        tools: told_again(&request.tools)?,
        metadata: request.metadata.unwrap_or(json!({})),
    };
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
        echo,
    })
}

/// What cannot be done is refused by name, never quietly left out.
fn refuse(request: &ResponsesRequest) -> Result<(), Refusal> {
    let given = |raw: &Option<Box<RawValue>>| raw.as_ref().is_some_and(|raw| raw.get() != "null");
    let why = "no response is stored: send the whole conversation as input";
    if request.previous_response_id.is_some() {
        return Err(Refusal::invalid("previous_response_id", why));
    }
    if given(&request.conversation) {
        return Err(Refusal::invalid("conversation", why));
    }
    let truncates = request.truncation.as_deref();
    for (param, used) in [
        ("background", request.background.unwrap_or(false)),
        ("prompt", given(&request.prompt)),
        ("truncation", truncates.is_some_and(|how| how != "disabled")),
        (
            "top_logprobs",
            request.top_logprobs.is_some_and(|top| top != 0),
        ),
    ] {
        if used {
            return Err(Refusal::not_yet(param, param));
        }
    }
    let logprobs = |wanted: &&String| wanted.ends_with(".logprobs");
    match request.include.iter().find(logprobs) {
        Some(wanted) => Err(Refusal::not_yet("include", &clipped(wanted))),
        None => Ok(()),
    }
}

/// The turns of a conversation. Names of calls are told again with their outputs, as some templates want it.
fn turns(input: TextOr<Item, MAX_MESSAGES>, into: &mut Vec<Message>) -> Result<(), Refusal> {
    let items = match input {
        TextOr::Text(text) => {
            into.push(Message::new("user", text));
            return Ok(());
        }
        TextOr::Parts(items) if items.is_empty() => {
            let why = "input must be a string or a list of items, and not empty";
            return Err(Refusal::invalid(INPUT, why));
        }
        TextOr::Parts(items) => items,
    };
    let (mut calls, mut names) = (Vec::new(), BTreeMap::new());
    for (at, item) in items.into_iter().enumerate() {
        let place = format!("input[{at}]");
        let kind = item.kind.clone();
        if kind.as_deref() == Some("function_call") {
            let id = label(&place, "call_id", item.call_id)?;
            let name = label(&place, "name", item.name)?;
            names.insert(id.clone(), name.clone());
            let arguments = item.arguments.filter(|text| !text.is_empty());
            let arguments = arguments.unwrap_or_else(|| "{}".to_owned());
            calls.push(Called::new(id, name, raw(&arguments)));
            continue;
        }
        end_calls(&mut calls, into);
        match kind.as_deref() {
            None | Some("message") => into.push(message(place, item)?),
            Some("function_call_output") => into.push(output(place, item, &names)?),
            // Thoughts of earlier turns: templates leave them out, and encrypted ones nobody here could read.
            Some("reasoning") => {}
            Some("item_reference") => {
                let why = format!("{place}: no item is stored: send it instead of its id");
                return Err(Refusal::invalid(place, why));
            }
            Some(kind) => {
                let what = format!("an item of type '{}'", clipped(kind));
                return Err(Refusal::not_yet(place, &what));
            }
        }
    }
    end_calls(&mut calls, into);
    Ok(())
}

/// Puts calls into the assistant's turn that they follow, or into one of their own.
fn end_calls(calls: &mut Vec<Called>, into: &mut Vec<Message>) {
    if calls.is_empty() {
        return;
    }
    let told = Some(sse::json(&std::mem::take(calls)));
    match into.last_mut() {
        Some(last) if last.role == "assistant" && last.tool_calls.is_none() => {
            last.tool_calls = told;
        }
        _ => into.push(Message {
            tool_calls: told,
            ..Message::new("assistant", "")
        }),
    }
}

fn message(place: String, item: Item) -> Result<Message, Refusal> {
    let role = match item.role.as_deref() {
        Some("developer" | "system") => "system",
        Some("user") => "user",
        Some("assistant") => "assistant",
        role => {
            let why = format!(
                "role '{}' is not one of system, developer, user, assistant",
                clipped(role.unwrap_or_default())
            );
            return Err(Refusal::invalid(format!("{place}.role"), why));
        }
    };
    if let Some(kind) = item.content.other {
        let what = format!("a content part of type '{}'", clipped(&kind));
        return Err(Refusal::not_yet(format!("{place}.content"), &what));
    }
    Ok(Message {
        images: images::all(item.content.images, &format!("{place}.content"))?,
        ..Message::new(role, item.content.text)
    })
}

fn output(place: String, item: Item, names: &BTreeMap<String, String>) -> Result<Message, Refusal> {
    let id = label(&place, "call_id", item.call_id)?;
    if let Some(kind) = item.output.other {
        let what = format!("an output of type '{}'", clipped(&kind));
        return Err(Refusal::not_yet(format!("{place}.output"), &what));
    }
    Ok(Message {
        name: names.get(&id).cloned(),
        tool_call_id: Some(id),
        images: images::all(item.output.images, &format!("{place}.output"))?,
        ..Message::new("tool", item.output.text)
    })
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

/// The JSON schema an answer is bound to, if any.
fn schema(format: &RawValue) -> Result<Option<String>, Refusal> {
    let param = "text.format";
    let wrong = |error: serde_json::Error| Refusal::invalid(param, format!("{param}: {error}"));
    let format: Option<Format> = serde_json::from_str(format.get()).map_err(wrong)?;
    let Some(format) = format else {
        return Ok(None);
    };
    match format.kind.as_str() {
        "text" => Ok(None),
        "json_object" => Ok(Some(ANY_OBJECT.to_owned())),
        "json_schema" => {
            let schema = format.schema.map(|schema| Some(schema.get().to_owned()));
            schema.ok_or_else(|| Refusal::invalid(param, "text.format.schema is missing"))
        }
        kind => {
            let what = format!("{param} '{}'", clipped(kind));
            Err(Refusal::not_yet(param, &what))
        }
    }
}

fn tools(tools: &[Tool], choice: Option<&RawValue>) -> Result<Option<Tools>, Refusal> {
    let offered = tools.iter().enumerate().map(|(at, tool)| {
        if let Some(kind) = tool.kind.as_ref().filter(|kind| *kind != "function") {
            let what = format!("a tool of type '{}'", clipped(kind));
            return Err(Refusal::not_yet(format!("tools[{at}].type"), &what));
        }
        let (name, description) = (tool.name.as_deref(), tool.description.as_deref());
        Ok(Offered::new(name, description, tool.parameters.as_deref()))
    });
    let offered = offered.collect::<Result<Vec<_>, _>>()?;
    Tools::of(Some(&raw(&offered)), choice)
}

/// The tools as the answer tells them again.
fn told_again(tools: &[Tool]) -> Result<Vec<Value>, Refusal> {
    let again = |(at, tool): (usize, &Tool)| {
        let place = format!("tools[{at}].parameters");
        let parameters = tool.parameters.as_deref();
        let parameters = parameters.map(|raw| value(&place, raw)).transpose()?;
        Ok(json!({
            "type": "function",
            "name": tool.name,
            "description": tool.description,
            "parameters": parameters,
            "strict": tool.strict,
        }))
    };
    tools.iter().enumerate().map(again).collect()
}

/// JSON that is told again; nested too deeply it is no value.
fn value(param: &str, raw: &RawValue) -> Result<Value, Refusal> {
    serde_json::from_str(raw.get())
        .map_err(|error| Refusal::invalid(param, format!("{param}: {error}")))
}

/// A choice as OpenAI's chat clients write it: words are the same in both.
fn chosen(choice: &RawValue) -> Result<Option<Box<RawValue>>, Refusal> {
    if !choice.get().starts_with('{') {
        return Ok(Some(choice.to_owned()));
    }
    let named: NamedChoice = serde_json::from_str(choice.get())
        .map_err(|error| Refusal::invalid("tool_choice", format!("tool_choice: {error}")))?;
    if named.kind != "function" {
        let what = format!("a tool_choice of type '{}'", clipped(&named.kind));
        return Err(Refusal::not_yet("tool_choice", &what));
    }
    let name = named.name.unwrap_or_default();
    Ok(Some(raw(&json!({ "function": { "name": name } }))))
}

#[cfg(test)]
#[path = "ask_tests.rs"]
mod tests;
