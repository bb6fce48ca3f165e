//! `stop`: unloads a model, or ends the daemon.

use std::time::{Duration, Instant};

use clap::Args;
use serde_json::json;
use substrate_api::v1;

use crate::home::DaemonLock;

use super::{
    connect,
    session::{Session, note},
    story::{Story, refused},
};

/// How long a daemon may take to finish or hand over what runs.
const STOP_DEADLINE: Duration = Duration::from_secs(60);

/// Between two looks at its lock.
const STOP_PAUSE: Duration = Duration::from_millis(50);

/// Unload a model, or end the daemon.
#[derive(Debug, Args)]
pub struct Stop {
    /// The model to unload
    #[arg(required_unless_present = "daemon")]
    model: Option<String>,

    /// End the daemon: what runs is finished or handed over first
    #[arg(long, conflicts_with = "model")]
    daemon: bool,
}

impl Stop {
    /// Stops what was named.
    pub async fn run(self, session: &Session) -> anyhow::Result<()> {
        match self.model {
            Some(model) => unload(session, model).await,
            None => daemon(session).await,
        }
    }
}

async fn unload(session: &Session, model: String) -> anyhow::Result<()> {
    let mut client = connect::required(session).await?;
    let request = v1::KeepAliveRequest {
        model: model.clone(),
        seconds: 0,
    };
    let loaded = client
        .keep_alive(request)
        .await
        .map_err(refused)?
        .into_inner()
        .loaded;
    if !loaded {
        return Err(Story::new(format!("model '{model}' is not in memory"))
            .hint("`substrate ps` shows which are")
            .into());
    }
    if session.json {
        session.json(&json!({ "unloaded": model }))?;
    }
    Ok(())
}

async fn daemon(session: &Session) -> anyhow::Result<()> {
    let pid = end(session).await?;
    if session.json {
        return Ok(session.json(&json!({ "stopped": pid }))?);
    }
    note("the daemon has stopped");
    Ok(())
}

/// Ends the daemon and waits until its lock is free. Tells which process it was.
pub async fn end(session: &Session) -> anyhow::Result<Option<u32>> {
    let home = session.home()?;
    let mut client = connect::required(session).await?;
    let pid = DaemonLock::holder(&home).ok().flatten();
    client.stop(v1::StopRequest {}).await.map_err(refused)?;
    let begun = Instant::now();
    while DaemonLock::holder(&home).ok().flatten().is_some() {
        if begun.elapsed() > STOP_DEADLINE {
            let which = pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default();
            let what = format!(
                "the daemon{which} was told to stop and still runs after {} s",
                STOP_DEADLINE.as_secs()
            );
            return Err(Story::new(what)
                .hint("`substrate jobs` shows what it waits for")
                .into());
        }
        tokio::time::sleep(STOP_PAUSE).await;
    }
    Ok(pid)
}
