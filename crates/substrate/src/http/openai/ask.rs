//! From an OpenAI request to the jobs it asks for: pure, and the only place where the two meet.
//!
//! What the API has and this program has not yet is refused by name, never quietly left out.

use substrate_sandbox::wire::input::{Input, MAX_LABEL, Message, Prompt, Thinking};

use super::types::{
    ChatMessage, ChatRequest, CompletionRequest, ResponseFormat, StreamOptions, TemplateWishes,
};
use crate::door::{Ask, Placement};
use crate::http::body::non_empty_list;
use crate::http::error::{Refusal, clipped};
use crate::http::guard::Caller;
use crate::http::hearing::Hearing;
use crate::http::images;
use crate::http::job::DEADLINE_MS;
use crate::http::names::model_name;
use crate::http::sampling::{
    self, ANY_OBJECT, Usual, Wishes, logit_bias, max_tokens, stops, top_logprobs,
};
use crate::http::tools::Tools;
use crate::models::parameters::Setting;

/// Most choices of one request, and of all its prompts together: each is a job of its own.
const MAX_CHOICES: i64 = 8;

/// OpenAI's defaults: the model's own distribution.
pub(super) const USUAL: Usual = Usual {
    temperature: 1.0,
    top_k: 0.0,
    top_p: 1.0,
    // OpenAI's penalties count the whole answer.
    repeat_last_n: -1.0,
    hottest: 2.0,
};

/// Roles that chat templates know, after `developer` has become `system`.
const ROLES: [&str; 4] = ["system", "user", "assistant", "tool"];

/// The jobs of one request and how their answer is to be written.
#[derive(Debug)]
pub(super) struct Plan {
    /// Choices of the first prompt, then of the next.
    pub(super) asks: Vec<Ask>,
    /// Choices of one prompt.
    pub(super) per_prompt: usize,
    pub(super) stream: bool,
    pub(super) include_usage: bool,
    /// What was asked of thinking.
    pub(super) thinking: Option<Thinking>,
    /// How its answers are heard.
    pub(super) hearing: Hearing,
}

/// Plans a chat completion.
pub(super) fn chat(request: ChatRequest, caller: &Caller) -> Result<Plan, Refusal> {
    if request.messages.is_empty() {
        return Err(Refusal::invalid("messages", "messages must not be empty"));
    }
    if request.functions.is_some() {
        return Err(Refusal::not_yet(
            "functions",
            "the deprecated parameter functions (use tools)",
        ));
    }
    let thinking = thinking(
        request.reasoning_effort.as_deref(),
        request.chat_template_kwargs,
    )?;
    let schema = request.response_format.map(schema).transpose()?.flatten();
    let told = match (request.logprobs.unwrap_or(false), request.top_logprobs) {
        (true, top) => Some(top_logprobs("top_logprobs", top.unwrap_or(0))?),
        (false, None | Some(0)) => None,
        (false, Some(_)) => {
            return Err(Refusal::invalid(
                "top_logprobs",
                "top_logprobs needs logprobs: true",
            ));
        }
    };
    let limit = match request.max_completion_tokens {
        Some(_) => max_tokens("max_completion_tokens", request.max_completion_tokens)?,
        None => max_tokens("max_tokens", request.max_tokens)?,
    };
    let messages = request
        .messages
        .into_iter()
        .enumerate()
        .map(|(at, message)| turn(at, message));
    let mut input = Input::from_prompt(Prompt::Chat(messages.collect::<Result<_, _>>()?));
    input.schema = schema;
    let tools = Tools::of(request.tools.as_deref(), request.tool_choice.as_deref())?;
    if let Some(tools) = &tools {
        tools.put_into(&mut input)?;
    }
    let settings = Settings {
        model: request.model,
        stop: request.stop.map(|stop| stop.0),
        bias: request.logit_bias.0,
        wishes: Wishes {
            top_logprobs: told,
            ..wishes(
                request.temperature,
                request.top_p,
                request.top_k,
                request.min_p,
                request.presence_penalty,
                request.frequency_penalty,
            )
        },
        seed: request.seed,
        limit,
        n: request.n,
        stream: request.stream,
        options: request.stream_options,
    };
    let plan = settings.plan(vec![input], caller)?;
    Ok(Plan {
        thinking,
        hearing: Hearing::of(tools),
        ..plan
    })
}

/// Plans a completion of plain text.
pub(super) fn completion(request: CompletionRequest, caller: &Caller) -> Result<Plan, Refusal> {
    if request.prompt.0.is_empty() {
        return Err(Refusal::invalid(
            "prompt",
            "prompt must be a string or a list of strings",
        ));
    }
    if request.suffix.is_some_and(|suffix| !suffix.is_empty()) {
        return Err(Refusal::not_yet("suffix", "suffix"));
    }
    if request.echo.unwrap_or(false) {
        return Err(Refusal::not_yet("echo", "echo"));
    }
    if request
        .best_of
        .is_some_and(|best_of| best_of != request.n.unwrap_or(1))
    {
        return Err(Refusal::not_yet("best_of", "best_of other than n"));
    }
    // Text with the markers of a chat template is what this route is called with.
    let special = true;
    let prompts = request
        .prompt
        .0
        .into_iter()
        .map(|text| Input::from_prompt(Prompt::Text { text, special }));
    let settings = Settings {
        model: request.model,
        stop: request.stop.map(|stop| stop.0),
        bias: request.logit_bias.0,
        wishes: Wishes {
            top_logprobs: request
                .logprobs
                .map(|top| top_logprobs("logprobs", top))
                .transpose()?,
            ..wishes(
                request.temperature,
                request.top_p,
                request.top_k,
                request.min_p,
                request.presence_penalty,
                request.frequency_penalty,
            )
        },
        seed: request.seed,
        limit: max_tokens("max_tokens", request.max_tokens)?,
        n: request.n,
        stream: request.stream,
        options: request.stream_options,
    };
    settings.plan(prompts.collect(), caller)
}

/// What both requests have in common.
struct Settings {
    model: String,
    stop: Option<Vec<String>>,
    bias: Vec<(String, f64)>,
    wishes: Wishes,
    seed: Option<i64>,
    limit: Option<u32>,
    n: Option<i64>,
    stream: Option<bool>,
    options: Option<StreamOptions>,
}

impl Settings {
    fn plan(self, prompts: Vec<Input>, caller: &Caller) -> Result<Plan, Refusal> {
        let n = choices(self.n, prompts.len())?;
        let model = model_name("model", &self.model)?;
        let sampler = self.wishes.sampler()?;
        let mut said = self.wishes.said();
        said.extend(sampling::said([
            (Setting::Seed, self.seed.is_some()),
            (Setting::NumPredict, self.limit.is_some()),
            (Setting::Stop, self.stop.is_some()),
        ]));
        let (stop, logit_bias) = (
            stops(self.stop.unwrap_or_default())?,
            logit_bias(self.bias)?,
        );
        let ask = |input: &Input, choice: u32| Ask {
            model: model.clone(),
            input: Input {
                stop: stop.clone(),
                logit_bias: logit_bias.clone(),
                ..input.clone()
            },
            sampler,
            said: said.clone(),
            seed: self.seed,
            choice,
            max_tokens: self.limit,
            scope: Some(caller.scope),
            placement: Placement::Any,
            wall: None,
            isolated: caller.isolated,
            deadline_ms: DEADLINE_MS,
            client: caller.client.clone(),
            patient: caller.patient,
        };
        let asks = prompts
            .iter()
            .flat_map(|input| (0..n).map(move |choice| (input, choice)));
        Ok(Plan {
            asks: asks.map(|(input, choice)| ask(input, choice)).collect(),
            per_prompt: n as usize,
            stream: self.stream.unwrap_or(false),
            include_usage: self
                .options
                .and_then(|options| options.include_usage)
                .unwrap_or(false),
            thinking: None,
            hearing: Hearing::default(),
        })
    }
}

fn choices(n: Option<i64>, prompts: usize) -> Result<u32, Refusal> {
    let n = n.unwrap_or(1);
    if !(1..=MAX_CHOICES).contains(&n) {
        return Err(Refusal::invalid(
            "n",
            format!("n must be between 1 and {MAX_CHOICES}, not {n}"),
        ));
    }
    if n as usize * prompts > MAX_CHOICES as usize {
        let why = format!("n times the number of prompts must be at most {MAX_CHOICES}");
        return Err(Refusal::invalid("prompt", why));
    }
    Ok(n as u32)
}

/// Wishes in OpenAI's words.
pub(super) fn wishes(
    temperature: Option<f64>,
    top_p: Option<f64>,
    top_k: Option<f64>,
    min_p: Option<f64>,
    presence: Option<f64>,
    frequency: Option<f64>,
) -> Wishes {
    Wishes {
        temperature,
        top_p,
        top_k,
        min_p,
        presence_penalty: presence,
        frequency_penalty: frequency,
        ..Wishes::none(USUAL)
    }
}

fn turn(at: usize, message: ChatMessage) -> Result<Message, Refusal> {
    let role = match message.role.as_str() {
        "developer" => "system".to_owned(),
        role if ROLES.contains(&role) => message.role,
        role => {
            let why = format!(
                "role '{}' is not one of system, developer, user, assistant, tool",
                clipped(role)
            );
            return Err(Refusal::invalid(format!("messages[{at}].role"), why));
        }
    };
    if let Some(kind) = message.content.other {
        let what = format!("a content part of type '{}'", clipped(&kind));
        return Err(Refusal::not_yet(format!("messages[{at}].content"), &what));
    }
    for (field, label) in [
        ("name", &message.name),
        ("tool_call_id", &message.tool_call_id),
    ] {
        if label.as_ref().is_some_and(|label| label.len() > MAX_LABEL) {
            let why = format!("{field} must have at most {MAX_LABEL} bytes");
            return Err(Refusal::invalid(format!("messages[{at}].{field}"), why));
        }
    }
    let place = format!("messages[{at}].content");
    Ok(Message {
        role,
        images: images::all(message.content.images, &place)?,
        content: message.content.text,
        name: message.name,
        tool_calls: message.tool_calls.as_deref().and_then(non_empty_list),
        tool_call_id: message.tool_call_id,
        thinking: message.reasoning.or(message.reasoning_content),
    })
}

/// What is asked of thinking: OpenAI's effort, or the variable that vLLM's and llama.cpp's clients set.
fn thinking(
    effort: Option<&str>,
    template: Option<TemplateWishes>,
) -> Result<Option<Thinking>, Refusal> {
    if effort.is_some() {
        return self::effort("reasoning_effort", effort);
    }
    let enable = template.and_then(|wishes| wishes.enable_thinking);
    Ok(enable.map(|on| if on { Thinking::On } else { Thinking::Off }))
}

/// OpenAI's words for how hard a model is to think.
pub(super) fn effort(param: &str, effort: Option<&str>) -> Result<Option<Thinking>, Refusal> {
    Ok(Some(match effort {
        None => return Ok(None),
        Some("none") => Thinking::Off,
        Some("minimal" | "low") => Thinking::Low,
        Some("medium") => Thinking::Medium,
        Some("high") => Thinking::High,
        Some("xhigh" | "max") => Thinking::Max,
        Some(effort) => {
            let why = format!(
                "{param} must be none, minimal, low, medium, high or xhigh, not '{}'",
                clipped(effort)
            );
            return Err(Refusal::invalid(param, why));
        }
    }))
}

/// The JSON schema an answer is bound to, if any.
fn schema(format: ResponseFormat) -> Result<Option<String>, Refusal> {
    let param = "response_format";
    match format.kind.as_str() {
        "text" => Ok(None),
        "json_object" => Ok(Some(ANY_OBJECT.to_owned())),
        "json_schema" => {
            let schema = format.json_schema.and_then(|named| named.schema);
            let missing =
                || Refusal::invalid(param, "response_format.json_schema.schema is missing");
            schema
                .map(|raw| Some(raw.get().to_owned()))
                .ok_or_else(missing)
        }
        kind => {
            let what = format!("response_format '{}'", clipped(kind));
            Err(Refusal::not_yet(param, &what))
        }
    }
}

#[cfg(test)]
#[path = "ask_tests.rs"]
mod tests;
