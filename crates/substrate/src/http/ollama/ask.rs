//! From an Ollama request to the job it asks for: pure, and the only place where the two meet.
//!
//! A request without a prompt asks for no job: it loads the model, or with `keep_alive` 0 unloads it.

use serde_json::value::RawValue;
use substrate_sandbox::wire::input::{Image, Input, MAX_LABEL, Message, Prompt, Thinking};

use super::types::{ChatMessage, ChatRequest, GenerateRequest, KeepAlive, Options, asked_model};
use crate::door::{Ask, Placement};
use crate::http::body::non_empty_list;
use crate::http::error::{Refusal, clipped};
use crate::http::guard::Caller;
use crate::http::hearing::Hearing;
use crate::http::images::{self, Given, Sent};
use crate::http::job::DEADLINE_MS;
use crate::http::sampling::{self, ANY_OBJECT, Usual, Wishes, max_tokens, stops, top_logprobs};
use crate::http::tools::Tools;
use crate::models::parameters::Setting;
use crate::models::recipe::check_template;

/// Ollama's defaults (API.md 1).
const USUAL: Usual = Usual {
    temperature: 0.8,
    top_k: 40.0,
    top_p: 0.9,
    repeat_last_n: 64.0,
    // Ollama accepts any temperature; hotter than this is noise from every model.
    hottest: 10.0,
};

/// Roles that chat templates know.
const ROLES: [&str; 4] = ["system", "user", "assistant", "tool"];

/// What a request wants.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) model: String,
    pub(super) wanted: Wanted,
    pub(super) keep_alive: Option<KeepAlive>,
    pub(super) stream: bool,
    /// What was asked of thinking.
    pub(super) thinking: Option<Thinking>,
    /// How its answer is heard.
    pub(super) hearing: Hearing,
}

#[derive(Debug)]
pub(super) enum Wanted {
    Answer(Box<Ask>),
    Load,
    Unload,
}

/// Plans a chat.
pub(super) fn chat(request: ChatRequest, caller: &Caller) -> Result<Plan, Refusal> {
    let model = asked_model(request.model, request.name)?;
    let thinking = thinking(request.think.as_deref())?;
    let stream = request.stream.unwrap_or(true);
    if request.messages.is_empty() {
        return Ok(without_prompt(model, request.keep_alive, stream));
    }
    let messages = request
        .messages
        .into_iter()
        .enumerate()
        .map(|(at, message)| turn(at, message));
    let mut input = Input::from_prompt(Prompt::Chat(messages.collect::<Result<_, _>>()?));
    input.schema = request.format.as_deref().map(schema).transpose()?.flatten();
    let tools = Tools::of(request.tools.as_deref(), None)?;
    if let Some(tools) = &tools {
        tools.put_into(&mut input)?;
    }
    let told = logprobs(request.logprobs, request.top_logprobs)?;
    let ask = job(
        model.clone(),
        input,
        request.options.unwrap_or_default(),
        told,
        caller,
    )?;
    Ok(Plan {
        model,
        wanted: Wanted::Answer(Box::new(ask)),
        keep_alive: request.keep_alive,
        stream,
        thinking,
        hearing: Hearing::of(tools),
    })
}

/// The JSON schema an answer is bound to: any object for "json", a schema, or nothing.
fn schema(format: &RawValue) -> Result<Option<String>, Refusal> {
    match format.get().trim() {
        "null" | "\"\"" => Ok(None),
        "\"json\"" => Ok(Some(ANY_OBJECT.to_owned())),
        text if text.starts_with('{') => Ok(Some(text.to_owned())),
        _ => Err(Refusal::invalid(
            "format",
            "format must be \"json\" or a JSON schema",
        )),
    }
}

/// What is asked of thinking: a truth value, or how hard.
fn thinking(think: Option<&RawValue>) -> Result<Option<Thinking>, Refusal> {
    let text = think.map_or("null", |raw| raw.get().trim());
    let truth = |text| matches!(text, "true" | "false");
    let word = match text
        .strip_prefix('"')
        .and_then(|text| text.strip_suffix('"'))
    {
        // Clients in shells write truth values as text.
        Some(word) => word,
        None if truth(text) => text,
        None if text == "null" => return Ok(None),
        None => "",
    };
    let refuse = || {
        let why = "think must be true, false, \"low\", \"medium\", \"high\" or \"max\"";
        Refusal::invalid("think", why)
    };
    Thinking::from_word(word).map(Some).ok_or_else(refuse)
}

/// Plans a generation.
pub(super) fn generate(request: GenerateRequest, caller: &Caller) -> Result<Plan, Refusal> {
    let model = asked_model(request.model, request.name)?;
    let thinking = thinking(request.think.as_deref())?;
    refuse_not_yet(&[("context", &request.context, &["null", "[]"])])?;
    if request.suffix.is_some_and(|text| !text.is_empty()) {
        return Err(Refusal::not_yet("suffix", "suffix"));
    }
    let template = request.template.filter(|text| !text.is_empty());
    if let Some(template) = &template {
        let checked = check_template(template);
        checked.map_err(|error| Refusal::invalid("template", error.to_string()))?;
    }
    let stream = request.stream.unwrap_or(true);
    let prompt = request.prompt.unwrap_or_default();
    if prompt.is_empty() {
        return Ok(without_prompt(model, request.keep_alive, stream));
    }
    let images = shown(request.images, "images")?;
    let prompt = match request.raw.unwrap_or(false) {
        true if !images.is_empty() => {
            return Err(Refusal::not_yet("images", "an image in raw text"));
        }
        true => Prompt::Text {
            text: prompt,
            special: true,
        },
        false => {
            let system = request.system.unwrap_or_default();
            Prompt::Chat(conversation(system, prompt, images))
        }
    };
    let mut input = Input::from_prompt(prompt);
    // Raw text goes through no template.
    input.template = template.filter(|_| matches!(input.prompt, Prompt::Chat(_)));
    input.schema = request.format.as_deref().map(schema).transpose()?.flatten();
    let told = logprobs(request.logprobs, request.top_logprobs)?;
    let ask = job(
        model.clone(),
        input,
        request.options.unwrap_or_default(),
        told,
        caller,
    )?;
    Ok(Plan {
        model,
        wanted: Wanted::Answer(Box::new(ask)),
        keep_alive: request.keep_alive,
        stream,
        thinking,
        hearing: Hearing::default(),
    })
}

fn without_prompt(model: String, keep_alive: Option<KeepAlive>, stream: bool) -> Plan {
    let unload = keep_alive.is_some_and(|keep| keep.seconds == 0);
    Plan {
        model,
        wanted: if unload { Wanted::Unload } else { Wanted::Load },
        keep_alive,
        stream,
        thinking: None,
        hearing: Hearing::default(),
    }
}

/// A field, what the request says in it, and the JSON texts that mean "not used".
type Unused<'a> = (&'a str, &'a Option<Box<RawValue>>, &'a [&'a str]);

fn refuse_not_yet(fields: &[Unused<'_>]) -> Result<(), Refusal> {
    for (param, value, unused) in fields {
        if value
            .as_ref()
            .is_some_and(|value| !unused.contains(&value.get().trim()))
        {
            return Err(Refusal::not_yet(*param, param));
        }
    }
    Ok(())
}

fn conversation(system: String, prompt: String, images: Vec<Image>) -> Vec<Message> {
    let system = (!system.is_empty()).then(|| Message::new("system", system));
    let user = Message {
        images,
        ..Message::new("user", prompt)
    };
    system.into_iter().chain([user]).collect()
}

/// Images come before what is said of them, as Ollama puts them.
fn shown(images: Vec<String>, place: &str) -> Result<Vec<Image>, Refusal> {
    let sent = images.into_iter().map(|text| Sent {
        at: 0,
        what: Given::Base64(text),
    });
    images::all(sent.collect(), place)
}

fn turn(at: usize, message: ChatMessage) -> Result<Message, Refusal> {
    let role = message.role.to_ascii_lowercase();
    if !ROLES.contains(&role.as_str()) {
        let why = format!(
            "role '{}' is not one of system, user, assistant, tool",
            clipped(&message.role)
        );
        return Err(Refusal::invalid(format!("messages[{at}].role"), why));
    }
    for (field, label) in [
        ("tool_name", &message.tool_name),
        ("tool_call_id", &message.tool_call_id),
    ] {
        if label.as_ref().is_some_and(|label| label.len() > MAX_LABEL) {
            let why = format!("{field} must have at most {MAX_LABEL} bytes");
            return Err(Refusal::invalid(format!("messages[{at}].{field}"), why));
        }
    }
    Ok(Message {
        role,
        images: shown(message.images, &format!("messages[{at}].images"))?,
        content: message.content.unwrap_or_default(),
        name: message.tool_name,
        tool_calls: message.tool_calls.as_deref().and_then(non_empty_list),
        tool_call_id: message.tool_call_id,
        thinking: message.thinking,
    })
}

fn logprobs(wanted: Option<bool>, top: Option<i64>) -> Result<Option<u32>, Refusal> {
    let top = top_logprobs("top_logprobs", top.unwrap_or(0))?;
    Ok(wanted.unwrap_or(false).then_some(top))
}

fn job(
    model: String,
    input: Input,
    options: Options,
    told: Option<u32>,
    caller: &Caller,
) -> Result<Ask, Refusal> {
    let wishes = Wishes {
        top_logprobs: told,
        ..wishes(&options)
    };
    let sampler = wishes.sampler()?;
    let mut said = wishes.said();
    said.extend(sampling::said([
        (Setting::Seed, options.seed.is_some()),
        (Setting::NumPredict, options.num_predict.is_some()),
        (Setting::Stop, options.stop.is_some()),
    ]));
    // Clients send [""] for "none".
    let stop = options
        .stop
        .unwrap_or_default()
        .0
        .into_iter()
        .filter(|text| !text.is_empty())
        .collect();
    // −1 and −2 ask for all that fits, and so does 0.
    let limit = options.num_predict.filter(|n| *n > 0);
    Ok(Ask {
        model,
        input: Input {
            stop: stops(stop)?,
            ..input
        },
        sampler,
        said,
        // −1 is Ollama's "any".
        seed: options.seed.filter(|seed| *seed != -1),
        choice: 0,
        max_tokens: max_tokens("num_predict", limit)?,
        scope: Some(caller.scope),
        placement: Placement::Any,
        wall: None,
        isolated: caller.isolated,
        deadline_ms: DEADLINE_MS,
        client: caller.client.clone(),
        patient: caller.patient,
    })
}

fn wishes(options: &Options) -> Wishes {
    Wishes {
        usual: USUAL,
        temperature: options.temperature,
        top_k: options.top_k,
        top_p: options.top_p,
        min_p: options.min_p,
        typical_p: options.typical_p,
        repeat_last_n: options.repeat_last_n,
        repeat_penalty: options.repeat_penalty,
        presence_penalty: options.presence_penalty,
        frequency_penalty: options.frequency_penalty,
        top_logprobs: None,
    }
}

#[cfg(test)]
#[path = "ask_tests.rs"]
mod tests;
