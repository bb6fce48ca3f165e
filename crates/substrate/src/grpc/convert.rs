//! The door's types as the contract's messages, and back.
//!
//! Invariant: going out loses nothing the contract has a field for; coming in checks every length
//! and every code, and says which field was wrong.

use substrate_api::v1;
use substrate_record::{JobId, NodeId, Sampler, Scope, WallTier};
use substrate_sandbox::wire::input::{Image, Input, Message, Prompt, Thinking};
use tonic::Status;

use crate::door::{
    self, Ask, Client, FinishReason, FitView, JobRole, JobView, ModelView, PeerView, Placement,
    QueueNews, Route, Summary, WorkerView,
};
use crate::models::parameters::{Said, Setting};

/// How long an answer is waited for if the caller does not say: the longest answer a slow CPU gives, with a queue before it.
pub const DEFAULT_DEADLINE_MS: u64 = 30 * 60 * 1000;

fn wrong(field: &str, why: impl std::fmt::Display) -> Status {
    Status::invalid_argument(format!("{field}: {why}"))
}

/// Bytes of a stated length.
fn fixed<const N: usize>(field: &str, bytes: &[u8]) -> Result<[u8; N], Status> {
    bytes.try_into().map_err(|_| {
        wrong(
            field,
            format_args!("{} bytes where {N} belong", bytes.len()),
        )
    })
}

/// A node's key.
pub fn node_in(field: &str, bytes: &[u8]) -> Result<NodeId, Status> {
    fixed(field, bytes).map(NodeId::from_bytes)
}

/// A job's id.
pub fn job_in(bytes: &[u8]) -> Result<JobId, Status> {
    fixed("job", bytes).map(JobId::from_bytes)
}

/// A request for an answer, checked.
pub fn ask_in(request: v1::RunRequest) -> Result<Ask, Status> {
    let sampler = sampler_in(request.sampler.unwrap_or_else(default_sampler))?;
    let placement = match request.placement {
        None => Placement::Any,
        Some(v1::run_request::Placement::Elsewhere(_)) => Placement::Elsewhere,
        Some(v1::run_request::Placement::Node(node)) => Placement::Node(node_in("node", &node)?),
    };
    let input = Input {
        prompt: prompt_in(request.prompt)?,
        tools: request.tools,
        schema: request.schema,
        stop: request.stop,
        logit_bias: request
            .logit_bias
            .into_iter()
            .map(|bias| (bias.token, bias.bias))
            .collect(),
        thinking: thinking_in(request.thinking)?,
        template: None,
    };
    Ok(Ask {
        model: request.model,
        input,
        sampler,
        said: said_in(&request.said)?,
        seed: request.seed,
        choice: 0,
        max_tokens: request.max_tokens,
        scope: scope_in(request.scope)?,
        placement,
        wall: wall_in(request.wall)?,
        isolated: request.isolated,
        deadline_ms: if request.deadline_ms == 0 {
            DEFAULT_DEADLINE_MS
        } else {
            request.deadline_ms
        },
        client: Client::Owner,
        patient: false,
    })
}

/// The parameters that the caller chose itself.
fn said_in(names: &[String]) -> Result<Said, Status> {
    let setting = |name: &String| {
        Setting::from_name(name).ok_or_else(|| wrong("said", "holds a name that no parameter has"))
    };
    names.iter().map(setting).collect()
}

/// What a template is told of thinking, if anything.
fn thinking_in(code: i32) -> Result<Option<Thinking>, Status> {
    use v1::Thinking as Code;
    Ok(match Code::try_from(code) {
        Ok(Code::Unspecified) => None,
        Ok(Code::Off) => Some(Thinking::Off),
        Ok(Code::On) => Some(Thinking::On),
        Ok(Code::Low) => Some(Thinking::Low),
        Ok(Code::Medium) => Some(Thinking::Medium),
        Ok(Code::High) => Some(Thinking::High),
        Ok(Code::Max) => Some(Thinking::Max),
        Err(_) => return Err(wrong("thinking", format_args!("no such code {code}"))),
    })
}

/// The code of what a template is to be told of thinking.
pub fn thinking_out(thinking: Option<Thinking>) -> v1::Thinking {
    match thinking {
        None => v1::Thinking::Unspecified,
        Some(Thinking::Off) => v1::Thinking::Off,
        Some(Thinking::On) => v1::Thinking::On,
        Some(Thinking::Low) => v1::Thinking::Low,
        Some(Thinking::Medium) => v1::Thinking::Medium,
        Some(Thinking::High) => v1::Thinking::High,
        Some(Thinking::Max) => v1::Thinking::Max,
    }
}

fn prompt_in(prompt: Option<v1::run_request::Prompt>) -> Result<Prompt, Status> {
    match prompt {
        None => Err(wrong("prompt", "missing")),
        Some(v1::run_request::Prompt::Text(v1::RawText { text, special })) => {
            Ok(Prompt::Text { text, special })
        }
        Some(v1::run_request::Prompt::Texts(v1::Texts { texts, truncate })) => {
            Ok(Prompt::Texts { texts, truncate })
        }
        Some(v1::run_request::Prompt::Chat(chat)) => Ok(Prompt::Chat(
            chat.messages.into_iter().map(message_in).collect(),
        )),
    }
}

fn message_in(message: v1::Message) -> Message {
    Message {
        role: message.role,
        content: message.content,
        name: message.name,
        tool_calls: message.tool_calls,
        tool_call_id: message.tool_call_id,
        thinking: message.thinking,
        images: message.images.into_iter().map(image_in).collect(),
    }
}

fn image_in(image: v1::Image) -> Image {
    Image {
        at: image.at,
        bytes: image.data,
    }
}

/// Ollama's defaults, which people expect of a local model.
pub fn default_sampler() -> v1::Sampler {
    v1::Sampler {
        temperature: 800_000,
        top_k: 40,
        top_p: 900_000,
        min_p: 0,
        typical_p: 1_000_000,
        repeat_last_n: 64,
        repeat: 1_000_000,
        presence: 0,
        frequency: 0,
        n: 1,
        top_logprobs: None,
    }
}

fn sampler_in(sampler: v1::Sampler) -> Result<Sampler, Status> {
    if sampler.n > 1 {
        return Err(wrong("sampler.n", "one call answers with one choice"));
    }
    Ok(Sampler {
        temperature: sampler.temperature,
        top_k: sampler.top_k,
        top_p: sampler.top_p,
        min_p: sampler.min_p,
        typical_p: sampler.typical_p,
        repeat_last_n: sampler.repeat_last_n,
        repeat: sampler.repeat,
        presence: sampler.presence,
        frequency: sampler.frequency,
        n: 1,
        top_logprobs: sampler.top_logprobs,
    })
}

/// A scope, `None` where the caller did not choose.
pub fn scope_in(code: i32) -> Result<Option<Scope>, Status> {
    match v1::Scope::try_from(code) {
        Ok(v1::Scope::Unspecified) => Ok(None),
        Ok(v1::Scope::Mine) => Ok(Some(Scope::Mine)),
        Ok(v1::Scope::Circle) => Ok(Some(Scope::Circle)),
        Ok(v1::Scope::Commons) => Ok(Some(Scope::Commons)),
        Err(_) => Err(wrong("scope", format_args!("unknown code {code}"))),
    }
}

/// A scope.
pub fn scope_out(scope: Scope) -> v1::Scope {
    match scope {
        Scope::Mine => v1::Scope::Mine,
        Scope::Circle => v1::Scope::Circle,
        Scope::Commons => v1::Scope::Commons,
    }
}

fn wall_in(code: i32) -> Result<Option<WallTier>, Status> {
    match v1::Wall::try_from(code) {
        Ok(v1::Wall::Unspecified) => Ok(None),
        Ok(v1::Wall::Basic) => Ok(Some(WallTier::Basic)),
        Ok(v1::Wall::ProcessGpu) => Ok(Some(WallTier::ProcessGpu)),
        Ok(v1::Wall::Process) => Ok(Some(WallTier::Process)),
        Ok(v1::Wall::Microvm) => Ok(Some(WallTier::Microvm)),
        Ok(v1::Wall::MicrovmEmulated) => Ok(Some(WallTier::MicrovmEmulated)),
        Ok(v1::Wall::Tee) => Ok(Some(WallTier::Tee)),
        Err(_) => Err(wrong("wall", format_args!("unknown code {code}"))),
    }
}

fn wall_out(wall: WallTier) -> v1::Wall {
    match wall {
        WallTier::Basic => v1::Wall::Basic,
        WallTier::ProcessGpu => v1::Wall::ProcessGpu,
        WallTier::Process => v1::Wall::Process,
        WallTier::Microvm => v1::Wall::Microvm,
        WallTier::MicrovmEmulated => v1::Wall::MicrovmEmulated,
        WallTier::Tee => v1::Wall::Tee,
    }
}

fn route_out(route: Route) -> v1::Route {
    match route {
        Route::Local => v1::Route::Local,
        Route::Direct => v1::Route::Direct,
        Route::Relayed => v1::Route::Relayed,
    }
}

/// One event of a job.
pub fn event_out(event: door::JobEvent) -> v1::JobEvent {
    use v1::job_event::Event;
    let event = match event {
        door::JobEvent::Queued(news) => Event::Queued(queued_out(news)),
        door::JobEvent::Started(started) => Event::Started(v1::Started {
            node: started.node.as_bytes().to_vec(),
            route: route_out(started.route).into(),
            n_in: started.n_in,
            attempt: started.attempt,
        }),
        door::JobEvent::Text(piece) => Event::Text(text_out(piece)),
        door::JobEvent::Row(bytes) => Event::Row(row_out(&bytes)),
        door::JobEvent::Moved {
            from,
            after_tokens,
            why,
        } => Event::Moved(v1::Moved {
            from: from.as_bytes().to_vec(),
            after_tokens,
            why,
        }),
        door::JobEvent::Finished(summary) => Event::Finished(finished_out(&summary)),
        door::JobEvent::Failed(error) => Event::Failed(super::refusal::refusal_of(&error)),
    };
    v1::JobEvent { event: Some(event) }
}

fn queued_out(news: QueueNews) -> v1::Queued {
    v1::Queued {
        position: news.position,
        expected_wait_ms: news.expected_wait_ms,
        why: news.why,
    }
}

fn text_out(piece: door::TextPiece) -> v1::Text {
    v1::Text {
        text: String::from_utf8_lossy(&piece.bytes).into_owned(),
        ids: piece.ids,
        logprobs: piece.logprobs.into_iter().map(logprob_out).collect(),
    }
}

fn row_out(bytes: &[u8]) -> v1::Row {
    let (components, _) = bytes.as_chunks::<4>();
    v1::Row {
        components: components.iter().copied().map(f32::from_le_bytes).collect(),
    }
}

fn logprob_out(token: door::TokenLogprob) -> v1::TokenLogprob {
    let top = token
        .top
        .into_iter()
        .map(|(id, logprob, bytes)| v1::Alternative { id, bytes, logprob })
        .collect();
    v1::TokenLogprob {
        id: token.id,
        bytes: token.bytes,
        logprob: token.logprob,
        top,
    }
}

fn finished_out(summary: &Summary) -> v1::Finished {
    let finish = match summary.finish {
        FinishReason::Stop => v1::FinishReason::Stop,
        FinishReason::Length => v1::FinishReason::Length,
        FinishReason::Cancelled => v1::FinishReason::Cancelled,
    };
    let timings = summary.timings;
    v1::Finished {
        finish: finish.into(),
        n_in: summary.n_in,
        n_out: summary.n_out,
        node: summary.node.as_bytes().to_vec(),
        route: route_out(summary.route).into(),
        scope: scope_out(summary.scope).into(),
        wall: wall_out(summary.wall).into(),
        isolated: summary.isolated,
        attempts: summary.attempts,
        receipt: summary.receipt.map(|id| id.as_bytes().to_vec()),
        model_sha256: summary.model_sha256.as_bytes().to_vec(),
        timings: Some(v1::Timings {
            queue: timings.queue,
            route: timings.route,
            load: timings.load,
            prefill: timings.prefill,
            decode: timings.decode,
            total: timings.total,
        }),
    }
}

/// A model of a list.
pub fn model_out(model: ModelView) -> v1::Model {
    v1::Model {
        name: model.name,
        entry: model.entry.as_bytes().to_vec(),
        digest: model.digest.as_bytes().to_vec(),
        size: model.size,
        arch: model.arch,
        quant: model.quant,
        n_params: model.n_params,
        context: model.context,
        licence: model.licence,
        modified_ms: model.modified_ms,
        own: model.own,
        nodes: model
            .nodes
            .iter()
            .map(|node| node.as_bytes().to_vec())
            .collect(),
        loaded: model.loaded,
        template: model.template,
    }
}

/// A job of a list.
pub fn job_out(job: JobView) -> v1::Job {
    let role = match job.role {
        JobRole::Requested => v1::JobRole::Requested,
        JobRole::Serving => v1::JobRole::Serving,
    };
    v1::Job {
        job: job.job.as_bytes().to_vec(),
        role: role.into(),
        model: job.model,
        scope: scope_out(job.scope).into(),
        state: job.state,
        peer: job.peer.map(|node| node.as_bytes().to_vec()),
        queue: job.queue.map(queued_out),
        tokens: job.tokens,
        attempt: job.attempt,
        age_ms: job.age_ms,
    }
}

/// A worker of a list.
pub fn worker_out(worker: WorkerView) -> v1::Worker {
    v1::Worker {
        model: worker.model,
        digest: worker.digest.as_bytes().to_vec(),
        memory: worker.memory,
        context: worker.context,
        pid: worker.pid,
        wall: worker.wall.map_or(v1::Wall::Unspecified, wall_out).into(),
        busy: worker.busy,
        expires_ms: worker.expires_ms,
        arch: worker.arch,
        quant: worker.quant,
        loading: worker.loading.map(str::to_owned),
        isolated: worker.isolated,
    }
}

/// A reckoning of memory.
pub fn fit_out(fit: FitView) -> v1::Fit {
    v1::Fit {
        context: fit.context,
        slots: fit.slots,
        kv_cache_type: fit.kv_cache_type.to_owned(),
        flash_attention: fit.flash_attention,
        weights: fit.weights,
        kv_cache: fit.kv_cache,
        prefixes: fit.prefixes,
        buffers: fit.buffers,
        engine: fit.engine,
        total: fit.total,
        mapped: fit.mapped,
        place: fit.place,
        why: fit.why,
    }
}

/// A node of a list.
pub fn peer_out(peer: PeerView) -> v1::Peer {
    v1::Peer {
        node: peer.node.as_bytes().to_vec(),
        addrs: peer.addrs,
        connected: peer.connected,
        circle: peer.circle,
        rtt_ms: peer.rtt_ms,
        skew_ms: peer.skew_ms,
        build: peer.build,
        models: peer.models,
        slots: peer.slots,
        queue: peer.queue,
        walls: peer
            .walls
            .into_iter()
            .map(|wall| wall_out(wall).into())
            .collect(),
        prefill: peer.rates.0,
        decode: peer.rates.1,
    }
}

/// The daemon's state.
pub fn status_out(status: door::Status) -> v1::StatusReply {
    let (network_name, network) = status.network;
    v1::StatusReply {
        node: status.node.as_bytes().to_vec(),
        network_name,
        network: network.as_bytes().to_vec(),
        version: status.version,
        listen: status.listen,
        api: status.api,
        lending: status.lending,
        withheld: status.withheld,
        peers: status.peers,
        running: status.running,
        waiting: status.waiting,
        wall: status.wall.map_or(v1::Wall::Unspecified, wall_out).into(),
        rss: status.rss,
        uptime_ms: status.uptime_ms,
        warnings: status.warnings,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question() -> v1::RunRequest {
        let chat = v1::Chat {
            messages: vec![v1::Message {
                role: "user".into(),
                content: "hi".into(),
                ..Default::default()
            }],
        };
        v1::RunRequest {
            model: "smollm2:135m".into(),
            prompt: Some(v1::run_request::Prompt::Chat(chat)),
            ..Default::default()
        }
    }

    #[test]
    fn what_the_caller_leaves_out_has_a_default() {
        let ask = ask_in(question()).unwrap();
        assert_eq!(
            (ask.scope, ask.wall, ask.placement),
            (None, None, Placement::Any)
        );
        assert_eq!(
            (ask.deadline_ms, ask.sampler.top_k),
            (DEFAULT_DEADLINE_MS, 40)
        );
        assert_eq!(ask.client, Client::Owner);
    }

    #[test]
    fn a_wrong_field_is_named() {
        let short = v1::run_request::Placement::Node(vec![1; 31]);
        let error = ask_in(v1::RunRequest {
            placement: Some(short),
            ..question()
        })
        .unwrap_err();
        assert_eq!(error.message(), "node: 31 bytes where 32 belong");
        let error = ask_in(v1::RunRequest {
            scope: 9,
            ..question()
        })
        .unwrap_err();
        assert_eq!(error.message(), "scope: unknown code 9");
        let error = ask_in(v1::RunRequest {
            prompt: None,
            ..question()
        })
        .unwrap_err();
        assert_eq!(error.message(), "prompt: missing");
    }
}
