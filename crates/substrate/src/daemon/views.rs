//! What lists show: the node's and the pool's state in the door's words.

use substrate_mesh::PeerView as MeshPeer;
use substrate_node::{JobPhase, JobStatus, PeerStatus, Timestamp, WorkPhase, WorkStatus};
use substrate_record::{Capability, ContentHash, ModelEntry, NodeId, Verified};

use super::life::Peer;
use super::pool::{Fit, Loading, Pool};
use super::shelf::Shelf;
use crate::door::{Client, FitView, JobRole, JobView, ModelView, PeerView, QueueNews, WorkerView};
use crate::models::catalogue::Held;
use crate::models::parts::Parts;

/// A model held here.
pub fn own_model(held: &Held, nodes: Vec<NodeId>, pool: &Pool) -> ModelView {
    let entry = held.entry.body();
    ModelView {
        name: held.name.to_string(),
        entry: held.entry.id(),
        digest: held.weights(),
        size: held.size(),
        arch: entry.arch.clone(),
        quant: entry.quant.clone(),
        n_params: held.facts.n_params,
        context: entry.context,
        served_context: Some(served_context(held, pool)),
        licence: entry.licence.clone(),
        modified_ms: held.modified_ms,
        own: true,
        nodes,
        loaded: pool.is_loaded(&held.parts()),
        sees: held.parts().projector.is_some(),
        template: held.template().map(str::to_owned),
    }
}

/// What its worker was given, or would be.
fn served_context(held: &Held, pool: &Pool) -> u32 {
    let loaded = pool.loaded_context(&held.parts());
    loaded.unwrap_or_else(|| pool.context_of(&held.parts(), held.entry.body().context))
}

/// A model only others hold.
pub fn others_model(
    entry: &Verified<ModelEntry>,
    digest: ContentHash,
    nodes: Vec<NodeId>,
) -> ModelView {
    let body = entry.body();
    ModelView {
        name: body.name.clone(),
        entry: entry.id(),
        digest,
        size: body.files.iter().map(|file| file.size).sum(),
        arch: body.arch.clone(),
        quant: body.quant.clone(),
        n_params: 0,
        context: body.context,
        served_context: None,
        licence: body.licence.clone(),
        modified_ms: entry.record().claimed_ms,
        own: false,
        nodes,
        loaded: false,
        sees: Parts::of(body).is_some_and(|parts| parts.projector.is_some()),
        template: None,
    }
}

/// The loaded workers, and those being loaded.
pub fn workers(pool: &Pool, held: &[Held]) -> Vec<WorkerView> {
    let loading = pool.loading().into_iter();
    let loading = loading.filter_map(|(parts, loading)| {
        let held = over(held, &parts)?;
        Some(being_loaded(held, loading, pool))
    });
    loaded_workers(pool, held).chain(loading).collect()
}

/// The model of these files; one that was made from it only if there is no other.
fn over<'a>(held: &'a [Held], parts: &Parts) -> Option<&'a Held> {
    let over = held.iter().filter(|held| held.parts() == *parts);
    over.min_by_key(|held| held.recipe.is_some())
}

fn loaded_workers<'a>(
    pool: &'a Pool,
    held: &'a [Held],
) -> impl Iterator<Item = WorkerView> + use<'a> {
    pool.loaded().into_iter().map(|loaded| {
        let name = over(held, &loaded.parts)
            .map_or_else(|| loaded.parts.to_string(), |held| held.name.to_string());
        let facts = loaded.engine.facts();
        WorkerView {
            model: name,
            digest: loaded.parts.weights,
            memory: resident_bytes_of(loaded.engine.pid()),
            context: facts.n_ctx,
            pid: loaded.engine.pid(),
            wall: Some(loaded.wall),
            busy: loaded.busy,
            isolated: loaded.alone,
            expires_ms: loaded.expires_ms,
            arch: facts.arch.clone(),
            quant: facts.quant.clone(),
            n_params: facts.n_params,
            loading: None,
        }
    })
}

/// A worker that does not answer yet: what its entry says of it.
fn being_loaded(held: &Held, loading: Loading, pool: &Pool) -> WorkerView {
    let entry = held.entry.body();
    WorkerView {
        model: held.name.to_string(),
        digest: held.weights(),
        memory: 0,
        context: pool.context_of(&held.parts(), entry.context),
        pid: 0,
        wall: loading.wall.or_else(|| pool.wall()),
        busy: 0,
        isolated: loading.alone,
        expires_ms: None,
        arch: entry.arch.clone(),
        quant: entry.quant.clone(),
        n_params: held.facts.n_params,
        loading: Some(loading.stage.word()),
    }
}

/// A reckoning, for people.
pub fn fit(fit: Fit) -> FitView {
    let Fit {
        setting,
        estimate,
        place,
    } = fit;
    let (place, why) = match place {
        Ok(place) => (Some(place.word()), None),
        Err(why) => (None, Some(why)),
    };
    FitView {
        context: setting.context,
        slots: setting.slots,
        kv_cache_type: setting.kv.name(),
        flash_attention: setting.flash_attention,
        weights: estimate.weights,
        kv_cache: estimate.kv_cache,
        prefixes: estimate.prefixes,
        buffers: estimate.buffers,
        engine: estimate.engine,
        total: estimate.total(),
        mapped: estimate.mapped,
        place,
        why,
    }
}

/// A job asked for here.
pub fn requested(
    status: &JobStatus,
    model: String,
    client: Option<Client>,
    now: Timestamp,
) -> JobView {
    let state = match status.phase {
        JobPhase::Waiting | JobPhase::Offered | JobPhase::Queued => "queued",
        JobPhase::Preparing => "starting",
        JobPhase::Running | JobPhase::Resuming | JobPhase::Settling => "running",
    };
    JobView {
        job: status.job,
        role: JobRole::Requested,
        model,
        scope: status.scope,
        state: state.to_owned(),
        client,
        peer: status.attempt.map(|attempt| attempt.peer),
        queue: status.news.as_ref().map(news),
        tokens: status.tokens,
        attempt: status.attempts,
        age_ms: now.since(status.since),
    }
}

/// A job served for another.
pub fn serving(status: &WorkStatus, model: String, now: Timestamp) -> JobView {
    let state = match status.phase {
        WorkPhase::Queued => "queued",
        WorkPhase::Ready | WorkPhase::Preparing => "starting",
        WorkPhase::Running | WorkPhase::Paused => "running",
    };
    JobView {
        job: status.attempt.job,
        role: JobRole::Serving,
        model,
        scope: status.scope,
        state: state.to_owned(),
        client: None,
        peer: Some(status.attempt.peer),
        queue: status.news.as_ref().map(news),
        tokens: status.tokens,
        attempt: status.attempt.number,
        age_ms: now.since(status.since),
    }
}

fn news(news: &substrate_node::QueueNews) -> QueueNews {
    QueueNews {
        position: news.position,
        expected_wait_ms: news.expected_wait_ms,
        why: news.why.to_string(),
    }
}

/// A node in sight, without its addresses.
pub fn peer(status: &PeerStatus<'_>, known: Option<&Peer>, shelf: &Shelf) -> PeerView {
    let capability = status.capability.map(Verified::body);
    let models = capability.map_or_else(Vec::new, |capability| {
        let mut names: Vec<String> = capability
            .models
            .iter()
            .filter_map(|model| shelf.entry(&model.entry))
            .map(|entry| entry.body().name.clone())
            .collect();
        names.dedup();
        names
    });
    PeerView {
        node: status.node,
        addrs: Vec::new(),
        connected: status.connected,
        circle: status.circle,
        rtt_ms: status.rtt_ms,
        skew_ms: known.map(|peer| peer.skew_ms),
        build: known.map_or_else(String::new, |peer| peer.build.clone()),
        models,
        slots: capability.map_or(0, |capability| capability.slots),
        queue: capability.map_or(0, |capability| capability.queue),
        walls: status.walls.clone(),
        rates: capability.map_or((0, 0), fastest),
    }
}

fn fastest(capability: &Capability) -> (u64, u64) {
    let rates = (capability.models.iter()).map(|model| (model.prefill, model.decode));
    rates.max_by_key(|(_, decode)| *decode).unwrap_or_default()
}

/// Adds what the mesh knows of each peer's addresses.
pub fn with_addresses(mut peers: Vec<PeerView>, connected: &[MeshPeer]) -> Vec<PeerView> {
    for peer in &mut peers {
        if let Some(known) = connected.iter().find(|known| known.node == peer.node) {
            peer.addrs.clone_from(&known.addresses);
        }
    }
    peers
}

/// A length as the door's 32 bits.
pub fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// Resident bytes of this process.
pub fn resident_bytes() -> u64 {
    resident_bytes_of(std::process::id())
}

fn resident_bytes_of(pid: u32) -> u64 {
    memory_of(pid).0
}

/// Resident bytes of a process, and how many of them are its own and no file's; 0 if it is gone.
pub fn memory_of(pid: u32) -> (u64, u64) {
    /// Linux counts pages of this size on every machine that lends today (x86-64, and arm64 as Debian builds it).
    const PAGE: u64 = 4096;
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
    let mut pages = statm.split_whitespace().map(|n| n.parse().unwrap_or(0));
    // Fields of proc(5): size, resident, shared with files.
    let resident: u64 = pages.nth(1).unwrap_or(0);
    let shared = pages.next().unwrap_or(0);
    (resident * PAGE, resident.saturating_sub(shared) * PAGE)
}
