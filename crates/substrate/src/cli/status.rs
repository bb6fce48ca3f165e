//! `status`: what the daemon does.

use clap::Args;
use serde_json::json;
use substrate_api::v1;

use super::{connect, session::Session, story::refused, words};

/// Show what the daemon does.
#[derive(Debug, Args)]
pub struct Status {}

impl Status {
    /// Prints the state.
    pub async fn run(self, session: &Session) -> anyhow::Result<()> {
        let mut client = connect::required(session).await?;
        let status = client
            .status(v1::StatusRequest {})
            .await
            .map_err(refused)?
            .into_inner();
        if session.json {
            return Ok(session.json(&as_json(&status))?);
        }
        Ok(session.text(&page(&status))?)
    }
}

fn as_json(status: &v1::StatusReply) -> serde_json::Value {
    json!({
        "node": words::hex(&status.node),
        "network": { "name": status.network_name, "id": words::hex(&status.network) },
        "version": status.version,
        "listen": status.listen,
        "api": status.api,
        "lending": status.lending,
        "withheld": status.withheld,
        "peers": status.peers,
        "jobs": { "running": status.running, "waiting": status.waiting },
        "wall": words::wall(status.wall),
        "rss": status.rss,
        "uptime_ms": status.uptime_ms,
        "warnings": status.warnings,
    })
}

fn page(status: &v1::StatusReply) -> String {
    let mut page = String::new();
    let mut line = |name: &str, value: String| page.push_str(&format!("{name:<10}{value}\n"));
    line("node", words::hex(&status.node));
    line(
        "network",
        format!("{} ({})", status.network_name, words::hex(&status.network)),
    );
    line("version", status.version.clone());
    line("up", words::span(status.uptime_ms));
    line(
        "api",
        status
            .api
            .as_ref()
            .map_or_else(|| "off".to_owned(), |api| format!("http://{api}")),
    );
    match status.listen.as_slice() {
        [] => line("listen", "not reachable by other nodes".to_owned()),
        addrs => addrs.iter().for_each(|addr| line("listen", addr.clone())),
    }
    line(
        "lending",
        status.withheld.as_ref().map_or_else(
            || status.lending.clone(),
            |why| format!("{}, not now: {why}", status.lending),
        ),
    );
    line("wall", words::wall(status.wall).to_owned());
    line("peers", format!("{} connected", status.peers));
    line(
        "jobs",
        format!("{} running, {} waiting", status.running, status.waiting),
    );
    line("memory", words::size(status.rss));
    status
        .warnings
        .iter()
        .for_each(|warning| line("warning", warning.clone()));
    page
}
