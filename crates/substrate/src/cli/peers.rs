//! `peers`: the nodes in sight.

use clap::Args;
use serde_json::{Value, json};
use substrate_api::v1;

use super::{connect, session::Session, story::refused, table::Table, words};

/// A clock further off than this is pointed out. No rule reads it; a person may want to mend it.
const SKEW_SHOWN_MS: u64 = 2_000;

/// List the nodes in sight.
#[derive(Debug, Args)]
pub struct Peers {}

impl Peers {
    /// Prints the list.
    pub async fn run(self, session: &Session) -> anyhow::Result<()> {
        let mut client = connect::required(session).await?;
        let peers = client
            .peers(v1::PeersRequest {})
            .await
            .map_err(refused)?
            .into_inner()
            .peers;
        if session.json {
            return Ok(
                session.json(&json!({ "peers": peers.iter().map(as_json).collect::<Vec<_>>() }))?
            );
        }
        let mut table = Table::new([
            "NODE", "STATE", "SCOPE", "RTT", "QUEUE", "WRITES", "CLOCK", "MODELS",
        ]);
        for peer in &peers {
            table.row(columns(peer));
        }
        Ok(session.line(table)?)
    }
}

fn columns(peer: &v1::Peer) -> [String; 8] {
    [
        words::hex(&peer.node),
        if peer.connected { "connected" } else { "seen" }.to_owned(),
        if peer.circle { "circle" } else { "commons" }.to_owned(),
        peer.rtt_ms
            .map_or_else(|| "-".to_owned(), |rtt| format!("{rtt} ms")),
        format!("{}/{}", peer.queue, peer.slots),
        if peer.decode == 0 {
            "-".to_owned()
        } else {
            words::rate(peer.decode)
        },
        clock(peer.skew_ms),
        if peer.models.is_empty() {
            "-".to_owned()
        } else {
            peer.models.join(", ")
        },
    ]
}

fn clock(skew_ms: Option<i64>) -> String {
    match skew_ms {
        None => "-".to_owned(),
        Some(skew) if skew.unsigned_abs() < SKEW_SHOWN_MS => "ok".to_owned(),
        Some(skew) => format!(
            "{} {}",
            words::span(skew.unsigned_abs()),
            if skew > 0 { "ahead" } else { "behind" }
        ),
    }
}

fn as_json(peer: &v1::Peer) -> Value {
    json!({
        "node": words::hex(&peer.node),
        "addrs": peer.addrs,
        "connected": peer.connected,
        "circle": peer.circle,
        "rtt_ms": peer.rtt_ms,
        "skew_ms": peer.skew_ms,
        "build": peer.build,
        "models": peer.models,
        "slots": peer.slots,
        "queue": peer.queue,
        "prefill": peer.prefill,
        "decode": peer.decode,
        "walls": peer.walls.iter().map(|wall| words::wall(*wall)).collect::<Vec<_>>(),
    })
}
