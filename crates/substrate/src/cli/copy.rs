//! `cp`: a second name for a model; no byte is copied.

use clap::Args;
use serde_json::json;
use substrate_api::v1;

use super::{
    connect,
    session::{Session, note},
    story::refused,
};

/// Give a model a second name.
#[derive(Debug, Args)]
pub struct Cp {
    /// The name it has
    from: String,
    /// The name it also gets
    to: String,
}

impl Cp {
    /// Copies the name.
    pub async fn run(self, session: &Session) -> anyhow::Result<()> {
        let mut client = connect::or_desk(session).await?;
        let request = v1::CopyRequest {
            from: self.from.clone(),
            to: self.to.clone(),
        };
        client.copy(request).await.map_err(refused)?;
        if session.json {
            return Ok(session.json(&json!({ "from": self.from, "to": self.to }))?);
        }
        note(format_args!("'{}' is also called '{}'", self.from, self.to));
        Ok(())
    }
}
