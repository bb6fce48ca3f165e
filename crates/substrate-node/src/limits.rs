//! Every bound and every duration of the node, each with its reason. Durations are milliseconds.
//!
//! Invariant: whatever a peer or a client sends, no list in this crate grows past a number named here.
//! Absent by design: settings. What an owner may choose arrives as an event.

use substrate_record::WallTier;

/// How often each end of a job stream sends a heartbeat (PROTOCOL.md 4). The daemon's session tasks send them.
pub const HEARTBEAT_MS: u64 = 500;

/// Silence after which the other end of an attempt is taken for dead: three heartbeats and 300 ms of jitter,
/// so that detection and the first token of the next node fit the 3 s a reader may wait.
pub const SILENCE_MS: u64 = 1_800;

/// How long a broken stream may take to be taken up again at the same node; as long as silence may last.
pub const RESUME_WINDOW_MS: u64 = 1_800;

/// How long a provider keeps a paused answer and its unacknowledged tail (PROTOCOL.md 5).
pub const TAIL_KEPT_MS: u64 = 10_000;

/// How long an offer may stay unanswered by a node that heartbeats, or by one that must first be dialled.
/// A hole-punched dial takes 2–4 s.
pub const OFFER_ANSWER_MS: u64 = 5_000;

/// How long a provider holds a slot for an input that is under way: 8 MiB over a 10 Mbit/s line takes 7 s.
pub const INPUT_LEASE_MS: u64 = 10_000;

/// How long loading the model and preparing the prompt may hold a slot: a 40 GiB file from a 500 MB/s disk takes 80 s.
pub const PREPARE_LEASE_MS: u64 = 180_000;

/// How long work may hold its slot without any progress: 2,048 prompt tokens, the longest step between
/// two reports, take 82 s at the 25 tok/s of the slowest node measured.
pub const WORK_LEASE_MS: u64 = 120_000;

/// How many times as long everything may take behind an emulated machine, which serves its owner alone: an engine takes
/// seconds for a token there, of the smallest models, and a prompt of thirty took minutes.
pub const EMULATED_TIMES: u64 = 16;

/// Times as long as usual that work may take behind this wall.
pub fn slowness(wall: WallTier) -> u64 {
    match wall {
        WallTier::MicrovmEmulated => EMULATED_TIMES,
        _ => 1,
    }
}

/// How long the own store may take for a receipt before the client gets its (whole) answer regardless.
pub const SETTLE_LIMIT_MS: u64 = 10_000;

/// A waiting job is told where it stands at least this often (DESIGN.md 5).
pub const NEWS_INTERVAL_MS: u64 = 2_000;

/// A waiting job is told of changes at most this often; a queue of a thousand would otherwise make a million reports.
pub const NEWS_FLOOR_MS: u64 = 250;

/// The most jobs of this daemon's own clients, waiting or running (DESIGN.md 5: only the own full list refuses a
/// client). The owner may want fewer.
pub const OWN_LIST: usize = 1_024;

/// What a client refused by a full list is told to wait: one round of news.
pub const LIST_RETRY_MS: u64 = 2_000;

/// Attempts of others waiting here. At four slots and 10 s an answer, the last waits five minutes: longer queues help nobody.
pub const PROVIDER_QUEUE: usize = 128;

/// Attempts of one other identity waiting here: an eighth of the queue, so that eight greedy keys do not shut it.
pub const IDENTITY_QUEUE: usize = 16;

/// When a node with a full queue wants to be asked again.
pub const QUEUE_RETRY_MS: u64 = 3_000;

/// When a node that cannot take a job for a lasting reason wants to be asked again.
pub const REFUSAL_RETRY_MS: u64 = 30_000;

/// When a node whose worker failed wants to be asked again: a restart and a load take seconds.
pub const WORKER_RETRY_MS: u64 = 5_000;

/// Bounds on the `retry_after` believed of a peer, so that nobody parks our jobs for a day or has us ask in a loop.
pub const RETRY_RANGE_MS: (u64, u64) = (200, 60_000);

/// Manifest ids remembered in one session; then a new session nonce makes all of them void (PROTOCOL.md 4).
pub const MANIFESTS_PER_SESSION: usize = 1 << 20;

/// Entries of the same weights in one request.
pub const MAX_ENTRIES_PER_WANT: usize = 16;

/// The longest deadline: a day. Longer ones are cut.
pub const MAX_DEADLINE_MS: u64 = 86_400_000;

/// The most tokens one job may ask for; the longest context in sight.
pub const MAX_TOKENS: u32 = 1 << 20;

/// Nodes remembered per job as tried. More than the view holds, so none is forgotten.
pub const TRIED_PER_JOB: usize = 256;

/// Times a started job may be given back before it is taken for one that crashes its workers.
pub const MAX_GIVEN_UP: u32 = 8;

/// The best few among which two are drawn (two random choices: Mitzenmacher 2001). More would reach into the slow ones.
pub const BEST_FEW: usize = 5;

/// A node among the best few may cost at most this many halves of the best score: half as much again.
pub const FEW_HALVES: u64 = 3;

/// Scores closer than an eighth are a tie, which the own machine wins: estimates are no better than that.
pub const TIE_DIVISOR: u64 = 8;

/// How long a node that vanished is asked last; doubles with each further strike up to [`MAX_STRIKES`].
pub const SUSPECT_MS: u64 = 10_000;

/// Strikes counted, so that the longest suspicion is 10 s × 2^5 = 320 s: shorter than a capability lives.
pub const MAX_STRIKES: u32 = 5;

/// How long a node that broke the protocol is asked nothing: as long as a capability lives.
pub const MISBEHAVED_MS: u64 = 600_000;

/// How long the same job keeps away from a node it lost, if others are left: one heartbeat period of a dead one's return.
pub const LOST_RETRY_MS: u64 = 1_000;

/// Nodes whose conduct is remembered: four times the view, so that leaving it does not clear a name.
pub const CONDUCTS: usize = 512;

/// Round trip assumed of a node without a measured one: a slow intercontinental path.
pub const UNKNOWN_RTT_MS: u32 = 300;

/// What a dial adds to the expected time: TCP or QUIC, Noise, hello.
pub const DIAL_MS: u64 = 500;

/// Load time assumed of a remote model that is not loaded: 5 GB from an SSD.
pub const REMOTE_LOAD_MS: u64 = 5_000;

/// Tokens an answer is expected to have, if it may have more: the mean of public chat logs lies between 200 and 300.
pub const EXPECTED_ANSWER: u32 = 256;

/// A prefix left at a node is worth this divisor on its prefill; the new question still has to be read.
pub const WARM_DIVISOR: u64 = 4;

/// How long a prefix is believed to be warm: the default keep-alive of workers.
pub const WARM_MS: u64 = 300_000;

/// Warm prefixes remembered.
pub const WARM_PLACES: usize = 256;

/// Own attempts at one other node at a time: what its queue would take of one identity.
pub const OFFERS_PER_NODE: u32 = 16;

/// An attempt is stalled after this and three times what its node needs for the next step by its own claim, [`WORK_LEASE_MS`] at most.
pub const STALL_BASE_MS: u64 = 20_000;

/// Prompt tokens between two progress reports (PROTOCOL.md 4).
pub const PREFILL_CHUNK: u32 = 2_048;

/// Extra patience in a provider's queue beyond twice the wait it promised.
pub const QUEUE_PATIENCE_MS: u64 = 30_000;

/// How long a waiting job with nobody to ask waits before it looks again without being told of a change.
pub const LOOK_AGAIN_MS: u64 = 2_000;

/// The gossip interval: a Capability is sent again this often, ± a tenth (DESIGN.md 4).
pub const GOSSIP_INTERVAL_MS: u64 = 60_000;

/// A changed Capability is sent at most this often (DESIGN.md 4).
pub const PUBLISH_FLOOR_MS: u64 = 5_000;

/// After a new peer's hello, gossip waits for the overlay to take it in: two heartbeats of gossipsub.
pub const OVERLAY_SETTLE_MS: u64 = 2_000;

/// A node may be heard again by gossip after this; below [`PUBLISH_FLOOR_MS`] because paths differ in length.
pub const HEARD_FLOOR_MS: u64 = 2_500;

/// How often expired capabilities are looked for: a sixtieth of their life.
pub const EXPIRY_ROUND_MS: u64 = 10_000;

/// Nodes that answered us lately and are kept in view for it; a quarter of the view.
pub const USED_PINS: usize = 32;

/// Models one capability may name: what its record holds.
pub const MODELS_PER_CAPABILITY: usize = substrate_record::MAX_OFFERS;

/// Slots or waiting jobs one capability may claim; larger claims are nonsense.
pub const MAX_CLAIMED: u32 = 65_536;

/// Connected peers known; the mesh's own connection limit lies below.
pub const PEERS: usize = 1_024;

/// Identities whose virtual token counters are kept; beyond it idle ones are forgotten, and lifted on return anyway.
pub const COUNTERS: usize = 2_048;

/// Weight of a prompt token in the virtual token counter (VTC, arXiv 2401.00588, section 3.2).
pub const PROMPT_WEIGHT: u64 = 1;

/// Weight of an answer token there.
pub const ANSWER_WEIGHT: u64 = 2;
