//! `rm`: takes models away from this machine.

use clap::Args;
use serde_json::{Value, json};
use substrate_api::v1;

use super::{
    connect::{self, Client},
    session::{Session, note},
    story::refused,
    words,
};

/// Take a model away from this machine.
#[derive(Debug, Args)]
pub struct Rm {
    /// Their names
    #[arg(required = true)]
    models: Vec<String>,
}

impl Rm {
    /// Removes one after the other, and stops at the first that is not there. What is gone by then is told in any case.
    pub async fn run(self, session: &Session) -> anyhow::Result<()> {
        let mut client = connect::or_desk(session).await?;
        let mut removed = Vec::new();
        let outcome = remove_all(&mut client, self.models, &mut removed).await;
        if session.json && !(removed.is_empty() && outcome.is_err()) {
            session.json(&json!({ "removed": removed }))?;
        }
        outcome
    }
}

async fn remove_all(
    client: &mut Client,
    models: Vec<String>,
    removed: &mut Vec<Value>,
) -> anyhow::Result<()> {
    for model in models {
        let gone = client
            .remove(v1::RemoveRequest { model })
            .await
            .map_err(refused)?
            .into_inner();
        match gone.freed {
            0 => note(format_args!(
                "removed '{}'; its bytes stay for another name",
                gone.name
            )),
            freed => note(format_args!(
                "removed '{}', {} free again",
                gone.name,
                words::size(freed)
            )),
        }
        removed.push(json!({ "name": gone.name, "freed": gone.freed }));
    }
    Ok(())
}
