//! Lists as a daemon with two models, one worker and one waiting job would tell them.

use substrate_record::{ContentHash, JobId, NetworkId, NodeId, RecordId, Scope, WallTier};

use crate::door::*;

pub(crate) fn node(n: u8) -> NodeId {
    NodeId::from_bytes([n; 32])
}

pub(crate) fn models() -> Vec<ModelView> {
    let view = |name: &str, own: bool| ModelView {
        name: name.into(),
        entry: RecordId::from_bytes([5; 32]),
        digest: ContentHash::from_bytes([4; 32]),
        size: 98_765_432,
        arch: "llama".into(),
        quant: "Q4_1".into(),
        n_params: 134_515_008,
        context: 8_192,
        served_context: own.then_some(4_096),
        licence: "Apache-2.0".into(),
        modified_ms: 1_700_000_000_123,
        own,
        nodes: vec![node(7)],
        loaded: own,
        sees: false,
        template: None,
    };
    vec![view("tiny:1", true), view("hf.co/far/away:Q4_1", false)]
}

/// A model that opens its thoughts itself, and one whose template opens them.
pub(crate) fn thinkers() -> Vec<ModelView> {
    let view = |name: &str, template: &str| ModelView {
        name: name.into(),
        template: Some(template.into()),
        ..models().remove(0)
    };
    vec![
        view(
            "thinks:1",
            "{{ tools }}{% if add_generation_prompt %}{% if enable_thinking is false %}<think>\n\n</think>{% endif %}{% endif %}",
        ),
        view(
            "ponders:1",
            "{% if add_generation_prompt %}<|assistant|><think>{% endif %}",
        ),
        view("plain:1", "{{ messages }}"),
    ]
}

pub(crate) fn worker() -> WorkerView {
    WorkerView {
        model: "tiny:1".into(),
        digest: ContentHash::from_bytes([4; 32]),
        memory: 200_000_000,
        context: 2_048,
        pid: 77,
        wall: Some(WallTier::Process),
        busy: 1,
        isolated: false,
        expires_ms: None,
        arch: "llama".into(),
        quant: "Q4_1".into(),
        n_params: 134_515_008,
        loading: None,
    }
}

pub(crate) fn jobs() -> Vec<JobView> {
    let running = JobView {
        client: Some(Client::Key("admin".into())),
        state: "running".into(),
        queue: None,
        ..waiting()
    };
    vec![waiting(), running]
}

fn waiting() -> JobView {
    JobView {
        job: JobId::from_bytes([6; 16]),
        role: JobRole::Requested,
        model: "tiny:1".into(),
        scope: Scope::Circle,
        state: "queued".into(),
        client: Some(Client::Key("plain".into())),
        peer: None,
        queue: Some(QueueNews {
            position: 2,
            expected_wait_ms: 1_500,
            why: "2 jobs are ahead".into(),
        }),
        tokens: 0,
        attempt: 1,
        age_ms: 40,
    }
}

pub(crate) fn status() -> Status {
    Status {
        node: node(1),
        network: ("home".into(), NetworkId::from_bytes([8; 32])),
        version: "0.1.0".into(),
        listen: vec![],
        api: None,
        lending: "off".into(),
        withheld: None,
        peers: 2,
        running: 1,
        waiting: 3,
        wall: Some(WallTier::Process),
        rss: 1_000,
        uptime_ms: 5,
        stopping: false,
        warnings: vec![],
    }
}
